"""The empty scene of each camera, for detectors that look for what differs from it.

A scene is made from a few frames of many of the camera's clips by the first process that needs it, and is stored next
to the crops with a fingerprint of these clips. Where the clips have changed, the scene is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_bytes, commit_text, file_sha256, fingerprint
from c2vl_pipeline.engines import Image
from c2vl_pipeline.engines.heuristic import empty_scene
from c2vl_pipeline.readers.video import Guard, Video, plan_frames

Row = dict[str, Any]
GuardOf = Callable[[Row], Guard]
"""Makes the guard of all calls into the decoder over the video of a sample."""

FRAMES = 64
"""Frames that a scene is made from."""

CLIPS = 16
"""Clips that these frames are spread over."""


def scene_path(folder: Path, camera: str) -> Path:
    """Return the path of a camera's scene; its fingerprint is stored next to it as JSON."""
    safe = "".join(c if c.isalnum() else "-" for c in camera) or "camera"
    return folder / "background" / f"{safe}-{fingerprint([camera])[:8]}.png"


def scene(folder: Path, root: Path, camera: str, samples: list[Row], guard_of: GuardOf) -> tuple[Image, str] | None:
    """Return what a camera sees when nobody is there, and its sha256; stored, or else made now.

    Args:
        folder: of the crops.
        root: the raw folder.
        camera: its name.
        samples: all samples of the camera with a video.
        guard_of: of the samples' videos; raises DataError for a video that must not be opened.

    Returns:
        The scene, uint8 RGB (H, W, 3); None where no clip of the camera can be read.
    """
    chosen = [s for s in samples[:: max(len(samples) // CLIPS, 1)][:CLIPS] if (root / s["video"]).exists()]
    columns = ("sample_id", "video", "video_bytes", "start_frame", "end_frame")
    made_from = fingerprint([[sample[column] for column in columns] for sample in chosen])
    path = scene_path(folder, camera)
    sha256 = _stored(path, made_from) or _make(path, root, chosen, made_from, guard_of)
    image = None if sha256 is None else cv2.imread(str(path))
    if sha256 is None or image is None:
        return None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), sha256


def _stored(path: Path, made_from: str) -> str | None:
    """Return the sha256 of a scene that is whole and made from these clips, else None."""
    try:
        facts = json.loads(path.with_suffix(".json").read_text("utf-8"))
        sha256 = str(facts["sha256"])
        return sha256 if facts["made_from"] == made_from and file_sha256(path) == sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _make(path: Path, root: Path, chosen: list[Row], made_from: str, guard_of: GuardOf) -> str | None:
    """Write the scene of these clips and return its sha256, or None where no clip can be read."""
    images: list[Image] = []
    for sample in chosen:
        try:
            images += _frames(root, sample, max(FRAMES // len(chosen), 1), guard_of(sample))
        except (DataError, OSError):  # the rows of the sample give the reason
            continue
    if not images:
        return None
    same_size = [image for image in images if image.shape == images[0].shape]
    picture = cv2.cvtColor(empty_scene(same_size), cv2.COLOR_RGB2BGR)
    commit_bytes(path, cv2.imencode(".png", picture)[1].tobytes())
    sha256 = file_sha256(path)
    commit_text(path.with_suffix(".json"), json.dumps({"sha256": sha256, "made_from": made_from}))
    return sha256


def _frames(root: Path, sample: Row, count: int, guard: Guard) -> Iterator[Image]:
    """Yield frames spread over one clip."""
    with Video(root / sample["video"], guard) as video:
        end = sample["end_frame"] if sample["end_frame"] is not None else video.count()
        for _, image in video.frames(plan_frames(sample["start_frame"] or 0, end, count)):
            yield image
