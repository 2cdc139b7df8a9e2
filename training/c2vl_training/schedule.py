"""What changes with time during pre-training: the balance alpha of Eq. 12-13 and the learning rate.

Pure functions of the epoch or step, counted from zero, so that a resumed run needs no schedule state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from c2vl_manifests.errors import ConfigError

AlphaKind = Literal["cosine", "constant"]
"""`cosine`: from `start` to `end` over the run (the paper); `constant`: `start` throughout."""


def alpha(epoch: int, epochs: int, start: float = 0.9, end: float = 0.1, kind: AlphaKind = "cosine") -> float:
    """Return the share and weight of the intra-modal targets in one epoch (Section III-D).

    *Reading:* "refreshed at each epoch" by cosine annealing from 0.9 to 0.1: half a cosine period without
    restarts, whose first epoch has exactly `start` and whose last has exactly `end`. The paper gives no
    value for its rows without progression; a constant balance is `start` with `kind="constant"` (0.5 in our
    recipes).

    Args:
        epoch: the present epoch, counted from 0.
        epochs: how many epochs the run has.
        start: value in the first epoch.
        end: value in the last epoch, from which later epochs keep it.
        kind: `cosine` or `constant`.

    Raises:
        ConfigError: `kind` is neither.
    """
    if kind not in get_args(AlphaKind):
        raise ConfigError(f"unknown alpha schedule {kind!r}; use one of {', '.join(get_args(AlphaKind))}")
    if kind == "constant" or epoch <= 0:
        return start
    if epoch >= epochs - 1:
        return end
    return end + (start - end) * (1.0 + math.cos(math.pi * epoch / (epochs - 1))) / 2.0


def learning_rate(
    epoch: int, base: float, warmup: int = 0, milestones: Sequence[int] = (), gamma: float = 0.1
) -> float:
    """Return the learning rate of a whole epoch: linear warm-up, then steps (Section IV-B).

    Epoch 0 of a warm-up over n epochs has base / n, epoch n - 1 the full base. It is `learning_rate_at` with
    one step an epoch.

    Args:
        epoch: the present epoch, counted from 0.
        base: learning rate after the warm-up.
        warmup: epochs of warm-up; 0 for none.
        milestones: epochs from whose beginning the rate is multiplied by `gamma` once more.
        gamma: factor a milestone.
    """
    return learning_rate_at(epoch, 1, base, warmup, milestones, gamma)


def learning_rate_at(
    step: int,
    steps_per_epoch: int,
    base: float,
    warmup: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> float:
    """Return the learning rate of one optimiser step: the warm-up rises step by step, milestones are epochs.

    *Reading:* the paper states no warm-up; its code base warms up over 5 epochs, raising the rate once an
    epoch. Both that (`learning_rate`) and the smooth rise end at the same step.

    Args:
        step: the present step, counted from 0 over the whole run.
        steps_per_epoch: steps an epoch, at least 1.
        base: learning rate after the warm-up.
        warmup: epochs of warm-up; 0 for none.
        milestones: epochs from whose beginning the rate is multiplied by `gamma` once more.
        gamma: factor a milestone.
    """
    passed = sum(milestone <= step // steps_per_epoch for milestone in milestones)
    rise = min(1.0, (step + 1) / (warmup * steps_per_epoch)) if warmup > 0 else 1.0
    return base * rise * gamma**passed
