"""What a process may use of this machine: cores, threads, memory, standard streams. Loads nothing, so that it can run first."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables from which the numerical libraries take their number of threads."""

_WAIT = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "0", "OPENBLAS_THREAD_TIMEOUT": "14"}
"""How long an idle thread spins before it sleeps: some tens of microseconds, not the milliseconds of the defaults.

A thread that spins takes the core from the one that it waits for, where other programs use the cores too."""


def usable_cores(system: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of cores that this process may use, at least 1.

    The least of: the cores of its affinity, the quota of its control group and of all groups above (version 1 or 2,
    a part of a core counts as one), and what Slurm gave to the task, or else to the job on this node.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    limits = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    limits += [math.ceil(quota) for quota in _quotas(system)]
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (value := environment.get(name, "").strip()).isdecimal():
            limits.append(int(value))
            break
    return max(1, min(limits))


def _quotas(system: Path) -> Iterator[float]:
    """Yield the CPU quotas of the control groups that hold this process, in cores."""
    for line in _lines(system / "proc/self/cgroup"):
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        root = system / "sys/fs/cgroup"
        roots = [root] if not controllers else [root / controllers, root / "cpu"]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # a container sees its own group as the root, although the kernel names a longer path
        folders = {at / part for at in roots for part in _parents(group)}
        for folder in sorted(folders):
            if controllers:
                words = [*_lines(folder / "cpu.cfs_quota_us")[:1], *_lines(folder / "cpu.cfs_period_us")[:1]]
            else:
                words = " ".join(_lines(folder / "cpu.max")[:1]).split()
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[0]) and int(words[1]):
                yield int(words[0]) / int(words[1])


def _parents(group: str) -> list[str]:
    steps = [step for step in group.strip("/").split("/") if step and step != ".."]
    return ["/".join(steps[:n]) for n in range(len(steps) + 1)]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").split("\n")
    except OSError:
        return []


def share_cores(threads: bool = True) -> None:
    """Set how many threads the numerical libraries start and how they wait, unless the user has set it.

    Must be called before any of them is loaded: they read the variables once.

    Args:
        threads: also their number, the usable cores; otherwise only how they wait.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in _WAIT.items():
            os.environ.setdefault(name, value)
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))


def keep_freed(largest: int | None = None) -> None:
    """Let glibc keep freed memory for what comes next, in this whole process; with another C library, nothing happens.

    It otherwise returns large blocks to the system, and each page of the next one, 4 KB, costs a fault.

    Args:
        largest: bytes of the largest block that is kept, up to 32 MB; twice as much is kept in all. None: no limits.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if largest is None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks come from the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: which is never given back, at more than 2 GB either
    else:
        mallopt(-3, largest)  # M_MMAP_THRESHOLD
        mallopt(-1, 2 * largest)


def open_streams() -> None:
    """Make the standard streams usable: a closed one swallows its text, one of a poor encoding shows `?`.

    Where the locale has other bytes for file names than all libraries use, Python starts again in its UTF-8 mode.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.environ.setdefault("PYTHONIOENCODING", f"{getattr(sys.stdout, 'encoding', None) or 'utf-8'}:replace")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:  # the shell closed it; a file opened later must not take its number
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
