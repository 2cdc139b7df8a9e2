"""Memory that runs out is one error that names the setting to change."""

from __future__ import annotations

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
