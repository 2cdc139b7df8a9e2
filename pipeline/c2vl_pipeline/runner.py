"""Runs a stage over its shards: plan, resume, workers, per-row status. The only module that knows workers.

A stage is a function from a shard of samples to a table. Here it is decided which shards are still to make
(`finished_shard`), where they run (this process, or Dask's LocalCluster), and when the stage is complete. Tasks
carry a shard number and return a small receipt; the manifests on disk are the only truth.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2vl_manifests.config import Recipe
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import C2VLError, StageError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    commit_table,
    fingerprint,
    finished_shard,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
    write_stage_manifest,
)
from c2vl_manifests.schema import SCHEMA_VERSION, Status
from c2vl_pipeline import engines
from c2vl_pipeline.index import Index, load

COMMANDS = {"skeletons": "skeletons", "crops": "crop", "captions": "caption", "embeddings": "embed"}
"""Stage folder -> the command that fills it."""

MAX_ERROR = 300
"""Characters of an error text that a row keeps."""


@dataclass(frozen=True)
class Stage:
    """One step of the road: `process` makes a shard's table; `upstream(recipe)` are the stages whose shards it reads."""

    name: str
    command: str
    process: Callable[[Shard], pa.Table]
    upstream: Callable[[Recipe], tuple[str, ...]]
    row_group: int
    per_frame: bool = False
    """A row for each (sample, frame) rather than each sample."""
    engine: Callable[[Recipe, Index], EngineSpec] | None = None
    byte_stream_split: tuple[str, ...] = ()
    reads_joints: bool = False
    """Whether the names and order of the joints matter to it."""
    prepare: Callable[[Index, Path, EngineSpec, Emit], Mapping[str, Any]] | None = None
    """Work done once in the driver before the shards; what it returns is part of the stage key."""


@dataclass(frozen=True)
class Shard:
    """What a stage's `process` is given."""

    index: Index
    recipe: Recipe
    number: int
    spec: EngineSpec | None = None
    folder: Path = field(default=Path())

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of the index."""
        return self.index.shard(self.number)

    @cached_property
    def engine(self) -> Any:
        """The stage's engine, loaded once a process."""
        assert self.spec is not None
        return engines.load(self.spec)

    def upstream(self, stage: str) -> pa.Table:
        """Read the same shard of an earlier stage."""
        return read_shard(shard_path(self.index.work, stage, self.number))


def shard_path(work: Path, stage: str, number: int) -> Path:
    """Path of a shard; its manifest lies beside it."""
    return work / stage / f"shard-{number:05d}.parquet"


def row_status(
    status: Status, error_class: str | None = None, error: str | None = None, attempts: int = 1
) -> dict[str, Any]:
    """Return the status columns of a row."""
    return {"status": str(status), "error_class": error_class, "error": error, "attempts": attempts}


def failure(error: BaseException, status: Status = Status.FAILED, attempts: int = 1) -> dict[str, Any]:
    """Return the status columns of a row that an exception befell."""
    return row_status(status, type(error).__name__, str(error)[:MAX_ERROR], attempts)


def in_batches(
    items: list[Any], size: int, call: Callable[[list[Any]], list[Any]]
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result or exception) of a batched engine call, isolating the items that break it.

    A batch that raises is tried again one item at a time, so a poisonous row costs one row. Our own errors, a
    full disk and exhausted memory are not about one row and pass through.
    """
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        try:
            answered = list(zip(batch, call(batch), strict=True))
        except (C2VLError, OSError, MemoryError):
            raise
        except Exception:
            answered = []
        if answered:
            yield from answered
            continue
        for item in batch:
            try:
                (answer,) = call([item])
            except (C2VLError, OSError, MemoryError):
                raise
            except Exception as error:
                yield item, error
            else:
                yield item, answer


# ------------------------------------------------------------------------------------------------ plan


@dataclass(frozen=True)
class Plan:
    """What a stage would do now: keys of all shards, and which are done."""

    stage: Stage
    manifest: StageManifest
    keys: tuple[str, ...]
    done: dict[int, ShardManifest]


def stage_inputs(
    stage: Stage, index: Index, recipe: Recipe, spec: EngineSpec | None, prepared: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that determines a stage's rows beside its upstream shards; hashed into its key."""
    configs: dict[str, Any] = {
        "skeletons": recipe.pipeline.skeletons.model_dump(mode="json"),
        "crops": recipe.pipeline.crop.model_dump(mode="json", exclude={"engine"}),
        "captions": recipe.pipeline.caption.model_dump(mode="json", exclude={"engine"}),
        "embeddings": recipe.pipeline.embed.model_dump(mode="json", exclude={"engine"}),
    }
    engine = None
    if spec is not None:
        # where and in which batches a model runs does not change what it says
        engine = spec.model_dump(mode="json", exclude={"device", "batch_size"}) | engines.identity(spec)
    return {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "layout": index.manifest.extra["layout"] if stage.reads_joints else None,
        "frames": recipe.pipeline.frames if stage.per_frame else None,
        "config": configs[stage.name],
        "engine": engine,
        "prepared": dict(prepared),
    }


def _predecessors(stage: Stage, index: Index, recipe: Recipe) -> None:
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        if manifest is None:
            raise StageError(
                f"{stage.command} needs the {name} of {index.work}, which do not exist; run `c2vl-pipeline {COMMANDS[name]} --work {index.work}` first"
            )


def make_plan(stage: Stage, index: Index, recipe: Recipe, prepared: Mapping[str, Any]) -> Plan:
    """Compute the keys of all shards and find which are committed under them.

    A shard's key binds the stage's inputs, its samples and the sizes of their files, and the digests of the
    upstream shards: a repaired video costs its shard, a change upstream that leaves the rows as they were nothing.
    """
    spec = stage.engine(recipe, index) if stage.engine else None
    inputs = stage_inputs(stage, index, recipe, spec, prepared)
    key = fingerprint(inputs)
    keys = []
    for number, samples in enumerate(index.shard_keys):
        digests: list[str | None] = []
        for name in stage.upstream(recipe):
            shard = read_shard_manifest(shard_path(index.work, name, number))
            digests.append(shard.digest if shard else None)
        keys.append(fingerprint({"stage": key, "samples": samples, "upstream": digests}))
    done = {
        n: m
        for n, k in enumerate(keys)
        if (m := finished_shard(shard_path(index.work, stage.name, n), k)) is not None
    }
    per_sample = recipe.pipeline.frames if stage.per_frame else 1
    manifest = StageManifest(
        stage=stage.name,
        key=key,
        inputs=inputs,
        shards=len(keys),
        expected_rows=index.table.num_rows * per_sample,
    )
    return Plan(stage, manifest, tuple(keys), done)


# ------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True)
class Job:
    """What travels to a worker."""

    module: str
    work: str
    recipe: str
    spec: str | None
    number: int
    key: str
    samples: str
    """`Index.shard_keys` of the shard: computed once by the driver, not once a shard."""


def run_shard(job: Job) -> dict[str, Any]:
    """Make and commit one shard; runs in a worker. Returns a receipt."""
    import importlib

    stage: Stage = importlib.import_module(job.module).STAGE
    started = time.monotonic()
    shard = Shard(
        index=load(Path(job.work)),
        recipe=Recipe.model_validate_json(job.recipe),
        number=job.number,
        spec=EngineSpec.model_validate_json(job.spec) if job.spec else None,
        folder=Path(job.work) / stage.name,
    )
    table = stage.process(shard)
    per_sample = shard.recipe.pipeline.frames if stage.per_frame else 1
    expected = len(shard.samples) * per_sample
    if table.num_rows != expected:
        raise StageError(
            f"{stage.name} shard {job.number} made {table.num_rows} rows for {expected} expected; this is a bug, please report it"
        )
    manifest = commit_table(
        shard_path(shard.index.work, stage.name, job.number),
        table,
        key=job.key,
        row_group=stage.row_group,
        seconds=time.monotonic() - started,
        byte_stream_split=stage.byte_stream_split,
        extra={
            "samples": job.samples,
            "provenance": dict(shard.engine.describe()) if shard.spec else {},
        },
    )
    return {"number": job.number, "manifest": manifest.model_dump_json()}


def _in_process(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    for job in jobs:
        yield run_shard(job)


def _worker_setup() -> None:
    """Make a worker decode and compute on its one core: the workers are the parallelism."""
    import cv2

    cv2.setNumThreads(1)


def _on_cluster(jobs: list[Job], workers: int) -> Iterator[dict[str, Any]]:
    """Run jobs on a LocalCluster with about two a worker in flight."""
    import logging

    import dask
    from distributed import Client, KilledWorker, LocalCluster, as_completed

    logging.getLogger("distributed").setLevel(logging.ERROR)
    # daemons cannot have children, and an engine may want to start a process of its own
    settings = {"distributed.worker.daemon": False, "distributed.admin.system-monitor.gil.enabled": False}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(_worker_setup)
        waiting = iter(jobs)
        running = as_completed(
            [client.submit(run_shard, job, pure=False) for job in islice(waiting, 2 * workers)]
        )
        for future in running:
            try:
                yield future.result()
            except KilledWorker as error:
                raise StageError(
                    f"a worker died again and again on one shard ({error}); look for memory or a poisonous file, then run the stage again"
                ) from error
            following = next(waiting, None)
            if following is not None:
                running.add(client.submit(run_shard, following, pure=False))


def run(
    stage: Stage,
    work: Path,
    recipe: Recipe,
    *,
    workers: int = 1,
    limit: int | None = None,
    emit: Emit = silent,
) -> StageManifest:
    """Run a stage: make every shard that is not committed under its present key.

    Args:
        stage: which one.
        work: folder of the index and all stages.
        recipe: resolved.
        workers: 1 runs in this process, more on a local Dask cluster.
        limit: stop after the shards that hold this many samples; the stage stays incomplete.
        emit: receives progress and notes.

    Returns:
        The stage's manifest, complete unless `limit` cut it short.

    Raises:
        StageError: a predecessor is missing, or workers died.
        EngineError: the engine cannot be loaded.
        OSError: the disk is full; what is committed stays.
    """
    index = load(work)
    _predecessors(stage, index, recipe)
    folder = work / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    for orphan in folder.rglob(".*.tmp"):
        orphan.unlink(missing_ok=True)
    spec = stage.engine(recipe, index) if stage.engine else None
    prepared = stage.prepare(index, folder, spec, emit) if stage.prepare and spec else {}
    plan = make_plan(stage, index, recipe, prepared)
    done = dict(plan.done)
    todo = [n for n in range(len(plan.keys)) if n not in done]
    if limit is not None:
        covered = 0
        wanted = set()
        for n, (a, b) in enumerate(index.plan):
            if covered < limit:
                wanted.add(n)
                covered += b - a
        todo = [n for n in todo if n in wanted]
    _no_gaps_upstream(stage, index, recipe, limit, todo)
    _drop_shards_beyond(folder, len(plan.keys))
    write_stage_manifest(folder, _summary(plan, done))
    jobs = [
        Job(
            module=stage.process.__module__,
            work=str(work),
            recipe=recipe.model_dump_json(),
            spec=spec.model_dump_json() if spec else None,
            number=n,
            key=plan.keys[n],
            samples=index.shard_keys[n],
        )
        for n in todo
    ]
    samples = [b - a for a, b in index.plan]
    finished, total = sum(samples[n] for n in done), sum(samples)
    if done:
        emit(Note(f"{stage.name}: {len(done)} of {len(samples)} shards are already done"))
    emit(Progress(stage.name, finished, total))
    statuses: Counter[str] = Counter()
    for receipt in _on_cluster(jobs, workers) if workers > 1 and len(jobs) > 1 else _in_process(jobs):
        manifest = ShardManifest.model_validate_json(receipt["manifest"])
        done[receipt["number"]] = manifest
        finished += samples[receipt["number"]]
        statuses.update(manifest.statuses)
        emit(Progress(stage.name, finished, total, info={k: v for k, v in statuses.items() if k != "ok"}))
    summary = _summary(plan, done)
    write_stage_manifest(folder, summary)
    return summary


def _no_gaps_upstream(stage: Stage, index: Index, recipe: Recipe, limit: int | None, todo: list[int]) -> None:
    """Refuse to run over a predecessor that is unfinished or of other samples, unless only first ones are asked for."""
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        if manifest is None:
            continue
        if not manifest.complete and limit is None:
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


def check_shards(index: Index, name: str, numbers: Iterable[int], reader: str) -> None:
    """Refuse shards that are absent, damaged, or made from other samples or files than the present index names.

    Raises:
        StageError: naming the shard and the command that makes it again.
    """
    for number in numbers:
        path = shard_path(index.work, name, number)
        shard = read_shard_manifest(path)
        if shard is None or finished_shard(path, shard.key) is None:
            problem = "is absent or damaged"
        elif shard.extra.get("samples") != index.shard_keys[number]:
            problem = "was made from other samples or files than the index names now"
        else:
            continue
        raise StageError(
            f"{reader} needs {path}, which {problem}; run `c2vl-pipeline {COMMANDS[name]} --work {index.work}` again"
        )


def _drop_shards_beyond(folder: Path, count: int) -> None:
    """Remove shards of an earlier, longer plan: nothing may read them again."""
    for path in folder.glob("shard-*.*"):
        number = path.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= count:
            path.unlink(missing_ok=True)


def _summary(plan: Plan, done: Mapping[int, ShardManifest]) -> StageManifest:
    statuses: Counter[str] = Counter()
    provenance: dict[str, Any] = {}
    for manifest in done.values():
        statuses.update(manifest.statuses)
        provenance |= manifest.extra.get("provenance", {})
    complete = len(done) == len(plan.keys)
    libraries = {name: version(name) for name in ("c2vl", "numpy", "pyarrow", "opencv-python")}
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
