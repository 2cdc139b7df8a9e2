"""What `c2vl-eval paper` would do, and how long it may take, before anything starts.

Time is measured, never guessed: seconds a unit of work (a sample and epoch of training, a sample of an evaluation) of
finished work of the same kind and encoder in the same folder. Where nothing of the kind has run, trainings are probed by
a few steps if that is asked for, and all else is unknown: probing an evaluation without its data misses most of its time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from c2vl_evaluation.paper import probe as probing
from c2vl_evaluation.paper.cells import unfinished
from c2vl_evaluation.paper.experiments import Cell, Job, Lab
from c2vl_evaluation.report.sections import facts_of
from c2vl_training import checkpoint
from c2vl_training.run_folder import Run
from c2vl_training.run_log import read_metrics

PROBE = 10.0
"""Seconds after which no further kind is probed."""
Kind = tuple[str, str, int]
"""Of work: training or protocol, encoder, frames a clip."""


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
    """Of the work whose kind was measured."""
    unknown: int
    """Trainings and evaluations of a kind that never ran here."""
    probed: int = 0
    """Those among the known ones whose kind never ran here either, and was probed."""

    def time(self) -> str:
        """Say the estimated time."""
        todo = self.trainings + self.evaluations
        if not todo:
            return "nothing to do"
        if self.unknown == todo:
            return "time unknown: nothing of these kinds has run here yet"
        said = f"about {duration(self.seconds)}"
        if self.unknown:
            said += f" for {todo - self.unknown} of them, unknown for the others"
        if self.probed:
            said += f"; {self.probed} of these were probed by a few steps, since nothing of their kind has run here yet"
        return said


class _Work(NamedTuple):
    kind: Kind
    units: float


def plan(
    lab: Lab, cells: Sequence[Cell], measured: Iterable[Cell] | None = None, *, probe: bool = False
) -> Plan:
    """Count what cells lack and estimate its time; trains and writes nothing.

    Args:
        lab: where finished cells are.
        cells: what is asked for.
        measured: whose finished work tells the time, asked for or not; `cells` unless given.
        probe: take a few steps of trainings of which nothing is measured, about `PROBE` seconds in all.

    Raises:
        ConfigError, DataError: a split that does not exist or holds nothing usable.
    """
    waiting = unfinished(lab, cells)
    paths = {job.path for job in waiting}
    tallies = []
    for table in dict.fromkeys(cell.table for cell in cells):
        of = [cell for cell in cells if cell.table == table]
        todo = sum(any(job.path in paths for job in cell.jobs) for cell in of)
        none = sum(not cell.jobs for cell in of)
        tallies.append(Tally(table, todo, len(of) - todo - none, none))
    absent: dict[str, int] = {}
    for cell in cells:
        if cell.why:
            absent[cell.why] = absent.get(cell.why, 0) + 1
    runs = {run.out: run for job in waiting for run in job.runs}
    left = [run for run in runs.values() if not (run.out / checkpoint.ENCODER).is_file()]
    pace = _pace(lab, cells if measured is None else measured)
    work = [_training(run) for run in left] + [_evaluation(job) for job in waiting]
    probed = _probed(left, waiting, pace) if probe else {}
    guessed = [w.units * probed[w.kind] for w in work if w.kind in probed]
    known = [w.units * pace[w.kind] for w in work if w.kind in pace] + guessed
    unknown = len(work) - len(known)
    return Plan(tuple(tallies), absent, len(left), len(waiting), sum(known), unknown, len(guessed))


def _probed(runs: Iterable[Run], jobs: Iterable[Job], pace: dict[Kind, float]) -> dict[Kind, float]:
    """Return seconds a unit of work of trainings, and of fine-tuning, of which nothing is measured."""
    wanted = {_kind(run.kind, run): run for run in runs if run.kind != "random"}
    for job in jobs:
        if (kind := _evaluation(job).kind)[0] == "FINETUNE":
            wanted.setdefault(kind, replace(job.runs[0], kind="supervised"))
    end, found = time.monotonic() + PROBE, dict[Kind, float]()
    for kind, run in wanted.items():
        if kind not in pace and time.monotonic() < end and (each := probing.pace(run)) is not None:
            found[kind] = each
    return found


def _kind(what: str, run: Run) -> Kind:
    t = run.recipe.training
    return what, t.encoder.name, t.input.frames


def _samples(run: Run) -> int:
    return len(run.packed.select(run.benchmark, "train").rows)


def _training(run: Run, done: int | None = None) -> _Work:
    """Return the work of a training: what is left of it, or `done` epochs."""
    t = run.recipe.training
    epochs = {"pretrain": t.pretrain.epochs, "supervised": t.supervised.epochs, "random": 1}[run.kind]
    if done is None:
        done = epochs - len(read_metrics(run.out))
    return _Work(_kind(run.kind, run), float(_samples(run) * max(done, 0)))


def _evaluation(job: Job) -> _Work:
    train, test = (len(job.packed.select(job.benchmark, split).rows) for split in ("train", "test"))
    e, what, units = job.evaluation, job.protocol.upper(), float(train + test)
    if job.protocol == "finetune":
        units = float(train * e.finetune.epochs * max(1, len(e.finetune.lrs)))
    elif job.protocol == "semi":
        what = f"{what} {e.semi.encoder[0]}"
        epochs = e.semi.tune.epochs if e.semi.encoder[0] == "tuned" else e.linear.epochs
        # every epoch of tuning answers the test split
        units = e.semi.draws * epochs * (e.semi.shares[0] * train + test)
    elif job.protocol == "transfer":
        what = f"{what} {e.transfer.encoder[0]}"
        units *= e.transfer.tune.epochs if e.transfer.encoder[0] == "tuned" else 1
    elif job.protocol == "ensemble":  # the two further streams; the joint stream has a line of its own
        tuned = e.ensemble.protocol[0] == "finetune"
        what, units = e.ensemble.protocol[0].upper(), 2 * units
        if tuned:
            units = 2.0 * train * e.finetune.epochs * max(1, len(e.finetune.lrs))
    return _Work(_kind(what, job.runs[0]), units)


def _pace(lab: Lab, cells: Iterable[Cell]) -> dict[Kind, float]:
    """Return seconds a unit of work by kind, of everything that these cells have finished or begun."""
    jobs = {job.path: job for cell in cells for job in cell.jobs}
    spent: dict[Kind, tuple[float, float]] = {}

    def add(work: _Work, seconds: float) -> None:
        before = spent.get(work.kind, (0.0, 0.0))
        spent[work.kind] = (before[0] + seconds, before[1] + work.units)

    for job in jobs.values():
        if job.protocol != "ensemble" and (kept := lab.kept(job)) is not None:
            add(_evaluation(job), kept.seconds)
    for run in {run.out: run for job in jobs.values() for run in job.runs}.values():
        epochs = read_metrics(run.out)
        if run.kind == "random":
            seconds = facts_of(run.out).get("seconds")
            if isinstance(seconds, int | float):
                add(_training(run, 1), seconds)
        elif epochs:
            add(_training(run, len(epochs)), sum(epoch.get("seconds", 0.0) for epoch in epochs))
    return {kind: seconds / units for kind, (seconds, units) in spent.items() if units}


def duration(seconds: float) -> str:
    """Say a time: `40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
