"""Real worker processes: they are killed, they hang, they are of another machine, and no row is lost or doubled."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import psutil
import pytest
from distributed import LocalCluster

from c2vl_manifests.errors import StageError
from c2vl_manifests.events import Event, Note, Progress
from c2vl_manifests.machine import usable_cores
from c2vl_manifests.manifest import StageManifest, read_shard, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.execution import runner, workers
from c2vl_pipeline.execution import workers as workers_module
from c2vl_pipeline.execution.task import ShardTask
from c2vl_pipeline.execution.workers import Workers, WorkerSetup
from c2vl_pipeline.stages import crop, skeletons
from c2vl_pipeline.workspace import shard_path
from support import ROOT, poison_stage
from support.factory import rows, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    """Two worker processes for the tests that leave them alive or have them started again."""
    with Workers(2) as workers:
        yield workers


@pytest.fixture(scope="module")
def reference(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> StageManifest:
    """The skeletons stage of the 32 samples, made in one go in this process."""
    work = start(raw, tmp_path_factory.mktemp("reference"))
    return runner.run_stage(skeletons.STAGE, work, recipe)


def test_a_call_of_dask_that_is_cut_short_says_nothing(two: Workers, tmp_path: Path) -> None:
    # Ctrl-C while the client asks its loop for something: the loop logs that its own clean-up failed
    two.client(tmp_path)
    assert not logging.getLogger("tornado.application").isEnabledFor(logging.ERROR)


# --------------------------------------------------------------------------------------- real deaths


def test_a_sample_that_kills_its_worker_costs_only_its_own_row(
    raw: Path, tmp_path: Path, recipe: Recipe, two: Workers
) -> None:
    work = start(raw, tmp_path / "w", 4)
    samples = workspace.load(work).table.column("sample_id").to_pylist()
    (work / "poison.txt").write_text(samples[5])
    events: list[Event] = []
    manifest = runner.run_stage(poison_stage.STAGE, work, recipe, workers=two, emit=events.append)
    assert manifest.complete
    assert manifest.statuses == {"failed": 1, "ok": 31}
    made = rows(work, "skeletons")
    assert [r["sample_id"] for r in made] == samples
    bad = {r["sample_id"]: r for r in made if r["status"] != "ok"}
    assert set(bad) == {samples[5]}
    for row in bad.values():
        assert (row["error_class"], row["frames"], row["joints"], row["frame_index"]) == ("WorkerDied", 0, b"", [])
        assert row["error"].endswith("try it again with `c2vl-pipeline prompts --retry-failed`")
    assert any(isinstance(e, Note) and "a worker died over" in e.text for e in events)
    assert [e.done for e in events if isinstance(e, Progress)] == list(range(0, 33, 4))
    assert sorted(p.name for p in (work / "skeletons").glob(".*")) == [".lock"]
    # mended, and tried again: only those two
    (work / "poison.txt").unlink()
    (work / "processes.txt").unlink()
    redo = {1: frozenset({samples[5]})}
    again = runner.run_stage(poison_stage.STAGE, work, recipe, workers=two, redo=redo)
    assert again.statuses == {"ok": 32}
    (line,) = (work / "processes.txt").read_text().splitlines()
    assert line.split()[1:] == ["1", "1"]
    attempts = {r["sample_id"]: r["attempts"] for r in rows(work, "skeletons")}
    assert {s for s, n in attempts.items() if n > 1} == {samples[5]}


def test_a_worker_killed_by_chance_costs_nothing_but_time(
    raw: Path, tmp_path: Path, recipe: Recipe, two: Workers, reference: StageManifest
) -> None:
    work = start(raw, tmp_path / "w")
    (work / "once.txt").write_text(workspace.load(work).table.column("sample_id")[9].as_py())
    manifest = runner.run_stage(poison_stage.STAGE, work, recipe, workers=two)
    assert (manifest.digest, manifest.statuses) == (reference.digest, reference.statuses)


def test_a_video_that_hangs_is_given_up_and_named(raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "raw"
    for path in sorted(raw.rglob("*")):
        target = folder / path.relative_to(raw)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    video = sorted(folder.rglob("*_rgb.avi"))[6]
    video.unlink()
    os.mkfifo(video)  # opening it waits for a writer, for ever
    work = start(folder, tmp_path / "w")
    config = recipe.pipeline.model_copy(update={"crop": recipe.pipeline.crop.model_copy(update={"timeout": 1.0})})
    with Workers(1) as one:
        manifest = runner.run_stage(crop.STAGE, work, recipe.model_copy(update={"pipeline": config}), workers=one)
    assert manifest.statuses == {"decode_error": 4, "ok": 124}
    bad = [r for r in rows(work, "crops") if r["status"] != "ok"]
    assert {r["sample_id"] for r in bad} == {video.name.removesuffix("_rgb.avi")}
    relative = video.relative_to(folder)
    assert {r["error"] for r in bad} == {f"reading {relative} took more than 1 s and was given up"}
    assert [r["slot"] for r in bad] == [0, 1, 2, 3]


DRIVER = """
import sys
from pathlib import Path
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import crop
from c2vl_pipeline.execution.workers import Workers
if __name__ == "__main__":
    with Workers(2) as workers:
        runner.run_stage(crop.STAGE, Path(sys.argv[1]), load_recipe("debug"), workers=workers)
"""


def test_a_killed_driver_takes_its_workers_along_and_the_next_run_goes_on(
    raw: Path, tmp_path: Path, recipe: Recipe, two: Workers
) -> None:
    work = start(raw, tmp_path / "w", 1)
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(work)])
    deadline = time.monotonic() + 60
    while len(list((work / "crops").glob("shard-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert gone
    assert alive == []
    before = {p.name: p.stat().st_mtime_ns for p in (work / "crops").glob("shard-*.json")}
    assert len(before) >= 3
    manifest = runner.run_stage(crop.STAGE, work, recipe, workers=two)
    assert (manifest.complete, manifest.rows) == (True, 128)
    after = {p.name: p.stat().st_mtime_ns for p in (work / "crops").glob("shard-*.json")}
    assert {name: after[name] for name in before} == before


def test_two_runs_of_one_stage_do_not_share_a_folder(raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    work = start(raw, tmp_path / "w")
    seen: list[str] = []

    def second(event: Event) -> None:
        if not seen:
            with pytest.raises(StageError) as caught:
                runner.run_stage(skeletons.STAGE, work, recipe)
            seen.append(str(caught.value))

    assert runner.run_stage(skeletons.STAGE, work, recipe, emit=second).complete
    assert seen[0].startswith(f"{work / 'skeletons'} is being filled by another run (process {os.getpid()} on ")
    assert runner.run_stage(skeletons.STAGE, work, recipe).complete


# -------------------------------------------------------------------------------------- what workers are


def test_an_engine_is_loaded_once_a_worker(raw: Path, tmp_path: Path, recipe: Recipe, two: Workers) -> None:
    work = start(raw, tmp_path / "w", 2)
    client = two.client(work)
    before = client.run(poison_stage.loads)
    runner.run_stage(crop.STAGE, work, recipe, workers=two)
    after = client.run(poison_stage.loads)
    assert before.keys() == after.keys()
    assert sum(after[w][0] - before[w][0] for w in after) >= 16  # once a shard at least
    assert all(after[w][1] - before[w][1] <= 1 for w in after)


def test_each_worker_gets_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    assert engines.gpus() == ("GPU-a", "5")
    with Workers(3) as workers:
        seen = workers.client(tmp_path).run(os.getenv, "CUDA_VISIBLE_DEVICES")
        threads = workers.client(tmp_path).run(os.getenv, "OMP_NUM_THREADS")
    assert Counter(seen.values()) == Counter({"GPU-a": 2, "5": 1})
    assert set(threads.values()) == {str(max(1, usable_cores() // 3))}
    leaks = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_")
    assert {n: os.environ.get(n) for n in leaks} == {n: before.get(n) for n in leaks}


def faults_of_a_frame() -> int:
    """Return the page faults of a block as large as a frame, once freed ones have been kept."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        _ = b"x" * (6 << 20)
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    return min(faults() for _ in range(50))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_worker_keeps_the_memory_of_a_frame_for_the_next(two: Workers, tmp_path: Path) -> None:
    client = two.client(tmp_path)
    assert client.submit(faults_of_a_frame, pure=False).result(timeout=60) < 100


@pytest.mark.parametrize(("shard_samples", "most"), [(32, 1), (16, 2)])
def test_no_more_workers_than_shards(raw: Path, tmp_path: Path, recipe: Recipe, shard_samples: int, most: int) -> None:
    work = start(raw, tmp_path / "w", shard_samples)
    with Workers(9) as workers:
        assert runner.run_stage(skeletons.STAGE, work, recipe, workers=workers).complete
        assert len(workers.client(work).scheduler_info(n_workers=-1)["workers"]) == most


def test_without_gpus_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    setup = WorkerSetup(())
    setup.setup(None)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers of their own on loopback, as `dask scheduler` and `dask worker` start them."""
    dask = [sys.executable, "-m", "dask"]
    # the stage that kills is a module of the tests
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    address = "tcp://127.0.0.1:18786"
    processes = [
        subprocess.Popen(
            [*dask, "scheduler", "--host", "127.0.0.1", "--port", "18786", "--no-dashboard"],
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    ]
    processes += [
        subprocess.Popen(
            [*dask, "worker", address, "--nthreads", "1", "--no-dashboard", "--resources", "GPU=1",
             "--local-directory", str(tmp_path / f"dask{n}")],
            stderr=subprocess.DEVNULL, env=environment,
        )
        for n in range(2)
    ]  # fmt: skip
    yield address
    for process in processes:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()


def test_a_scheduler_of_its_own_makes_the_same_rows_while_its_workers_are_killed(
    raw: Path, tmp_path: Path, recipe: Recipe, scheduler: str, reference: StageManifest
) -> None:
    work = start(raw, tmp_path / "w")
    (work / "once.txt").write_text(workspace.load(work).table.column("sample_id")[17].as_py())
    with Workers(scheduler=scheduler, resources={"GPU": 1}) as workers:
        manifest = runner.run_stage(poison_stage.STAGE, work, recipe, workers=workers)
    assert (manifest.digest, manifest.statuses) == (reference.digest, reference.statuses)
    assert not (work / "once.txt").exists()


def test_an_impossible_resource_is_refused_before_it_waits_for_ever(
    raw: Path, tmp_path: Path, recipe: Recipe, scheduler: str
) -> None:
    work = start(raw, tmp_path / "w")
    with Workers(scheduler=scheduler, resources={"GPU": 2}) as workers, pytest.raises(StageError) as caught:
        runner.run_stage(skeletons.STAGE, work, recipe, workers=workers)
    assert "no worker of tcp://127.0.0.1:18786 offers {'GPU': 2} (the best offers {'GPU': 1" in str(caught.value)
    assert "--resources 'GPU=2'" in str(caught.value)
    with Workers(resources={"GPU": 1}) as workers, pytest.raises(StageError, match="give --scheduler too"):
        workers.client(work)


def test_a_scheduler_without_workers_is_reported_once_each_time(raw: Path) -> None:
    class Deserted:
        status = "running"
        workers: ClassVar[dict[str, Any]] = {}

        def scheduler_info(self, n_workers: int) -> dict[str, Any]:
            return {"workers": self.workers}

    events: list[Event] = []
    workers, client = Workers(scheduler="tcp://login:8786", emit=events.append), cast(Any, Deserted())
    for there in ({"a": 1}, {}, {}, {"b": 1}, {}):
        client.workers = there
        workers._heal(client)
    texts = [event.text for event in events if isinstance(event, Note)]
    assert texts == ["tcp://login:8786 has lost all its workers; waiting until others join (Ctrl-C ends the run)"] * 2


def test_a_scheduler_that_is_not_there_is_named(raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    work = start(raw, tmp_path / "w")
    with (
        Workers(scheduler="tcp://127.0.0.1:1") as workers,
        pytest.raises(StageError, match=r"no Dask scheduler answers at tcp://127.0.0.1:1 .*`dask scheduler`"),
    ):
        runner.run_stage(skeletons.STAGE, work, recipe, workers=workers)


def test_no_more_than_two_jobs_a_worker_are_in_flight(two: Workers, tmp_path: Path) -> None:
    client = two.client(tmp_path)
    most = 0
    submit = client.submit
    running: set[Any] = set()

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal most
        future = submit(*args, **kwargs)
        running.add(future)
        most = max(most, sum(not f.done() for f in running))
        return future

    job = ShardTask("no_such_module", str(tmp_path), "i", "r", None, 0, "key", {})
    two._client = cast(Any, _Client(client, counted))
    try:
        waiting = deque(replace(job, number=n) for n in range(40))
        with pytest.raises(ModuleNotFoundError):
            list(two.run(waiting, tmp_path))
    finally:
        two._client = client
    assert 0 < most <= 4
    assert len(waiting) >= 35


class _Client:
    """A client whose `submit` is watched."""

    def __init__(self, client: Any, submit: Any) -> None:
        self._client, self.submit = client, submit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_what_was_made_before_a_driver_died_is_found_again(
    raw: Path, tmp_path: Path, recipe: Recipe, two: Workers
) -> None:
    """A poison is looked for, the driver dies in the middle, the next one uses the pieces."""
    work = start(raw, tmp_path / "w", 32)
    samples = workspace.load(work).table.column("sample_id").to_pylist()
    (work / "poison.txt").write_text(samples[3])

    def stop(event: Event) -> None:
        if isinstance(event, Note) and "samples 0 to 8" in event.text:
            raise RuntimeError("the driver dies here")

    with Workers(2) as lost, pytest.raises(RuntimeError, match="the driver dies here"):
        runner.run_stage(poison_stage.STAGE, work, recipe, workers=lost, emit=stop)
    pieces = list((work / "skeletons").glob(".*.piece"))
    assert pieces
    kept = {s for p in pieces for s in read_shard(p).column("sample_id").to_pylist()}
    (work / "poison.txt").unlink()
    (work / "processes.txt").unlink()
    manifest = runner.run_stage(poison_stage.STAGE, work, recipe, workers=two)
    assert manifest.statuses == {"ok": 32}
    (line,) = (work / "processes.txt").read_text().splitlines()
    assert int(line.split()[2]) == 32 - len(kept)
    assert not list((work / "skeletons").glob(".*.piece"))


def test_blank_rows_of_a_killer_have_every_stages_schema(work: Path) -> None:
    import pyarrow as pa

    from c2vl_pipeline.stages.base import blank_rows, row_status

    for stage in ("skeletons", "crops", "captions", "embeddings"):
        schema = read_shard(shard_path(work, stage, 0)).schema
        slots = None if stage == "skeletons" else 4
        status = row_status(Status.FAILED, "WorkerDied", "x")
        table = pa.Table.from_pylist(blank_rows(schema, "a", slots, status), schema=schema)
        table.validate(full=True)
        assert table.num_rows == (slots or 1)
        assert set(table.column("status").to_pylist()) == {"failed"}
        if stage == "embeddings":
            assert set(table.column("vision_status").to_pylist()) == {"failed"}


def test_a_job_lost_with_its_receipt_is_not_made_again(raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    work = start(raw, tmp_path / "w", 32)
    runner.run_stage(poison_stage.STAGE, work, recipe)
    manifest = read_shard_manifest(shard_path(work, "skeletons", 0))
    stage = read_stage_manifest(work / "skeletons")
    assert manifest is not None
    assert stage is not None
    from c2vl_pipeline.execution.task import run_shard

    job = ShardTask(
        "support.poison_stage", str(work), workspace.load(work).manifest.key, recipe.model_dump_json(), None, 0,
        manifest.key, {k: manifest.extra[k] for k in ("stage", "samples", "upstream")},
    )  # fmt: skip
    (work / "processes.txt").unlink()
    assert run_shard(job) == manifest
    assert not (work / "processes.txt").exists()


def test_a_cluster_whose_workers_stay_away_is_started_again(
    raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, reference: StageManifest
) -> None:
    monkeypatch.setattr(workers_module, "STUCK_AFTER", 1.0)
    monkeypatch.setattr(workers_module, "HEAL_EVERY", 0.5)
    monkeypatch.setattr(Workers, "_heal", lambda self, client: None)
    work = start(raw, tmp_path / "w")
    with Workers(1) as workers:
        client = workers.client(work)
        assert workers._cluster is not None
        (nanny,) = workers._cluster.workers.values()
        workers._cluster.sync(nanny.close)  # nobody will start its worker again
        manifest = runner.run_stage(skeletons.STAGE, work, recipe, workers=workers)
        assert workers._client is not client
    assert (manifest.digest, manifest.complete) == (reference.digest, True)


def test_a_worker_that_its_nanny_forgot_is_started_again(tmp_path: Path) -> None:
    with Workers(1) as workers:
        client = workers.client(tmp_path)
        assert workers._cluster is not None
        (nanny,) = workers._cluster.workers.values()
        workers._cluster.sync(nanny.kill)
        assert not nanny.is_alive()
        workers._heal(client)
        assert nanny.is_alive()


def test_a_worker_killed_while_it_starts_costs_another_start_and_never_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, cluster = [], LocalCluster

    def dies(*args: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) < 2:
            raise RuntimeError("Nanny failed to start.")
        return cluster(*args, **options)

    monkeypatch.setattr(workers, "LocalCluster", dies)
    with workers.Workers(1) as started:
        assert started.client(tmp_path).submit(abs, -3).result(timeout=60) == 3
    assert len(made) == 2
    monkeypatch.setattr(workers, "LocalCluster", _never)
    with workers.Workers(1) as started, pytest.raises(StageError, match=r"died 3 times while they started"):
        started.client(tmp_path)


def test_dask_writes_into_a_hidden_folder_of_the_work_folder_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary, others, work = tmp_path / "tmp", tmp_path / "of others", tmp_path / "w"
    for folder in (temporary / "dask-scratch-space", work / ".dask-left", others):
        folder.mkdir(parents=True)
    (others / "file").write_text("kept")
    (work / ".dask-left" / "link").symlink_to(others)
    (work / ".dask-link").symlink_to(others)
    for name in ("global.lock", "purge.lock"):
        (temporary / "dask-scratch-space" / name).symlink_to(others / "file")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    with Workers(1) as first, Workers(1) as second:
        first.client(work)
        (used,) = (path for path in work.iterdir() if path.is_dir() and not path.is_symlink())
        assert (used.stat().st_mode & 0o777, list(used.rglob("worker-*")) != []) == (0o700, True)
        second.client(work)  # of another stage
        assert used.is_dir()
    assert [path.name for path in work.iterdir()] == [".dask-link"]
    assert (others / "file").read_text() == "kept"
    assert len(list((temporary / "dask-scratch-space").iterdir())) == 2


def _never(**_: Any) -> Any:
    raise RuntimeError("Nanny failed to start.")
