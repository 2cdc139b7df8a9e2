"""`c2vl-eval paper`: count, then train and evaluate what the cells lack; resumable.

The time of a plan is the mean of finished trainings and evaluations of the same kind in the same folder; where none
has finished, it is unknown. A cell that fails holds the reason, and the others are still computed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from c2vl_evaluation.paper.experiments import Cell, Job, Lab
from c2vl_evaluation.report.sections import facts_of
from c2vl_manifests.errors import C2VLError, one_line
from c2vl_manifests.events import Emit, Note, duration, silent
from c2vl_training import checkpoint
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train

_BATCHES = {
    "linear": "evaluation.linear",
    "finetune": "evaluation.finetune",
    "semi": "evaluation.semi.tune",
    "transfer": "evaluation.transfer.tune",
}
"""Where the batch size of a protocol is set."""


def unfinished(lab: Lab, cells: Sequence[Cell]) -> list[Job]:
    """Return the jobs that cells wait for, each once, in order."""
    jobs = {job.id: job for cell in cells for job in cell.jobs}
    return [job for job in jobs.values() if lab.results(job) is None]


@dataclass(frozen=True)
class Tally:
    """The cells of one table or figure."""

    table: str
    todo: int
    finished: int
    impossible: int


@dataclass(frozen=True)
class Plan:
    """What there is to do."""

    tallies: tuple[Tally, ...]
    absent: dict[str, int]
    """Why cells cannot be made -> how many."""
    trainings: int
    evaluations: int
    seconds: float
    """Of those whose kind has finished before."""
    unknown: int
    """How many are of a kind of which nothing has finished."""

    def time(self) -> str:
        """Return the estimated time in words."""
        todo = self.trainings + self.evaluations
        if not todo:
            return "nothing to do"
        if self.unknown == todo:
            return "time unknown: nothing of these kinds has finished here yet"
        rest = f" for {todo - self.unknown} of them, unknown for the others" if self.unknown else ""
        return f"about {duration(self.seconds)}{rest}"


Kind = tuple[str, str, str, str]
"""Training or protocol, its setting, dataset, encoder."""


def plan(lab: Lab, cells: Sequence[Cell], measured: Iterable[Cell] | None = None) -> Plan:
    """Count what cells lack and estimate its time; nothing is trained or written.

    Args:
        lab: where finished cells are.
        cells: what is asked for.
        measured: cells whose finished work tells the time, asked for or not; `cells` unless given.
    """
    waiting = unfinished(lab, cells)
    ids = {job.id for job in waiting}
    tallies, absent = [], Counter(cell.why for cell in cells if cell.why)
    for table in dict.fromkeys(cell.table for cell in cells):
        of = [cell for cell in cells if cell.table == table]
        todo = sum(any(job.id in ids for job in cell.jobs) for cell in of)
        impossible = sum(not cell.jobs for cell in of)
        tallies.append(Tally(table, todo, len(of) - todo - impossible, impossible))
    runs = {run.out: run for job in waiting for run in job.runs}
    trainings = [run for run in runs.values() if not (run.out / checkpoint.ENCODER).is_file()]
    known = _seconds(lab, cells if measured is None else measured)
    work = [_training(run) for run in trainings] + [_evaluation(job) for job in waiting]
    times = [known[kind] for kind in work if kind in known]
    return Plan(
        tuple(tallies), dict(absent), len(trainings), len(waiting), sum(times), len(work) - len(times)
    )


def _training(run: Run) -> Kind:
    return run.kind, "", run.packed.manifest.fingerprint, _encoder(run)


def _evaluation(job: Job) -> Kind:
    return job.protocol.upper(), job.setting, job.packed.manifest.fingerprint, _encoder(job.runs[0])


def _encoder(run: Run) -> str:
    return run.recipe.training.encoder.name


def _seconds(lab: Lab, cells: Iterable[Cell]) -> dict[Kind, float]:
    """Return the mean seconds of the finished trainings and evaluations of these cells by kind."""
    spent: dict[Kind, list[float]] = {}
    jobs = {job.id: job for cell in cells for job in cell.jobs}
    for job in jobs.values():
        if (results := lab.results(job)) is not None:
            spent.setdefault(_evaluation(job), []).append(sum(result.seconds for result in results))
    for run in {run.out: run for job in jobs.values() for run in job.runs}.values():
        seconds = facts_of(run.out).get("seconds")
        if isinstance(seconds, int | float):
            spent.setdefault(_training(run), []).append(float(seconds))
    return {kind: statistics.mean(values) for kind, values in spent.items()}


def compute(lab: Lab, cells: Sequence[Cell], emit: Emit = silent) -> None:
    """Train and evaluate what cells lack; what cannot be done is noted in `lab.failed`, and the rest goes on.

    Raises:
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything finished is kept, and a training leaves a checkpoint.
    """
    jobs = unfinished(lab, cells)
    for number, job in enumerate(jobs):
        label = f"{job.protocol} {job.setting}".rstrip() + f" of {job.runs[0].out.name}"
        emit(Note(f"cell {number + 1} of {len(jobs)}: {label}"))
        at: Path | str = job.id
        try:
            for run in job.runs:
                at = run.out
                if at in lab.failed:
                    break
                train(run, emit)
            else:
                at = job.id
                lab.add(job, [cell.run().result for cell in job.results(emit)])
        except (C2VLError, RuntimeError) as error:
            lab.failed[at] = _said(error, job, training=at != job.id)
            emit(Note(f"{label}: {lab.failed[at]}", "warning"))


def _said(error: C2VLError | RuntimeError, job: Job, *, training: bool) -> str:
    """Say in one line what stopped a job.

    Raises:
        RuntimeError: as it came, where it is a fault of the program and not a lack of memory.
    """
    if isinstance(error, C2VLError):
        return str(error)
    text = str(error).lower()
    memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "allocate memory" in text
    if not memory:
        raise error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    what, place = f"{job.protocol} evaluation", _BATCHES.get(job.protocol, "")
    if training:
        kind = job.runs[0].kind
        what, place = f"{kind} training", "" if kind == "random" else f"training.{kind}"
    batch = f"a smaller batch (--set {place}.batch_size=...) or " if place else ""
    return f"out of memory in the {what} ({one_line(error).rstrip('.')}); give it {batch}a device with more free memory"


def reason(lab: Lab, cell: Cell) -> str:
    """Say why a cell is empty."""
    if cell.why:
        return cell.why
    for job in cell.jobs:
        for place in (job.id, *(run.out for run in job.runs)):
            if place in lab.failed:
                return lab.failed[place]
    return "not computed yet"
