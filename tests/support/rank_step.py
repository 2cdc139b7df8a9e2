"""One step of a pre-training or supervision, alone or under torchrun: loss, gradients and buffers go to a file.

python tests/support/rank_step.py PACKED OUT KIND [--set …]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint, distributed, trainer
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips, Packed
from c2vl_training.methods import generator_of


def step(data: Path, out: Path, kind: trainer.Kind, overrides: list[str]) -> None:
    recipe = load_recipe("debug", overrides)
    run = trainer.Run(kind, Packed(data), recipe, "xsub", 0, out)
    device = torch.device("cpu")
    selection = run.packed.select("xsub", "train")
    clips = Clips(run.packed, selection.rows, recipe.training.input, device)
    _, learner = trainer.learner_of(run, selection, device)
    assert learner is not None
    generator = generator_of(0, 0)
    places = torch.randperm(len(clips), generator=generator)[: learner.batch_size]
    draws = draw(len(clips), recipe.training.input, generator)
    learner.begin_epoch(0, generator, False)
    learner.model.train()
    mine = distributed.mine(places)
    batch = clips.train(mine, draws.take(mine)).to(next(learner.model.parameters()).dtype)
    told = learner.loss(batch, places, 0)
    told.loss.backward()
    if distributed.rank() == 0:
        found = {"loss": told.loss.detach()}
        found |= {f"gradient.{n}": p.grad for n, p in learner.model.named_parameters() if p.grad is not None}
        found |= {f"buffer.{n}": b for n, b in learner.model.named_buffers()}
        checkpoint.save(out, found, {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined():
        step(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])  # type: ignore[arg-type]
