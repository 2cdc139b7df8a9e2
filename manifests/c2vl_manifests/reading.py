"""Files that others may have made, read within bounds: a small file never unpacks to more than a machine holds.

Sizes are taken from headers, and what headers promise is never trusted beyond these bounds. Errors are ValueError
(TooLargeError, if a bound is the cause) or OSError, to which callers add the file and the remedy, and DataError where a
pipe or a device stands in place of a file. Parquet: see `tables`.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import tomllib
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import one_line
from c2vl_manifests.files import regular

MOST_FILE = 8 << 30
"""Bytes of a file that is read whole."""
MOST_UNPACKED = 2 << 30
"""Bytes that a compressed file unpacks to: an hour of two people at 60 Hz, 133 joints in float64, takes 1.4 GB."""
MOST_TEXT = 64 << 20
"""Bytes of a JSON file, but captions."""
MOST_TOML = 8 << 20
"""Bytes of a TOML file, which the standard library reads in seconds."""
MOST_ARRAYS = 10_000
"""Files of an `.npz`, whose headers are read in seconds."""
MOST_VALUES = 1 << 25
"""Values of a JSON text; each takes up to 72 bytes in memory. All captions of NTU RGB+D 120 are 1.8 million."""
MOST_DEPTH = 64
"""Lists and tables within each other; recipes and manifests have fewer than ten."""
_MOST_HEADER = 1 << 16
_NESTED = (dict, list)

_DOTTED = re.compile(r"""(?<![\w"'.-])(?:(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*){1000}""")
"""A key of too many parts, for which tomllib needs minutes."""
_LONG_NUMBER = re.compile(r"0[xob][\da-fA-F_]{1000}")
"""A whole number that Python reads and refuses to write."""


class TooLargeError(ValueError):
    """A file, or what it unpacks to, is beyond a bound."""


def check_size(size: int, most: int, what: str = "") -> None:
    """Raise TooLargeError if there are more than `most` bytes."""
    if size > most:
        raise TooLargeError(f"{what}{size:,} bytes; expected up to {most:,}")


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """Return the content of a file of up to `most` bytes."""
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        check_size(size, most)
        return file.read(size + 1)


def is_storable(text: str) -> bool:
    """Return False for a text with half characters (lone surrogates), which JSON can express and tables cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------------------------------ JSON and TOML


def shallow(value: Any) -> Any:
    """Return a value of lists and tables that are nested `MOST_DEPTH` times at most, so that any code can walk it."""
    level: list[Any] = [[value]]
    for _ in range(MOST_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, _NESTED)
        ]
        if not level:
            return value
    raise ValueError(f"lists or tables are nested more than {MOST_DEPTH} times")


def from_json(text: bytes | str) -> Any:
    """Return the value of a JSON text."""
    values = text.count(",") if isinstance(text, str) else text.count(b",")
    if values > MOST_VALUES:
        raise TooLargeError(f"{values:,} values; expected up to {MOST_VALUES:,}")
    try:
        return shallow(json.loads(text, parse_float=_finite))
    except RecursionError:
        raise ValueError(f"lists or tables are nested more than {MOST_DEPTH} times") from None


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("a number beyond what a float holds")
    return value


def read_json(path: Path) -> Any:
    """Return the value of a JSON file."""
    return from_json(read_bytes(path))


def from_toml(text: str) -> dict[str, Any]:
    """Return the table of a TOML text."""
    check_size(len(text), MOST_TOML)
    try:
        if _DOTTED.search(text):
            raise RecursionError
        if _LONG_NUMBER.search(text):
            raise ValueError("a whole number of more than 1000 digits")
        table: dict[str, Any] = shallow(tomllib.loads(text))
        return table
    except RecursionError:
        raise ValueError(f"lists or tables are nested more than {MOST_DEPTH} times") from None


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Return the text of a UTF-8 file of up to `most` bytes."""
    return read_bytes(path, most).decode("utf-8")


# ------------------------------------------------------------------------------------- what is compressed


def unzip(archive: zipfile.ZipFile, name: str, most: int = MOST_UNPACKED) -> bytes:
    """Return a file of an archive; no more than its directory says is unpacked."""
    size = archive.getinfo(name).file_size
    check_size(size, most, f"{name} unpacks to ")
    with archive.open(name) as member:
        return member.read(size)


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any] | None]:
    """Return the arrays of an `.npz` by name, or the one of an `.npy`; read-only, None where one is no plain array.

    Python objects are never loaded.
    """
    with open(path, "rb", opener=regular) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(2) != b"PK":
            file.seek(0)
            return {"": _array(file, size, MOST_FILE)}
        found, left = {}, MOST_UNPACKED
        with zipfile.ZipFile(file) as archive:
            if (count := len(archive.infolist())) > MOST_ARRAYS:
                raise TooLargeError(f"{count:,} files; expected up to {MOST_ARRAYS:,}")
            for entry in archive.infolist():
                with archive.open(entry) as member:
                    array = _array(member, entry.file_size, left)
                found[entry.filename.removesuffix(".npy")] = array
                left -= 0 if array is None else array.nbytes
        return found


def read_array(path: Path) -> npt.NDArray[Any]:
    """Return the array of an `.npy` file."""
    array = read_arrays(path).get("")
    if array is None:
        raise ValueError("Python objects, which are never loaded")
    return array


def _array_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array in numpy's format: shape, whether columns come first, and the type of its values."""
    wide = np.lib.format.read_magic(stream) != (1, 0)
    head = stream.read(4 if wide else 2)
    check_size(length := int.from_bytes(head, "little"), _MOST_HEADER, "a header of ")
    read = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
    try:
        shape, columns_first, dtype = read(io.BytesIO(head + stream.read(length)))
    # it is parsed as literals of Python: RecursionError, MemoryError, SyntaxError, TypeError and others
    except Exception as error:
        raise ValueError(f"a header that is none ({one_line(error)})") from error
    if min(shape, default=0) < 0:
        raise ValueError(f"shape {shape}")
    return tuple(map(int, shape)), columns_first, dtype  # of truth values too


def map_array(path: Path) -> npt.NDArray[Any]:
    """Return the array of an `.npy` file, of any size but 0, which stays on disk until it is used."""
    with open(path, "rb", opener=regular) as file:
        shape, columns_first, dtype = _array_header(file)
        if dtype.hasobject:
            raise ValueError("Python objects, which are never loaded")
        if math.prod(shape) * dtype.itemsize > (size := os.fstat(file.fileno()).st_size):
            raise ValueError(f"{size:,} bytes for an array {shape} of {dtype}")
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if columns_first else "C")


def _array(stream: IO[bytes], size: int, most: int) -> npt.NDArray[Any] | None:
    """Read an array from a file, or from a file of an archive, of `size` bytes."""
    try:
        shape, columns_first, dtype = _array_header(stream)
    except TooLargeError:
        raise
    except ValueError:
        if isinstance(stream, zipfile.ZipExtFile):  # an archive may hold other files
            return None
        raise
    if dtype.hasobject:
        return None
    count = math.prod(shape)
    check_size(count * dtype.itemsize, most, f"an array {shape} of {dtype} takes ")
    if count * dtype.itemsize > size:
        raise ValueError(f"{size:,} bytes for an array {shape} of {dtype}")
    if isinstance(stream, zipfile.ZipExtFile):
        array = np.frombuffer(stream.read(count * dtype.itemsize), dtype, count)
    else:
        array = np.fromfile(stream, dtype, count)
    return array.reshape(shape[::-1]).T if columns_first else array.reshape(shape)
