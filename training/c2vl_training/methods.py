"""What `trainer.fit` trains: the form of a method, the supervised control, and fine-tuning. See also `pretraining`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import FinetuneConfig
from c2vl_manifests.recipe_training import Optimiser, SupervisedConfig
from c2vl_training import distributed
from c2vl_training.dataset import PackedDataset, Selection
from c2vl_training.encoders import Encoder
from c2vl_training.encoders.batchnorm import convert_sync_batchnorm
from c2vl_training.run_log import Counts, Metrics


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
    views: int = 1
    """Random windows and rotations of each clip in a step."""
    teacher: nn.Module | None = None
    """Saved in checkpoints, not optimised."""

    def loss(self, clips: Tensor, places: Tensor, epoch: int) -> StepOutput:
        """Compute the loss of one batch.

        Args:
            clips: this rank's part of the batch, one view after the other. Shape (views B / ranks, C, T, V, M).
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
        self.network = prepare(self.model, device)
        self.groups = one_group(list(self.model.parameters()), config.optimiser)

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


def _classify(network: nn.Module, clips: Tensor, labels: Tensor) -> StepOutput:
    logits = network(clips)
    logits = distributed.gather(logits if logits.dtype == torch.float64 else logits.float())
    accuracy = float((logits.argmax(1) == labels).float().mean())
    return StepOutput(F.cross_entropy(logits, labels), {"accuracy": accuracy})


def one_group(parameters: list[nn.Parameter], o: Optimiser) -> list[dict[str, Any]]:
    """Return all parameters as one group of the optimiser."""
    return [{"params": parameters, "weight_decay": o.weight_decay, "factor": 1.0}]


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the module to call instead of a model: where several processes share a run, normalisation spans them."""
    if distributed.size() > 1:
        convert_sync_batchnorm(model)
    return distributed.distribute(model, device)
