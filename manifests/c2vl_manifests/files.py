"""Files in folders that others may have filled: nothing outside these folders is changed or named by what they hold.

A link to a whole folder is the user's choice and is followed; a link in place of a file that is written is not.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import AfterValidator

from c2vl_manifests.errors import DataError

OUTSIDE = r"^/|(^|/)\.\.(/|$)|\x00"
"""Regular expression, of Python and of Arrow, of stored paths that leave the folder they are joined to, or are none."""


def leads_outside(path: str) -> bool:
    """Return True if a stored path leaves the folder it is joined to, or can be no path."""
    return re.search(OUTSIDE, path) is not None


def _inside(path: str) -> str:
    if leads_outside(path):
        raise ValueError(f"{path[:60]!r} leads out of the folder it belongs to")
    return path


Inside = Annotated[str, AfterValidator(_inside)]
"""A field of a model that becomes a part of a path."""


def regular(name: str, flags: int) -> int:
    """Open a regular file (an `opener` of `open`): a pipe would wait for ever, and a device never ends.

    Raises:
        DataError: it is something else; with O_NOFOLLOW also if it is a link.
    """
    try:
        handle = os.open(name, flags | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    except OSError as error:
        link = error.errno == errno.ELOOP and flags & os.O_NOFOLLOW
        if not link and error.errno != errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise
    what = "a symbolic link" if flags & os.O_NOFOLLOW and os.path.islink(name) else "a pipe, socket, device or folder"
    raise DataError(f"{name}: {what}, expected a file of its own; remove it, then run the same command again")


def check_regular(path: Path) -> None:
    """Raise DataError if a file that a library is about to open is a pipe, a socket or a device."""
    os.close(regular(str(path), os.O_RDONLY))


def open_own(path: Path, mode: str, buffering: int = -1) -> IO[Any]:
    """Open a file to change it in place, if it is a regular file and no link.

    With `w` it is removed and made anew, so that a link or another name of it (a hard link) leads to the old content.

    Raises:
        DataError: it is a link, a pipe, a socket or a device.
    """
    if mode.startswith("w"):
        path.unlink(missing_ok=True)
        mode = mode.replace("w", "x")
    encoding, errors = (None, None) if "b" in mode else ("utf-8", "replace")
    return open(path, mode, buffering, encoding, errors, opener=lambda n, flags: regular(n, flags | os.O_NOFOLLOW))
