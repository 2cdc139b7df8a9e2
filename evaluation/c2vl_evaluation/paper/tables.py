"""The paper's tables filled with its numbers and ours, as values that `export` writes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from c2vl_evaluation.paper.compute import reason
from c2vl_evaluation.paper.experiments import Experiments, TableCell
from c2vl_evaluation.paper.spec import Column, PrintedRow, tables_and_figures
from c2vl_evaluation.results import Evaluated, Result, Score, summarise

MARK = "†"
DERIVED = "Pre-trained on captions derived from the joints that the encoder sees: they add no outside knowledge."
"""Meaning of the mark."""
NEAR = 0.05
"""Points below which two numbers count as equal."""
Measure = Literal["top5", "balanced", "best"]
MEASURES: dict[Measure, str] = {"top5": "top-5", "balanced": "balanced accuracy", "best": "best epoch (oracle)"}
"""Measures shown next to top-1 at the last epoch. The best epoch is picked by top-1 on the test split: peers report it."""


@dataclass(frozen=True)
class FilledCell:
    """One cell of a table: the paper's number in percent, and our results."""

    paper: float | None = None
    results: tuple[Result, ...] = ()
    """Results with a score, one per seed and draw."""
    why: str = ""
    """Why we have no number, or one of fewer seeds than requested; empty in rows of other methods."""
    part: str = ""
    """`1 of 2 seeds` until all are finished."""
    derived: bool = False
    """Pre-trained on captions computed from the joints that the encoder sees."""

    @property
    def ours(self) -> tuple[float, ...]:
        """Top-1 at the last epoch in percent, one per seed and draw."""
        return tuple(100 * r.last.top1 for r in self.results if r.last is not None)

    @property
    def mark(self) -> str:
        """`†` if the number is of captions derived from the joints."""
        return MARK if self.derived and self.results else ""

    @property
    def text(self) -> str:
        """Computed mean: `61.2` or `61.2 ± 1.3`."""
        return summarise(self.results).top1 if self.results else ""

    @property
    def marked_text(self) -> str:
        """Computed mean with its mark and its seeds: `61.2†`, `61.2, 1 of 2 seeds`."""
        seeds = f", {self.part}" if self.part else ""
        return self.text + self.mark + seeds if self.results else ""

    def values(self, measure: Measure) -> tuple[float, ...]:
        """Return the values of a measure in percent; empty if the protocol does not have it."""
        scores = [r.best if measure == "best" else r.last for r in self.results]
        name = "top1" if measure == "best" else measure
        values = [getattr(score, name) for score in scores if score is not None]
        return tuple(100 * value for value in values if value is not None)

    def text_of(self, measure: Measure) -> str:
        """Return the mean of a measure, `61.2` or `61.2 ± 1.3`; empty if the protocol does not have it."""
        return str(getattr(summarise(self.results), measure)) if self.values(measure) else ""

    @property
    def last_epochs(self) -> tuple[int, ...]:
        """Numbers of the last epochs, counted from 1, each once."""
        return tuple(dict.fromkeys(r.epochs for r in self.results if r.epochs))

    @property
    def best_epochs(self) -> tuple[int, ...]:
        """Numbers of the best epochs, one per seed and draw."""
        return tuple(r.best_epoch for r in self.results if r.best_epoch is not None)

    @property
    def difference(self) -> float | None:
        """Our mean minus the paper's number."""
        return statistics.mean(self.ours) - self.paper if self.results and self.paper is not None else None

    @property
    def direction(self) -> Literal["", "up", "same", "down"]:
        """Direction of the difference; empty if there is none."""
        if self.difference is None:
            return ""
        return "same" if abs(self.difference) < NEAR else "up" if self.difference > 0 else "down"

    @property
    def signed_difference(self) -> str:
        """The difference as `+0.3` or `−1.2`; empty if there is none."""
        return "" if self.difference is None else f"{self.difference:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class FilledRow:
    """A row; `role` is `peer` for other methods, `baseline` for answers without an encoder."""

    label: str
    about: str
    role: str
    cells: tuple[FilledCell, ...]
    printed: str = ""
    """Name of the paper's row whose numbers it repeats."""

    @property
    def other_name(self) -> str:
        """The paper's name of the row if it differs from the label: `PCM³` for `C²VL with a bidirectional GRU`."""
        return "" if self.printed in {self.label, self.label.partition(", ")[0]} else self.printed

    @property
    def title(self) -> str:
        """The label without its setting, which `subtitle` shows: `C²VL` of `C²VL, stratified, frozen`."""
        return self.label if self.about else self.label.partition(", ")[0]

    @property
    def subtitle(self) -> str:
        """The paper's remark or the setting, and the paper's own name of the row."""
        other = f"the paper's row: {self.other_name}" if self.other_name else ""
        return "; ".join(filter(None, (self.about or self.label.partition(", ")[2], other)))

    @property
    def trained(self) -> bool:
        """True if its numbers come from trainings of this code."""
        return self.role not in {"peer", "baseline"}

    def measures(self) -> list[Measure]:
        """Return the measures that any cell has."""
        return [measure for measure in MEASURES if any(cell.values(measure) for cell in self.cells)]


@dataclass(frozen=True)
class FilledTable:
    """A table with all its numbers."""

    name: str
    number: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[FilledRow, ...]
    clips: tuple[int, ...] = ()
    """Number of test clips of each column; 0 where its data are not here."""

    @property
    def heading(self) -> str:
        """`Table IV. Action retrieval (kNN)`."""
        word = "Table" if self.name.startswith("table") else "Figure"
        return f"{word} {self.number}. {self.title}"

    def measures(self) -> list[Measure]:
        """Return the measures that any row has."""
        return [measure for measure in MEASURES if any(measure in row.measures() for row in self.rows)]

    @property
    def derived(self) -> bool:
        """True if any number carries the mark."""
        return any(cell.mark for row in self.rows for cell in row.cells)

    def counts(self) -> list[int]:
        """Return the numbers of runs that our means are of, each once."""
        counts = (len(cell.ours) for row in self.rows if row.trained for cell in row.cells)
        return sorted({*counts} - {0})

    def runs(self) -> str:
        """Return a sentence on the number of runs per mean; empty if nothing is computed."""
        match self.counts():
            case []:
                return ""
            case [count]:
                return f"Each of our numbers is of {count} run{'s' if count > 1 else ''}."
            case [least, *_, most]:
                return f"Our numbers are of {least} to {most} runs each."
        raise AssertionError


def fill(experiments: Experiments, name: str, cells: Sequence[TableCell]) -> FilledTable:
    """Fill a table: the paper's rows in its order, ours below the rows that they repeat, controls last.

    Args:
        experiments: for the stored results.
        name: of a table, or `figure6`.
        cells: all cells of this table; columns that can be filled come first.
    """
    spec = tables_and_figures()[name]
    possible = {cell.column for cell in cells if not cell.why}
    columns = tuple(sorted(dict.fromkeys(cell.column for cell in cells), key=lambda c: c not in possible))
    ours = {row: {c.column: c for c in cells if c.row == row} for row in dict.fromkeys(c.row for c in cells)}
    rows: list[FilledRow] = []
    for printed in spec.rows:
        values = dict(zip(spec.columns, printed.values, strict=True))
        repeating = [row for row in ours if row.repeats and row.repeats == printed.ours]
        if not repeating:
            peers = tuple(FilledCell(values.get(column)) for column in columns)
            rows.append(FilledRow(_cited(printed), printed.about, "peer", peers, _cited(printed)))
        for row in repeating:
            filled = tuple(_fill(experiments, ours[row].get(c), values.get(c)) for c in columns)
            rows.append(FilledRow(row.label, printed.about, row.role, filled, _cited(printed)))
    for row, of in ours.items():
        if not row.repeats:
            filled = tuple(_fill(experiments, of.get(column), None) for column in columns)
            rows.append(FilledRow(row.label, "", row.role, filled))
    known = [experiments.no_encoder_scores(column) for column in columns]
    for baseline, score in _NO_ENCODER.items():
        filled = tuple(_fill_baseline(baseline, score, of_column) for of_column in known)
        rows.append(FilledRow(baseline, "", "baseline", filled))
    clips = tuple(0 if isinstance(of_column, str) else of_column.test for of_column in known)
    return FilledTable(name, spec.number, spec.title, spec.caption, columns, tuple(rows), clips)


def _cited(printed: PrintedRow) -> str:
    return f"{printed.method} [{printed.cite}]" if printed.cite else printed.method


def derived(cell: TableCell) -> bool:
    """Return True if a cell's encoders are pre-trained on captions computed from the joints that they see."""
    return any(run.uses_joint_captions() for one in cell.evaluations for run in one.runs)


def _fill(experiments: Experiments, cell: TableCell | None, paper: float | None) -> FilledCell:
    """Fill a cell with the results of the seeds that are finished."""
    if cell is None:  # a floor of Table VIII that is the recipe's own encoder there
        return FilledCell(paper, (), "the recipe's own encoder: see the floor of all tables")
    stored = [experiments.results(one) for one in cell.evaluations]
    finished = [results for results in stored if results is not None]
    if not finished:
        return FilledCell(paper, (), reason(experiments, cell), derived=derived(cell))
    results = [result for of in finished for result in of if cell.takes(result)]
    scored = tuple(result for result in results if result.last is not None)
    if not scored:
        return FilledCell(paper, (), summarise(results).why or "no result", derived=derived(cell))
    part = f"{len(finished)} of {len(stored)} seeds" if len(finished) < len(stored) else ""
    why = f"{part}, the others: {reason(experiments, cell)}" if part else ""
    return FilledCell(paper, scored, why, part, derived(cell))


_NO_ENCODER: dict[str, Callable[[Evaluated], Score]] = {
    "majority class": lambda known: known.majority,
    "chance": lambda known: known.chance,
}
"""Baselines that need no encoder."""


def _fill_baseline(name: str, score: Callable[[Evaluated], Score], known: Evaluated | str) -> FilledCell:
    """Fill a cell with a score that needs no encoder, known before anything is trained."""
    if isinstance(known, str):
        return FilledCell(why=known)
    return FilledCell(results=(Result(protocol="linear", setting=name, last=score(known)),))
