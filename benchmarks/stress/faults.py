"""The harm that `chaos` does: raw files replaced by garbage, committed files damaged, processes killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from chaos_report import Kill

DRIVER_SHARE, WINDOW_SHARE = 0.18, 0.5
"""Kills that hit the driver; kills that wait for a commit."""

WORKING_SHARE = 0.85
"""Runs that are left alone until they have committed something; the others may be killed while they start."""

GARBAGE = ("random bytes", "cut to 60 %", "no bytes", "zeros of the same size", "random bytes of the same size")

# --------------------------------------------------------------------------------------------- garbage


def spoil(path: Path, how: str, rng: random.Random) -> None:
    """Replace a (linked) raw file by garbage."""
    size = path.stat().st_size
    makers: dict[str, Callable[[], bytes]] = {
        "random bytes": lambda: rng.randbytes(size // 2 + 7),
        "cut to 60 %": lambda: path.read_bytes()[: size * 6 // 10],
        "no bytes": lambda: b"",
        "zeros of the same size": lambda: bytes(size),
        "random bytes of the same size": lambda: rng.randbytes(size),
    }
    data = makers[how]()
    path.unlink()  # the link, not what it points to
    path.write_bytes(data)


# ---------------------------------------------------------------------------------------------- damage


def flip(path: Path, rng: random.Random) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def damage(folder: Path, rng: random.Random) -> str | None:
    """Damage one committed thing of a stage folder; returns what was done, or None if there is nothing yet."""
    shards = sorted(p for p in folder.glob("shard-*.parquet") if p.with_suffix(".json").is_file())
    journals = sorted(folder.glob(".shard-*.journal"))
    kinds = ["a shard cut", "a bit of a shard", "a bit of a manifest", "a manifest deleted", "a shard deleted"]
    kinds = [*kinds, "an orphan left"] if shards else []
    if journals and (not kinds or rng.random() < 0.5):  # they are rarely there
        kinds = ["a journal cut", "a bit of a journal"]
    if not kinds:
        return None
    what = rng.choice(kinds)
    path = rng.choice(journals if "journal" in what else shards)
    if what.endswith("cut"):
        os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))
    elif what == "a manifest deleted":
        path.with_suffix(".json").unlink()
    elif what == "a shard deleted":
        path.unlink()
    elif what == "an orphan left":
        path.with_name(f".{path.name}.{uuid.UUID(int=rng.getrandbits(128)).hex[:12]}.tmp").write_bytes(
            rng.randbytes(99)
        )
    elif (target := path.with_suffix(".json") if "manifest" in what else path).stat().st_size:
        flip(target, rng)
    return what


# ------------------------------------------------------------------------------------------------ kill


def _workers(driver: psutil.Process) -> list[psutil.Process]:
    """Return the living worker processes of a driver."""
    found = []
    try:
        for child in driver.children(recursive=True):
            line = child.cmdline()
            if child.status() != psutil.STATUS_ZOMBIE and any("spawn_main" in part for part in line):
                found.append(child)
    except psutil.NoSuchProcess:
        pass
    return found


def _half_written(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder) if entry.name.endswith(".tmp")}
    except FileNotFoundError:
        return set()


def _writer(workers: list[psutil.Process], names: set[str], rng: random.Random) -> psutil.Process:
    """Return the process that has one of the files open, else any."""
    for worker in workers:
        try:
            if any(Path(file.path).name in names for file in worker.open_files()):
                return worker
        except psutil.Error:
            continue
    return rng.choice(workers)


class Killer:
    """Kills processes of one run of a stage."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> None:
        self.process, self.folder, self.rng = process, folder, rng
        self.driver = psutil.Process(process.pid)
        self.started = time.time()
        self.seen: set[psutil.Process] = set()

    def disturb(self, most: int) -> list[Kill]:
        """Kill until the run has ended, or its driver is dead, or so many kills are made."""
        made: list[Kill] = []
        if most and self.rng.random() < WORKING_SHARE:
            self._wait_for_work()
        while len(made) < most and self._wait_for_workers():
            committing = self._moment()
            victim = "driver" if self.rng.random() < DRIVER_SHARE else "worker"
            if self._kill(victim, committing):
                time.sleep(0.05)
                torn = bool(committing & _half_written(self.folder))
                made.append(Kill(self.folder.name, victim, bool(committing), torn))
            if victim == "driver":
                break
        return made

    def _wait_for_work(self) -> None:
        """Wait until this run has committed something: starting takes longer than most shards."""
        while self.process.poll() is None and not any(
            path.stat().st_mtime > self.started for path in self.folder.glob("shard-*.json")
        ):
            time.sleep(0.02)

    def _wait_for_workers(self) -> bool:
        while self.process.poll() is None:
            found = _workers(self.driver)
            self.seen.update(found)
            if found:
                return True
            time.sleep(0.01)
        return False

    def _moment(self) -> set[str]:
        """Wait for a random while, or for the next commit; returns what is being committed then."""
        in_commit = self.rng.random() < WINDOW_SHARE
        end = time.monotonic() + (3.0 if in_commit else self.rng.uniform(0.0, 0.8))
        while time.monotonic() < end and self.process.poll() is None:
            names = _half_written(self.folder) if in_commit else set()
            if names:
                time.sleep(self.rng.uniform(0.0, 0.004))  # not always at the same step of it
                return _half_written(self.folder)
            time.sleep(0.001 if in_commit else 0.01)
        return _half_written(self.folder)

    def _kill(self, victim: str, committing: set[str]) -> bool:
        if victim == "driver":
            self.seen.update(_workers(self.driver))
            if self.process.poll() is not None:
                return False
            self.process.send_signal(signal.SIGKILL)
            return self.process.wait() == -signal.SIGKILL
        workers = _workers(self.driver)
        self.seen.update(workers)
        if not workers:
            return False
        worker = _writer(workers, committing, self.rng) if committing else self.rng.choice(workers)
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            return False
        return True
