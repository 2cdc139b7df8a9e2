"""Random crops in time, rotations and shears, drawn for a whole epoch, resizing in time, and the streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_manifests.recipe_training import InputConfig


@dataclass(frozen=True)
class AugmentationDraws:
    """Random numbers of one epoch, one row per sample."""

    window: Tensor  # share of the frames, before clipping
    start: Tensor  # start of the window, in [0, 1)
    angles: Tensor  # (N, 3) radians
    shares: Tensor | None = None  # (N, 6) of a shear; None without one

    def take(self, at: slice | Tensor) -> AugmentationDraws:
        """Return the draws of the samples at some places."""
        shares = None if self.shares is None else self.shares[at]
        return AugmentationDraws(self.window[at], self.start[at], self.angles[at], shares)


def draw(count: int, config: InputConfig, generator: torch.Generator) -> AugmentationDraws:
    """Draw the augmentation of `count` samples; a shear is drawn last, and only where there is one."""
    low, high = config.augmentation.window
    uniform = torch.rand(count, 5, generator=generator)
    shares = None
    if config.augmentation.shear > 0:
        shares = (2 * torch.rand(count, 6, generator=generator) - 1) * config.augmentation.shear
    angles = (2 * uniform[:, 2:] - 1) * config.augmentation.rotation
    return AugmentationDraws(low + (high - low) * uniform[:, 0], uniform[:, 1], angles, shares)


def rotations(angles: Tensor) -> Tensor:
    """Return R = Rz Ry Rx for angles about x, y and z. Shape: (N, 3) -> (N, 3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(1), torch.cos(angles).unbind(1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)


def shears(shares: Tensor) -> Tensor:
    """Return I with six shares in reading order beside its diagonal (CrosSCLR, Li et al. 2021). (N, 6) -> (N, 3, 3)."""
    one = torch.ones_like(shares[:, 0])
    a, b, c, d, e, f = shares.unbind(1)
    return torch.stack([one, a, b, c, one, d, e, f, one], dim=1).view(-1, 3, 3)


def between(window: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Return of which frame of a window each frame of a clip is made, and the share of the next one. (N,) -> (N, T)."""
    # half-pixel centres in whole numbers: frame t is at ((2 t + 1) window - frames) / (2 frames)
    centre = ((2 * torch.arange(frames, device=window.device) + 1) * window[:, None] - frames).clamp_(min=0)
    low = centre // (2 * frames)
    share = (centre - 2 * frames * low) / (2 * frames)
    share *= low < window[:, None] - 1  # the last frame has no next one
    return low, share


def interpolation(first: Tensor, window: Tensor, linear: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Return the planes of the arrays, and their weights, whose sum is each plane of each clip.

    A plane is one coordinate of one frame; a frame has C planes. Resizing in time mixes a frame and the next one, a map
    A (rotation and shear) mixes the planes of a frame; both are linear, so each plane of a clip is one weighted sum of
    2 C planes: sum_k A[c, k] ((1 - w) x_k[low] + w x_k[low + 1]). This needs one pass over memory instead of two.

    Shape: (N,), (N,), (N, C, C) -> (N C T, 2 C), (N C T, 2 C)
    """
    C, device = linear.shape[1], linear.device
    low, share = between(window, frames)
    planes = (C * (first[:, None] + low))[..., None] + torch.arange(2 * C, device=device)
    planes = planes.view(-1, 1, frames * 2 * C).expand(-1, C, -1).reshape(-1, 2 * C)
    here = torch.cat([linear, torch.zeros_like(linear)], dim=2)[:, :, None]
    change = torch.cat([-linear, linear], dim=2)[:, :, None]
    return planes, torch.addcmul(here, share[:, None, :, None], change).view(-1, 2 * C)


def derive_stream(clip: Tensor, gone: Tensor | None, stream: str, parents: Sequence[int]) -> Tensor:
    """Return positions, bones or motions of a clip; zero where `gone` marks missing joints.

    Args:
        clip: positions, which may be overwritten. Shape (N, C, T, M, V).
        gone: of the clip; None without missing joints. Shape (N, 1, T, M, V).
        stream: `joint`, `bone` or `motion`.
        parents: of each joint.
    """
    if stream == "bone":
        clip = clip - clip[..., parents]
        gone = None if gone is None else gone | gone[..., parents]
    elif stream == "motion":
        moved = torch.zeros_like(clip)
        torch.sub(clip[:, :, 1:], clip[:, :, :-1], out=moved[:, :, :-1])
        clip = moved
        gone = None if gone is None else F.pad(gone[:, :, 1:], (0, 0, 0, 0, 0, 1)) | gone
    return clip if gone is None else clip.masked_fill_(gone, 0)
