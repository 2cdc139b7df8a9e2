"""Reader of custom datasets: a table of samples, joints as numpy arrays or as the files of a Kinect v2."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.files import regular
from c2vl_manifests.layouts import KINECT_V2, LAYOUTS, Layout
from c2vl_manifests.reading import TooLargeError, read_arrays
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers import ntu
from c2vl_pipeline.readers.base import (
    NEARLY,
    Array,
    Assembled,
    Projection,
    Reader,
    Row,
    anchored,
    recording_frames,
    without_gaps,
)
from c2vl_pipeline.readers.oddities import oddities, placeholders
from c2vl_pipeline.readers.sample_table import expected_rows
from c2vl_pipeline.readers.table_files import locate_named

_ARRAYS = (".npy", ".npz")
_WIDEST = 4
"""Width of an image in its heights."""
_LOOKED_AT = 16
"""Files that `index` reads, without `deep`, to note what no person can be."""
_NUMBERS = re.compile(r"-?\d[\d,.]*(e\+\d+)?|\(\w+\) (is|and \d+ more are)")
"""Numbers and joints in notes."""

# ---------------------------------------------------------------------------------------------- arrays


def read_array(path: Path, layout: Layout, bodies: int, row: Row | None = None) -> Assembled:
    """Read joints, (T, V, C) or (T, M, V, C), from `.npy` or the first fitting array of an `.npz`; pickles are never loaded.

    Missing joints are zero or NaN and become zero. The layout's origin becomes zero, see `to_origin`.

    Args:
        path: the file.
        layout: of the joints.
        bodies: to keep, of those that are seen in the range.
        row: of the index; its range of frames is cut out, see `frames_meant`.

    Raises:
        DataError: the file is no such array, or has other frames than the row needs.
        OSError: the file cannot be opened.
    """
    array, _ = _load(path, layout)
    start, stop, offset = frames_meant(path, row or {}, len(array))
    made = anchored(array[start:stop], layout, bodies)
    return replace(made, frame_index=made.frame_index + np.int32(offset + start))


class _DamagedError(DataError):
    """A file is not whole."""


def _load(path: Path, layout: Layout) -> tuple[Array, bool]:
    """Return the joints of a file as (T, M, V, C), and True if people came before frames in it, as pyskl has them.

    Of the arrays of an `.npz` the first that fits the layout is taken.

    *Reading:* more people than frames are taken for people first, (M, T, V, C).
    """
    held, tail = _numbers(path), (layout.joints, layout.dims)
    for array in held.values():
        turned = array.ndim == 4 and 0 < array.shape[0] < array.shape[1]
        joints = array[:, None] if array.ndim == 3 else array.swapaxes(0, 1) if turned else array
        if joints.ndim == 4 and joints.shape[2:] == tail and joints.shape[1] > 0:
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
                return joints.astype(np.float32, copy=False), turned
    shape = max((array.shape for array in held.values()), key=len)
    names = [f"{name} {array.shape}" for name, array in held.items()]
    found = f"arrays {', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if len(names) > 1 else f"shape {shape}"
    needs = f"(T, {tail[0]}, {tail[1]}) or (T, M, {tail[0]}, {tail[1]})"
    raise DataError(f"{path}: {found}; layout {layout.name!r} needs {needs}{_remedy(shape, tail)}")


def _numbers(path: Path) -> dict[str, npt.NDArray[np.number]]:
    """Return the arrays of numbers of a `.npy` or `.npz` file by name, at least one."""
    if path.suffix.lower() not in _ARRAYS:
        raise DataError(f"{path}: {_kinds(path)}")
    with open(path, "rb", opener=regular) as file:
        head = file.read(6)
    if head != b"\x93NUMPY" and head[:2] != b"PK":
        raise _DamagedError(f"{path}: not a numpy array, it begins with {head!r}; save it again with np.save")
    try:
        held = read_arrays(path)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # numpy, zip and zlib raise a dozen kinds on damaged files
        raise _DamagedError(
            f"{path}: not a numpy array, or cut off ({path.stat().st_size:,} bytes); save it again with np.save"
        ) from error
    arrays = {name: array for name, array in held.items() if array is not None}
    if numbers := {name: array for name, array in arrays.items() if array.dtype.kind in "iuf"}:
        return numbers
    kinds = [str(array.dtype) for array in arrays.values()]
    kinds = kinds or ["Python objects, which are never loaded" if held else "no array"]
    raise DataError(f"{path}: holds {', '.join(kinds)}; expected numbers, in metres; save one array with np.save")


def _kinds(path: Path) -> str:
    """Say why a file of another kind is not read."""
    return (
        f"{path.suffix or 'a file without suffix'} is not read; give .npy or .npz, an array (frames, joints, coordinates), "
        "or a Kinect v2's .skeleton; docs/guides/own-sensor.md shows how to convert others"
    )


def _remedy(shape: tuple[int, ...], tail: tuple[int, int]) -> str:
    """Return what probably turns an array of this shape into joints."""
    if shape == tail:
        return "; this is one frame: save x[None]"
    if len(shape) == 2 and shape[1] == tail[0] * tail[1]:
        return f"; save x.reshape(-1, {tail[0]}, {tail[1]})"
    if shape[-2:] == (tail[0], tail[1] + 1):
        return f"; if the last coordinate is a confidence, save x[..., :{tail[1]}]"
    if near := [other.name for other in LAYOUTS.values() if tail != (other.joints, other.dims) == shape[-2:]]:
        return f"; for these joints give --layout {' or '.join(near)}"
    for order in list(permutations(range(len(shape))))[1:] if len(shape) in {3, 4} else []:
        turned = tuple(shape[axis] for axis in order)
        if turned[-2:] == tail and (len(shape) == 3 or turned[0] >= turned[1]):
            return f"; frames come first, joints and coordinates last: save x.transpose{order}"
    return "; give the layout of these joints with --layout, or save them in this order"


def frames_meant(path: Path, row: Row, total: int) -> tuple[int, int, int]:
    """Return which frames [a, b) of a file of `total` a row means, and which frame of its video is the file's first.

    `start_frame` and `end_frame` count frames of the recording, for joints as for video. A file as long as the range
    holds the segment alone, unless other rows cut other ranges from it; one as long as the recording is cut.

    Raises:
        DataError: the file is neither.
    """
    start, end = row.get("start_frame") or 0, row.get("end_frame")
    if not start and end is None:
        return 0, total, 0
    recording = recording_frames(path, row, total)
    stop = end if end is not None else max(recording or total, start)
    if total == stop - start and row.get("ranges", 1) == 1:
        return 0, total, start
    whole = total >= stop if recording is None else abs(total - recording) <= NEARLY
    if whole and total > start:
        return start, min(stop, total), 0
    if recording is not None and start >= recording:
        raise DataError(
            f"{path}: start_frame {start:,} lies behind the end of the recording ({recording:,} frames); correct the table"
        )
    last = "the end" if end is None else f"{end:,}"
    raise DataError(
        f"{path}: {total:,} frames; the row means frames {start:,} to {last} of its recording: give joints of that segment"
        f"{f' ({stop - start:,} frames)' if stop > start else ''} or of the whole recording ("
        f"{f'{recording:,}' if recording else f'at least {max(stop, start + 1):,}'} frames)"
    )


# ---------------------------------------------------------------------------------- files of either kind


def _recording(path: Path, row: Row, layout: Layout) -> tuple[ntu.NtuFile, int]:
    """Return the frames of a `.skeleton` file that a row means, and which frame of its video is their first."""
    if layout.names != KINECT_V2.names or layout.dims != KINECT_V2.dims:
        raise DataError(
            f"{path}: .skeleton files hold the joints of kinect_v2, not {layout.name!r}; give that --layout"
        )
    try:
        file = ntu.read_ntu(path)
    except DataError as error:
        raise _DamagedError(str(error)) from error
    start, stop, offset = frames_meant(path, row, file.frames)
    return file.cut(start, stop), offset + start


def _read(path: Path, row: Row, layout: Layout, bodies: int, config: SkeletonsConfig) -> Assembled:
    if path.suffix.lower() not in ntu.READER.clip_files:
        return read_array(path, layout, bodies, row)
    file, first = _recording(path, row, layout)
    made = ntu.assemble_ntu(file, config)
    return replace(made, frame_index=made.frame_index + np.int32(first))


def _project(path: Path, row: Row, layout: Layout, upright: bool = False) -> Projection | None:
    """Return the joints of own recordings as pixels: 2D ones in image heights, y up, and those of `.skeleton` files.

    *Reading:* y is 0 at the lower edge of the image, or, if most joints have a negative y, at its upper edge.

    Args:
        path: skeleton file.
        row: of the index.
        layout: of the joints.
        upright: refuse heads below feet too.
    """
    if path.suffix.lower() in ntu.READER.clip_files:
        file, first = _recording(path, row, layout)
        return lambda frame, height: ntu.projected(file, frame - first)
    if layout.dims != 2:
        return None
    joints, _ = _load(path, layout)
    start, stop, offset = frames_meant(path, row, len(joints))
    joints = without_gaps(joints[start:stop])
    for _, at in placeholders(joints):
        joints[at] = 0
    seen = np.asarray(joints.any(axis=3), np.bool_)
    if not seen.any():
        return lambda frame, height: None
    if doubts := oddities(joints, layout, upright):
        raise DataError(f"{path}: the joints do not place a crop: {doubts[0]}")
    x, y = joints[seen].T
    top = 0.0 if float(np.median(y)) < 0 else 1.0
    if ((x < 0) | (x > _WIDEST) | (top - y < 0) | (top - y > 1)).mean() > 1 / 3:
        raise DataError(f"{path}: the joints do not place a crop: they are not in the image; expected image heights")
    return partial(_pixels, joints, seen, offset + start, top)


def _pixels(
    joints: Array, seen: npt.NDArray[np.bool_], first: int, top: float, frame: int, height: int
) -> Array | None:
    """Return the bodies of a frame in pixels, NaN where a joint is missing."""
    at = frame - first
    if not 0 <= at < len(joints) or not seen[at].any():
        return None
    pixels = (joints[at] * np.array([1, -1], np.float32) + np.array([0, top], np.float32)) * height
    return np.where(seen[at][..., None], pixels, np.float32(np.nan))


# ----------------------------------------------------------------------------------------------- index


def _in_image(root: Path, rows: list[Row], layout: Layout) -> bool:
    """True if every video has 2D joints, and those of the first one are in its image."""
    filmed = [r for r in rows if r["video"] and not r["problem"]]
    if layout.dims != 2 or not filmed or not all(r["skeleton"] for r in filmed):
        return False
    try:
        return _project(root / filmed[0]["skeleton"], filmed[0], layout, upright=True) is not None
    except (DataError, OSError):
        return False


def _look(root: Path, rows: list[Row], layout: Layout, deep: bool) -> tuple[list[str], list[str]]:
    """Read files, all of them if `deep`; note what the skeletons stage will refuse and what no person can be."""
    truncated: list[str] = []
    found: dict[str, dict[str, str]] = {}
    count = 0
    for row in rows:
        if not row["skeleton"] or not row["skeleton_bytes"] or row["problem"]:
            continue
        path, reasons = root / row["skeleton"], []
        if path.suffix.lower() not in (*_ARRAYS, *ntu.READER.clip_files):
            found.setdefault(path.suffix, {})[row["skeleton"]] = _kinds(path)
            continue
        count += 1
        if count > _LOOKED_AT and not deep:
            continue
        try:
            if path.suffix.lower() in ntu.READER.clip_files:
                _recording(path, row, layout)
                continue
            joints, turned = _load(path, layout)
            start, stop, _ = frames_meant(path, row, len(joints))
            reasons = oddities(joints[start:stop], layout)
            if turned:
                reasons.append(f"read as (people, T, V, C): {joints.shape[1]} people in {len(joints):,} frames")
        except (DataError, OSError) as error:
            reasons = [str(error).removeprefix(str(path)).lstrip(": ")]
            if deep and isinstance(error, _DamagedError | OSError):
                truncated.append(f"{row['skeleton']}: {reasons.pop()}")
        for reason in reasons:  # those that differ in numbers and joints alone are one note
            found.setdefault(_NUMBERS.sub("", reason), {})[row["skeleton"]] = reason
    notes = []
    for files in found.values():
        name, reason = next(iter(files.items()))
        notes.append(f"{name}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}: {reason}")
    return truncated, notes


READER = Reader(
    expected_rows=expected_rows,
    locate=locate_named,
    read_joints=_read,
    project=_project,
    look=_look,
    in_image=_in_image,
    clip_files={".npy": "numpy", ".npz": "numpy"},
    named_by_id=False,
)
