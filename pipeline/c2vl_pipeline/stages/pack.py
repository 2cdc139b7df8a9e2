"""`c2vl-pipeline pack`: write the stages' shards as memory-mapped arrays, the only thing the trainer reads.

    packed/
      index.parquet    sample_id, frames, subject, view, splits, usable vision and language rows; in row order
      joints.npy       (all frames, C, M, V) float32: valid frames of all samples, one after the other; planar, so
                       that the trainer reads batches from the mapped file without a copy
      offsets.npy      (N + 1,) int64: frames of sample n are joints[offsets[n] : offsets[n + 1]]
      vision.npy       (N, slots, D) float16 and vision_ok.npy (N, slots) bool; the same for language
      labels.npy       (N,) int16: opened by the supervised control and by evaluation, never by pre-training
      packed.json      dataset, layout, classes, fingerprint, and the engines that made the knowledge

`packed.json` is written last: a folder without it is unfinished. Joints can be packed in another layout
(`packed-<layout>/`), so that an encoder trained on one sensor can be tested on another's data: see `mapped`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.events import Emit, Progress, silent
from c2vl_manifests.joints import missing_joints
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
from c2vl_manifests.pages import portable, shorten_paths
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import PACKED_INDEX, Status
from c2vl_pipeline.readers.base import to_origin
from c2vl_pipeline.stages import STAGES, stages_of
from c2vl_pipeline.stages.base import check_shards, untouched
from c2vl_pipeline.stages.speed import SPEED
from c2vl_pipeline.workspace import Workspace, load, shard_path, stored_joints

Joints = np.ndarray[Any, Any]
Row = dict[str, Any]


def complete_stages(
    index: Workspace, reader: str = "pack", names: Collection[str] | None = None
) -> dict[str, StageManifest]:
    """Return the manifests of stages, all unless `names` are given, for the command `reader`.

    Raises:
        StageError: one is missing or unfinished.
    """
    manifests = {}
    for name, stage in stages_of(index).items():
        if names is not None and name not in names:
            continue
        manifest = read_stage_manifest(index.work / name)
        if manifest is None or not manifest.complete:
            state = "do not exist"
            if manifest is not None:
                state = f"are unfinished ({manifest.rows:,} of {manifest.expected_rows:,} rows)"
            raise StageError(
                f"{reader} needs the {name} of {index.work}, which {state}; run `c2vl-pipeline {stage.command} "
                f"--work {index.work}` first"
            )
        if untouched(index, name) is None:
            check_shards(stage, index, range(len(index.shard_ranges)), reader)
        manifests[name] = manifest
    return manifests


def content_key(index: Workspace, stages: Mapping[str, StageManifest], target: Layout | None = None) -> str:
    """Return a fingerprint of the rows that the arrays are made from: skeletons, vectors and the index.

    Crops and captions are named in `packed.json` for provenance only.
    """
    digests = {name: stages[name].digest for name in ("skeletons", "embeddings")}
    names: dict[str, Any] = {"layout": index.manifest.extra["layout"], "classes": index.classes}
    if target is not None:
        names["mapped"] = {"to": target.as_dict(), "mapping": index.layout.mapping_to(target)}
    return fingerprint({"samples": index.manifest.digest, **digests, **names})


def folder_of(work: Path, layout: str | None = None) -> Path:
    """Return the folder of the joints in a layout; None is the data's own layout."""
    return work / ("packed" if layout is None else f"packed-{Path(layout).stem}")


def mapped(joints: Joints, source: Layout, target: Layout) -> Joints:
    """Return joints in another layout (`Layout.mapping_to`), with that layout's origin. Shape: (T, M, V, C) -> (T, M, W, C).

    Joints are taken by name, some are means; one that is made of a missing joint is missing. Absent bodies stay zero. The
    target's origin of the first body becomes zero in the first frame that has it, as every reader does.
    """
    ways = source.mapping_to(target)
    out = np.stack([joints[:, :, list(way)].mean(axis=2) for way in ways], axis=2)
    seen = np.asarray(joints.any(axis=(2, 3)), np.bool_)[..., None] & ~missing_joints(joints, source)
    seen = np.stack([seen[:, :, list(way)].all(axis=2) for way in ways], axis=2)
    return np.asarray(to_origin(out, seen, target.anchor), joints.dtype)


def run(work: Path, recipe: Recipe, emit: Emit = silent, layout: str | None = None) -> PackedManifest:
    """Pack a work folder whose stages are complete; a folder already packed from the same rows is left as it is.

    Args:
        work: folder of the index and all stages.
        recipe: resolved.
        emit: receives progress.
        layout: name or TOML file of another layout of the joints, packed into `packed-<layout>`; None packs the
            data's own.

    Raises:
        ConfigError: the joints cannot be mapped to that layout.
        StageError: a stage is missing or unfinished (which command to run).
        OSError: the disk is full.
    """
    index = load(work)
    stages = complete_stages(index)
    folder = folder_of(work, layout)
    target = None if layout is None else load_layout(layout, index.root)
    key = content_key(index, stages, target)
    if (packed := _read_packed(folder, key)) is not None:
        current = packed.model_copy(update=made_with(index, packed.engines))
        text = current.model_dump_json(indent=1) + "\n"
        if (folder / FILE).read_text("utf-8") != text:
            commit_text(folder / FILE, text)
        emit(Progress("pack", index.table.num_rows, index.table.num_rows))
        return current
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob(".*.tmp"), folder / FILE]:
        leftover.unlink(missing_ok=True)
    sync_folder(folder)
    rows, shape, gaps = _pack_skeletons(index, folder, target)
    slots = stages["embeddings"].rows // len(rows) or recipe.pipeline.frames
    widths = _pack_vectors(index, folder, slots, rows, emit)
    _pack_index(index, folder, rows)
    manifest = PackedManifest(
        dataset=index.dataset.name,
        title=index.dataset.title,
        fingerprint=key,
        layout=index.manifest.extra["layout"] if target is None else target.as_dict(),
        classes=index.classes,
        samples=len(rows),
        frames=shape[0],
        bodies=shape[2],
        slots=slots,
        vision_dim=widths["vision"],
        language_dim=widths["language"],
        second_body=stages["skeletons"].inputs["config"].get("second_body", "zeros"),
        gaps=gaps,
        **made_with(index, engines_of(index, stages)),
    )
    commit_text(folder / FILE, manifest.model_dump_json(indent=1) + "\n")
    return manifest


def engines_of(index: Workspace, stages: Mapping[str, StageManifest]) -> dict[str, dict[str, Any]]:
    """Return by which engine, of these stages, the rows of each that has one were made, as its manifest says."""
    return {
        name: stages[name].inputs["engine"] | {k: v for k, v in stages[name].provenance.items() if k != SPEED}
        for name, stage in stages_of(index).items()
        if stage.engine is not None and name in stages
    }


def made_with(index: Workspace, engines: Mapping[str, Any]) -> dict[str, Any]:
    """Return engines and recipe without paths and hosts, which stay in the work folder: packed data are given away."""
    recipe = index.recipe
    return {
        "engines": portable(engines),
        "recipe": Path(recipe).name if recipe.endswith(".toml") else recipe,
        "overrides": tuple(one for one in index.overrides if portable(one) == one),
    }


def _read_packed(folder: Path, key: str) -> PackedManifest | None:
    """Return the manifest of a folder that is packed from the rows of this key, else None."""
    try:
        packed = read_packed_manifest(folder)
    except StageError:
        return None
    return packed if packed.fingerprint == key else None


def _save(path: Path, array: np.ndarray[Any, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.save(handle, array)

    commit_file(path, write)


def _hash(*parts: Joints) -> str:
    sink = hashlib.blake2b(digest_size=8)
    for part in parts:
        sink.update(np.ascontiguousarray(part).data)
    return sink.hexdigest()


def _pack_index(index: Workspace, folder: Path, rows: list[Row]) -> None:
    """Write index.parquet and labels.npy; raise DataError if no sample has anything to train on."""
    if not any(row["frames"] or row["vision_rows"] or row["language_rows"] for row in rows):
        reason = next((row["reason"] for row in rows if row["reason"]), "nobody was found in any frame")
        raise DataError(
            f"none of the {len(rows):,} samples of {index.work} has a skeleton, a crop or a caption; the "
            f"first: {reason}. Check the paths, the layout and `c2vl-pipeline status`"
        )
    for row in rows:
        row["reason"] = row["reason"] and shorten_paths(row["reason"])
    columns = index.table.select(["splits", "subject", "view"]).to_pylist()
    table = pa.Table.from_pylist([row | more for row, more in zip(rows, columns, strict=True)], schema=PACKED_INDEX)
    commit_file(
        folder / "index.parquet", lambda path: pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    )
    _save(folder / "labels.npy", index.table.column("label").to_numpy().astype(np.int16))


def _pack_skeletons(
    index: Workspace, folder: Path, target: Layout | None
) -> tuple[list[Row], tuple[int, int, int, int], bool]:
    """Write joints.npy and offsets.npy; return the first columns of the index rows, the shape of the joints, and gaps."""
    columns = ["sample_id", "status", "error", "frames", "bodies"]
    shards = [shard_path(index.work, "skeletons", n) for n in range(len(index.shard_ranges))]
    heads = [row for path in shards for row in read_shard(path, columns).to_pylist()]
    offsets = np.concatenate([[0], np.cumsum([h["frames"] for h in heads])]).astype(np.int64)
    total = int(offsets[-1])
    # one-person datasets are stored with one body; a second, empty one would double every computation
    bodies = max(1, min(index.bodies, max((h["bodies"] for h in heads), default=1)))
    layout = target or index.layout
    shape = (total, layout.dims, bodies, layout.joints)
    gaps = False

    hashes = [_hash()] * len(heads)

    def write(temporary: Path) -> None:
        nonlocal gaps
        at = 0
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for path in shards:
                for row in read_shard(path, ["sample_id", "frames", "joints"]).to_pylist():
                    if row["frames"]:
                        planes = np.ascontiguousarray(_planes(row, index.layout, bodies, target))
                        gaps = gaps or bool(missing_joints(planes.transpose(0, 2, 3, 1), layout).any())
                        hashes[at] = _hash(planes)
                        handle.write(planes.data)
                    at += 1

    commit_file(folder / "joints.npy", write)
    _save(folder / "offsets.npy", offsets)
    names = {"sample_id": "sample_id", "frames": "frames", "skeleton_status": "status", "reason": "error"}
    rows = [{name: head[column] for name, column in names.items()} for head in heads]
    return [row | {"joints_hash": one} for row, one in zip(rows, hashes, strict=True)], shape, gaps


def _planes(row: Row, layout: Layout, bodies: int, target: Layout | None) -> Joints:
    """Return the joints of a row of the skeletons as they are packed. Shape: (T, C, M, V)."""
    joints = stored_joints(row, layout)[:, :bodies]
    if not np.isfinite(joints).all():
        raise DataError(
            f"sample {row['sample_id']} holds NaN or infinite joints; expected {layout.unit}; run the skeletons stage again"
        )
    if target is not None:
        joints = mapped(joints, layout, target)
    missing = bodies - joints.shape[1]
    return np.pad(joints, ((0, 0), (0, missing), (0, 0), (0, 0))).transpose(0, 3, 1, 2)


def _errors(index: Workspace, number: int) -> list[str | None]:
    """Return why a vector of each row of a shard is absent: the error of the embedding, the caption or the crop."""
    columns = STAGES["embeddings"].status_columns
    vectors = read_shard(shard_path(index.work, "embeddings", number), [*columns, "error"])
    errors: list[str | None] = vectors.column("error").to_pylist()
    if all(set(vectors.column(name).to_pylist()) == {str(Status.OK)} for name in columns):
        return errors
    for name in ("captions", "crops"):
        earlier = read_shard(shard_path(index.work, name, number), ["error"]).column("error").to_pylist()
        errors = [own or above for own, above in zip(errors, earlier, strict=True)]
    return errors


def _pack_vectors(index: Workspace, folder: Path, slots: int, rows: list[Row], emit: Emit) -> dict[str, int]:
    """Write the vectors of both kinds of knowledge and set each row's counts of usable ones; return the widths."""
    first = read_shard(shard_path(index.work, "embeddings", 0), ["vision", "language"]).schema
    widths = {kind: int(first.field(kind).type.list_size) for kind in ("vision", "language")}
    for place, (kind, width) in enumerate(widths.items()):

        def tell(done: int, before: int = place * len(rows)) -> None:
            emit(Progress("pack", (before + done) // len(widths), len(rows)))

        _pack_kind(index, folder, kind, (len(rows), slots, width), rows, tell)
    for number, (start, stop) in enumerate(index.shard_ranges):
        errors: list[str | None] = []
        for at, row in enumerate(rows[start:stop]):
            if row["reason"] is None and not all(row[f"{kind}_rows"] for kind in widths):
                errors = errors or _errors(index, number)
                row["reason"] = next(filter(None, errors[at * slots : (at + 1) * slots]), None)
    return widths


def _pack_kind(
    index: Workspace, folder: Path, kind: str, shape: tuple[int, int, int], rows: list[Row], done: Callable[[int], None]
) -> None:
    """Write vectors of one kind, (N, slots, D), shard by shard, and set each row's count and hash of the usable ones."""
    good = np.zeros(shape[:2], bool)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, {"descr": "<f2", "fortran_order": False, "shape": shape})
            for number, (start, stop) in enumerate(index.shard_ranges):
                table = read_shard(
                    shard_path(index.work, "embeddings", number), [kind, f"{kind}_status"]
                ).combine_chunks()
                flat = table.column(kind).chunk(0).flatten().to_numpy(zero_copy_only=False)
                vectors = np.ascontiguousarray(flat, "<f2").reshape(-1, *shape[1:])
                statuses = np.array(table.column(f"{kind}_status").to_pylist()).reshape(-1, shape[1])
                good[start:stop] = statuses == str(Status.OK)
                for row, mine, usable in zip(rows[start:stop], vectors, good[start:stop], strict=True):
                    row |= {f"{kind}_rows": int(usable.sum()), f"{kind}_hash": _hash(mine, usable)}
                handle.write(vectors.data)
                done(stop)

    commit_file(folder / f"{kind}.npy", write)
    _save(folder / f"{kind}_ok.npy", good)
