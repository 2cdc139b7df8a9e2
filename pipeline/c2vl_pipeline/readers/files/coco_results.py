"""COCO's results, which AlphaPose writes too: a JSON list of people, each with the name or number of its picture.

Format: `[{"image_id": "12.jpg", "keypoints": [x, y, score, ...], "score": 2.5}, ...]`, pixels, y down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import LAYOUTS
from c2vl_pipeline.readers.files.base import Format, Recording, Source, frame_numbers, numbers, tracked

_OWN = {17: "coco_17", 26: "halpe_26"}
"""Number of joints -> layout of AlphaPose's and MMPose's models with that number."""
_BODY = {133: 17, 136: 26}
"""Number of joints of a model of body, face and hands (COCO-WholeBody, Halpe-136) -> number of the body's, which come first."""


def fits(value: Any) -> bool:
    """True for a list of people."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {"image_id", "keypoints"} <= value[0].keys()
    )


def read(source: Source) -> Recording:
    """Read the people of every frame and say who is who."""
    frames: dict[int, list[npt.NDArray[np.float64]]] = {}
    names = [entry.get("image_id") if isinstance(entry, dict) else None for entry in source.value]
    for at, (entry, number) in enumerate(zip(source.value, frame_numbers(names, source.path), strict=True)):
        where = f"entry {at:,}"
        if number is None:
            raise DataError(f"{source.path}: {where} has no image_id with the number of its frame")
        joints = numbers(entry.get("keypoints", []), source.path, f"keypoints of {where}")
        if joints.ndim != 1 or not joints.size or joints.size % 3:
            raise DataError(
                f"{source.path}: keypoints of {where} are {joints.size} numbers; expected x, y, score of each"
            )
        frames.setdefault(number, []).append(body_of(source, joints.reshape(-1, 3)))
    return tracked(source, frames, own_layout(source, next(iter(frames.values()))[0].shape[0]), sparse=True)


def body_of(source: Source, person: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the joints of the body alone, without face and hands; all joints if the wanted layout has as many."""
    return person if len(person) == source.layout.joints else person[: _BODY.get(len(person), len(person))]


def own_layout(source: Source, joints: int) -> Any:
    """Return the layout of a file's own joints where so many are known by one, and another one is wanted; else None."""
    known = LAYOUTS.get(_OWN.get(joints, ""))
    return known if known is not None and source.layout.joints != joints else None


FORMAT = Format("AlphaPose, COCO results", read, (".json",), fits)
