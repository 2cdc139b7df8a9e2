"""MS-G3D against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2vl_training.encoders import msg3d
from c2vl_training.encoders.graph import distances
from support.encoders import HAND, naive_conv, naive_norm, naive_shortcut, naive_temporal, noise, scrambled


def naive_distances(m, x):
    """Sum over neighbours at every distance, one 1x1 convolution of all sums."""
    A = (m.graph + m.learned).detach().numpy()
    N, C, T, _ = x.shape
    K, V, W = A.shape
    sums = np.zeros((N, K * C, T, W))
    for n, k, c, t, v, w in np.ndindex(N, K, C, T, V, W):
        sums[n, k * C + c, t, w] += A[k, v, w] * x[n, c, t, v]
    return np.maximum(naive_norm(naive_conv(sums, m.conv, 1), m.norm, m.training), 0)


def naive_window(m, x, stride):
    N, C, T, V = x.shape
    W, half = m.window, m.window // 2
    steps = list(range(0, T, stride))
    windows = np.zeros((N, C, len(steps), W * V))
    for i, t in enumerate(steps):
        for j in range(W):
            if 0 <= t + j - half < T:
                windows[:, :, i, j * V : (j + 1) * V] = x[:, :, t + j - half]
    h = naive_distances(m.spatial, windows)
    weight, bias = m.join.weight.detach().numpy()[..., 0], m.join.bias.detach().numpy()
    joined = np.zeros((N, weight.shape[0], len(steps), V)) + bias[:, None, None]
    for j in range(W):
        joined += np.einsum("oc,nctv->notv", weight[:, :, j], h[..., j * V : (j + 1) * V])
    return naive_norm(joined, m.norm, m.training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("c_in", "stride", "first"), [(2, 1, True), (3, 2, False)])
def test_msg3d_block_matches_naive_reference(c_in, stride, first, training):
    graphs = [torch.as_tensor(distances(HAND, 3, frames)) for frames in (1, *msg3d.WINDOWS)]
    block = msg3d.Block(c_in, 6, stride, graphs, kernel=3, first=first).double()
    scrambled(block).train(training)
    x = noise(2, c_in, 5, HAND.joints)
    assert [path.spatial.conv.out_channels for path in block.windows] == [6 if first else c_in] * 2

    def in_time(i, h):
        s = stride if i == 0 else 1
        return naive_temporal(block.temporal[i], h, s) + naive_shortcut(h, block.shortcuts[i], s, training)

    y = in_time(1, np.maximum(in_time(0, naive_distances(block.spatial, x.numpy())), 0))
    for path in block.windows:
        y = y + naive_window(path, x.numpy(), stride)
    expected = np.maximum(in_time(2, np.maximum(y, 0)), 0)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-8, atol=1e-8)
