"""Encoders: every block against loops in float64, invariances, empty bodies computed once, the published sizes."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_manifests.recipe import EncoderConfig
from c2vl_training import checkpoint, distributed
from c2vl_training.encoders import ENCODERS, build, count, ctrgcn, msg3d
from c2vl_training.encoders.base import OneByOne, merge
from c2vl_training.encoders.batchnorm import BatchNorm
from c2vl_training.encoders.graph import adjacency, directed, distances
from c2vl_training.encoders.layers import MultiScaleTemporal
from c2vl_training.encoders.stgcn import FULL, SLIM, STGCN, Block, GraphConvolution
from c2vl_training.encoders.transformer import positions

SMALL = ((4, 1), (4, 1), (6, 2), (5, 1))
HAND = Layout("hand", ("palm", "thumb", "index", "tip"), (0, 0, 0, 2))
FLAT = Layout("flat17", tuple(f"j{j}" for j in range(17)), tuple(max(0, j - 1 - j % 3) for j in range(17)), 2)
MANY = Layout("many33", tuple(f"j{j}" for j in range(33)), tuple(max(0, j - 1 - j % 2) for j in range(33)))
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
    return build(name, layout, **(LITTLE[name] | options))


def unfilled(name, layout, **options):
    """Full size, without memory for the weights."""
    with torch.device("meta"):
        return build(name, layout, **options)


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
    ("c_in", "c_out", "stride", "residual"),
    [(2, 3, 1, False), (3, 3, 1, True), (2, 4, 2, True), (4, 2, 1, True)],
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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "dilations"), [(1, (1, 2)), (2, (1, 2)), (2, (1, 2, 3, 4))])
def test_multi_scale_temporal_convolution_matches_naive_reference(stride, dilations, training):
    c_out = 2 * (len(dilations) + 2)
    module = scrambled(MultiScaleTemporal(3, c_out, 3, stride, dilations).double()).train(training)
    x = noise(2, 3, 7, 4)
    expected = naive_temporal(module, x.numpy(), stride)
    np.testing.assert_allclose(module(x, None).detach().numpy(), expected, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ctrgcn", "msg3d"])
def test_places_have_a_data_normalisation_of_their_own(name, training):
    encoder = scrambled(little(name).double()).train(training)
    x = noise(3, 3, 6, HAND.joints, 2)
    N, C, T, V, M = x.shape
    rows = np.zeros((N, M * V * C, T, 1))
    for n, c, t, v, m in np.ndindex(x.shape):
        rows[n, (m * V + v) * C + c, t, 0] = x[n, c, t, v, m]
    normal = naive_norm(rows, encoder.data_norm, training).reshape(N, M, V, C, T)
    h = torch.from_numpy(normal.transpose(0, 1, 3, 4, 2).reshape(N * M, C, T, V))
    for block in copy.deepcopy(encoder).blocks:
        h = block(h)
    expected = h.mean(dim=(2, 3)).view(N, M, -1).mean(dim=1)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-8, atol=1e-8)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("training", [True, False])
def test_bigru_matches_naive_reference(training):
    encoder = scrambled(little("bigru").double()).train(training)
    x = noise(2, 3, 5, HAND.joints, 2)
    N, C, T, V, M = x.shape
    rows = np.zeros((N, M * V * C, T, 1))
    for n, c, t, v, m in np.ndindex(x.shape):
        rows[n, (m * V + v) * C + c, t, 0] = x[n, c, t, v, m]
    h = naive_norm(rows, encoder.data_norm, training)[..., 0].transpose(0, 2, 1)
    for pair in encoder.layers:
        found = []
        for gru in pair:
            W, U, b, d = (getattr(gru, k).detach().numpy() for k in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"))  # fmt: skip
            H = U.shape[1]
            state, states = np.zeros((N, H)), []
            for t in range(T):
                i, s = h[:, t] @ W.T + b, state @ U.T + d
                r, z = sigmoid(i[:, :H] + s[:, :H]), sigmoid(i[:, H : 2 * H] + s[:, H : 2 * H])
                state = (1 - z) * np.tanh(i[:, 2 * H :] + r * s[:, 2 * H :]) + z * state
                states.append(state)
            found.append(np.stack(states, axis=1))
        h = np.concatenate(found, axis=2)
    np.testing.assert_allclose(encoder(x).detach().numpy(), h[:, -1], rtol=1e-9, atol=1e-9)


def test_bigru_is_a_bidirectional_one_that_is_fed_frame_by_frame():
    encoder = scrambled(little("bigru").double()).eval()
    width, flat = encoder.dim // 2, encoder.data_norm.num_features
    published = nn.GRU(flat, width, num_layers=3, bidirectional=True, batch_first=True).double()
    with torch.no_grad():
        for layer, pair in enumerate(encoder.layers):
            for gru, end in zip(pair, ("", "_reverse"), strict=True):
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(published, f"{kind}_l{layer}{end}").copy_(getattr(gru, f"{kind}_l0"))
    x = noise(3, 3, 7, HAND.joints, 2)
    frames = encoder.data_norm(x.permute(0, 2, 4, 3, 1).reshape(3 * 7, -1)).view(3, 7, -1)
    state = None
    for t in range(7):
        out, state = published(frames[:, t : t + 1], state)
    torch.testing.assert_close(encoder(x), out[:, 0], rtol=1e-9, atol=1e-9)
    whole = published(frames)[0][:, -1]
    assert (encoder(x) - whole).abs().max() > 1e-3


def naive_linear(x, layer):
    return x @ layer.weight.detach().numpy().T + (0 if layer.bias is None else layer.bias.detach().numpy())


def naive_layer_norm(x, norm):
    out = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return out * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def naive_branch(branch, tokens, places):
    first, norm, _, second = branch.embed
    h = naive_linear(np.maximum(naive_layer_norm(naive_linear(tokens, first), norm), 0), second)
    h = naive_linear(h, branch.fuse) + places
    a = branch.attend
    D = h.shape[-1]
    mixed = h @ a.self_attn.in_proj_weight.detach().numpy().T + a.self_attn.in_proj_bias.detach().numpy()
    out = np.zeros_like(h)
    for n, i in np.ndindex(h.shape[:2]):
        scores = np.array([mixed[n, i, :D] @ mixed[n, j, D : 2 * D] for j in range(h.shape[1])]) / math.sqrt(
            D
        )
        share = np.exp(scores - scores.max())
        out[n, i] = (share / share.sum()) @ mixed[n, :, 2 * D :]
    h = naive_layer_norm(h + naive_linear(out, a.self_attn.out_proj), a.norm1)
    h = naive_layer_norm(h + naive_linear(np.maximum(naive_linear(h, a.linear1), 0), a.linear2), a.norm2)
    return h.max(axis=1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frames", [64, 32])
def test_transformer_matches_naive_reference(frames, training):
    encoder = scrambled(little("transformer").double()).train(training)
    x = noise(2, 3, frames, HAND.joints, 2)
    N, C, T, V, M = x.shape
    in_time, in_space = np.zeros((N, T, M * V * C)), np.zeros((N, M * V, 64 * C))
    for n, c, t, v, m in np.ndindex(x.shape):
        in_time[n, t, (m * V + v) * C + c] = x[n, c, t, v, m]
    centres = (np.arange(64) + 0.5) * T / 64 - 0.5
    for n, c, v, m in np.ndindex(N, C, V, M):
        in_space[n, m * V + v, c::C] = np.interp(centres, np.arange(T), x[n, c, :, v, m].numpy())
    places = np.zeros((T, 6))
    for t, d in np.ndindex(T, 6):
        angle = t / 10000 ** ((d - d % 2) / 6)
        places[t, d] = math.cos(angle) if d % 2 else math.sin(angle)
    np.testing.assert_allclose(positions(T, 6).numpy(), places, rtol=1e-5, atol=1e-5)
    expected = np.concatenate(
        [
            naive_branch(encoder.temporal, in_time, positions(T, 6).double().numpy()),
            naive_branch(encoder.spatial, in_space, 0),
        ],
        axis=1,
    )
    np.testing.assert_allclose(encoder(x).detach().numpy(), expected, rtol=1e-8, atol=1e-8)


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


# --- properties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("layout", [KINECT_V1, KINECT_V2, HAND, FLAT, MANY], ids=lambda layout: layout.name)
@pytest.mark.parametrize(("frames", "bodies"), [(8, 1), (5, 2), (13, 3)])
def test_output_is_one_finite_vector_of_length_dim_a_clip(name, layout, frames, bodies):
    encoder = little(name, layout, bodies=bodies)
    features = encoder(torch.randn(2, layout.dims, frames, layout.joints, bodies))
    assert features.shape == (2, encoder.dim)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("name", "dim"),
    [("stgcn", 256), ("stgcn_slim", 256), ("ctrgcn", 256), ("msg3d", 384), ("bigru", 2048), ("transformer", 2048)],
)  # fmt: skip
def test_features_are_as_wide_as_the_published_ones(name, dim):
    assert unfilled(name, KINECT_V1, bodies=1).dim == dim


def test_channels_follow_the_layout_unless_given():
    flat = Layout("flat", HAND.names, HAND.parents, dims=2)
    assert small(flat)(torch.randn(2, 2, 8, 4, 1)).shape == (2, 5)
    assert small(flat, channels=6)(torch.randn(2, 6, 8, 4, 1)).shape == (2, 5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["stgcn", "stgcn_slim"])
def test_swapping_bodies_changes_nothing(name, training):
    encoder = scrambled(little(name).double()).train(training)
    x = noise(3, 3, 8, HAND.joints, 2)
    torch.testing.assert_close(encoder(x), encoder(x.flip(-1)), rtol=1e-10, atol=1e-10)


def swap_halves(tensor):
    return torch.cat(tensor.chunk(2, dim=-1)[::-1], dim=-1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["ctrgcn", "msg3d", "bigru", "transformer"])
def test_swapping_bodies_and_what_reads_them_changes_nothing(name, training):
    encoder = scrambled(little(name).double()).train(training)
    other = copy.deepcopy(encoder)
    x = noise(3, 3, 8, HAND.joints, 2)
    with torch.no_grad():
        if name == "transformer":
            other.temporal.embed[0].weight.copy_(swap_halves(encoder.temporal.embed[0].weight))
        else:
            for key, tensor in other.data_norm.state_dict().items():
                if tensor.dim():
                    tensor.copy_(swap_halves(encoder.data_norm.state_dict()[key]))
        if name == "bigru":
            for gru, mine in zip(other.layers[0], encoder.layers[0], strict=True):
                gru.weight_ih_l0.copy_(swap_halves(mine.weight_ih_l0))
    torch.testing.assert_close(encoder(x), other(x.flip(-1)), rtol=1e-10, atol=1e-10)


def test_joints_of_two_bodies_are_tokens_without_a_place():
    encoder = scrambled(little("transformer").double())
    x = noise(3, 3, 8, HAND.joints, 2)
    moved = x.flatten(3)[..., torch.randperm(8, generator=torch.Generator().manual_seed(0))].view_as(x)
    features, other = encoder(x), encoder(moved)
    torch.testing.assert_close(features[:, 6:], other[:, 6:], rtol=1e-10, atol=1e-10)
    assert (features[:, :6] - other[:, :6]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_permuting_clips_permutes_vectors(name):
    encoder = scrambled(little(name).double())
    x = noise(4, 3, 8, HAND.joints, 2)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(x[order]), encoder(x)[order], rtol=1e-10, atol=1e-10)


# a constant before a normalisation has a true gradient of zero, and so has one added to all keys of an attention;
# its path is open all the same
CANCELS = {
    "stgcn": ("temporal.bias", "shortcut.0.bias"),
    "stgcn_slim": ("temporal.bias", "shortcut.0.bias"),
    "ctrgcn": ("values.bias", "squeeze.bias", "convs.0.bias", "convs.1.bias", "single.bias", "conv.bias"),
    "msg3d": (
        "conv.bias",
        "squeeze.bias",
        "single.bias",
        "join.bias",
        *(f"convs.{i}.bias" for i in range(4)),
    ),
    "bigru": (),
    "transformer": (),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_reaches_every_parameter(name):
    encoder = scrambled(little(name).double())
    for norm in encoder.modules():
        if isinstance(norm, BatchNorm):
            norm.bias.data.abs_()  # so that no channel is cut off entirely
    x = noise(4, 3, 8, HAND.joints, 2).requires_grad_()
    encoder(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=(1, 3, 4)).min() > 0
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        assert key.endswith(CANCELS[name]) or parameter.grad.abs().max() > 1e-12, key


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_matches_finite_differences(name):
    encoder = scrambled(little(name).double())
    x = noise(2, 3, 3, HAND.joints, 2).requires_grad_()
    assert torch.autograd.gradcheck(encoder, (x,), eps=1e-7, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_input_is_left_as_it_was(name):
    x = torch.randn(2, 3, 8, HAND.joints, 2)
    before = x.clone()
    little(name)(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_dropout_acts_in_training_only_and_not_in_the_first_block():
    encoder = small(dropout=0.5)
    assert [block.dropout.p for block in encoder.blocks] == [0.0, 0.5, 0.5, 0.5]
    x = torch.randn(2, 3, 8, HAND.joints, 1)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_autocast_stays_near_float32(name):
    encoder = little(name).eval()
    x = torch.randn(2, 3, 8, HAND.joints, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(x)
    torch.testing.assert_close(half.float(), encoder(x), rtol=0.1, atol=0.05)


def test_graphs_that_are_not_learned_are_no_weights():
    for name in ("stgcn", "msg3d"):
        assert not any("graph" in key for key in little(name).state_dict())


# --- empty bodies ------------------------------------------------------------------------------------------


@given(empty=hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 3))), alike=st.booleans())
@settings(deadline=None)
def test_every_body_is_found_again_and_counted_once(empty, alike):
    rows, copies, place = merge(torch.from_numpy(empty), alike)
    flat = empty.flatten()
    where = np.arange(flat.size) % empty.shape[1]
    told = len(rows) - len(copies)
    assert told + int(copies.sum()) == flat.size
    assert sorted(rows[:told].tolist()) == np.flatnonzero(~flat).tolist()
    for body, row in enumerate(rows[place].tolist()):
        assert row == body if not flat[body] else flat[row] and (alike or where[row] == where[body])
    assert torch.equal(torch.bincount(place, minlength=len(rows))[told:].float(), copies)


@pytest.mark.parametrize("counts", [(3,), (2, 5), (1,)])
@pytest.mark.parametrize("rest", [0, 3])
def test_a_row_that_stands_for_several_counts_as_often(rest, counts):
    plain, ours = (scrambled(BatchNorm(4).double()) for _ in range(2))
    rows = (3 * noise(rest + len(counts), 4, 2, 3) + 5).requires_grad_()
    copies = torch.tensor(counts, dtype=torch.float64)
    again = torch.cat([torch.ones(rest), copies]).long()
    weights = noise(int(again.sum()), 4, 2, 3)
    y, z = ours(rows, copies), plain(rows.repeat_interleave(again, dim=0))
    torch.testing.assert_close(y.repeat_interleave(again, dim=0), z, rtol=1e-11, atol=1e-11)
    expected = torch.autograd.grad((z * weights).sum(), (rows, *plain.parameters()))
    found = torch.autograd.grad(
        (y.repeat_interleave(again, dim=0) * weights).sum(), (rows, *ours.parameters())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("counts", [(), (3,)])
def test_statistics_are_those_of_all_processes(counts, monkeypatch):
    plain, ours = (scrambled(BatchNorm(4).double()) for _ in range(2))
    rows = (noise(3 + len(counts), 4, 2, 3) + 2).requires_grad_()
    copies = torch.tensor(counts, dtype=torch.float64) if counts else None
    again = torch.tensor([1, 1, 1, *counts])
    weights = noise(int(again.sum()), 4, 2, 3)
    whole = rows.repeat_interleave(again, dim=0)
    z = plain(torch.cat([whole, whole]))  # what two processes with equal rows see together
    expected = torch.autograd.grad((z * torch.cat([weights, weights])).sum() / 2, (rows, *plain.parameters()))
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "moments", lambda n, mean, squares: (2 * n, mean, 2 * squares))
    monkeypatch.setattr(distributed, "total", lambda sums: 2 * sums)
    y = ours(rows, copies).repeat_interleave(again, dim=0)
    torch.testing.assert_close(y, z[: len(y)], rtol=1e-11, atol=1e-11)
    for one, other in zip(
        torch.autograd.grad((y * weights).sum(), (rows, *ours.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-11, atol=1e-11)


def partly_empty(clips=8, frames=12, layout=HAND):
    """Most clips have one body; one has only a second one, one has nobody."""
    x = noise(clips, 3, frames, layout.joints, 2)
    x[2:, ..., 1] = 0
    x[3, ..., 1], x[3, ..., 0] = x[4, ..., 0], 0
    x[5] = 0
    return x


def trained(encoder, x, autocast=False):
    """Return outputs, gradients and statistics after one pass in training."""
    target = noise(len(x), encoder.dim, seed=7).to(x.dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = encoder.train()(x)
    ((y.to(x.dtype) - target).square().sum()).backward()
    gradients = {name: p.grad.double() for name, p in encoder.named_parameters()}
    return y.detach().double(), gradients, {n: b.double() for n, b in encoder.named_buffers()}


@pytest.mark.parametrize("name", GRAPHS)
def test_computing_empty_bodies_once_equals_the_plain_computation(name):
    plain = scrambled(little(name, empty_bodies="compute").double())
    ours = little(name, empty_bodies="exact_skip").double()
    ours.load_state_dict(plain.state_dict())
    x = partly_empty()
    for one, other in zip(trained(ours, x)[1:], trained(plain, x)[1:], strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(one[key], value, rtol=1e-9, atol=1e-9, msg=key)
    for training in (True, False):
        features = ours.train(training)(x)
        torch.testing.assert_close(features, plain.train(training)(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_more_bodies_are_encoded_than_differ(name, monkeypatch):
    encoder = little(name).double()
    seen = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda b, c: (seen.append(len(b)), encode(b, c))[1])
    x = partly_empty()
    there = int(x.abs().sum(dim=(1, 2, 3)).count_nonzero())
    encoder(x)
    assert seen == [there + (1 if name in {"stgcn", "stgcn_slim"} else 2)]
    encoder(noise(4, 3, 8, HAND.joints, 2))
    assert seen[1:] == [8]


def distance(found, exact):
    """Over all parameters at once: some have a true gradient of zero."""
    total = math.sqrt(sum(g.square().sum() for g in exact.values()))
    return math.sqrt(sum((found[k] - g).square().sum() for k, g in exact.items())) / total


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["stgcn_slim", "ctrgcn", "msg3d"])
def test_in_lower_precision_it_is_as_near_to_float64_as_the_plain_computation(name, autocast):
    wider = {"stgcn_slim": None, "ctrgcn": ((16, 1), (32, 2), (32, 1)), "msg3d": ((12, 1), (24, 2))}[name]
    x = partly_empty(12, 8, KINECT_V2)
    exact = little(name, KINECT_V2, blocks=wider, empty_bodies="compute").double()
    weights = {k: v.clone() for k, v in exact.state_dict().items()}
    wanted, gradients, _ = trained(exact, x)
    found = {}
    for how in ("compute", "exact_skip"):
        encoder = little(name, KINECT_V2, blocks=wider, empty_bodies=how)
        encoder.load_state_dict(weights)
        found[how] = trained(encoder, x.float(), autocast)
    if not autocast:
        torch.testing.assert_close(found["exact_skip"][0], wanted, rtol=1e-4, atol=1e-4)
        for key, value in found["compute"][2].items():
            torch.testing.assert_close(found["exact_skip"][2][key], value, rtol=1e-4, atol=1e-4, msg=key)
    off = {how: distance(f[1], gradients) for how, f in found.items()}
    assert 0 < off["exact_skip"] <= 2 * off["compute"]


def test_with_dropout_all_bodies_are_computed_in_training_alone(monkeypatch):
    encoder = small(dropout=0.5)
    seen = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda b, c: (seen.append((len(b), c is None)), encode(b, c))[1])
    x = partly_empty().float()
    encoder(x)
    encoder.eval()(x)
    assert seen[0] == (16, True)
    assert seen[1][0] < 16


# --- sizes -------------------------------------------------------------------------------------------------


def saved_by_order(encoder, frames):
    """Multiplications that the published order of two linear maps would take beside ours."""
    saved, T = 0, frames
    for block in encoder.blocks:
        if isinstance(encoder, STGCN):  # graph after convolution: over the channels that go out
            conv = block.spatial.conv
            saved += 3 * 25 * 25 * T * (conv.out_channels // 3 - conv.in_channels)
            T //= block.temporal.stride[0]
        elif isinstance(encoder, ctrgcn.CTRGCN):  # relations of every frame instead of the mean frame
            saved += block.spatial.pairs.weight.numel() * 25 * (T - 1)
            T //= block.temporal.stride
    return 2 * saved


@pytest.mark.parametrize(
    ("name", "frames", "parameters", "macs"),
    [
        ("stgcn", 64, 3.10e6, 3.65e9),
        ("stgcn_slim", 50, 0.84e6, 0.61e9),
        ("ctrgcn", 64, 1.45e6, 1.94e9),
        ("msg3d", 64, 3.19e6, 6.99e9),
    ],
)
def test_sizes_are_the_published_ones(name, frames, parameters, macs):
    """Published counts include a head for 60 classes, and two linear maps in the order that takes more."""
    encoder = unfilled(name, KINECT_V2)
    size = count(encoder, 3, frames, 25, 2)
    assert size.parameters + encoder.dim * 60 + 60 == pytest.approx(parameters, rel=0.01)
    assert size.macs + saved_by_order(encoder, frames) == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("bigru", 45.0e6, 2.88e9), ("transformer", 17.2e6, 0.99e9)]
)
def test_sizes_of_encoders_that_read_bodies_side_by_side(name, parameters, macs):
    """Published without a head. Multiplications by hand: every weight once a token, and attention."""
    encoder = unfilled(name, KINECT_V2)
    size = count(encoder, 3, 64, 25, 2)
    assert size.parameters == pytest.approx(parameters, rel=0.01)
    matrices = {k: p.numel() for k, p in encoder.named_parameters() if p.dim() == 2}
    tokens = {"layers": 64, "temporal": 64, "spatial": 50}
    by_hand = sum(tokens[k.split(".")[0]] * n for k, n in matrices.items())
    if name == "transformer":
        by_hand += 2 * 1024 * (64**2 + 50**2)
    assert size.macs == by_hand == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize("name", ENCODERS)
def test_counting_leaves_an_encoder_as_it_was(name):
    encoder = little(name)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    frozen = copy.deepcopy(encoder).eval().requires_grad_(False)
    assert count(encoder, 3, 8, 4, 2) == count(frozen, 3, 8, 4, 2)
    assert encoder.training
    assert not any(p.requires_grad for p in frozen.parameters())
    for key, value in before.items():
        assert torch.equal(encoder.state_dict()[key], value)


def test_parameters_of_the_full_encoder_alone():
    encoder = unfilled("stgcn", KINECT_V2)
    assert sum(p.numel() for p in encoder.parameters()) == 3_083_412


@pytest.mark.parametrize("blocks", [FULL, SLIM, ctrgcn.BLOCKS])
def test_ten_blocks_with_stride_at_five_and_eight(blocks):
    assert [stride for _, stride in blocks] == [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]
    assert all(a <= b for (a, _), (b, _) in pairwise(blocks))


# --- messages ----------------------------------------------------------------------------------------------


def test_unknown_name_is_told_the_nearest_and_all():
    with pytest.raises(
        ConfigError, match=r"unknown encoder 'stgnc'; did you mean 'stgcn'\? use one of stgcn, stgcn_slim"
    ):
        build("stgnc", KINECT_V2)
    with pytest.raises(ConfigError, match="unknown encoder 'resnet'; use one of"):
        build("resnet", KINECT_V2)


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="no blocks"):
        build("stgcn", KINECT_V2, blocks=())
    with pytest.raises(ConfigError, match="temporal_kernel = 4 is even"):
        STGCN(SMALL, adjacency(HAND, "proper"), temporal_kernel=4)
    for name in GRAPHS:
        with pytest.raises(ConfigError, match="no blocks"):
            build(name, HAND, blocks=())
    for name in ("ctrgcn", "msg3d"):
        with pytest.raises(ConfigError, match="temporal_kernel = 4 is even"):
            little(name, temporal_kernel=4)
    with pytest.raises(ConfigError, match=r"32 channels do not divide among 6 branches.*a multiple of 6"):
        build("msg3d", HAND, blocks=((32, 1),))
    with pytest.raises(ConfigError, match="width = 5 is odd"):
        build("transformer", HAND, width=5)


@pytest.mark.parametrize(
    ("name", "knob", "value"),
    [
        ("bigru", "blocks", ((8, 1),)),
        ("transformer", "temporal_kernel", 3),
        ("bigru", "empty_bodies", "leave_out"),
        ("ctrgcn", "graph", "proper"),
        ("msg3d", "dropout", 0.5),
        ("stgcn", "width", 8),
    ],
)
def test_a_value_that_an_encoder_has_no_use_for_is_refused(name, knob, value):
    with pytest.raises(ConfigError, match=rf"encoder '{name}' has no {knob} \(given: .*training.encoder="):
        build(name, HAND, **{knob: value})


@pytest.mark.parametrize("name", ENCODERS)
def test_a_recipe_builds_every_encoder(name):
    config = EncoderConfig(name=name, **LITTLE[name])
    assert isinstance(checkpoint.build_encoder(config, HAND, 2), type(little(name)))
    with torch.device("meta"):
        assert checkpoint.build_encoder(EncoderConfig(name=name), HAND, 2).dim == build(name, HAND).dim


def test_the_old_name_of_a_value_says_the_new_one():
    with pytest.raises(ValueError, match="skip_empty = True is now empty_bodies = 'leave_out'"):
        EncoderConfig.model_validate({"skip_empty": True})
    with pytest.raises(ValueError, match="skip_empty = False is now empty_bodies = 'compute'"):
        EncoderConfig.model_validate({"skip_empty": False})


@pytest.mark.parametrize("name", ["ctrgcn", "msg3d"])
def test_another_number_of_bodies_than_built_for_is_refused(name):
    with pytest.raises(ConfigError, match="clips of 1 bodies for an encoder built for 2"):
        little(name)(torch.zeros(1, 3, 8, 4, 1))


@pytest.mark.parametrize("name", GRAPHS)
def test_leaving_out_empty_bodies_equals_encoding_only_those_who_are_there(name):
    network = little(name, empty_bodies="leave_out").double().eval()
    x = noise(4, 3, 16, HAND.joints, 2)
    x[1, ..., 1] = 0
    x[2, ..., 0] = 0
    x[3] = 0
    features = network(x)
    plain = little(name, empty_bodies="compute").double().eval()
    plain.load_state_dict(network.state_dict())
    each = [plain.encode(plain._normalised(x, None).view(4, 2, 16, -1, 3)[:, m], None) for m in range(2)]
    torch.testing.assert_close(features[0], (each[0] + each[1])[0] / 2)
    torch.testing.assert_close(features[1], each[0][1])
    # the first body is always encoded, so that a clip of nobody has a feature
    torch.testing.assert_close(features[2], (each[0] + each[1])[2] / 2)
    torch.testing.assert_close(features[3], each[0][3])


def test_bodies_left_out_are_no_part_of_any_statistic():
    network = little("stgcn", empty_bodies="leave_out").double()
    alone = copy.deepcopy(network)
    x = noise(4, 3, 8, HAND.joints, 2)
    x[..., 1] = 0
    torch.testing.assert_close(network(x), alone(x[..., :1]))
    for key, value in alone.state_dict().items():
        torch.testing.assert_close(network.state_dict()[key], value)


def test_graph_encoders_share_the_care_for_bodies():
    assert all(isinstance(little(name), OneByOne) == (name in GRAPHS) for name in ENCODERS)
