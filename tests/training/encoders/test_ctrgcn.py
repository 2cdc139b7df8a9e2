"""CTR-GCN against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2vl_training.encoders import ctrgcn
from c2vl_training.encoders.graph import directed
from support.encoders import HAND, naive_conv, naive_norm, naive_shortcut, naive_temporal, noise, scrambled


def naive_refined(m, x):
    """The published order: relations of every frame, then their mean; one graph a channel and pair of joints."""
    K, V = m.graph.shape[:2]
    r = m.relations
    A = m.graph.detach().numpy()
    values = naive_conv(x, m.values, 1)
    N, C, T, _ = values.shape
    C //= K
    weight, bias = m.pairs.weight.detach().numpy()[:, :, 0], m.pairs.bias.detach().numpy()
    relations = (np.einsum("oc,nctv->notv", weight, x) + bias[:, None, None]).mean(axis=2)
    refine, shift = m.refine.weight.detach().numpy()[:, :, 0, 0], m.refine.bias.detach().numpy()
    y = np.zeros((N, C, T, V))
    for n, k, v, w in np.ndindex(N, K, V, V):
        mine = relations[n, k * r : (k + 1) * r, w]
        theirs = relations[n, (K + k) * r : (K + k + 1) * r, v]
        own = slice(k * C, (k + 1) * C)
        graph = m.alpha.item() * (refine[own] @ np.tanh(mine - theirs) + shift[own]) + A[k, v, w]
        y[n, :, :, w] += graph[:, None] * values[n, own, :, v]
    return y


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("c_in", "stride", "residual"), [(3, 1, False), (4, 1, True), (3, 2, True)])
def test_ctrgcn_block_matches_naive_reference(c_in, stride, residual, training):
    A = torch.as_tensor(directed(HAND))
    block = ctrgcn.Block(c_in, 4, stride, A, kernel=5, residual=residual).double()
    scrambled(block).train(training)
    x = noise(2, c_in, 6, HAND.joints)
    h = naive_norm(naive_refined(block.spatial, x.numpy()), block.spatial_norm, training)
    h = np.maximum(h + naive_shortcut(x.numpy(), block.spatial_shortcut, 1, training), 0)
    y = naive_temporal(block.temporal, h, stride)
    if residual:
        y = y + naive_shortcut(x.numpy(), block.shortcut, stride, training)
    np.testing.assert_allclose(block(x).detach().numpy(), np.maximum(y, 0), rtol=1e-8, atol=1e-8)


def test_ctrgcn_block_begins_as_its_shortcuts():
    block = ctrgcn.Block(4, 4, 1, torch.as_tensor(directed(HAND)), kernel=5, residual=True)
    assert block.spatial.alpha.item() == 0
    assert block.spatial_norm.weight.detach().abs().max() == pytest.approx(1e-6)
    np.testing.assert_array_equal(block.spatial.graph.detach().numpy(), directed(HAND))
