"""The empty scene of each camera and shape, for detectors that look for what differs from it.

A scene is made from a few frames of many of the camera's clips of one shape (upright and across differ) by the first
process that needs it, while others that need it wait, and is stored next to the crops with a fingerprint of these clips.
Where the clips have changed, the scene is made again. The shapes of clips that were looked into are stored too: none is opened for every scene.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.files import open_own
from c2vl_manifests.manifest import commit_bytes, commit_text, file_sha256, fingerprint
from c2vl_manifests.reading import read_json
from c2vl_pipeline.engines import Image
from c2vl_pipeline.engines.heuristic import empty_scene
from c2vl_pipeline.readers.video import Guard, Video, plan_frames

Row = dict[str, Any]
Reading = Callable[[Row], AbstractContextManager[Guard]]
"""Makes the context in which the video of a sample is read, and the guard of all calls into the decoder."""

FRAMES = 64
"""Frames that a scene is made from."""

CLIPS = 16
"""Clips that these frames are spread over."""

_ENOUGH = 4
"""Clips of one shape, among `CLIPS` of a camera, with which a scene of that shape is made; else the others are asked."""

_MEMORY = 400 << 20
"""Bytes that these frames may take: all 64 of 1920 x 1080, fewer of a larger size."""

_COLUMNS = ("sample_id", "video", "video_bytes", "start_frame", "end_frame")

Shape = tuple[int, int]
"""Height and width of a frame, turned as its rotation tag says."""


def scene_path(folder: Path, camera: str, shape: Shape | None = None) -> Path:
    """Return the path of a camera's scene, next to its fingerprint as JSON; without a shape, of its clips' shapes."""
    safe = "".join(c if c.isalnum() else "-" for c in camera) or "camera"
    name = f"{safe}-{fingerprint([camera])[:8]}"
    return folder / "background" / (f"{name}-{shape[1]}x{shape[0]}.png" if shape else f"{name}.json")


def scene(
    folder: Path, root: Path, camera: str, shape: Shape, samples: list[Row], reading: Reading
) -> tuple[Image, str] | None:
    """Return what a camera sees when nobody is there, and its sha256; stored, or else made now.

    Args:
        folder: of the crops.
        root: the raw folder.
        camera: its name.
        shape: of the frame to compare with.
        samples: all samples of the camera with a video.
        reading: of the samples' videos; raises DataError for a video that must not be opened.

    Returns:
        The scene, uint8 RGB (H, W, 3); None where no clip of the camera can be read in this shape.
    """
    path, memo = scene_path(folder, camera, shape), scene_path(folder, camera)
    with _alone(memo):
        chosen = _of_shape(memo, root, shape, samples, reading)
        made_from = fingerprint([[sample[column] for column in _COLUMNS] for sample in chosen])
        sha256 = _stored(path, made_from) or _make(path, root, shape, chosen, made_from, reading)
    image = None if sha256 is None else cv2.imread(str(path))
    if sha256 is None or image is None:
        return None
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), sha256


@contextmanager
def _alone(memo: Path) -> Iterator[None]:
    """Wait until no other process makes a scene of this camera: it would be made twice."""
    memo.parent.mkdir(parents=True, exist_ok=True)
    with open_own(memo.with_name(f".{memo.stem}.lock"), "a") as handle:
        with suppress(OSError):  # no locks here: made twice then
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def scene_of(video: Path, shape: Shape) -> Image | None:
    """Return what the camera of a single video sees when nobody is there; None where it cannot be read in this shape."""
    whole = {"video": video.name, "start_frame": None, "end_frame": None}
    images = _frames(video.parent, whole, shape, min(FRAMES, _MEMORY // (3 * shape[0] * shape[1])), nullcontext)
    return empty_scene(images) if images else None


def _of_shape(memo: Path, root: Path, shape: Shape, samples: list[Row], reading: Reading) -> list[Row]:
    """Return up to `CLIPS` samples whose videos have a shape: of clips spread over all, then of the others."""
    try:
        known = {str(name): tuple(found) for name, found in read_json(memo).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        known = {}
    before, chosen = len(known), list[Row]()
    spread = samples[:: max(len(samples) // CLIPS, 1)][:CLIPS]
    ids = {sample["sample_id"] for sample in spread}
    for place, sample in enumerate([*spread, *(s for s in samples if s["sample_id"] not in ids)]):
        if len(chosen) >= (CLIPS if place < len(spread) else _ENOUGH):
            break
        name = f"{sample['video']} {sample['video_bytes']}"
        if name not in known:
            with suppress(DataError, OSError), reading(sample) as guard, Video(root / sample["video"], guard) as video:
                known.update((name, image.shape[:2]) for _, image in video.frames([0]))
        if known.get(name) == shape:
            chosen.append(sample)
    if len(known) > before:
        commit_text(memo, json.dumps(known))
    return chosen


def _stored(path: Path, made_from: str) -> str | None:
    """Return the sha256 of a scene that is whole and made from these clips, else None."""
    try:
        facts = read_json(path.with_suffix(".json"))
        sha256 = str(facts["sha256"])
        return sha256 if facts["made_from"] == made_from and file_sha256(path) == sha256 else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _make(path: Path, root: Path, shape: Shape, chosen: list[Row], made_from: str, reading: Reading) -> str | None:
    """Write the scene of these clips and return its sha256, or None where no clip can be read."""
    images: list[Image] = []
    count = min(FRAMES, _MEMORY // (3 * shape[0] * shape[1])) // max(len(chosen), 1)
    for sample in chosen:
        try:
            with reading(sample) as guard:
                images += _frames(root, sample, shape, max(count, 1), guard)
        except (DataError, OSError):  # the rows of the sample give the reason
            continue
    if not images:
        return None
    picture = cv2.cvtColor(empty_scene(images), cv2.COLOR_RGB2BGR)
    commit_bytes(path, cv2.imencode(".png", picture)[1].tobytes())
    sha256 = file_sha256(path)
    commit_text(path.with_suffix(".json"), json.dumps({"sha256": sha256, "made_from": made_from}))
    return sha256


def _frames(root: Path, sample: Row, shape: Shape, count: int, guard: Guard) -> list[Image]:
    """Return frames of a shape spread over one clip, and over those that exist if its container miscounts them."""
    total = None
    while True:
        with Video(root / sample["video"], guard) as video:
            end = video.count() if total is None else total
            planned = plan_frames(sample["start_frame"] or 0, sample["end_frame"] or end, count)
            images = [image for _, image in video.frames(planned) if image.shape[:2] == shape]
            if total is not None or sample["end_frame"] is not None:
                return images
            total = video.drain()
            if not video.miscounted():
                return images
