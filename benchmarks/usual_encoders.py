"""The encoders of the paper's Table VIII as they are usually written: a module a subset and a branch, channels first, every body computed.

They have the layers and widths of `c2vl_training.encoders`, and stand beside them in `bench_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.layouts import KINECT_V2
from c2vl_training.encoders import bigru, build, ctrgcn, msg3d
from c2vl_training.encoders.base import Blocks
from c2vl_training.encoders.graph import adjacency, directed, distances
from c2vl_training.encoders.stgcn import FULL, SLIM

JOINTS, BODIES = 25, 2


def pointwise(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 1x1 convolution with its normalisation."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, (stride, 1)), nn.BatchNorm2d(c_out))


def shortcut(c_in: int, c_out: int, stride: int) -> nn.Module:
    """Return the residual path of a block."""
    return pointwise(c_in, c_out, stride) if c_in != c_out or stride != 1 else nn.Identity()


class STGCNBlock(nn.Module):
    """ST-GCN: a 1x1 convolution before the graph, a temporal one after it."""

    def __init__(self, c_in: int, c_out: int, stride: int, first: bool) -> None:
        super().__init__()
        self.register_buffer("A", torch.from_numpy(adjacency(KINECT_V2, "stgcn")))
        self.A: Tensor
        self.importance = nn.Parameter(torch.ones_like(self.A))
        self.gcn = nn.Conv2d(c_in, 3 * c_out, 1)
        self.tcn = nn.Sequential(
            nn.BatchNorm2d(c_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(c_out, c_out, (9, 1), (stride, 1), (4, 0)),
            nn.BatchNorm2d(c_out),
        )
        self.residual = None if first else shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = self.gcn(x)
        N, C, T, V = y.shape
        y = torch.einsum("nkctv,kvw->nctw", y.view(N, 3, C // 3, T, V), self.A * self.importance)
        y = self.tcn(y.contiguous())
        return F.relu(y if self.residual is None else y + self.residual(x))


class Temporal(nn.Module):
    """One branch a dilation, one of maxima, one of single frames, each with layers of its own; then a residual path."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, dilations: Sequence[int], residual: bool = False
    ) -> None:
        super().__init__()
        width = c_out // (len(dilations) + 2)
        convs = [nn.Conv2d(width, width, (kernel, 1), (stride, 1), (d * (kernel // 2), 0), (d, 1)) for d in dilations]
        pool = nn.MaxPool2d((3, 1), (stride, 1), (1, 0))
        self.branches = nn.ModuleList(
            nn.Sequential(*pointwise(c_in, width), nn.ReLU(inplace=True), last, nn.BatchNorm2d(width))
            for last in (*convs, pool)
        )
        self.branches.append(pointwise(c_in, width, stride))
        self.residual = shortcut(c_in, c_out, stride) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = torch.cat([branch(x) for branch in self.branches], dim=1)
        return y if self.residual is None else y + self.residual(x)


class Refined(nn.Module):
    """One subset of CTR-GCN: relations of every frame, averaged afterwards."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        relations = max(8, c_in // 8)
        self.pairs = nn.ModuleList(nn.Conv2d(c_in, relations, 1) for _ in range(2))
        self.values, self.refine = nn.Conv2d(c_in, c_out, 1), nn.Conv2d(relations, c_out, 1)

    def forward(self, x: Tensor, A: Tensor, alpha: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V), (V, V), (1,) -> (N, C_out, T, V)."""
        target, source = (conv(x).mean(dim=2) for conv in self.pairs)
        graph = self.refine(torch.tanh(target[..., :, None] - source[..., None, :])) * alpha + A
        return torch.einsum("ncuv,nctv->nctu", graph, self.values(x))


class CTRGCNBlock(nn.Module):
    """CTR-GCN: a sum of three refined subsets, then `Temporal`."""

    def __init__(self, c_in: int, c_out: int, stride: int, first: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.from_numpy(directed(KINECT_V2)).transpose(1, 2).clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.subsets = nn.ModuleList(Refined(c_in, c_out) for _ in range(3))
        self.norm, self.inner = nn.BatchNorm2d(c_out), shortcut(c_in, c_out, 1)
        self.temporal = Temporal(c_out, c_out, 5, stride, ctrgcn.DILATIONS)
        self.residual = None if first else shortcut(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = torch.stack([one(x, self.A[k], self.alpha) for k, one in enumerate(self.subsets)]).sum(dim=0)
        y = self.temporal(F.relu(self.norm(y) + self.inner(x)))
        return F.relu(y if self.residual is None else y + self.residual(x))


class MultiScaleGraph(nn.Module):
    """MS-G3D: sums over neighbours at every distance, put together, and one 1x1 convolution."""

    def __init__(self, c_in: int, c_out: int, scales: int, frames: int = 1) -> None:
        super().__init__()
        A = torch.from_numpy(distances(KINECT_V2, scales, frames)).transpose(1, 2)
        self.scales = scales
        self.register_buffer("A", A.reshape(-1, A.shape[2]))
        self.A: Tensor
        self.learned = nn.Parameter(torch.empty_like(self.A).uniform_(-1e-6, 1e-6))
        self.mlp = nn.Sequential(*pointwise(scales * c_in, c_out), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, T, V)."""
        N, C, T, V = x.shape
        y = torch.einsum("vu,nctu->nctv", self.A + self.learned, x).view(N, C, T, self.scales, V)
        out: Tensor = self.mlp(y.permute(0, 3, 1, 2, 4).contiguous().view(N, self.scales * C, T, V))
        return out


class Window(nn.Module):
    """MS-G3D: the graph over the joints of a window of frames, joined by a 3D convolution."""

    def __init__(self, c_in: int, c_inner: int, c_out: int, frames: int, stride: int) -> None:
        super().__init__()
        self.frames, self.stride = frames, stride
        self.graph = MultiScaleGraph(c_in, c_inner, msg3d.WINDOW_SCALES, frames)
        self.join, self.norm = nn.Conv3d(c_inner, c_out, (1, frames, 1)), nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        N, C, _, V = x.shape
        y = F.unfold(x, (self.frames, 1), stride=(self.stride, 1), padding=(self.frames // 2, 0))
        y = y.view(N, C, self.frames, -1, V).transpose(2, 3).contiguous().view(N, C, -1, self.frames * V)
        y = self.graph(y)
        out: Tensor = self.norm(self.join(y.view(N, y.shape[1], -1, self.frames, V)).squeeze(3))
        return out


class MSG3DBlock(nn.Module):
    """MS-G3D: a path within frames and one a window, added, then `Temporal`."""

    def __init__(self, c_in: int, c_out: int, stride: int, first: bool) -> None:
        super().__init__()
        c_inner = c_out if first else c_in
        time = partial(Temporal, kernel=3, dilations=msg3d.DILATIONS, residual=True)
        self.path = nn.Sequential(
            MultiScaleGraph(c_in, c_inner, msg3d.SCALES),
            time(c_inner, c_out, stride=stride),
            nn.ReLU(inplace=True),
            time(c_out, c_out, stride=1),
        )
        self.windows = nn.ModuleList(Window(c_in, c_inner, c_out, frames, stride) for frames in msg3d.WINDOWS)
        self.last = time(c_out, c_out, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        y = self.path(x)
        for window in self.windows:
            y = y + window(x)
        return F.relu(self.last(F.relu(y)))


class Plain(nn.Module):
    """Blocks over every body, and the mean of all.

    Args:
        make: (channels coming in, channels going out, stride, whether it is the first) -> a block.
        widths_and_strides: of the blocks.
        alike: bodies share the data normalisation, as in ST-GCN.
    """

    def __init__(
        self, make: type[nn.Module] = STGCNBlock, widths_and_strides: Blocks = FULL, alike: bool = True
    ) -> None:
        super().__init__()
        self.dim, self.alike = widths_and_strides[-1][0], alike
        self.data_norm = nn.BatchNorm1d(3 * JOINTS * (1 if alike else BODIES))
        widths = [3, *(width for width, _ in widths_and_strides)]
        self.blocks = nn.Sequential(
            *(make(widths[i], width, stride, i == 0) for i, (width, stride) in enumerate(widths_and_strides))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, T, V, M) -> (N, D)."""
        N, C, T, V, M = x.shape
        x = x.permute(0, 4, 3, 1, 2).contiguous()
        x = self.data_norm(x.view(N * M, V * C, T) if self.alike else x.view(N, M * V * C, T))
        x = x.view(N, M, V, C, T).permute(0, 1, 3, 4, 2).contiguous().view(N * M, C, T, V)
        x = self.blocks(x)
        return F.avg_pool2d(x, x.shape[2:]).view(N, M, -1).mean(dim=1)


class FrameByFrame(nn.Module):
    """BiGRU as published: one call a frame, which carries the state."""

    def __init__(self) -> None:
        super().__init__()
        flat = 3 * JOINTS * BODIES
        self.dim = 2 * bigru.WIDTH
        self.data_norm = nn.BatchNorm1d(flat)
        self.gru = nn.GRU(flat, bigru.WIDTH, bigru.LAYERS, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C, T, V, M) -> (N, D)."""
        frames = self.data_norm(x.permute(0, 4, 3, 1, 2).flatten(1, 3)).transpose(1, 2)
        state = out = None
        for t in range(frames.shape[1]):
            out, state = self.gru(frames[:, t : t + 1], state)
        assert out is not None
        features: Tensor = out[:, -1]
        return features


USUAL: dict[str, Callable[[], nn.Module]] = {
    "stgcn": Plain,
    "stgcn_slim": partial(Plain, widths_and_strides=SLIM),
    "ctrgcn": partial(Plain, CTRGCNBlock, ctrgcn.BLOCKS, alike=False),
    "msg3d": partial(Plain, MSG3DBlock, msg3d.BLOCKS, alike=False),
    "bigru": FrameByFrame,
    "transformer": partial(build, "transformer", KINECT_V2),
}
"""Name of an encoder -> the network as it is usually written. The transformer is made of torch's own layers in both."""
