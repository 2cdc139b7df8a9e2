"""Remake of what is damaged (`verify --repair`) or has failed (`prompts --retry-failed`), and what depends on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import commit_text, fingerprint, read_shard, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline.execution.keys import Redo, changes, engine_facts, stage_inputs
from c2vl_pipeline.maintenance.verify import REPAIR_FILE, Damage
from c2vl_pipeline.stages import STAGES, stages_of
from c2vl_pipeline.stages.base import Stage, written_manifest
from c2vl_pipeline.workspace import Workspace, load, shard_path

RETRIED = (Status.FAILED, Status.DECODE_ERROR)
"""Statuses that another attempt may change."""


@dataclass(frozen=True)
class Repair:
    """What a repair makes again in one stage: whole shards, and single samples of others."""

    shards: frozenset[int] = frozenset()
    redo: Redo = field(default_factory=dict)


def plan_repair(work: Path, damages: Sequence[Damage]) -> dict[str, Repair]:
    """Return what each stage has to make again: damaged shards whole; of a changed raw file only its samples.

    Raises:
        StageError: the index itself is damaged, or a raw file is gone, without which a shard would come back empty.
    """
    index = load(work)
    if any(damage.stage == "index" for damage in damages):
        raise StageError(
            f"{work / 'samples.parquet'} is damaged, and every stage reads it; run `c2vl-pipeline index` again first"
        )
    shards: dict[str, set[int]] = {}
    redo: dict[str, dict[int, frozenset[str]]] = {}
    for damage in damages:
        if damage.stage in STAGES:
            shards.setdefault(damage.stage, set()).update(() if damage.shard is None else (damage.shard,))
        for reader in damage.readers:
            assert damage.shard is not None
            if shard_path(work, reader, damage.shard).with_suffix(".json").is_file():
                again = redo.setdefault(reader, {})
                again[damage.shard] = again.get(damage.shard, frozenset()) | set(damage.samples)
    for name, numbers in shards.items():
        _check_raw_files(index, stages_of(index)[name], numbers)
    return {
        name: Repair(frozenset(shards.get(name, ())), redo.get(name, {}))
        for name in STAGES
        if name in shards or name in redo
    }


def _check_raw_files(index: Workspace, stage: Stage, numbers: Iterable[int]) -> None:
    """Raise StageError if a raw file of these shards is gone."""
    if stage.raw is None:
        return
    for number in numbers:
        for row in index.shard(number):
            relative = row[stage.raw]
            if relative is not None and not row["problem"] and not (index.root / relative).exists():
                raise StageError(
                    f"{shard_path(index.work, stage.name, number)} is damaged and cannot be made again: "
                    f"{index.root / relative} is gone; bring it back, or run `c2vl-pipeline index` again so "
                    "that its rows say that it is missing"
                )


def repair(
    work: Path, recipe: Recipe, damages: Sequence[Damage], run: Callable[[Stage, frozenset[int], Redo], object]
) -> None:
    """Make damaged shards again, and in later stages those that became stale; `run(stage, only, redo)` runs a stage.

    Raises:
        StageError: a stage was made under another configuration, or a raw file is gone; nothing is touched then.
    """
    repairs = plan_repair(work, damages)
    check_configuration(work, recipe, repairs)
    # what is removed here must not be forgotten if this process dies before it is made again
    removed = {name: sorted(part.shards) for name, part in repairs.items()}
    commit_text(work / REPAIR_FILE, json.dumps(removed))
    for name, numbers in removed.items():
        for number in numbers:
            path = shard_path(work, name, number)
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
    changed: set[int] = set()
    for name, stage in stages_of(load(work)).items():
        part = repairs.get(name, Repair())
        only = part.shards | part.redo.keys() | {n for n in changed if _outdated(work, name, n)}
        if name in repairs or only:
            if name not in repairs:
                check_configuration(work, recipe, [name])
            run(stage, frozenset(only), part.redo)
        changed |= only
    (work / REPAIR_FILE).unlink(missing_ok=True)


def _outdated(work: Path, stage: str, number: int) -> bool:
    """Return True if a committed shard was made from other rows than its earlier stages hold now."""
    shard = read_shard_manifest(shard_path(work, stage, number))
    upstream = shard.extra.get("upstream", {}) if shard else {}
    now = {name: read_shard_manifest(shard_path(work, name, number)) for name in upstream}
    return any(earlier is None or earlier.digest != upstream[name] for name, earlier in now.items())


def check_configuration(work: Path, recipe: Recipe, names: Iterable[str]) -> None:
    """Raise StageError if a stage was made under another configuration than this one: its parts would differ.

    Raises:
        StageError: with the stage and what differs.
        EngineError: its engine is absent.
    """
    index, names = load(work), set(names)
    for name, stage in stages_of(index).items():
        written = written_manifest(work / stage.name)
        if name not in names or written is None or written.key != fingerprint(written.inputs):
            continue
        now = stage_inputs(stage, index, recipe, engine_facts(stage, index, recipe))
        for change in changes(written.inputs, now):
            raise StageError(
                f"the {name} of {work} were made under another configuration ({change}); give the --recipe "
                f"and --set they were made with, "
                f"or make all of them again with `c2vl-pipeline {stage.command}`"
            )


# ------------------------------------------------------------------------------------------------ retry


def failed_samples(work: Path, stage: Stage) -> dict[int, frozenset[str]]:
    """Return the samples of a stage with a row that failed in this very stage: shard number -> ids.

    Rows that only pass on the failure of an earlier stage do not count. Reads only the shards whose manifests count
    such rows. Of the vectors, either kind of knowledge counts.
    """
    index = load(work)
    failed: dict[int, frozenset[str]] = {}
    for number in range(len(index.shard_ranges)):
        manifest = read_shard_manifest(shard_path(work, stage.name, number))
        if manifest is None:
            continue
        suspect = (*RETRIED, Status.MISSING_VIDEO, Status.MISSING_SKELETON)
        if stage.status_columns == ("status",) and not any(manifest.statuses.get(s) for s in suspect):
            continue
        bad = _bad_rows(work, stage, number)
        earlier = [_bad_rows(work, STAGES[name], number) for name in manifest.extra.get("upstream", {}) if bad]
        ids = frozenset(s for s, slot in bad if not any({(s, slot), (s, None)} & rows for rows in earlier))
        if ids:
            failed[number] = ids
    return failed


def _bad_rows(work: Path, stage: Stage, number: int) -> set[tuple[str, int | None]]:
    """Return (sample, slot) of the rows to try again; the slot is None in stages without slots."""
    path = shard_path(work, stage.name, number)
    if read_shard_manifest(path) is None:
        return set()
    slot = ["slot"] if stage.per_frame else []
    table = read_shard(path, ["sample_id", *slot, *stage.status_columns, "error_class"])
    wanted = pa.array([*map(str, RETRIED)])
    masks = [pc.is_in(table.column(name), wanted) for name in stage.status_columns]
    # the index names the file: it was away when it was to be read
    masks.append(pc.fill_null(pc.equal(table.column("error_class"), "FileNotFoundError"), False))
    bad = table.filter(reduce(pc.or_, masks)).to_pylist()
    return {(row["sample_id"], row.get("slot")) for row in bad}


def retry(work: Path, recipe: Recipe, run: Callable[[Stage, Redo], object]) -> dict[str, int]:
    """Make failed samples again, stage by stage; `run(stage, redo)` runs a stage.

    A row that failed upstream and is well now makes its shard stale below, so each following stage is brought up
    to date on the way. Returns the number of samples tried again, by stage.

    Raises:
        StageError: a stage was made under another configuration than this one.
    """
    written = [name for name in STAGES if read_stage_manifest(work / name) is not None]
    failed = {name: failed_samples(work, STAGES[name]) for name in written}  # before any of them changes
    first = next((number for number, name in enumerate(written) if failed[name]), len(written))
    check_configuration(work, recipe, written[first:])
    tried: dict[str, int] = {}
    for name in written[first:]:
        run(stages_of(load(work))[name], failed[name])
        tried[name] = sum(len(ids) for ids in failed[name].values())
    return tried
