"""MMPose's predictions of a video: a JSON list of frames with their people, by the inferencer or the demos.

Format: `[{"frame_id": 0, "instances": [{"keypoints": [[x, y], ...], "keypoint_scores": [...]}]}, ...]`, or that list as
`instance_info` beside `meta_info`. Pixels, y down. Frames are taken in order, for some demos count from one. Of pictures, the
inferencer writes one file each, a list of instances (`openpose` reads such a folder).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_pipeline.readers.files.base import MOST_FRAMES, Format, Recording, Source, numbers, tracked
from c2vl_pipeline.readers.files.coco_results import body_of, own_layout


def _frames(value: Any) -> Any:
    return value.get("instance_info") if isinstance(value, dict) else value


def fits(value: Any) -> bool:
    """True for a list of frames, alone or as `instance_info`."""
    frames = _frames(value)
    if not isinstance(frames, list) or not frames:
        return isinstance(value, dict) and frames == []
    return isinstance(frames[0], dict) and "instances" in frames[0]


def read(source: Source) -> Recording:
    """Read the people of every frame and say who is who."""
    listed = _frames(source.value)
    if len(listed) > MOST_FRAMES:
        raise DataError(f"{source.path}: {len(listed):,} frames; expected up to {MOST_FRAMES:,}")
    frames: dict[int, list[npt.NDArray[np.float64]]] = {}
    for number, frame in enumerate(listed):
        people = frame.get("instances") if isinstance(frame, dict) else None
        if not isinstance(people, list):
            raise DataError(f"{source.path}: frame {number:,} has no list of instances; expected MMPose's predictions")
        frames[number] = [person_of(source, number, person) for person in people]
    first = next((people[0] for people in frames.values() if people), None)
    return tracked(source, frames, None if first is None else own_layout(source, len(first)))


def person_of(source: Source, frame: int, person: Any) -> npt.NDArray[np.float64]:
    """Return the joints of an instance, (V, 3) with scores.

    Raises:
        DataError: it has no joints in pixels.
    """
    table = person if isinstance(person, dict) else {}
    places = numbers(table.get("keypoints", []), source.path, f"keypoints of frame {frame:,}")
    if places.ndim != 2 or places.shape[1] != 2:
        raise DataError(f"{source.path}: keypoints {places.shape} of frame {frame:,}; expected [[x, y], …]")
    given = table.get("keypoint_scores")
    scores = np.ones(len(places)) if given is None else numbers(given, source.path, f"scores of frame {frame:,}")
    if scores.shape != (len(places),):
        raise DataError(
            f"{source.path}: {scores.size} scores of {len(places)} joints of frame {frame:,}; expected one each"
        )
    return body_of(source, np.column_stack([places, scores]))


FORMAT = Format("MMPose", read, (".json",), fits)
