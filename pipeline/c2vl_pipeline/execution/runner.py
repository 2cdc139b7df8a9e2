"""Run a stage over its shards.

A shard is made again unless it is committed under the key that this run would give it (`keys`). Tasks carry a shard
number to `task.run_shard`, here or in `workers`, and bring back a small result; the manifests on disk are the only
truth, so that any process may die at any moment.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.machine import usable_cores
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    commit_text,
    read_shard_manifest,
    read_stage_manifest,
    write_stage_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import (
    Redo,
    StageKeys,
    changed_since,
    changes,
    engine_facts,
    finished_stage,
    former_inputs,
    inputs_path,
    stage_keys,
)
from c2vl_pipeline.execution.progress import progress, watching
from c2vl_pipeline.execution.sharing import Share, locked, remove_locks
from c2vl_pipeline.execution.stage_manifest import commit, failure_as_a_whole, summary_of
from c2vl_pipeline.execution.task import ShardTask, run_shard
from c2vl_pipeline.stages import stages_of
from c2vl_pipeline.stages.base import FITS, Stage, check_shards, hang_mark, in_the_making, written_manifest
from c2vl_pipeline.stages.failures import too_many_failures
from c2vl_pipeline.stages.speed import SPEED, summed
from c2vl_pipeline.workspace import Workspace, load, shard_path

if TYPE_CHECKING:
    from c2vl_pipeline.execution.workers import Workers

MAX_FAILURES = 0.05
"""Share of rows that an engine may fail on before the stage stops: then the engine is at fault, not the rows."""

FEW_FAILURES = 100
"""Failed rows that never stop a stage: a share of very few rows says little."""


def run_stage(
    stage: Stage,
    work: Path,
    recipe: Recipe,
    *,
    workers: Workers | Callable[[], Workers | None] | None = None,
    limit: int | None = None,
    only: frozenset[int] | None = None,
    share: Share | None = None,
    redo: Redo | None = None,
    overwrite: bool = True,
    max_failures: float = MAX_FAILURES,
    emit: Emit = silent,
) -> StageManifest:
    """Run a stage: make every shard that is not committed under its present key.

    Args:
        stage: one of `stages.stages_of` the index.
        work: folder of the index and all stages.
        recipe: resolved.
        workers: processes to make shards in, or what gives them once there is something to make; None makes shards in
            this process, where a sample that kills its process or hangs for ever takes the run with it.
        limit: stop after the shards that hold this many samples; the stage stays incomplete.
        only: numbers of the shards that may be made; the others stay as they are.
        share: of the shards that this call may make, while other calls make the other shares. The last of them leaves
            the stage complete; what was left behind by killed ones is removed by a later call without a share.
        redo: shard number -> samples to make again although their shard is committed.
        overwrite: make shards again that were made under another configuration; if False, StageError is raised.
        max_failures: share of `failed` rows above which the stage stops; finished shards are kept. With 1, the stage
            may also fail as a whole, see `stages.failures`.
        emit: receives progress and notes.

    Returns:
        The stage's manifest, complete unless `limit`, `only` or `share` left shards out.

    Raises:
        StageError: an earlier stage is missing, another run is at work, too many rows or all of one kind fail, or
            workers die.
        EngineError: the engine cannot be loaded.
        OSError: the disk is full; what is committed stays.
    """
    index = load(work.absolute())  # workers of a scheduler have other current folders
    if whole := only is None:
        only = share.shards(len(index.shard_ranges)) if share else None
    _check_index(stage, index, recipe, whole=limit is None and only is None)
    folder, redo = index.work / stage.name, redo or {}
    folder.mkdir(parents=True, exist_ok=True)
    asked = max_failures < 1 and whole and not redo
    with locked(folder, share, emit):
        engine = engine_facts(stage, index, recipe)
        if only is None and limit is None and not redo and (made := finished_stage(stage, index, recipe, engine)):
            _tell_done(stage, index, shards := {*range(made.shards)}, shards, emit)
            return made
        keys = stage_keys(stage, index, recipe, engine)
        due = keys.due(index, limit, only, redo)
        for name in stage.upstream(recipe):
            check_shards(stages_of(index)[name], index, due, stage.command)
        if not overwrite:
            # in a share those of the others too: two with different settings would fill one stage
            _check_configuration(keys, folder, due if not share else range(len(index.shard_ranges)))
            _check_samples_kept(keys, folder, index, due)
        spec = stage.engine(recipe, index) if stage.engine else None
        if spec and due and not engines.wants_own_process(spec):
            engines.load(spec)  # a wrong option is found before anything is called unfinished
        _remove_leftovers(folder, keys, due, only if share else None)
        commit_text(inputs_path(folder, keys.manifest.key), keys.manifest.model_dump_json(include={"inputs"}))
        former = written_manifest(folder)  # a damaged one is written anew
        write_stage_manifest(folder, summary_of(keys, keys.done))
        done, statuses, speed, failed, told = dict(keys.done), Counter[str](), summed([]), False, False
        own = (share or Share(1, 1)).shards(len(index.shard_ranges))
        finished = set(own & (keys.done.keys() - set(due)))
        _tell_done(stage, index, own, finished, emit)
        if share and not only:
            emit(Note(f"{stage.name}: share {share} has nothing to make of {len(index.shard_ranges)} shards"))
        _tell_changed(stage, keys, due, emit)
        tasks = _tasks(keys, index, recipe, spec, due, keys.with_changed(index, redo))
        pool = None if not tasks else workers() if callable(workers) else workers
        with (
            # other workers of a scheduler may go on where one refuses, and so may other shares
            _as_before_if_refused(folder, None if share or (pool and pool.scheduler) else former),
            watching(
                lambda: in_the_making(folder, own - finished)[0],
                lambda: emit(progress(stage, index, own, set(finished), dict(statuses), speed)),
            ),
        ):
            for number, manifest in _execute(tasks, index, folder, pool, emit):
                done[number] = manifest
                statuses.update(manifest.statuses)
                finished.add(number)
                if not told and (fits := manifest.extra.get("provenance", {}).get(FITS)):
                    told = True
                    emit(Note(_smaller(stage, fits), "warning"))
                speed = summed([speed, manifest.extra.get("provenance", {}).get(SPEED, {})])
                emit(progress(stage, index, own, finished, statuses, speed))
                failed = statuses[Status.FAILED] > max(max_failures * statuses.total(), FEW_FAILURES)
                if failed:
                    break
            else:  # a worker that was killed in the middle of a commit left its file
                _remove_leftovers(folder, keys, due, only if share else None)
        summary = commit(folder, keys, done, index, recipe, share)
    if failed:
        raise StageError(too_many_failures(index, stage, statuses, max_failures))
    return _checked(summary, index, stage) if asked else summary


def _tell_done(stage: Stage, index: Workspace, own: Set[int], finished: Set[int], emit: Emit) -> None:
    """Tell which of a run's own shards are done before the first one is made."""
    if finished:
        emit(Note(f"{stage.name}: {len(finished)} of {len(own)} shards are already done"))
    emit(progress(stage, index, own, finished, {}, {}))


def _tell_changed(stage: Stage, keys: StageKeys, due: Iterable[int], emit: Emit) -> None:
    """Tell which files changed since their samples were made."""
    if files := [name for number in due for name in keys.changed.get(number, ())]:
        emit(Note(f"{stage.name}: {changed_since(files)}; their samples are made again"))


@contextmanager
def _as_before_if_refused(folder: Path, former: StageManifest | None) -> Iterator[None]:
    """Put the former manifest of a stage back where the engine refused its options before any shard was committed."""

    def committed() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.json")}

    before = committed()
    try:
        yield
    except EngineError:
        if former and committed() == before:
            write_stage_manifest(folder, former)
        raise


def _checked(summary: StageManifest, index: Workspace, stage: Stage) -> StageManifest:
    """Return a stage's manifest; raise StageError if the stage failed as a whole, which none that is sealed did."""
    if not summary.seal and (total := failure_as_a_whole(summary, index, stage)):
        raise StageError(total)
    return summary


def default_workers(stage: Stage, work: Path, recipe: Recipe) -> int:
    """Return how many processes suit a stage here: one per core, but one per GPU for engines that load weights."""
    if stage.engine and engines.wants_own_process(stage.engine(recipe, load(work))):
        return max(1, len(engines.gpus()))
    return usable_cores()


# -------------------------------------------------------------------------------------- before the first shard


def _check_index(stage: Stage, index: Workspace, recipe: Recipe, *, whole: bool) -> None:
    """Raise StageError if the raw folder or an earlier stage is absent; if `whole`, also if one is unfinished."""
    if not index.root.is_dir():
        raise StageError(
            f"the raw folder {index.root} is not there; mount it, or run `c2vl-pipeline index` again with "
            f"its new place: otherwise every row would report a missing file"
        )
    own, source = stages_of(index).get(stage.name, stage), "videos" if index.joints_from_videos else "skeleton files"
    if own.command != stage.command:
        raise StageError(
            f"the index of {index.work} takes joints from the {source}: run `c2vl-pipeline {own.command} --work {index.work}`, "
            f"or `c2vl-pipeline index` again with a recipe for {stage.command}"
        )
    if (recipe.pipeline.pose is not None) != index.joints_from_videos:
        raise StageError(
            f"the index of {index.work} takes joints from the {source}, and this recipe does not; give the recipe of the "
            "index, or run `c2vl-pipeline index` again with this one"
        )
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        again = f"run `c2vl-pipeline {stages_of(index)[name].command} --work {index.work}`"
        if manifest is None:
            raise StageError(f"{stage.command} needs the {name} of {index.work}, which do not exist; {again} first")
        if not manifest.complete and whole:
            raise StageError(
                f"{stage.command} needs all {name} of {index.work}: {manifest.rows:,} of "
                f"{manifest.expected_rows:,} rows exist; {again} again, or take the first ones with --limit"
            )
        frames = manifest.inputs.get("frames")
        if frames is not None and frames != recipe.pipeline.frames:
            raise StageError(
                f"{name} of {index.work} have {frames} frames per sample, this recipe asks for "
                f"{recipe.pipeline.frames}; give both stages the same pipeline.frames"
            )


def _check_configuration(keys: StageKeys, folder: Path, numbers: Iterable[int]) -> None:
    """Raise StageError if one of some shards was made by another engine or configuration: it may have cost days."""
    stage, work = keys.stage, folder.parent
    for number in numbers:
        shard = read_shard_manifest(shard_path(work, stage.name, number))
        if shard is None or shard.extra.get("stage") == keys.manifest.key:
            continue
        former = former_inputs(folder, str(shard.extra.get("stage")))
        changed = list(changes(former, keys.manifest.inputs)) if former else ["the former is not on record"]
        raise StageError(
            f"the {stage.name} of {work} were made under another configuration ({'; '.join(changed[:3])}); "
            f"give {stage.command} the same one, another --work, or --overwrite to make them again"
        )


def _check_samples_kept(keys: StageKeys, folder: Path, index: Workspace, due: list[int]) -> None:
    """Raise StageError if rows of samples that the index no longer has would be lost: it may be a mistake."""
    stage, work = keys.stage, folder.parent
    numbers = {int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json")}
    held: set[str] = set()
    for number in [*due, *(n for n in numbers if n >= len(keys.keys))]:
        shard = read_shard_manifest(shard_path(work, stage.name, number))
        held |= set(shard.extra.get("parts", {})) if shard else set()
    if held and (lost := held - set(index.table.column("sample_id").to_pylist())):
        raise StageError(
            f"the {stage.name} of {work} hold {len(lost):,} samples (e.g. {min(lost)}) that its index no "
            "longer has; run `c2vl-pipeline index` again without --limit, give another --work, or "
            "--overwrite to drop them"
        )


def _remove_leftovers(folder: Path, keys: StageKeys, due: list[int], own: frozenset[int] | None) -> None:
    """Remove what no due shard will read: temporary files, shards beyond the index, marks, locks, pieces and journals.

    Journals of a shard that is done but has samples to make again stay: their answers came when that was last tried.
    Of a share, only files of its own shards: other processes are writing the others.
    """

    def ours(path: Path) -> bool:
        number = re.match(r"\.?shard-(\d+)", path.name)
        return own is None or (number is not None and int(number[1]) in own)

    if own is None:
        remove_locks(folder)
    for leftover in [*folder.rglob(".*.tmp"), *folder.glob(".shard-*.hang"), *folder.glob(".shard-*.done")]:
        if ours(leftover):
            leftover.unlink(missing_ok=True)
    for path in folder.glob("shard-*.*"):
        number = path.stem.removeprefix("shard-")
        if own is None and number.isdigit() and int(number) >= len(keys.keys):
            path.unlink(missing_ok=True)
    unfinished = {f".shard-{n:05d}-{key[:12]}" for n, key in enumerate(keys.keys) if n not in keys.done}
    again = {f".shard-{n:05d}-{keys.keys[n][:12]}" for n in due}
    for leftover in [*folder.glob(".shard-*.piece"), *folder.glob(".shard-*.journal")]:
        stem = "-".join(leftover.name.split("-")[:3])
        if ours(leftover) and stem not in unfinished and not (stem in again and leftover.suffix == ".journal"):
            leftover.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- the shards


def _tasks(
    keys: StageKeys, index: Workspace, recipe: Recipe, spec: EngineSpec | None, due: list[int], redo: Redo
) -> list[ShardTask]:
    recipe_json, spec_json = recipe.model_dump_json(), spec.model_dump_json() if spec else None
    return [
        ShardTask(
            module=keys.stage.process.__module__,
            work=str(index.work),
            index=index.manifest.key,
            recipe=recipe_json,
            spec=spec_json,
            number=n,
            key=keys.keys[n],
            facts=keys.facts[n],
            redo=redo.get(n, frozenset()),
        )
        for n in due
    ]


def _execute(
    tasks: list[ShardTask], index: Workspace, folder: Path, pool: Workers | None, emit: Emit
) -> Iterator[tuple[int, ShardManifest]]:
    """Yield number and manifest of each shard; tasks of workers that die are tried again in smaller parts."""
    if pool is None:
        for task in tasks:
            if (manifest := run_shard(task)) is not None:
                yield task.number, manifest
        return
    from c2vl_pipeline.execution.recovery import FailureBisector
    from c2vl_pipeline.execution.workers import WorkerDied

    def sample_ids(number: int) -> list[str]:
        return [row["sample_id"] for row in index.shard(number, ["sample_id"])]

    bisector = FailureBisector(sample_ids, lambda number: hang_mark(folder, number))
    waiting = deque(tasks)
    for task, outcome in pool.run(waiting, index.work):
        if isinstance(outcome, WorkerDied):
            part = f"samples {task.span[0]} to {task.span[1]} of " if task.span else ""
            emit(Note(f"a worker died over {part}{folder.name} shard {task.number}; continuing", "warning"))
            waiting.extendleft(reversed(bisector.died(task)))
            for place, other in enumerate(waiting):
                waiting[place] = bisector.with_quarantined(other)
        elif outcome is not None:
            yield task.number, outcome
        else:
            waiting.extendleft(bisector.finished(task))


def _smaller(stage: Stage, fits: int) -> str:
    setting = f"pipeline.{stage.command}.engine.batch_size"
    return f"{stage.name}: memory ran out with a whole batch, {fits} at a time fit; --set {setting}={fits} saves the attempts"
