"""Reader of UTD-MHAD's skeleton files (`d_skel` in MATLAB files)."""

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
from c2vl_pipeline.readers.base import Assembled, Reader, anchored, expect_ids, locate_by_name

_COMPRESSED, _NUMBERS = 15, range(6, 16)
"""The type of a compressed element of a MATLAB file, and the classes of arrays of numbers."""
_UTD_TO_KINECT_V1 = [3, 2, 1, 0, *range(4, 20)]


def read_utd(path: Path) -> Assembled:
    """Read `d_skel` (20, 3, T) of a UTD-MHAD `.mat` file; the hip centre of the first frame becomes the origin.

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    import scipy.io

    try:
        content: Any = _unpacked(path)  # scipy's types know only names of files
        array = scipy.io.loadmat(content, variable_names=["d_skel"])["d_skel"]
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise DataError(
            f"{path}: not a MATLAB file with d_skel (20, 3, frames), as UTD-MHAD has; save other joints as .npy"
        ) from error
    if array.ndim != 3 or array.shape[:2] != (20, 3):
        raise DataError(f"{path}: d_skel has the shape {array.shape}; expected (20, 3, frames)")
    joints = array.transpose(2, 0, 1)[:, None, _UTD_TO_KINECT_V1].astype(np.float32)
    return anchored(joints, KINECT_V1)


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


READER = Reader(
    expected_rows=expect_ids,
    locate=locate_by_name,
    read_joints=lambda path, row, layout, bodies, config: read_utd(path),
    check_file=read_utd,
    clip_files={".mat": "UTD-MHAD"},
    clip_layout="kinect_v1",
)
