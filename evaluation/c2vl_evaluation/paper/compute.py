"""Count the unfinished cells of the paper's tables, then train and evaluate them; resumable.

Time is estimated as the mean of finished trainings and evaluations of the same kind in the same folder, and unknown if
none has finished. A failure costs the cells that need it; the others are still computed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from c2vl_evaluation.paper.experiments import Evaluation, Experiments, TableCell
from c2vl_evaluation.report.sections import facts_of
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.events import Emit, Note, duration, silent
from c2vl_training import checkpoint
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train

Kind = tuple[str, str, str, str]
"""Training or protocol, its setting, data, encoder: what a time is measured for."""


def unfinished(experiments: Experiments, cells: Sequence[TableCell]) -> list[Evaluation]:
    """Return the unfinished evaluations of some cells, each once, in order."""
    evaluations = {one.id: one for cell in cells for one in cell.evaluations}
    return [one for one in evaluations.values() if experiments.results(one) is None]


@dataclass(frozen=True)
class Tally:
    """Numbers of cells of one table or figure."""

    table: str
    todo: int
    finished: int
    impossible: int


@dataclass(frozen=True)
class Workload:
    """Unfinished cells, and the trainings and evaluations that they need."""

    tallies: tuple[Tally, ...]
    impossible: dict[str, int]
    """Reason why cells cannot be computed -> number of cells."""
    trainings: int
    evaluations: int
    seconds: float
    """Estimate for those of a known kind."""
    unknown: int
    """Number of trainings and evaluations of which no other of the kind has finished."""

    def time(self) -> str:
        """Return the estimated time in words."""
        todo = self.trainings + self.evaluations
        if not todo:
            return "nothing to do"
        if self.unknown == todo:
            return "time unknown, as none of these kinds has finished in this folder yet"
        rest = f" for {todo - self.unknown} of them, unknown for the others" if self.unknown else ""
        return f"about {duration(self.seconds)}{rest}"


def workload(
    experiments: Experiments, cells: Sequence[TableCell], measured: Iterable[TableCell] | None = None
) -> Workload:
    """Count unfinished cells and estimate their time; nothing is trained or written.

    Args:
        experiments: for the stored results.
        cells: the cells to compute.
        measured: cells whose finished trainings and evaluations give the time; `cells` unless given.
    """
    todo = unfinished(experiments, cells)
    ids = {one.id for one in todo}
    tallies = []
    for table in dict.fromkeys(cell.table for cell in cells):
        of = [cell for cell in cells if cell.table == table]
        open_ = sum(any(one.id in ids for one in cell.evaluations) for cell in of)
        impossible = sum(not cell.evaluations for cell in of)
        tallies.append(Tally(table, open_, len(of) - open_ - impossible, impossible))
    runs = {run.out: run for one in todo for run in one.runs}
    trainings = [run for run in runs.values() if not (run.out / checkpoint.ENCODER).is_file()]
    known = _mean_seconds(experiments, cells if measured is None else measured)
    kinds = [*map(_training_kind, trainings), *map(_evaluation_kind, todo)]
    times = [known[kind] for kind in kinds if kind in known]
    reasons = Counter(cell.why for cell in cells if cell.why)
    return Workload(tuple(tallies), dict(reasons), len(trainings), len(todo), sum(times), len(kinds) - len(times))


def _training_kind(run: Run) -> Kind:
    return run.kind, "", run.packed.manifest.fingerprint, run.recipe.training.encoder.name


def _evaluation_kind(one: Evaluation) -> Kind:
    encoder = one.runs[0].recipe.training.encoder.name
    return one.protocol.upper(), one.setting, one.packed.manifest.fingerprint, encoder


def _mean_seconds(experiments: Experiments, cells: Iterable[TableCell]) -> dict[Kind, float]:
    """Return the mean seconds of the finished trainings and evaluations of some cells by kind."""
    seconds: dict[Kind, list[float]] = {}
    evaluations = {one.id: one for cell in cells for one in cell.evaluations}
    for one in evaluations.values():
        if (results := experiments.results(one)) is not None:
            seconds.setdefault(_evaluation_kind(one), []).append(sum(result.seconds for result in results))
    for run in {run.out: run for one in evaluations.values() for run in one.runs}.values():
        value = facts_of(run.out).get("seconds")
        if isinstance(value, int | float):
            seconds.setdefault(_training_kind(run), []).append(float(value))
    return {kind: statistics.mean(values) for kind, values in seconds.items()}


def compute(experiments: Experiments, cells: Sequence[TableCell], emit: Emit = silent) -> None:
    """Train and evaluate the unfinished cells; failures are recorded in `experiments.failed`.

    Raises:
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM; finished results are stored, and a training leaves a checkpoint.
    """
    todo = unfinished(experiments, cells)
    for number, evaluation in enumerate(todo):
        label = f"{evaluation.protocol} {evaluation.setting}".rstrip() + f" of {evaluation.runs[0].out.name}"
        emit(Note(f"cell {number + 1} of {len(todo)}: {label}"))
        at: Path | str = evaluation.id
        try:
            for run in evaluation.runs:
                at = run.out
                if at in experiments.failed:
                    break
                train(run, emit)
            else:
                at = evaluation.id
                experiments.add_results(evaluation, [cell.run().result for cell in evaluation.cells(emit)])
        except C2VLError as error:
            experiments.failed[at] = str(error)
            emit(Note(f"{label}: {experiments.failed[at]}", "warning"))


def reason(experiments: Experiments, cell: TableCell) -> str:
    """Return the reason why a cell is empty."""
    if cell.why:
        return cell.why
    for one in cell.evaluations:
        for place in (one.id, *(run.out for run in one.runs)):
            if place in experiments.failed:
                return experiments.failed[place]
    return "not computed yet"
