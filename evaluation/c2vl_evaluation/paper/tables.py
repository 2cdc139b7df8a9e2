"""The paper's tables beside ours as values: what `write` puts into files. Nothing is computed here but means."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from c2vl_evaluation.context import uses_joint_captions
from c2vl_evaluation.paper.compute import reason
from c2vl_evaluation.paper.experiments import BLIND, Cell, Lab
from c2vl_evaluation.paper.spec import Column, Printed, everything
from c2vl_evaluation.results import Result, summarise

MARK = "†"
DERIVED = (
    "Pre-trained on captions derived from the joints that the encoder sees: they add no outside knowledge."
)
"""What the mark says."""
NEAR = 0.05
"""Points within which two numbers are printed alike."""
Measure = Literal["top5", "balanced", "best"]
MEASURES: dict[Measure, str] = {
    "top5": "top-5",
    "balanced": "balanced accuracy",
    "best": "best epoch (oracle)",
}
"""What stands beside top-1 at the last epoch. The best epoch is picked by top-1 on the test split: peers report it."""


@dataclass(frozen=True)
class Shown:
    """One place of a table: the paper's number in percent, and the results of ours."""

    paper: float | None = None
    results: tuple[Result, ...] = ()
    """Those with a score, one per seed and draw."""
    why: str = ""
    """Why there is no number of ours, or of fewer seeds than were asked for; empty for rows of others."""
    part: str = ""
    """`1 of 2 seeds`, until all are finished."""
    derived: bool = False
    """Whether it was pre-trained on captions that are computed from the joints that the encoder sees."""

    @property
    def ours(self) -> tuple[float, ...]:
        """Top-1 at the last epoch in percent, one per seed and draw."""
        return tuple(100 * r.last.top1 for r in self.results if r.last is not None)

    @property
    def mark(self) -> str:
        """`†` behind a number of captions derived from the joints."""
        return MARK if self.derived and self.results else ""

    @property
    def spoken(self) -> str:
        """`61.2`, `61.2 ± 1.3`."""
        return summarise(self.results).top1 if self.results else ""

    @property
    def mean(self) -> str:
        """`61.2`, `61.2 ± 1.3`, `61.2†`, or `61.2, 1 of 2 seeds`."""
        end = f", {self.part}" if self.part else ""
        return self.spoken + self.mark + end if self.results else ""

    def values(self, measure: Measure) -> tuple[float, ...]:
        """Return one of `MEASURES` in percent; nothing where a protocol does not have it."""
        scores = [r.best if measure == "best" else r.last for r in self.results]
        name = "top1" if measure == "best" else measure
        found = [getattr(score, name) for score in scores if score is not None]
        return tuple(100 * value for value in found if value is not None)

    def beside(self, measure: Measure) -> str:
        """Return one of `MEASURES` as `61.2` or `61.2 ± 1.3`; empty where a protocol does not have it."""
        return str(getattr(summarise(self.results), measure)) if self.values(measure) else ""

    @property
    def last_epochs(self) -> tuple[int, ...]:
        """The last epochs, counted from 1, each once."""
        return tuple(dict.fromkeys(r.epochs for r in self.results if r.epochs))

    @property
    def best_epochs(self) -> tuple[int, ...]:
        """The best epochs, one per seed and draw."""
        return tuple(r.best_epoch for r in self.results if r.best_epoch is not None)

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return statistics.mean(self.ours) - self.paper if self.results and self.paper is not None else None

    @property
    def sense(self) -> Literal["", "up", "same", "down"]:
        """Where ours stands; empty without a difference."""
        if (d := self.difference) is None:
            return ""
        return "same" if abs(d) < NEAR else "up" if d > 0 else "down"

    @property
    def points(self) -> str:
        """`+0.3`, `−1.2`, or nothing."""
        return "" if self.difference is None else f"{self.difference:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class SheetRow:
    """A row; `role` is `peer` for methods of others, `baseline` for what answers without looking."""

    label: str
    about: str
    role: str
    cells: tuple[Shown, ...]
    printed: str = ""
    """The paper's row whose numbers stand in it, under the name that the paper gives it."""

    @property
    def renamed(self) -> str:
        """`printed` where it is another name than the label's: `PCM³` beside our `C²VL with a bidirectional GRU`."""
        return "" if self.printed in {self.label, self.label.partition(", ")[0]} else self.printed

    @property
    def lead(self) -> str:
        """The label without the setting that a second line has room for: `C²VL` of `C²VL, stratified, frozen`."""
        return self.label if self.about else self.label.partition(", ")[0]

    @property
    def under(self) -> str:
        """That second line."""
        named = f"the paper's row: {self.renamed}" if self.renamed else ""
        return "; ".join(filter(None, (self.about or self.label.partition(", ")[2], named)))

    @property
    def trained(self) -> bool:
        """Whether its numbers come from a training here."""
        return self.role not in {"peer", "baseline"}

    def measures(self) -> list[Measure]:
        """Return which of `MEASURES` any of its cells has."""
        return [measure for measure in MEASURES if any(cell.values(measure) for cell in self.cells)]


@dataclass(frozen=True)
class Sheet:
    """A table with all its numbers."""

    name: str
    number: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[SheetRow, ...]

    @property
    def heading(self) -> str:
        """`Table IV. Action retrieval (kNN)`."""
        word = "Table" if self.name.startswith("table") else "Figure"
        return f"{word} {self.number}. {self.title}"

    def measures(self) -> list[Measure]:
        """Return which of `MEASURES` any of its rows has."""
        return [measure for measure in MEASURES if any(measure in row.measures() for row in self.rows)]

    @property
    def derived(self) -> bool:
        """Whether any number carries the mark."""
        return any(cell.mark for row in self.rows for cell in row.cells)

    def counts(self) -> list[int]:
        """Return how many runs numbers of ours are means of, each count once."""
        of = (len(cell.ours) for row in self.rows if row.trained for cell in row.cells)
        return sorted({*of} - {0})

    def runs(self) -> str:
        """`Every number of ours is of 1 run.`, `Numbers of ours are of 1 to 2 runs.`, or nothing."""
        match self.counts():
            case []:
                return ""
            case [count]:
                return f"Every number of ours is of {count} run{'s' if count > 1 else ''}."
            case [least, *_, most]:
                return f"Numbers of ours are of {least} to {most} runs."
        raise AssertionError


def sheet(lab: Lab, name: str, cells: Sequence[Cell]) -> Sheet:
    """Collect a table: the paper's rows in its order, ours below the rows that they repeat, controls last.

    Args:
        lab: where finished cells are read from.
        name: of the table, or figure6.
        cells: of this table, all columns; those that can be filled come first.
    """
    spec = everything()[name]
    there = {cell.column for cell in cells if not cell.why}
    columns = tuple(sorted(dict.fromkeys(cell.column for cell in cells), key=lambda c: c not in there))
    ours = {
        line: {c.column: c for c in cells if c.line == line} for line in dict.fromkeys(c.line for c in cells)
    }
    rows: list[SheetRow] = []
    for printed in spec.rows:
        values = dict(zip(spec.columns, printed.values, strict=True))
        repeating = [line for line in ours if line.repeats and line.repeats == printed.ours]
        if not repeating:
            shown = tuple(Shown(values.get(column)) for column in columns)
            rows.append(SheetRow(_cited(printed), printed.about, "peer", shown, _cited(printed)))
        for line in repeating:
            shown = tuple(_shown(lab, ours[line].get(column), values.get(column)) for column in columns)
            rows.append(SheetRow(line.label, printed.about, line.role, shown, _cited(printed)))
    for line, places in ours.items():
        if not line.repeats:
            shown = tuple(_shown(lab, places.get(column), None) for column in columns)
            rows.append(SheetRow(line.label, "", line.role, shown))
    rows += [SheetRow(who, "", "baseline", tuple(_blind(lab, c, who) for c in columns)) for who in BLIND]
    return Sheet(name, spec.number, spec.title, spec.caption, columns, tuple(rows))


def _cited(printed: Printed) -> str:
    return f"{printed.method} [{printed.cite}]" if printed.cite else printed.method


def derived(cell: Cell) -> bool:
    """Whether a cell's encoders learn from captions that are made by rule from the joints that they see."""
    return any(
        run.kind == "pretrain" and uses_joint_captions(run.recipe.training.pretrain.knowledge, run.packed)
        for job in cell.jobs
        for run in job.runs
    )


def _shown(lab: Lab, cell: Cell | None, value: float | None) -> Shown:
    """Read what a cell holds."""
    if cell is None:  # a floor of Table VIII that is the recipe's own encoder there
        return Shown(value, (), "the recipe's own encoder: see the floor of all tables")
    return replace(_found(lab, cell, value), derived=derived(cell))


def _found(lab: Lab, cell: Cell, value: float | None) -> Shown:
    """Read what finished jobs of a cell found; of the seeds that are finished, where some are not."""
    finished = [found for job in cell.jobs if (found := lab.results(job)) is not None]
    if not finished:
        return Shown(value, (), reason(lab, cell))
    results = [result for one in finished for result in one if cell.wants(result)]
    scored = tuple(result for result in results if result.last is not None)
    if not scored:
        return Shown(value, (), summarise(results).why or "nothing was found")
    part = f"{len(finished)} of {len(cell.jobs)} seeds" if len(finished) < len(cell.jobs) else ""
    why = f"{part}, the others: {reason(lab, cell)}" if part else ""
    return Shown(value, scored, why, part)


def _blind(lab: Lab, column: Column, who: str) -> Shown:
    """Return what an answer without looking reaches; it is known before anything is trained."""
    found = lab.blind(column)
    if isinstance(found, str):
        return Shown(why=found)
    return Shown(results=(Result(protocol="linear", setting=who, last=found[who]),))
