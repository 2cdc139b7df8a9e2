"""Random crops in time and rotations, drawn for a whole epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from c2vl_manifests.recipe import InputConfig


@dataclass(frozen=True)
class AugmentationDraws:
    """Random numbers of one epoch, one row per sample."""

    window: Tensor  # share of the frames, before clipping
    start: Tensor  # start of the window, in [0, 1)
    angles: Tensor  # (N, 3) radians

    def take(self, at: slice | Tensor) -> AugmentationDraws:
        """Return the draws of the samples at some places."""
        return AugmentationDraws(self.window[at], self.start[at], self.angles[at])


def draw(count: int, config: InputConfig, generator: torch.Generator) -> AugmentationDraws:
    """Draw the augmentation of `count` samples."""
    low, high = config.augmentation.window
    uniform = torch.rand(count, 5, generator=generator)
    return AugmentationDraws(
        low + (high - low) * uniform[:, 0], uniform[:, 1], (2 * uniform[:, 2:] - 1) * config.augmentation.rotation
    )


def rotations(angles: Tensor) -> Tensor:
    """Return R = Rz Ry Rx for angles about x, y and z. Shape: (N, 3) -> (N, 3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(1), torch.cos(angles).unbind(1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)
