"""Schedules: the balance alpha of Eq. 12-13, the hard share of targets, and the learning rate.

Pure functions of the epoch or step, counted from zero, so that a resumed run needs no schedule state.
"""

from __future__ import annotations

import math

from c2vl_manifests.recipe_training import Optimiser
from c2vl_manifests.targets import Blend, Constant, Cosine, Inter, Partition, Targets


def alpha(plan: Constant | Cosine, epoch: int, epochs: int) -> float:
    """Return the share and weight of the intra-modal targets in one epoch (Section III-D).

    *Reading:* "refreshed at each epoch" by cosine annealing from 0.9 to 0.1: half a cosine period without
    restarts, whose first epoch has exactly `start` and whose last (and any later one) has exactly `end`.

    Args:
        plan: constant or cosine, from the recipe.
        epoch: the present epoch, counted from 0.
        epochs: length of the run.
    """
    if isinstance(plan, Constant):
        return plan.value
    if epoch <= 0:
        return plan.start
    if epoch >= epochs - 1:
        return plan.end
    return plan.end + (plan.start - plan.end) * (1.0 + math.cos(math.pi * epoch / (epochs - 1))) / 2.0


def hard_share(targets: Inter | Blend | Partition, epoch: int, epochs: int) -> float:
    """Return the share of the identity in Q in one epoch.

    *Reading:* the self-distillation that the paper cites (PS-KD) raises the soft share by equal steps, alpha_t =
    alpha_T t / T with epochs t from 1 to T: hardly any in the first epoch, exactly `1 - inter_hard` in the last.

    Args:
        targets: from the recipe.
        epoch: the present epoch, counted from 0.
        epochs: length of the run.
    """
    if targets.inter_hard_schedule == "constant":
        return targets.inter_hard
    return 1.0 - (1.0 - targets.inter_hard) * min(1.0, (epoch + 1) / epochs)


def of_epoch(targets: Targets, epoch: int, epochs: int) -> tuple[Targets, float]:
    """Return targets with the numbers of one epoch, and alpha (1 where it has no meaning)."""
    share = alpha(targets.alpha, epoch, epochs) if isinstance(targets, Blend | Partition) else 1.0
    if isinstance(targets, Inter | Blend | Partition):
        targets = targets.model_copy(update={"inter_hard": hard_share(targets, epoch, epochs)})
    return targets, share


def learning_rate(step: int, steps_per_epoch: int, o: Optimiser) -> float:
    """Return the learning rate of one optimiser step: a linear warm-up step by step, then `milestones` by epoch.

    *Reading:* the paper states no warm-up; its code base warms up over 5 epochs, raising the rate once an
    epoch. Both that and this smooth rise end at the same step.

    Args:
        step: the present step, counted from 0 over the whole run.
        steps_per_epoch: at least 1.
        o: base rate, warm-up, milestones and the factor of each milestone.
    """
    passed = sum(milestone <= step // steps_per_epoch for milestone in o.milestones)
    warmup = o.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    return o.lr * rise * o.gamma**passed
