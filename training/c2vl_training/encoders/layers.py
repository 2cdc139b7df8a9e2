"""Layers that several encoders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_training.encoders.batchnorm import BatchNorm


class Pointwise(nn.Conv2d):
    """1x1 convolution of every `stride`-th frame.

    The frames are chosen first and then convolved without a stride: in the backward pass of a strided one, oneDNN 3.12
    (of torch 2.13) writes beyond its buffers on processors without AVX-512 when there are fewer than 8 channels.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__(c_in, c_out, 1)
        self.every = stride

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        if self.every > 1:
            x = x[:, :, :: self.every].contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class Shortcut(nn.Module):
    """Residual path of a block: its input, convolved and normalised where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv: nn.Conv2d | None = None
        if c_in != c_out or stride != 1:
            self.conv = Pointwise(c_in, c_out, stride)
            self.norm = BatchNorm(c_out)

    def forward(self, x: Tensor, copies: Tensor | None) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V)."""
        if self.conv is None:
            return x
        y: Tensor = self.norm(self.conv(x), copies)
        return y


class MultiScaleTemporal(nn.Module):
    """Temporal convolution in branches of equal width: one per dilation, one of maxima, one of single frames.

    All branches but the last begin with a 1x1 convolution, normalisation and ReLU, and each ends with a
    normalisation. Both act per channel, so the branches share one wide layer of each.

    Args:
        c_in: channels coming in.
        c_out: channels going out, a multiple of the number of branches.
        kernel: frames of a kernel, odd.
        stride: stride in time.
        dilations: one per convolved branch.

    Raises:
        ConfigError: channels that do not divide, an even kernel.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        branches = len(dilations) + 2
        if c_out % branches:
            raise ConfigError(
                f"blocks: {c_out} channels do not divide among {branches} branches in time; "
                f"give a multiple of {branches}"
            )
        if kernel % 2 == 0:
            raise ConfigError(f"temporal_kernel = {kernel} is even; give an odd number of frames")
        self.width = c_out // branches
        self.stride = stride
        self.squeeze = nn.Conv2d(c_in, c_out - self.width, 1)
        self.squeeze_norm = BatchNorm(c_out - self.width)
        self.convs = nn.ModuleList(
            nn.Conv2d(
                self.width, self.width, (kernel, 1), (stride, 1), (d * (kernel // 2), 0), (d, 1)
            )
            for d in dilations
        )  # fmt: skip
        self.single = Pointwise(c_in, self.width, stride)
        self.norm = BatchNorm(c_out)

    def forward(self, x: Tensor, copies: Tensor | None) -> Tensor:
        """Shape: (N, C_in, T, V) -> (N, C_out, ceil(T / stride), V), not rectified."""
        *parts, last = F.relu_(self.squeeze_norm(self.squeeze(x), copies)).split(self.width, dim=1)
        done = [conv(part) for conv, part in zip(self.convs, parts, strict=True)]
        done += [F.max_pool2d(last, (3, 1), (self.stride, 1), (1, 0)), self.single(x)]
        y: Tensor = self.norm(torch.cat(done, dim=1), copies)
        return y
