"""Hand-written batch normalisation: `BatchNorm` computes equal rows once, `SyncBatchNorm` covers all processes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_training import distributed

_STATISTICS = "aten::batch_norm_update_stats"


def _shapes(x: Tensor, mean: Tensor | None, var: Tensor | None, momentum: float) -> tuple[Tensor, Tensor]:
    """Return tensors in the place of the statistics that torch's function computes."""
    like = x if mean is None else mean
    return like.new_empty(x.shape[1]), like.new_empty(x.shape[1])


if not torch._C._dispatch_has_kernel_for_dispatch_key(_STATISTICS, "Meta"):
    # torch up to 2.13 does not know these shapes without computing, and `torch.compile` breaks a graph at every norm
    torch.library.register_fake(_STATISTICS, _shapes)


class _Weighted(torch.autograd.Function):
    """Normalise by given moments of a batch in which the last rows represent several bodies each.

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
        if distributed.size() == 1:
            share = x.numel() / len(weight) / n
            dx, H, G = native(g, x, weight * share, None, None, mean, scale, True, ctx.eps, every)
            dx.addcmul_(g, _channels((1 - share) * a).to(g.dtype))
            dx[first:] = _channels(a) * g[first:]
            per_value = torch.stack([G, H]) / n
        else:
            dx, H, G = native(g, x, weight, mean, var, None, None, False, ctx.eps, every)
            per_value = distributed.all_reduce_sum(torch.stack([G, H])) / n
            dx[:first] -= _statistics_part(x[:first], per_value, mean, scale, a)
        if K:
            dx[first:] -= copies[:, None, None, None] * _statistics_part(x[first:], per_value, mean, scale, a)
        return dx, H, G, None, None, None, None, None


def _statistics_part(x: Tensor, per_value: Tensor, mean: Tensor, scale: Tensor, a: Tensor) -> Tensor:
    """Return the part of a row's gradient that the statistics take: a (G + x^ H) / n. Shape: (R, C, T, V) -> the same."""
    G, H = per_value
    return (x - _channels(mean)) * _channels(a * scale * H) + _channels(a * G)


def _channels(values: Tensor) -> Tensor:
    """Shape: (C,) -> (C, 1, 1)."""
    return values[:, None, None]


def _normalise(norm: nn.modules.batchnorm._BatchNorm, x: Tensor, copies: Tensor) -> Tensor:
    """Normalise a batch of all processes in training. Shape: (R, C, T, V), (K,) -> (R, C, T, V)."""
    n, mean, var = _moments(norm, x.detach(), copies)
    y: Tensor = _Weighted.apply(x, norm.weight, norm.bias, mean, var, n, copies, norm.eps)  # type: ignore[no-untyped-call]
    return y


@torch.no_grad()
def _moments(norm: nn.modules.batchnorm._BatchNorm, x: Tensor, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return n, mean and biased variance of the plain batch, and update the running statistics."""
    first, each = len(x) - len(copies), x.shape[2] * x.shape[3]
    last = x[first:].to(norm.weight.dtype)
    means, counts = last.mean(dim=(2, 3)), each * copies[:, None]
    squares = counts * (last - means[:, :, None, None]).square().mean(dim=(2, 3))
    if first:
        still = torch.zeros_like(norm.weight)
        mean, var = torch.ops.aten.batch_norm_update_stats(x[:first], still, still.clone(), 0.0)
        means, squares = torch.cat([mean[None], means]), torch.cat([(first * each * var)[None], squares])
        counts = torch.cat([counts.new_full((1, 1), first * each), counts])
    n = counts.sum()
    mean = (counts * means).sum(dim=0) / n
    spread = (squares + counts * (means - mean).square()).sum(dim=0)
    n, mean, spread = distributed.moments(n, mean, spread)
    cast("Tensor", norm.num_batches_tracked).add_(1)
    cast("Tensor", norm.running_mean).lerp_(mean, cast("float", norm.momentum))
    cast("Tensor", norm.running_var).lerp_(spread / (n - 1), cast("float", norm.momentum))
    return n, mean, spread / n


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation in which the last rows of a batch may represent several equal ones each.

    In a run of several processes its statistics are those of all of them.
    """

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: Shape (R, C, T, V).
            copies: number of rows of the plain batch that each of the last K rows represents. Shape (K,), float.

        Returns:
            Shape (R, C, T, V).
        """
        if not self.training or (copies is None and distributed.size() == 1):
            return super().forward(x)
        return _normalise(self, x, self.weight.new_zeros(0) if copies is None else copies)


class SyncBatchNorm(nn.BatchNorm1d):
    """A batch normalisation over inputs of any rank, with the statistics of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. Shape: (N, C, ...) -> the same."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return _normalise(self, x.reshape(*x.shape[:2], -1, 1), self.weight.new_zeros(0)).view_as(x)


def convert_sync_batchnorm(model: nn.Module) -> None:
    """Replace every `nn.BatchNorm1d` and `nn.BatchNorm2d` inside a model by one with the statistics of all ranks.

    Weights and buffers stay the very same objects, under the same names. Subclasses are left alone.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) in {nn.BatchNorm1d, nn.BatchNorm2d}:
                setattr(parent, name, _synchronised(norm))


def _synchronised(norm: nn.Module) -> SyncBatchNorm:
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if not (norm.affine and norm.track_running_stats and norm.momentum):
        raise ConfigError(
            "a batch normalisation without weights, running statistics or momentum cannot be synchronised"
        )
    synced = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    synced.weight, synced.bias = norm.weight, norm.bias
    synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
    synced.num_batches_tracked = norm.num_batches_tracked
    synced.train(norm.training)
    return synced
