"""`c2vl-pipeline pose`: skeletons from the videos alone: the rows that `skeletons` makes where files hold the joints.

A detector finds the people of each frame and an estimator their joints; `tracking` says who is who over time and whom to
keep. Frames without anybody are zero, and are left out as in every other skeleton. 2D joints are in image heights, y up
from the lower edge; 3D joints in metres, x to the right of the image, y up, z towards the camera.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.datasets import Dataset, resolve_detector
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError, EngineError, StageError, one_line
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe import PoseConfig, Recipe
from c2vl_manifests.schema import POSES, Status
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame, Image, Person, background
from c2vl_pipeline.raw.scan import missing_bytes
from c2vl_pipeline.readers.base import Array, Assembled, anchored, end_within
from c2vl_pipeline.readers.tracking import box_of, chosen, track
from c2vl_pipeline.readers.video import Video
from c2vl_pipeline.stages.base import Row, ShardContext, Stage, failure, in_batches, row_status, unreadable
from c2vl_pipeline.stages.decoding import Decoding, nothing_in_range
from c2vl_pipeline.workspace import Workspace

_MOST_BOXES = 8
"""Boxes of one frame whose joints are looked for, the best first."""

_MARGIN = 0.1
"""Part of a person's height by which a box around joints grows: joints end at the wrists and below the crown."""

Span = tuple[int, int | None]
"""Frames [start, end) of a video; without an end, all from the start on."""


@dataclass
class Seen:
    """What was found in a video, by frame number."""

    people: dict[int, list[Person]] = field(default_factory=dict)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Height and width."""
    failed: dict[int, Exception] = field(default_factory=dict)
    """Why the engine failed on a frame."""


class Watcher:
    """Looks for people in the frames of one video.

    Args:
        spec: of the pose estimator.
        config: of the stage.
        frame: makes a `Frame` of a picture.
        shard: where the video belongs to one; it records batches that do not fit the memory.
    """

    def __init__(
        self, spec: EngineSpec, config: PoseConfig, frame: Callable[[Image], Frame], shard: ShardContext | None = None
    ) -> None:
        self._estimator, self._detector = engines.load(spec), engines.load_detector(spec)
        self._config, self._frame, self._shard = config, frame, shard
        # without a model a batch gains nothing, and frames are 6 MB each
        self._batch = spec.batch_size if engines.wants_own_process(spec) and config.detect_every == 1 else 1
        self._before: list[Person] = []
        self._since = 0
        """Frames since the detector last ran."""

    def watch(self, video: Video, spans: Sequence[Span], passed: Callable[[int], object] = lambda count: None) -> Seen:
        """Look at the frames of a video, just opened, that are in at least one span; each is decoded once.

        `passed` is called with the number of spans that are finished, each time it grows.
        """
        seen, starts = Seen(), {start for start, _ in spans}
        ends = sorted(end for _, end in spans if end is not None)
        behind = 0
        numbers = _numbers(spans)
        while batch := list(islice(numbers, self._batch)):
            if batch[0] in starts:  # nobody is followed from a sample into the next one
                self._before = []
            frames = [(number, self._frame(image)) for number, image in video.frames(batch)]
            for (number, frame), found in in_batches(frames, self._batch, self._look, self._shard):
                seen.sizes[number] = (frame.image.shape[0], frame.image.shape[1])
                if isinstance(found, Exception):
                    seen.failed[number] = found
                people = [] if isinstance(found, Exception) else found
                least = self._config.joint_score
                seen.people[number] = [p for p in people if (p.pixels[:, 2] >= least).any()]
                self._before = seen.people[number]
            if (now := bisect_right(ends, batch[-1] + 1)) > behind:
                behind = now
                passed(behind)
            if len(frames) < len(batch):
                break
        return seen

    def _look(self, numbered: list[tuple[int, Frame]]) -> list[list[Person]]:
        frames = [frame for _, frame in numbered]
        self._since += 1
        if self._before and self._since < self._config.detect_every:
            boxes = [[_around(person) for person in self._before]]
        else:
            self._since = 0
            with engines.naming_the_detector():
                found = self._detector.detect(frames, self._config.query)
            boxes = [of_frame[:_MOST_BOXES] for of_frame in found]
        people: list[list[Person]] = self._estimator.estimate(frames, boxes)
        return people


def _numbers(spans: Sequence[Span]) -> Iterator[int]:
    """Yield in order the frame numbers that are in at least one span."""
    ends = [end for _, end in spans if end is not None]
    last = max(ends, default=0) if len(ends) == len(spans) else None
    for number in count(min((start for start, _ in spans), default=0)):
        if last is not None and number >= last:
            return
        if any(start <= number and (end is None or number < end) for start, end in spans):
            yield number


def _around(person: Person) -> Box:
    """Return the box in which a person is looked for in the next frame."""
    box = box_of(person)
    grow = _MARGIN * (box.y1 - box.y0)
    return Box(box.x0 - grow, box.y0 - grow, box.x1 + grow, box.y1 + grow, box.score)


def other_side(layout: Layout) -> list[int]:
    """Return for each joint the one on the other side of the body; the joint itself where it has none."""
    twins = {"left": "right", "right": "left"}
    parts = [name.rpartition("_") for name in layout.names]
    names = [
        f"{stem}_{twins[side]}" if side in twins else name
        for name, (stem, _, side) in zip(layout.names, parts, strict=True)
    ]
    return [layout.names.index(name) if name in layout.names else n for n, name in enumerate(names)]


def assemble(
    seen: Seen, span: Span, layout: Layout, bodies: int, mirrored: bool, joint_score: float
) -> tuple[Assembled, Array]:
    """Return the skeleton of one span of a video, and its joints in pixels.

    *Reading:* in a mirrored video an estimator takes left for right, so the joints of the two sides change places; the
    axes then are those of a Kinect: x as in the image, z away from the camera.

    Args:
        seen: what was found.
        span: its frames.
        layout: of the estimator's joints.
        bodies: people to keep.
        mirrored: the video shows the scene as a mirror does.
        joint_score: a joint whose score is lower is missing.

    Returns:
        The skeleton, as readers of files return it; and (T, M, V, 3) x, y and score, all 0 for a missing joint.
    """
    start, end = span
    numbers = sorted(n for n in seen.people if start <= n and (end is None or n < end))
    areas = {n: float(np.prod(seen.sizes[n])) for n in numbers}
    kept = chosen(track((n, seen.people[n]) for n in numbers), areas, bodies)
    shape = (numbers[-1] + 1 - start if numbers else 0, max(len(kept), 1), layout.joints)
    joints, pixels = np.zeros((*shape, layout.dims), np.float32), np.zeros((*shape, 3), np.float32)
    order = other_side(layout) if mirrored else list(range(layout.joints))
    for slot, people in enumerate(kept):
        for number, person in people.items():
            places = person.pixels[order]
            there = (places[:, 2] >= joint_score) & (places[:, 2] > 0)
            pixels[number - start, slot, there] = places[there]
            if layout.dims == 3:
                assert person.world is not None
                own = person.world[order] * np.array([1, -1, 1 if mirrored else -1], np.float32)
            else:
                own = places[:, :2] / seen.sizes[number][0] * np.array([1, -1]) + np.array([0, 1])
            joints[number - start, slot, there] = own[there]
    made = anchored(joints, layout, bodies)
    return replace(made, frame_index=made.frame_index + np.int32(start)), pixels[made.frame_index]


def read_video(path: Path, config: PoseConfig, dataset: Dataset, bodies: int) -> tuple[Assembled, Layout]:
    """Return the skeleton of the people in a video, as the stage makes it, and its layout.

    Args:
        path: the video.
        config: with the estimator.
        dataset: whose description says what the recipe leaves open.
        bodies: people to keep.

    Raises:
        DataError: the video cannot be decoded, or an engine fails on a frame.
        EngineError: an engine cannot be loaded.
        OSError: the file cannot be opened.
    """
    spec = resolved(config.engine, dataset)
    scene = cache(partial(background.scene_of, path))

    def frame(image: Image) -> Frame:
        return Frame(image, path.stem, 0, background=partial(scene, image.shape[:2]))

    with Video(path) as video:
        seen = Watcher(spec, config, frame).watch(video, [(0, None)])
    if failed := next(iter(seen.failed.values()), None):
        raise DataError(
            f"{path}: {spec.backend!r} failed on {len(seen.failed):,} frames ({one_line(failed, named=True)})"
        )
    layout = engines.layout_of(spec)
    mirrored = _mirrored(config, dataset)
    return assemble(seen, (0, None), layout, bodies, mirrored, config.joint_score)[0], layout


def resolved(spec: EngineSpec, dataset: Dataset) -> EngineSpec:
    """Return the spec of a pose estimator with the detector that it means for a dataset.

    Raises:
        EngineError: the detector finds people by the joints that are wanted.
    """
    assert spec.detector is not None
    detector = resolve_detector(spec.detector, dataset)
    if "pixels" not in engines.backend(detector).reads:
        raise EngineError(
            f"pipeline.pose.engine.detector: {detector.backend!r} finds people by their joints, which are to be found; "
            "expected a detector that reads pixels: `--set pipeline.pose.engine.detector=motion` or one with weights"
        )
    return spec.model_copy(update={"detector": detector})


# ------------------------------------------------------------------------------------------------ the stage


def estimator_of(recipe: Recipe, index: Workspace) -> EngineSpec:
    """Return the spec of a work folder's pose estimator, its detector resolved.

    Raises:
        StageError: the recipe has none, or one whose joints are not those of the index.
        EngineError: its detector reads joints, or its package is not installed.
    """
    if recipe.pipeline.pose is None:
        raise StageError(
            f"the index of {index.work} takes joints from the videos, and this recipe names no pipeline.pose.engine; give "
            "the recipe of the index, or run `c2vl-pipeline index` again with this one"
        )
    spec = resolved(recipe.pipeline.pose.engine, index.dataset)
    layout = engines.layout_of(spec)
    if (layout.names, layout.dims) != (index.layout.names, index.layout.dims):
        raise StageError(
            f"the index of {index.work} is made for joints of {index.layout.name} in {index.layout.dims}D, and "
            f"{spec.backend!r} gives {layout.name} in {layout.dims}D; run `c2vl-pipeline index` again with this estimator"
        )
    return spec


def _empty(sample: Row) -> Row:
    nothing = {"frames": 0, "frames_in_file": 0, "bodies": 0, "frame_index": [], "joints": b"", "pixels": b""}
    return {"sample_id": sample["sample_id"], **nothing}


class _ShardPoses:
    """The rows of one shard in the making: each video is opened once for all its samples."""

    def __init__(self, shard: ShardContext) -> None:
        assert shard.spec is not None
        assert shard.recipe.pipeline.pose is not None
        self.shard, self.spec, self.config = shard, shard.spec, shard.recipe.pipeline.pose
        self.mirrored = _mirrored(self.config, shard.index.dataset)
        self.decoding = Decoding(shard, self.config.timeout)

    def video(self, relative: str, samples: list[Row], before: int) -> list[Row]:
        """Return the rows of all samples of one video; `before` of the shard's are made."""
        guard = self.decoding.guard(relative, samples)
        spans = [(s["start_frame"] or 0, s["end_frame"]) for s in samples]
        camera = samples[0]["camera"]

        def frame(image: Image) -> Frame:
            scene = partial(self.decoding.scene, camera, image.shape[:2])
            return Frame(image, samples[0]["sample_id"], 0, camera=camera, background=scene)

        try:
            with Video(self.shard.index.root / relative, guard) as video:
                watcher = Watcher(self.spec, self.config, frame, self.shard)
                seen = watcher.watch(video, spans, lambda behind: self.shard.note_done(before + behind))
                return [_empty(s) | self._row(video, seen, s, span) for s, span in zip(samples, spans, strict=True)]
        except (DataError, OSError) as error:
            return [_empty(sample) | unreadable(error, Status.MISSING_VIDEO) for sample in samples]

    def _row(self, video: Video, seen: Seen, sample: Row, span: Span) -> Row:
        start, end = span
        if problem := _shortage(video, sample, span):
            return problem
        numbers = [n for n in seen.people if start <= n and (end is None or n < end)]
        if failed := next((seen.failed[n] for n in numbers if n in seen.failed), None):
            return failure(failed, attempts=2)
        index = self.shard.index
        made, pixels = assemble(seen, span, index.layout, index.bodies, self.mirrored, self.config.joint_score)
        if not len(made.joints):
            text = f"nobody was found in any of {len(numbers):,} frames"
            return row_status(Status.NO_PERSON, "empty", text) | {"frames_in_file": len(numbers)}
        return row_status(Status.OK) | {
            "frames": len(made.joints),
            "frames_in_file": made.frames_in_file,
            "bodies": made.bodies,
            "frame_index": made.frame_index.tolist(),
            "joints": made.joints.tobytes(),
            "pixels": np.ascontiguousarray(pixels).tobytes(),
        }


def _shortage(video: Video, sample: Row, span: Span) -> Row | None:
    """Return the status of a sample of which frames are missing from its video, read to the end of the span."""
    start, end = span
    if video.decoded <= start:
        return nothing_in_range(sample, video.decoded)
    short = video.miscounted() if end is None else video.decoded < end
    if short and (cut := missing_bytes(video.path)):
        text = f"the video ends after {video.decoded} of {video.advertised} advertised frames: {cut}; download it again"
        return row_status(Status.TRUNCATED_VIDEO, "truncated", text)
    if end is not None and end_within(end, video.decoded) is None:
        text = (
            f"end_frame {end} is past the end of the video, which has {video.decoded} frames; correct it, or the video"
        )
        return row_status(Status.TRUNCATED_VIDEO, "range", text)
    return None


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: one row per sample."""
    rows: list[Row] = []
    poses = _ShardPoses(shard)
    with closing(poses.decoding):
        for relative, of_video in groupby(shard.samples, key=lambda s: s["video"]):
            group = list(of_video)
            made = {s["sample_id"]: given for s in group if (given := _given_up(s)) is not None}
            if samples := [s for s in group if s["sample_id"] not in made]:
                made |= {row["sample_id"]: row for row in poses.video(relative, samples, len(rows))}
            rows += [made[s["sample_id"]] for s in group]
            shard.note_done(len(rows))
    return pa.Table.from_pylist(rows, schema=POSES)


def _given_up(sample: Row) -> Row | None:
    """Return the row of a sample whose video is not looked at, else None."""
    if sample["problem"]:
        return _empty(sample) | row_status(Status.FAILED, "problem", sample["problem"])
    if sample["known_missing"]:
        text = "on the dataset's list of missing skeletons: published splits leave it out"
        return _empty(sample) | row_status(Status.MISSING_SKELETON, "missing", text)
    if sample["video"] is None:
        return _empty(sample) | row_status(Status.MISSING_VIDEO, "missing", "no video file")
    return None


def _mirrored(config: PoseConfig, dataset: Dataset) -> bool:
    return dataset.mirrored if config.mirrored is None else config.mirrored


def _config(recipe: Recipe, index: Workspace) -> dict[str, Any]:
    config = recipe.pipeline.pose
    assert config is not None
    settled = {"mirrored": _mirrored(config, index.dataset), "bodies": index.bodies}
    return config.model_dump(mode="json", exclude={"engine", "timeout"}) | settled


STAGE = Stage(
    name="skeletons",
    command="pose",
    process=process,
    columns=(
        "sample_id", "camera", "video", "video_bytes", "start_frame", "end_frame", "known_missing", "problem",
    ),
    config=_config,
    upstream=lambda recipe: (),
    row_group=256,
    reads_joints=True,
    engine=estimator_of,
    raw="video",
)  # fmt: skip
