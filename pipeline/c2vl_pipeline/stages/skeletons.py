"""`c2vl-pipeline skeletons`: skeleton files to joints, (T, M, V, C) float32, valid frames only.

One reader a file format: NTU `.skeleton` (`ntu.py`), UTD-MHAD `.mat`, PKU-MMD text, plain arrays. Malformed files
raise DataError with file and line; the stage turns that into a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_manifests.schema import SKELETONS, Status
from c2vl_pipeline.readers import msr
from c2vl_pipeline.readers.arrays import read_array
from c2vl_pipeline.readers.assembly import Assembled, _anchored
from c2vl_pipeline.readers.ntu import assemble_ntu, read_ntu
from c2vl_pipeline.readers.pku import read_pku
from c2vl_pipeline.readers.utd import read_utd
from c2vl_pipeline.stages.base import ShardContext, Stage, row_status, unreadable
from c2vl_pipeline.workspace import Index


def read_sample(index: Index, sample: dict[str, Any], config: SkeletonsConfig) -> Assembled:
    """Read and assemble the skeleton of one sample of the index.

    Raises:
        DataError: the file is malformed.
        OSError: it cannot be opened.
    """
    path = index.root / sample["skeleton"]
    if index.dataset.reader in {"ntu", "synthetic"}:
        return assemble_ntu(read_ntu(path, pixels=False), config)
    if index.dataset.reader == "utd":
        return read_utd(path)
    if index.dataset.reader == "msr":
        clip = msr.read_clip(path, sample["start_frame"], sample["end_frame"])
        return _anchored(clip[:, None], path, anchor=index.layout.anchor)
    if index.dataset.reader == "pku":
        return read_pku(path, sample["start_frame"], sample["end_frame"], config)
    return read_array(path, index.layout, index.bodies)


def _rows(shard: ShardContext) -> Iterator[dict[str, Any]]:
    config = shard.recipe.pipeline.skeletons
    nothing = {"frames": 0, "frames_in_file": 0, "bodies": 0, "frame_index": [], "joints": b""}
    for sample in shard.samples:
        row: dict[str, Any] = {"sample_id": sample["sample_id"], **nothing}
        if sample["problem"]:
            yield row | row_status(Status.FAILED, "problem", sample["problem"])
        elif sample["skeleton"] is None or sample["known_missing"]:
            why = (
                "on the dataset's list of missing skeletons"
                if sample["known_missing"]
                else "no skeleton file"
            )
            yield row | row_status(Status.MISSING_SKELETON, "missing", why)
        else:
            try:
                body = read_sample(shard.index, sample, config)
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
            seen = (
                row_status(Status.OK)
                if len(body.joints)
                else row_status(Status.MISSING_SKELETON, "empty", "no body in any frame")
            )
            yield row | seen


def process(shard: ShardContext) -> pa.Table:
    """Make one shard: a row a sample."""
    return pa.Table.from_pylist(list(_rows(shard)), schema=SKELETONS)


STAGE = Stage(
    name="skeletons",
    command="skeletons",
    process=process,
    columns=(
        "sample_id",
        "skeleton",
        "skeleton_bytes",
        "start_frame",
        "end_frame",
        "known_missing",
        "problem",
    ),
    config=lambda recipe: recipe.pipeline.skeletons.model_dump(mode="json"),
    upstream=lambda recipe: (),
    row_group=256,
    reads_joints=True,
    raw="skeleton",
)
