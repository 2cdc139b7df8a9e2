"""Fine-tuning protocol: the whole network learns from the weights of a run and a fresh linear layer.

*Reading:* the paper gives no recipe. SGD, learning rate 0.1, weight decay 1e-4, batch 128, 80 epochs, x0.1 at
50 and 70: the recipe of the supervised control, so that the two differ in their first weights alone.

Semi-supervision and transfer tune by the same `tune`. A killed training resumes from its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import FOLDER, Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, encoder_for
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.protocols.linear import Trained
from c2vl_evaluation.results import Protocol, Score
from c2vl_manifests.errors import C2VLError, CheckpointError
from c2vl_manifests.recipe import FinetuneConfig
from c2vl_training import checkpoint, run_folder, trainer
from c2vl_training.clips import Clips
from c2vl_training.distributed import device_of
from c2vl_training.inference import encode
from c2vl_training.methods import FineTuning
from c2vl_training.run_log import Counts, Metrics
from c2vl_training.trainer import DivergedError, Session


@dataclass(frozen=True)
class Job:
    """One training: its rows, and the test rows that it answers."""

    context: EvalContext
    rows: Labels
    """Of the training samples."""
    asked: Labels
    """Rows of the test samples."""
    classes: int
    config: FinetuneConfig
    label: str = "finetune"
    """Name in progress reports, and of the checkpoint."""


def tune(job: Job) -> Trained:
    """Train; with several `lrs`, at the one of the lowest cross-entropy on held-out *training* samples.

    Raises:
        CheckpointError: the run has no encoder, or one of another joint layout.
        C2VLError: the loss or the answers became NaN.
    """
    rates = job.config.lrs or (job.config.optimiser.lr,)
    if len(rates) == 1:
        return Trained(*_sound(job, rates[0]), rates[0], None, len(job.rows), job.config.epochs)
    out, rest = (job.rows[at.numpy()] for at in linear.held_out(len(job.rows), job.config.holdout, job.context.seed))
    results = []
    for rate in rates:
        history, logits = _train(job, rate, rest, out, every_epoch=False)
        truth = torch.from_numpy(job.context.packed.labels()[out])
        loss = float(F.cross_entropy(torch.from_numpy(logits), truth).nan_to_num(nan=torch.inf))
        results.append((loss, rate, history[-1].top1))
    _, rate, reached = min(results)
    return Trained(*_sound(job, rate), rate, reached, len(job.rows), job.config.epochs)


def _sound(job: Job, rate: float) -> tuple[list[Score], Array]:
    """Train on all rows; raise C2VLError if the last logits are NaN or infinite."""
    history, logits = _train(job, rate, job.rows, job.asked, job.config.every_epoch)
    if not np.isfinite(logits).all():
        raise C2VLError(
            f"{job.label}: the answers are NaN or infinite after the last epoch, at the rate {rate:g}; lower "
            "it (optimiser.lr), or clip gradients by optimiser.clip_norm=1"
        )
    return history, logits


def _train(job: Job, rate: float, rows: Labels, asked: Labels, every_epoch: bool) -> tuple[list[Score], Array]:
    """Train on `rows`; return the scores of the `asked` rows, of every epoch or the last, and their last logits (N, C)."""
    context, config = job.context, job.context.recipe.training
    device, precision = device_of(config.device), config.precision
    trained = encoder_for(context.run, context.packed, device)
    clips, questions = (Clips(context.packed, some, trained.input, device) for some in (rows, asked))
    labels = torch.from_numpy(context.packed.labels())
    dtype = torch.float64 if precision == "float64" else torch.float32
    torch.manual_seed(context.seed)
    method = FineTuning(trained.module, labels[rows].to(device), job.classes, job.config, rate, dtype)
    last: list[Tensor] = []

    def on_epoch_end(epoch: int, figures: Metrics, counts: Counts) -> Metrics:
        if not every_epoch and epoch + 1 < job.config.epochs:
            return Metrics()
        last[:] = [answer(method.model, questions, precision)]
        score = metrics.score(last[0], labels[asked])
        return {_FIGURES[name]: value for name, value in score.model_dump().items() if value is not None}

    facts = {
        "encoder": trained.facts, "config": job.config.model_dump(mode="json"), "rate": rate, "seed": context.seed,
        **{name: context.packed.digests(some, labels=True) for name, some in (("rows", rows), ("asked", asked))},
    }  # fmt: skip
    path = context.run / FOLDER / f"{job.label.replace(' ', '-')}-going.safetensors"
    _drop_other(path, facts)
    session = Session(job.label, context.seed, config, path, facts, context.emit, on_epoch_end)
    try:
        at = trainer.fit(method, clips, session)
    except DivergedError as error:
        raise C2VLError(
            f"{job.label}: the loss became NaN or infinite {error.where}, at the rate {rate:g}; lower it "
            "(optimiser.lr), or clip gradients by optimiser.clip_norm=1"
        ) from error
    if not last:  # resumed after the last epoch
        last = [answer(method.model, questions, precision)]
    path.unlink(missing_ok=True)
    scored = [figures for figures in at.history if figures]
    history = [Score(**{name: figures.get(key) for name, key in _FIGURES.items()}) for figures in scored]
    return history, last[0].float().numpy()


_FIGURES = {"top1": "top-1", "top5": "top-5", "balanced": "balanced"}
"""Field of a score -> its name in the history of a training."""


def answer(network: nn.Module, clips: Clips, precision: str = "float32") -> Tensor:
    """Return the logits of all clips (N, C), on the CPU: eval mode, central windows, not rotated."""

    def logits(batch: Tensor) -> Tensor:
        batch = batch.double() if precision == "float64" else batch
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            scores: Tensor = network(batch)
        return scores if precision == "float64" else scores.float()

    network.eval()
    return encode(logits, clips)


def _drop_other(path: Path, facts: dict[str, Any]) -> None:
    """Delete a checkpoint that is damaged or of another training."""
    try:
        run_folder.check_same(facts, checkpoint.load(path)[1], path)
    except CheckpointError:
        path.unlink(missing_ok=True)


def cell(
    context: EvalContext,
    protocol: Protocol,
    config: FinetuneConfig,
    label: str,
    draw_places: Callable[[], Labels] | None = None,
    **key: Any,
) -> Cell:
    """Return a training of the whole network as a cell of a protocol.

    Args:
        context: the run and the data.
        protocol: of the cell.
        config: of the training.
        label: name of the training in progress reports.
        draw_places: returns the places of the labelled samples within the training split; all of them unless given.
        key: what determines the result besides `config` and the precision.
    """

    def compute() -> ResultWithPredictions:
        train, test, classes = metrics.usable_splits(context.packed, context.benchmark)
        rows = train.rows if draw_places is None else train.rows[draw_places()]
        trained = tune(Job(context, rows, test.rows, classes, config, label))
        return ResultWithPredictions(trained.result(protocol), context.predictions(test.rows, trained.logits))

    precision = context.recipe.training.precision
    return Cell(protocol, compute, context.key(protocol, config, precision=precision, **key), oracle=config.every_epoch)


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the one cell of the protocol."""
    yield cell(context, "finetune", context.recipe.evaluation.finetune, f"finetune {context.run.name}")
