"""Convert the output of two common pose estimators to arrays that `np.save` can store for the `generic` dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Joints = npt.NDArray[np.float32]


def from_coco(path: Path, image_height: float) -> Joints:
    """Read COCO results, `[{"image_id": frame, "keypoints": [x1, y1, score1, ...]}, ...]`, for `--layout coco_17`.

    Keeps the two best people of each frame. It does not track them: if two people are in view, make sure that each
    keeps one place.

    Shape: -> (frames, 2, 17, 2), image heights, y up.
    """
    results = json.loads(path.read_text())
    joints = np.zeros((1 + max(r["image_id"] for r in results), 2, 17, 2), np.float32)
    people: Counter[int] = Counter()
    for result in sorted(results, key=lambda r: -r.get("score", 1.0)):
        frame = result["image_id"]
        if people[frame] < 2:
            pixels = np.reshape(result["keypoints"], (17, 3))[:, :2]
            seen = pixels.any(axis=1, keepdims=True)  # a joint that was not found is (0, 0), and stays so
            joints[frame, people[frame]] = np.where(seen, pixels / image_height * [1, -1] + [0, 1], 0)
            people[frame] += 1
    return joints


def from_mediapipe(frames: Sequence[Sequence[Any] | None]) -> Joints:
    """Convert MediaPipe world landmarks for `--layout mediapipe_33`.

    Each frame is a list of 33 landmarks, `(x, y, z)` or `{"x": …, "y": …, "z": …}`, or None if nobody is seen. World
    landmarks are relative to the hips, so that walking is not visible in them.

    Shape: -> (frames, 33, 3), metres, y up.
    """

    def point(landmark: Any) -> tuple[float, float, float]:
        if isinstance(landmark, Mapping):
            return landmark["x"], landmark["y"], landmark["z"]
        return landmark[0], landmark[1], landmark[2]

    nobody = [(0.0, 0.0, 0.0)] * 33
    joints = np.array([[point(p) for p in frame] if frame else nobody for frame in frames], np.float32)
    return joints * np.array([1, -1, -1], np.float32)
