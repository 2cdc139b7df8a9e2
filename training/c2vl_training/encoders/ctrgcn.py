"""CTR-GCN (Chen et al. 2021): graphs refined for every channel and clip, ten blocks.

Array order: (N, C, T, V) inside; graphs are `[..., source, target]`.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Blocks, EmptyBodies, GraphEncoder
from c2vl_training.encoders.batchnorm import BatchNorm
from c2vl_training.encoders.graph import directed
from c2vl_training.encoders.layers import MultiScaleTemporal, Shortcut

BLOCKS: Blocks = (
    *[(64, 1)] * 4, (128, 2), *[(128, 1)] * 2, (256, 2), *[(256, 1)] * 2,
)  # fmt: skip
"""(channels, stride) as published: 1.45 M parameters with a head for 60 classes."""

DILATIONS = (1, 2)


class RefinedGraph(nn.Module):
    """Graph convolution whose graph is a learned one plus, per channel and clip, the differences of pairs of joints.

    y_c = sum_k x_kc (A_k + alpha R_kc), x_k a 1x1 convolution and R_k a 1x1 convolution of tanh(q_w - k_v), q and k
    being 1x1 convolutions averaged over time. Both are linear, so the average is taken first: the published order
    convolves every frame and averages then, at 0.17 GMACs more per clip. The sum over neighbours comes after the
    convolution, since a graph belongs to a channel that goes out.

    Args:
        c_in: channels coming in.
        c_out: channels going out.
        A: the graph to begin with. Shape (K, V, V).
    """

    def __init__(self, c_in: int, c_out: int, A: Tensor) -> None:
        super().__init__()
        K = A.shape[0]
        self.relations = max(8, c_in // 8)
        self.graph = nn.Parameter(A.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.values = nn.Conv2d(c_in, K * c_out, 1)
        self.pairs = nn.Conv1d(c_in, 2 * K * self.relations, 1)
        self.refine = nn.Conv2d(K * self.relations, K * c_out, 1, groups=K)
        _initialise(self.values, c_out)
        _initialise(self.pairs, self.relations)
        _initialise(self.refine, c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, T, V)."""
        N, _, T, V = x.shape
        K = self.graph.shape[0]
        target, source = self.pairs(x.mean(dim=2)).chunk(2, dim=1)
        differences = torch.tanh(target[:, :, None, :] - source[:, :, :, None])
        refined = self.refine(differences).view(N, K, -1, V, V)
        graph = self.alpha * refined + self.graph[:, None]
        return torch.einsum("nkctv,nkcvw->nctw", self.values(x).view(N, K, -1, T, V), graph)


def _initialise(conv: nn.Conv1d | nn.Conv2d, fan_out: int) -> None:
    """Draw weights by He's rule for the outputs of one convolution, of which `conv` may hold several."""
    nn.init.normal_(conv.weight, 0, math.sqrt(2 / fan_out))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class Block(nn.Module):
    """Refined graph convolution with a shortcut, multi-scale temporal convolution with another.

    Args:
        c_in: channels coming in.
        c_out: channels going out.
        stride: stride in time.
        A: the graph to begin with. Shape (K, V, V).
        kernel: frames of a temporal kernel, odd.
        residual: False for the first block of a network, which keeps the inner shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, A: Tensor, *, kernel: int, residual: bool) -> None:
        super().__init__()
        self.spatial = RefinedGraph(c_in, c_out, A)
        self.spatial_norm = BatchNorm(c_out)
        self.spatial_shortcut = Shortcut(c_in, c_out, 1)
        self.temporal = MultiScaleTemporal(c_out, c_out, kernel, stride, DILATIONS)
        self.shortcut = Shortcut(c_in, c_out, stride) if residual else None
        nn.init.constant_(self.spatial_norm.weight, 1e-6)  # a block begins as its shortcuts
        t = self.temporal
        for conv, frames in ((t.squeeze, 1), (t.single, 1), *((c, kernel) for c in t.convs)):
            _initialise(cast("nn.Conv2d", conv), t.width * frames)
        for norm in (t.squeeze_norm, t.norm):
            nn.init.normal_(norm.weight, 1.0, 0.02)
        for shortcut in (self.spatial_shortcut, self.shortcut):
            if shortcut is not None and shortcut.conv is not None:
                _initialise(shortcut.conv, c_out)

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = self.spatial_norm(self.spatial(x), copies)
        y = self.temporal(F.relu_(y + self.spatial_shortcut(x, copies)), copies)
        return F.relu_(y if self.shortcut is None else y + self.shortcut(x, copies))


class CTRGCN(GraphEncoder):
    """Channel-wise topology refinement graph convolutional network without its classifier.

    Without its head it has 1.43 M parameters; a clip of two bodies with 64 frames takes 1.77 GMACs, and 1.94 in the
    published order (see `RefinedGraph`). The number of relations is an eighth of the channels and at least 8, which
    is the published number at the published widths.

    Args:
        layout: of the joints.
        channels: coordinates per joint.
        bodies: bodies per clip, each with its own data normalisation.
        blocks: (channels, stride) of every block.
        temporal_kernel: frames of a temporal kernel, odd.
        empty_bodies: see `PerBodyEncoder`.

    Raises:
        ConfigError: no blocks, an even kernel, channels that are not a multiple of 4.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        channels: int = 3,
        bodies: int = 2,
        blocks: Blocks = BLOCKS,
        temporal_kernel: int = 5,
        empty_bodies: EmptyBodies = "exact_skip",
    ) -> None:
        A = torch.as_tensor(directed(layout))

        def make(i: int, c_in: int, c_out: int, stride: int) -> Block:
            return Block(c_in, c_out, stride, A, kernel=temporal_kernel, residual=i > 0)

        super().__init__(
            "a CTR-GCN", blocks, make, layout.joints, channels, side_by_side=bodies, empty_bodies=empty_bodies
        )

    def encode(self, bodies: Tensor, copies: Tensor | None) -> Tensor:
        """See `GraphEncoder`. Channels-first in memory."""
        planes = bodies.permute(0, 3, 1, 2).contiguous()
        return super().encode(planes.permute(0, 2, 3, 1), copies)
