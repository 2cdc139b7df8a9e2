"""Time two functions in turn and report medians and the ratio of each pair."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable


def compare(name: str, ours: Callable[[], object], usual: Callable[[], object], pairs: int = 5) -> None:
    """Run both once to warm up, then `pairs` times in turn, and print a line."""
    ours()
    usual()
    times: list[tuple[float, float]] = []
    for _ in range(pairs):
        pair = []
        for function in (ours, usual):
            started = time.perf_counter()
            function()
            pair.append(time.perf_counter() - started)
        times.append((pair[0], pair[1]))
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(usual_time / our_time for our_time, usual_time in times)
    print(
        f"{name}: ours {1000 * a:.1f} ms, the usual way {1000 * b:.1f} ms, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {pairs} pairs)"
    )


def keep_memory() -> None:
    """Let glibc keep freed memory, as a process in the middle of training does; without glibc, nothing happens.

    A new batch otherwise costs a page fault every 4 KB, at the whim of what ran before it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large tensors come from the heap
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: which is never given back, at more than 2 GB either
