"""Encoder and projectors: three modalities in one space (Section III-B).

*Reading:* "various projectors" are linear maps to `projector_dim`. CLIP is frozen, so its vectors come from disk
and only their projectors are here. Vision and language have a logit scale each.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.config import PretrainConfig
from c2vl_training.encoders import Encoder
from c2vl_training.objective import LogitScale


class CrossModal(nn.Module):
    """Skeleton encoder and one projector a modality.

    Args:
        encoder: the skeleton encoder.
        knowledge: kind -> width of its vectors; kinds are `vision` and `language`.
        config: projector width and temperature.
    """

    def __init__(self, encoder: Encoder, knowledge: dict[str, int], config: PretrainConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.skeleton = nn.Linear(encoder.dim, config.projector_dim)
        self.projectors = nn.ModuleDict(
            {kind: nn.Linear(dim, config.projector_dim) for kind, dim in knowledge.items()}
        )
        self.scales = nn.ModuleDict(
            {kind: LogitScale(config.temperature.mode, config.temperature.tau) for kind in knowledge}
        )

    def skeletons(self, clips: Tensor) -> Tensor:
        """Embed clips. Shape: (B, C, T, V, M) -> (B, D), L2-normalised float32."""
        return F.normalize(self.skeleton(self.encoder(clips)).float(), dim=1)

    def knowledge(self, kind: str, vectors: Tensor) -> Tensor:
        """Embed vision or language vectors. Shape: (B, K) -> (B, D), L2-normalised float32."""
        return F.normalize(self.projectors[kind](vectors).float(), dim=1)
