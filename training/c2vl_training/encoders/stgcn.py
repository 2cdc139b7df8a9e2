"""ST-GCN (Yan et al. 2018): graph convolution over joints, temporal convolution over frames, ten blocks.

Array order: (N, C, T, V, M) at the input, (N*M, C, T, V) inside, kept channels-last in memory.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Blocks, EmptyBodies, PerBodyEncoder, gather
from c2vl_training.encoders.batchnorm import BatchNorm
from c2vl_training.encoders.graph import GraphKind, adjacency
from c2vl_training.encoders.layers import Pointwise

FULL: Blocks = (*[(64, 1)] * 4, (128, 2), *[(128, 1)] * 2, (256, 2), *[(256, 1)] * 2)
"""The published widths: 3.08 M parameters (3.10 M with a head for 60 classes), 3.6 GMACs for a clip of two
bodies with 64 frames and 25 joints."""

SLIM: Blocks = (*[(16, 1)] * 4, (32, 2), *[(32, 1)] * 2, (64, 2), (64, 1), (256, 1))
"""A quarter of the widths but 256 at the end, as in CrosSCLR and its successors: 0.82 M parameters (0.84 M
with a head for 60 classes), 0.59 GMACs for a clip of two bodies with 50 frames."""


class GraphConvolution(nn.Module):
    """One 1x1 convolution per subset, each summed over its neighbours: Y = sum_k (W_k X + b_k) A_k.

    Both orders are the same by linearity; the one whose sum over neighbours runs over fewer channels is taken. Where
    a layer does not narrow, the sum comes first and runs over C_in instead of 3 C_out channels. The bias goes through
    the graph as well: a joint receives b_k as often as column v of A_k says, hence a map of shape (C_out, V), sum_k
    b_k (column sums of A_k), which differs between joints and which the normalisation that follows does not remove.
    """

    def __init__(self, c_in: int, c_out: int, subsets: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, subsets * c_out, kernel_size=1)
        self.subsets = subsets
        self.sum_first = c_in <= c_out

    def forward(self, x: Tensor, A: Tensor) -> Tensor:
        """Convolve over the graph.

        Args:
            x: Shape (N, C_in, T, V), best channels-last.
            A: weights `A[k, source, target]`. Shape (K, V, V).

        Returns:
            Shape (N, C_out, T, V), channels-last.
        """
        N, C, T, V = x.shape
        K = self.subsets
        if self.sum_first:
            weight = self.conv.weight.view(K, -1, C).transpose(0, 1).reshape(-1, K * C, 1, 1)
            y = F.conv2d(gather(x.permute(0, 2, 3, 1), A), weight)
            bias = A.sum(dim=1).T @ cast("Tensor", self.conv.bias).view(K, -1)
            # in the order of memory and of one type, without which the sum is several times slower
            return y.add_(bias.to(y.dtype).T[:, None, :])
        each = self.conv(x).permute(0, 2, 3, 1).reshape(N, T, V * K, -1)
        return gather(each, A.transpose(0, 1).reshape(1, V * K, V))


class Block(nn.Module):
    """Graph convolution, temporal convolution, residual.

    Args:
        c_in: channels coming in.
        c_out: channels going out.
        stride: stride in time.
        A: the graph. Shape (K, V, V).
        kernel: frames of a temporal kernel, odd.
        dropout: after the temporal convolution.
        residual: False for the first block of a network.
    """

    graph: Tensor

    def __init__(
        self, c_in: int, c_out: int, stride: int, A: Tensor, *, kernel: int, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        self.register_buffer("graph", A, persistent=False)
        self.importance = nn.Parameter(torch.ones_like(A))
        self.spatial = GraphConvolution(c_in, c_out, A.shape[0])
        self.spatial_norm = BatchNorm(c_out)
        self.temporal = nn.Conv2d(c_out, c_out, (kernel, 1), (stride, 1), (kernel // 2, 0))
        self.temporal_norm = BatchNorm(c_out)
        self.dropout = nn.Dropout(dropout, inplace=True)
        self.residual = residual
        self.shortcut: nn.Sequential | None = None
        if residual and (c_in != c_out or stride != 1):
            self.shortcut = nn.Sequential(Pointwise(c_in, c_out, stride), BatchNorm(c_out))

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """Apply the block.

        Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)
        """
        y = F.relu_(self.spatial_norm(self.spatial(x, self.graph * self.importance), copies))
        y = self.dropout(self.temporal_norm(self.temporal(y), copies))
        if self.residual and self.shortcut is None:
            y = y.add_(x)
        elif self.shortcut is not None:
            conv, norm = self.shortcut
            y = y.add_(norm(conv(x), copies))
        return F.relu_(y)


class STGCN(PerBodyEncoder):
    """Spatial temporal graph convolutional network without its classifier.

    *Reading:* the paper says "ST-GCN" and no more. Its fine-tuned accuracies are reached by full-width
    models only, so `FULL` is the default; `SLIM` is the choice of comparable self-supervised work. Data
    normalisation is over V*C with both bodies counted as samples (the original's), hence swapping the bodies
    changes nothing.

    Args:
        blocks: (channels, stride) of every block.
        graph: the graph from `c2vl_training.encoders.graph.adjacency`. Shape (K, V, V).
        channels: coordinates per joint.
        temporal_kernel: frames of a temporal kernel, odd.
        dropout: probability after every temporal convolution but the first.
        empty_bodies: see `PerBodyEncoder`.

    Attributes:
        dim: length of the feature vector.

    Raises:
        ConfigError: no blocks, an even kernel.
    """

    def __init__(
        self,
        blocks: Blocks,
        graph: NDArray[np.float32],
        *,
        channels: int = 3,
        temporal_kernel: int = 9,
        dropout: float = 0.0,
        empty_bodies: EmptyBodies = "exact_skip",
    ) -> None:
        if not blocks:
            raise ConfigError("an ST-GCN without blocks; give at least one pair [channels, stride]")
        if temporal_kernel % 2 == 0:
            raise ConfigError(f"temporal_kernel = {temporal_kernel} is even; give an odd number of frames")
        A = torch.as_tensor(graph)
        widths = [channels, *(width for width, _ in blocks)]
        super().__init__(
            widths[-1],
            A.shape[-1],
            channels,
            side_by_side=None,
            empty_bodies=empty_bodies,
            random=dropout > 0,
        )
        self.blocks = nn.ModuleList(
            Block(
                widths[i],
                width,
                stride,
                A,
                kernel=temporal_kernel,
                dropout=dropout if i else 0.0,
                residual=i > 0,
            )
            for i, (width, stride) in enumerate(blocks)
        )

    def encode(self, bodies: Tensor, copies: Tensor | None) -> Tensor:
        """Encode bodies one by one. Shape: (R, T, V, C) -> (R, D)."""
        h = bodies.permute(0, 3, 1, 2)
        for block in self.blocks:
            h = block(h, copies)
        return h.mean(dim=(2, 3))


def build(
    layout: Layout,
    *,
    channels: int,
    blocks: Blocks | None,
    graph: GraphKind,
    temporal_kernel: int | None,
    dropout: float,
    empty_bodies: EmptyBodies,
    published: Blocks = FULL,
) -> STGCN:
    """Build an ST-GCN of the published widths unless `blocks` are given."""
    return STGCN(
        published if blocks is None else blocks,
        adjacency(layout, graph),
        channels=channels,
        temporal_kernel=9 if temporal_kernel is None else temporal_kernel,
        dropout=dropout,
        empty_bodies=empty_bodies,
    )


build_slim = partial(build, published=SLIM)
