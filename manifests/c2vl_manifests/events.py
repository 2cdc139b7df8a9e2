"""Events of long-running work: plain values that a command line draws or logs.

Library code never prints. It takes an `Emit` and calls it; `c2vl_manifests.cli_common` turns the events into a
progress bar on a terminal and into JSON lines elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of `task`; `info` holds figures to show beside the bar (loss, no_person)."""

    task: str
    done: int
    total: int
    unit: str = "samples"
    info: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """One sentence for the user (`level`: info or warning)."""

    text: str
    level: str = "info"


Event = Progress | Note
Emit = Callable[[Event], None]


def duration(seconds: float) -> str:
    """Return a time in words: `4.2 s`, `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def byte_size(count: float) -> str:
    """Return a number of bytes in words: `950 B`, `4.2 MB`, `13.1 GB`, `1.25 TB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # from here on three digits are 1,000
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"


def silent(event: Event) -> None:
    """Ignore an event: the default of every function that takes an `Emit`."""
