"""Which processes may fill a stage at one time: a single one, or several of which each makes its share of the shards.

Shares need no process that hands out work: every call makes its own shards, of one stage after the other, since a shard
is made from the same shard of the earlier stages only. Locks end with the process that holds them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from c2vl_manifests.errors import NO_SUCH_CALL, DataError, StageError, naming
from c2vl_manifests.events import Emit, Note
from c2vl_manifests.files import open_own

LOCK = ".lock"


class Share(NamedTuple):
    """Every `of`-th shard, starting with shard `number` - 1: the work of one task of a job array."""

    number: int
    """From 1 to `of`."""
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def shards(self, count: int) -> frozenset[int]:
        """Return the numbers of its shards among `count`; none if there are fewer shards than shares."""
        return frozenset(range(self.number - 1, count, self.of))

    @property
    def lock(self) -> str:
        """Name of its lock file in the folder of a stage."""
        return f".share-{self.number}-of-{self.of}.lock"


@contextmanager
def locked(folder: Path, share: Share | None, emit: Emit) -> Iterator[None]:
    """Hold a stage's folder for a whole run or for one share: two runs of the same shards would do the work twice.

    Raises:
        StageError: a run is at work that makes some of the same shards.
    """
    if share is None:
        with _held(folder, folder / LOCK, fcntl.LOCK_EX, emit):
            yield
        return
    with _held(folder, folder / LOCK, fcntl.LOCK_SH, emit), _held(folder, folder / share.lock, fcntl.LOCK_EX, None):
        for other in folder.glob(".share-*-of-*.lock"):
            if not other.name.endswith(f"-of-{share.of}.lock"):  # shares of another number overlap with this one
                with _held(folder, other, fcntl.LOCK_SH, None):
                    pass
        yield


def remove_locks(folder: Path) -> None:
    """Remove the lock files of shares and scenes; only a whole run may, which holds the folder alone."""
    for path in folder.rglob(".*.lock"):
        path.unlink(missing_ok=True)


@contextmanager
def _held(folder: Path, path: Path, kind: int, emit: Emit | None) -> Iterator[None]:
    """Hold a lock, and name this process in the file of an exclusive one; `emit` is told where locks do not exist."""
    with open_own(path, "a+") as handle:

        def note(text: str) -> None:
            if os.fstat(handle.fileno()).st_nlink <= 1:  # a hard link would show it in a file of others
                handle.truncate(0)
                handle.write(text)
                handle.flush()

        with naming(path):
            if not _lock(handle, kind, folder) and emit is not None:
                same = "start no second run of this stage" if kind == fcntl.LOCK_EX else "start no share twice"
                emit(Note(f"{folder}: this file system has no locks; going on without: {same}", "warning"))
            note(f"process {os.getpid()} on {socket.gethostname()}" if kind == fcntl.LOCK_EX else "")
        try:
            yield
        finally:
            note("")


def _lock(handle: IO[str], kind: int, folder: Path) -> bool:
    """Lock an open file; False where the file system has no locks, StageError where another process holds it."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        holder = " ".join(handle.read(200).split())
        # a Windows share answers EACCES where another process holds the lock, which has then written its name
        if error.errno in {errno.EWOULDBLOCK, errno.EAGAIN} or (error.errno == errno.EACCES and holder):
            raise StageError(
                f"{folder} is being filled by another run ({holder or _sharing(folder) or 'unknown'}); "
                "wait for it or stop it"
            ) from error
        if error.errno not in NO_SUCH_CALL | {errno.EPERM}:
            raise
        return False
    return True


def _sharing(folder: Path) -> str:
    """Return a share whose lock names a process, and that process; empty if no lock does."""
    for path in sorted(folder.glob(".share-*-of-*.lock")):
        with suppress(OSError, DataError), open_own(path, "r") as handle:
            if holder := " ".join(handle.read(200).split()):
                return f"share {re.sub('[^0-9]+', '/', path.name).strip('/')}, {holder}"
    return ""
