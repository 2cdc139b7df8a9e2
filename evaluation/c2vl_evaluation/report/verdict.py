"""The report's verdict: a sentence computed from the rows of a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from c2vl_evaluation.report.sections import KINDS
from c2vl_evaluation.results import Protocol, Table, TableRow, mean_std


def verdict(table: Table) -> str:
    """Return a comparison of the main row with the floor, shuffled pairs and raw joints."""
    baseline = [row for row in table.rows if row.role == "baseline"]
    if not baseline:
        return _against_floor(table)
    reached = " and ".join(f"{100 * baseline[0].top1(k):.1f} % {kind}" for k, kind in KINDS.items())
    return f"{_against_floor(table)} The raw joints, without any encoder, reach {reached}."


def _against_floor(table: Table) -> str:
    main = table.of(table.main_row().name)
    name, role = main[0].name, main[0].role
    reached = " and ".join(f"{mean_std([r.top1(k) for r in main])} % {kind}" for k, kind in KINDS.items())
    if role != "pretrained":
        return f"No pre-trained encoder is in this table; {name} reaches {reached}."
    floor = [row for row in table.rows if row.role == "floor"]
    if not floor:
        return f"{name} reaches {reached}; without a random encoder in the table, the gain of pre-training is unknown."
    gains = _differences(main, floor)
    word = "over" if min(gains.values()) > 0 else "against"
    gained = f"{name} {_gained(gains)} {word} {floor[0].name} ({_noise(main, floor)})"
    shuffled = [row for row in table.rows if row.role == "shuffled"]
    if not shuffled:
        return f"{gained}; without shuffled pairs in the table, the effect of the pairing is unknown."
    control = _differences(shuffled, floor)
    points = " and ".join(f"{value:+.1f}".replace("-", "−") for value in control.values())
    return f"{gained}; with {shuffled[0].name} it is {points}, {_because(gains, control)}."


def _differences(rows: Sequence[TableRow], other: Sequence[TableRow]) -> dict[Protocol, float]:
    """Return the differences of the means in points, by protocol."""

    def mean(of: Sequence[TableRow], kind: Protocol) -> float:
        return 100 * statistics.mean([row.top1(kind) for row in of])

    return {kind: mean(rows, kind) - mean(other, kind) for kind in KINDS}


def _gained(gains: Mapping[Protocol, float]) -> str:
    parts: list[str] = []
    last = ""
    for kind, value in gains.items():
        verb = "gains" if value > 0 else "loses"
        parts.append(f"{verb if verb != last else ''} {abs(value):.1f} points {KINDS[kind]}".strip())
        last = verb
    return " and ".join(parts)


def _because(gains: Mapping[Protocol, float], control: Mapping[Protocol, float]) -> str:
    """Return whether the gain depends on the pairing: whether shuffled pairs reach less than half of it."""
    rising = [kind for kind, value in gains.items() if value >= 0.05]
    paired = [kind for kind in rising if control[kind] < gains[kind] / 2]
    if not rising:
        return "so there is no gain to explain"
    if not paired:
        return "so most of the gain does not need the right pairing"
    which = "" if paired == list(gains) else f" {KINDS[paired[0]]}"
    return f"so most of the{which} gain comes from pairing each skeleton with its own prompts"


def _noise(main: Sequence[TableRow], floor: Sequence[TableRow]) -> str:
    """Return whether the differences exceed the spread over seeds."""
    seeds = min(len(main), len(floor))
    if seeds < 2:
        return "one seed, so the spread over seeds is unknown"
    clear = []
    for kind, difference in _differences(main, floor).items():
        spread = [statistics.variance([row.top1(kind) for row in rows]) for rows in (main, floor)]
        error = 100 * (spread[0] / len(main) + spread[1] / len(floor)) ** 0.5
        clear += [KINDS[kind]] if abs(difference) > 2 * error else []
    which = "both" if len(clear) == len(KINDS) else f"only {clear[0]}" if clear else "neither"
    return f"{seeds} seeds, {which} beyond two standard errors"
