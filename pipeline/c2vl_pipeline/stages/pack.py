"""`c2vl-pipeline pack`: the stages' shards as memory-mapped arrays, the only thing the trainer reads.

    packed/
      index.parquet    sample_id, frames, subject, view, splits, usable vision and language rows; in row order
      joints.npy       (all frames, C, M, V) float32: valid frames of all samples, one after the other; planar, so
                       that the trainer reads batches from the mapped file as it lies
      offsets.npy      (N + 1,) int64: frames of sample n are joints[offsets[n] : offsets[n + 1]]
      vision.npy       (N, slots, D) float16 and vision_ok.npy (N, slots) bool; the same for language
      labels.npy       (N,) int16: opened by the supervised control and by evaluation, never by pre-training
      packed.json      dataset, layout, classes, fingerprint, and the engines that made the knowledge

A folder without `packed.json` is unfinished: it is written last. Joints can be packed in another layout
(`packed-<layout>/`), so that an encoder trained on one sensor meets another's data: see `mapped`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.events import Emit, Progress, silent
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.manifest import (
    StageManifest,
    commit_file,
    commit_text,
    fingerprint,
    read_shard,
    read_stage_manifest,
    sync_folder,
)
from c2vl_manifests.packed import FILE, PackedManifest, read_packed_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.stages.base import check_shards
from c2vl_pipeline.workspace import Workspace, load, shard_path, stored_joints

INDEX = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("skeleton_status", pa.string(), nullable=False),
        pa.field("vision_rows", pa.int16(), nullable=False),
        pa.field("language_rows", pa.int16(), nullable=False),
        pa.field("reason", pa.string()),  # first error of a sample that lacks something
        pa.field("subject", pa.int16()),
        pa.field("view", pa.int16()),
        pa.field("splits", pa.map_(pa.string(), pa.string()), nullable=False),
    ]
)
Joints = np.ndarray[Any, Any]


def _needed(index: Workspace) -> dict[str, StageManifest]:
    """Return the manifests of the stages that pack reads; raises StageError where one is missing or unfinished."""
    manifests = {}
    for name, stage in STAGES.items():
        manifest = read_stage_manifest(index.work / name)
        if manifest is None or not manifest.complete:
            have = (
                "do not exist"
                if manifest is None
                else f"are unfinished ({manifest.rows:,} of {manifest.expected_rows:,} rows)"
            )
            raise StageError(
                f"pack needs the {name} of {index.work}, which {have}; run `c2vl-pipeline {stage.command} --work {index.work}` first"
            )
        check_shards(stage, index, range(len(index.plan)), "pack")
        manifests[name] = manifest
    return manifests


def content_key(index: Workspace, stages: Mapping[str, StageManifest], target: Layout | None = None) -> str:
    """Fingerprint of the rows that the arrays are made of: skeletons, vectors and the index.

    Crops and captions are named in `packed.json` for provenance only.
    """
    digests = {name: stages[name].digest for name in ("skeletons", "embeddings")}
    names: dict[str, Any] = {"layout": index.manifest.extra["layout"], "classes": index.classes}
    if target is not None:
        names["mapped"] = {"to": target.as_dict(), "mapping": index.layout.mapping_to(target)}
    return fingerprint({"samples": index.manifest.digest, **digests, **names})


def folder_of(work: Path, layout: str | None = None) -> Path:
    """Where the joints of a layout are packed; None is the data's own."""
    return work / ("packed" if layout is None else f"packed-{Path(layout).stem}")


def mapped(joints: Joints, source: Layout, target: Layout) -> Joints:
    """Return joints in another layout (`Layout.mapping_to`), with that layout's origin. Shape: (T, M, V, C) -> (T, M, W, C).

    Joints are taken by name, some are means; absent bodies stay zero. The target's origin of the first body becomes
    zero in the first frame that shows it, as every reader does.
    """
    ways = source.mapping_to(target)
    out = np.stack([joints[:, :, list(way)].mean(axis=2) for way in ways], axis=2)
    there = np.asarray(joints.any(axis=(2, 3)))
    if there[:, 0].any():
        first = int(np.argmax(there[:, 0]))
        out = np.where(there[:, :, None, None], out - out[first, 0, target.anchor], 0)
    return np.asarray(out, joints.dtype)


def run(work: Path, recipe: Recipe, emit: Emit = silent, layout: str | None = None) -> PackedManifest:
    """Pack a work folder whose stages are complete; a folder already packed from the same rows is left alone.

    Args:
        work: where the stages wrote.
        recipe: for the slots of samples without vectors.
        emit: hears of progress.
        layout: pack the joints in this layout, by name or TOML file, into `packed-<layout>`; the data's own where
            not given.

    Raises:
        ConfigError: the joints cannot be mapped to that layout.
        StageError: a stage is missing or unfinished (which command to run).
        OSError: the disk is full.
    """
    index = load(work)
    stages = _needed(index)
    folder = folder_of(work, layout)
    target = None if layout is None else load_layout(layout, index.root)
    key = content_key(index, stages, target)
    if (packed := _packed_already(folder, key)) is not None:
        told = {"recipe": index.recipe, "overrides": tuple(index.overrides)}
        if (now := packed.model_copy(update=told)) != packed:
            commit_text(folder / FILE, now.model_dump_json(indent=1) + "\n")
            packed = now
        emit(Progress("pack", index.table.num_rows, index.table.num_rows))
        return packed
    folder.mkdir(parents=True, exist_ok=True)
    for orphan in folder.glob(".*.tmp"):
        orphan.unlink(missing_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    sync_folder(folder)
    rows, total = _pack_skeletons(index, folder, target)
    slots = (
        recipe.pipeline.frames
        if stages["embeddings"].rows == 0
        else stages["embeddings"].rows // index.table.num_rows
    )
    dims = _pack_vectors(index, folder, slots, rows, emit)
    if total == 0 and not any(row["vision_rows"] or row["language_rows"] for row in rows):
        reason = next((row["reason"] for row in rows if row["reason"]), "nobody was found in any frame")
        raise DataError(
            f"none of the {len(rows):,} samples of {index.work} has a skeleton, a crop or a caption; the first: {reason}. "
            "Check the paths, the layout and `c2vl-pipeline status`"
        )
    splits = index.table.column("splits").to_pylist()
    subjects, views = index.table.column("subject").to_pylist(), index.table.column("view").to_pylist()
    for row, pairs, subject, view in zip(rows, splits, subjects, views, strict=True):
        row.update(splits=pairs, subject=subject, view=view)
    table = pa.Table.from_pylist(rows, schema=INDEX)
    commit_file(
        folder / "index.parquet",
        lambda path: pq.write_table(table, path, compression="zstd", write_page_checksum=True),
    )
    _save(folder / "labels.npy", index.table.column("label").to_numpy().astype(np.int16))
    manifest = PackedManifest(
        dataset=index.dataset.name,
        title=index.dataset.title,
        fingerprint=key,
        layout=index.manifest.extra["layout"] if target is None else target.as_dict(),
        classes=index.classes,
        samples=len(rows),
        frames=total,
        bodies=_bodies(folder),
        slots=slots,
        vision_dim=dims["vision"],
        language_dim=dims["language"],
        engines={
            name: stages[name].inputs["engine"] | dict(stages[name].provenance)
            for name in ("crops", "captions", "embeddings")
        },
        second_body=stages["skeletons"].inputs["config"]["second_body"],
        recipe=index.recipe,
        overrides=tuple(index.overrides),
    )
    commit_text(folder / FILE, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def _packed_already(folder: Path, key: str) -> PackedManifest | None:
    try:
        found = read_packed_manifest(folder)
    except StageError:  # nothing there, or in an older format
        return None
    return found if found.fingerprint == key else None


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.save(handle, array)

    commit_file(path, write)


def _bodies(folder: Path) -> int:
    return int(np.load(folder / "joints.npy", mmap_mode="r").shape[2])


def _pack_skeletons(
    index: Workspace, folder: Path, target: Layout | None
) -> tuple[list[dict[str, Any]], int]:
    """Write joints.npy and offsets.npy; returns the beginning of each sample's index row, and the frames."""
    columns = ["sample_id", "status", "error", "frames", "bodies"]
    shards = [shard_path(index.work, "skeletons", n) for n in range(len(index.plan))]
    heads = [row for path in shards for row in read_shard(path, columns).to_pylist()]
    offsets = np.concatenate([[0], np.cumsum([h["frames"] for h in heads])]).astype(np.int64)
    total = int(offsets[-1])
    # one-person datasets are stored with one body; a second, empty one would double every computation
    bodies = max(1, min(index.bodies, max((h["bodies"] for h in heads), default=1)))
    shape = (total, index.layout.dims, bodies, (target or index.layout).joints)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(
                handle, {"descr": "<f4", "fortran_order": False, "shape": shape}
            )
            for path in shards:
                for row in read_shard(path, ["sample_id", "frames", "joints"]).to_pylist():
                    if row["frames"]:
                        handle.write(_planes(row, index.layout, bodies, target).tobytes())

    commit_file(folder / "joints.npy", write)
    _save(folder / "offsets.npy", offsets)
    rows = [
        {
            "sample_id": h["sample_id"],
            "frames": h["frames"],
            "skeleton_status": h["status"],
            "reason": h["error"],
        }
        for h in heads
    ]
    return rows, total


def _planes(row: dict[str, Any], layout: Layout, bodies: int, target: Layout | None) -> Joints:
    """Return the joints of a row of the skeletons as they are packed. Shape: (T, C, M, V)."""
    joints = stored_joints(row, layout)[:, :bodies]
    if not np.isfinite(joints).all():
        raise DataError(
            f"sample {row['sample_id']} holds NaN or infinite joints; expected metres; run the skeletons stage again"
        )
    if target is not None:
        joints = mapped(joints, layout, target)
    absent = bodies - joints.shape[1]
    return np.pad(joints, ((0, 0), (0, absent), (0, 0), (0, 0))).transpose(0, 3, 1, 2)


def _pack_vectors(
    index: Workspace, folder: Path, slots: int, rows: list[dict[str, Any]], emit: Emit
) -> dict[str, int]:
    """Write the vectors of both kinds of knowledge, and count each sample's usable rows. Returns the widths."""
    first = pq.read_schema(shard_path(index.work, "embeddings", 0))
    widths = {kind: int(first.field(kind).type.list_size) for kind in ("vision", "language")}
    arrays = {kind: np.zeros((len(rows), slots, width), np.float16) for kind, width in widths.items()}
    good = {kind: np.zeros((len(rows), slots), bool) for kind in widths}
    at = 0
    for number, (start, stop) in enumerate(index.plan):
        table = read_shard(shard_path(index.work, "embeddings", number)).combine_chunks()
        count = stop - start
        for kind, width in widths.items():
            flat = table.column(kind).chunk(0).flatten().to_numpy(zero_copy_only=False)
            arrays[kind][at : at + count] = flat.reshape(count, slots, width)
            statuses = np.array(table.column(f"{kind}_status").to_pylist()).reshape(count, slots)
            good[kind][at : at + count] = statuses == str(Status.OK)
        errors = table.column("error").to_pylist()
        for n in range(count):
            for kind in widths:
                rows[at + n][f"{kind}_rows"] = int(good[kind][at + n].sum())
            if rows[at + n]["reason"] is None and not (
                good["vision"][at + n].any() and good["language"][at + n].any()
            ):
                rows[at + n]["reason"] = next((e for e in errors[n * slots : (n + 1) * slots] if e), None)
        at += count
        emit(Progress("pack", at, len(rows)))
    for kind in widths:
        _save(folder / f"{kind}.npy", arrays[kind])
        _save(folder / f"{kind}_ok.npy", good[kind])
    return widths
