"""Encoder and projectors: three modalities in one space (Section III-B).

*Reading:* "various projectors" are linear maps to `projector_dim`. CLIP is frozen, so its vectors come from disk
and only their projectors are here. Vision and language have a logit scale each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.recipe import PretrainConfig
from c2vl_training.encoders import Encoder
from c2vl_training.objective import LogitScale


class CrossModal(nn.Module):
    """Skeleton encoder and one projector a modality.

    Args:
        encoder: the skeleton encoder.
        knowledge: kind -> width of its vectors; kinds are `vision` and `language`.
        config: projector width and temperature.
    """

    def __init__(self, encoder: Encoder, knowledge: Mapping[str, int], config: PretrainConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.skeleton = nn.Linear(encoder.dim, config.projector_dim)
        self.projectors = nn.ModuleDict(
            {kind: nn.Linear(dim, config.projector_dim) for kind, dim in knowledge.items()}
        )
        self.scales = nn.ModuleDict(
            {kind: LogitScale(config.temperature.mode, config.temperature.tau) for kind in knowledge}
        )

    def forward(self, clips: Tensor, vectors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Embed a batch of all modalities at once, the one call that several processes have to share.

        Args:
            clips: Shape (B, C, T, V, M).
            vectors: kind -> its vectors. Shape (B, K) each.

        Returns:
            Embeddings (B, D (1 + kinds)), skeletons first, then the kinds in the order of `vectors`; and 1 / tau
            of each kind.
        """
        embedded = [self.skeletons(clips), *(self.knowledge(kind, of) for kind, of in vectors.items())]
        return torch.cat(embedded, dim=1), {kind: self.scales[kind]() for kind in vectors}

    def skeletons(self, clips: Tensor) -> Tensor:
        """Embed clips. Shape: (B, C, T, V, M) -> (B, D), L2-normalised float32 (float64 of a float64 model)."""
        return _unit(self.skeleton(self.encoder(clips)))

    def knowledge(self, kind: str, vectors: Tensor) -> Tensor:
        """Embed vision or language vectors. Shape: (B, K) -> (B, D), L2-normalised as the skeletons are."""
        weight = cast("Tensor", self.projectors[kind].weight)
        return _unit(self.projectors[kind](vectors.to(weight.dtype)))


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)
