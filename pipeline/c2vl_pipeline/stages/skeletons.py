"""`c2vl-pipeline skeletons`: read skeleton files to joints, (T, M, V, C) float32, without empty frames.

The dataset's reader (`c2vl_pipeline.readers`) parses the files; a malformed one becomes a row that states why.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from c2vl_manifests.errors import DataError
from c2vl_manifests.schema import SKELETONS, Status
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.stages.base import ShardContext, Stage, row_status, unreadable


def _rows(shard: ShardContext) -> Iterator[dict[str, Any]]:
    index, config = shard.index, shard.recipe.pipeline.skeletons
    read_joints = reader_of(index.dataset).read_joints
    empty = {"frames": 0, "frames_in_file": 0, "bodies": 0, "frame_index": [], "joints": b""}
    for sample in shard.samples:
        row: dict[str, Any] = {"sample_id": sample["sample_id"], **empty}
        if sample["problem"]:
            yield row | row_status(Status.FAILED, "problem", sample["problem"])
        elif sample["skeleton"] is None or sample["known_missing"]:
            listed = "on the dataset's list of missing skeletons" if sample["known_missing"] else None
            yield row | row_status(Status.MISSING_SKELETON, "missing", listed or "no skeleton file")
        else:
            try:
                path = index.root / sample["skeleton"]
                body = read_joints(path, sample, index.layout, index.bodies, config)
            except (DataError, OSError) as error:
                yield row | unreadable(error, Status.MISSING_SKELETON)
                continue
            row |= {
                "frames": len(body.joints),
                "frames_in_file": body.frames_in_file,
                "bodies": body.bodies,
                "frame_index": body.frame_index.tolist(),
                "joints": body.joints.tobytes(),
            }
            if len(body.joints):
                yield row | row_status(Status.OK)
            else:
                yield row | row_status(Status.MISSING_SKELETON, "empty", "no body in any frame")


def process(shard: ShardContext) -> pa.Table:
    """Return the table of one shard, one row per sample."""
    return pa.Table.from_pylist(list(_rows(shard)), schema=SKELETONS)


STAGE = Stage(
    name="skeletons",
    command="skeletons",
    process=process,
    columns=("sample_id", "skeleton", "skeleton_bytes", "start_frame", "end_frame", "known_missing", "problem"),
    config=lambda recipe, index: recipe.pipeline.skeletons.model_dump(mode="json"),
    upstream=lambda recipe: (),
    row_group=256,
    reads_joints=True,
    raw="skeleton",
)
