"""Worker processes of this machine or of a Dask scheduler, in which shards are made.

Imported only if workers are used, since it loads dask. Seen in practice, and guarded against: `retries=` of dask does
not count killed workers; an impossible resource request waits for ever in silence; with two tasks on a worker the
innocent one is blamed for its death; a paused worker that cannot free memory waits for ever; daemonic workers cannot
have children.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
from asyncio import CancelledError
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, WorkerPlugin
from distributed.comm.core import CommClosedError
from distributed.deploy.spec import close_clusters

from c2vl_manifests.errors import StageError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.machine import THREADS, keep_freed, usable_cores
from c2vl_manifests.manifest import ShardManifest, file_sha256
from c2vl_pipeline import engines
from c2vl_pipeline.execution.task import ShardTask, run_shard
from c2vl_pipeline.workspace import load

WAIT_FOR_WORKERS = 600.0
"""Seconds to wait for the first worker of a scheduler."""

STARTS = 3
"""Attempts to start the processes: one that is killed before it has joined takes the whole cluster with it."""

HEAL_EVERY = 2.0
"""Seconds without a finished task after which the workers are checked."""

LARGEST_KEPT = 32 << 20
"""Bytes of a freed block that a worker keeps: a decoded frame of 4K is smaller, and glibc takes no more."""

_SCRATCH = ".dask-"

STUCK_AFTER = 30.0
"""Seconds in which no worker holds a task, although tasks wait, until a local cluster is started again."""


class WorkerSetup(WorkerPlugin):
    """Prepare a worker before its first task: one decoder thread, memory kept, and one GPU of those that exist."""

    name = "c2vl"

    def __init__(self, gpus: tuple[str, ...]) -> None:
        self.gpus = gpus

    def setup(self, worker: Any) -> None:
        """Run in the worker; torch is not imported yet, so it will see only this GPU."""
        import cv2

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors are reported once, by the driver
        cv2.setNumThreads(1)  # the workers are the parallelism
        # dask has its workers return all above 64 KB at once: a third of the time of `pose`, a twentieth of `crop`
        keep_freed(LARGEST_KEPT)
        with suppress(ValueError):  # Ctrl-C reaches the whole terminal: the driver ends its workers
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus[int(worker.name) % len(self.gpus)]


@dataclass(frozen=True)
class WorkerDied:
    """A worker died while it held this task."""


def _visit(index: str, root: str | None = None) -> dict[str, Any]:
    """Return a worker's host and version, and whether it sees the work folder and the raw folder."""
    from importlib.metadata import version

    path = Path(index)
    return {
        "host": socket.gethostname(),
        "version": version("c2vl"),
        "sees": file_sha256(path) if path.is_file() else None,
        "raw": root is None or Path(root).is_dir(),
    }


@dataclass
class Workers:
    """Worker processes, started for the first task and kept until closed.

    Args:
        count: most processes of a local cluster; no more are started than tasks wait. Ignored with a scheduler.
        scheduler: address of a running Dask scheduler (`tcp://host:8786`).
        resources: what every task needs of its worker (`{"GPU": 1}`), checked against what workers offer.
        emit: receives notes while waiting for workers.
    """

    count: int = 1
    scheduler: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    emit: Emit = silent
    _stack: ExitStack = field(default_factory=ExitStack)
    _client: Client | None = None
    _cluster: LocalCluster | None = None
    _started: int = 0
    """Processes of the local cluster."""
    _deserted: bool = False
    """True while the scheduler has no worker left."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the processes; the next task starts them again."""
        self._stack.close()
        self._client = self._cluster = None

    def client(self, work: Path) -> Client:
        """Return the connected client; starts the cluster or joins the scheduler the first time.

        Raises:
            StageError: no scheduler answers at the address, no worker joins, a worker does not see the work folder or
                has another version, or no worker offers the resources.
        """
        if self._client is None:
            logging.getLogger("distributed").setLevel(logging.CRITICAL)  # deaths are reported by the runner
            # a call cut short by Ctrl-C is no news; dask gives this logger a level of its own
            logging.getLogger("tornado.application").setLevel(logging.CRITICAL)
            self._client = self._join() if self.scheduler else self._local(work)
            if self.scheduler:
                self._check(self._client, work / "samples.parquet")
        return self._client

    def _local(self, work: Path) -> Client:
        if self.resources:
            raise StageError(
                f"resources {dict(self.resources)} are asked of a scheduler's workers; give --scheduler too, "
                f"or omit them"
            )
        self._started = self._started or self.count
        self._share_cores()
        settings = {
            "distributed.worker.daemon": False,  # an engine may start a process
            "distributed.admin.system-monitor.gil.enabled": False,
            "distributed.scheduler.allowed-failures": 0,  # deaths are counted here, by shard and span
            "distributed.scheduler.worker-saturation": 1.0,  # one task per worker: none is blamed for another
            "distributed.worker.profile.enabled": False,  # it looks at every worker's stack a hundred times a second
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
            "distributed.worker.use-file-locking": False,  # nobody else uses the scratch folder
            # Idle event loops of a driver and two workers took 9 % of a core with dask's intervals, of which the
            # work lives: stealing has nothing to steal where no worker has a task in reserve.
            "distributed.admin.tick.interval": "1s",
            "distributed.admin.tick.limit": "1h",
            "distributed.admin.system-monitor.interval": "5s",
            "distributed.worker.memory.monitor-interval": "1s",
            "distributed.scheduler.work-stealing": False,
        }
        self._stack.enter_context(dask.config.set(settings))
        scratch = self._stack.enter_context(_scratch(work))
        for left in reversed(range(STARTS)):
            with ExitStack() as stack:
                try:
                    cluster = stack.enter_context(
                        LocalCluster(
                            n_workers=self._started,
                            threads_per_worker=1,
                            processes=True,
                            local_directory=str(scratch),
                            dashboard_address=None,
                            # without a port of its own, a second run on the machine warns that 8787 is taken
                            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                        )
                    )
                    client: Client = stack.enter_context(Client(cluster))
                    client.register_plugin(WorkerSetup(engines.gpus()))
                except (RuntimeError, CommClosedError, TimeoutError) as error:
                    if left:
                        continue
                    raise StageError(
                        f"worker processes died {STARTS} times while they started ({type(error).__name__}: "
                        f"{error}); look for exhausted memory (fewer --workers) "
                        "or a broken installation, then run the stage again: finished shards are kept"
                    ) from error
                except KeyboardInterrupt:
                    # a cluster that is half started: dask's handler at exit fails on it with a traceback
                    atexit.unregister(close_clusters)
                    with suppress(Exception):
                        close_clusters()
                    raise
                self._stack.push(stack.pop_all())
                self._cluster = cluster
                return client
        raise AssertionError

    def _share_cores(self) -> None:
        """Give each worker its share of the cores through the environment, and restore it when they are closed.

        All libraries get one number. dask sets such variables for good, and only where they are not set yet: the second
        cluster of a process, or any program started after the first, would inherit the first one's.
        """
        before = {name: os.environ.get(name) for name in (*THREADS, "MALLOC_TRIM_THRESHOLD_")}
        threads = before["OMP_NUM_THREADS"] or str(max(1, usable_cores() // self._started))
        os.environ.update(dict.fromkeys(THREADS, threads))

        def restore() -> None:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

        self._stack.callback(restore)

    def _join(self) -> Client:
        address = str(self.scheduler)
        try:
            client: Client = self._stack.enter_context(Client(address, timeout=20))
        except (OSError, ValueError, TypeError) as error:
            raise StageError(
                f"no Dask scheduler answers at {address} ({type(error).__name__}); start one with `dask "
                f"scheduler` and give its tcp:// address"
            ) from error
        if not client.scheduler_info(n_workers=-1)["workers"]:
            self.emit(Note(f"{address} has no workers yet; waiting up to {WAIT_FOR_WORKERS:.0f} s", "warning"))
            try:
                client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
            except TimeoutError as error:
                raise StageError(
                    f"no worker joined {address} within {WAIT_FOR_WORKERS:.0f} s; start some with `dask "
                    f"worker {address} --nthreads 1` and run the stage again"
                ) from error
        return client

    def _check(self, client: Client, index: Path) -> None:
        joined = client.scheduler_info(n_workers=-1)["workers"].values()
        if broad := [w for w in joined if w["nthreads"] > 1]:
            raise StageError(
                f"{len(broad)} of {len(joined)} workers of {self.scheduler} run {broad[0]['nthreads']} tasks "
                f"at once, and an engine serves one; start workers with --nthreads 1"
            )
        offered = [w["resources"] for w in joined]
        enough = (all(o.get(k, 0) >= v for k, v in self.resources.items()) for o in offered)
        if self.resources and not any(enough):
            best: dict[str, float] = max(offered, key=lambda o: sum(o.get(k, 0) for k in self.resources), default={})
            raise StageError(
                f"no worker of {self.scheduler} offers {dict(self.resources)} (the best offers "
                f"{best or 'nothing'}), and the tasks would wait for ever; start workers with --resources "
                f"'{' '.join(f'{k}={v:g}' for k, v in self.resources.items())}' or ask for less"
            )
        try:
            root = str(load(index.parent).root)
            seen = client.run(_visit, str(index), root)
        except Exception as error:  # unpickling on another machine can raise anything
            raise StageError(
                f"a worker of {self.scheduler} cannot run this package ({type(error).__name__}: {error}); "
                f"install the same c2vl there"
            ) from error
        here = _visit(str(index))
        for address, there in seen.items():
            if there["version"] != here["version"]:
                raise StageError(
                    f"worker {address} on {there['host']} has c2vl {there['version']}, this is "
                    f"{here['version']}; install the same version there"
                )
            if there["sees"] != here["sees"]:
                raise StageError(
                    f"worker {address} on {there['host']} does not see {index}; put the work folder and the "
                    f"raw data on storage that all machines share, under one path"
                )
            if not there["raw"]:
                raise StageError(
                    f"worker {address} on {there['host']} does not see the raw folder {root}; mount it there "
                    f"under the same path"
                )
        client.register_plugin(WorkerSetup(()))

    def run(
        self, waiting: deque[ShardTask], work: Path
    ) -> Iterator[tuple[ShardTask, ShardManifest | WorkerDied | None]]:
        """Run the waiting tasks, about two per worker in flight; the caller may add to `waiting` at any time."""
        useful = min(self.count, len(waiting))
        if useful > self._started and not self.scheduler:
            self.close()
            self._started = useful
        client = self.client(work)
        running: dict[Future[Any], ShardTask] = {}
        done: SimpleQueue[Future[Any]] = SimpleQueue()
        idle = 0.0
        while waiting or running:
            while waiting and len(running) < 2 * self._size(client):
                task = replace(waiting.popleft(), killable=True)
                future = client.submit(run_shard, task, pure=False, resources=dict(self.resources) or None)
                running[future] = task
                future.add_done_callback(done.put)
            try:
                future = done.get(timeout=HEAL_EVERY)
            except Empty:
                self._heal(client)
                # no worker holds a task although there are tasks: start the cluster again and hand them out anew
                idle = 0.0 if any(client.processing().values()) else idle + HEAL_EVERY
                if idle >= STUCK_AFTER and self._cluster is not None:
                    self.close()
                    client, idle = self.client(work), 0.0
                    waiting.extendleft(running.values())
                    running.clear()
                continue
            if future not in running:
                continue  # from before the cluster was restarted
            idle = 0.0
            task = running.pop(future)
            try:
                outcome: ShardManifest | WorkerDied | None = future.result()
            except KilledWorker:
                outcome = WorkerDied()
            except (CommClosedError, CancelledError, TimeoutError) as error:
                raise _lost(error) from error
            yield task, outcome

    def _size(self, client: Client) -> int:
        if self._cluster is not None:
            return self._started
        return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))

    def _heal(self, client: Client) -> None:
        """Start workers again that did not come back, and raise StageError if the scheduler is gone.

        A nanny starts its worker again when it dies, except when that happens before it had noted that the
        worker was up: then it would wait for ever. Workers of a scheduler are waited for: a queue may need hours.
        """
        if client.status not in {"running", "connecting"}:
            raise _lost(ConnectionError(client.status))
        if self.scheduler:
            deserted = not client.scheduler_info(n_workers=-1)["workers"]
            if deserted and not self._deserted:
                text = f"{self.scheduler} has lost all its workers; waiting until others join (Ctrl-C ends the run)"
                self.emit(Note(text, "warning"))
            self._deserted = deserted
        if self._cluster is not None:
            for nanny in self._cluster.workers.values():
                if not nanny.is_alive():
                    self._cluster.sync(nanny.instantiate)


@contextmanager
def _scratch(work: Path) -> Iterator[Path]:
    """Yield a new folder below the work folder for what dask writes; its default has one name for all users of a machine.

    The folder is locked as long as this process lives, so that one left by a killed process is known, and removed here.
    """
    for left in work.glob(f"{_SCRATCH}*"):
        with suppress(OSError), _held(left):  # OSError: in use, a link, or no locks here
            shutil.rmtree(left)
    with (
        tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=work, ignore_cleanup_errors=True) as name,
        ExitStack() as stack,
    ):
        with suppress(OSError):
            stack.enter_context(_held(Path(name)))
        yield Path(name)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder; OSError where another process holds it, or where it is a link."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _lost(error: BaseException) -> StageError:
    return StageError(f"the scheduler was lost ({type(error).__name__}); finished shards are kept, run the stage again")
