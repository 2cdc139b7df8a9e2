"""Errors that users can fix: one flat family; each message gives value, expectation and remedy in one line."""

from __future__ import annotations

import errno


def one_line(error: BaseException, *, named: bool = False, limit: int = 160) -> str:
    """Return the first line of an error's text, or its class name where it has none.

    Args:
        error: any exception.
        named: join all lines and put the class name before them, for errors of other libraries.
        limit: characters kept.
    """
    if named:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}".removesuffix(": ")
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


_MEMORY = ("out of memory", "allocate memory", "not enough memory", "alloc_failed", "unable to allocate")
"""In messages of torch's allocators, CUDA, cuBLAS, cuDNN and numpy, which have no class in common."""


def memory_ran_out(error: BaseException) -> bool:
    """Return True if an exception, of whatever library, says that memory ran out."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _MEMORY))


class C2VLError(Exception):
    """Base of all errors that a user can fix. The command line prints one red line and exits with code 1."""


class ConfigError(C2VLError):
    """A recipe, an override or a dataset description is invalid."""


class DataError(C2VLError):
    """A file cannot be read as the format it should have (`file:line: reason` for text files)."""


class StageError(C2VLError):
    """A stage cannot run: its predecessor is missing, unfinished, or was made with another configuration."""


class EngineError(C2VLError):
    """An engine is not installed, or its checkpoint cannot be found or loaded."""


class CheckpointError(C2VLError):
    """A run folder or weight file is missing, damaged, or belongs to another model or dataset."""
