"""Memory: what is freed stays with a training process; what runs out is one error that names the setting to change."""

from __future__ import annotations

import ctypes
import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from c2vl_manifests.errors import C2VLError, memory_ran_out, one_line


class OutOfMemoryError(C2VLError):
    """Memory ran out; what needs less of it may still succeed."""


@contextmanager
def memory_errors(what: str, setting: str = "", batch: int = 1, more: str = "") -> Iterator[None]:
    """Turn exhausted memory into `OutOfMemoryError`, and release what the failed work held.

    Args:
        what: was done, e.g. `the pretrain training`.
        setting: of the recipe, whose smaller value needs less; empty where no batch is to blame.
        batch: its present value.
        more: what else the user should know, e.g. what is kept.
    """
    try:
        yield
    except (RuntimeError, MemoryError, SystemError, ImportError, OSError) as error:
        if not memory_ran_out(error):
            raise
        text = one_line(error, named=True, limit=200).rstrip(".")
        traceback.clear_frames(error.__traceback__)  # their tensors would stay as long as the error
        release()
        remedy = (
            f"choose a smaller batch, e.g. --set {setting}={batch // 2} (now {batch}), or "
            if setting and batch > 1
            else "choose "
        )
        raise OutOfMemoryError(
            f"memory ran out in {what} ({text}); {remedy}a device with more free memory (training.device){more}"
        ) from error


def release() -> None:
    """Give memory that is no longer used back to the device, so that what follows can have it."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def keep_freed() -> None:
    """Let glibc keep freed memory for the next step, in this whole process; with another C library, nothing happens.

    It otherwise returns every large tensor to the system, and each page of the next one, 4 KB, costs a fault.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large tensors come from the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: which is never given back, at more than 2 GB either
