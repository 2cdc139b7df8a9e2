"""`c2vl-pipeline verify`, `repair`, `retry-failed`: is what was committed still what was written, and what to do if not.

`status` reads manifests and footers and answers in a second; `verify` reads every byte.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import DataError
from c2vl_manifests.events import Emit, Progress, silent
from c2vl_manifests.manifest import (
    ShardManifest,
    digest,
    file_sha256,
    footer_problem,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.schema import Status
from c2vl_pipeline.index import Index, load
from c2vl_pipeline.stage import COMMANDS, Stage, shard_path

RETRIED = (Status.FAILED, Status.DECODE_ERROR)
"""Statuses that another attempt may change."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed: `stage` is a stage folder, `index` or `raw`."""

    stage: str
    shard: int | None
    path: str
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def stages() -> list[Stage]:
    """Return the four sharded stages in the order of the road."""
    return [importlib.import_module(f"c2vl_pipeline.{command}").STAGE for command in COMMANDS.values()]


def verify(work: Path, *, raw: bool = False, emit: Emit = silent) -> list[Damage]:
    """Read everything that is committed in a work folder and compare it with its manifests.

    Of each shard: the bytes' sha256, all page checksums, the digest and status counts of the rows, and that the
    rows are those of the index, each once and in order. Orphans (data without a manifest) are named too.

    Args:
        work: the work folder.
        raw: also hash the raw files again and compare with what the stages read.
        emit: receives progress.

    Returns:
        What is damaged; empty if nothing is.

    Raises:
        StageError: there is no index.
    """
    index = load(work)
    found = _index_damage(index)
    jobs: list[tuple[str, Callable[[], list[Damage]]]] = []
    for stage in stages():
        manifest = read_stage_manifest(work / stage.name)
        if manifest is None:
            continue
        frames = manifest.inputs.get("frames")
        for number in range(len(index.plan)):
            path = shard_path(work, stage.name, number)
            if path.is_file() or path.with_suffix(".json").is_file():
                jobs.append((str(path), _bind(_shard_damage, index, stage.name, number, frames or 1)))
                if raw and stage.raw is not None:
                    jobs.append((str(path), _bind(_raw_damage, index, stage.name, number)))
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for damages in pool.map(lambda job: job[1](), jobs):
            found += damages
            done += 1
            emit(Progress("verify", done, len(jobs), "shards", info={"damaged": len(found)}))
    return found


def _bind(function: Callable[..., list[Damage]], *args: Any) -> Callable[[], list[Damage]]:
    return lambda: function(*args)


def _index_damage(index: Index) -> list[Damage]:
    path = index.work / "samples.parquet"
    if file_sha256(path) == index.manifest.sha256:
        return []
    return [
        Damage("index", None, str(path), "differs from its manifest; run `c2vl-pipeline index` again first")
    ]


def _shard_damage(index: Index, stage: str, number: int, per_sample: int) -> list[Damage]:
    path = shard_path(index.work, stage, number)
    problem = _shard_problem(index, path, number, per_sample)
    return [Damage(stage, number, str(path), problem)] if problem else []


def _shard_problem(index: Index, path: Path, number: int, per_sample: int) -> str | None:
    manifest = read_shard_manifest(path)
    if manifest is None:
        return "has no manifest that can be read: it was never committed, or the manifest is damaged"
    if problem := _byte_problem(path, manifest):
        return problem
    try:
        table = read_shard(path)
    except DataError as error:
        return str(error)
    return _row_problem(index, table, manifest.digest, manifest.statuses, number, per_sample)


def _byte_problem(path: Path, manifest: ShardManifest) -> str | None:
    if not path.is_file():
        return "is absent although its manifest is there"
    if path.stat().st_size != manifest.bytes:
        return f"has {path.stat().st_size:,} bytes, its manifest says {manifest.bytes:,}"
    if file_sha256(path) != manifest.sha256:
        return "holds other bytes than were committed (sha256)"
    if problem := footer_problem(path, manifest.key, manifest.rows):
        return f"its footer does not fit: {problem}"
    return None


def _row_problem(
    index: Index, table: pa.Table, wanted: str, statuses: dict[str, int], number: int, per_sample: int
) -> str | None:
    if digest(table) != wanted:
        return "its rows are not those of its manifest (digest)"
    if dict(Counter(table.column("status").to_pylist())) != statuses:
        return "its statuses are not counted right in its manifest"
    start, stop = index.plan[number]
    samples = index.table.column("sample_id").slice(start, stop - start).to_pylist()
    expected = [s for s in samples for _ in range(per_sample)]
    if table.column("sample_id").to_pylist() != expected:
        return "its rows are not those of the index (run its stage again)"
    if "slot" in table.column_names and table.column("slot").to_pylist() != [
        *range(per_sample),
    ] * len(samples):
        return "its slots do not count up within each sample"
    return None


def _raw_damage(index: Index, stage: str, number: int) -> list[Damage]:
    manifest = read_shard_manifest(shard_path(index.work, stage, number))
    found = []
    for relative, sha256 in (manifest.extra.get("files", {}) if manifest else {}).items():
        path = index.root / relative
        if not path.is_file():
            found.append(Damage("raw", number, str(path), f"is gone since {stage} were made from it"))
        elif file_sha256(path) != sha256:
            found.append(Damage("raw", number, str(path), f"changed since {stage} were made from it"))
    return found


# ----------------------------------------------------------------------------------------------- repair


def condemn(work: Path, damages: Sequence[Damage]) -> dict[str, set[int]]:
    """Take the manifests of damaged shards away, so that their stages make them again; returns their numbers.

    A raw file that changed condemns the shards that were made from it.
    """
    condemned: dict[str, set[int]] = {}
    for damage in damages:
        if damage.shard is None:
            continue
        for stage in stages():
            if damage.stage == stage.name or (damage.stage == "raw" and stage.raw is not None):
                condemned.setdefault(stage.name, set()).add(damage.shard)
    for name, numbers in condemned.items():
        for number in numbers:
            path = shard_path(work, name, number)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    return condemned


def to_repair(work: Path, condemned: dict[str, set[int]]) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield (command, shards) of the stages to run again: the condemned shards, and below them whatever became stale."""
    numbers: set[int] = set()
    for name, command in COMMANDS.items():
        numbers |= condemned.get(name, set())
        if numbers and read_stage_manifest(work / name) is not None:
            yield command, frozenset(numbers)


# ------------------------------------------------------------------------------------------------ retry


def failed_samples(work: Path, stage: str, statuses: Sequence[str] = RETRIED) -> dict[int, frozenset[str]]:
    """Return the samples of a stage with a row in one of the statuses: shard number -> ids.

    Reads only the shards whose manifests count such rows. Of the vectors, either kind of knowledge counts.
    """
    index = load(work)
    found: dict[int, frozenset[str]] = {}
    for number in range(len(index.plan)):
        path = shard_path(work, stage, number)
        manifest = read_shard_manifest(path)
        if manifest is None:
            continue
        columns = ["status"] if stage != "embeddings" else ["status", "vision_status", "language_status"]
        if columns == ["status"] and not any(manifest.statuses.get(str(s)) for s in statuses):
            continue
        table = read_shard(path, ["sample_id", *columns])
        wanted = pa.array([str(s) for s in statuses])
        mask = pc.is_in(table.column(columns[0]), wanted)
        for column in columns[1:]:
            mask = pc.or_(mask, pc.is_in(table.column(column), wanted))
        ids = frozenset(table.filter(mask).column("sample_id").to_pylist())
        if ids:
            found[number] = ids
    return found


def retry(work: Path, run: Callable[[str, dict[int, frozenset[str]]], object]) -> dict[str, int]:
    """Make failed samples again, stage by stage; `run(command, redo)` runs a stage.

    A row that failed upstream and is well now makes its shard stale below, so each following stage is brought up
    to date on the way. Returns the samples tried again, by stage.
    """
    tried: dict[str, int] = {}
    touched = False
    for name, command in COMMANDS.items():
        if read_stage_manifest(work / name) is None:
            continue
        own = failed_samples(work, name)
        if name in {"captions", "embeddings"}:
            above = {"captions": ("crops",), "embeddings": ("crops", "captions")}[name]
            inherited = [failed_samples(work, upper) for upper in above]
            own = {
                n: left
                for n, ids in own.items()
                if (left := ids - frozenset().union(*(i.get(n, frozenset()) for i in inherited)))
            }
        if own or touched:
            run(command, own)
            tried[name] = sum(len(ids) for ids in own.values())
            touched = True
    return tried
