"""The report's verdict: what the paired intervals of a table allow to say, and the intervals themselves.

A difference whose interval holds zero is called "within noise", and nothing is concluded from it. Intervals cover the
choice of test clips (`comparison.paired`); with several seeds a difference must exceed their spread as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from c2vl_evaluation import cache
from c2vl_evaluation.comparison import Difference, Pair, paired
from c2vl_evaluation.report.sections import KINDS
from c2vl_evaluation.results import Protocol, Result, Role, Table, TableRow, mean_std
from c2vl_manifests.errors import C2VLError

_RESAMPLES = 2000
"""Ends of an interval then vary by about 2 % of its width; a report makes two for each row but the first."""


@dataclass(frozen=True)
class Gap:
    """Difference of two rows of a table in points: the main row minus another."""

    points: float
    interval: Difference | None
    """None if the answers behind the numbers are gone or of different clips."""
    beyond_seeds: bool = True
    """False if the spread over seeds explains it; True of a single seed, of which nothing is known."""

    @property
    def clear(self) -> bool:
        """True if noise does not explain the difference."""
        return self.interval is not None and self.interval.clear and self.beyond_seeds

    def words(self) -> str:
        """Return it as a cell of a table: `+1.6 (−4.7 to +7.8), within noise`."""
        if self.interval is None:
            return f"{_signed(self.points)}, noise unknown"
        span = f"{_signed(100 * self.interval.low)} to {_signed(100 * self.interval.high)}"
        return f"{_signed(self.points)} ({span}){'' if self.clear else ', within noise'}"


Gaps = Mapping[Protocol, Gap]


@dataclass(frozen=True)
class Verdict:
    """A judgement in one or two sentences, with the differences that it rests on."""

    text: str
    gaps: Mapping[str, Gaps] = field(default_factory=dict)
    """Name of another row -> the main row minus it, by protocol."""
    seeds: int = 1


def verdict(table: Table, folder: Path) -> Verdict:
    """Judge the main row of a table against the floor and shuffled pairs, and compare it with other pre-trained rows.

    Args:
        table: the table.
        folder: of the table, for the stored answers of its runs.
    """
    main = table.main_row()
    name, reached = main.name, _reached(table, main.name)
    if main.role != "pretrained":
        return Verdict(f"No pre-trained encoder is in this table; {name} reaches {reached}.{_raw(table)}")
    floor, shuffled = (_first(table, role) for role in ("floor", "shuffled"))
    gaps = {other: _gaps(table, folder, name, other) for other in (floor, shuffled) if other}
    peers = [line.name for line in table.lines() if line.role == "pretrained" and line.name != name]
    if not floor:
        text = f"{name} reaches {reached}; without a random encoder in the table, the gain of pre-training is unknown."
    else:
        text = _against(name, floor, gaps[floor])
        if all(gap.interval for pair in gaps.values() for gap in pair.values()):
            text += f" {_pairing(gaps[floor], gaps.get(shuffled), shuffled)}"
        text += _few_labels(table, folder, name, floor)
    gaps |= {other: _gaps(table, folder, name, other) for other in peers}
    return Verdict(text + _raw(table), gaps, len(table.of(name)))


def _first(table: Table, role: Role) -> str:
    return next((row.name for row in table.rows if row.role == role), "")


def _reached(table: Table, name: str) -> str:
    rows = table.of(name)
    return " and ".join(f"{mean_std([row.top1(k) for row in rows])} % {kind}" for k, kind in KINDS.items())


def _raw(table: Table) -> str:
    raw = _first(table, "baseline")
    return f" The raw joints, without any encoder, reach {_reached(table, raw)}." if raw else ""


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


# -------------------------------------------------------------------------------------------- differences


def _gaps(table: Table, folder: Path, name: str, other: str) -> dict[Protocol, Gap]:
    main, others = ({row.seed: row for row in table.of(one)} for one in (name, other))
    found = {}
    for kind in KINDS:
        values = [[row.top1(kind) for row in rows.values()] for rows in (main, others)]
        both = [[(row, row.result(kind)) for row in (main[seed], others[seed])] for seed in main.keys() & others.keys()]
        found[kind] = _gap(values, [_pair(folder, *pair) for pair in both], len(main))
    return found


def _gap(values: list[list[float]], pairs: Sequence[Pair | None], runs: int) -> Gap:
    """Return the difference of two lists of accuracies, with an interval if the answers of all `runs` are there."""
    known = [pair for pair in pairs if pair is not None]
    interval = paired(known, _RESAMPLES)[0] if known and len(known) == runs else None
    points = 100 * (statistics.mean(values[0]) - statistics.mean(values[1]))
    return Gap(points, interval, _beyond_seeds(points, values))


def _pair(folder: Path, one: tuple[TableRow, Result], other: tuple[TableRow, Result]) -> Pair | None:
    """Return the stored answers of two results; None if they are gone, or of different clips."""
    try:
        first, second = (cache.predictions_of(folder / row.run, result.key) for row, result in (one, other))
    except (C2VLError, OSError):
        return None
    return (first, second) if first.sample_ids == second.sample_ids else None


def _beyond_seeds(points: float, values: list[list[float]]) -> bool:
    """Return True if a difference exceeds two standard errors over seeds, or if there is one seed only."""
    if min(map(len, values)) < 2:
        return True
    squared = sum(statistics.variance(side) / len(side) for side in values)
    return abs(points) > 200 * math.sqrt(squared)


def _few_labels(table: Table, folder: Path, name: str, floor: str) -> str:
    """Return what fine-tuning on the largest share of few labels gains over the same network from scratch."""
    main, scratch = (
        {(row.seed, r.setting, r.draw): (row, r) for row in table.of(one) for r in row.results if _tuned_on_few(r)}
        for one in (name, floor)
    )
    if not (shared := [key for key in main if key in scratch]):
        return ""
    setting = max((key[1] for key in shared), key=lambda one: float(one.split(" %")[0]))
    both = [(main[key], scratch[key]) for key in shared if key[1] == setting]
    values = [[result.last.top1 for _, result in side if result.last] for side in zip(*both, strict=True)]
    gap = _gap(values, [_pair(folder, *pair) for pair in both], len(both))
    share, _, drawn = setting.removesuffix(", tuned").rpartition(" ")
    verb = "gains" if gap.points > 0 else "loses"
    if gap.interval is None:  # the answers are gone: whether the difference exceeds noise is unknown
        return ""
    told = f"{verb} {abs(gap.points):.1f} points against" if gap.clear else "differs within noise from"
    return (
        f" Fine-tuned with {share} of the labels ({drawn}) it {told} the same network from scratch, "
        f"which reaches {mean_std(values[1])} %."
    )


def _tuned_on_few(result: Result) -> bool:
    return result.protocol == "semi" and result.setting.endswith(", tuned") and result.last is not None


# -------------------------------------------------------------------------------------------- sentences


def _against(name: str, floor: str, gaps: Gaps) -> str:
    """Return what pre-training gains or loses over the floor."""
    clear = {kind: gap for kind, gap in gaps.items() if gap.clear}
    said: list[str] = []
    for kind, gap in clear.items():
        verb = "gains" if gap.points > 0 else "loses"
        same = any(part.startswith(verb) for part in said)
        said.append(f"{'' if same else verb + ' '}{abs(gap.points):.1f} points {KINDS[kind]}")
    unknown = [kind for kind, gap in gaps.items() if gap.interval is None]
    noisy = [KINDS[kind] for kind in gaps if kind not in clear and kind not in unknown]
    if unknown:
        numbers = " and ".join(f"{_signed(gaps[kind].points)} points {KINDS[kind]}" for kind in unknown)
        return (
            f"{name} against {floor}: {numbers}; whether that exceeds noise is unknown, because the answers behind "
            "these numbers are gone."
        )
    if not clear:
        return f"{name} differs from {floor} within noise: no effect of pre-training is shown."
    over = "over" if all(gap.points > 0 for gap in clear.values()) else "against"
    rest = f"; {' and '.join(noisy)} is within noise" if noisy else ""
    return f"{name} {' and '.join(said)} {over} {floor}{rest}."


def _pairing(gains: Gaps, control: Gaps | None, shuffled: str) -> str:
    """Return what shuffled pairs say about a gain."""
    if control is None:
        return "Without shuffled pairs in the table, the effect of the pairing is unknown."
    rising = [kind for kind, gap in gains.items() if gap.clear and gap.points > 0]
    if not rising:
        return "Without a gain, nothing follows about the pairing."
    owed = [f"{control[k].points:.1f} points {KINDS[k]}" for k in rising if control[k].clear and control[k].points > 0]
    noisy = [KINDS[kind] for kind in rising if not control[kind].clear]
    parts = [f"Pairing each skeleton with its own prompts is worth {' and '.join(owed)}"] if owed else []
    if noisy:
        parts.append(
            f"{shuffled} differ from it within noise ({', '.join(noisy)}), so nothing follows about the pairing"
        )
    return f"{'; '.join(parts)}." if parts else f"{shuffled} gain more, so the gain is not owed to the pairing."
