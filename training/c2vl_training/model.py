"""Encoder and projectors: three modalities in one space (Section III-B).

*Reading:* "various projectors" are linear maps to `projector_dim`. CLIP is frozen, so its vectors come from disk
and only their projectors are here. Vision and language have one logit scale each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.recipe_training import PretrainConfig, Temperature
from c2vl_manifests.targets import Sigmoid
from c2vl_training.encoders import Encoder


class Embedded(NamedTuple):
    """What one call of `CrossModal` returns."""

    batch: Tensor
    """Skeletons of each view, then the prompts of each kind, side by side. Shape (B, D (views heads + kinds))."""
    scales: dict[str, Tensor]
    """1 / tau of each kind."""
    biases: dict[str, Tensor]
    """Of each kind; only for the sigmoid loss."""
    others: dict[str, Tensor]
    """Prompts of all samples, by kind. Shape (N, D) each."""


class CrossModal(nn.Module):
    """Skeleton encoder and one projector per modality.

    *Reading:* one skeleton projector serves both kinds of knowledge; `per_kind` gives each its own, as in later code of
    the first author.

    Args:
        encoder: the skeleton encoder.
        knowledge: kind -> width of its vectors; kinds are `vision` and `language`.
        config: projectors, temperature, and whether logits have a bias.
    """

    def __init__(self, encoder: Encoder, knowledge: Mapping[str, int], config: PretrainConfig) -> None:
        super().__init__()
        width = config.projector_dim
        self.encoder = encoder
        self.skeleton: nn.Module = (
            nn.Linear(encoder.dim, width)
            if config.skeleton_heads == "shared"
            else nn.ModuleDict({kind: nn.Linear(encoder.dim, width) for kind in knowledge})
        )
        self.projectors = nn.ModuleDict({kind: nn.Linear(dim, width) for kind, dim in knowledge.items()})
        self.scales = nn.ModuleDict({kind: LogitScale(config.temperature) for kind in knowledge})
        targets = config.targets
        biases = {kind: torch.tensor(targets.bias) for kind in knowledge} if isinstance(targets, Sigmoid) else {}
        self.biases = nn.ParameterDict(biases)

    def head(self, kind: str) -> nn.Linear:
        """Return the skeleton projector toward a kind of knowledge."""
        return cast("nn.Linear", self.skeleton[kind] if isinstance(self.skeleton, nn.ModuleDict) else self.skeleton)

    def forward(self, clips: Tensor, vectors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Embedded:
        """Embed a batch of all modalities at once: the one call that is distributed over processes.

        Args:
            clips: views of the same samples, one after the other. Shape (views B, C, T, V, M).
            vectors: kind -> its vectors. Shape (B, K) each.
            others: kind -> vectors of all samples, for negatives beyond the batch. Shape (N, K) each.
        """
        views = len(clips) // len(next(iter(vectors.values())))
        skeletons = self.skeletons(clips, vectors).chunk(views)
        embedded = [*skeletons, *(self.knowledge(kind, of) for kind, of in vectors.items())]
        return Embedded(
            torch.cat(embedded, dim=1),
            {kind: self.scales[kind]() for kind in vectors},
            dict(self.biases.items()),
            {kind: self.knowledge(kind, of) for kind, of in others.items()},
        )

    def skeletons(self, clips: Tensor, kinds: Iterable[str]) -> Tensor:
        """Embed clips, by each head that `kinds` need, side by side.

        Shape: (B, C, T, V, M) -> (B, D heads), each D L2-normalised float32 (float64 of a float64 model)
        """
        features = self.encoder(clips)
        heads = dict.fromkeys(self.head(kind) for kind in kinds)  # each once
        return torch.cat([_unit(head(features)) for head in heads], dim=1)

    def knowledge(self, kind: str, vectors: Tensor) -> Tensor:
        """Embed vision or language vectors. Shape: (B, K) -> (B, D), L2-normalised as the skeletons are."""
        weight = cast("Tensor", self.projectors[kind].weight)
        return _unit(self.projectors[kind](vectors.to(weight.dtype)))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


class LogitScale(nn.Module):
    """1 / tau, the factor of every similarity; called without arguments.

    *Reading:* tau is 0.07 and "learnable". With the paper's learning rate a free tau runs off to 15 and more
    within 30 epochs and the loss to its trivial value, so it is held in [1/100, 1]: the parameter itself is
    put back into the interval whenever it is read, which keeps its gradient alive at the bounds. Give it a
    parameter group of its own, without weight decay and with a small learning rate.

    Args:
        temperature: initial tau and mode. `learnable`: exp of a free logarithm (CLIP's). `fixed`: the same, but a
            buffer. `raw`: the code base that the paper builds on stores ln(1 / tau) and multiplies by it *without*
            exp, which makes 0.07 an effective tau of 0.376; learnable, for parity with it, within the same bounds.
    """

    value: Tensor

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.mode = temperature.mode
        value = torch.tensor(-math.log(temperature.tau))
        if self.mode == "fixed":
            self.register_buffer("value", value)
        else:
            self.value = nn.Parameter(value)

    def forward(self) -> Tensor:
        """Return 1 / tau.

        Shape: -> ()
        """
        low, high = (1.0, 100.0) if self.mode == "raw" else (0.0, math.log(100.0))
        with torch.no_grad():
            self.value.clamp_(low, high)
        return self.value * 1.0 if self.mode == "raw" else self.value.exp()
