"""`c2vl-pipeline verify`, `repair`, `retry-failed`: is what was committed still what was written, and what to do if not.

`status` reads manifests and footers and answers in a second; `verify` reads every byte.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.events import Emit, Progress, silent
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    commit_text,
    digest,
    file_sha256,
    fingerprint,
    footer_problem,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline.engines import background
from c2vl_pipeline.stages.base import stages
from c2vl_pipeline.workspace import COMMANDS, Index, load, shard_path

RETRIED = (Status.FAILED, Status.DECODE_ERROR)
"""Statuses that another attempt may change."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed: `stage` is a stage folder, `index` or `raw`."""

    stage: str
    shard: int | None
    """None for the index and for the manifest of a whole stage."""
    path: str
    problem: str
    readers: tuple[str, ...] = ()
    """Of a raw file that is still there: the stages whose rows were made from what it was."""
    samples: tuple[str, ...] = ()
    """And the samples that these rows are of."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def verify(work: Path, *, raw: bool = False, emit: Emit = silent) -> list[Damage]:
    """Read everything that is committed in a work folder and compare it with its manifests.

    Of each shard: the bytes' sha256, all page checksums, the digest and status counts of the rows, and that the
    rows are those of the index, each once and in order. Of each stage: that its manifest speaks of these shards, and
    that none is absent if it says so. Orphans (data without a manifest) are named too.

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
        found += _stage_damage(index, stage.name)
        found += _scene_damage(index, stage.name)
        manifest = _written(work, stage.name)
        slots = (manifest.inputs.get("frames") or 1) if manifest else None
        for number in range(len(index.plan)):
            path = shard_path(work, stage.name, number)
            expected = manifest is not None and manifest.complete and number < manifest.shards
            if expected or path.is_file() or path.with_suffix(".json").is_file():
                jobs.append((str(path), _bind(_shard_damage, index, stage.name, number, slots)))
                if raw and stage.raw is not None:
                    jobs.append((str(path), _bind(_raw_damage, index, stage.name, number)))
    done = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for damages in pool.map(lambda job: job[1](), jobs):
            found += damages
            done += 1
            emit(Progress("verify", done, len(jobs), "shards", info={"damaged": len(found)}))
    named = {damage.path for damage in found}
    return found + [damage for damage in _begun(index) if damage.path not in named]


def _bind(function: Callable[..., list[Damage]], *args: Any) -> Callable[[], list[Damage]]:
    return lambda: function(*args)


def _index_damage(index: Index) -> list[Damage]:
    path = index.work / "samples.parquet"
    if file_sha256(path) == index.manifest.sha256:
        return []
    return [Damage("index", None, str(path), "holds other bytes than were committed (sha256)")]


def _written(work: Path, stage: str) -> StageManifest | None:
    """Return a stage's manifest, or None where it is absent or damaged."""
    try:
        return read_stage_manifest(work / stage)
    except DataError:
        return None


def _stage_damage(index: Index, stage: str) -> list[Damage]:
    folder = index.work / stage
    numbers = [
        n for n in range(len(index.plan)) if shard_path(index.work, stage, n).with_suffix(".json").is_file()
    ]
    manifest = _written(index.work, stage)
    problem = None
    if manifest is None:
        if (folder / "stage.json").is_file():
            problem = "cannot be read"
        elif numbers:
            problem = "is absent although shards lie beside it"
    elif manifest.stage != stage or manifest.key != fingerprint(manifest.inputs):
        problem = "does not fit its own key"
    elif manifest.complete and len(numbers) == len(index.plan) == manifest.shards:
        shards = [read_shard_manifest(shard_path(index.work, stage, n)) for n in numbers]
        readable = [s for s in shards if s is not None]
        counted = sum((Counter(s.statuses) for s in readable), Counter[str]())
        said = (manifest.digest, manifest.rows, manifest.statuses)
        if len(readable) == len(shards) and said != (
            fingerprint([s.digest for s in readable]),
            sum(s.rows for s in readable),
            dict(counted),
        ):
            problem = "does not add up to its shards: they changed since, or it is damaged"
    return [Damage(stage, None, str(folder / "stage.json"), problem)] if problem else []


def _scene_damage(index: Index, stage: str) -> list[Damage]:
    """Name the empty scenes that are not those which the committed crops were made with."""
    folder = index.work / stage
    made_with: dict[str, set[str]] = {}
    for number in range(len(index.plan)):
        shard = read_shard_manifest(shard_path(index.work, stage, number))
        for camera, sha256 in (shard.extra.get("backgrounds") or {}).items() if shard else ():
            made_with.setdefault(camera, set()).add(sha256)
    now = background.hashes(index, folder) if made_with else {}
    text = "is not the empty scene that crops of its camera were made with"
    return [
        Damage(stage, None, str(background.path(folder, camera)), text)
        for camera, before in sorted(made_with.items())
        if before != {now.get(camera)}
    ]


def _shard_damage(index: Index, stage: str, number: int, per_sample: int | None) -> list[Damage]:
    path = shard_path(index.work, stage, number)
    problem = _shard_problem(index, path, number, per_sample)
    return [Damage(stage, number, str(path), problem)] if problem else []


def _shard_problem(index: Index, path: Path, number: int, per_sample: int | None) -> str | None:
    manifest = read_shard_manifest(path)
    if manifest is None and not path.is_file() and not path.with_suffix(".json").is_file():
        return "is absent although its stage was complete"
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
    index: Index, table: pa.Table, wanted: str, statuses: dict[str, int], number: int, per_sample: int | None
) -> str | None:
    if digest(table) != wanted:
        return "its rows are not those of its manifest (digest)"
    if dict(Counter(table.column("status").to_pylist())) != statuses:
        return "its statuses are not counted right in its manifest"
    start, stop = index.plan[number]
    samples = index.table.column("sample_id").slice(start, stop - start).to_pylist()
    per_sample = per_sample or max(table.num_rows // len(samples), 1)
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
    kind = "skeleton" if stage == "skeletons" else "video"
    # a detector may read joints too
    readers = ("skeletons", "crops") if kind == "skeleton" else ("crops",)
    found = []
    for relative, sha256 in (manifest.extra.get("files", {}) if manifest else {}).items():
        path = index.root / relative
        if not path.is_file():
            # what was made from it is all there is left of it: nothing to make again
            found.append(
                Damage("raw", number, str(path), f"is gone since {stage} were made from it; they are kept")
            )
        elif file_sha256(path) != sha256:
            samples = tuple(s["sample_id"] for s in index.shard(number) if s[kind] == relative)
            text = f"changed since {stage} were made from it"
            found.append(Damage("raw", number, str(path), text, readers, samples))
    return found


# ----------------------------------------------------------------------------------------------- repair


Redo = dict[int, frozenset[str]]
"""Shard number -> samples to make again although their shard is committed."""


@dataclass(frozen=True)
class Repair:
    """What `repair` makes again in one stage: whole shards, and single samples of others."""

    shards: frozenset[int]
    redo: Redo


def to_repair(work: Path, damages: Sequence[Damage]) -> dict[str, Repair]:
    """Say what each stage has to make again: damaged shards whole, of a changed raw file only its samples.

    Raises:
        StageError: the index itself is damaged, or a raw file is gone, without which a shard would come back empty.
    """
    index = load(work)
    if any(damage.stage == "index" for damage in damages):
        raise StageError(
            f"{work / 'samples.parquet'} is damaged, and every stage reads it; run `c2vl-pipeline index` again first"
        )
    shards: dict[str, set[int]] = {}
    redo: dict[str, Redo] = {}
    for damage in damages:
        if damage.stage in COMMANDS:
            shards.setdefault(damage.stage, set()).update(() if damage.shard is None else (damage.shard,))
        for reader in damage.readers:
            path = None if damage.shard is None else shard_path(work, reader, damage.shard)
            if path is not None and damage.shard is not None and path.with_suffix(".json").is_file():
                again = redo.setdefault(reader, {})
                again[damage.shard] = again.get(damage.shard, frozenset()) | set(damage.samples)
    for stage in stages():
        for number in shards.get(stage.name, ()) if stage.raw else ():
            for row in index.shard(number):
                relative = row[str(stage.raw)]
                if relative is not None and not row["problem"] and not (index.root / relative).exists():
                    raise StageError(
                        f"{shard_path(work, stage.name, number)} is damaged and cannot be made again: {index.root / relative} is gone; "
                        "bring it back, or run `c2vl-pipeline index` again so that its rows say that it is missing"
                    )
    return {
        name: Repair(frozenset(shards.get(name, ())), redo.get(name, {}))
        for name in COMMANDS
        if name in shards or name in redo
    }


def repair(
    work: Path,
    recipe: Recipe,
    damages: Sequence[Damage],
    run: Callable[[str, frozenset[int], Redo], object],
) -> None:
    """Make what is damaged again, and below it whatever became stale; `run(command, only, redo)` runs a stage.

    Raises:
        StageError: a stage was made under another configuration, or a raw file is gone; nothing is touched then.
    """
    plan = to_repair(work, damages)
    same_recipe(work, recipe, plan)
    # what is removed here must not be forgotten if this process dies before it is made again
    removed = {name: sorted(part.shards) for name, part in plan.items()}
    commit_text(work / _BEGUN, json.dumps(removed))
    for name, part in plan.items():
        for number in part.shards:
            path = shard_path(work, name, number)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    numbers: set[int] = set()
    for name, command in COMMANDS.items():
        part = plan.get(name, Repair(frozenset(), {}))
        only = part.shards | part.redo.keys() | {n for n in numbers if _outdated(work, name, n)}
        if name in plan or only:
            if name not in plan:
                same_recipe(work, recipe, [name])
            run(command, frozenset(only), part.redo)
        numbers |= only
    (work / _BEGUN).unlink(missing_ok=True)


_BEGUN = ".repair.json"
"""Stage -> shards that a repair removed and has not made again."""


def _begun(index: Index) -> list[Damage]:
    """Name the shards that a repair removed and did not live to make again."""
    try:
        removed: dict[str, list[int]] = json.loads((index.work / _BEGUN).read_text("utf-8"))
        paths = [(name, n, shard_path(index.work, name, n)) for name in removed for n in removed[name]]
    except (OSError, ValueError, TypeError, AttributeError):
        return []
    text = "was removed by a repair that did not end"
    return [Damage(s, n, str(p), text) for s, n, p in paths if not p.with_suffix(".json").is_file()]


def _outdated(work: Path, stage: str, number: int) -> bool:
    """Whether a committed shard was made from other rows than its earlier stages hold now."""
    shard = read_shard_manifest(shard_path(work, stage, number))
    if shard is None:
        return False
    for name, wanted in shard.extra.get("upstream", {}).items():
        above = read_shard_manifest(shard_path(work, name, number))
        if above is None or above.digest != wanted:
            return True
    return False


def same_recipe(work: Path, recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse to make part of a stage again under another configuration than the rest was made under.

    Raises:
        StageError: naming the stage and what differs.
        EngineError: its engine is not there.
    """
    from c2vl_pipeline.execution.keys import changes, lasting_engine, stage_inputs

    index, names = load(work), set(names)
    for stage in stages():
        written = _written(work, stage.name)
        if stage.name not in names or written is None or written.key != fingerprint(written.inputs):
            continue
        now = stage_inputs(stage, index, recipe, lasting_engine(stage, index, recipe))
        for change in changes(written.inputs, now):
            raise StageError(
                f"the {stage.name} of {work} were made under another configuration ({change}); give the --recipe and --set they were made with, "
                f"or make all of them again with `c2vl-pipeline {stage.command}`"
            )


# ------------------------------------------------------------------------------------------------ retry


def failed_samples(work: Path, stage: str, statuses: Sequence[str] = RETRIED) -> Redo:
    """Return the samples of a stage with a row that failed in this very stage: shard number -> ids.

    Rows that only pass on what befell them in an earlier stage do not count. Reads only the shards whose manifests
    count such rows. Of the vectors, either kind of knowledge counts.
    """
    index = load(work)
    found: Redo = {}
    for number in range(len(index.plan)):
        manifest = read_shard_manifest(shard_path(work, stage, number))
        if manifest is None:
            continue
        suspect = (*statuses, Status.MISSING_VIDEO, Status.MISSING_SKELETON)
        if stage != "embeddings" and not any(manifest.statuses.get(str(s)) for s in suspect):
            continue
        bad = _bad_rows(work, stage, number, statuses)
        above = [
            _bad_rows(work, name, number, statuses) for name in manifest.extra.get("upstream", {}) if bad
        ]
        ids = frozenset(s for s, slot in bad if not any({(s, slot), (s, None)} & rows for rows in above))
        if ids:
            found[number] = ids
    return found


def _bad_rows(work: Path, stage: str, number: int, statuses: Sequence[str]) -> set[tuple[str, int | None]]:
    """Return (sample, slot) of the rows in one of the statuses; the slot is None in stages without slots."""
    keys = ["sample_id"] if stage == "skeletons" else ["sample_id", "slot"]
    columns = ["status"] if stage != "embeddings" else ["status", "vision_status", "language_status"]
    gone = "FileNotFoundError"  # the index names the file: it was away when it was to be read
    path = shard_path(work, stage, number)
    if read_shard_manifest(path) is None:
        return set()
    table = read_shard(path, [*keys, *columns, "error_class"])
    wanted = pa.array([str(s) for s in statuses])
    masks = [pc.is_in(table.column(name), wanted) for name in columns]
    masks.append(pc.fill_null(pc.equal(table.column("error_class"), gone), False))
    bad = table.filter(reduce(pc.or_, masks)).select(keys).to_pylist()
    return {(row["sample_id"], row.get("slot")) for row in bad}


def retry(work: Path, recipe: Recipe, run: Callable[[str, Redo], object]) -> dict[str, int]:
    """Make failed samples again, stage by stage; `run(command, redo)` runs a stage.

    A row that failed upstream and is well now makes its shard stale below, so each following stage is brought up
    to date on the way. Returns the samples tried again, by stage.

    Raises:
        StageError: a stage was made under another configuration than this one.
    """
    tried: dict[str, int] = {}
    there = [name for name in COMMANDS if read_stage_manifest(work / name) is not None]
    failed = {name: failed_samples(work, name) for name in there}  # before any of them changes
    first = next((number for number, name in enumerate(there) if failed[name]), len(there))
    same_recipe(work, recipe, there[first:])
    for name in there[first:]:
        run(COMMANDS[name], failed[name])
        tried[name] = sum(len(ids) for ids in failed[name].values())
    return tried
