"""MediaPipe's 33 pose landmarks as a table (CSV) or as JSON: those of the image for 2D layouts, those of the world for 3D.

MediaPipe writes no files itself; these are the forms in which its answers are usually kept.

    CSV    one row a landmark: frame, landmark (number or name), x, y, z, visibility; or one row a frame: x0, y0, z0, v0, x1
           … or nose_x, nose_y …, numbers from 0 or 1
    JSON   a list of frames, or it as `frames`: each null, 33 landmarks, or a table with `pose_landmarks` and
           `pose_world_landmarks`, of one person or of several; a landmark is {"x", "y", "z", "visibility"} or a list

Image landmarks are shares of the image's width and height, y down; those of the world metres about the hips, y down.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import LAYOUTS, load_layout
from c2vl_manifests.reading import TooLargeError, read_text
from c2vl_pipeline.readers.files.base import (
    MOST_FRAMES,
    DamagedError,
    Format,
    Recording,
    Source,
    numbers,
    tracked,
    with_joints_of,
)

Landmarks = npt.NDArray[np.float64]
"""(33, 4): x, y, z and visibility."""

_COUNT = 33
_WORLD = ("pose_world_landmarks", "poseWorldLandmarks", "world_landmarks", "worldLandmarks")
_IMAGE = ("pose_landmarks", "poseLandmarks", "landmarks", "normalized_landmarks")
_HIPS = [LAYOUTS["mediapipe_33"].names.index(f"hip_{side}") for side in ("left", "right")]
_FAR = 0.2
"""Distance of the hips from zero, in metres, that world landmarks never have."""
_FRAMES = ("frame", "frame_id", "frame_number", "frame_index", "frame_idx", "image_id")
_LANDMARKS = ("landmark", "landmark_id", "landmark_index", "landmark_name", "joint", "id", "index", "name")
_AXES = {"x": 0, "y": 1, "z": 2, "v": 3, "visibility": 3, "vis": 3}
_WIDE = re.compile(r"(?:(?P<first>[xyzv])_?(?P<number>\d{1,2})|(?P<name>.+?)_(?P<axis>x|y|z|v|vis|visibility))")


# ------------------------------------------------------------------------------------------------ JSON


def _listed(value: Any) -> Any:
    return value.get("frames") if isinstance(value, dict) else value


def fits(value: Any) -> bool:
    """True for a list of frames of landmarks."""
    frames = _listed(value)
    if not isinstance(frames, list):
        return False
    first = next((frame for frame in frames if frame), None)
    if first is None:
        return all(frame is None or frame == [] for frame in frames)
    if isinstance(first, dict):
        return any(key in first for key in (*_WORLD, *_IMAGE))
    return isinstance(first, list) and (_is_landmark(first[0]) or isinstance(first[0], list))


def _is_landmark(value: Any) -> bool:
    if isinstance(value, dict):
        return {"x", "y"} <= value.keys()
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | float)


def read(source: Source) -> Recording:
    """Read the landmarks of every frame of a JSON file."""
    listed = _listed(source.value)
    if len(listed) > MOST_FRAMES:
        raise DataError(f"{source.path}: {len(listed):,} frames; expected up to {MOST_FRAMES:,}")
    return _recording(source, {number: _people(source, number, frame) for number, frame in enumerate(listed)})


def _people(source: Source, frame: int, value: Any) -> list[Landmarks]:
    if isinstance(value, dict):
        wanted = _WORLD if source.layout.dims == 3 else _IMAGE
        keys = [key for key in (*wanted, "landmarks") if key in value]
        if not keys:
            raise DataError(
                f"{source.path}: frame {frame:,} has no {wanted[0]}; layout {source.layout.name!r} needs them"
            )
        value = value[keys[0]]
    if not value:
        return []
    if not isinstance(value, list):
        raise DataError(f"{source.path}: frame {frame:,} holds no list of landmarks ({str(value)[:40]})")
    people = [value] if _is_landmark(value[0]) else value
    return [_landmarks(source, frame, person) for person in people]


def _landmarks(source: Source, frame: int, person: Any) -> Landmarks:
    where = f"landmarks of frame {frame:,}"
    if not isinstance(person, list) or len(person) != _COUNT:
        count = len(person) if isinstance(person, list) else "no"
        raise DataError(f"{source.path}: {count} {where}; expected MediaPipe's {_COUNT}; save other joints as .npy")
    rows = [
        [one.get("x"), one.get("y"), one.get("z", 0), one.get("visibility", 1)] if isinstance(one, dict) else one
        for one in person
    ]
    array = numbers(rows, source.path, where)
    if array.ndim != 2 or array.shape[1] < source.layout.dims:
        raise DataError(f"{source.path}: {where} have the shape {array.shape}; expected x, y, z of each")
    full = np.ones((_COUNT, 4))
    full[:, : min(array.shape[1], 4)] = array[:, :4]
    return full


# ------------------------------------------------------------------------------------------------- CSV


def read_table(source: Source) -> Recording:
    """Read the landmarks of every frame of a CSV file."""
    path = source.path
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except (ValueError, csv.Error) as error:
        raise DamagedError(f"{path}: not a table in UTF-8 ({error})") from error
    names = [name.strip().lower() for name in rows[0]] if rows else []
    frame = next((names.index(name) for name in _FRAMES if name in names), None)
    landmark = next((names.index(name) for name in _LANDMARKS if name in names and "x" in names), None)
    lines = [(line, cells) for line, cells in enumerate(rows[1:], 2) if cells]
    if landmark is not None and frame is not None:
        made = _long(source, names, frame, landmark, lines)
    else:
        made = _wide(source, names, frame, lines)
    frames: dict[int, list[Landmarks]] = {}
    for number, person in made:
        frames.setdefault(number, []).append(person)
    return _recording(source, frames, sparse=True)


def _long(
    source: Source, names: list[str], frame: int, landmark: int, rows: list[tuple[int, list[str]]]
) -> Iterator[tuple[int, Landmarks]]:
    """Yield frame and landmarks of a table with one row a landmark; a landmark that comes again is of another person."""
    columns = {axis: names.index(name) for name, axis in _AXES.items() if name in names}
    people: dict[int, list[Landmarks]] = {}
    seen: dict[int, dict[int, int]] = {}
    for line, cells in rows:
        if _is_empty(cells):
            continue
        number = _frame(source, line, cells, frame)
        at = _number_of(_cell(cells, landmark))
        if at is None:
            raise DataError(
                f"{source.path}:{line}: landmark {_cell(cells, landmark)[:40]!r}; expected 0 to 32, or a name"
            )
        turn = seen.setdefault(number, {})
        turn[at] = turn.get(at, -1) + 1
        of_frame = people.setdefault(number, [])
        while len(of_frame) <= turn[at]:
            of_frame.append(_nobody())
        for axis, column in columns.items():
            of_frame[turn[at]][at, axis] = _value(source, line, _cell(cells, column))
        if 3 not in columns:
            of_frame[turn[at]][at, 3] = 1
    for number, of_frame in people.items():
        for person in of_frame:
            yield number, person


def _wide(
    source: Source, names: list[str], frame: int | None, rows: list[tuple[int, list[str]]]
) -> Iterator[tuple[int, Landmarks]]:
    """Yield frame and landmarks of a table with one row a frame."""
    found: dict[tuple[str, int], int] = {}
    for column, name in enumerate(names):
        if (match := _WIDE.fullmatch(name)) is not None:
            key = (match["number"] or match["name"], _AXES[match["first"] or match["axis"]])
            found.setdefault(key, column)
    if ("33", 0) in found and ("0", 0) not in found:  # counted from one
        found = {(str(int(key) - 1) if key.isdigit() else key, axis): column for (key, axis), column in found.items()}
    places = {(at, axis): column for (key, axis), column in found.items() if (at := _number_of(key)) is not None}
    if lacking := [n for n in range(_COUNT) for axis in range(source.layout.dims) if (n, axis) not in places]:
        raise DataError(
            f"{source.path}:1: no columns of landmark {lacking[0]}; expected frame, landmark, x, y, z, or x0, y0, z0 … of "
            f"MediaPipe's {_COUNT} landmarks; save other joints as .npy"
        )
    for order, (line, cells) in enumerate(rows):
        if _is_empty(cells):  # a frame without anybody, which counts
            continue
        person = _nobody()
        person[:, 3] = 1
        for (at, axis), column in places.items():
            person[at, axis] = _value(source, line, _cell(cells, column))
        yield order if frame is None else _frame(source, line, cells, frame), person


def _is_empty(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _nobody() -> Landmarks:
    return np.zeros((_COUNT, 4))


def _cell(cells: Sequence[str], column: int) -> str:
    return cells[column].strip() if column < len(cells) else ""


def _frame(source: Source, line: int, cells: Sequence[str], column: int) -> int:
    text = _cell(cells, column).removesuffix(".0")
    if not text.isascii() or not text.isdigit() or len(text) > 9 or int(text) >= MOST_FRAMES:
        raise DataError(f"{source.path}:{line}: frame {text[:40]!r}; expected a number below {MOST_FRAMES:,}")
    return int(text)


def _value(source: Source, line: int, text: str) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        raise DataError(f"{source.path}:{line}: {text[:40]!r} is no number; write its digits, or nothing") from None


def _number_of(name: str) -> int | None:
    """Return the number of a landmark by its number or name, MediaPipe's (left_hip) or this project's (hip_left)."""
    text = name.strip().lower().removeprefix("landmark_")
    if text.isascii() and text.isdigit() and len(text) < 3:
        return int(text) if int(text) < _COUNT else None
    words = text.replace(" ", "_").split("_")
    side = [word for word in words if word in {"left", "right"}]
    ours = "_".join([word for word in words if word not in side] + side)
    names = LAYOUTS["mediapipe_33"].names
    return names.index(ours) if ours in names else None


# ----------------------------------------------------------------------------------------------- joints


def _recording(source: Source, frames: Mapping[int, Sequence[Landmarks]], sparse: bool = False) -> Recording:
    """Return the joints of all frames: image landmarks as image heights, those of the world as metres, y up."""
    if source.layout.dims == 2:
        return _in_image(source, frames, sparse)
    joints = np.zeros((max(frames, default=-1) + 1, 1, _COUNT, 3), np.float32)
    for number, people in frames.items():
        if len(people) > 1:
            raise DataError(
                f"{source.path}: world landmarks of {len(people)} people in frame {number:,} do not say who is who; keep one, "
                "or give --layout mediapipe_33_2d for the landmarks of the image"
            )
        for person in people:
            with np.errstate(over="ignore"):
                joints[number, 0] = np.where(person[:, 3:] > 0, person[:, :3] * [1, -1, -1], 0)
    there = joints[joints.any(axis=(1, 2, 3)), 0]
    notes = []
    if len(there) and (far := float(np.median(np.abs(there[:, _HIPS, :2].mean(axis=1)).max(axis=1)))) > _FAR:
        notes.append(
            f"the hips are {far:.2f} away from zero, where world landmarks have them: landmarks of the image? Give --layout "
            "mediapipe_33_2d"
        )
    return with_joints_of(source, LAYOUTS["mediapipe_33"], Recording(joints, tuple(notes), sparse))


def _in_image(source: Source, frames: Mapping[int, Sequence[Landmarks]], sparse: bool) -> Recording:
    width, height = source.image_size() if any(frames.values()) else (1, 1)
    pixels = {
        number: [np.column_stack([person[:, :2] * [width, height], person[:, 3]]) for person in people]
        for number, people in frames.items()
    }
    made = tracked(source, pixels, load_layout("mediapipe_33_2d"), sparse=sparse)
    places = np.concatenate([person[:, :2] for people in frames.values() for person in people] or [np.zeros((1, 2))])
    if float((places < 0).any(axis=1).mean()) > 1 / 4:
        note = "landmarks lie left of the image or above it: those of the world? Give --layout mediapipe_33"
        return Recording(made.joints, (*made.notes, note), made.sparse)
    return made


FORMAT = Format("MediaPipe", read, (".json",), fits)
TABLE_FORMAT = Format("MediaPipe", read_table, (".csv",))
