"""Batched augmentation against the per-sample way, on random clips of 40 to 300 frames, one thread."""

from __future__ import annotations

import numpy as np
import torch
from timing import compare
from torch.nn import functional as F

from c2vl_manifests.config import InputConfig
from c2vl_manifests.layouts import KINECT_V2
from c2vl_training.data import Clips, draw

BATCH = 400


class _Packed:
    """Just what `Clips` reads of a packed folder."""

    layout = KINECT_V2

    def __init__(self, rng: np.random.Generator) -> None:
        lengths = rng.integers(40, 301, 1000)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.joints = rng.standard_normal((int(self.offsets[-1]), 2, 25, 3)).astype(np.float32)


def per_sample(clip: np.ndarray, rng: np.random.Generator, frames: int = 64) -> torch.Tensor:
    """One clip, (T, M, V, C) -> (C, frames, V, M), as a Dataset's __getitem__ does it."""
    total = len(clip)
    keep = min(max(int(np.floor(rng.uniform(0.5, 1.0) * total)), 64), total)
    start = rng.integers(0, total - keep + 1)
    data = torch.from_numpy(np.ascontiguousarray(clip[start : start + keep].transpose(3, 2, 1, 0))).reshape(
        1, -1, keep
    )
    data = F.interpolate(data, size=frames, mode="linear", align_corners=False)
    data = data.view(3, 25, 2, frames).permute(0, 3, 1, 2)
    x, y, z = rng.uniform(-0.3, 0.3, 3)
    turn = (
        np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
        @ np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
        @ np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    )
    return (torch.from_numpy(turn.astype(np.float32)) @ data.reshape(3, -1)).view(data.shape)


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    packed = _Packed(rng)
    config = InputConfig()
    clips = Clips(packed, np.arange(1000), config, torch.device("cpu"))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(BATCH)

    def ours() -> torch.Tensor:
        return clips.train(rows, draw(BATCH, config, generator))

    def usual() -> torch.Tensor:
        o = packed.offsets
        return torch.stack([per_sample(packed.joints[o[r] : o[r + 1]], rng) for r in range(BATCH)])

    compare(f"augmentation of {BATCH} clips", ours, usual)


if __name__ == "__main__":
    main()
