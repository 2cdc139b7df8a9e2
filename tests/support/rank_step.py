"""One step each of several pre-trainings and supervisions: loss, gradients and buffers go to files.

torchrun … tests/support/rank_step.py PACKED OUT-FOLDER JSON-OF-STEPS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint, distributed, trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Kind, Run


def steps(data: Path, out: Path, wanted: Mapping[str, Sequence[str]]) -> None:
    """Write OUT/NAME.safetensors for each NAME: [kind, override, …]."""
    for name, (kind, *overrides) in wanted.items():
        _step(data, out / f"{name}.safetensors", cast(Kind, kind), overrides)


def _step(data: Path, out: Path, kind: Kind, overrides: list[str]) -> None:
    recipe = load_recipe("debug", overrides)
    run = Run(kind, PackedDataset(data), recipe, "xsub", 0, out)
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
        steps(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
        torch.distributed.barrier()  # no process leaves the group while the other is still writing
    distributed.end_process()
