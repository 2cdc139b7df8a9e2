"""`c2vl-pipeline crop`: 16 person crops per sample, stored as JPEG: the vision prompts (Section III-A).

*Reading:* the paper crops "person" with Grounding DINO and shows one crop; the authors' captions come sixteen per
sample and speak of "they" for two-person actions, so a crop is the union of the best (at most two) people.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import groupby, product

import numpy as np
import pyarrow as pa

from c2vl_manifests.datasets import resolve_detector
from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import CropConfig, Recipe
from c2vl_manifests.schema import CROPS, Status
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame, Image
from c2vl_pipeline.raw.scan import missing_bytes
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import Projection, end_within
from c2vl_pipeline.readers.video import Video, encode_jpeg, limit_side, plan_frames
from c2vl_pipeline.stages import skeletons
from c2vl_pipeline.stages.base import Row, ShardContext, Stage, failure, in_batches, row_status, unreadable
from c2vl_pipeline.stages.decoding import Decoding, nothing_in_range
from c2vl_pipeline.workspace import stored_pixels

Waiting = tuple[list[Row], Frame]
"""A frame for the engine, and the rows that its answer is for."""
Found = list[Box] | Exception


def union(boxes: list[Box], config: CropConfig, width: int, height: int) -> tuple[int, int, int, int]:
    """Return the crop of the best boxes, margin added, within the frame: whole pixels (x0, y0, x1, y1)."""
    best = boxes[: config.max_people]
    x0, y0 = min(b.x0 for b in best), min(b.y0 for b in best)
    x1, y1 = max(b.x1 for b in best), max(b.y1 for b in best)
    dx, dy = config.margin * (x1 - x0), config.margin * (y1 - y0)
    left, top = int(min(max(x0 - dx, 0), width - 1)), int(min(max(y0 - dy, 0), height - 1))
    right, bottom = min(max(x1 + dx, left + 1), width), min(max(y1 + dy, top + 1), height)
    return left, top, math.ceil(right), math.ceil(bottom)


def _empty(sample: Row, slot: int) -> Row:
    row: Row = dict.fromkeys(CROPS.names)
    row.update(sample_id=sample["sample_id"], slot=slot, people=0)
    return row


def _past_the_end(row: Row, video: Video, cut: str | None) -> Row:
    """Return the status of a row whose frame is not in its video, of which bytes are missing (`cut`) or none."""
    number, ends = row["frame_index"], f"the video ends after {video.decoded}"
    if cut:
        text = f"planned frame {number} of {video.advertised} advertised, {ends}: {cut}; download it again"
        return row_status(Status.TRUNCATED_VIDEO, "truncated", text)
    text = f"frame {number} lies between start_frame and end_frame, {ends}; correct them, or the video"
    return row_status(Status.TRUNCATED_VIDEO, "range", text)


def _nearly_held(sample: Row, planned: list[int], held: int) -> bool:
    """Return whether a range loses planned frames only because it ends a frame or two behind its video of `held` frames."""
    end = sample["end_frame"]
    lost = end is not None and (sample["start_frame"] or 0) < held <= max(planned, default=0)
    return lost and end_within(end, held) is not None


class _ShardCrops:
    """The rows of one shard in the making: each video is opened once for all its samples."""

    def __init__(self, shard: ShardContext) -> None:
        self.shard = shard
        self.config = shard.recipe.pipeline.crop
        self.slots = shard.recipe.pipeline.frames
        self.rows: dict[tuple[str, int], Row] = {}
        self.waiting: list[Waiting] = []
        assert shard.spec is not None
        reads = engines.backend(shard.spec).reads
        self.engine_name, self.reads_joints = shard.spec.backend, "joints" in reads
        # frames are then neither converted nor copied: only the crops are stored
        self.lent = "pixels" not in reads
        self.decoding = Decoding(shard, self.config.timeout)
        self.skeletons: dict[str, Row] = {}
        if self.reads_joints and shard.index.joints_from_videos:
            shard.provenance["joints_from_videos"] = True

    def give_up(self, sample: Row, status: Row) -> None:
        for slot in range(self.slots):
            self.rows.setdefault((sample["sample_id"], slot), _empty(sample, slot) | status)

    def video(self, relative: str, samples: list[Row]) -> None:
        """Read one video for all its samples."""
        guard = self.decoding.guard(relative, samples)
        try:
            opened = Video(self.shard.index.root / relative, guard)
        except (DataError, OSError) as error:
            status = unreadable(error, Status.MISSING_VIDEO)
            for sample in samples:
                self.give_up(sample, status)
            return
        with opened as video:
            try:
                if again := self._read(video, samples):
                    with Video(video.path, guard) as second:
                        self._read(second, again, video.decoded)
            except DataError as error:
                for sample in samples:
                    self.give_up(sample, failure(error, Status.DECODE_ERROR))

    def _read(self, video: Video, samples: list[Row], total: int | None = None) -> list[Row]:
        """Make the rows of samples of one video; return those to plan again over the frames that it holds.

        Args:
            video: just opened.
            samples: of this video.
            total: number of its frames, if it is known; else what its container advertises.
        """
        wanted: dict[int, list[Row]] = {}
        joints_of: dict[str, Projection] = {}
        count, counted = video.count() if total is None else total, total is not None
        plans = {s["sample_id"]: self._plan(s, count, joints_of, counted=counted) for s in samples}
        for sample in samples:
            for slot, number in enumerate(plans[sample["sample_id"]]):
                facts = {"frame_index": number, "frames_advertised": video.advertised}
                wanted.setdefault(number, []).append(_empty(sample, slot) | facts)
        cameras = {s["sample_id"]: s["camera"] for s in samples}
        by_frame = partial(self._frames, joints_of, cameras)
        known = self._boxes_without_pixels(video, wanted, by_frame) if self.lent else {}
        for number, image in video.frames(wanted, lent=self.lent):
            rows = wanted.pop(number)
            for row in rows:
                row.update(frame_height=image.shape[0], frame_width=image.shape[1])
            if known and image.shape[:2] == video.shape:
                for mine, boxes in known[number]:
                    self._store(mine, image, boxes)
                continue
            self.waiting += by_frame(rows, image)
            if len(self.waiting) >= self._batch:
                self.detect()
        self.detect()
        again = _miscounted(video, samples, plans, missing=bool(wanted)) if total is None else []
        cut = missing_bytes(video.path) if again or wanted else None
        if cut:
            again = []
        for row in (row for rows in wanted.values() for row in rows):
            self.rows[row["sample_id"], row["slot"]] = row | _past_the_end(row, video, cut)
        for key in product(cameras, range(self.slots)):
            if self.rows[key]["frames_advertised"] is not None:
                self.rows[key]["frames_decoded"] = video.decoded if total is None else total
        for sample, slot in product(again, range(self.slots)):
            del self.rows[sample["sample_id"], slot]
        return again

    def _frames(
        self, joints_of: dict[str, Projection], cameras: dict[str, str], rows: list[Row], image: Image
    ) -> list[Waiting]:
        """Return what the engine gets of one frame of the video, and the rows that each answer is for."""
        frames = []
        # rows that share a frame of one sample (a clip shorter than the slots) share its detection
        for sample_id, group in groupby(rows, key=lambda r: str(r["sample_id"])):
            mine = list(group)
            projection = joints_of.get(sample_id)
            frame = Frame(
                image=image,
                sample_id=sample_id,
                slot=mine[0]["slot"],
                camera=cameras[sample_id],
                joints=projection(mine[0]["frame_index"], image.shape[0]) if projection else None,
                background=partial(self.decoding.scene, cameras[sample_id], image.shape[:2]),
            )
            frames.append((mine, frame))
        return frames

    def _boxes_without_pixels(
        self, video: Video, wanted: dict[int, list[Row]], by_frame: Callable[[list[Row], Image], list[Waiting]]
    ) -> dict[int, list[tuple[list[Row], Found]]]:
        """Return the boxes of all wanted frames of a video, by frame, before the first one is decoded.

        Decoding a frame empties the processor's caches: between two frames the same calls take six times as long.
        """
        blank = np.broadcast_to(np.uint8(0), (*video.shape, 3))
        waiting = [item for rows in wanted.values() for item in by_frame(rows, blank)]
        known: dict[int, list[tuple[list[Row], Found]]] = {}
        for rows, _, boxes in self._answers(waiting):
            known.setdefault(rows[0]["frame_index"], []).append((rows, boxes))
        return known

    def _plan(self, sample: Row, count: int, joints_of: dict[str, Projection], *, counted: bool) -> list[int]:
        """Return the frames to read for a sample of a video with `count` frames: none if its rows are given up.

        Only where they were `counted`, and not advertised, a range ends with them.
        """
        end = count if sample["end_frame"] is None else sample["end_frame"]
        if counted:
            end = end_within(end, count) or end
        planned = plan_frames(sample["start_frame"] or 0, end, self.slots)
        error = self._skeleton(sample, joints_of) if planned and self.reads_joints else None
        if not planned or error is not None:
            self.give_up(sample, error or nothing_in_range(sample, count))
            return []
        return planned

    @property
    def _batch(self) -> int:
        assert self.shard.spec is not None
        # without a model a batch gains nothing, and waiting frames are 6 MB each
        return self.shard.spec.batch_size if engines.wants_own_process(self.shard.spec) else 1

    def _skeleton(self, sample: Row, joints_of: dict[str, Projection]) -> Row | None:
        """Read the projected joints of a sample; return the status of its rows if that fails."""
        index = self.shard.index
        if index.joints_from_videos:
            return self._stored_skeleton(sample, joints_of)
        if sample["skeleton"] is None:
            return row_status(
                Status.MISSING_SKELETON, "missing", f"the {self.engine_name} engine needs the skeleton file"
            )
        project = reader_of(index.dataset).project
        try:
            made = project and project(index.root / sample["skeleton"], sample, index.layout)
        except (DataError, OSError) as error:
            return unreadable(error, Status.MISSING_SKELETON)
        if made is None:
            text = (
                f"{index.dataset.title} with {index.layout.dims}D joints ({index.layout.name}) records no joints in "
                "pixels of its videos; use another detector"
            )
            return row_status(Status.MISSING_SKELETON, "missing", text)
        joints_of[sample["sample_id"]] = made
        return None

    def _stored_skeleton(self, sample: Row, joints_of: dict[str, Projection]) -> Row | None:
        """Take the joints in pixels that the pose stage found; return the status of the rows if it found none."""
        if not self.skeletons:
            self.skeletons = {row["sample_id"]: row for row in self.shard.upstream("skeletons").to_pylist()}
        row = self.skeletons[sample["sample_id"]]
        if row["status"] != Status.OK:
            return row_status(Status(row["status"]), row["error_class"], row["error"])
        joints_of[sample["sample_id"]] = stored_pixels(row, self.shard.index.layout)
        return None

    def _answers(self, waiting: list[Waiting]) -> Iterator[tuple[list[Row], Frame, Found]]:
        query = self.config.query
        for (rows, frame), boxes in in_batches(
            waiting, self._batch, lambda batch: self.shard.engine.detect([f for _, f in batch], query), self.shard
        ):
            yield rows, frame, boxes

    def detect(self) -> None:
        """Find people in the waiting frames and store their crops."""
        for rows, frame, boxes in self._answers(self.waiting):
            self._store(rows, frame.image, boxes)
        self.waiting = []

    def _store(self, rows: list[Row], image: Image, boxes: Found) -> None:
        made = self._crop(image, boxes)
        for row in rows:
            self.rows[row["sample_id"], row["slot"]] = row | made

    def _crop(self, image: Image, boxes: Found) -> Row:
        if isinstance(boxes, Exception):
            return failure(boxes, attempts=2)
        if not boxes:
            return row_status(Status.NO_PERSON)
        height, width = image.shape[:2]
        left, top, right, bottom = union(boxes, self.config, width, height)
        crop = limit_side(image[top:bottom, left:right], self.config.max_side)
        return row_status(Status.OK) | {
            "box": [float(left), float(top), float(right), float(bottom)],
            "score": boxes[0].score,
            "people": min(len(boxes), self.config.max_people),
            "jpeg": encode_jpeg(crop, self.config.jpeg_quality, bgr=self.lent),
        }


def _miscounted(video: Video, samples: list[Row], plans: Mapping[str, list[int]], *, missing: bool) -> list[Row]:
    """Return the samples of a video whose frames have to be planned again: it holds others than its container says.

    Args:
        video: read up to the last planned frame; read to its end here if a sample has no end of its own.
        samples: of this video.
        plans: their frames.
        missing: whether planned frames were not found.
    """
    again: list[Row] = []
    if open_ended := [s for s in samples if s["end_frame"] is None]:
        video.drain()
        if any(video.miscounted(plans[s["sample_id"]]) for s in open_ended):
            again = open_ended
    if missing:
        again = [*again, *(s for s in samples if _nearly_held(s, plans[s["sample_id"]], video.drain()))]
    return again


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: one row per (sample, slot)."""
    tables, made = [CROPS.empty_table()], 0
    crops = _ShardCrops(shard)
    with closing(crops.decoding):
        for relative, of_video in groupby(shard.samples, key=lambda s: s["video"]):
            group, samples = list(of_video), []
            for sample in group:
                if sample["problem"]:
                    crops.give_up(sample, row_status(Status.FAILED, "problem", sample["problem"]))
                elif relative is None:
                    crops.give_up(sample, row_status(Status.MISSING_VIDEO, "missing", "no video file"))
                else:
                    samples.append(sample)
            if samples:
                crops.video(relative, samples)
            # per video: the JPEGs of a shard are half a gigabyte and would be held twice
            rows = [crops.rows.pop((s["sample_id"], slot)) for s in group for slot in range(crops.slots)]
            tables.append(pa.Table.from_pylist(rows, schema=CROPS))
            made += len(group)
            shard.note_done(made)
    return pa.concat_tables(tables)


def _upstream(recipe: Recipe) -> tuple[str, ...]:
    """Return what crops are made of beside the videos: joints from videos, for a detector that may read joints."""
    if recipe.pipeline.pose is None:
        return ()
    spec = recipe.pipeline.crop.engine
    reads_pixels = spec.backend in engines.backends(spec.role) and "joints" not in engines.backend(spec).reads
    return () if reads_pixels else ("skeletons",)


STAGE = Stage(
    name="crops",
    command="crop",
    process=process,
    columns=("sample_id", "camera", "video", "video_bytes", *skeletons.STAGE.columns[1:]),
    config=lambda recipe, index: recipe.pipeline.crop.model_dump(mode="json", exclude={"engine", "timeout"}),
    upstream=_upstream,
    row_group=128,
    per_frame=True,
    engine=lambda recipe, index: resolve_detector(
        recipe.pipeline.crop.engine, index.dataset, bool(index.manifest.extra.get("joints_in_image"))
    ),
    raw="video",
)
