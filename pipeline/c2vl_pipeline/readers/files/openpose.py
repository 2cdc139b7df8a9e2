"""OpenPose's `--write_json`: a folder of one JSON file per frame, `<video>_000000000012_keypoints.json`.

Format: `{"people": [{"pose_keypoints_2d": [x, y, score, ...]}]}`, pixels, y down; 25 joints of BODY_25.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.reading import read_json
from c2vl_pipeline.readers.files.base import (
    MOST_FRAMES,
    DamagedError,
    Format,
    Recording,
    Source,
    frame_numbers,
    numbers,
    tracked,
)


def files_of(folder: Path) -> list[Path]:
    """Return the JSON files of a folder by name.

    Raises:
        DataError: there are too many.
    """
    files = sorted(islice((path for path in folder.iterdir() if path.suffix.lower() == ".json"), MOST_FRAMES + 1))
    if len(files) > MOST_FRAMES:
        raise DataError(f"{folder}: more than {MOST_FRAMES:,} files; name the folder of one clip")
    return files


def fits(value: Any) -> bool:
    """True for the content of one frame's file."""
    return isinstance(value, dict) and isinstance(value.get("people"), list)


def read(source: Source) -> Recording:
    """Read the people of every frame and say who is who."""
    frames = {}
    files = files_of(source.path)
    for path, number in zip(files, frame_numbers([path.name for path in files], source.path), strict=True):
        if number is None or number in frames:
            why = "no number of a frame" if number is None else f"the number of another file, {number}"
            raise DataError(
                f"{path}: {why} in its name; expected <video>_000000000012_keypoints.json, one clip a folder"
            )
        try:
            value = read_json(path)
        except ValueError as error:
            raise DamagedError(f"{path}: not JSON ({one_line(error)}); write it again") from error
        if not fits(value):
            raise DataError(f"{path}: holds no list of people, as OpenPose's --write_json does")
        frames[number] = [_person(path, person) for person in value["people"]]
    own = LAYOUTS["body_25"] if any(len(one) == 25 for people in frames.values() for one in people) else None
    return tracked(source, frames, own)


def _person(path: Path, person: Any) -> Any:
    values = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    joints = numbers(values if values is not None else [], path, "pose_keypoints_2d")
    if joints.ndim != 1 or not joints.size or joints.size % 3:
        raise DataError(f"{path}: pose_keypoints_2d of {joints.size} numbers; expected x, y and score of each joint")
    return joints.reshape(-1, 3)


FORMAT = Format("OpenPose", read, (), fits)
