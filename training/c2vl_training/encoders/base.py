"""What encoders share: bodies one by one, empty bodies computed once, normalisation that counts them in full.

Clips of one person have a second body of zeros. After the data normalisation all of these are equal, and as long as
nothing random is applied they stay equal through every layer. One row can therefore stand for all of them, if every
batch normalisation counts it as often as it occurs (`BatchNorm`), forwards and backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from c2vl_manifests.errors import ConfigError

EmptyBodies = Literal["compute", "exact_skip", "leave_out"]
"""What becomes of bodies that are zero throughout a clip: see `OneByOne`."""

Blocks = Sequence[tuple[int, int]]
"""(channels, temporal stride) of every block."""


class Encoder(nn.Module):
    """Takes clips (N, C, T, V, M), returns (N, D) and tells D as `dim`."""

    dim: int


def merge(empty: Tensor, alike: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Let one empty body stand for all that are equal to it.

    Args:
        empty: which bodies are zero throughout. Shape (N, M).
        alike: whether a first body of zeros equals a second one after the data normalisation.

    Returns:
        The bodies to encode, (R,), as numbers n M + m, those that stand for several at the end; how many each of the
        last K stands for, (K,), float; the place of every body among the R, (N M,).
    """
    flat = empty.flatten()
    kind = torch.zeros_like(flat, dtype=torch.long)
    if not alike:
        kind = torch.arange(len(flat), device=flat.device) % empty.shape[1]
    rows = [(~flat).nonzero()[:, 0]]
    place = torch.empty_like(kind)
    place[rows[0]] = torch.arange(len(rows[0]), device=flat.device)
    copies: list[int] = []
    for k in range(1 if alike else empty.shape[1]):
        same = (flat & (kind == k)).nonzero()[:, 0]
        if len(same):
            place[same] = len(rows[0]) + len(copies)
            rows.append(same[:1])
            copies.append(len(same))
    return torch.cat(rows), torch.tensor(copies, dtype=torch.float32, device=flat.device), place


class OneByOne(Encoder, ABC):
    """An encoder that normalises the data, encodes every body for itself and averages over the bodies of a clip.

    Args:
        dim: length of the feature vector.
        joints: joints a body.
        channels: coordinates a joint.
        side_by_side: None if the data normalisation counts bodies as samples (ST-GCN); the number of bodies if each
            place, first and second, has statistics of its own.
        empty_bodies: bodies that are zero throughout a clip are either encoded like anybody (`compute`, the
            originals' way); or one of them is computed for all (`exact_skip`: the same outputs, parameters' gradients
            and statistics, but all of the gradient with respect to their coordinates goes to that one); or left out
            from normalisation, computation and the mean over bodies (`leave_out`: another network, as good as a clip
            of one body; where places have statistics of their own, the data normalisation sees them all the same).
            A clip of nobody keeps its first body.
        random: whether something random, as dropout, is applied in training: no two empty bodies are then equal, and
            `exact_skip` computes all of them.
    """

    def __init__(
        self,
        dim: int,
        joints: int,
        channels: int,
        *,
        side_by_side: int | None,
        empty_bodies: EmptyBodies,
        random: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.empty_bodies: EmptyBodies = empty_bodies
        self.side_by_side = side_by_side
        self.random = random
        self.data_norm = nn.BatchNorm1d(joints * channels * (side_by_side or 1))

    @abstractmethod
    def encode(self, bodies: Tensor, copies: Tensor | None) -> Tensor:
        """Encode bodies one by one, the last of which may stand for several. Shape: (R, T, V, C) -> (R, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode clips.

        Shape: (N, C, T, V, M) -> (N, D)
        """
        N, M = x.shape[0], x.shape[4]
        if self.empty_bodies == "leave_out":
            there = x.any(dim=3).any(dim=2).any(dim=1)
            there[:, 0] = True
            features = self.encode(self._normalised(x, there), None)
            summed = features.new_zeros(N, self.dim).index_add(0, there.nonzero()[:, 0], features)
            return summed / there.sum(dim=1, keepdim=True)
        bodies = self._normalised(x, None)
        if self.empty_bodies == "exact_skip" and not (self.random and self.training):
            empty = ~x.any(dim=3).any(dim=2).any(dim=1)
            rows, copies, place = merge(empty, alike=self.side_by_side is None)
            if len(rows) < N * M:
                features = self.encode(bodies[rows], copies.to(bodies.dtype))
                return features.index_select(0, place).view(N, M, self.dim).mean(dim=1)
        return self.encode(bodies, None).view(N, M, self.dim).mean(dim=1)

    def _normalised(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Normalise the data and set bodies one below the other. Shape: (N, C, T, V, M) -> (R, T, V, C)."""
        N, C, T, V, M = x.shape
        if self.side_by_side is None:
            bodies = x.permute(0, 4, 2, 3, 1)
            bodies = bodies.reshape(N * M, T, V, C) if kept is None else bodies[kept]
            normal: Tensor = self.data_norm(bodies.reshape(-1, V * C))
            return normal.view(-1, T, V, C)
        if self.side_by_side != M:
            raise ConfigError(
                f"clips of {M} bodies for an encoder built for {self.side_by_side}; build it anew"
            )
        normal = self.data_norm(x.permute(0, 2, 4, 3, 1).reshape(N * T, M * V * C))
        bodies = normal.view(N, T, M, V, C).transpose(1, 2)
        return bodies.reshape(N * M, T, V, C) if kept is None else bodies[kept]


def gather(x: Tensor, A: Tensor) -> Tensor:
    """Sum over neighbours in every subset of a graph: `y[w, k] = sum_v A[k, v, w] x[v]`.

    In channels-last order that is one batched product whose result already is the input of a 1x1 convolution, so
    nothing is copied between the two.

    Args:
        x: Shape (N, T, V, C).
        A: weights `A[k, source, target]`. Shape (K, V, W).

    Returns:
        Channels k C + c. Shape (N, K C, T, W), channels-last in memory.
    """
    N, T, V, C = x.shape
    K, _, W = A.shape
    weights = A.permute(2, 0, 1).reshape(W * K, V)
    heard = torch.bmm(weights.expand(N * T, W * K, V), x.reshape(N * T, V, C))
    return heard.view(N, T, W, K * C).permute(0, 3, 1, 2)
