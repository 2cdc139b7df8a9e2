"""Hashes of the files that rows and results are made from, and when they were changed."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path

from c2vl_manifests.manifest import file_sha256, fingerprint


def content_sha256(path: Path) -> str | None:
    """Hash a raw file, or a folder of files by their names and contents; None for what is neither, like a pipe.

    A file is read once per process: one that holds all samples is a raw file of every shard.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_file():
        return remembered_sha256(path)
    if not path.is_dir():
        return None
    return fingerprint({inner.name: file_sha256(inner) for inner in sorted(path.iterdir()) if inner.is_file()})


def changed_at(path: Path | str) -> float:
    """Return when a raw file, or the last of a folder's, was changed."""
    state = os.stat(path)  # one call a file: there are a hundred thousand
    if not stat.S_ISDIR(state.st_mode):
        return state.st_ctime
    return max(state.st_ctime, *(os.stat(f"{path}/{name}").st_ctime for name in [".", *os.listdir(path)]))


def remembered_sha256(path: Path) -> str:
    """Hash a file once per process, as long as its size and times of change stay the same.

    Raises:
        OSError: the file cannot be read.
    """
    state = path.stat()
    return _sha256_of_state(path, (state.st_mtime_ns, state.st_ctime_ns), state.st_size)


@lru_cache(maxsize=256)
def _sha256_of_state(path: Path, changed: tuple[int, int], size: int) -> str:
    return file_sha256(path)
