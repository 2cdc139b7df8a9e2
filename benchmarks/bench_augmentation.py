"""Batched augmentation against the per-sample way, on random clips of NTU's lengths, one thread.

Three times: against a feeder as the field publishes it (clips padded to 300 frames, frames counted by sums, resized
as an image, a rotation matrix for every frame), against the same feeder when it is told the number of frames, and
against the same sum written with care (ragged store, one matrix a clip).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import default_collate

from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.machine import keep_freed
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training.augmentation import draw
from c2vl_training.clips import Clips
from timing import PROCESSOR, Parser, compare

BATCH, CLIPS, FRAMES, LONGEST = 400, 1000, 64, 300


class Packed:
    """Just what `Clips` reads of a packed folder."""

    layout = KINECT_V2
    gaps = False

    def __init__(self, rng: np.random.Generator) -> None:
        lengths = np.clip(30 + rng.gamma(3, 15, CLIPS), 20, LONGEST).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.joints = rng.standard_normal((int(self.offsets[-1]), 3, 2, 25)).astype(np.float32)
        self.alone = rng.random(CLIPS) < 0.8
        self.joints[np.repeat(self.alone, lengths), :, 1] = 0

    def padded(self) -> np.ndarray:
        """The same clips as (N, C, T, V, M), as feeders keep them: transposed views of (N, T, M V C)."""
        whole = np.zeros((CLIPS, LONGEST, 2, 25, 3), np.float32)
        for n, (a, b) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            whole[n, : b - a] = self.joints[a:b].transpose(0, 2, 3, 1)
        return whole.transpose(0, 4, 1, 3, 2)


def _window(total: int, rng: np.random.Generator) -> slice:
    keep = min(max(int(rng.uniform(0.5, 1) * total), FRAMES), total)
    start = int(rng.integers(0, total - keep + 1))
    return slice(start, start + keep)


def feeder(clip: np.ndarray, rng: np.random.Generator, total: int | None = None) -> np.ndarray:
    """One padded clip, (C, 300, V, M) -> (C, frames, V, M), step by step as public feeders do it."""
    clip = np.array(clip)
    if total is None:
        total = int((clip.sum(axis=0).sum(axis=-1).sum(axis=-1) != 0).sum())
    part = torch.tensor(clip[:, _window(total, rng)])
    C, kept, V, M = part.shape
    image = part.permute(0, 2, 3, 1).reshape(1, 1, C * V * M, kept)
    image = F.interpolate(image, size=(C * V * M, FRAMES), mode="bilinear", align_corners=False)
    resized = image.view(C, V, M, FRAMES).permute(3, 0, 1, 2).reshape(FRAMES, C, V * M)
    turns = _matrix(rng).expand(FRAMES, 3, 3)
    return (turns @ resized).view(FRAMES, C, V, M).permute(1, 0, 2, 3).contiguous().numpy()


def _matrix(rng: np.random.Generator) -> torch.Tensor:
    """A random Rz Ry Rx."""
    angles = rng.uniform(-0.3, 0.3, 3)
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]], np.float32)
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]], np.float32)
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]], np.float32)
    return torch.from_numpy(rz @ ry @ rx)


def lean(clip: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """One ragged clip, (T, C, M, V) -> (C, frames, M, V), with no step that could be left out."""
    part = clip[_window(len(clip), rng)]
    series = torch.from_numpy(np.ascontiguousarray(part.reshape(len(part), -1).T))[None]
    resized = F.interpolate(series, size=FRAMES, mode="linear", align_corners=False)
    return (_matrix(rng) @ resized.view(3, -1)).view(3, 2, 25, FRAMES).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    pairs = Parser(__doc__, pairs=9).parse_args().pairs
    torch.set_num_threads(1)
    keep_freed()
    rng = np.random.default_rng(0)
    packed, config = Packed(rng), InputConfig(frames=FRAMES)
    clips = Clips(packed, np.arange(CLIPS), config, torch.device("cpu"))  # type: ignore[arg-type]
    padded, offsets = packed.padded(), packed.offsets
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(CLIPS, generator=generator)[:BATCH]

    def ours() -> torch.Tensor:
        return clips.train(rows, draw(BATCH, config, generator))

    def published() -> list[torch.Tensor]:
        found: list[torch.Tensor] = default_collate([(feeder(padded[r], rng), int(r)) for r in rows])
        return found

    def told() -> list[torch.Tensor]:
        lengths = np.diff(offsets)
        found: list[torch.Tensor] = default_collate([(feeder(padded[r], rng, int(lengths[r])), int(r)) for r in rows])
        return found

    def careful() -> torch.Tensor:
        return torch.stack([lean(packed.joints[offsets[r] : offsets[r + 1]], rng) for r in rows])

    ways = {"a feeder as published": published, "a feeder told the lengths": told, "a careful loop": careful}
    for way, usual in ways.items():
        compare(f"augmentation of {BATCH} clips, against {way}", ours, usual, pairs, judged_by=PROCESSOR)


if __name__ == "__main__":
    main()
