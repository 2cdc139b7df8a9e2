"""Tiny training runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from c2vl_manifests.events import Event, Progress
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint, methods, trainer
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Kind, Run

BASE = (
    "training.encoder.blocks=[[4,1],[6,2]]",
    "training.input.frames=8",
    "training.pretrain.projector_dim=8",
    "training.pretrain.epochs=4",
    "training.pretrain.batch_size=5",
    "training.pretrain.optimiser={lr=0.1,weight_decay=5e-4,warmup_epochs=1,milestones=[3]}",
    "training.supervised.epochs=4",
    "training.supervised.batch_size=5",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe("debug", [*BASE, *overrides])


def run(data: Path, out: Path, *overrides: str, kind: Kind = "pretrain", seed: int = 0) -> Run:
    return Run(kind, PackedDataset(data), recipe(*overrides), "xsub", seed, out)


def tensors(folder: Path, name: str = checkpoint.ENCODER) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / name)[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StoppedError(Exception):
    pass


def stop_after(epochs: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done >= epochs:
            raise StoppedError

    return emit


def method_of(pretraining: Run) -> methods.Method:
    method = trainer.method_of(pretraining, pretraining.select(), torch.device("cpu"))[1]
    assert method is not None
    return method
