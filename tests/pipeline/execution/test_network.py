"""A scheduler and its workers on different addresses: two network namespaces of this machine, joined by a virtual cable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from c2vl_manifests.recipe import Recipe
from support.factory import digests, road, start

pytestmark = pytest.mark.slow

LOGIN, NODE = "10.177.0.1", "10.177.0.2"
ADDRESS = f"tcp://{LOGIN}:8786"


@dataclass
class Machines:
    """Two namespaces; `login` and `node` are prefixes of commands that run in one of them."""

    name: str
    logs: Path

    def __post_init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, place: str, *words: str | Path) -> subprocess.Popen[bytes]:
        """Start a command of this interpreter in one of the namespaces."""
        with (self.logs / f"{len(self.processes)}.txt").open("wb") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", f"{self.name}{place}", sys.executable, *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def cable(self, state: str) -> None:
        """Pull the node's plug (`down`), or put it back (`up`)."""
        _ip("-n", f"{self.name}b", "link", "set", f"{self.name}b", state)

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self.logs / f"{self.processes.index(process)}.txt").read_text("utf-8", "replace")


def _ip(*words: str) -> None:
    made = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(f"ip {' '.join(words)}: {made.stderr.strip()}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    if not os.environ.get("C2VL_NAMESPACES") or shutil.which("ip") is None or os.geteuid():
        pytest.skip("makes network namespaces, as root and with `ip` (iproute2): set C2VL_NAMESPACES=1")
    name, logs = f"c2vl{os.getpid()}", tmp_path / "logs"
    logs.mkdir()
    made = Machines(name, logs)
    try:
        try:
            for place in "ab":
                _ip("netns", "add", f"{name}{place}")
            _ip("link", "add", f"{name}a", "netns", f"{name}a", "type", "veth", "peer", f"{name}b", "netns", f"{name}b")
            for place, address in (("a", LOGIN), ("b", NODE)):
                _ip("-n", f"{name}{place}", "addr", "add", f"{address}/24", "dev", f"{name}{place}")
                _ip("-n", f"{name}{place}", "link", "set", "lo", "up")
                _ip("-n", f"{name}{place}", "link", "set", f"{name}{place}", "up")
        except OSError as error:
            pytest.skip(f"this kernel or container makes no network namespaces ({error})")
        yield made
    finally:
        for process in reversed(made.processes):
            _end(process)
        for place in "ab":
            subprocess.run(["ip", "netns", "del", f"{name}{place}"], capture_output=True, check=False)


def until(ready: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_of_another_address_make_the_rows_of_this_process_though_one_dies_and_the_cable_is_pulled(
    machines: Machines, raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    reference = road(start(raw, tmp_path / "reference", 1), recipe)
    work = start(raw, tmp_path / "w", 1)
    machines.start("a", "-m", "dask", "scheduler", "--host", LOGIN, "--port", "8786", "--no-dashboard")
    worker = ["-m", "dask", "worker", ADDRESS, "--host", NODE, "--nthreads", "1", "--no-dashboard"]
    first, _ = (machines.start("b", *worker, "--local-directory", tmp_path / f"dask{n}") for n in range(2))
    entry = "from c2vl_pipeline.cli import main; main()"
    driver = machines.start("a", "-c", entry, "prompts", "--work", work, "--scheduler", ADDRESS)

    def made(stage: str, count: int) -> Callable[[], bool]:
        return lambda: len(list((work / stage).glob("shard-*.json"))) >= count or driver.poll() is not None

    until(made("crops", 3))
    _end(first)
    until(made("captions", 3))
    machines.cable("down")
    time.sleep(3)
    machines.cable("up")
    assert driver.wait(timeout=300) == 0, machines.said(driver)
    assert "packed: 32 samples" in machines.said(driver)
    assert digests(work) == reference
