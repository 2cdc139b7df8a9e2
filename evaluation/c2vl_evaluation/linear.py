"""Linear protocol: one fully connected layer on frozen, cached features.

*Reading:* the paper states no recipe for it. SGD with momentum 0.9, no weight decay, batch 1024, 100 epochs, x0.1
at 80; the learning rate with the lowest cross-entropy on a held-out tenth of the *training* split is taken, then the
layer is trained on all of it. Features are standardised by the training split first, so that encoders of different scale meet the same
learning rates. All rates of the sweep are trained at once, as one product with stacked weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_evaluation.features import Array, Features, Labels
from c2vl_manifests.config import LinearConfig


@dataclass(frozen=True)
class Probe:
    """What a linear probe found."""

    accuracy: float
    """On the test split, last epoch."""
    best: float
    """On the test split, best epoch: an oracle."""
    lr: float
    held_out: float
    """Accuracy at the chosen rate on the held-out tenth of the training split."""
    predictions: Labels


def standardise(train: Array, *others: Array) -> list[Array]:
    """Centre and scale every feature by the training split; constant features become zero."""
    # in float64: the rounding of a float32 mean would pass for a spread
    centre, scale = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-8 * np.maximum(1, np.abs(centre)), scale, np.inf)
    return [np.asarray((values - centre) / scale, np.float32) for values in (train, *others)]


def _fit(
    x: Tensor, y: Tensor, classes: int, lrs: tuple[float, ...], config: LinearConfig, seed: int, test: Tensor
) -> tuple[Tensor, Tensor]:
    """Train one head a learning rate, all at once.

    Returns:
        The test predictions of each epoch, (E, L, N_test), and the last epoch's logits, (L, N_test, classes).
    """
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor(lrs)[:, None, None]
    weight, bias = torch.zeros(len(lrs), x.shape[1], classes), torch.zeros(len(lrs), 1, classes)
    moments = [torch.zeros_like(weight), torch.zeros_like(bias)]
    batch = min(config.batch_size, len(x))
    truth = F.one_hot(y, classes).float()
    history = []
    for epoch in range(config.epochs):
        factor = 0.1 ** sum(milestone <= epoch for milestone in config.milestones)
        order = torch.randperm(len(x), generator=generator)
        for at in order.split(batch):
            rows = x[at]
            # gradient of softmax cross-entropy: (p - y) / B
            error = (torch.softmax(rows @ weight + bias, dim=2) - truth[at]) / len(at)
            for moment, parameter, gradient in zip(
                moments, (weight, bias), (rows.T @ error, error.sum(dim=1, keepdim=True)), strict=True
            ):
                moment.mul_(0.9).add_(gradient)
                parameter.sub_(rates * factor * moment)
        logits = test @ weight + bias
        history.append(logits.argmax(dim=2))
    return torch.stack(history), logits


def probe(train: Features, test: Features, classes: int, config: LinearConfig, seed: int = 0) -> Probe:
    """Choose the learning rate on held-out training samples, train on all of them, and predict the test split."""
    x, x_test = (torch.from_numpy(v) for v in standardise(train.values, test.values))
    y = torch.from_numpy(train.labels)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    held = max(1, int(config.holdout * len(x)))
    out, rest = order[:held], order[held:]
    last, logits = _fit(x[rest], y[rest], classes, config.lrs, config, seed, x[out])
    # by cross-entropy: a tenth of a small split has too few samples to rank accuracies
    losses = torch.stack([F.cross_entropy(head, y[out]) for head in logits])
    chosen = int(losses.nan_to_num(nan=torch.inf).argmin())
    epochs = _fit(x, y, classes, (config.lrs[chosen],), config, seed, x_test)[0][:, 0]
    right = (epochs == torch.from_numpy(test.labels)).float().mean(dim=1)
    return Probe(
        float(right[-1]),
        float(right.max()),
        config.lrs[chosen],
        float((last[-1, chosen] == y[out]).float().mean()),
        epochs[-1].numpy().astype(np.int64),
    )
