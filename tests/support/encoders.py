"""Small encoders and naive references."""

from __future__ import annotations

import math

import numpy as np
import torch

from c2vl_manifests.layouts import Layout
from c2vl_training.encoders import build

SMALL = ((4, 1), (4, 1), (6, 2), (5, 1))
HAND = Layout("hand", ("palm", "thumb", "index", "tip"), (0, 0, 0, 2))
LITTLE = {
    "stgcn": {"blocks": SMALL},
    "stgcn_slim": {"blocks": SMALL},
    "ctrgcn": {"blocks": ((4, 1), (8, 2), (8, 1))},
    "msg3d": {"blocks": ((12, 1), (24, 2))},
    "bigru": {"width": 6},
    "transformer": {"width": 6},
}
GRAPHS = ("stgcn", "stgcn_slim", "ctrgcn", "msg3d")


def little(name, layout=HAND, **options):
    torch.manual_seed(0)
    return build(name, layout, **(LITTLE.get(name, {}) | options))


def noise(*shape, seed=2):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small(layout=HAND, **options):
    torch.manual_seed(0)
    return build("stgcn", layout, blocks=SMALL, **options)


def scrambled(module):
    """Give every parameter and statistic a value of its own, so that no term can hide behind 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise.abs() + 0.5 if name.endswith(("running_var", "importance")) else noise)
    return module


# --- naive reference: one loop an index --------------------------------------------------------------------


def naive_norm(x, norm, training):
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        mean = x[:, c].mean() if training else norm.running_mean[c].item()
        var = ((x[:, c] - mean) ** 2).mean() if training else norm.running_var[c].item()
        out[:, c] = (x[:, c] - mean) / math.sqrt(var + norm.eps) * norm.weight[c].item() + norm.bias[c].item()
    return out


def naive_conv(x, conv, stride):
    weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
    N, _, T, V = x.shape
    kernel, dilation = weight.shape[2], conv.dilation[0]
    steps = (T + stride - 1) // stride
    out = np.zeros((N, weight.shape[0], steps, V))
    for n, o, t, v in np.ndindex(out.shape):
        total = bias[o]
        for c in range(x.shape[1]):
            for k in range(kernel):
                at = t * stride + dilation * (k - kernel // 2)
                if 0 <= at < T:
                    total += weight[o, c, k, 0] * x[n, c, at, v]
        out[n, o, t, v] = total
    return out


def naive_shortcut(x, shortcut, stride, training):
    if shortcut.conv is None:
        return x
    return naive_norm(naive_conv(x, shortcut.conv, stride), shortcut.norm, training)


def naive_temporal(m, x, stride):
    """Branch by branch."""
    w = m.width
    squeezed = np.maximum(naive_norm(naive_conv(x, m.squeeze, 1), m.squeeze_norm, m.training), 0)
    branches = [naive_conv(squeezed[:, i * w : (i + 1) * w], conv, stride) for i, conv in enumerate(m.convs)]
    last = squeezed[:, len(m.convs) * w :]
    T = x.shape[2]
    steps = [[at for at in (t - 1, t, t + 1) if 0 <= at < T] for t in range(0, T, stride)]
    branches.append(np.stack([last[:, :, at].max(axis=2) for at in steps], axis=2))
    branches.append(naive_conv(x, m.single, stride))
    return naive_norm(np.concatenate(branches, axis=1), m.norm, m.training)
