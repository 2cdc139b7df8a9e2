"""`c2vl-eval paper`: trains and evaluates what the cells of a `lab` lack, resumable.

A cell that cannot be made says why, and the others go on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.paper.experiments import Cell, Job, Lab
from c2vl_evaluation.protocols import PROTOCOLS
from c2vl_evaluation.results import Result
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_training.trainer import train

_BATCHES = {
    "linear": "evaluation.linear",
    "finetune": "evaluation.finetune",
    "semi": "evaluation.semi.tune",
    "transfer": "evaluation.transfer.tune",
}
"""Where the batch size of a protocol is set."""


def evaluate(job: Job, emit: Emit = silent) -> tuple[Result, ...]:
    """Run a job's protocol on its finished trainings, or read what was found before."""
    contexts = [
        EvalContext(
            run.out,
            job.packed,
            job.benchmark,
            run.recipe.model_copy(update={"evaluation": job.evaluation}),
            run.seed,
            emit,
        )
        for run in job.runs
    ]
    streams: dict[str, EvalContext] = (
        {run.recipe.training.input.stream: one for run, one in zip(job.runs, contexts, strict=True)}
        if job.protocol == "ensemble"
        else {}
    )
    context = replace(contexts[0], streams=streams)
    return tuple(cell.run().result for cell in PROTOCOLS[job.protocol](context))


def unfinished(lab: Lab, cells: Sequence[Cell]) -> list[Job]:
    """Return the jobs that cells wait for, each once, in order."""
    jobs = {job.path: job for cell in cells for job in cell.jobs}
    return [job for job in jobs.values() if lab.kept(job) is None]


def compute(lab: Lab, cells: Sequence[Cell], emit: Emit = silent) -> None:
    """Train and evaluate what cells lack; what cannot be done is noted in `lab.failed`, and the rest goes on.

    Raises:
        OSError: the disk is full.
        KeyboardInterrupt: Ctrl-C or SIGTERM; everything finished is kept, and a training leaves a checkpoint.
    """
    jobs = unfinished(lab, cells)
    for number, job in enumerate(jobs):
        named = f"{job.path.stem.rsplit('-', 1)[0]}, {job.runs[0].out.name}"
        emit(Note(f"cell {number + 1} of {len(jobs)}: {named}"))
        at = job.path
        try:
            for run in job.runs:
                at = run.out
                if at in lab.failed:
                    break
                train(run, emit)
            else:
                at, started = job.path, time.monotonic()
                lab.keep(job, evaluate(job, emit), time.monotonic() - started)
        except (C2VLError, RuntimeError) as error:
            lab.failed[at] = _said(error, job, training=at != job.path)
            emit(Note(f"{named}: {lab.failed[at]}", "warning"))


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
    return f"out of memory in the {what} ({_one_line(error)}); give it {batch}a device with more free memory"


def _one_line(error: RuntimeError) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


def reason(lab: Lab, cell: Cell) -> str:
    """Say why a cell is empty."""
    if cell.why:
        return cell.why
    for job in cell.jobs:
        for place in (job.path, *(run.out for run in job.runs)):
            if place in lab.failed:
                return lab.failed[place]
    return "not computed yet"
