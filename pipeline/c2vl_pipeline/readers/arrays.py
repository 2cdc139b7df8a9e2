"""Reader of custom datasets: a table of samples, joints as numpy arrays or in the files of a Kinect v2 or another tool."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V2, Layout
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
from c2vl_pipeline.readers.files import clip_suffixes, is_read, read_recording, what_is_read
from c2vl_pipeline.readers.files.base import MOST_FRAMES, DamagedError, Recording, Source
from c2vl_pipeline.readers.oddities import oddities, of_files, placeholders
from c2vl_pipeline.readers.sample_table import expected_rows
from c2vl_pipeline.readers.table_files import locate_named

_WIDEST = 4
"""Width of an image in its heights."""
_LOOKED_AT = 16
"""Files that `index` reads, without `deep`, to note what no person can be."""
_ALIKE = 50
"""A clip's joints and video may differ by this part of their frames before it is noted."""

# ---------------------------------------------------------------------------------------------- arrays


def read_array(
    path: Path, layout: Layout, bodies: int, row: Row | None = None, config: SkeletonsConfig | None = None
) -> Assembled:
    """Read joints from a file of any format of `c2vl_pipeline.readers.files`; pickles are never loaded.

    Missing joints are zero or NaN and become zero. The layout's origin becomes zero, see `to_origin`.

    Args:
        path: the file.
        layout: of the joints.
        bodies: to keep, of those that are seen in the range.
        row: of the index; its range of frames is cut out, see `frames_meant`.
        config: for the size of the image, where neither the file nor a video tells it.

    Raises:
        DataError: the file is no such array, or has other frames than the row needs.
        OSError: the file cannot be opened.
    """
    array = _load(path, row or {}, layout, config).joints
    start, stop, offset = frames_meant(path, row or {}, len(array))
    made = anchored(array[start:stop], layout, bodies)
    return replace(made, frame_index=made.frame_index + np.int32(offset + start))


def _load(path: Path, row: Row, layout: Layout, config: SkeletonsConfig | None = None) -> Recording:
    """Return the joints of a file of any format, with as many frames as the video where empty ones are not in the file."""
    made = read_recording(Source(path, row, layout, config or SkeletonsConfig()))
    if not made.sparse:
        return made
    total = recording_frames(path, row, len(made.joints))
    if total is None and len(made.joints):
        return made
    total = total or row.get("end_frame") or 0  # nobody in any frame
    more = min(total, MOST_FRAMES) - len(made.joints)
    return replace(made, joints=np.pad(made.joints, ((0, more), (0, 0), (0, 0), (0, 0)))) if more > 0 else made


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
        raise DamagedError(str(error)) from error
    start, stop, offset = frames_meant(path, row, file.frames)
    return file.cut(start, stop), offset + start


def _read(path: Path, row: Row, layout: Layout, bodies: int, config: SkeletonsConfig) -> Assembled:
    if path.suffix.lower() not in ntu.READER.clip_files:
        return read_array(path, layout, bodies, row, config)
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
    joints = _load(path, row, layout).joints
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


def _look(
    root: Path, rows: list[Row], layout: Layout, deep: bool, config: SkeletonsConfig | None = None
) -> tuple[list[str], list[str]]:
    """Read files, all of them if `deep`; note what the skeletons stage will refuse and what no person can be."""
    truncated: list[str] = []
    found: list[tuple[str, str]] = []
    count = 0
    for row in rows:
        if not row["skeleton"] or not row["skeleton_bytes"] or row["problem"]:
            continue
        path, reasons = root / row["skeleton"], []
        if path.suffix.lower() not in ntu.READER.clip_files and not is_read(path):
            found.append((row["skeleton"], what_is_read(path)))
            continue
        count += 1
        if count > _LOOKED_AT and not deep:
            continue
        try:
            if path.suffix.lower() in ntu.READER.clip_files:
                _recording(path, row, layout)
                continue
            made = _load(path, row, layout, config)
            start, stop, _ = frames_meant(path, row, len(made.joints))
            reasons = [
                *oddities(made.joints[start:stop], layout),
                *made.notes,
                *_other_rate(path, row, len(made.joints)),
            ]
        except (DataError, OSError) as error:
            reasons = [str(error).removeprefix(str(path)).lstrip(": ")]
            if deep and isinstance(error, DamagedError | OSError):
                truncated.append(f"{row['skeleton']}: {reasons.pop()}")
        found += [(row["skeleton"], reason) for reason in reasons]
    return truncated, of_files(found)


def _other_rate(path: Path, row: Row, frames: int) -> list[str]:
    """Return a note on a whole recording with another number of frames than its video."""
    if row.get("start_frame") or row.get("end_frame") is not None or not frames:
        return []
    video = recording_frames(path, row, frames)
    if video is None or abs(video - frames) <= max(NEARLY, frames // _ALIKE):
        return []
    return [
        f"{frames:,} frames of joints, and its video has {video:,}: another frame rate, or a part of it? Joints and pictures are "
        "matched by the number of the frame: resample the joints to the video's frames, or give start_frame and end_frame"
    ]


READER = Reader(
    expected_rows=expected_rows,
    locate=locate_named,
    read_joints=_read,
    project=_project,
    look=_look,
    in_image=_in_image,
    clip_files=clip_suffixes(),
    named_by_id=False,
)
