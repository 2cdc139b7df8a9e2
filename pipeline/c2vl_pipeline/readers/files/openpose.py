"""A folder of one JSON file per frame: OpenPose's `--write_json`, `<video>_000000000012_keypoints.json`, or MMPose's of pictures.

Format: `{"people": [{"pose_keypoints_2d": [x, y, score, ...]}]}`, pixels, y down; 25 joints of BODY_25, or the 18 of COCO.
MMPose's are lists of instances, see `mmpose`.
"""

from __future__ import annotations

from dataclasses import replace
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
from c2vl_pipeline.readers.files.coco_results import own_layout
from c2vl_pipeline.readers.files.mmpose import person_of

_OWN = {18: "coco_18", 25: "body_25"}
"""Number of joints -> layout of OpenPose's model with that number."""


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
    people = value.get("people") if isinstance(value, dict) else value
    return isinstance(people, list)


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
            raise DataError(f"{path}: holds no list of people, as OpenPose and MMPose write it")
        if isinstance(value, list):
            frames[number] = [person_of(replace(source, path=path), number, one) for one in value]
        else:
            frames[number] = [_person(path, person) for person in value["people"]]
    count = next((len(people[0]) for people in frames.values() if people), 0)
    return tracked(source, frames, LAYOUTS[_OWN[count]] if count in _OWN else own_layout(source, count))


def _person(path: Path, person: Any) -> Any:
    values = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    joints = numbers(values if values is not None else [], path, "pose_keypoints_2d")
    if joints.ndim != 1 or not joints.size or joints.size % 3:
        raise DataError(f"{path}: pose_keypoints_2d of {joints.size} numbers; expected x, y and score of each joint")
    return joints.reshape(-1, 3)


FORMAT = Format("OpenPose", read, (), fits)
