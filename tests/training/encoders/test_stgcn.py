"""ST-GCN against a naive reference."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from c2vl_training.encoders import ctrgcn
from c2vl_training.encoders.graph import adjacency
from c2vl_training.encoders.stgcn import FULL, SLIM, Block, GraphConvolution
from support.encoders import HAND, SMALL, little, naive_conv, naive_norm, noise, scrambled, small


def naive_block(block, x, stride):
    """The published order: convolve to 3 C_out with bias, then sum over neighbours."""
    A = (block.graph * block.importance).detach().numpy()
    K, V = A.shape[:2]
    each = naive_conv(x, block.spatial.conv, 1)
    C_out = each.shape[1] // K
    y = np.zeros((x.shape[0], C_out, *x.shape[2:]))
    for n, c, t, w in np.ndindex(y.shape):
        for k in range(K):
            for v in range(V):
                y[n, c, t, w] += each[n, k * C_out + c, t, v] * A[k, v, w]
    y = np.maximum(naive_norm(y, block.spatial_norm, block.training), 0)
    y = naive_norm(naive_conv(y, block.temporal, stride), block.temporal_norm, block.training)
    if block.residual and block.shortcut is None:
        y = y + x
    elif block.residual:
        y = y + naive_norm(naive_conv(x, block.shortcut[0], stride), block.shortcut[1], block.training)
    return np.maximum(y, 0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("graph", ["stgcn", "proper"])
@pytest.mark.parametrize(
    ("c_in", "c_out", "stride", "residual"), [(2, 3, 1, False), (3, 3, 1, True), (2, 4, 2, True), (4, 2, 1, True)]
)
def test_block_matches_naive_reference(c_in, c_out, stride, residual, graph, training):
    A = torch.as_tensor(adjacency(HAND, graph))
    block = Block(c_in, c_out, stride, A, kernel=3, dropout=0.0, residual=residual).double()
    scrambled(block).train(training)
    x = torch.randn(2, c_in, 5, HAND.joints, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = naive_block(block, x.numpy(), stride)
    np.testing.assert_allclose(block(x.clone()).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
    last = x.contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(block.train(training)(last).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_whole_encoder_matches_naive_reference(training):
    encoder = scrambled(small(temporal_kernel=3).double()).train(training)
    x = torch.randn(2, 3, 4, HAND.joints, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    N, C, T, V, M = x.shape
    rows = np.zeros((N * M, V * C, T, 1))
    for n, c, t, v, m in np.ndindex(x.shape):
        rows[n * M + m, v * C + c, t, 0] = x[n, c, t, v, m]
    rows = naive_norm(rows, encoder.data_norm, training)
    h = np.zeros((N * M, C, T, V))
    for n, c, t, v in np.ndindex(h.shape):
        h[n, c, t, v] = rows[n, v * C + c, t, 0]
    for block, (_, stride) in zip(encoder.blocks, SMALL, strict=True):
        h = naive_block(block, h, stride)
    expected = h.mean(axis=(2, 3)).reshape(N, M, -1).mean(axis=1)
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_block_compiles_to_one_graph_for_any_number_of_second_bodies():
    torch._dynamo.reset()
    counters.clear()
    plain, ours = (scrambled(little("stgcn", blocks=((4, 1), (6, 2))).double()) for _ in range(2))
    for block in ours.blocks:
        block.compile(backend="aot_eager", dynamic=True)
    for persons in (3, 2, 1):
        x = noise(5, 3, 4, HAND.joints, 2)
        x[persons:, ..., 1] = 0
        weights = noise(5, plain.dim)
        y, z = ours(x), plain(x)
        torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
        found = torch.autograd.grad((y * weights).sum(), ours.parameters())
        expected = torch.autograd.grad((z * weights).sum(), plain.parameters())
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)
    assert counters["graph_break"] == {}
    assert counters["stats"]["unique_graphs"] == len(ours.blocks)


# --- order of graph and convolution ------------------------------------------------------------------------


@pytest.mark.parametrize(("c_in", "c_out"), [(2, 5), (5, 2), (3, 3)])
def test_both_orders_of_graph_and_convolution_are_equal(c_in, c_out):
    layer = scrambled(GraphConvolution(c_in, c_out, 3).double())
    assert layer.sum_first == (c_in <= c_out)
    A = torch.as_tensor(adjacency(HAND, "stgcn")).double().requires_grad_()
    x = noise(2, c_in, 5, HAND.joints).requires_grad_()
    found = []
    for first in (True, False):
        layer.sum_first = first
        y = layer(x, A)
        found.append((y, *torch.autograd.grad((y * noise(*y.shape)).sum(), (x, A, *layer.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only_and_not_in_the_first_block():
    encoder = small(dropout=0.5)
    assert [block.dropout.p for block in encoder.blocks] == [0.0, 0.5, 0.5, 0.5]
    x = torch.randn(2, 3, 8, HAND.joints, 1)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("blocks", [FULL, SLIM, ctrgcn.BLOCKS])
def test_ten_blocks_with_stride_at_five_and_eight(blocks):
    assert [stride for _, stride in blocks] == [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert all(a <= b for (a, _), (b, _) in pairwise(blocks))
