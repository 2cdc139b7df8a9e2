"""Base classes of encoders: bodies encoded one by one, empty bodies computed once.

Clips of one person have a second body of zeros. After the data normalisation all of these are equal, and without
random layers they stay equal through the network. One row can therefore represent all of them, if every batch
normalisation counts it as often as it occurs (`BatchNorm`), forwards and backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from c2vl_manifests.errors import ConfigError

EmptyBodies = Literal["compute", "exact_skip", "leave_out"]
"""Treatment of bodies that are zero throughout a clip: see `PerBodyEncoder`."""

Blocks = Sequence[tuple[int, int]]
"""(channels, temporal stride) of every block."""


class Encoder(nn.Module):
    """A network from clips (N, C, T, V, M) to features (N, D), with D as `dim`."""

    dim: int


def merge_empty_bodies(empty: Tensor, alike: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one empty body to represent all that are equal to it.

    Args:
        empty: which bodies are zero throughout. Shape (N, M).
        alike: whether a first body of zeros equals a second one after the data normalisation.

    Returns:
        The bodies to encode, (R,), as numbers n M + m, representatives last; how many bodies each of the last K
        represents, (K,), float; the place of every body among the R, (N M,).
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


class PerBodyEncoder(Encoder, ABC):
    """An encoder that normalises the data, encodes every body separately and averages over the bodies of a clip.

    Args:
        dim: length of the feature vector.
        joints: joints per body.
        channels: coordinates per joint.
        side_by_side: None if the data normalisation counts bodies as samples (ST-GCN); the number of bodies if each
            place, first and second, has its own statistics.
        empty_bodies: for bodies that are zero throughout a clip. `compute`: encode them like the others, as the
            originals do. `exact_skip`: compute one for all; outputs, parameter gradients and statistics are the same,
            but the gradient with respect to their coordinates goes to that one. `leave_out`: exclude them from
            normalisation, computation and the mean over bodies, which is another network (a data normalisation with
            statistics per place still sees them). An empty clip keeps its first body.
        random: True if a random layer, e.g. dropout, is applied in training: empty bodies then differ, and
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
        """Encode bodies one by one; the last K represent `copies` bodies each. Shape: (R, T, V, C) -> (R, D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Encode clips.

        Shape: (N, C, T, V, M) -> (N, D)
        """
        N, M = x.shape[0], x.shape[4]
        if self.empty_bodies == "leave_out":
            present = x.any(dim=3).any(dim=2).any(dim=1)
            present[:, 0] = True
            features = self.encode(self.normalised(x, present), None)
            summed = features.new_zeros(N, self.dim).index_add(0, present.nonzero()[:, 0], features)
            return summed / present.sum(dim=1, keepdim=True)
        bodies = self.normalised(x, None)
        if self.empty_bodies == "exact_skip" and not (self.random and self.training):
            empty = ~x.any(dim=3).any(dim=2).any(dim=1)
            rows, copies, place = merge_empty_bodies(empty, alike=self.side_by_side is None)
            if len(rows) < N * M:
                features = self.encode(bodies[rows], copies.to(bodies.dtype))
                return features.index_select(0, place).view(N, M, self.dim).mean(dim=1)
        return self.encode(bodies, None).view(N, M, self.dim).mean(dim=1)

    def normalised(self, x: Tensor, selected: Tensor | None) -> Tensor:
        """Normalise the data and stack the (selected) bodies. Shape: (N, C, T, V, M) -> (R, T, V, C)."""
        N, C, T, V, M = x.shape
        if self.side_by_side is None:
            bodies = x.permute(0, 4, 2, 3, 1)
            bodies = bodies.reshape(N * M, T, V, C) if selected is None else bodies[selected]
            normal: Tensor = self.data_norm(bodies.reshape(-1, V * C))
            return normal.view(-1, T, V, C)
        if self.side_by_side != M:
            raise ConfigError(
                f"clips of {M} bodies for an encoder built for {self.side_by_side}; build it for that number"
            )
        normal = self.data_norm(x.permute(0, 2, 4, 3, 1).reshape(N * T, M * V * C))
        bodies = normal.view(N, T, M, V, C).transpose(1, 2)
        return bodies.reshape(N * M, T, V, C) if selected is None else bodies[selected]


class GraphEncoder(PerBodyEncoder):
    """Graph convolutions in blocks, each (N, C_in, T, V) -> (N, C_out, T', V); the feature is the mean of the last one's.

    Args:
        label: how the network is called in messages.
        blocks: (channels, stride) of every block.
        make: (number of the block, channels coming in, channels going out, stride) -> the block.
        joints: joints per body.
        channels: coordinates per joint.
        side_by_side: see `PerBodyEncoder`.
        empty_bodies: see `PerBodyEncoder`.
        random: see `PerBodyEncoder`.

    Raises:
        ConfigError: no blocks.
    """

    def __init__(
        self,
        label: str,
        blocks: Blocks,
        make: Callable[[int, int, int, int], nn.Module],
        joints: int,
        channels: int,
        *,
        side_by_side: int | None,
        empty_bodies: EmptyBodies,
        random: bool = False,
    ) -> None:
        if not blocks:
            raise ConfigError(f"{label} without blocks; give at least one pair [channels, stride]")
        widths = [channels, *(width for width, _ in blocks)]
        super().__init__(
            widths[-1], joints, channels, side_by_side=side_by_side, empty_bodies=empty_bodies, random=random
        )
        self.blocks = nn.ModuleList(make(i, widths[i], width, stride) for i, (width, stride) in enumerate(blocks))

    def encode(self, bodies: Tensor, copies: Tensor | None) -> Tensor:
        """Encode bodies one by one. Shape: (R, T, V, C) -> (R, D)."""
        h = bodies.permute(0, 3, 1, 2)
        for block in self.blocks:
            h = block(h, copies)
        return h.mean(dim=(2, 3))


def gather(x: Tensor, A: Tensor) -> Tensor:
    """Sum over neighbours in every subset of a graph: `y[w, k] = sum_v A[k, v, w] x[v]`.

    In channels-last order that is one batched product whose result already is the input of a 1x1 convolution, so
    nothing is copied in between.

    Args:
        x: Shape (N, T, V, C).
        A: weights `A[k, source, target]`. Shape (K, V, W).

    Returns:
        Channels k C + c. Shape (N, K C, T, W), channels-last in memory.
    """
    N, T, V, C = x.shape
    K, _, W = A.shape
    weights = A.permute(2, 0, 1).reshape(W * K, V)
    gathered = torch.bmm(weights.expand(N * T, W * K, V), x.reshape(N * T, V, C))
    return gathered.view(N, T, W, K * C).permute(0, 3, 1, 2)
