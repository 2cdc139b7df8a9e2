"""What the loop of `trainer.py` trains: pre-training (Section III-D), or the supervised control."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import Constant, Cosine, Optimiser, PretrainConfig, SupervisedConfig
from c2vl_training import distributed, objective, schedule
from c2vl_training.dataset import Packed, Selection
from c2vl_training.encoders import Encoder
from c2vl_training.knowledge import Knowledge
from c2vl_training.model import CrossModal
from c2vl_training.run_log import Counts, Metrics, count_similarities, histogram_epoch


def generator_of(seed: int, epoch: int) -> torch.Generator:
    """Return the generator of everything that is drawn once an epoch."""
    return torch.Generator().manual_seed(key_of(seed, epoch))


def key_of(*numbers: int) -> int:
    """Mix a seed, an epoch and a step to a seed of its own."""
    key = 0
    for number in numbers:
        key = (key * 1_000_003 + number) % (1 << 63)
    return key


@dataclass
class Told:
    """A loss, and what the log is told about it."""

    loss: Tensor
    figures: Metrics = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)


@dataclass
class Learner:
    """What the loop trains: a model, what it says for a batch, and what happens around an epoch."""

    model: nn.Module
    groups: list[dict[str, Any]]
    optimiser: Optimiser
    epochs: int
    batch_size: int
    loss: Callable[[Tensor, Tensor, int], Told]
    """(this rank's clips (B / ranks, C, T, V, M), places of the whole batch in the selection (B,), epoch)"""
    begin_epoch: Callable[[int, torch.Generator, bool], None] = lambda epoch, generator, again: None
    """(epoch, its generator, whether it has begun before and is resumed in the middle)"""
    after_step: Callable[[], None] = lambda: None
    extra: nn.Module | None = None
    """A teacher: checkpointed, not optimised."""
    finished: Callable[[], dict[str, Tensor]] = dict
    """Tensors beside the encoder's that are worth keeping at the end."""


def _groups(parameters: list[nn.Parameter], o: Optimiser) -> list[dict[str, Any]]:
    return [{"params": parameters, "weight_decay": o.weight_decay, "factor": 1.0}]


def kinds_of(config: PretrainConfig) -> tuple[str, ...]:
    """Return the kinds of knowledge that a pre-training listens to."""
    return ("vision", "language") if config.knowledge == "both" else (config.knowledge,)


def pretraining(
    packed: Packed,
    config: PretrainConfig,
    seed: int,
    encoder: Encoder,
    selection: Selection,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """Set up Section III-D: projectors, knowledge from disk, soft targets, teacher.

    Raises:
        DataError: a vector is not finite.
    """
    kinds = kinds_of(config)
    knowledge = {kind: _sound(packed, selection, kind, config) for kind in kinds}
    model = CrossModal(encoder, {kind: k.dim for kind, k in knowledge.items()}, config).to(device, dtype)
    teacher = None if config.teacher == "self" else copy.deepcopy(model).eval().requires_grad_(False)
    network = distributed.distribute(model, device)
    soft = objective.Targets(**config.targets.model_dump(exclude={"alpha"}))
    count = len(selection.rows)
    pairs = pairing(count, seed) if config.pairs == "shuffled" else torch.arange(count)
    present: dict[str, Tensor] = {}

    def begin_epoch(epoch: int, generator: torch.Generator, again: bool) -> None:
        for kind, source in knowledge.items():
            present[kind] = source.epoch(generator)[pairs].to(device)
        if teacher is not None and config.teacher == "previous_epoch" and not again:
            teacher.load_state_dict(model.state_dict())

    def embed(
        module: nn.Module, clips: Tensor, rows: Tensor
    ) -> tuple[objective.Embeddings, dict[str, Tensor]]:
        embedded, scales = module(clips, {kind: present[kind][distributed.mine(rows)] for kind in kinds})
        S, *sides = distributed.gather(embedded).split(config.projector_dim, dim=1)
        of = dict(zip(kinds, sides, strict=True))
        return (S, of.get("vision"), of.get("language")), scales

    def loss(clips: Tensor, rows: Tensor, epoch: int) -> Told:
        embeddings, scales = embed(network, clips, rows)
        guide = None
        if teacher is not None:
            with torch.no_grad():
                guide, _ = embed(teacher, clips, rows)
        alpha = alpha_of(config.targets, epoch, config.epochs)
        parts = objective.loss(
            *embeddings, targets=soft, alpha=alpha, teacher=guide,
            scale_v=scales.get("vision", 1.0), scale_l=scales.get("language", 1.0),
        )  # fmt: skip
        figures = {"alpha": float(alpha)}
        figures |= {f"tau/{kind}": 1 / float(scale.detach()) for kind, scale in scales.items()}
        figures |= {name: float(v) for name, v in (parts.parts | parts.similarity).items()}
        told = Told(parts.total, figures)
        if histogram_epoch(epoch, config.epochs):
            for kind, K in zip(("vision", "language"), embeddings[1:], strict=True):
                if K is not None:
                    told.counts[f"{kind}/positive"], told.counts[f"{kind}/negative"] = count_similarities(
                        embeddings[0], K
                    )
        return told

    @torch.no_grad()
    def after_step() -> None:
        if teacher is not None and config.teacher == "ema":
            for mine, theirs in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - config.ema)
                else:
                    mine.copy_(theirs)

    def finished() -> dict[str, Tensor]:
        kept = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.")}
        for kind, source in knowledge.items():
            kept[f"centre.{kind}"] = torch.as_tensor(source.centre)
            kept[f"scale.{kind}"] = torch.as_tensor(source.scale)
        return kept

    o, t = config.optimiser, config.temperature
    own = [p for kind in kinds for p in model.scales[kind].parameters()]
    known = {id(p) for p in own}
    groups = _groups([p for p in model.parameters() if id(p) not in known], o)
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "factor": t.lr / o.lr})
    return Learner(
        model, groups, o, config.epochs, config.batch_size, loss, begin_epoch, after_step, teacher, finished
    )


def _sound(packed: Packed, selection: Selection, kind: str, config: PretrainConfig) -> Knowledge:
    knowledge = Knowledge(packed, selection.rows, kind, config)
    if (place := knowledge.broken()) is not None:
        (name,) = packed.sample_ids(selection.rows[place : place + 1])
        raise DataError(
            f"sample {name} of {packed.folder} holds NaN or infinite {kind} vectors; run `c2vl-pipeline pack` again"
        )
    return knowledge


def alpha_of(targets: Any, epoch: int, epochs: int) -> float:
    """Return alpha of an epoch; 1 for targets that have none."""
    plan = getattr(targets, "alpha", None)
    if isinstance(plan, Cosine):
        return schedule.alpha(epoch, epochs, plan.start, plan.end)
    return plan.value if isinstance(plan, Constant) else 1.0


def pairing(count: int, seed: int) -> Tensor:
    """Return a permutation without fixed points: each sample gets another one's knowledge, the same in every epoch."""
    order = torch.randperm(count, generator=generator_of(seed, -1 % (1 << 20)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def supervision(
    packed: Packed,
    config: SupervisedConfig,
    encoder: Encoder,
    selection: Selection,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Learner:
    """Set up the ceiling: the same encoder, clips and augmentation, with labels.

    Raises:
        DataError: a training sample has no label.
    """
    labels = torch.from_numpy(packed.labels()[selection.rows]).to(device)
    if (labels < 0).any():
        raise DataError(
            f"{int((labels < 0).sum())} of {len(labels)} training samples have no label; the supervised control needs all of them"
        )
    head = nn.Linear(encoder.dim, max(len(packed.manifest.classes), int(labels.max()) + 1))
    model = nn.Sequential(encoder, head).to(device, dtype)
    network = distributed.distribute(model, device)

    def loss(clips: Tensor, rows: Tensor, epoch: int) -> Told:
        logits = network(clips)
        logits = distributed.gather(logits if logits.dtype == torch.float64 else logits.float())
        value = F.cross_entropy(logits, labels[rows])
        return Told(value, {"accuracy": float((logits.argmax(1) == labels[rows]).float().mean())})

    groups = _groups(list(model.parameters()), config.optimiser)
    return Learner(model, groups, config.optimiser, config.epochs, config.batch_size, loss)
