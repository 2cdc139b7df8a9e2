"""Run a stage over its shards.

A shard is made again unless it is committed under the key that this run would give it (`keys`, `plan`). Tasks carry a shard
number to `task.run_shard`, here or in `workers`, and bring back a small result; the manifests on disk are the only
truth, so that any process may die at any moment.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.machine import usable_cores
from c2vl_manifests.manifest import ShardManifest, StageManifest, write_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import Redo, StageKeys, changed_since, engine_facts, finished_stage, stage_keys
from c2vl_pipeline.execution.plan import Plan, check_index, check_plan, leave_unfinished, remove_leftovers
from c2vl_pipeline.execution.progress import progress, watching
from c2vl_pipeline.execution.sharing import Share, locked
from c2vl_pipeline.execution.stage_manifest import commit, failure_as_a_whole
from c2vl_pipeline.execution.task import ShardTask, run_shard
from c2vl_pipeline.stages.base import FITS, Stage, hang_mark, in_the_making
from c2vl_pipeline.stages.failures import too_many_failures
from c2vl_pipeline.stages.speed import SPEED, summed
from c2vl_pipeline.workspace import Workspace, load

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
    asked = max_failures < 1 and only is None and not redo
    if share and only is None:
        only = share.shards(len(index.shard_ranges))
    check_index(stage, index, recipe, whole=limit is None and only is None)
    folder, redo = index.work / stage.name, redo or {}
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, share, emit):
        engine = engine_facts(stage, index, recipe)
        if only is None and limit is None and not redo and (found := finished_stage(stage, index, recipe, engine)):
            _tell_done(stage, index, shards := {*range(found.shards)}, shards, emit)
            return found
        keys = stage_keys(stage, index, recipe, engine)
        plan = Plan(index, recipe, keys, keys.due(index, limit, only, redo), redo, share, only)
        check_plan(plan, overwrite)
        former = leave_unfinished(plan)
        done, statuses = _make(plan, former, workers, max_failures, emit)
        summary = commit(folder, keys, done, index, recipe, share)
    if _too_many(statuses, max_failures):
        raise StageError(too_many_failures(index, stage, statuses, max_failures))
    return _checked(summary, index, stage) if asked else summary


def _make(
    plan: Plan,
    former: StageManifest | None,
    workers: Workers | Callable[[], Workers | None] | None,
    max_failures: float,
    emit: Emit,
) -> tuple[dict[int, ShardManifest], Counter[str]]:
    """Make what is due, until too many rows fail; return all finished shards, and the statuses of the rows made."""
    stage, index, keys, share = plan.stage, plan.index, plan.keys, plan.share
    done, statuses, speed, told = dict(keys.done), Counter[str](), summed([]), False
    own = (share or Share(1, 1)).shards(len(index.shard_ranges))
    finished = set(own & (keys.done.keys() - set(plan.due)))
    _tell_done(stage, index, own, finished, emit)
    if share and not plan.only:
        emit(Note(f"{stage.name}: share {share} has nothing to make of {len(index.shard_ranges)} shards"))
    _tell_changed(stage, keys, plan.due, emit)
    tasks = _tasks(plan)
    pool = None if not tasks else workers() if callable(workers) else workers
    with (
        # other workers of a scheduler may go on where one refuses, and so may other shares
        _as_before_if_refused(plan.folder, None if share or (pool and pool.scheduler) else former),
        watching(
            lambda: in_the_making(plan.folder, own - finished)[0],
            lambda: emit(progress(stage, index, own, set(finished), dict(statuses), speed)),
        ),
    ):
        for number, manifest in _execute(tasks, index, plan.folder, pool, emit):
            done[number] = manifest
            statuses.update(manifest.statuses)
            finished.add(number)
            if not told and (fits := manifest.extra.get("provenance", {}).get(FITS)):
                told = True
                emit(Note(_smaller(stage, fits), "warning"))
            speed = summed([speed, manifest.extra.get("provenance", {}).get(SPEED, {})])
            emit(progress(stage, index, own, finished, statuses, speed))
            if _too_many(statuses, max_failures):
                break
        else:  # a worker that was killed in the middle of a commit left its file
            remove_leftovers(plan)
    return done, statuses


def _too_many(statuses: Counter[str], max_failures: float) -> bool:
    """Return True if more rows failed than `max_failures` allows; the stage then stops."""
    return statuses[Status.FAILED] > max(max_failures * statuses.total(), FEW_FAILURES)


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


# ------------------------------------------------------------------------------------------------- the shards


def _tasks(plan: Plan) -> list[ShardTask]:
    keys, index, spec = plan.keys, plan.index, plan.spec
    recipe_json, spec_json = plan.recipe.model_dump_json(), spec.model_dump_json() if spec else None
    redo = keys.with_changed(index, plan.redo)
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
        for n in plan.due
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
