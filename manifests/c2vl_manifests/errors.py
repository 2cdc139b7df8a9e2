"""Errors that users can fix: one flat family; each message gives value, expectation and remedy in one line."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SUCH_CALL = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY})
"""How file systems (Lustre, NFS, FUSE) answer calls that they lack: `flock`, `fsync` of a folder, `mmap` (ENODEV too)."""

_KEPT = "run the same command again: finished work is kept"
_MOUNT = "the network or FUSE file system that holds it has gone away", f"mount it again, then {_KEPT}"
_PERMISSION = "permission denied", "check who owns it (`ls -ld`), or name another path"
_DISK_ERRORS = {
    errno.ENOSPC: ("the disk is full (no space, or no inodes: `df`, `df -i`)", f"free some space and {_KEPT}"),
    errno.EDQUOT: ("the disk quota is used up (`quota -s` shows it, `df` does not)", f"free some space and {_KEPT}"),
    errno.EROFS: ("the file system is read-only", "name a folder that can be written, or mount it writable"),
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOENT: ("no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "check the path"),
    errno.EISDIR: ("is a folder, not a file", "check the path"),
    errno.EEXIST: ("is a file where a folder is to be made", "remove it or name another path"),
    errno.ELOOP: ("symbolic links lead in a circle", "check the links of the path"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "use a shorter path"),
    errno.EILSEQ: ("the file system cannot hold these letters in a name", "use another name, or another disk"),
    errno.EFBIG: ("the file is too large for this file system (FAT: 4 GiB) or for `ulimit -f`", "use another disk"),
    errno.EIO: ("the disk or network failed to read or write it (input/output error)", f"check the disk (`dmesg`), then {_KEPT}"),
    errno.ESTALE: ("stale file handle: it was replaced on the server, or its mount was renewed", f"mount it again, then {_KEPT}"),
    errno.ENOTCONN: _MOUNT,
    errno.ETIMEDOUT: _MOUNT,
    errno.EHOSTDOWN: _MOUNT,
    errno.ESHUTDOWN: _MOUNT,
    errno.ENXIO: _MOUNT,
    errno.EMFILE: ("this process has too many open files", f"raise the limit (`ulimit -n 4096`), then {_KEPT}"),
    errno.ENFILE: ("this machine has too many open files", f"end other programs, then {_KEPT}"),
    errno.ENOMEM: ("memory is exhausted", f"use fewer --workers or smaller batches, then {_KEPT}"),
    errno.EBUSY: ("another program uses it", f"end that program, then {_KEPT}"),
    errno.ETXTBSY: ("another program uses it", f"end that program, then {_KEPT}"),
    errno.EXDEV: ("the file system cannot rename it", "use a folder on another file system"),
    errno.ENODEV: ("the file system cannot map files into memory", "use a folder on another file system"),
} | dict.fromkeys(NO_SUCH_CALL, ("the file system refuses this name or lacks a call that is needed", "use a folder on another file system"))  # fmt: skip
"""errno -> what happened to the file, and what helps."""


def passing(error: BaseException) -> bool:
    """True if a file that cannot be read now may be whole: a mount, a permission or a limit is at fault."""
    limits = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
    return isinstance(error, OSError) and (
        error.errno in limits or _DISK_ERRORS.get(error.errno or 0) in (_MOUNT, _PERMISSION)
    )


def disk_error(error: OSError, path: object = None) -> str:
    """Return one line on an OSError: file, cause, remedy.

    Args:
        error: the error.
        path: the file, if the error names none.
    """
    name = path if error.filename is None else error.filename
    cause, remedy = _DISK_ERRORS.get(error.errno or 0, ("", _KEPT))
    if name is None and (cause, remedy) == _MOUNT:  # of a socket
        cause, remedy = "", _KEPT
    if not cause:
        cause = error.strerror or one_line(error)
    elif error.errno in NO_SUCH_CALL and error.strerror:
        cause = f"{cause} ({error.strerror})"
    return f"{name}: {cause}; {remedy}" if name is not None else f"{cause}; {remedy}"


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Make an OSError name this file: those of `write`, `fsync` and libraries name none, or its temporary one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(temporary)}:
            error.filename, error.filename2 = str(path), None
        raise


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


_MEMORY = re.compile(
    "out of memory|allocate memory(?! in static)|not enough memory|alloc_failed|unable to allocate|failed to map segment",
    re.IGNORECASE,
)
"""In messages of torch's allocators, CUDA, cuBLAS, cuDNN, numpy and the loader, which have no class in common."""

_GPU = re.compile(
    "(CUDA|HIP|cuDNN|cuBLAS|NCCL)[a-z ]* error|(CUBLAS|CUDNN|CUSOLVER|CUFFT)_STATUS|(CUDA|NVIDIA) driver|no CUDA GPUs|"
    "no kernel image|device-side assert|compiled with CUDA|CUDA initialization|libcuda|libcudart",
    re.IGNORECASE,
)


def memory_ran_out(error: BaseException) -> bool:
    """Return True if an exception of Python, torch or another library says that memory ran out."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, SystemError) or "can't start new thread" in str(
        error
    ):  # also where nobody looks for the cause
        return address_space_limited()
    return isinstance(error, (RuntimeError, ImportError, OSError)) and _MEMORY.search(str(error)) is not None


def address_space_limited() -> bool:
    """Return True if this process may use less address space than the machine has (`ulimit -v`)."""
    import resource  # not on every system

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def gpu_failed(error: BaseException) -> bool:
    """Return True if an exception says that a GPU, its driver or torch's support of it failed, but not its memory."""
    return isinstance(error, (RuntimeError, AssertionError, ImportError, OSError)) and bool(_GPU.search(str(error)))


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
