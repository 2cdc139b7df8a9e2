"""`c2vl-pipeline caption`: ask the paper's question about each crop: the language prompts (Section III-A).

The table is committed by `execution/task.py`, as in every stage. Answers are expensive (a second of a GPU each), so
each batch is appended to a journal next to the shard: a killed captioner loses at most one batch.

Beyond the paper, one answer may be about all crops of a sample (`view`), a caption may be the answers to several
questions (`also_ask`), and a second pass may make one sentence of all captions of a sample (`rewrite`): each of its
rows then has this sentence as `caption` and what was said first as `answer`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import CAPTIONS, Status
from c2vl_pipeline import engines
from c2vl_pipeline.engines import THINK, Caption, Crop, Pose
from c2vl_pipeline.readers.video import decode_jpeg, plan_frames, shape_image
from c2vl_pipeline.stages.base import Row, ShardContext, Stage, config_of, failure, in_batches, row_status
from c2vl_pipeline.stages.journal import Journal
from c2vl_pipeline.workspace import stored_joints

_UNITS = {"frame": "images", "clip": "clips"}
"""What is asked about, for the engine's speed."""

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


Answer = Caption | Exception


class UnfinishedThinkingError(Exception):
    """A model was still thinking when its tokens ran out."""


@dataclass(frozen=True, slots=True)
class _Request:
    """Stored crops that wait for one answer; decoded with their batch, since a shard's pixels would fill the memory."""

    rows: list[Row]
    """That the answer is for: of one crop, or of all of a sample."""
    jpegs: list[bytes | None]
    """None for a captioner that reads no pixels."""
    sample_id: str
    slot: int
    pose: Pose | None

    @property
    def key(self) -> tuple[str, int]:
        return self.sample_id, self.slot

    def crop(self, aspect: str, frames: int) -> Crop:
        images = [_NOTHING if jpeg is None else shape_image(decode_jpeg(jpeg), aspect) for jpeg in self.jpegs]
        return Crop(images[0], self.sample_id, self.slot, self.pose, frames, tuple(images[1:]))


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: one row per (sample, slot)."""
    config = shard.recipe.pipeline.caption
    _check_prompts(shard)
    with Journal(shard) as journal:
        rows, requests = _requests(shard)
        _ask(shard, journal, requests)
        if config.rewrite:
            _rewrite(shard, journal, rows)
    return pa.Table.from_pylist(rows, schema=CAPTIONS.append(_ANSWER) if config.rewrite else CAPTIONS)


_ANSWER = pa.field("answer", pa.string())


def _check_prompts(shard: ShardContext) -> None:
    """Raise EngineError if the captioner is not made for what the recipe asks of it."""
    assert shard.spec is not None
    config, able = shard.recipe.pipeline.caption, engines.backend(shard.spec).prompts
    asked = {
        "view": (config.view == "clip", "clip", "several images in one prompt"),
        "also_ask": (config.also_ask, "frame", "questions"),
        "rewrite": (config.rewrite, "text", "prompts without an image"),
    }
    for setting, (wanted, prompt, what) in asked.items():
        if wanted and prompt not in able:
            raise EngineError(
                f"pipeline.caption.{setting} is set, and the captioner engine {shard.spec.backend!r} does not take {what}; "
                "leave the setting out, or choose another captioner"
            )


def _requests(shard: ShardContext) -> tuple[list[Row], list[_Request]]:
    """Return a row for every (sample, slot), and what is asked to fill those that lack no input."""
    assert shard.spec is not None
    reads, clip = engines.backend(shard.spec).reads, shard.recipe.pipeline.caption.view == "clip"
    bodies = shard.upstream("skeletons").to_pylist() if "joints" in reads else []
    skeletons = {row["sample_id"]: row for row in bodies}
    rows: list[Row] = []
    requests: list[_Request] = []
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
        jpeg = crop["jpeg"] if "pixels" in reads else None
        if clip and requests and requests[-1].sample_id == crop["sample_id"]:
            requests[-1].rows.append(row)
            requests[-1].jpegs.append(jpeg)
        else:
            requests.append(_Request([row], [jpeg], crop["sample_id"], crop["slot"], pose))
    return rows, requests


def _ask(shard: ShardContext, journal: Journal, requests: list[_Request]) -> None:
    """Ask every question about every request and fill its rows."""
    config, frames = shard.recipe.pipeline.caption, shard.recipe.pipeline.frames

    def call(batch: list[_Request]) -> list[Answer]:
        crops = [request.crop(config.aspect, frames) for request in batch]
        questions = (config.question, *config.also_ask)
        by_question = [_checked(shard, shard.engine.caption(crops, question)) for question in questions]
        return [_joined(answers) for answers in zip(*by_question, strict=True)]

    _answer(shard, journal, [(request.key, request.rows, request) for request in requests], call, _UNITS[config.view])


def _rewrite(shard: ShardContext, journal: Journal, rows: list[Row]) -> None:
    """Make one sentence of the captions of each sample: the caption of all its rows that have one."""
    samples: dict[str, list[Row]] = {}
    for row in rows:
        row["answer"] = row["caption"]
        if row["status"] == Status.OK:
            samples.setdefault(row["sample_id"], []).append(row)

    def prompt(said: list[Row]) -> str:
        lines = [f"{n}. {row['caption']}" for n, row in enumerate(said, 1)]
        return "\n".join([shard.recipe.pipeline.caption.rewrite, *lines])

    def call(batch: list[str]) -> list[Answer]:
        return _checked(shard, shard.engine.complete(batch))

    prompts = {sample: prompt(said) for sample, said in samples.items()}
    # a slot that failed in a run that was killed may have its answer now: the sentence in the journal is of other answers
    slots = {sample: -1 - zlib.crc32(text.encode()) for sample, text in prompts.items()}
    todo = [((sample, slots[sample]), said, prompts[sample]) for sample, said in samples.items()]
    for row in (row for said in samples.values() for row in said):
        row["caption"] = None  # without its sentence a row has failed
    _answer(shard, journal, todo, call, "texts")


def _answer(
    shard: ShardContext,
    journal: Journal,
    todo: list[tuple[tuple[str, int], list[Row], Any]],
    call: Callable[[list[Any]], list[Answer]],
    unit: str,
) -> None:
    """Fill rows with the answers to prompts, in batches: those that the journal knows, then those that are asked for.

    Args:
        shard: that the rows are of.
        journal: of the shard.
        todo: key in the journal, rows to fill, prompt.
        call: answers a batch of prompts.
        unit: of what is asked about, for the engine's speed.
    """
    assert shard.spec is not None
    waiting = []
    for key, rows, prompt in todo:
        if (known := journal.answers.get(key)) is not None:
            _fill(rows, known)
        else:
            waiting.append((key, rows, prompt))

    def journaled(batch: list[Any]) -> list[Answer]:
        answers = call([prompt for _, _, prompt in batch])
        # strict: with one too few, an answer would be stored for the wrong crop
        answered = list(zip((key for key, _, _ in batch), answers, strict=True))
        journal.write((key, a) for key, a in answered if isinstance(a, Caption) and a.text.strip())
        return answers

    batches = in_batches(waiting, shard.spec.batch_size, journaled, shard, unit)
    for number, ((_, rows, _), answer) in enumerate(batches, 1):
        _fill(rows, answer)
        if number % shard.spec.batch_size == 0:
            shard.note_done(len(shard.samples) * number // len(waiting))


def _checked(shard: ShardContext, answers: Sequence[Answer]) -> list[Answer]:
    """Return answers without thinking, if the recipe wants it out."""
    if shard.recipe.pipeline.caption.thinking == "keep":
        return list(answers)
    return [without_thinking(answer) if isinstance(answer, Caption) else answer for answer in answers]


def without_thinking(answer: Caption) -> Answer:
    """Return an answer without what stands between the marks of thinking; an error if it does not end."""
    opened, closed = map(re.escape, THINK)
    text = re.sub(f"{opened}.*?{closed}", "", answer.text, flags=re.DOTALL)
    text = text.rpartition(THINK[1])[2]  # a server may leave out the mark that its template opens with
    if THINK[0] in text:
        return UnfinishedThinkingError(
            f"the captioner was still thinking after {answer.tokens} tokens; raise max_new_tokens of its engine"
        )
    return Caption(text.strip(), answer.tokens)


def _joined(answers: Sequence[Answer]) -> Answer:
    """Return the answers to all questions as one, or the error of the first that has none."""
    if len(answers) == 1:
        return answers[0]
    said: list[Caption] = []
    for answer in answers:
        if not isinstance(answer, Caption):
            return answer
        said.append(answer)
    return Caption(" ".join(one.text.strip() for one in said), sum(one.tokens for one in said))


def _fill(rows: list[Row], answer: Answer) -> None:
    """Write an answer, or the reason why none exists, into its rows."""
    for row in rows:
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
    config=lambda recipe, index: config_of(recipe.pipeline.caption),
    upstream=_upstream,
    row_group=8192,
    per_frame=True,
    reads_joints=True,
    engine=lambda recipe, index: recipe.pipeline.caption.engine,
)
