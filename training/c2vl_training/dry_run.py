"""What a run would do and need, without doing it: `c2vl-train pretrain … --dry-run`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from c2vl_training import distributed, trainer
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips
from c2vl_training.methods import Learner, generator_of


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, of one process."""

    samples: int
    left_out: int
    steps_per_epoch: int
    epochs: int
    parameters: dict[str, int]
    """Of the encoder, and of what is trained beside it (projectors and temperatures, or the classifier)."""
    memory: dict[str, int]
    """`weights` (with the teacher), `gradients`, `momentum`, `activations` (kept for the backward pass of one batch),
    `data` (frames and vectors on the device; a CPU reads frames from the mapped file)."""
    device: str

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def plan(run: trainer.Run) -> Plan:
    """Build what a run would train and take the measure of it; writes nothing.

    Activations are counted, not guessed: two forward passes of few clips tell what a clip and what a batch costs. The
    loss itself, temporary memory of the kernels and the allocator come on top: expect a fifth more.

    Raises:
        ConfigError, DataError: what the run itself would stop at before its first step.
    """
    config = run.recipe.training
    device = trainer.device_of(config.device)
    cpu = torch.device("cpu")
    selection = run.packed.select(run.benchmark, "train", trainer.kinds_of(run))
    encoder, learner = trainer.learner_of(run, selection, cpu)
    own = _count(encoder)
    samples, left_out = len(selection.rows), len(selection.left_out)
    if learner is None:
        return Plan(samples, left_out, 0, 0, {"encoder": own}, {"weights": _bytes(encoder)}, str(device))
    trainer.check_batch(run, learner, samples)
    clips = Clips(run.packed, selection.rows, config.input, cpu)
    frames = run.packed.offsets[selection.rows + 1] - run.packed.offsets[selection.rows]
    frame_bytes = 4 * int(run.packed.joints[0].size) if len(run.packed.joints) else 0
    vectors = sum(4 * samples * p.in_features for p in _linear(learner.model, "projectors"))
    trained = sum(p.numel() * p.element_size() for p in learner.model.parameters())
    weights = _bytes(learner.model) + (_bytes(learner.extra) if learner.extra else 0)
    memory = {
        "weights": weights,
        "gradients": trained,
        "momentum": trained if learner.optimiser.momentum else 0,
        "activations": _activations(run, learner, clips),
        "data": vectors + (0 if device.type == "cpu" else frame_bytes * int(frames.sum())),
    }
    parameters = {"encoder": own, "beside it": _count(learner.model) - own}
    steps = samples // learner.batch_size
    return Plan(samples, left_out, steps, learner.epochs, parameters, memory, str(device))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _bytes(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _linear(module: nn.Module, name: str) -> list[nn.Linear]:
    held = getattr(module, name, None)
    return [m for m in held.modules() if isinstance(m, nn.Linear)] if isinstance(held, nn.Module) else []


def _activations(run: trainer.Run, learner: Learner, clips: Clips) -> int:
    """Estimate what one rank keeps for the backward pass of its share of a batch."""
    share = distributed.share(learner.batch_size)
    few = min(4, share)
    at_few, at_twice = (_kept(run, learner, clips, min(n, share)) for n in (few, 2 * few))
    if share <= 2 * few:
        return at_twice
    each = (at_twice - at_few) / few
    return round(at_few + each * (share - few))


def _kept(run: trainer.Run, learner: Learner, clips: Clips, count: int) -> int:
    """Count the bytes of distinct tensors that a forward pass keeps, weights apart."""
    known = {t.untyped_storage().data_ptr() for t in learner.model.state_dict().values()}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # alive, so that no two tensors share an address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    # evenly over the split, so that clips of two people count as often as they occur
    places = torch.linspace(0, len(clips) - 1, count).long()
    draws = draw(len(clips), run.recipe.training.input, generator_of(run.seed, 0))
    learner.begin_epoch(0, generator_of(run.seed, 0), False)
    learner.model.train()
    batch = clips.train(places, draws.take(places))
    precision = run.recipe.training.precision
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        learner.loss(batch.double() if precision == "float64" else batch, places, 0)
    return sum(sizes.values())


def lines(run: trainer.Run, found: Plan) -> list[str]:
    """Say a plan in a few lines."""
    mib = {name: f"{name} {size / 2**20:,.1f}" for name, size in found.memory.items()}
    total = sum(found.memory.values()) / 2**20
    return [
        f"{trainer.describe(run)} on {run.benchmark} of {run.packed.manifest.title}: {found.samples:,} training samples "
        f"({found.left_out:,} left out), seed {run.seed}, out {run.out}",
        "parameters: " + ", ".join(f"{name} {count:,}" for name, count in found.parameters.items())
        + f", together {sum(found.parameters.values()):,}",
        f"memory (MiB, estimated): {', '.join(mib.values())}, together {total:,.1f} on {found.device}",
        f"steps: {found.steps_per_epoch:,} an epoch, {found.epochs:,} epochs, {found.steps:,} together",
    ]  # fmt: skip


def resolved(run: trainer.Run) -> dict[str, Any]:
    """Return the configuration of a run as it would be saved."""
    facts = run.facts()
    return {name: facts[name] for name in ("encoder", "input", "precision", "config")} | {
        "recipe": run.recipe.name,
        "checkpoint_every": run.recipe.training.checkpoint_every,
        "device": run.recipe.training.device,
    }
