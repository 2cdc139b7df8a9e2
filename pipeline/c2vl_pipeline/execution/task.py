"""Make and commit one shard: what runs in a worker.

A task names a shard; rows never travel. Nothing is made twice:

- A stale shard keeps the rows of every sample whose own key (stage, index row, its rows upstream) is unchanged:
  one repaired video costs one sample in each stage, not its shard.
- After a worker has died on a shard, tasks of smaller spans leave *pieces* (hidden Parquet files next to the shard)
  until the sample that kills workers is found; the shard is then put together from its pieces.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.file_hashes import content_sha256
from c2vl_manifests.manifest import (
    ShardManifest,
    commit_file,
    commit_table,
    digest,
    file_sha256,
    fingerprint,
    finished_shard,
    read_shard,
    read_shard_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.stages.base import ShardContext, Stage, blank_rows, row_status
from c2vl_pipeline.workspace import Workspace, load, shard_path


@dataclass(frozen=True)
class ShardTask:
    """One shard, or a part of one, to be made by a worker."""

    module: str
    work: str
    index: str
    """Key of the index that the shards were cut from."""
    recipe: str
    spec: str | None
    number: int
    key: str
    facts: Mapping[str, Any]
    """What the key is the hash of: stored in the shard's manifest, for `status --why` and for later stages."""
    span: tuple[int, int] | None = None
    """Samples [start, stop) of the shard to make a piece of; None makes and commits the shard."""
    quarantined: Mapping[str, tuple[Status, str, str]] = field(default_factory=dict)
    """Sample id -> status, error class and text of samples that no worker survives."""
    redo: frozenset[str] = frozenset()
    """Samples of a committed shard to make again; its other rows stay."""
    killable: bool = False


@lru_cache(maxsize=2)
def _index(work: str, key: str) -> Workspace:
    index = load(Path(work))
    if index.manifest.key != key:
        raise StageError(
            f"the index of {work} changed while the stage ran (or this machine sees another folder of that "
            f"name); run the stage again"
        )
    return index


def run_shard(task: ShardTask) -> ShardManifest | None:
    """Make and commit the shard of a task and return its manifest, or write a piece of it and return None.

    A shard that is already committed under the task's key is left as it is: a result that was lost with its worker
    costs nothing.

    Raises:
        C2VLError: the engine, or a file of an earlier stage, is not as expected.
        OSError: the disk is full.
    """
    stage: Stage = importlib.import_module(task.module).STAGE
    path = shard_path(Path(task.work), stage.name, task.number)
    if not task.redo and task.span is None and (done := finished_shard(path, task.key)) is not None:
        remove_leftovers(path)
        return done
    started = time.monotonic()
    recipe = Recipe.model_validate_json(task.recipe)
    shard = ShardContext(
        index=_index(task.work, task.index),
        recipe=recipe,
        number=task.number,
        spec=EngineSpec.model_validate_json(task.spec) if task.spec else None,
        folder=path.parent,
        key=task.key,
        killable=task.killable,
        quarantined=frozenset(task.quarantined),
    )
    per_sample = stage.rows_per_sample(recipe)
    keys = _sample_keys(stage, shard, task)
    before = read_shard_manifest(path)
    table, reused, seconds = _rows(stage, shard, task, keys, per_sample)
    if task.span is not None:
        _write_piece(path, task, table)
        return None
    expected = [s["sample_id"] for s in shard.samples for _ in range(per_sample)]
    if table.column("sample_id").to_pylist() != expected:
        raise StageError(
            f"{stage.name} shard {task.number} made {table.num_rows} rows for {len(expected)} expected; this "
            f"is a bug, please report it"
        )
    provenance = {**(engines.provenance(shard.spec) if shard.spec else {}), **shard.provenance}
    manifest = commit_table(
        path,
        table,
        key=task.key,
        row_group=stage.row_group,
        seconds=time.monotonic() - started + seconds,
        byte_stream_split=stage.byte_stream_split,
        extra={
            **task.facts,
            "provenance": provenance,
            "files": _raw_files(stage, shard, reused, before.extra.get("files", {}) if before else {}),
            "parts": {
                sample: [key, digest(table.slice(n * per_sample, per_sample))[:_SHORT]]
                for n, (sample, key) in enumerate(keys.items())
            },
        },
    )
    remove_leftovers(path)
    return manifest


_SHORT = 16
"""Hex digits of a sample's key and digest: they are compared within one shard only."""


def _sample_keys(stage: Stage, shard: ShardContext, task: ShardTask) -> dict[str, str]:
    """Return a hash of what the rows of each sample are made from: the stage, its index row, its rows upstream."""
    earlier = []
    for name in task.facts["upstream"]:
        manifest = read_shard_manifest(shard_path(shard.index.work, name, shard.number))
        earlier.append(manifest.extra.get("parts", {}) if manifest else {})
    keys = {}
    for row in shard.index.shard(shard.number, stage.columns):
        upstream = [parts.get(row["sample_id"], [None, None])[1] for parts in earlier]
        keys[row["sample_id"]] = fingerprint([task.facts["stage"], row, upstream])[:_SHORT]
    return keys


def _rows(
    stage: Stage, shard: ShardContext, task: ShardTask, keys: Mapping[str, str], per_sample: int
) -> tuple[pa.Table, frozenset[str], float]:
    """Return the rows of a task, the samples whose committed rows were reused, and the seconds spent earlier."""
    path = shard_path(shard.index.work, stage.name, shard.number)
    parts, reused, seconds = _reusable(path, task, keys)
    known = {sample for part in parts for sample in part.column("sample_id").unique().to_pylist()}
    samples = [s["sample_id"] for s in shard.samples]
    wanted = samples if task.span is None else samples[slice(*task.span)]
    missing = [s for s in wanted if s not in known]
    healthy = [s for s in missing if s not in task.quarantined]
    lost = [s for s in missing if s in task.quarantined]
    if not healthy and parts and not lost:
        fresh = parts[0].slice(0, 0)  # nothing to make: do not load an engine
    else:
        whole = len(healthy) == len(samples)
        fresh = stage.process(shard if whole else replace(shard, only=frozenset(healthy)))
    if fresh.num_rows != len(healthy) * per_sample:
        raise StageError(
            f"{stage.name} shard {shard.number} made {fresh.num_rows} rows for {len(healthy) * per_sample} "
            f"expected; this is a bug, please report it"
        )
    if task.redo:
        fresh = _count_attempts(path, fresh, task.redo)
    slots = per_sample if stage.per_frame else None
    statuses = {s: row_status(*task.quarantined[s]) for s in lost}
    blank = [row for s in lost for row in blank_rows(fresh.schema, s, slots, statuses[s])]
    if blank:
        parts.append(pa.Table.from_pylist(blank, schema=fresh.schema))
    if task.span is not None:
        return pa.concat_tables([fresh, *parts[-1:]] if blank else [fresh]), reused, seconds
    return _in_order([fresh, *parts], samples), reused, seconds


def _in_order(tables: Sequence[pa.Table], samples: Sequence[str]) -> pa.Table:
    """Return the rows of several tables in the order of the samples."""
    if len(tables) == 1:
        return tables[0]
    whole = pa.concat_tables([t.replace_schema_metadata(None) for t in tables])
    place = pc.index_in(whole.column("sample_id"), pa.array(samples, pa.string()))
    order = pc.sort_indices(
        pa.table({"place": place, "row": pa.array(range(whole.num_rows))}),
        sort_keys=[("place", "ascending"), ("row", "ascending")],
    )
    return whole.take(order)


def _count_attempts(path: Path, fresh: pa.Table, redo: frozenset[str]) -> pa.Table:
    """Add the earlier attempts of rows that were made again, row by row."""
    try:
        names = [name for name in ("sample_id", "slot") if name in fresh.column_names]
        old = read_shard(path, [*names, "attempts"])
    except DataError:
        return fresh

    def rows(table: pa.Table) -> list[tuple[Any, ...]]:
        return list(zip(*(table.column(name).to_pylist() for name in names), strict=True))

    before = dict(zip(rows(old), old.column("attempts").to_pylist(), strict=True))
    attempts = [
        now + (before.get(row, 0) if row[0] in redo else 0)
        for row, now in zip(rows(fresh), fresh.column("attempts").to_pylist(), strict=True)
    ]
    at = fresh.schema.get_field_index("attempts")
    return fresh.set_column(at, fresh.schema.field(at), pa.array(attempts, fresh.schema.field(at).type))


def _raw_files(stage: Stage, shard: ShardContext, reused: frozenset[str], before: Mapping[str, str]) -> dict[str, str]:
    """Return the hashes of the raw files a shard was made from: relative path -> sha256.

    Files of rows made now are hashed now (they were read a moment ago); those of reused rows keep the hash of
    the bytes that were read then, so that a later change is noticed.
    """
    if stage.raw is None:
        return {}
    hashes = {}
    columns = [name for name in ("video", "skeleton") if name in stage.columns]
    files = [(s[name], s["sample_id"]) for name in columns for s in shard.samples if s[name] is not None]
    fresh = {name for name, sample in files if sample not in reused}
    for relative in dict.fromkeys(name for name, _ in files):
        path = shard.index.root / relative
        if relative not in fresh and relative in before:
            hashes[relative] = before[relative]
        else:
            with suppress(OSError):  # its rows give the reason
                if (sha256 := content_sha256(path)) is not None:
                    hashes[relative] = sha256
    return hashes


# ------------------------------------------------------------------------------------------------ pieces


def _reusable(path: Path, task: ShardTask, keys: Mapping[str, str]) -> tuple[list[pa.Table], frozenset[str], float]:
    """Return tables of rows to reuse, the samples of the committed ones, and the seconds that these took."""
    tables: list[pa.Table] = []
    reused, seconds = frozenset[str](), 0.0
    manifest = read_shard_manifest(path)
    if manifest is not None:
        parts = manifest.extra.get("parts", {})
        same = [s for s, key in keys.items() if parts.get(s, [None])[0] == key and s not in task.redo]
        # a kill between data and manifest leaves rows that this manifest does not describe
        if same and path.is_file() and file_sha256(path) == manifest.sha256:
            with suppress(DataError):
                old = read_shard(path)
                tables.append(old.filter(pc.is_in(old.column("sample_id"), pa.array(same, pa.string()))))
                reused, seconds = frozenset(same), manifest.seconds
    seen = {s for table in tables for s in table.column("sample_id").unique().to_pylist()}
    for piece in pieces(path, task.key):
        try:
            table = read_shard(piece)
        except DataError:
            piece.unlink(missing_ok=True)  # half written when its worker died, or damaged since
            continue
        names = table.column("sample_id").unique().to_pylist()
        if seen.isdisjoint(names):
            tables.append(table.replace_schema_metadata(None))
            seen.update(names)
    return tables, reused, seconds


def pieces(path: Path, key: str | None = None) -> list[Path]:
    """Return the paths of the pieces of a shard, of one key or of any."""
    return _beside(path, key[:12] if key else "", ".piece")


def _beside(path: Path, key: str, *endings: str) -> list[Path]:
    """Return hidden files of a shard in its folder, which a glob takes three times as long to look through."""
    start = f".{path.stem}-{key}"
    return sorted(path.with_name(n) for n in os.listdir(path.parent) if n.startswith(start) and n.endswith(endings))


def _write_piece(path: Path, task: ShardTask, table: pa.Table) -> None:
    assert task.span is not None
    if table.num_rows == 0:
        return
    start, stop = task.span
    piece = path.with_name(f".{path.stem}-{task.key[:12]}-{start:05d}-{stop:05d}.piece")
    commit_file(piece, lambda temporary: pq.write_table(table, temporary, write_page_checksum=True))


def remove_leftovers(path: Path) -> None:
    """Remove the pieces, journals and marks of a shard that is committed."""
    for leftover in [*_beside(path, "", ".piece", ".journal"), path.with_name(f".{path.stem}.done")]:
        leftover.unlink(missing_ok=True)
