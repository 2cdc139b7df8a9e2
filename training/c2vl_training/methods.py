"""The methods that `trainer.fit` trains: pre-training (Section III-D), the supervised control, and fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import FinetuneConfig, Optimiser, PretrainConfig, SupervisedConfig
from c2vl_manifests.targets import Blend, Partition
from c2vl_training import distributed, objective, schedule
from c2vl_training.dataset import PackedDataset, Selection
from c2vl_training.encoders import Encoder
from c2vl_training.encoders.batchnorm import convert_sync_batchnorm
from c2vl_training.knowledge import Knowledge
from c2vl_training.model import CrossModal
from c2vl_training.run_log import Counts, Metrics, count_similarities, histogram_epoch
from c2vl_training.seeding import generator_of


@dataclass
class StepOutput:
    """Loss of one batch, and figures and histogram counts for the log."""

    loss: Tensor
    figures: Metrics = field(default_factory=dict)
    counts: Counts = field(default_factory=dict)


class Method(Protocol):
    """A model, the loss of a batch, and hooks around steps and epochs (which do nothing unless defined)."""

    model: nn.Module
    """The weights that are trained and saved."""
    groups: list[dict[str, Any]]
    """Parameter groups of the optimiser; `factor` multiplies the learning rate of a group."""
    optimiser: Optimiser
    epochs: int
    batch_size: int
    augment: bool = True
    """Random windows and rotations; otherwise central windows, not rotated."""
    teacher: nn.Module | None = None
    """Saved in checkpoints, not optimised."""

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Compute the loss of one batch.

        Args:
            clips: this rank's part of the batch. Shape (B / ranks, C, T, V, M).
            places: of the whole batch in the selection. Shape (B,).
            epoch: counted from 0.
        """
        ...

    def begin_epoch(self, epoch: int, generator: torch.Generator, resumed: bool) -> None:
        """Prepare an epoch; `resumed` if it is continued after an interrupt."""
        return

    def after_step(self) -> None:
        """Update what follows the optimiser's step."""
        return


class Pretraining(Method):
    """Section III-D: projectors, knowledge from disk, soft targets, teacher.

    Raises:
        DataError: a vector is not finite.
    """

    def __init__(
        self,
        packed: PackedDataset,
        config: PretrainConfig,
        seed: int,
        encoder: Encoder,
        selection: Selection,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.config, self.device = config, device
        self.optimiser, self.epochs, self.batch_size = config.optimiser, config.epochs, config.batch_size
        self.kinds = kinds_of(config.knowledge)
        self.knowledge = {kind: _finite_knowledge(packed, selection, kind, config) for kind in self.kinds}
        widths = {kind: knowledge.dim for kind, knowledge in self.knowledge.items()}
        self.model: CrossModal = CrossModal(encoder, widths, config).to(device, dtype)
        if config.teacher != "self":
            self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.network = _distribute(self.model, device)
        count = len(selection.rows)
        self.pairs = pairing(count, seed) if config.pairs == "shuffled" else torch.arange(count)
        self.vectors: dict[str, Tensor] = {}  # of the present epoch
        self.groups = self._groups()

    def _groups(self) -> list[dict[str, Any]]:
        """Give temperatures a group of their own, without weight decay."""
        o = self.optimiser
        scales = [p for kind in self.kinds for p in self.model.scales[kind].parameters()]
        known = {id(p) for p in scales}
        groups = _one_group([p for p in self.model.parameters() if id(p) not in known], o)
        if scales:
            groups.append({"params": scales, "weight_decay": 0.0, "factor": self.config.temperature.lr / o.lr})
        return groups

    def begin_epoch(self, epoch: int, generator: torch.Generator, resumed: bool) -> None:
        """Draw the knowledge vectors of the epoch, and renew the teacher of `previous_epoch`."""
        for kind, knowledge in self.knowledge.items():
            self.vectors[kind] = knowledge.epoch(generator)[self.pairs].to(self.device)
        if self.teacher is not None and self.config.teacher == "previous_epoch" and not resumed:
            self.teacher.load_state_dict(self.model.state_dict())

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Align the whole batch, see `objective.loss`."""
        embeddings, scales = self._embed(self.network, clips, places)
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher, _ = self._embed(self.teacher, clips, places)
        targets, alpha = self.config.targets, 1.0
        if isinstance(targets, Blend | Partition):
            alpha = schedule.alpha(targets.alpha, epoch, self.epochs)
        total, entropies, similarity = objective.loss(
            *embeddings, targets=targets, alpha=alpha, teacher=teacher,
            scale_v=scales.get("vision", 1.0), scale_l=scales.get("language", 1.0),
        )  # fmt: skip
        figures = {"alpha": float(alpha)}
        figures |= {f"tau/{kind}": 1 / float(scale.detach()) for kind, scale in scales.items()}
        figures |= {name: float(value) for name, value in (entropies | similarity).items()}
        output = StepOutput(total, figures)
        if histogram_epoch(epoch, self.epochs):
            S, *knowledge = embeddings
            for kind, K in zip(("vision", "language"), knowledge, strict=True):
                if K is not None:
                    pairs, others = count_similarities(S, K)
                    output.counts |= {f"{kind}/positive": pairs, f"{kind}/negative": others}
        return output

    def _embed(
        self, module: nn.Module, clips: Tensor, places: Tensor
    ) -> tuple[objective.Embeddings, dict[str, Tensor]]:
        """Embed this rank's part and gather the batch; returns embeddings and 1 / tau of each kind."""
        local = distributed.local_rows(places)
        embedded, scales = module(clips, {kind: self.vectors[kind][local] for kind in self.kinds})
        S, *sides = distributed.gather(embedded).split(self.config.projector_dim, dim=1)
        by_kind = dict(zip(self.kinds, sides, strict=True))
        return (S, by_kind.get("vision"), by_kind.get("language")), scales

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher of `ema` towards the student."""
        if self.teacher is None or self.config.teacher != "ema":
            return
        pairs = zip(self.teacher.state_dict().values(), self.model.state_dict().values(), strict=True)
        for teacher, student in pairs:
            if teacher.is_floating_point():
                teacher.lerp_(student, 1 - self.config.ema)
            else:
                teacher.copy_(student)

    def projectors(self) -> dict[str, Tensor]:
        """Return all trained tensors except the encoder's, with the centre and scale of each kind of knowledge."""
        tensors = {k: v for k, v in self.model.state_dict().items() if not k.startswith("encoder.")}
        for kind, knowledge in self.knowledge.items():
            tensors[f"centre.{kind}"] = torch.as_tensor(knowledge.centre)
            tensors[f"scale.{kind}"] = torch.as_tensor(knowledge.scale)
        return tensors


class Supervised(Method):
    """The ceiling: the same encoder, clips and augmentation, with labels.

    Raises:
        DataError: a training sample has no label.
    """

    def __init__(
        self,
        packed: PackedDataset,
        config: SupervisedConfig,
        encoder: Encoder,
        selection: Selection,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.optimiser, self.epochs, self.batch_size = config.optimiser, config.epochs, config.batch_size
        self.labels = torch.from_numpy(packed.labels()[selection.rows]).to(device)
        if (self.labels < 0).any():
            raise DataError(
                f"{int((self.labels < 0).sum())} of {len(self.labels)} training samples have no label; "
                "the supervised control needs all of them"
            )
        head = nn.Linear(encoder.dim, max(len(packed.manifest.classes), int(self.labels.max()) + 1))
        self.model = nn.Sequential(encoder, head).to(device, dtype)
        self.network = _distribute(self.model, device)
        self.groups = _one_group(list(self.model.parameters()), config.optimiser)

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Cross-entropy with the labels, and the share of right answers."""
        return _classify(self.network, clips, self.labels[places])


class FineTuning(Method):
    """A trained encoder and a fresh linear layer, trained as a whole with labels; each layer at a rate of its own.

    Args:
        encoder: of a finished run.
        labels: of the training clips. Shape (N,), on the device of the clips.
        classes: width of the layer.
        config: schedule, batch and layer decay.
        rate: learning rate, in place of the one in `config`.
        dtype: float64 for comparisons to the last digit.
    """

    def __init__(
        self,
        encoder: Encoder,
        labels: Tensor,
        classes: int,
        config: FinetuneConfig,
        rate: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.optimiser = config.optimiser.model_copy(update={"lr": rate})
        self.epochs, self.batch_size = config.epochs, min(config.batch_size, len(labels))
        self.augment = config.augment
        self.labels = labels
        head = nn.Linear(encoder.dim, classes)
        self.model = nn.Sequential(encoder.requires_grad_(True), head).to(labels.device, dtype)
        self.groups = list(layer_groups(encoder, head, config))

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Cross-entropy with the labels, and the share of right answers."""
        return _classify(self.model, clips, self.labels[places])


def layer_groups(encoder: nn.Module, head: nn.Module, config: FinetuneConfig) -> Iterator[dict[str, Any]]:
    """Yield parameter groups from the head down to the input, each `layer_decay` slower than the one above it."""
    layers: list[nn.Module] = []
    for child in encoder.children():
        layers += list(child) if isinstance(child, nn.ModuleList) else [child]
    own = list(encoder.parameters(recurse=False))
    parameters = [own, *(list(layer.parameters()) for layer in layers), list(head.parameters())]
    factor = 1.0
    for some in reversed([some for some in parameters if some]):
        yield {"params": some, "weight_decay": config.optimiser.weight_decay, "factor": factor}
        factor *= config.layer_decay


def kinds_of(knowledge: str) -> tuple[str, ...]:
    """Return the kinds of knowledge that `both`, `vision`, `language` or the empty word name."""
    return ("vision", "language") if knowledge == "both" else (knowledge,) if knowledge else ()


def pairing(count: int, seed: int) -> Tensor:
    """Return a permutation without fixed points: each sample gets another one's knowledge, the same in every epoch."""
    order = torch.randperm(count, generator=generator_of(seed, -1 % (1 << 20)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _classify(network: nn.Module, clips: Tensor, labels: Tensor) -> StepOutput:
    logits = network(clips)
    logits = distributed.gather(logits if logits.dtype == torch.float64 else logits.float())
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return StepOutput(F.cross_entropy(logits, labels), {"accuracy": accuracy})


def _one_group(parameters: list[nn.Parameter], o: Optimiser) -> list[dict[str, Any]]:
    return [{"params": parameters, "weight_decay": o.weight_decay, "factor": 1.0}]


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.size() > 1:
        convert_sync_batchnorm(model)
    return distributed.distribute(model, device)


def _finite_knowledge(packed: PackedDataset, selection: Selection, kind: str, config: PretrainConfig) -> Knowledge:
    knowledge = Knowledge(packed, selection.rows, kind, config)
    if (place := knowledge.broken()) is not None:
        (name,) = packed.sample_ids(selection.rows[place : place + 1])
        raise DataError(
            f"sample {name} of {packed.folder} holds NaN or infinite {kind} vectors; run `c2vl-pipeline pack` again"
        )
    return knowledge
