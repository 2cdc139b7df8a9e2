"""Time functions in turn, print medians and the ratio of each pair, and keep them where C2VL_BENCH names a file.

That file is JSON: `machine` (processor, cores, versions, commit, load) and `rows`, one for each line that was printed.
`compare.py` compares two of them by the ratio of every row to its own baseline, which was measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import psutil

from c2vl_manifests.manifest import commit_text
from c2vl_manifests.reading import read_json

FILE = "C2VL_BENCH"
"""Environment variable with the path of the JSON; without it nothing is kept."""

T = TypeVar("T")

WALL, PROCESSOR = "ratio", "ratio_of_processor_time"
"""The ratios of a row, one of which judges it (`judged_by`): waiting is in the first alone, other programs disturb it more."""

SHARED = Path(os.environ.get("C2VL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
"""The folder of real data, found as by the tests."""


class Parser(argparse.ArgumentParser):
    """The options of a script: `--pairs`, and what the script adds. A wrong one is refused in one line."""

    def __init__(self, doc: str | None, pairs: int = 5) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument(
            "--pairs", type=count, default=pairs, help=f"how often each side is measured (default {pairs})"
        )

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line, without the usage."""
        self.exit(2, f"{self.prog}: {message}\n")


def count(text: str) -> int:
    """Return a whole number from 1."""
    if text.isascii() and text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} given; expected a whole number from 1")


class Spent(NamedTuple):
    """What a call took, in seconds, the processor's time of child processes included; other programs disturb that less."""

    wall: float
    processor: float


def in_turn(
    functions: Mapping[str, Callable[[], object]], turns: int, budget: float = math.inf
) -> dict[str, list[Spent]]:
    """Run all functions once to warm up, then up to `turns` times, A B A B …; no new turn begins after `budget` seconds."""
    spent: dict[str, list[Spent]] = {name: [] for name in functions}
    began = time.perf_counter()
    for turn in range(turns + 1):
        if turn > 1 and time.perf_counter() - began > budget:
            break
        for name, function in functions.items():
            one = measured(function)
            if turn:  # the first one warms up
                spent[name].append(one)
    return spent


def measured(function: Callable[[], object]) -> Spent:
    """Call a function and return what that took."""
    children, own, started = _time_of_children(), time.process_time(), time.perf_counter()
    function()
    wall, used = time.perf_counter() - started, time.process_time() - own
    return Spent(wall, used + _time_of_children() - children)


def timed(function: Callable[[], T], spent: list[Spent]) -> T:
    """Call a function, append what that took, and return its answer."""
    answers: list[T] = []
    spent.append(measured(lambda: answers.append(function())))
    return answers[0]


def _time_of_children() -> float:
    """Return the seconds that the child processes, ended and living, have computed."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def compare(name: str, ours: Callable[[], object], usual: Callable[[], object], pairs: int = 5, **facts: Any) -> None:
    """Run both once to warm up, then `pairs` times in turn; report."""
    spent = in_turn({"ours": ours, "usual": usual}, pairs)
    report_spent(name, spent["ours"], spent["usual"], **facts)


def report_spent(name: str, ours: Sequence[Spent], usual: Sequence[Spent] | None = None, **facts: Any) -> None:
    """Report wall times (see `report`), with the processor's time, and the ratio of it, as further facts."""
    facts["processor_seconds"] = statistics.median(one.processor for one in ours)
    walls = [[one.wall for one in side] for side in (ours, usual) if side is not None]
    if usual is not None:
        pairs = zip(ours, usual, strict=True)
        facts[PROCESSOR] = statistics.median(b.processor / a.processor for a, b in pairs)
    report(name, *walls, **facts)


def report(
    name: str,
    ours: Sequence[float],
    usual: Sequence[float] | None = None,
    *,
    baseline: str = "the usual way",
    quiet: bool = False,
    **facts: Any,
) -> dict[str, Any]:
    """Print a line of medians, and add it to the file.

    Args:
        name: what was measured; no measured figure in it, or `compare.py` finds no pair.
        ours: seconds of each call.
        usual: seconds of the baseline's call beside each; None where nothing is to be beaten.
        baseline: its name.
        quiet: print nothing.
        facts: of the row, further ones. `judged_by` is the ratio by which `compare.py` judges it, of wall time if not
            given; that of processor time is for one thread that computes.

    Returns:
        The row. `ratio` is the median of the baseline's time over ours, pair by pair: more is better.
    """
    row: dict[str, Any] = {"script": Path(sys.argv[0]).name, "name": name, "seconds": statistics.median(ours)}
    line = f"{name}: {_time(row['seconds'])}"
    if usual is not None:
        ratios = sorted(b / a for a, b in zip(ours, usual, strict=True))
        row |= {"baseline": baseline, "baseline_seconds": statistics.median(usual)}
        row |= {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "pairs": len(ratios)}
        row["judged_by"] = WALL
        line += f", {baseline} {_time(row['baseline_seconds'])}, " + described(row)
    row |= {"load": round(os.getloadavg()[0], 1), **facts}
    if not quiet:
        formats = {float: ".3g", int: ","}
        told = ", ".join(f"{fact} {v:{formats[type(v)]}}" for fact, v in facts.items() if type(v) in formats)
        print(line + (f"; {told}" if told else ""), flush=True)
    keep(row)
    return row


def described(row: Mapping[str, Any], by: str = "ratio") -> str:
    """Return the ratio of a row, of wall time with its range."""
    if by != "ratio":
        return f"{by.replace('_', ' ')} {row[by]:.2f} ({row['pairs']} pairs)"
    return f"ratio {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}, {row['pairs']} pairs)"


def _time(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 10 else f"{seconds:.1f} s"


def keep(row: Mapping[str, Any]) -> None:
    """Add a row to the file that C2VL_BENCH names; one of the same script, name and baseline, or without one, is replaced."""
    if not (place := os.environ.get(FILE)):
        return
    path = Path(place)

    def key(one: Mapping[str, Any]) -> list[Any]:
        return [one.get(name) for name in ("script", "name", "baseline")]

    kept: dict[str, Any] = {"rows": [], **(read_json(path) if path.is_file() else {}), "machine": machine()}
    replaced = (key(row), [*key(row)[:2], None])
    kept["rows"] = [old for old in kept["rows"] if key(old) not in replaced] + [row]
    commit_text(path, json.dumps(kept, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Return the facts without which a figure says nothing."""
    torch = sys.modules.get("torch")  # a script that measures without torch shall not load it
    gpu = torch.cuda.get_device_name() if torch and torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy")},
        "commit": _commit(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # other systems, other processors
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of this folder, `-dirty` if files differ from it; None outside a repository."""
    call = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
