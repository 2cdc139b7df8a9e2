"""One whole pre-training step at batch 32, 80 % one-person clips, against the usual way of writing it, one thread.

Ours: batched augmentation, channels-last ST-GCN that sums over neighbours first and computes empty bodies once; in
float32 and under bf16 autocast. The usual way: a feeder a clip behind a DataLoader, an ST-GCN with its 1x1 convolution
before the graph, both bodies always computed, float32. Objective, projectors and optimiser are the same on both sides,
and so is the allocator (`keep_freed`). A second figure is the ratio of processor time, which other programs on the
machine disturb less.

`python benchmarks/bench_step.py [PAIRS]`
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench_augmentation import _Packed, feeder
from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.recipe_training import InputConfig, PretrainConfig
from c2vl_manifests.targets import Partition
from c2vl_training import objective
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips
from c2vl_training.encoders import build
from c2vl_training.encoders.base import Blocks
from c2vl_training.encoders.graph import adjacency
from c2vl_training.encoders.stgcn import FULL
from c2vl_training.memory import keep_freed
from c2vl_training.model import CrossModal
from timing import in_turn, report

BATCH, FRAMES, DIM = 32, 64, 768


class PlainBlock(nn.Module):
    """A block as it is usually written."""

    def __init__(self, c_in: int, c_out: int, stride: int, A: Tensor, residual: bool) -> None:
        super().__init__()
        self.register_buffer("A", A)
        self.A: Tensor
        self.importance = nn.Parameter(torch.ones_like(A))
        self.gcn = nn.Conv2d(c_in, 3 * c_out, 1)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, (9, 1), (stride, 1), (4, 0)),
            nn.BatchNorm2d(c_out),
        )
        self.residual: nn.Module | None = None
        if residual:
            change = c_in != c_out or stride != 1
            conv = nn.Sequential(nn.Conv2d(c_in, c_out, 1, (stride, 1)), nn.BatchNorm2d(c_out))
            self.residual = conv if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = self.gcn(x)
        N, C, T, V = y.shape
        y = torch.einsum("nkctv,kvw->nctw", y.view(N, 3, C // 3, T, V), self.A * self.importance)
        y = self.tcn(y.contiguous())
        return F.relu(y if self.residual is None else y + self.residual(x))


class Plain(nn.Module):
    """ST-GCN as it is usually written."""

    def __init__(self, widths_and_strides: Blocks = FULL) -> None:
        super().__init__()
        self.dim = widths_and_strides[-1][0]
        A = torch.from_numpy(adjacency(KINECT_V2, "stgcn"))
        self.data_norm = nn.BatchNorm1d(75)
        widths = [3, *(width for width, _ in widths_and_strides)]
        self.blocks = nn.ModuleList(
            PlainBlock(widths[i], width, stride, A, i > 0) for i, (width, stride) in enumerate(widths_and_strides)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, T, V, M) -> (N, D)."""
        N, C, T, V, M = x.shape
        x = self.data_norm(x.permute(0, 4, 3, 1, 2).contiguous().view(N * M, V * C, T))
        x = x.view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous().view(N * M, C, T, V)
        for block in self.blocks:
            x = block(x)
        return F.avg_pool2d(x, x.shape[2:]).view(N, M, -1).mean(dim=1)


class Feeder(Dataset[tuple[Tensor, int]]):
    """One augmented clip at a time."""

    def __init__(self, packed: _Packed) -> None:
        self.clips, self.lengths = packed.padded(), np.diff(packed.offsets)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        return torch.from_numpy(feeder(self.clips[n], self.rng, int(self.lengths[n]))), n


def stepper(encoder: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], half: bool) -> Callable[[], None]:
    """Return one step: a batch, two alignments, gradients, SGD."""
    config = PretrainConfig()
    model = CrossModal(encoder, {"vision": DIM, "language": DIM}, config)  # type: ignore[arg-type]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(1)
    V, L = (F.normalize(torch.randn(1000, DIM, generator=generator), dim=1) for _ in range(2))
    targets = Partition()
    model.train()

    def step() -> None:
        clips, rows = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            S = model.skeletons(clips, ("vision", "language"))
            sides = {
                kind: objective.Side(S, model.knowledge(kind, of[rows]), model.scales[kind]())
                for kind, of in (("vision", V), ("language", L))
            }
            loss = objective.loss(sides, targets=targets, alpha=0.5).total
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return step


def ours(packed: _Packed, empty_bodies: str) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]]]:
    """Return our encoder and our batches."""
    config, generator = InputConfig(frames=FRAMES), torch.Generator().manual_seed(0)
    clips = Clips(packed, np.arange(1000), config, torch.device("cpu"))  # type: ignore[arg-type]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            rows = torch.randperm(1000, generator=generator)[:BATCH]
            yield clips.train(rows, draw(BATCH, config, generator)), rows

    return build("stgcn", KINECT_V2, empty_bodies=empty_bodies), batches()  # type: ignore[arg-type]


def usual(packed: _Packed) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]]]:
    """Return the plain encoder and a DataLoader, over and over."""
    loader = DataLoader(Feeder(packed), BATCH, shuffle=True, drop_last=True)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    return Plain(), batches()


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed()
    packed = _Packed(np.random.default_rng(0))
    steps = {
        "plain, float32": stepper(*usual(packed), half=False),
        "ours, float32": stepper(*ours(packed, "exact_skip"), half=False),
        "ours, float32, no skip": stepper(*ours(packed, "compute"), half=False),
        "ours, bf16": stepper(*ours(packed, "exact_skip"), half=True),
        "plain, bf16": stepper(*usual(packed), half=True),
    }
    spent = in_turn(steps, pairs)
    base = spent.pop("plain, float32")
    for name, mine in spent.items():
        processor = statistics.median(b.processor / a.processor for a, b in zip(mine, base, strict=True))
        walls = ([one.wall for one in side] for side in (mine, base))
        report(f"a step, {name}", *walls, baseline="plain, float32", ratio_of_processor_time=processor)


if __name__ == "__main__":
    main()
