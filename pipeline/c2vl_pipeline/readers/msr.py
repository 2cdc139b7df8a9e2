"""Reader of MSRAction3D, one `.npz` of all clips: `x` (frames, 20, 3), `off` (clips + 1,), `name` (clips,).

Metres, y up, x towards the person's right, as in UTD-MHAD; only the order of the joints differs. Measured on both
datasets: the head is above the feet in 99.99 % of frames (median 1.58 m, UTD 1.48 m), the right shoulder is 0.34 m
(0.31 m) to the positive side of the left one, and one-handed actions move the right hand. The trackers differ: MSR's
hip centre is between the hips and 0.21 m below the spine (UTD: 0.08 m), and its limbs are 1.2 times as long.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.files import regular
from c2vl_manifests.reading import read_arrays
from c2vl_pipeline.readers.base import File, Match, Reader, Row, Scan, anchored, expect_ids, is_hidden

_TO_KINECT_V1 = [6, 3, 2, 19, 0, 7, 9, 11, 1, 8, 10, 12, 4, 13, 15, 17, 5, 14, 16, 18]


def clips(path: Path) -> dict[str, tuple[int, int]]:
    """Return the frames [start, end) of every clip of a file, by name.

    Raises:
        DataError: the file is in another format or damaged.
    """
    frames, off, names = _arrays(str(path), path.stat().st_mtime_ns)
    return {str(n): (int(a), int(b)) for n, a, b in zip(names, off[:-1], off[1:], strict=True) if b <= len(frames)}


def read_clip(path: Path, start: int, end: int) -> npt.NDArray[np.float32]:
    """Return the joints of frames [start, end) in Kinect v1's order. Shape: -> (T, 20, 3).

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    return _arrays(str(path), path.stat().st_mtime_ns)[0][start:end, _TO_KINECT_V1]


@lru_cache(maxsize=1)
def _arrays(path: str, _changed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[str]]:
    with open(path, "rb", opener=regular) as content:
        if not content.read(64).strip(b"\0"):
            raise DataError(f"{path}: begins with NUL bytes, as after a full disk or a crash; copy it again")
    try:
        file = read_arrays(Path(path))
        found = [array for name in ("x", "off", "name") if (array := file[name]) is not None]
        if len(found) < 3:
            raise ValueError("Object arrays are never loaded")
        joints, off, names = found
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zip and zlib raise a dozen kinds on damaged files
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{path}: not MSRAction3D with x, off and name ({reason})") from error
    if joints.ndim != 3 or joints.shape[1:] != (20, 3) or joints.dtype.kind != "f":
        raise DataError(f"{path}: x has the shape {joints.shape} of {joints.dtype}; expected (frames, 20, 3)")
    if names.ndim != 1 or off.shape != (len(names) + 1,) or off.dtype.kind not in "iu":
        raise DataError(f"{path}: off has the shape {off.shape}; expected one number more than names")
    if off[0] != 0 or (np.diff(off) < 0).any() or off[-1] > len(joints):
        raise DataError(
            f"{path}: off does not cut {len(joints):,} frames into clips; expected ascending numbers from 0"
        )
    return joints.astype(np.float32), off.astype(np.int64), [str(n) for n in names]


def _locate(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    match = Match()
    clips_by_name: dict[str, tuple[File, tuple[int, int]]] = {}
    for file in sorted(scan.files, key=lambda f: (is_hidden(f.relative), f.relative.count("/")), reverse=True):
        try:
            clips_by_name |= {name: (file, span) for name, span in clips(root / file.relative).items()}
        except DataError as error:
            match.unexpected.append(f"{file.relative}: {str(error).split(': ', 1)[-1]}")
    for row in rows:
        if row["sample_id"] in clips_by_name:
            file, (row["start_frame"], row["end_frame"]) = clips_by_name[row["sample_id"]]
            row.update(skeleton=file.relative, skeleton_bytes=file.size)
        else:
            match.missing_skeletons.append(row["sample_id"])
    return match


READER = Reader(
    expected_rows=expect_ids,
    locate=_locate,
    read_joints=lambda path, row, layout, bodies, config: anchored(
        read_clip(path, row["start_frame"], row["end_frame"])[:, None], layout
    ),
    named_by_id=False,
)
