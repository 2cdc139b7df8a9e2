"""Files of a run, written and read: safetensors only, no pickle is ever loaded.

README.md               the model card, for those that the encoder is given to
run.json                what was run: recipe, seed, data fingerprint, samples, versions, seconds
checkpoint.safetensors  weights, optimiser and teacher of the last checkpoint: a killed run resumes from it
encoder.safetensors     the trained encoder; its presence means the run is finished
projectors.safetensors  of a pre-training: projectors of skeletons, crops and captions into one space
metrics.jsonl           one line per epoch
histograms.jsonl        similarities of pairs and non-pairs, of some epochs
left_out.csv            samples that could not take part, and why
bad_batch.txt           if the loss became NaN: the samples of that batch

A weights file holds its facts as JSON and a sha256 over facts and tensors, which `load` verifies. No state of a
random generator is stored: every draw is keyed by seed, epoch and step or sample, which the facts hold, so a resumed
run draws the numbers that the interrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor, nn

from c2vl_manifests.errors import CheckpointError, passing
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import canonical, commit_bytes
from c2vl_manifests.reading import MOST_FILE, from_json, read_bytes
from c2vl_manifests.recipe_training import EncoderConfig, InputConfig
from c2vl_training import encoders

CHECKPOINT = "checkpoint.safetensors"
ENCODER = "encoder.safetensors"
PROJECTORS = "projectors.safetensors"


def _sha256(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    sink = hashlib.sha256(canonical(facts).encode())
    for name, tensor in sorted(tensors.items()):
        sink.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sink.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sink.hexdigest()


def save(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON facts atomically in one file."""
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # bytes, not save_file: a full disk is then an OSError as everywhere else
    data = serialise(plain, {"c2vl": json.dumps(facts), "sha256": _sha256(plain, facts)})
    commit_bytes(path, data)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and facts written by `save`.

    Raises:
        CheckpointError: the file is absent, damaged, or not a checkpoint of this program.
    """
    tensors, facts, expected = _read(path)
    if (actual := _sha256(tensors, facts)) != expected:
        raise CheckpointError(
            f"{path}: damaged: its content has the sha256 {actual[:12]}…, expected {expected[:12]}…; "
            "put a good copy in its place, or delete it and train again"
        )
    return tensors, facts


def _read(path: Path, *, weights: bool = True) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Return tensors, none without `weights`, the facts, and the sha256 that both should have."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give the folder of a finished run (it holds {path.name})")
    try:
        metadata, tensors = _contents(path, weights)
        return tensors, from_json(metadata["c2vl"]), metadata["sha256"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if passing(error):
            raise
        raise CheckpointError(
            f"{path}: not a checkpoint of this program "
            f"({type(error).__name__}: {str(error)[:100]}); delete it and train again"
        ) from error


def _contents(path: Path, weights: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return metadata and tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as handle:
            names = handle.keys() if weights else ()
            return handle.metadata() or {}, {name: handle.get_tensor(name) for name in names}
    except OSError:  # the file system maps no files into memory; another cause fails again here
        data = read_bytes(path, MOST_FILE)
        header = from_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header.get("__metadata__", {}), deserialise(data)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the momentum buffers, named by the position of their parameter."""
    buffers = {}
    for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[f"optimiser.{number}"] = buffer
    return buffers


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Load momentum buffers into an optimiser."""
    for number, parameter in enumerate(p for group in optimiser.param_groups for p in group["params"]):
        if (buffer := tensors.get(f"optimiser.{number}")) is not None:
            optimiser.state[parameter]["momentum_buffer"] = buffer.to(parameter.device)


def restore(module: nn.Module, tensors: dict[str, Tensor], prefix: str, source: Path) -> None:
    """Load the tensors `prefix*` into a module; every one must fit.

    Raises:
        CheckpointError: naming the first tensor that is missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    given = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    for name in sorted({*wanted, *given}):
        if name not in given:
            raise CheckpointError(f"{source}: lacks the tensor {name!r} of this model; it belongs to another model")
        if name not in wanted:
            raise CheckpointError(
                f"{source}: holds the tensor {name!r} that this model lacks; it belongs to another model"
            )
        if wanted[name].shape != given[name].shape:
            raise CheckpointError(
                f"{source}: {name} has the shape {tuple(given[name].shape)}, "
                f"expected {tuple(wanted[name].shape)}; it belongs to another model"
            )
    module.load_state_dict(given)


@dataclass(frozen=True)
class TrainedEncoder:
    """A frozen encoder, with the layout and format of its input."""

    module: encoders.Encoder
    layout: Layout
    input: InputConfig
    facts: dict[str, Any]

    @property
    def bodies(self) -> int:
        """Bodies M of its clips."""
        return int(self.facts["bodies"])


def load_finished(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the encoder file of a finished run.

    Raises:
        CheckpointError: the run is unfinished, damaged, or absent.
    """
    return load(_finished(folder))


def finished_facts(folder: Path) -> dict[str, Any]:
    """Read the facts of a finished run; its weights are neither read nor checked.

    Raises:
        CheckpointError: the run is unfinished or absent, or the head of its file is damaged.
    """
    return _read(_finished(folder), weights=False)[1]


def _finished(folder: Path) -> Path:
    if not (folder / ENCODER).is_file() and (folder / CHECKPOINT).is_file():
        raise CheckpointError(f"{folder} is an unfinished run; run the same c2vl-train command again to finish it")
    return folder / ENCODER


def load_encoder(folder: Path | str, device: torch.device | str = "cpu") -> TrainedEncoder:
    """Build the encoder of a finished run, in eval mode and without gradients.

    Args:
        folder: of the run; `encoder.safetensors` alone is read.
        device: of the weights.

    Raises:
        CheckpointError: the run is unfinished, damaged, or of another model.
    """
    folder = Path(folder)
    path = folder / ENCODER
    tensors, facts = load_finished(folder)
    try:
        layout, config = Layout.from_dict(facts["layout"]), EncoderConfig.model_validate(facts["encoder"])
        module = encoders.build_encoder(config, layout, int(facts["bodies"]))
        inputs = InputConfig.model_validate(facts["input"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: lacks the description of its encoder ({str(error)[:100]})") from error
    restore(module, tensors, "", path)
    module.eval().requires_grad_(False).to(device)
    return TrainedEncoder(module, layout, inputs, facts)
