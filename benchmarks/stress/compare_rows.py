"""Whether two runs made the same: rows compared one by one, with what was damaged in between known.

A row may differ only if its input was damaged, and then it has to say so in a status. Nothing may be lost,
nothing doubled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2vl_manifests.manifest import digest, read_shard
from c2vl_manifests.schema import Status
from c2vl_pipeline.workspace import load, shard_path

RowKey = tuple[str, int]
"""Sample id and slot; slot 0 in a stage without slots."""

_COUNTS = frozenset({"frames_advertised", "frames_decoded"})
"""Facts about a whole video, kept in each row: a cut video changes them in rows whose frame is still there."""

_SHOWN = 20


@dataclass(frozen=True)
class Damaged:
    """Samples of which a comparison may expect less.

    Args:
        samples: their files were damaged: a row may differ if its status says what is wrong.
        hopeless: their files were unreadable from the start: no row of theirs can be ok.
        nearby: made with the help of damaged files (the empty scene of a camera): their rows may differ.
    """

    samples: frozenset[str] = frozenset()
    hopeless: frozenset[str] = frozenset()
    nearby: frozenset[str] = frozenset()


@dataclass
class Comparison:
    """How the rows of one stage of a disturbed run compare with those of a clean one."""

    stage: str
    expected: int = 0
    found: int = 0
    equal: int = 0
    excused: Counter[str] = field(default_factory=Counter)
    """Rows that differ and may, by the status they have."""
    lost: list[RowKey] = field(default_factory=list)
    doubled: list[RowKey] = field(default_factory=list)
    foreign: list[RowKey] = field(default_factory=list)
    """Rows that the clean run does not have."""
    changed: list[RowKey] = field(default_factory=list)
    """Rows that differ although their input was not damaged."""
    unsaid: list[RowKey] = field(default_factory=list)
    """Rows of damaged inputs that say ok, and differ or cannot be right."""
    unordered: bool = False

    @property
    def held(self) -> bool:
        """Whether nothing was lost, doubled or changed without a word."""
        wrong = (self.lost, self.doubled, self.foreign, self.changed, self.unsaid)
        return not any(wrong) and not self.unordered

    def as_dict(self) -> dict[str, Any]:
        """Return plain values; of each list its length and its first entries."""
        lists = ("lost", "doubled", "foreign", "changed", "unsaid")
        found: dict[str, Any] = {
            "stage": self.stage, "expected": self.expected, "found": self.found, "equal": self.equal,
            "differing_by_status": dict(sorted(self.excused.items())), "held": self.held,
            "unordered": self.unordered,
        }  # fmt: skip
        for name in lists:
            rows: list[RowKey] = getattr(self, name)
            found[name] = len(rows)
            found[f"{name}_rows"] = [list(row) for row in rows[:_SHOWN]]
        return found


def keys(table: pa.Table) -> list[RowKey]:
    """Return the key of each row."""
    names = table.column("sample_id").to_pylist()
    slots = table.column("slot").to_pylist() if "slot" in table.column_names else [0] * len(names)
    return list(zip(names, slots, strict=True))


def _by_key(table: pa.Table) -> dict[RowKey, int]:
    return {key: at for at, key in reversed(list(enumerate(keys(table))))}


def _statuses(row: pa.Table) -> list[str]:
    """Return the status of a row, and those of its two vectors where it has them."""
    return [str(row.column(name)[0].as_py()) for name in row.column_names if name.endswith("status")]


def _content(row: pa.Table) -> str:
    return digest(row.select([name for name in row.column_names if name not in _COUNTS]))


def compare_tables(stage: str, clean: pa.Table, other: pa.Table, damaged: Damaged) -> Comparison:
    """Compare the rows of a shard or a stage.

    Args:
        stage: its name, for the report.
        clean: rows of an undisturbed run.
        other: rows of the run in question.
        damaged: what happened to the inputs in between.
    """
    wanted, there = keys(clean), keys(other)
    found = Comparison(stage, expected=len(wanted), found=len(there))
    counts = Counter(there)
    found.lost = [key for key in wanted if key not in counts]
    found.doubled = [key for key, count in counts.items() if count > 1]
    found.foreign = [key for key in counts if key not in set(wanted)]
    clean_only = not (found.lost or found.doubled or found.foreign)
    found.unordered = clean_only and wanted != there
    hopeless = damaged.hopeless & {sample for sample, _ in wanted}
    if clean_only and not found.unordered and not hopeless and digest(clean) == digest(other):
        found.equal = len(wanted)
        return found
    place, other_place = _by_key(clean), _by_key(other)
    for key in wanted:
        if key in other_place:
            row = other.slice(other_place[key], 1)
            _compare_row(found, key, clean.slice(place[key], 1), row, damaged)
    return found


def _compare_row(found: Comparison, key: RowKey, clean: pa.Table, other: pa.Table, damaged: Damaged) -> None:
    sample, _ = key
    same = digest(clean) == digest(other)
    statuses = _statuses(other)
    bad = next((status for status in statuses if status != Status.OK), None)
    if sample in damaged.hopeless and bad is None:
        found.unsaid.append(key)
    elif same:
        found.equal += 1
    elif sample in damaged.samples:
        if bad is not None or _content(clean) == _content(other):
            found.excused[bad or str(Status.OK)] += 1
        else:
            found.unsaid.append(key)
    elif sample in damaged.nearby:
        found.excused[bad or str(Status.OK)] += 1
    else:
        found.changed.append(key)


def compare_stage(stage: str, clean: Path, other: Path, damaged: Damaged) -> Comparison:
    """Compare a stage of two work folders that hold the same samples in the same shards.

    Raises:
        DataError: a shard is absent or damaged.
    """
    whole = Comparison(stage)
    seen: Counter[RowKey] = Counter()
    for left, right in zip(_shards(stage, clean), _shards(stage, other), strict=True):
        part = compare_tables(stage, left, right, damaged)
        seen.update(set(keys(right)))
        whole.expected += part.expected
        whole.found += part.found
        whole.equal += part.equal
        whole.excused += part.excused
        whole.unordered |= part.unordered
        for name in ("lost", "doubled", "foreign", "changed", "unsaid"):
            getattr(whole, name).extend(getattr(part, name))
    whole.doubled += [key for key, count in seen.items() if count > 1]
    return whole


def _shards(stage: str, work: Path) -> Iterator[pa.Table]:
    for number in range(len(load(work).shard_ranges)):
        yield read_shard(shard_path(work, stage, number))
