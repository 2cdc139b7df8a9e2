"""One step of a pre-training or supervision, alone or under torchrun: loss, gradients and buffers go to a file.

python tests/support/rank_step.py PACKED OUT KIND [--set …]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint, distributed, trainer
from c2vl_training.dataset import Clips, Packed
from c2vl_training.run_folder import Kind, Run


def step(data: Path, out: Path, kind: Kind, overrides: list[str]) -> None:
    recipe = load_recipe("debug", overrides)
    run = Run(kind, Packed(data), recipe, "xsub", 0, out)
    device = torch.device("cpu")
    selection = run.packed.select("xsub", "train")
    clips = Clips(run.packed, selection.rows, recipe.training.input, device)
    _, method = trainer.method_of(run, selection, device)
    assert method is not None
    order, draws = trainer.begin_epoch(method, clips, 0, 0)
    places = order[: method.batch_size]
    output = trainer.forward(method, clips, draws, places, 0, recipe.training.precision)
    output.loss.backward()
    if distributed.rank() == 0:
        tensors = {"loss": output.loss.detach()}
        tensors |= {f"gradient.{n}": p.grad for n, p in method.model.named_parameters() if p.grad is not None}
        tensors |= {f"buffer.{n}": b for n, b in method.model.named_buffers()}
        checkpoint.save(out, tensors, {})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.joined():
        step(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])  # type: ignore[arg-type]
