"""What `chaos` did to the factory and what came of it, as figures, a table and JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from c2vl_pipeline.stages import STAGES
from compare_rows import Comparison

TABLE = (
    "stage", "workers killed", "drivers killed", "in a commit", "torn", "rows", "equal", "excused", "damages",
    "lost", "doubled", "wrong",
)  # fmt: skip
"""Heads of the report's table: excused rows had damaged inputs and say so."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: `committing` when something was being committed, `torn` when it was left half done."""

    stage: str
    victim: str
    committing: bool
    torn: bool


@dataclass(frozen=True)
class Garbage:
    """One raw file that was replaced: `early` before the first run, else between the crops' runs."""

    file: str
    kind: str
    how: str
    early: bool


@dataclass
class Report:
    """What was done to the factory, and whether it held."""

    seed: int
    samples: int
    shards: int
    workers: int
    kills: list[Kill] = field(default_factory=list)
    damages: Counter[tuple[str, str]] = field(default_factory=Counter)
    garbage: list[Garbage] = field(default_factory=list)
    runs: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    """Runs that stopped by themselves, by their one line."""
    violations: list[str] = field(default_factory=list)
    full_disk: str = ""
    comparisons: list[Comparison] = field(default_factory=list)
    digests: dict[str, tuple[str, str]] = field(default_factory=dict)
    clean_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        """Whether every row is as in the clean run or says why not, and nothing else went wrong."""
        return bool(self.comparisons) and not self.violations and all(c.held for c in self.comparisons)

    def kills_by_stage(self) -> dict[str, dict[str, int]]:
        """Count kills by stage: of workers, of the driver, in commits, and commits left half done."""
        return {
            stage: {
                "worker": sum(k.victim == "worker" for k in mine),
                "driver": sum(k.victim == "driver" for k in mine),
                "committing": sum(k.committing for k in mine),
                "torn": sum(k.torn for k in mine),
            }
            for stage in STAGES
            for mine in [[k for k in self.kills if k.stage == stage]]
        }

    def table(self) -> list[list[str]]:
        """Return a row a stage, under the heads of `TABLE`."""
        rows = []
        kills = self.kills_by_stage()
        for c in self.comparisons:
            mine = kills[c.stage]
            excused = ", ".join(f"{status} {n:,}" for status, n in sorted(c.excused.items())) or "none"
            wrong = len(c.changed) + len(c.unsaid) + len(c.foreign)
            figures = [mine["worker"], mine["driver"], mine["committing"], mine["torn"], c.expected, c.equal]
            damages = sum(n for (stage, _), n in self.damages.items() if stage == c.stage)
            rows.append(
                [c.stage, *(f"{n:,}" for n in figures), excused, f"{damages:,}"]
                + [f"{n:,}" for n in (len(c.lost), len(c.doubled), wrong)]
            )
        return rows

    def lines(self) -> list[str]:
        """Say the rest of the report in a few lines, the verdict last."""
        runs = ", ".join(f"{command} {n}" for command, n in self.runs.items())
        found = [f"runs: {runs}; {self.seconds:,.0f} s, of them {self.clean_seconds:,.0f} s for the clean run"]
        found += [f"stopped by itself {n} times: {line}" for line, n in self.stops.most_common()]
        found += [f"a full disk: {self.full_disk}"]
        found += [f"DID NOT HOLD: {violation}" for violation in self.violations]
        return [*found, "everything held" if self.held else "it did NOT hold"]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON report."""
        return {
            "held": self.held,
            "seed": self.seed,
            "samples": self.samples,
            "shards": self.shards,
            "workers": self.workers,
            "kills": len(self.kills),
            "kills_by_stage": self.kills_by_stage(),
            "damages": {f"{stage}: {what}": n for (stage, what), n in sorted(self.damages.items())},
            "garbage": [asdict(g) for g in self.garbage],
            "runs": dict(self.runs),
            "stops": dict(self.stops),
            "violations": self.violations,
            "full_disk": self.full_disk,
            "stages": [c.as_dict() for c in self.comparisons],
            "digests": {k: {"clean": a, "chaos": b} for k, (a, b) in self.digests.items()},
            "clean_seconds": round(self.clean_seconds, 1),
            "seconds": round(self.seconds, 1),
        }
