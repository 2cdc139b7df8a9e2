"""Arrays of joints in MATLAB files, as several datasets of the first Kinect have them: (20, 3, frames), metres."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.reading import MOST_FILE, MOST_UNPACKED, TooLargeError, check_size, read_bytes
from c2vl_pipeline.readers.base import Array

_COMPRESSED, _NUMBERS = 15, range(6, 16)
"""The type of a compressed element of a MATLAB file, and the classes of arrays of numbers."""


def read_joints(path: Path, name: str, dataset: str) -> Array:
    """Read the array `name`, (20, 3, T), of a MATLAB file of a dataset. Shape: -> (T, 20, 3).

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    import scipy.io

    try:
        content: Any = _unpacked(path)  # scipy's types know only names of files
        array = np.asarray(scipy.io.loadmat(content, variable_names=[name])[name])
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{name} holds {array.dtype}")
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise DataError(
            f"{path}: not a MATLAB file with {name} (20, 3, frames), as {dataset} has; save other joints as .npy"
        ) from error
    if array.ndim != 3 or array.shape[:2] != (KINECT_V1.joints, 3):
        raise DataError(f"{path}: {name} has the shape {array.shape}; expected (20, 3, frames)")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
        return array.transpose(2, 0, 1).astype(np.float32)


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
