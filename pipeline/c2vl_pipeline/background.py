"""The empty scene of each camera, for detectors that look for what differs from it.

It is made by whichever worker needs it first, from a few frames of many of the camera's clips, and kept beside the
crops under a name that is bound to the files it is made from. That name is part of the key of the rows it serves:
another download of one of those clips makes the crops of its camera again, and those of no other camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_file, fingerprint
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Image
from c2vl_pipeline.engines.embedded import empty_scene
from c2vl_pipeline.index import Index
from c2vl_pipeline.video import Deadline, Guard, Video, plan_frames

Row = dict[str, Any]

FRAMES = 64
"""Frames that a scene is made of."""

CLIPS = 16
"""Clips that these frames are spread over."""


def needed(spec: EngineSpec) -> bool:
    """Whether a detector compares with an empty scene; engines with weights are not loaded to find out."""
    return not engines.has_weights(spec) and "background" in engines.load(spec).needs


def names(index: Index) -> dict[str, str]:
    """Return camera -> name of its scene's file, which says what it is made from, whether or not it exists."""
    return {camera: _name(camera, samples) for camera, samples in index.cameras.items()}


def _name(camera: str, samples: list[Row]) -> str:
    safe = "".join(c if c.isalnum() else "-" for c in camera) or "camera"
    columns = ("sample_id", "video", "video_bytes", "start_frame", "end_frame")
    key = fingerprint([[sample[c] for c in columns] for sample in _chosen(samples)])
    return f"{safe}-{key[:12]}.png"


def _chosen(samples: list[Row]) -> list[Row]:
    """A few of a camera's clips, spread over all of them."""
    step = max(len(samples) // CLIPS, 1)
    return samples[::step][:CLIPS]


def scene(index: Index, folder: Path, camera: str, deadline: Deadline | None = None) -> Image | None:
    """Return what a camera sees when nobody is there, uint8 RGB (H, W, 3); makes it where it is not made yet.

    Two workers may make it at the same time: both make the same, and one is kept.

    Args:
        index: of the work folder.
        folder: of the crops.
        camera: as the index calls it.
        deadline: kills this process where a clip hangs; that clip is then left out of the scene.

    Returns:
        None where no frame of the camera can be read.
    """
    samples = index.cameras[camera]
    path = folder / "background" / _name(camera, samples)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = list(_frames(index, _chosen(samples), path.parent, deadline))
        if not images:
            return None
        same = [i for i in images if i.shape == images[0].shape]
        data = cv2.imencode(".png", cv2.cvtColor(empty_scene(same), cv2.COLOR_RGB2BGR))[1].tobytes()
        commit_file(path, lambda temporary: temporary.write_bytes(data))
    stored = cv2.imread(str(path))
    return None if stored is None else np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)


def _frames(index: Index, chosen: list[Row], folder: Path, deadline: Deadline | None) -> Iterator[Image]:
    """Yield about `FRAMES` frames of one camera, spread over its clips and over each clip."""
    for sample in chosen:
        hung = folder / f".{fingerprint([sample['video'], sample['video_bytes']])[:12]}.hang"
        if hung.is_file():
            continue
        guard: Guard = nullcontext
        if deadline is not None:
            guard = partial(deadline.over, sample["video"], (), mark=hung)
        try:
            with Video(index.root / sample["video"], guard) as video:
                end = sample["end_frame"] if sample["end_frame"] is not None else video.count()
                for _, image in video.frames(
                    plan_frames(sample["start_frame"] or 0, end, max(FRAMES // len(chosen), 1))
                ):
                    yield image
        except (DataError, OSError):
            continue  # its own rows will say so
