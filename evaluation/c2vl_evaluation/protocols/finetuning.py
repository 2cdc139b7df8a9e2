"""Training of a whole network with labels, from the weights of a run: what fine-tuning, semi-supervision and transfer share.

The loop draws by seed, epoch and step; it leaves a checkpoint every few epochs, and a killed one goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import FOLDER, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, encoder_for
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.results import Protocol, Result, Score
from c2vl_manifests.errors import C2VLError, CheckpointError
from c2vl_manifests.events import Progress
from c2vl_manifests.recipe import FinetuneConfig
from c2vl_training import checkpoint, schedule
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips
from c2vl_training.encoders import Encoder
from c2vl_training.methods import generator_of, key_of
from c2vl_training.trainer import device_of

_TEST_BATCH = 128


@dataclass(frozen=True)
class Job:
    """One training: what it learns from, and what it is asked at the end of every epoch."""

    context: EvalContext
    rows: Labels
    """Of the training samples."""
    asked: Labels
    """Rows of the test samples."""
    classes: int
    config: FinetuneConfig
    label: str = "finetune"
    """For progress, and for the file of a training that is going on."""


@dataclass(frozen=True)
class Tuned:
    """What a training gave."""

    history: list[Score]
    """Of the asked samples, one an epoch."""
    logits: Array
    """Of the asked samples at the last epoch, (N, C)."""
    lr: float
    held_out: float | None

    def result(self, job: Job, protocol: Protocol) -> ResultWithPredictions:
        """Return the training as the result of a protocol."""
        best = max(range(len(self.history)), key=lambda epoch: self.history[epoch].top1)
        result = Result(
            protocol=protocol, last=self.history[-1], best=self.history[best],
            best_epoch=best + 1, epochs=len(self.history), lr=self.lr, held_out=self.held_out,
            train=len(job.rows), test=len(job.asked),
        )  # fmt: skip
        return ResultWithPredictions(result, job.context.predictions(job.asked, self.logits))


def tune(job: Job) -> Tuned:
    """Train; where `lrs` are given, with the rate that has the lowest cross-entropy on held-out *training* samples.

    Raises:
        CheckpointError: the run has no encoder, or one of another joint layout.
        C2VLError: the loss or the answers became NaN.
    """
    rates = job.config.lrs or (job.config.optimiser.lr,)
    if len(rates) == 1:
        return Tuned(*_sound(job, rates[0]), rates[0], None)
    out, rest = (
        job.rows[at.numpy()] for at in linear.held_out(len(job.rows), job.config.holdout, job.context.seed)
    )
    tried = []
    for rate in rates:
        history, logits = _train(job, rate, rest, out)
        truth = torch.from_numpy(job.context.packed.labels()[out])
        loss = float(F.cross_entropy(torch.from_numpy(logits), truth).nan_to_num(nan=torch.inf))
        tried.append((loss, rate, history[-1].top1))
    _, rate, reached = min(tried)
    return Tuned(*_sound(job, rate), rate, reached)


def _sound(job: Job, rate: float) -> tuple[list[Score], Array]:
    """Train on all rows; weights that broke in the very last step, after its loss was seen, are no result."""
    history, logits = _train(job, rate, job.rows, job.asked)
    if not np.isfinite(logits).all():
        raise C2VLError(
            f"{job.label}: the answers are NaN or infinite after the last epoch, at the rate {rate:g}; "
            "lower it (optimiser.lr), or clip gradients by optimiser.clip_norm=1"
        )
    return history, logits


def _train(job: Job, rate: float, rows: Labels, asked: Labels) -> tuple[list[Score], Array]:
    training = job.context.recipe.training
    config, o, where = job.config, job.config.optimiser, device_of(training.device)
    trained = encoder_for(job.context.run, job.context.packed, where)
    labels = torch.from_numpy(job.context.packed.labels())
    known, questions = (Clips(job.context.packed, some, trained.input, where) for some in (rows, asked))
    y, truth = labels[rows].to(where), labels[asked].to(where)
    encoder = trained.module.requires_grad_(True)
    assert isinstance(encoder, Encoder)
    torch.manual_seed(job.context.seed)
    network = nn.Sequential(encoder, nn.Linear(encoder.dim, job.classes)).to(where)
    if training.precision == "float64":
        network.double()
    optimiser = torch.optim.SGD(
        list(_groups(encoder, network[1], config)),
        lr=rate, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0,
    )  # fmt: skip
    batch = min(config.batch_size, len(known))
    steps = len(known) // batch
    told = {
        "encoder": trained.facts, "config": config.model_dump(mode="json"), "rate": rate, "seed": job.context.seed,
        "rows": _digest(rows), "asked": _digest(asked), "data": job.context.packed.manifest.fingerprint,
    }  # fmt: skip
    place = job.context.run / FOLDER / f"{job.label.replace(' ', '-')}-going.safetensors"
    first, history, logits = _resume(place, told, network, optimiser)
    job.context.emit(Progress(job.label, first, config.epochs, "epochs"))
    for epoch in range(first, config.epochs):
        network.train()
        generator = generator_of(job.context.seed, epoch)
        order = torch.randperm(len(known), generator=generator)
        draws = draw(len(known), trained.input, generator)
        for step in range(steps):
            at = order[step * batch : (step + 1) * batch]
            now = schedule.learning_rate_at(
                epoch * steps + step, steps, rate, o.warmup_epochs, o.milestones, o.gamma
            )
            for group in optimiser.param_groups:
                group["lr"] = now * group["factor"]
            torch.manual_seed(key_of(job.context.seed, epoch, step))
            clips = known.train(at.to(where), draws.take(at)) if config.augment else known.test(at.to(where))
            loss = F.cross_entropy(_logits(network, clips, training.precision), y[at.to(where)])
            if not torch.isfinite(loss):
                raise C2VLError(
                    f"{job.label}: the loss became NaN or infinite in epoch {epoch}, step {step}, at the rate {rate:g}; "
                    "lower it (optimiser.lr), or clip gradients by optimiser.clip_norm=1"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if o.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), o.clip_norm)
            optimiser.step()
        logits = answer(network, questions, training.precision)
        history.append(metrics.score(logits, truth))
        if (epoch + 1) % training.checkpoint_every == 0 and epoch + 1 < config.epochs:
            _save(place, told, network, optimiser, history, logits)
        job.context.emit(Progress(job.label, epoch + 1, config.epochs, "epochs", {"top-1": history[-1].top1}))
    place.unlink(missing_ok=True)
    return history, logits.float().cpu().numpy()


def _logits(network: nn.Module, clips: Tensor, precision: str) -> Tensor:
    clips = clips.double() if precision == "float64" else clips
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found: Tensor = network(clips)
    return found if precision == "float64" else found.float()


@torch.inference_mode()
def answer(network: nn.Module, clips: Clips, precision: str = "float32") -> Tensor:
    """Return the logits of all clips in eval mode, central windows, not rotated. Shape: (N, C)."""
    network.eval()
    places = torch.arange(len(clips), device=clips.device).split(_TEST_BATCH)
    return torch.cat([_logits(network, clips.test(at), precision) for at in places]).clone()


def _groups(encoder: nn.Module, head: nn.Module, config: FinetuneConfig) -> Iterator[dict[str, Any]]:
    """Yield parameter groups from the head down to the input, each `layer_decay` slower than the one above it."""
    layers = []
    for child in encoder.children():
        layers += list(child) if isinstance(child, nn.ModuleList) else [child]
    own = list(encoder.parameters(recurse=False))
    chosen = [own, *(list(layer.parameters()) for layer in layers), list(head.parameters())]
    factor = 1.0
    for parameters in reversed([some for some in chosen if some]):
        yield {"params": parameters, "weight_decay": config.optimiser.weight_decay, "factor": factor}
        factor *= config.layer_decay


def _digest(rows: Labels) -> str:
    return hashlib.sha256(rows.tobytes()).hexdigest()


def _save(
    place: Path,
    told: dict[str, Any],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    history: list[Score],
    logits: Tensor,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= checkpoint.optimiser_tensors(optimiser) | {"logits": logits}
    checkpoint.save(place, tensors, {"told": told, "history": [score.model_dump() for score in history]})


def _resume(
    place: Path, told: dict[str, Any], network: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[int, list[Score], Tensor]:
    """Load a checkpoint of this very training; returns the epochs done, their scores and the last logits."""
    nothing: tuple[int, list[Score], Tensor] = (0, [], torch.empty(0))
    try:
        tensors, facts = checkpoint.load(place)
    except CheckpointError:  # none, or damaged: from the beginning
        return nothing
    if facts.get("told") != told:
        return nothing
    checkpoint.restore(network, tensors, "model.", place)
    checkpoint.restore_optimiser(optimiser, tensors)
    history = [Score.model_validate(found) for found in facts["history"]]
    return len(history), history, tensors["logits"]
