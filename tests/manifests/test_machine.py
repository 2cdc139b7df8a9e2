"""Cores that a process may use, threads that wait, and standard streams of any kind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from c2vl_manifests import machine

ALLOWED = len(os.sched_getaffinity(0))
BIN = Path(sys.executable).parent


def system(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


V2 = {"proc/self/cgroup": "0::/user.slice/job\n"}


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "max 100000\n"}, 64),
        (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "50000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/user.slice/cpu.max": "400000 100000\n"}, 4),  # of a group above
        ({"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 3),  # in a container
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/docker/abc\n3:cpuset:/\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/docker/abc\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        ({"proc/self/cgroup": "1:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, 64),
        (V2 | {"sys/fs/cgroup/user.slice/job/cpu.max": "rubbish"}, 64),
    ],
)
def test_the_quota_of_a_control_group_counts(tmp_path, monkeypatch, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert machine.usable_cores(system(tmp_path, files), {}) == cores


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "32"}, 6),
        ({"SLURM_CPUS_ON_NODE": "12"}, 12),
        ({"SLURM_CPUS_PER_TASK": "128"}, 64),
        ({"SLURM_CPUS_PER_TASK": ""}, 64),
        ({"SLURM_CPUS_PER_TASK": "a few"}, 64),
        ({"SLURM_CPUS_PER_TASK": "0"}, 1),
    ],
)
def test_what_slurm_gave_counts(tmp_path, monkeypatch, environment, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert machine.usable_cores(tmp_path, environment) == cores


def test_a_system_without_affinity_counts_its_processors(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores(tmp_path, {}) == 1


def test_threads_wait_asleep_unless_the_user_has_said_how(monkeypatch):
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", *machine._WAIT)
    for name in names:
        monkeypatch.setenv(name, "gone")  # so that the test gives back what was there
        monkeypatch.delenv(name)
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    machine.share_cores(threads=False)
    assert "OMP_NUM_THREADS" not in os.environ
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000  # libgomp's own
    monkeypatch.setenv("KMP_BLOCKTIME", "77")
    machine.share_cores()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["KMP_BLOCKTIME"]) == ("3", "77")
    for name in machine._WAIT:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    machine.share_cores()
    assert not {*machine._WAIT} & {*os.environ}


# ------------------------------------------------------------------------------------------------- streams


@pytest.fixture(scope="module")
def work(raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "wörk"
    words = ["c2vl-pipeline", "index", "--dataset", "synthetic", "--data", raw, "--work", folder, "--recipe", "debug"]
    subprocess.run([BIN / words[0], *words[1:]], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "more"),
    [
        ("", {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}),
        ("", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("", {"LC_ALL": "xx_YY.nothing", "PYTHONUTF8": "0", "TERM": "dumb"}),
        (">&-", {}),
        ("2>&- <&-", {}),
        ("| head -n 1", {}),
        (">log 2>&1", {"PYTHONIOENCODING": "latin-1", "COLUMNS": "1"}),
    ],
)
def test_a_table_is_shown_on_any_terminal(work, tmp_path, shell, more):
    line = f"'{BIN / 'c2vl-pipeline'}' status --why --work '{work}' {shell}"
    env = {k: v for k, v in os.environ.items() if k not in {"HOME", "TERM"}} | more
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=tmp_path, env=env, capture_output=True, check=False
    )
    text = done.stdout + done.stderr + ((tmp_path / "log").read_bytes() if "log" in shell else b"")
    assert done.returncode == 1  # stages are missing
    assert b"Traceback" not in text
    assert b"Exception" not in text
    if ">&-" not in shell:
        assert b"rk" in text


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
@pytest.mark.parametrize(
    ("call", "kept", "returned"), [("keep_freed()", 36, 0), ("keep_freed(32 << 20)", 24, 36), ("pass", 1, 36)]
)
def test_freed_memory_is_used_again_without_page_faults(call, kept, returned):
    program = f"""
import resource
from c2vl_manifests.machine import keep_freed
def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (megabytes << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{call}
# something small may come to lie behind a block, and one as large then finds no room in its place
print(*(min(faults(megabytes) for _ in range(50)) for megabytes in ({kept}, {returned})))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    few, many = map(int, said.stdout.split())
    assert few < 100
    assert many > few + 10 or not returned
