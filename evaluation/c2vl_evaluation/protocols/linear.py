"""Linear protocol: one fully connected layer on frozen, cached features.

*Reading:* the paper states no recipe for it. SGD with momentum 0.9, no weight decay, batch 1024, 100 epochs,
x0.1 at 80. The learning rate with the lowest cross-entropy on a held-out tenth of the *training* split is
chosen, then the layer is trained on the whole split. Features are first standardised by the training split
(unless `evaluation.linear.standardise` is false), so that the same rates suit encoders of different scale. All rates of the sweep are trained at once, with
their weights in one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import FOLDER, CacheKey, Cell, Predictions, ResultWithPredictions, predictions_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Features
from c2vl_evaluation.results import Protocol, Result, Score
from c2vl_manifests.errors import CheckpointError
from c2vl_manifests.recipe import LinearConfig
from c2vl_training import checkpoint

_BLOCK = 32
"""Columns are padded to a multiple of this, so that sums round alike for any number of heads."""


@dataclass(frozen=True)
class Heads:
    """Fully connected layers, one per learning rate: weights (L, D, C) and biases (L, C)."""

    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Shape: (N, D) -> (L, N, C)."""
        return x @ self.weight + self.bias[:, None]


@dataclass(frozen=True)
class Standard:
    """Centre and scale of features by the training split, (D,) float64; inf scales constant features."""

    centre: np.ndarray
    scale: np.ndarray

    def __call__(self, values: Array) -> Array:
        """Shape: (N, D) -> the same."""
        return np.asarray((values - self.centre) / self.scale, np.float32)


def standard(train: Array, standardise: bool = True) -> Standard:
    """Return the standardisation of features by a training split, if the recipe wants one; constant ones become zero."""
    if not standardise:
        return Standard(np.zeros(train.shape[1]), np.ones(train.shape[1]))
    # in float64: rounding of a float32 mean would look like variance
    centre, scale = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    return Standard(centre, np.where(scale > 1e-8 * np.maximum(1, np.abs(centre)), scale, np.inf))


def fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    lrs: Sequence[float],
    config: LinearConfig,
    seed: int,
    watch: Callable[[Heads], None] | None = None,
) -> Heads:
    """Train one head per learning rate, all at once; every head equals the head of its own run.

    Each head is padded to whole blocks of columns, so that the product of all heads rounds as the product of
    one: at too high rates, training would amplify any difference.

    Args:
        x: features (N, D).
        y: classes (N,).
        classes: C.
        lrs: L learning rates.
        config: epochs, batch and milestones.
        seed: of the order of samples.
        watch: called with the heads after each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    heads, (count, dim) = len(lrs), x.shape
    wide = -(-classes // _BLOCK) * _BLOCK
    rates = torch.tensor(lrs, dtype=x.dtype).repeat_interleave(wide)
    # weights of all heads in one matrix (D, L W); padded columns have probability zero
    weight, bias = x.new_zeros(dim, heads * wide), x.new_zeros(heads, wide)
    bias[:, classes:] = -torch.inf
    bias = bias.view(-1)
    moments = [torch.zeros_like(weight), torch.zeros_like(bias)]
    truth = y[:, None] + wide * torch.arange(heads)
    less = x.new_full((count, heads), -1.0)
    batch = min(config.batch_size, count)
    trained = Heads(weight.view(dim, heads, wide)[..., :classes].transpose(0, 1), bias.view(heads, wide)[:, :classes])
    for epoch in range(config.epochs):
        pace = rates * 0.1 ** sum(milestone <= epoch for milestone in config.milestones)
        for at in torch.randperm(count, generator=generator).split(batch):
            rows = x.index_select(0, at)
            # gradient of softmax cross-entropy: (p - y) / B
            error = torch.softmax(torch.addmm(bias, rows, weight).view(-1, heads, wide), dim=2).flatten(1)
            error.scatter_add_(1, truth[at], less[: len(at)]).div_(len(at))
            moments[0].mul_(0.9).addmm_(rows.T, error)
            moments[1].mul_(0.9).add_(error.sum(dim=0))
            weight.sub_(pace * moments[0])
            bias.sub_(pace * moments[1])
        if watch is not None:
            watch(trained)
    return trained


@dataclass(frozen=True)
class Trained:
    """A layer or a network that was trained with labels, and its answers to the test split."""

    history: list[Score]
    """On the test split, of every epoch or of the last one alone."""
    logits: Array
    """Of the test split after the last epoch, (N, C)."""
    lr: float
    held_out: float | None
    """Accuracy at the chosen rate on the held-out tenth of the training split; None of a single rate."""
    train: int
    """Number of training samples."""
    epochs: int

    def result(self, protocol: Protocol = "linear") -> Result:
        """Return the training as the result of a protocol; its best epoch is an oracle, and known if all were scored."""
        best, number = None, None
        if len(self.history) == self.epochs:
            best = max(self.history, key=lambda score: score.top1)
            number = self.history.index(best) + 1
        return Result(
            protocol=protocol, last=self.history[-1], best=best, best_epoch=number, epochs=self.epochs, lr=self.lr,
            held_out=self.held_out, train=self.train, test=len(self.logits),
        )  # fmt: skip


@dataclass(frozen=True)
class Probe(Trained):
    """A linear probe."""

    head: Heads
    """The one head, for standardised features."""
    by: Standard


def held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the places of held-out training samples and of the rest; neither is empty."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held = min(max(1, int(share * count)), count - 1)
    return order[:held], order[held:]


def probe(
    train: Features, test: Features, classes: int, config: LinearConfig, seed: int = 0, by: Standard | None = None
) -> Probe:
    """Choose the learning rate on held-out training samples, train on all of them, and answer the test split.

    A single rate is used without a sweep. Features are standardised by the training samples unless `by`
    is given.
    """
    by = standard(train.values, config.standardise) if by is None else by
    x, x_test = (torch.from_numpy(by(features.values)) for features in (train, test))
    y, y_test = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    chosen, reached = 0, None
    if len(config.lrs) > 1:
        out, rest = held_out(len(x), config.holdout, seed)
        logits = fit(x[rest], y[rest], classes, config.lrs, config, seed).logits(x[out])
        # by cross-entropy: a tenth of a small split has too few samples to rank accuracies
        losses = torch.stack([F.cross_entropy(head, y[out]) for head in logits])
        chosen = int(losses.nan_to_num(nan=torch.inf).argmin())
        reached = float((logits[chosen].argmax(dim=1) == y[out]).float().mean())
    history: list[Score] = []
    head = fit(
        x, y, classes, config.lrs[chosen : chosen + 1], config, seed,
        lambda heads: history.append(metrics.score(heads.logits(x_test)[0], y_test)),
    )  # fmt: skip
    return Probe(history, head.logits(x_test)[0].numpy(), config.lrs[chosen], reached, len(x), config.epochs, head, by)


# ------------------------------------------------------------------------------------------------ on a run


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the one cell of the protocol; its head is stored next to the result."""
    yield Cell("linear", lambda: _train_head(context)[0], _key(context))


def _key(context: EvalContext) -> CacheKey:
    return context.key("linear", context.recipe.evaluation.linear)


def _train_head(context: EvalContext) -> tuple[ResultWithPredictions, Probe]:
    """Train the head of a run and store it."""
    config, key = context.recipe.evaluation.linear, _key(context)
    train, test, classes = context.features()
    found = probe(train, test, classes, config, context.seed)
    tensors = {
        "weight": found.head.weight[0], "bias": found.head.bias[0],
        "centre": torch.from_numpy(found.by.centre), "scale": torch.from_numpy(found.by.scale),
    }  # fmt: skip
    checkpoint.save(_head_file(key), tensors, {"key": key.text})
    return ResultWithPredictions(found.result(), context.predictions(test.rows, found.logits)), found


def _head_file(key: CacheKey) -> Path:
    return key.run / FOLDER / f"{key.name}.safetensors"


def head_of(context: EvalContext) -> tuple[Heads, Standard]:
    """Return the head of a run and how its features are standardised; trained first if it is not stored."""
    key = _key(context)
    try:
        tensors, facts = checkpoint.load(_head_file(key))
    except CheckpointError:  # none, or damaged
        facts = {}
    if facts.get("key") != key.text:
        found = _train_head(context)[1]
        return found.head, found.by
    by = Standard(tensors["centre"].numpy(), tensors["scale"].numpy())
    return Heads(tensors["weight"][None], tensors["bias"][None]), by


def stored_predictions(context: EvalContext) -> Predictions:
    """Return the stored answers of a run's head to the test split.

    Raises:
        DataError: they are gone, damaged, or of other weights.
    """
    return predictions_of(context.run, _key(context).text)
