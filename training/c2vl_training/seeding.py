"""Seeds derived from a run's seed, an epoch and a step, so that no state of a random generator needs to be saved."""

from __future__ import annotations

import torch


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of everything that is drawn once an epoch."""
    return torch.Generator().manual_seed(key_of(seed, epoch))


def key_of(*numbers: int) -> int:
    """Mix a seed, an epoch and a step to a seed of its own."""
    key = 0
    for number in numbers:
        key = (key * 1_000_003 + number) % (1 << 63)
    return key
