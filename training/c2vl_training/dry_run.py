"""Forecast of what a run would do and need: `c2vl-train pretrain … --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2vl_manifests.errors import ConfigError
from c2vl_training import distributed, trainer
from c2vl_training.clips import Clips
from c2vl_training.methods import Method
from c2vl_training.pretraining import Pretraining
from c2vl_training.run_folder import Run


@dataclass(frozen=True)
class Estimate:
    """Steps of a run, and sizes in bytes of one process."""

    samples: int
    left_out: int
    steps_per_epoch: int
    epochs: int
    parameters: dict[str, int]
    """Of the encoder, and of what is trained with it (projectors and temperatures, or the classifier)."""
    memory: dict[str, int]
    """`weights` (with the teacher), `gradients`, `momentum`, `activations` (kept for the backward pass of one batch),
    `data` (frames and vectors on the device; a CPU reads frames from the mapped file)."""
    device: str

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def estimate(run: Run) -> Estimate:
    """Build what a run would train and measure it; writes nothing.

    Activations are counted, not guessed: two forward passes of few clips give the cost of a clip and of a batch. The
    loss itself, temporary memory of the kernels and the allocator come on top: expect a fifth more.

    Raises:
        ConfigError, DataError: what the run itself would stop at before its first step.
    """
    config = run.recipe.training
    device = distributed.device_of(config.device)
    cpu = torch.device("cpu")
    selection = run.select()
    samples, left_out = len(selection.rows), len(selection.left_out)
    if problem := run.batch_problem(samples):
        raise ConfigError(problem)
    encoder, method = trainer.method_of(run, selection, cpu)
    own = _count(encoder)
    if method is None:
        return Estimate(samples, left_out, 0, 0, {"encoder": own}, {"weights": _bytes(encoder)}, str(device))
    clips = Clips(run.packed, selection.rows, config.input, cpu)
    frames = run.packed.offsets[selection.rows + 1] - run.packed.offsets[selection.rows]
    frame_bytes = 4 * int(run.packed.joints[0].size) if len(run.packed.joints) else 0
    knowledge = method.knowledge.values() if isinstance(method, Pretraining) else ()
    vectors = sum(4 * samples * one.dim for one in knowledge)
    trained = sum(p.numel() * p.element_size() for p in method.model.parameters())
    memory = {
        "weights": _bytes(method.model) + (_bytes(method.teacher) if method.teacher else 0),
        "gradients": trained,
        "momentum": trained if method.optimiser.momentum else 0,
        "activations": _activations(run, method, clips),
        "data": vectors + (0 if device.type == "cpu" else frame_bytes * int(frames.sum())),
    }
    parameters = {"encoder": own, "beside it": _count(method.model) - own}
    steps = samples // method.batch_size
    return Estimate(samples, left_out, steps, method.epochs, parameters, memory, str(device))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _activations(run: Run, method: Method, clips: Clips) -> int:
    """Estimate what one rank keeps for the backward pass of its part of a batch."""
    part = distributed.per_rank(method.batch_size)
    few = min(4, part)
    at_few, at_twice = (_saved_bytes(run, method, clips, min(n, part)) for n in (few, 2 * few))
    if part <= 2 * few:
        return at_twice
    each = (at_twice - at_few) / few
    return round(at_few + each * (part - few))


def _saved_bytes(run: Run, method: Method, clips: Clips, count: int) -> int:
    """Count the bytes of distinct tensors that a forward pass keeps, without weights."""
    weights = {t.untyped_storage().data_ptr() for t in method.model.state_dict().values()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no two tensors share an address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    # evenly over the split, so that clips of two people count as often as they occur
    places = torch.linspace(0, len(clips) - 1, count * distributed.size()).long()
    _, draws = trainer.begin_epoch(method, clips, run.seed, 0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        trainer.forward(method, clips, draws, places, 0, run.recipe.training.precision)
    return sum(sizes.values())


def lines(run: Run, estimate: Estimate) -> list[str]:
    """Describe an estimate in a few lines."""
    mib = {name: f"{name} {size / 2**20:,.1f}" for name, size in estimate.memory.items()}
    total = sum(estimate.memory.values()) / 2**20
    return [
        f"{run.describe()} on {run.benchmark} of {run.packed.manifest.title}: {estimate.samples:,} training samples "
        f"({estimate.left_out:,} left out), seed {run.seed}, out {run.out}",
        "parameters: " + ", ".join(f"{name} {count:,}" for name, count in estimate.parameters.items())
        + f", together {sum(estimate.parameters.values()):,}",
        f"memory (MiB, estimated): {', '.join(mib.values())}, together {total:,.1f} on {estimate.device}",
        f"steps: {estimate.steps_per_epoch:,} an epoch, {estimate.epochs:,} epochs, {estimate.steps:,} together",
    ]  # fmt: skip


def resolved(run: Run) -> dict[str, Any]:
    """Return the configuration of a run as it would be saved."""
    facts = run.facts()
    return {name: facts[name] for name in ("encoder", "input", "precision", "config")} | {
        "recipe": run.recipe.name,
        "checkpoint_every": run.recipe.training.checkpoint_every,
        "device": run.recipe.training.device,
    }
