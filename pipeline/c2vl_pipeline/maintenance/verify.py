"""`c2vl-pipeline verify`: is what was committed still what was written?

`status` reads manifests and footers and answers in a second; `verify` reads every byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from c2vl_manifests.errors import DataError
from c2vl_manifests.events import Emit, Progress, silent
from c2vl_manifests.file_hashes import content_sha256
from c2vl_manifests.machine import usable_cores
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    digest,
    file_sha256,
    fingerprint,
    footer_problem,
    read_shard,
    read_shard_manifest,
)
from c2vl_manifests.reading import read_json
from c2vl_pipeline.stages import STAGES, stages_of
from c2vl_pipeline.stages.base import Stage, written_manifest
from c2vl_pipeline.workspace import Workspace, load, shard_path

REPAIR_FILE = ".repair.json"
"""Stage -> shards that a repair removed and has not made again."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed: `stage` is a stage folder, `index` or `raw`."""

    stage: str
    shard: int | None
    """None for the index and for the manifest of a whole stage."""
    path: str
    problem: str
    readers: tuple[str, ...] = ()
    """For a raw file that still exists: the stages whose rows were made from its former content."""
    samples: tuple[str, ...] = ()
    """The samples of these rows."""


def verify(work: Path, *, raw: bool = False, emit: Emit = silent) -> list[Damage]:
    """Read everything that is committed in a work folder and compare it with its manifests.

    Of each shard: the bytes' sha256, all page checksums, the digest and status counts of the rows, and that the
    rows are those of the index, each once and in order. Of each stage: that its manifest describes these shards, and
    that none is absent if it says so. Orphans (data without a manifest) are listed too.

    Args:
        work: the work folder.
        raw: also hash the raw files again and compare with what the stages read.
        emit: receives progress.

    Returns:
        What is damaged; empty if nothing is.

    Raises:
        StageError: no index exists.
    """
    index = load(work)
    damages = _index_damage(index)
    checks: list[Callable[[], list[Damage]]] = []
    for stage in stages_of(index).values():
        damages += _stage_damage(index, stage)
        manifest = written_manifest(work / stage.name)
        slots = _slots(manifest) if manifest else None
        for number in range(len(index.shard_ranges)):
            path = shard_path(work, stage.name, number)
            expected = manifest is not None and manifest.complete and number < manifest.shards
            if expected or path.is_file() or path.with_suffix(".json").is_file():
                checks.append(partial(_shard_damage, index, stage, number, slots))
                if raw and stage.raw is not None:
                    checks.append(partial(_raw_damage, index, stage, number))
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        for done, more in enumerate(pool.map(lambda check: check(), checks), 1):
            damages += more
            emit(Progress("verify", done, len(checks), "shards", info={"damaged": len(damages)}))
    paths = {damage.path for damage in damages}
    return damages + [damage for damage in _unfinished_repair(index) if damage.path not in paths]


def _slots(manifest: StageManifest) -> int:
    """Return the number of rows of each sample; 1 if the manifest states none, or none that is possible."""
    frames = manifest.inputs.get("frames")
    return frames if isinstance(frames, int) and frames > 0 else 1


def _index_damage(index: Workspace) -> list[Damage]:
    path = index.work / "samples.parquet"
    if file_sha256(path) == index.manifest.sha256:
        return []
    return [Damage("index", None, str(path), "holds other bytes than were committed (sha256)")]


def _stage_damage(index: Workspace, stage: Stage) -> list[Damage]:
    path = index.work / stage.name / "stage.json"
    paths = [shard_path(index.work, stage.name, n) for n in range(len(index.shard_ranges))]
    present = sum(shard.with_suffix(".json").is_file() for shard in paths)
    manifest = written_manifest(index.work / stage.name)
    problem = None
    if manifest is None:
        if path.is_file():
            problem = "cannot be read"
        elif present:
            problem = "is absent although shards exist"
    elif manifest.stage != stage.name or manifest.key != fingerprint(manifest.inputs):
        problem = "does not fit its own key"
    elif manifest.complete and present == len(index.shard_ranges) == manifest.shards:
        readable = [shard for shard in map(read_shard_manifest, paths) if shard is not None]
        counted = sum((Counter(shard.statuses) for shard in readable), Counter[str]())
        digests, rows = fingerprint([shard.digest for shard in readable]), sum(s.rows for s in readable)
        recorded = (manifest.digest, manifest.rows, manifest.statuses)
        if len(readable) == present and recorded != (digests, rows, dict(counted)):
            problem = "does not add up to its shards: they changed since, or it is damaged"
    return [Damage(stage.name, None, str(path), problem)] if problem else []


def _shard_damage(index: Workspace, stage: Stage, number: int, per_sample: int | None) -> list[Damage]:
    path = shard_path(index.work, stage.name, number)
    manifest = read_shard_manifest(path)
    if manifest is not None:
        problem = _byte_problem(path, manifest) or _row_problem(index, path, manifest, number, per_sample)
    elif path.is_file() or path.with_suffix(".json").is_file():
        problem = "has no manifest that can be read: it was never committed, or the manifest is damaged"
    else:
        problem = "is absent although its stage was complete"
    return [Damage(stage.name, number, str(path), problem)] if problem else []


def _byte_problem(path: Path, manifest: ShardManifest) -> str | None:
    if not path.is_file():
        return "is absent although its manifest exists"
    if path.stat().st_size != manifest.bytes:
        return f"has {path.stat().st_size:,} bytes, its manifest says {manifest.bytes:,}"
    if file_sha256(path) != manifest.sha256:
        return "holds other bytes than were committed (sha256)"
    if problem := footer_problem(path, manifest.key, manifest.rows):
        return f"its footer does not fit: {problem}"
    return None


def _row_problem(
    index: Workspace, path: Path, manifest: ShardManifest, number: int, per_sample: int | None
) -> str | None:
    try:
        table = read_shard(path)
    except DataError as error:
        return str(error)
    if digest(table) != manifest.digest:
        return "its rows are not those of its manifest (digest)"
    if dict(Counter(table.column("status").to_pylist())) != manifest.statuses:
        return "its statuses are not counted right in its manifest"
    samples = [row["sample_id"] for row in index.shard(number, ["sample_id"])]
    per_sample = per_sample or max(table.num_rows // len(samples), 1)
    if table.num_rows != len(samples) * per_sample or table.column("sample_id").to_pylist() != [
        s for s in samples for _ in range(per_sample)
    ]:
        return "its rows are not those of the index (run its stage again)"
    slots = table.column("slot").to_pylist() if "slot" in table.column_names else None
    if slots is not None and slots != [*range(per_sample)] * len(samples):
        return "its slots do not count up within each sample"
    return None


def _raw_damage(index: Workspace, stage: Stage, number: int) -> list[Damage]:
    manifest = read_shard_manifest(shard_path(index.work, stage.name, number))
    column = str(stage.raw)
    readers = tuple(other.name for other in stages_of(index).values() if column in other.columns)
    damages = []
    recorded = manifest.extra.get("files", {}) if manifest else {}
    rows = index.shard(number, ["sample_id", column])
    for relative in dict.fromkeys(row[column] for row in rows if row[column] in recorded):
        path, sha256 = index.root / relative, recorded[relative]
        if (found := content_sha256(path)) is None:
            # the rows made from it are all that is left of it: nothing to make again
            problem = f"is gone since {stage.name} were made from it; they are kept"
            damages.append(Damage("raw", number, str(path), problem))
        elif found != sha256:
            samples = tuple(s["sample_id"] for s in rows if s[column] == relative)
            problem = f"changed since {stage.name} were made from it"
            damages.append(Damage("raw", number, str(path), problem, readers, samples))
    return damages


def _unfinished_repair(index: Workspace) -> list[Damage]:
    """Return the shards that an interrupted repair removed and did not make again."""
    try:
        removed: dict[str, list[int]] = read_json(index.work / REPAIR_FILE)
        paths = [(name, n, shard_path(index.work, name, n)) for name in removed.keys() & STAGES for n in removed[name]]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    problem = "was removed by a repair that did not end"
    return [Damage(s, n, str(p), problem) for s, n, p in paths if not p.with_suffix(".json").is_file()]
