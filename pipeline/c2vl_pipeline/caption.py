"""`c2vl-pipeline caption`: one answer a crop to the paper's question: the language prompts (Section III-A)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.config import Recipe
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.schema import CAPTIONS, Status
from c2vl_pipeline.engines import Caption, Crop, Pose
from c2vl_pipeline.index import Index
from c2vl_pipeline.runner import Shard, Stage, failure, in_batches, row_status
from c2vl_pipeline.skeletons import stored_joints
from c2vl_pipeline.video import decode_jpeg, shape_image

Row = dict[str, Any]


def _skeletons(shard: Shard) -> dict[str, Row]:
    """Rows of the skeletons stage by sample, for engines that describe poses."""
    if "pose" not in shard.engine.needs:
        return {}
    return {row["sample_id"]: row for row in shard.upstream("skeletons").to_pylist()}


def _pose(row: Row, frame: int, shard: Shard) -> Pose | None:
    """The joints at a video frame: the kept skeleton frame nearest to it."""
    if row["status"] != Status.OK:
        return None
    at = int(np.argmin(np.abs(np.asarray(row["frame_index"]) - frame)))
    return Pose(stored_joints(row, shard.index.layout), at, shard.index.layout)


def process(shard: Shard) -> pa.Table:
    """Make one shard: a row a (sample, slot)."""
    assert shard.spec is not None
    config = shard.recipe.pipeline.caption
    wants_pose = "pose" in shard.engine.needs
    skeletons = _skeletons(shard)
    rows: list[Row] = []
    asked: list[tuple[Row, Crop]] = []
    for crop in shard.upstream("crops").to_pylist():
        row: Row = {"sample_id": crop["sample_id"], "slot": crop["slot"], "caption": None, "tokens": None}
        rows.append(row)
        pose = None
        if wants_pose:
            body = skeletons[crop["sample_id"]]
            if body["status"] != Status.OK:
                row |= row_status(
                    Status(body["status"]),
                    body["error_class"],
                    f"this captioner describes joints: {body['error']}",
                )
                continue
            pose = _pose(body, crop["frame_index"] or 0, shard)
        if crop["status"] != Status.OK:
            row |= row_status(Status(crop["status"]), crop["error_class"], crop["error"])
            continue
        image = shape_image(decode_jpeg(crop["jpeg"]), config.aspect)
        asked.append((row, Crop(image, crop["sample_id"], crop["slot"], pose)))

    def call(batch: list[tuple[Row, Crop]]) -> list[Caption]:
        answers: list[Caption] = shard.engine.caption([c for _, c in batch], config.question)
        return answers

    for (row, _), answer in in_batches(asked, shard.spec.batch_size, call):
        if isinstance(answer, Exception):
            row.update(failure(answer, attempts=2))
        elif not answer.text.strip():
            row.update(row_status(Status.FAILED, "empty", "the captioner returned an empty answer"))
        else:
            row.update(row_status(Status.OK), caption=answer.text.strip(), tokens=answer.tokens)
    return pa.Table.from_pylist(rows, schema=CAPTIONS)


def _engine(recipe: Recipe, index: Index) -> EngineSpec:
    return recipe.pipeline.caption.engine


def _upstream(recipe: Recipe) -> tuple[str, ...]:
    """Return what captions are made of: crops, and joints for the captioner that describes them."""
    return ("crops", "skeletons") if recipe.pipeline.caption.engine.backend == "posecode" else ("crops",)


STAGE = Stage(
    name="captions",
    command="caption",
    process=process,
    upstream=_upstream,
    row_group=8192,
    per_frame=True,
    reads_joints=True,
    engine=_engine,
)
