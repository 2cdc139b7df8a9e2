"""One whole pre-training step, 80 % one-person clips, against the usual way of writing it, one thread.

Ours: batched augmentation, an encoder that computes empty bodies once, and ST-GCN that sums over neighbours first; in
float32 and under bf16 autocast. The usual way: a feeder a clip behind a DataLoader, the encoder of `usual_encoders.py`,
both bodies always computed, float32. Objective, projectors and optimiser are the same on both sides,
and so is the allocator (`keep_freed`). ST-GCN is measured at batch 30 in five ways, three where the processor imitates
bf16; the others at batch 15 in float32: a fifth are clips of two, and torch computes 1x1 convolutions of fewer than 16
rows another way on one thread.

    python benchmarks/bench_step.py [--pairs 5] [--encoders stgcn ctrgcn …]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/bench_step.py    # as without AVX-512
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from bench_augmentation import Packed, feeder
from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.machine import keep_freed
from c2vl_manifests.recipe_training import InputConfig, PretrainConfig
from c2vl_manifests.targets import Partition
from c2vl_training import distributed, objective
from c2vl_training.augmentation import draw
from c2vl_training.clips import Clips
from c2vl_training.encoders import build
from c2vl_training.model import CrossModal
from timing import PROCESSOR, Parser, in_turn, report_spent
from usual_encoders import USUAL

BATCH, SMALL, FRAMES, DIM = 30, 15, 64, 768

Batches = Iterator[tuple[Tensor, Tensor]]
"""Clips and their rows, without end."""


class Feeder(Dataset[tuple[Tensor, int]]):
    """One augmented clip at a time."""

    def __init__(self, packed: Packed) -> None:
        self.clips, self.lengths = packed.padded(), np.diff(packed.offsets)
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, n: int) -> tuple[Tensor, int]:
        return torch.from_numpy(feeder(self.clips[n], self.rng, int(self.lengths[n]))), n


def stepper(encoder: nn.Module, batches: Batches, half: bool) -> Callable[[], None]:
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


def ours(packed: Packed, name: str, batch: int, empty_bodies: str) -> tuple[nn.Module, Batches]:
    """Return our encoder and our batches."""
    config, generator = InputConfig(frames=FRAMES), torch.Generator().manual_seed(0)
    clips = Clips(packed, np.arange(len(packed.alone)), config, torch.device("cpu"))  # type: ignore[arg-type]
    # every batch has the same share, or the number of second bodies would decide the ratio of a small one
    pairs = batch // 5
    parts = [
        (torch.from_numpy(np.flatnonzero(of)), n) for of, n in ((packed.alone, batch - pairs), (~packed.alone, pairs))
    ]

    def batches() -> Batches:
        while True:
            rows = torch.cat([part[torch.randperm(len(part), generator=generator)[:n]] for part, n in parts])
            yield clips.train(rows, draw(batch, config, generator)), rows

    return build(name, KINECT_V2, empty_bodies=empty_bodies), batches()  # type: ignore[arg-type]


def usual(packed: Packed, name: str, batch: int) -> tuple[nn.Module, Batches]:
    """Return the plain encoder and a DataLoader, over and over."""
    loader = DataLoader(Feeder(packed), batch, shuffle=True, drop_last=True)

    def batches() -> Batches:
        while True:
            yield from loader

    return USUAL[name](), batches()


def measure(packed: Packed, name: str, pairs: int, half: bool) -> None:
    """Print the lines of an encoder."""
    batch = BATCH if name == "stgcn" else SMALL
    steps = {
        "plain, float32": stepper(*usual(packed, name, batch), half=False),
        "ours, float32": stepper(*ours(packed, name, batch, "exact_skip"), half=False),
    }
    if name == "stgcn":
        steps |= {"ours, float32, no skip": stepper(*ours(packed, name, batch, "compute"), half=False)}
    if name == "stgcn" and half:
        steps |= {
            "ours, bf16": stepper(*ours(packed, name, batch, "exact_skip"), half=True),
            "plain, bf16": stepper(*usual(packed, name, batch), half=True),
        }
    for step in steps.values():
        step()  # beside the turn that warms up: the heap grows for two steps
    spent = in_turn(steps, pairs)
    base = spent.pop("plain, float32")
    for way, mine in spent.items():
        what = f"a step of {batch} clips, {name}, {way}"
        report_spent(what, mine, base, baseline="plain, float32", judged_by=PROCESSOR)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--encoders", nargs="+", choices=list(USUAL), default=list(USUAL))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed()
    packed = Packed(np.random.default_rng(0))
    if slow := distributed.slow_precision("bfloat16", torch.device("cpu")):
        print("bf16 is left out:", slow.partition(";")[0])
    for name in options.encoders:
        measure(packed, name, options.pairs, half=not slow)


if __name__ == "__main__":
    main()
