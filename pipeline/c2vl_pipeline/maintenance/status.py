"""`c2vl-pipeline status`: what each stage holds under the present recipe, counted from the shards' manifests.

The reason why a shard is not done is found by comparing its manifest with what it would be made from now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import DataError, EngineError
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    footer_problem,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.packed import FILE, read_packed_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import (
    StageKeys,
    changed_since,
    changes,
    engine_facts,
    finished_stage,
    former_inputs,
    stage_keys,
)
from c2vl_pipeline.stages import STAGES, failures, stages_of
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.stages.pack import content_key
from c2vl_pipeline.workspace import Workspace, load, shard_path


@dataclass(frozen=True)
class StageStatus:
    """One stage: `state` is complete, unfinished, stale (of another configuration or other rows) or to do."""

    stage: str
    state: str
    shards_done: int
    shards: int
    rows: int
    expected_rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    why: dict[str, int] = field(default_factory=dict)
    """Reason -> number of shards that are not done for it."""
    bytes: int = 0
    """Of its finished shards."""

    def not_ok(self) -> str:
        """Return the counts of statuses in one line; empty where all rows are ok."""
        return ", ".join(f"{k} {v:,}" for k, v in self.statuses.items() if k != Status.OK)


def survey(work: Path, recipe: Recipe) -> list[StageStatus]:
    """Return the status of every stage of a work folder; reads manifests and footers, no rows.

    Raises:
        StageError: no index exists.
    """
    index = load(work)
    return [*(_stage_status(stage, index, recipe) for stage in stages_of(index).values()), _packed_status(index)]


def _stage_status(stage: Stage, index: Workspace, recipe: Recipe) -> StageStatus:
    written = read_stage_manifest(index.work / stage.name)
    engine = _engine(stage, index, recipe, written)
    if (whole := finished_stage(stage, index, recipe, engine)) is not None:
        size = sum(path.stat().st_size for path in (index.work / stage.name).glob("shard-*.parquet"))
        counts = whole.shards, whole.shards, whole.rows, whole.expected_rows, whole.statuses, whole.seconds
        return StageStatus(stage.name, "complete", *counts, bytes=size)
    keys = stage_keys(stage, index, recipe, engine)
    statuses: Counter[str] = Counter()
    for shard in keys.done.values():
        statuses.update(shard.statuses)
    why: Counter[str] = Counter()
    if written is not None:
        for number in range(len(keys.keys)):
            if number not in keys.done:
                why.update(reasons(index.work, keys, number))
    made_otherwise = any(reason not in _UNMADE and not reason.startswith(_DAMAGED) for reason in why)
    if len(keys.done) == len(keys.keys):
        state = "complete"
    elif written is None:
        state = "to do"
    elif made_otherwise and (written.key != keys.manifest.key or written.complete):
        state = "stale"
    else:
        state = "unfinished"
    return StageStatus(
        stage.name,
        state,
        len(keys.done),
        len(keys.keys),
        sum(s.rows for s in keys.done.values()),
        keys.manifest.expected_rows,
        dict(sorted(statuses.items())),
        sum(s.seconds for s in keys.done.values()),
        dict(why.most_common()),
        sum(s.bytes for s in keys.done.values()),
    )


def _engine(stage: Stage, index: Workspace, recipe: Recipe, written: StageManifest | None) -> Mapping[str, Any] | None:
    """Return the facts of the engine that are part of the key; if its checkpoint is absent here, the recorded ones.

    So rows made elsewhere can be surveyed without gigabytes of weights. If the recipe asks for another engine, they are
    stale.
    """
    try:
        return engine_facts(stage, index, recipe)
    except EngineError:
        spec = stage.engine(recipe, index) if stage.engine else None
        if spec is None or any(one.backend not in engines.backends(one.role) for one in (spec, spec.detector) if one):
            raise
        declared = engines.declared_facts(spec)
        old: Mapping[str, Any] = (written.inputs.get("engine") if written else None) or {}
        return old if _agrees(declared, old) else declared


def _agrees(declared: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Return whether facts on record hold all that a spec declares, of a pose estimator's detector too."""
    own, detector = ({k: v for k, v in declared.items() if k != "detector"}, declared.get("detector"))
    return own.items() <= old.items() and (detector is None or _agrees(detector, old.get("detector") or {}))


# ------------------------------------------------------------------------------------------------ reasons

_UNMADE = frozenset({"not made yet", "written but not committed"})
_DAMAGED = "the data file "


def reasons(work: Path, keys: StageKeys, number: int) -> list[str]:
    """Return why a shard is not done: never made, damaged, or made from something else (each field that differs)."""
    path = shard_path(work, keys.stage.name, number)
    shard = read_shard_manifest(path)
    if shard is None:
        return ["written but not committed" if path.is_file() else "not made yet"]
    if shard.key == keys.keys[number]:
        if not path.is_file():
            return [f"{_DAMAGED}is gone"]
        if path.stat().st_size != shard.bytes:
            return [f"{_DAMAGED}has another size than was committed"]
        if number in keys.changed:
            return [changed_since(keys.changed[number])]
        return [f"{_DAMAGED}is damaged ({footer_problem(path, shard.key, shard.rows)})"]
    return list(_differences(work, keys, number, shard)) or ["made under another key"]


def _differences(work: Path, keys: StageKeys, number: int, shard: ShardManifest) -> Iterator[str]:
    now, then = keys.facts[number], shard.extra
    if then.get("samples") != now["samples"]:
        yield "its samples, or the sizes of their files, changed"
    for name, digest in now["upstream"].items():
        if digest is None:
            yield f"the {name} it was made from are gone"
        elif then.get("upstream", {}).get(name) != digest:
            yield f"the {name} it was made from changed"
    if then.get("stage") != now["stage"]:
        old = former_inputs(work / keys.stage.name, str(then.get("stage")))
        if old is None:
            yield "the configuration changed (the former one is not on record)"
        else:
            yield from changes(old, keys.manifest.inputs)


def failure_lines(work: Path) -> list[str]:
    """Return the three commonest reasons why rows of each stage failed in it, one line each; reads their statuses."""
    index = load(work)
    return [
        f"{stage.name}: {count:,} row{'s' if count > 1 else ''} {status}: {text}"
        for stage in stages_of(index).values()
        for status, text, count in failures.reasons(index, stage)[:3]
    ]


# ------------------------------------------------------------------------------------------------- packed


def _packed_status(index: Workspace) -> StageStatus:
    work, total = index.work, index.table.num_rows
    if not (work / "packed" / FILE).is_file():
        return StageStatus("packed", "to do", 0, 1, 0, total)
    try:
        packed = read_packed_manifest(work / "packed")
    except DataError as error:
        return StageStatus("packed", "stale", 0, 1, 0, total, why={str(error): 1})
    manifests = {name: m for name in STAGES if (m := read_stage_manifest(work / name)) is not None}
    fresh = (
        len(manifests) == len(STAGES)
        and all(m.complete for m in manifests.values())
        and content_key(index, manifests) == packed.fingerprint
    )
    size = sum(path.stat().st_size for path in (work / "packed").iterdir() if path.is_file())
    why = {} if fresh else {"the rows it was packed from changed": 1}
    return StageStatus(
        "packed", "complete" if fresh else "stale", int(fresh), 1, packed.samples, total, why=why, bytes=size
    )
