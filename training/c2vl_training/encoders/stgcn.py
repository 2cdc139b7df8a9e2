"""ST-GCN (Yan et al. 2018): graph convolution over joints, temporal convolution over frames, ten blocks.

Array order: (N, C, T, V, M) at the input, (N*M, C, T, V) inside, kept channels-last in memory.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Blocks, EmptyBodies, GraphEncoder, gather
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


class STGCN(GraphEncoder):
    """Spatial temporal graph convolutional network without its classifier.

    *Reading:* the paper says "ST-GCN" and no more. Its fine-tuned accuracies are reached by full-width
    models only, so `FULL` is the default; `SLIM` is the choice of comparable self-supervised work. Data
    normalisation is over V*C with both bodies counted as samples (the original's), hence swapping the bodies
    changes nothing.

    Args:
        layout: of the joints.
        channels: coordinates per joint.
        blocks: (channels, stride) of every block.
        graph: see `c2vl_training.encoders.graph.adjacency`.
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
        layout: Layout,
        *,
        channels: int = 3,
        blocks: Blocks = FULL,
        graph: GraphKind = "stgcn",
        temporal_kernel: int = 9,
        dropout: float = 0.0,
        empty_bodies: EmptyBodies = "exact_skip",
    ) -> None:
        if temporal_kernel % 2 == 0:
            raise ConfigError(f"temporal_kernel = {temporal_kernel} is even; give an odd number of frames")
        A = torch.as_tensor(adjacency(layout, graph))

        def make(i: int, c_in: int, c_out: int, stride: int) -> Block:
            rate = dropout if i else 0.0
            return Block(c_in, c_out, stride, A, kernel=temporal_kernel, dropout=rate, residual=i > 0)

        super().__init__(
            "an ST-GCN", blocks, make, layout.joints, channels,
            side_by_side=None, empty_bodies=empty_bodies, random=dropout > 0,
        )  # fmt: skip


STGCNSlim = partial(STGCN, blocks=SLIM)
