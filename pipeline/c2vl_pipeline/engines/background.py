"""The empty scene of each camera, for detectors that look for what differs from it.

Scenes are made before the shards, from a few frames of many of the camera's clips, each in a process of its own that a
hanging clip takes along, and kept beside the crops with word of the clips they are made of. Their bytes are part of the
keys of the rows they serve: another scene makes the crops of its camera again, and those of no other camera.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.events import Emit, Note, Progress
from c2vl_manifests.manifest import commit_file, commit_text, file_sha256, fingerprint
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Image
from c2vl_pipeline.engines.heuristic import empty_scene
from c2vl_pipeline.readers.video import Deadline, Guard, Video, plan_frames
from c2vl_pipeline.workspace import Index, load

Row = dict[str, Any]

FRAMES = 64
"""Frames that a scene is made of."""

CLIPS = 16
"""Clips that these frames are spread over."""

_DAMAGED = "damaged"

NONE = "none"
"""Stands for a camera without a scene: not made yet, damaged, or of no readable clip."""


def needed(spec: EngineSpec) -> bool:
    """Whether a detector compares with an empty scene; engines with weights are not loaded to find out."""
    return not engines.has_weights(spec) and "background" in engines.load(spec).needs


def path(folder: Path, camera: str) -> Path:
    """Where the scene of a camera is kept; what is known of it lies beside it as JSON."""
    safe = "".join(c if c.isalnum() else "-" for c in camera) or "camera"
    return folder / "background" / f"{safe}-{fingerprint([camera])[:8]}.png"


def _chosen(samples: list[Row]) -> list[Row]:
    """A few of a camera's clips, spread over all of them."""
    step = max(len(samples) // CLIPS, 1)
    return samples[::step][:CLIPS]


def _facts(sample: Row) -> list[Any]:
    return [sample[c] for c in ("sample_id", "video", "video_bytes", "start_frame", "end_frame")]


def hashes(index: Index, folder: Path) -> dict[str, str]:
    """Return camera -> sha256 of its scene as it lies there, or `none`: what the keys of its rows are bound to."""
    found = {}
    for camera in index.cameras:
        word, at = _word(folder, camera), path(folder, camera)
        whole = bool(word) and at.is_file() and file_sha256(at) == word["sha256"]
        found[camera] = word["sha256"] if whole else NONE
    return found


def _word(folder: Path, camera: str) -> dict[str, Any]:
    """Return what is known of a scene: its sha256, the clips it was to be made of, and why some of them are left out."""
    try:
        word: dict[str, Any] = json.loads(path(folder, camera).with_suffix(".json").read_text("utf-8"))
        return word if {"sha256", "chosen", "left_out"} <= word.keys() else {}
    except (OSError, ValueError, AttributeError):
        return {}


def _stands(index: Index, folder: Path, camera: str) -> bool:
    """Whether a scene is whole, of the clips that it should be of, and lacks none that may be readable by now."""
    word = _word(folder, camera)
    chosen = _chosen(index.cameras[camera])
    if not word or word["chosen"] != [_facts(s) for s in chosen]:
        return False
    at = path(folder, camera)
    if not at.is_file() or file_sha256(at) != word["sha256"]:
        return False
    # a damaged clip stays damaged until the index says another size; one that was away or hung may be well now
    again = {sample for sample, why in word["left_out"].items() if why != _DAMAGED}
    return not any(s["sample_id"] in again and (index.root / s["video"]).is_file() for s in chosen)


def prepare(index: Index, folder: Path, timeout: float | None, processes: int, emit: Emit) -> None:
    """Make the scenes that are not there, are damaged, or lack clips that could not be read.

    Args:
        index: of the work folder.
        folder: of the crops.
        timeout: seconds that a call into the decoder may take, in a process of its own; None decodes in this process.
        processes: cameras at once.
        emit: receives progress, and a warning for a camera of which nothing can be read.

    Raises:
        StageError: a process died over a camera without word of a hanging clip.
        OSError: the disk is full.
    """
    todo = [camera for camera in sorted(index.cameras) if not _stands(index, folder, camera)]
    if not todo:
        return
    (folder / "background").mkdir(parents=True, exist_ok=True)
    here = partial(_make, index, folder, hung=frozenset(), deadline=None)
    made = map(here, todo) if timeout is None else _in_children(index, folder, todo, timeout, processes)
    for done, _ in enumerate(made, 1):
        emit(Progress("backgrounds", done, len(todo), "cameras"))
    for camera in todo:
        if not _word(folder, camera):
            text = (
                f"no clip of camera {camera!r} can be read, so it has no empty scene and its rows will fail"
            )
            emit(Note(text, "warning"))


def _in_children(
    index: Index, folder: Path, todo: list[str], timeout: float, processes: int
) -> Iterator[None]:
    """Make scenes, each in a process of its own, and yield at each; clips that hang are left out one after the other."""
    spawn = multiprocessing.get_context("spawn")
    waiting = deque(todo)
    hung: dict[str, set[str]] = {camera: set() for camera in todo}
    running: dict[str, Any] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                camera = waiting.popleft()
                _mark(folder, camera).unlink(missing_ok=True)
                args = (index.work, folder, camera, frozenset(hung[camera]), timeout)
                running[camera] = spawn.Process(target=_child, args=args, daemon=True)
                running[camera].start()
            wait([child.sentinel for child in running.values()])
            for camera in [camera for camera, child in running.items() if not child.is_alive()]:
                code = running.pop(camera).exitcode
                if code == 0:
                    yield
                else:
                    hung[camera].update(_hanging(folder, camera, code))
                    waiting.appendleft(camera)
    finally:
        for child in running.values():
            child.kill()
            child.join()


def _mark(folder: Path, camera: str) -> Path:
    return path(folder, camera).with_suffix(".hang")


def _hanging(folder: Path, camera: str, code: int) -> list[str]:
    """Return the samples over which a process killed itself; raises where it died of something else."""
    mark = _mark(folder, camera)
    if code > 1:  # an error of the operating system that `_child` met
        raise OSError(code, os.strerror(code), str(path(folder, camera)))
    try:
        samples: list[str] = json.loads(mark.read_text("utf-8"))["samples"]
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"a process died (exit code {code}) over the empty scene of camera {camera!r}; look for exhausted memory, then run the stage again"
        ) from error
    mark.unlink(missing_ok=True)
    return samples


def _child(work: Path, folder: Path, camera: str, hung: frozenset[str], timeout: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal: the driver ends it
    cv2.setNumThreads(1)
    deadline = Deadline(timeout, _mark(folder, camera))
    try:
        _make(load(work), folder, camera, hung, deadline)
    except OSError as error:
        sys.exit(error.errno or 1)
    finally:
        deadline.close()


def _make(index: Index, folder: Path, camera: str, hung: frozenset[str], deadline: Deadline | None) -> None:
    chosen = _chosen(index.cameras[camera])
    images: list[Image] = []
    left_out = dict.fromkeys(sorted(hung), "hung")
    for sample in chosen:
        if sample["sample_id"] in hung:
            continue
        try:
            images += _frames(index, sample, max(FRAMES // len(chosen), 1), deadline)
        except DataError:  # its own rows will say so
            left_out[sample["sample_id"]] = _DAMAGED
        except OSError as error:
            left_out[sample["sample_id"]] = type(error).__name__
    at = path(folder, camera)
    if not images:
        at.with_suffix(".json").unlink(missing_ok=True)
        at.unlink(missing_ok=True)
        return
    same = [i for i in images if i.shape == images[0].shape]
    data = cv2.imencode(".png", cv2.cvtColor(empty_scene(same), cv2.COLOR_RGB2BGR))[1].tobytes()
    commit_file(at, lambda temporary: temporary.write_bytes(data))
    word = {"camera": camera, "sha256": file_sha256(at), "chosen": [_facts(s) for s in chosen]}
    commit_text(at.with_suffix(".json"), json.dumps(word | {"left_out": left_out}))


def _frames(index: Index, sample: Row, count: int, deadline: Deadline | None) -> Iterator[Image]:
    """Yield frames spread over one clip."""
    guard: Guard = nullcontext
    if deadline is not None:
        guard = partial(deadline.over, sample["video"], (sample["sample_id"],))
    with Video(index.root / sample["video"], guard) as video:
        end = sample["end_frame"] if sample["end_frame"] is not None else video.count()
        for _, image in video.frames(plan_frames(sample["start_frame"] or 0, end, count)):
            yield image


def scene(folder: Path, camera: str) -> Image | None:
    """Return what a camera sees when nobody is there, uint8 RGB (H, W, 3), or None where it has no scene."""
    if not _word(folder, camera):
        return None
    stored = cv2.imread(str(path(folder, camera)))
    return None if stored is None else np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2RGB), np.uint8)
