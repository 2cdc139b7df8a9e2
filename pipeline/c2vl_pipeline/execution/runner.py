"""Runs a stage over its shards: what is still to make, in which order, and when the stage is complete.

A shard is made again unless it is committed under the key that this run would give it (`finished_shard`). Jobs
carry a shard number to `shards.run_shard`, here or in `workers`, and bring back a small receipt; the manifests on
disk are the only truth, so that any process may die at any moment.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import StageError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    commit_text,
    fingerprint,
    read_shard_manifest,
    read_stage_manifest,
    write_stage_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import Plan, changes, former_inputs, inputs_path, make_plan
from c2vl_pipeline.execution.task import Job, Receipt, run_shard
from c2vl_pipeline.stages.base import Stage, hang_mark
from c2vl_pipeline.workspace import COMMANDS, Index, check_shards, load, shard_path

if TYPE_CHECKING:
    from c2vl_pipeline.execution.workers import Workers

MAX_FAILURES = 0.05
"""Share of rows that an engine may fail on before the stage stops: then it is the engine, not the rows."""

FEW_FAILURES = 100
"""Failed rows that never stop a stage: a share of very few rows says little."""


def _predecessors(stage: Stage, index: Index, recipe: Recipe) -> None:
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        if manifest is None:
            raise StageError(
                f"{stage.command} needs the {name} of {index.work}, which do not exist; run `c2vl-pipeline {COMMANDS[name]} --work {index.work}` first"
            )


def default_workers(stage: Stage, work: Path, recipe: Recipe) -> int:
    """Return how many processes suit a stage here: one a core, but one a GPU for engines that load weights."""
    cores = os.cpu_count() or 1
    if stage.engine is None:
        return cores
    return max(1, len(engines.gpus())) if engines.has_weights(stage.engine(recipe, load(work))) else cores


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: two runs of one stage would do the work twice. Dies with this process."""
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise StageError(
                f"{folder} is being filled by another run ({handle.read().strip() or 'unknown'}); wait for it or stop it"
            ) from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        yield


def run(
    stage: Stage,
    work: Path,
    recipe: Recipe,
    *,
    workers: Workers | None = None,
    limit: int | None = None,
    only: frozenset[int] | None = None,
    redo: Mapping[int, frozenset[str]] | None = None,
    overwrite: bool = True,
    max_failures: float = MAX_FAILURES,
    emit: Emit = silent,
) -> StageManifest:
    """Run a stage: make every shard that is not committed under its present key.

    Args:
        stage: which one.
        work: folder of the index and all stages.
        recipe: resolved.
        workers: processes to make shards in; None makes them in this process, where a sample that kills its
            process or hangs for ever takes the run with it.
        limit: stop after the shards that hold this many samples; the stage stays incomplete.
        only: numbers of the shards that may be made; the others stay as they are.
        redo: shard number -> samples to make again although their shard is committed.
        overwrite: whether shards made under another configuration may be made again; if not, they are refused.
        max_failures: share of `failed` rows above which the stage stops, finished shards kept.
        emit: receives progress and notes.

    Returns:
        The stage's manifest, complete unless `limit` cut it short.

    Raises:
        StageError: a predecessor is missing, another run is at work, too many rows fail, or workers die.
        EngineError: the engine cannot be loaded.
        OSError: the disk is full; what is committed stays.
    """
    work = work.absolute()  # workers of a scheduler stand elsewhere
    index = load(work)
    if not index.root.is_dir():
        raise StageError(
            f"the raw folder {index.root} is not there; mount it, or run `c2vl-pipeline index` again with its new place: every row would say that its file is missing"
        )
    _predecessors(stage, index, recipe)
    folder = work / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        for orphan in folder.rglob(".*.tmp"):
            orphan.unlink(missing_ok=True)
        spec = stage.engine(recipe, index) if stage.engine else None
        plan = make_plan(stage, index, recipe)
        todo = _todo(plan, index, limit, only, redo or {})
        _no_gaps_upstream(stage, index, recipe, limit is None and only is None, todo)
        if not overwrite:
            _refuse_other_configuration(stage, folder, plan, todo)
            _refuse_to_forget(stage, folder, index, plan, todo)
        if spec and todo and not engines.has_weights(spec):
            engines.load(spec)  # a wrong option is found before anything is called unfinished
        if spec and stage.prepare:  # only now that nothing is refused any more
            stage.prepare(index, recipe, spec, 0 if workers is None else workers.count, emit)
            plan = make_plan(stage, index, recipe)
            todo = _todo(plan, index, limit, only, redo or {})
        _drop_leftovers(folder, plan, todo)
        commit_text(inputs_path(folder, plan.manifest.key), plan.manifest.model_dump_json(include={"inputs"}))
        done = dict(plan.done)
        write_stage_manifest(folder, _summary(plan, done))
        jobs = _jobs(stage, index, recipe, spec, plan, todo, redo or {})
        samples = [b - a for a, b in index.plan]
        finished, total = sum(samples[n] for n in done if n not in todo), sum(samples)
        if finished:
            count = len(done.keys() - set(todo))
            emit(Note(f"{stage.name}: {count} of {len(samples)} shards are already done"))
        emit(Progress(stage.name, finished, total))
        statuses: Counter[str] = Counter()
        for receipt in _carry_out(jobs, index, folder, workers, emit):
            assert receipt.manifest is not None
            done[receipt.number] = receipt.manifest
            finished += samples[receipt.number]
            statuses.update(receipt.manifest.statuses)
            emit(Progress(stage.name, finished, total, info={k: v for k, v in statuses.items() if k != "ok"}))
            if statuses[Status.FAILED] > max(max_failures * statuses.total(), FEW_FAILURES):
                write_stage_manifest(folder, _summary(plan, done))
                raise _too_many(stage, work, statuses, max_failures)
        summary = _summary(plan, done)
        write_stage_manifest(folder, summary)
        return summary


def _jobs(
    stage: Stage,
    index: Index,
    recipe: Recipe,
    spec: EngineSpec | None,
    plan: Plan,
    numbers: Iterable[int],
    redo: Mapping[int, frozenset[str]],
) -> list[Job]:
    text, spec_text = recipe.model_dump_json(), spec.model_dump_json() if spec else None
    return [
        Job(
            module=stage.process.__module__,
            work=str(index.work),
            index=index.manifest.key,
            recipe=text,
            spec=spec_text,
            number=n,
            key=plan.keys[n],
            facts=plan.facts[n],
            redo=redo.get(n, frozenset()),
        )
        for n in numbers
    ]


def _too_many(stage: Stage, work: Path, statuses: Counter[str], most: float) -> StageError:
    return StageError(
        f"{stage.command} failed on {statuses[Status.FAILED]:,} of {statuses.total():,} rows, more than {most:.0%}; "
        f"look at them with `c2vl-pipeline inspect --work {work} --status failed`, mend the cause, then `c2vl-pipeline retry-failed --work {work}`, "
        "or allow more with --max-failures"
    )


def _refuse_other_configuration(stage: Stage, folder: Path, plan: Plan, todo: list[int]) -> None:
    """Refuse to make shards again that another engine or configuration made: they may have cost days."""
    for number in todo:
        shard = read_shard_manifest(shard_path(folder.parent, stage.name, number))
        if shard is None or shard.extra.get("stage") == plan.manifest.key:
            continue
        former = former_inputs(folder, str(shard.extra.get("stage")))
        changed = list(changes(former, plan.manifest.inputs)) if former else ["the former is not on record"]
        raise StageError(
            f"the {stage.name} of {folder.parent} were made under another configuration ({'; '.join(changed[:3])}); "
            f"give {stage.command} the same one, another --work, or --overwrite to make them again"
        )


def _refuse_to_forget(stage: Stage, folder: Path, index: Index, plan: Plan, todo: list[int]) -> None:
    """Refuse to drop rows of samples that the index no longer has: a smaller index may be a mistake."""
    numbers = {int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json")}
    beyond = [n for n in numbers if n >= len(plan.keys)]
    held: set[str] = set()
    for number in [*todo, *beyond]:
        shard = read_shard_manifest(shard_path(folder.parent, stage.name, number))
        held |= set(shard.extra.get("parts", {})) if shard else set()
    if held and (lost := held - set(index.table.column("sample_id").to_pylist())):
        raise StageError(
            f"the {stage.name} of {folder.parent} hold {len(lost):,} samples (e.g. {min(lost)}) that its index no longer has; "
            f"run `c2vl-pipeline index` again without --limit, give another --work, or --overwrite to drop them"
        )


def _todo(
    plan: Plan,
    index: Index,
    limit: int | None,
    only: frozenset[int] | None,
    redo: Mapping[int, frozenset[str]],
) -> list[int]:
    """Return the shards to make: those not done or with samples to make again, within the limit and `only`."""
    return [
        n
        for n, (start, _) in enumerate(index.plan)
        if (n not in plan.done or redo.get(n))
        and (limit is None or start < limit)
        and (only is None or n in only)
    ]


def _carry_out(
    jobs: list[Job], index: Index, folder: Path, workers: Workers | None, emit: Emit
) -> Iterator[Receipt]:
    """Yield a receipt for each shard, through whatever dies on the way."""
    if workers is None or not jobs:
        yield from map(run_shard, jobs)
        return
    from c2vl_pipeline.execution.recovery import Recovery
    from c2vl_pipeline.execution.workers import Death

    def names(number: int) -> list[str]:
        start, stop = index.plan[number]
        found: list[str] = index.table.column("sample_id").slice(start, stop - start).to_pylist()
        return found

    recovery = Recovery(names, lambda number: hang_mark(folder, number))
    waiting = deque(jobs)
    for job, outcome in workers.run(waiting, index.work):
        if isinstance(outcome, Death):
            part = f"samples {job.span[0]} to {job.span[1]} of " if job.span else ""
            emit(Note(f"a worker died over {part}{folder.name} shard {job.number}; going on", "warning"))
            waiting.extendleft(reversed(recovery.died(job)))
        elif outcome.manifest is not None:
            yield outcome
        else:
            waiting.extendleft(recovery.finished(job))


def _no_gaps_upstream(stage: Stage, index: Index, recipe: Recipe, whole: bool, todo: list[int]) -> None:
    """Refuse to run over a predecessor that is unfinished or of other samples, unless only first ones are asked for."""
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        if manifest is None:
            continue
        if not manifest.complete and whole:
            raise StageError(
                f"{stage.command} needs all {name} of {index.work}: {manifest.rows:,} of {manifest.expected_rows:,} rows are there; "
                f"run `c2vl-pipeline {COMMANDS[name]} --work {index.work}` again, or take the first ones with --limit"
            )
        frames = manifest.inputs.get("frames")
        if frames is not None and frames != recipe.pipeline.frames:
            raise StageError(
                f"{name} of {index.work} have {frames} frames a sample, this recipe asks for {recipe.pipeline.frames}; "
                f"give both stages the same pipeline.frames"
            )
        check_shards(index, name, todo, stage.command)


def _drop_leftovers(folder: Path, plan: Plan, todo: list[int]) -> None:
    """Remove shards of an earlier, longer plan, marks, and pieces and journals of other keys or of shards that are done.

    Journals of a shard that is done but has samples to make again stay: their answers came when that was last tried.
    """
    for path in folder.glob("shard-*.*"):
        number = path.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= len(plan.keys):
            path.unlink(missing_ok=True)
    for mark in folder.glob(".shard-*.hang"):
        mark.unlink(missing_ok=True)
    kept = {f".shard-{n:05d}-{key[:12]}" for n, key in enumerate(plan.keys) if n not in plan.done}
    again = {f".shard-{n:05d}-{plan.keys[n][:12]}" for n in todo}
    for leftover in [*folder.glob(".shard-*.piece"), *folder.glob(".shard-*.journal")]:
        stem = "-".join(leftover.name.split("-")[:3])
        if stem not in kept and not (stem in again and leftover.suffix == ".journal"):
            leftover.unlink(missing_ok=True)


_version = cache(version)  # reads a file


def _summary(plan: Plan, done: Mapping[int, ShardManifest]) -> StageManifest:
    statuses: Counter[str] = Counter()
    provenance: dict[str, Any] = {}
    for manifest in done.values():
        statuses.update(manifest.statuses)
        provenance |= manifest.extra.get("provenance", {})
    complete = len(done) == len(plan.keys)
    libraries = {name: _version(name) for name in ("c2vl", "numpy", "pyarrow", "opencv-python")}
    return plan.manifest.model_copy(
        update={
            "provenance": {"libraries": libraries, **provenance},
            "complete": complete,
            "rows": sum(m.rows for m in done.values()),
            "statuses": dict(sorted(statuses.items())),
            "digest": fingerprint([done[n].digest for n in sorted(done)]) if complete else "",
            "seconds": round(sum(m.seconds for m in done.values()), 2),
        }
    )
