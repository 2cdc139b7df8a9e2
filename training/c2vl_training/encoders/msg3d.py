"""MS-G3D (Liu et al. 2020): graph convolution over distances, within frames and across windows of frames.

Array order: (N, C, T, V) inside, channels-last in memory; graphs are `A[k, source, target]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.layouts import Layout
from c2vl_training.encoders.base import Blocks, EmptyBodies, GraphEncoder, gather
from c2vl_training.encoders.batchnorm import BatchNorm
from c2vl_training.encoders.graph import distances
from c2vl_training.encoders.layers import MultiScaleTemporal, Shortcut

BLOCKS: Blocks = ((96, 1), (192, 2), (384, 2))
"""(channels, stride) as published: 3.19 M parameters with a head for 60 classes."""

SCALES, WINDOW_SCALES, WINDOWS = 13, 6, (3, 5)
"""Distances distinguished within a frame and within a window, and the frames of the two windows."""

DILATIONS = (1, 2, 3, 4)


class MultiScaleGraph(nn.Module):
    """Sum over neighbours at every distance, then one 1x1 convolution, normalisation and ReLU.

    The sum comes first: with one bias for all distances that is the published order, and the cheaper one, as layers
    never narrow.

    Args:
        c_in: channels coming in.
        c_out: channels going out.
        A: one graph per distance; a small learned one is added. Shape (K, V, V).
    """

    graph: Tensor

    def __init__(self, c_in: int, c_out: int, A: Tensor) -> None:
        super().__init__()
        self.register_buffer("graph", A, persistent=False)
        self.learned = nn.Parameter(torch.empty_like(A).uniform_(-1e-6, 1e-6))
        self.conv = nn.Conv2d(len(A) * c_in, c_out, 1)
        self.norm = BatchNorm(c_out)

    def forward(self, x: Tensor, copies: Tensor | None) -> Tensor:
        """Shape: (N, T, V, C_in) -> (N, C_out, T, V)."""
        return F.relu_(self.norm(self.conv(gather(x, self.graph + self.learned)), copies))


class WindowGraph(nn.Module):
    """Multi-scale graph convolution over the joints of a window of frames at once, and one convolution that joins them.

    Joints in different frames of a window are as far apart as they would be in one frame. The first block widens in
    the graph convolution, later ones where the frames are joined.

    Args:
        c_in: channels coming in.
        c_inner: channels of the graph convolution.
        c_out: channels going out.
        A: one graph per distance over window * V joints, frame by frame.
        window: frames of a window, odd.
        stride: frames from one window to the next.
    """

    def __init__(self, c_in: int, c_inner: int, c_out: int, A: Tensor, window: int, stride: int) -> None:
        super().__init__()
        self.window, self.stride = window, stride
        self.spatial = MultiScaleGraph(c_in, c_inner, A)
        self.join = nn.Conv2d(c_inner, c_out, (window, 1), (window, 1))
        self.norm = BatchNorm(c_out)

    def forward(self, x: Tensor, copies: Tensor | None) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V), not rectified."""
        half = self.window // 2
        frames = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, half, half))
        windows = frames.unfold(1, self.window, self.stride).permute(0, 1, 4, 2, 3)
        N, T, W, V, C = windows.shape
        h = self.spatial(windows.reshape(N, T, W * V, C), copies)
        y: Tensor = self.norm(self.join(h.reshape(N, -1, T * W, V)), copies)
        return y


class Block(nn.Module):
    """Two paths that are added: within frames (graph, then time twice) and across windows; then time once more.

    Args:
        c_in: channels coming in.
        c_out: channels going out.
        stride: stride in time.
        graphs: one per distance within a frame, and the same for each window.
        kernel: frames of a temporal kernel, odd.
        first: whether it is the first block, which widens at once.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, graphs: Sequence[Tensor], *, kernel: int, first: bool
    ) -> None:
        super().__init__()
        c_inner = c_out if first else c_in
        self.spatial = MultiScaleGraph(c_in, c_inner, graphs[0])
        self.windows = nn.ModuleList(
            WindowGraph(c_in, c_inner, c_out, A, window, stride) for A, window in zip(graphs[1:], WINDOWS, strict=True)
        )
        self.temporal = nn.ModuleList(
            MultiScaleTemporal(a, c_out, kernel, s, DILATIONS) for a, s in ((c_inner, stride), (c_out, 1), (c_out, 1))
        )
        self.shortcuts = nn.ModuleList(Shortcut(a, c_out, s) for a, s in ((c_inner, stride), (c_out, 1), (c_out, 1)))

    def _in_time(self, i: int, x: Tensor, copies: Tensor | None) -> Tensor:
        y: Tensor = self.temporal[i](x, copies) + self.shortcuts[i](x, copies)
        return y

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        h = self.spatial(x.permute(0, 2, 3, 1), copies)
        y = self._in_time(1, F.relu_(self._in_time(0, h, copies)), copies)
        for path in self.windows:
            y = y + path(x, copies)
        return F.relu_(self._in_time(2, F.relu_(y), copies))


class MSG3D(GraphEncoder):
    """Disentangled and unified multi-scale graph convolutional network without its classifier.

    Without its head it has 3.17 M parameters; a clip of two bodies with 64 frames takes 6.99 GMACs.

    Args:
        layout: of the joints.
        channels: coordinates per joint.
        bodies: bodies per clip, each with its own data normalisation.
        blocks: (channels, stride) of every block.
        temporal_kernel: frames of a temporal kernel, odd.
        empty_bodies: see `PerBodyEncoder`.

    Raises:
        ConfigError: no blocks, an even kernel, channels that are not a multiple of 6.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        channels: int = 3,
        bodies: int = 2,
        blocks: Blocks = BLOCKS,
        temporal_kernel: int = 3,
        empty_bodies: EmptyBodies = "exact_skip",
    ) -> None:
        windows = [distances(layout, WINDOW_SCALES, frames) for frames in WINDOWS]
        graphs = [torch.as_tensor(graph) for graph in (distances(layout, SCALES), *windows)]

        def make(i: int, c_in: int, c_out: int, stride: int) -> Block:
            return Block(c_in, c_out, stride, graphs, kernel=temporal_kernel, first=i == 0)

        super().__init__(
            "an MS-G3D", blocks, make, layout.joints, channels, side_by_side=bodies, empty_bodies=empty_bodies
        )
