"""MATLAB's `.mat` (up to version 7): joints (T, V, C), (T, M, V, C) or (V, C, T), and numbers alone."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import DataError
from c2vl_manifests.reading import MOST_FILE, MOST_UNPACKED, TooLargeError, check_size, read_bytes
from c2vl_pipeline.readers.files.base import DamagedError, Format, Numbers, Recording, Source, fitting

_COMPRESSED, _NUMBERS = 15, range(6, 16)
"""The type of a compressed element of a MATLAB file, and the classes of arrays of numbers."""
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read_matlab(path: Path, names: list[str] | None = None) -> dict[str, Numbers]:
    """Return the arrays of numbers of a MATLAB file, all or those of these names.

    Raises:
        TooLargeError: it, or what it unpacks to, is beyond the bounds of `c2vl_manifests.reading`.
        FileNotFoundError: it does not exist. Of damaged files scipy raises a dozen other kinds.
    """
    import scipy.io

    content: Any = _unpacked(path)  # scipy's types know only names of files
    held = scipy.io.loadmat(content, variable_names=names)
    return {name: array for name, array in held.items() if getattr(array, "dtype", None) is not None}


def _unpacked(path: Path) -> io.BytesIO:
    """Return a MATLAB file with its numbers unpacked, and without cells and structures, which may be nested at will.

    Of files of version 4, which begin with a number and compress nothing, the content.
    """
    content = read_bytes(path, MOST_FILE)
    if 0 in content[:4]:
        return io.BytesIO(content)
    order = ">" if content[126:128] == b"MI" else "<"
    parts, at, left = [content[:128]], 128, MOST_UNPACKED
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        element, at = content[at : at + 8 + size], at + 8 + size
        if kind == _COMPRESSED:
            engine = zlib.decompressobj()
            head = engine.decompress(element[8:], 8)
            check_size(size := struct.unpack(f"{order}II", head)[1], left, "unpacks to ")
            element = head + engine.decompress(engine.unconsumed_tail, size + 1)
            left -= size
        if len(element) > 20 and struct.unpack_from(f"{order}I", element, 16)[0] & 0xFF in _NUMBERS:
            parts.append(element)
    return io.BytesIO(b"".join(parts))


def read(source: Source) -> Recording:
    """Read the first array of a file that fits the layout."""
    path = source.path
    try:
        arrays = {name: array for name, array in read_matlab(path).items() if array.dtype.kind in "iuf"}
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # scipy raises a dozen kinds on damaged files, OSError without a number too
        if isinstance(error, OSError) and error.errno is not None:
            raise
        with path.open("rb") as file:
            newer = _HDF5 in file.read(1024)
        why = "of version 7.3, which is not read: save it by `save -v7`" if newer else "damaged; save it again"
        raise DamagedError(f"{path}: a MATLAB file {why}") from error
    if not arrays:
        raise DataError(f"{path}: a MATLAB file without an array of numbers; save the joints alone, not in a structure")
    return fitting(path, arrays, source.layout, turned=True)


FORMAT = Format("MATLAB", read, (".mat",))
