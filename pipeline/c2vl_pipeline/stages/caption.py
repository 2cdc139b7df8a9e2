"""`c2vl-pipeline caption`: ask the paper's question about each crop: the language prompts (Section III-A).

The table is committed by `execution/task.py`, as in every stage. Answers are expensive (a second of a GPU each), so
each batch is appended to a journal next to the shard: a killed captioner loses at most one batch.
"""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedWriter

import numpy as np
import pyarrow as pa

from c2vl_manifests.errors import naming
from c2vl_manifests.manifest import sync
from c2vl_manifests.reading import MOST_FILE, from_json, read_bytes
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import CAPTIONS, Status
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Caption, Crop, Pose
from c2vl_pipeline.readers.video import decode_jpeg, plan_frames, shape_image
from c2vl_pipeline.stages.base import Row, ShardContext, Stage, config_of, failure, in_batches, row_status
from c2vl_pipeline.workspace import stored_joints

_NOTHING = np.zeros((0, 0, 3), np.uint8)


def _pose(row: Row, frame: int, shard: ShardContext) -> Pose | None:
    """Return the joints at a video frame: those of the nearest valid frame of the skeleton."""
    if row["status"] != Status.OK:
        return None
    at = int(np.argmin(np.abs(np.asarray(row["frame_index"]) - frame)))
    return Pose(stored_joints(row, shard.index.layout), at, shard.index.layout)


def _frame(crop: Row, body: Row, frames: int) -> int:
    """Return the frame of a slot: the crop's, or without a video one of those of the joints, evenly over them."""
    if crop["frame_index"] is not None:
        return int(crop["frame_index"])
    valid = body["frame_index"]
    return int(valid[plan_frames(0, len(valid), frames)[crop["slot"]]])


@dataclass(frozen=True, slots=True)
class _Request:
    """A stored crop that waits for its answer; decoded with its batch, since a shard's pixels would fill the memory."""

    jpeg: bytes | None
    """None for a captioner that reads no pixels."""
    sample_id: str
    slot: int
    pose: Pose | None

    def crop(self, aspect: str, frames: int) -> Crop:
        image = _NOTHING if self.jpeg is None else shape_image(decode_jpeg(self.jpeg), aspect)
        return Crop(image, self.sample_id, self.slot, self.pose, frames)


class Journal:
    """Answers of an unfinished shard, one per line with a checksum; torn or damaged lines are ignored.

    Each process writes a new file and reads those of all: `.shard-00012-<key>-<random>.journal`. They are removed when
    the shard is committed, and by a later run under another key.
    """

    SYNC_EVERY = 5.0
    """Seconds between two syncs to disk: what a power cut loses; a killed process loses nothing that was written."""

    def __init__(self, shard: ShardContext) -> None:
        stem = f".shard-{shard.number:05d}-{shard.key[:12]}-"
        self.answers: dict[tuple[str, int], Caption] = {}
        for path in sorted(shard.folder.glob(f"{stem}*.journal")):
            self.answers |= dict(self._read(read_bytes(path, MOST_FILE)))
        self._path = shard.folder / f"{stem}{uuid.uuid4().hex[:12]}.journal"
        self._file: BufferedWriter | None = None
        self._synced = time.monotonic()

    @staticmethod
    def _read(data: bytes) -> Iterable[tuple[tuple[str, int], Caption]]:
        for line in data.split(b"\n"):
            checksum, _, text = line.partition(b" ")
            if not text or checksum != b"%08x" % zlib.crc32(text):
                continue
            try:
                sample_id, slot, answer, tokens = from_json(text)
                answered = (str(sample_id), int(slot)), Caption(str(answer), tokens)
            except (ValueError, TypeError):
                continue
            yield answered

    def write(self, answered: Iterable[tuple[Crop, Caption]]) -> None:
        """Append the answers of one batch."""
        with naming(self._path):
            self._write(answered)

    def _write(self, answered: Iterable[tuple[Crop, Caption]]) -> None:
        if self._file is None:
            self._file = self._path.open("xb")
        for crop, answer in answered:
            text = json.dumps([crop.sample_id, crop.slot, answer.text, answer.tokens]).encode()
            self._file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._file.flush()
        if time.monotonic() - self._synced > self.SYNC_EVERY:
            sync(self._file.fileno())
            self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: one row per (sample, slot)."""
    with Journal(shard) as journal:
        return _process(shard, journal)


def _process(shard: ShardContext, journal: Journal) -> pa.Table:
    assert shard.spec is not None
    config = shard.recipe.pipeline.caption
    reads = engines.backend(shard.spec).reads
    bodies = shard.upstream("skeletons").to_pylist() if "joints" in reads else []
    skeletons = {row["sample_id"]: row for row in bodies}
    rows: list[Row] = []
    requests: list[tuple[Row, _Request]] = []
    for crop in shard.upstream("crops").to_pylist():
        row: Row = {"sample_id": crop["sample_id"], "slot": crop["slot"], "caption": None, "tokens": None}
        rows.append(row)
        pose = None
        if "joints" in reads:
            body = skeletons[crop["sample_id"]]
            if body["status"] != Status.OK:
                why = f"this captioner describes joints: {body['error']}"
                row |= row_status(Status(body["status"]), body["error_class"], why)
                continue
            pose = _pose(body, _frame(crop, body, shard.recipe.pipeline.frames), shard)
        # joints need no video; of one that is damaged, or shows nobody, the crop's reason is kept
        needs_crop = reads - {"joints"} if crop["status"] == Status.MISSING_VIDEO else reads
        if crop["status"] != Status.OK and needs_crop:
            row |= row_status(Status(crop["status"]), crop["error_class"], crop["error"])
            continue
        known = journal.answers.get((crop["sample_id"], crop["slot"]))
        if known is not None:
            _fill(row, known)
            continue
        jpeg = crop["jpeg"] if "pixels" in reads else None
        requests.append((row, _Request(jpeg, crop["sample_id"], crop["slot"], pose)))

    def call(batch: list[tuple[Row, _Request]]) -> list[Caption | Exception]:
        crops = [c.crop(config.aspect, shard.recipe.pipeline.frames) for _, c in batch]
        answers: list[Caption | Exception] = shard.engine.caption(crops, config.question)
        # strict: with one too few, an answer would be stored for the wrong crop
        answered = list(zip(crops, answers, strict=True))
        journal.write((c, a) for c, a in answered if isinstance(a, Caption) and a.text.strip())
        return answers

    for number, ((row, _), answer) in enumerate(in_batches(requests, shard.spec.batch_size, call, shard), 1):
        _fill(row, answer)
        if number % shard.spec.batch_size == 0:
            shard.note_done(len(shard.samples) * number // len(requests))
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


def _fill(row: Row, answer: Caption | Exception) -> None:
    """Write an answer, or the reason why none exists, into its row."""
    if isinstance(answer, Exception):
        row.update(failure(answer, attempts=2))
    elif not answer.text.strip():
        row.update(row_status(Status.FAILED, "empty", "the captioner returned an empty answer"))
    else:
        row.update(row_status(Status.OK), caption=answer.text.strip(), tokens=answer.tokens)


def _upstream(recipe: Recipe) -> tuple[str, ...]:
    """Return what captions are made of: crops, and joints for a captioner that reads them."""
    reads = engines.backend(recipe.pipeline.caption.engine).reads
    return ("crops", "skeletons") if "joints" in reads else ("crops",)


STAGE = Stage(
    name="captions",
    command="caption",
    process=process,
    columns=("sample_id",),
    config=lambda recipe: config_of(recipe.pipeline.caption),
    upstream=_upstream,
    row_group=8192,
    per_frame=True,
    reads_joints=True,
    engine=lambda recipe, index: recipe.pipeline.caption.engine,
)
