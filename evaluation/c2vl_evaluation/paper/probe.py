"""A first estimate of a training's time where nothing of its kind has run: a few steps on a few clips; nothing is kept."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from c2vl_manifests.errors import C2VLError
from c2vl_training import distributed, trainer
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips
from c2vl_training.run_folder import Run
from c2vl_training.seeding import generator_of

MOST = 1.0
"""Seconds that the timed step may take, about."""


def pace(run: Run) -> float | None:
    """Return seconds a sample of a step of a training: forward, backward and update; None where it cannot take one.

    Two clips are tried first, then as many as take `MOST` seconds by that, at most the recipe's batch.

    Args:
        run: a training with something to learn; nothing of it is written.
    """
    try:
        step, most = _step(run)
        first = _timed(step, 2)  # allocates, and wakes the device
        if 2 * first > 3 * MOST:
            return first
        few = _timed(step, 2)
        count = min(most, int(MOST / max(few, 1e-9)))
        return _timed(step, count) if count > 2 else few
    except (C2VLError, RuntimeError, OSError):  # the training itself will say it
        return None


def _timed(step: Callable[[int], None], count: int) -> float:
    started = time.perf_counter()
    step(count)
    return (time.perf_counter() - started) / count


def _step(run: Run) -> tuple[Callable[[int], None], int]:
    """Return what takes a step of so many clips and waits for its end, and how many clips a batch has at most."""
    config = run.recipe.training
    device = distributed.device_of(config.device)
    selection = run.select()
    _, learner = trainer.method_of(run, selection, device)
    if learner is None:
        raise RuntimeError("nothing learns")
    total, o = len(selection.rows), learner.optimiser
    trainer.check_batch(run, learner, total)
    most = min(total, learner.batch_size)
    places = torch.linspace(
        0, total - 1, most
    ).long()  # evenly: clips of two people count as often as they occur
    clips = Clips(run.packed, selection.rows[places.numpy()], config.input, device)
    optimiser = torch.optim.SGD(
        learner.groups, lr=0.0, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0
    )
    draws = draw(most, config.input, generator_of(run.seed, 0))
    learner.begin_epoch(0, generator_of(run.seed, 0), False)
    learner.model.train()

    def step(count: int) -> None:
        own = torch.arange(count)
        batch = clips.train(own.to(device), draws.take(own))
        if config.precision == "float64":
            batch = batch.double()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            told = learner.loss(batch, places[:count].to(device), 0)
        optimiser.zero_grad(set_to_none=True)
        told.loss.backward()
        optimiser.step()
        learner.after_step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step, most
