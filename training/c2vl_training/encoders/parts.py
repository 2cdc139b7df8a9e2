"""What encoders share: bodies one by one, empty bodies computed once, normalisation that counts them in full.

Clips of one person have a second body of zeros. After the data normalisation all of these are equal, and as long as
nothing random is applied they stay equal through every layer. One row can therefore stand for all of them, if every
batch normalisation counts it as often as it occurs (`BatchNorm`), forwards and backwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_training import ranks

EmptyBodies = Literal["compute", "exact_skip", "leave_out"]
"""What becomes of bodies that are zero throughout a clip: see `OneByOne`."""


class Encoder(nn.Module):
    """Takes clips (N, C, T, V, M), returns (N, D) and tells D as `dim`."""

    dim: int


# ----------------------------------------------------------------------------------------- normalisation


class _Weighted(torch.autograd.Function):
    """Normalise by given moments of a batch in which the last rows stand for several bodies each.

    The gradient that reaches such a row is already the sum over its copies. With G = sum g and H = sum g x^ over rows
    and n values a channel in the plain batch, the plain gradient summed over the w copies of a row is
    a (g - w G / n - w x^ H / n). Where w = 1 that is a mixture of what the native kernel returns for the rows at hand
    (whose n' counts each row once) and of a g, with the share n' / n; only the last rows need a formula of their own.
    Where sums come from several processes they are no longer the kernel's, and the formula is written out.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        n: Tensor,
        copies: Tensor,
        eps: float,
    ) -> Tensor:
        """Shape: (R, C, T, V), (C,) four times, (), (K,) -> (R, C, T, V)."""
        ctx.save_for_backward(x, weight, mean, var, n, copies)
        ctx.eps = eps
        y: Tensor = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)[0]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return gradients of x, weight and bias."""
        (g,) = grads
        x, weight, mean, var, n, copies = ctx.saved_tensors
        native, every = torch.ops.aten.native_batch_norm_backward, [True, True, True]
        scale = (var + ctx.eps).rsqrt()
        a = weight * scale
        K, first = len(copies), len(x) - len(copies)
        if ranks.size() == 1:
            share = x.numel() / len(weight) / n
            dx, H, G = native(g, x, weight * share, None, None, mean, scale, True, ctx.eps, every)
            dx.addcmul_(g, _channels((1 - share) * a).to(g.dtype))
            dx[first:] = _channels(a) * g[first:]
            per_value = torch.stack([G, H]) / n
        else:
            dx, H, G = native(g, x, weight, mean, var, None, None, False, ctx.eps, every)
            per_value = ranks.total(torch.stack([G, H])) / n
            dx[:first] -= _pull(x[:first], per_value, mean, scale, a)
        if K:
            dx[first:] -= copies[:, None, None, None] * _pull(x[first:], per_value, mean, scale, a)
        return dx, H, G, None, None, None, None, None


def _pull(x: Tensor, per_value: Tensor, mean: Tensor, scale: Tensor, a: Tensor) -> Tensor:
    """What the statistics take from the gradient of a row: a (G + x^ H) / n. Shape: (R, C, T, V) -> the same."""
    G, H = per_value
    return (x - _channels(mean)) * _channels(a * scale * H) + _channels(a * G)


def _channels(values: Tensor) -> Tensor:
    """Shape: (C,) -> (C, 1, 1)."""
    return values[:, None, None]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation in which the last rows of a batch may stand for several equal ones each.

    In a run of several processes its statistics are those of all of them.
    """

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: Shape (R, C, T, V).
            copies: how many rows of the plain batch each of the last K rows stands for. Shape (K,), float.

        Returns:
            Shape (R, C, T, V).
        """
        if not self.training or (copies is None and ranks.size() == 1):
            return super().forward(x)
        copies = self.weight.new_zeros(0) if copies is None else copies
        n, mean, var = self._moments(x.detach(), copies)
        y: Tensor = _Weighted.apply(x, self.weight, self.bias, mean, var, n, copies, self.eps)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _moments(self, x: Tensor, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return n, mean and biased variance of the plain batch, and take them into the running statistics."""
        first, each = len(x) - len(copies), x.shape[2] * x.shape[3]
        last = x[first:].to(self.weight.dtype)
        means, counts = last.mean(dim=(2, 3)), each * copies[:, None]
        squares = counts * (last - means[:, :, None, None]).square().mean(dim=(2, 3))
        if first:
            still = torch.zeros_like(self.weight)
            mean, var = torch.ops.aten.batch_norm_update_stats(x[:first], still, still.clone(), 0.0)
            means, squares = torch.cat([mean[None], means]), torch.cat([(first * each * var)[None], squares])
            counts = torch.cat([counts.new_full((1, 1), first * each), counts])
        n = counts.sum()
        mean = (counts * means).sum(dim=0) / n
        spread = (squares + counts * (means - mean).square()).sum(dim=0)
        n, mean, spread = ranks.moments(n, mean, spread)
        cast("Tensor", self.num_batches_tracked).add_(1)
        cast("Tensor", self.running_mean).lerp_(mean, cast("float", self.momentum))
        cast("Tensor", self.running_var).lerp_(spread / (n - 1), cast("float", self.momentum))
        return n, mean, spread / n


# ------------------------------------------------------------------------------------------------ bodies


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


# ------------------------------------------------------------------------------------------------ layers


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
    """What a block adds to its result: its input, convolved and normalised where the shape changes."""

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
    """Temporal convolution in branches of equal width: one a dilation, one of maxima, one of single frames.

    All branches but the last begin with a 1x1 convolution, normalisation and ReLU, and each ends with a
    normalisation. Both treat channels apart, so the branches share one wide layer of each.

    Args:
        c_in: channels coming in.
        c_out: channels going out, a multiple of the number of branches.
        kernel: frames a kernel, odd.
        stride: stride in time.
        dilations: one a convolved branch.

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
