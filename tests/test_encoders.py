"""Encoders: ST-GCN against loops in float64, its invariances, and the published sizes."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_training.encoders import ENCODERS, build
from c2vl_training.encoders.stgcn import FULL, SLIM, STGCN, Block
from c2vl_training.graph import adjacency

SMALL = ((4, 1), (4, 1), (6, 2), (5, 1))
HAND = Layout("hand", ("palm", "thumb", "index", "tip"), (0, 0, 0, 2))


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
    kernel = weight.shape[2]
    steps = (T + stride - 1) // stride
    out = np.zeros((N, weight.shape[0], steps, V))
    for n, o, t, v in np.ndindex(out.shape):
        total = bias[o]
        for c in range(x.shape[1]):
            for k in range(kernel):
                at = t * stride + k - kernel // 2
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


# --- properties --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("layout", [KINECT_V1, KINECT_V2, HAND], ids=lambda layout: layout.name)
def test_output_is_one_vector_of_length_dim_a_clip(name, layout):
    encoder = build(name, layout, bodies=1)
    assert encoder.dim == 256
    assert encoder(torch.randn(2, 3, 8, layout.joints, 1)).shape == (2, 256)


def test_channels_follow_the_layout_unless_given():
    flat = Layout("flat", HAND.names, HAND.parents, dims=2)
    assert small(flat)(torch.randn(2, 2, 8, 4, 1)).shape == (2, 5)
    assert small(flat, channels=6)(torch.randn(2, 6, 8, 4, 1)).shape == (2, 5)


@pytest.mark.parametrize("training", [True, False])
def test_swapping_bodies_changes_nothing(training):
    encoder = scrambled(small().double()).train(training)
    x = torch.randn(3, 3, 8, HAND.joints, 2, dtype=torch.float64)
    torch.testing.assert_close(encoder(x), encoder(x.flip(-1)), rtol=1e-10, atol=1e-10)


def test_permuting_clips_permutes_vectors():
    encoder = scrambled(small().double())
    x = torch.randn(4, 3, 8, HAND.joints, 2, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(x[order]), encoder(x)[order], rtol=1e-10, atol=1e-10)


def test_gradient_reaches_every_parameter():
    encoder = scrambled(small().double())
    x = torch.randn(4, 3, 8, HAND.joints, 2, dtype=torch.float64, requires_grad=True)
    encoder(x).square().sum().backward()
    assert x.grad is not None
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # a constant before a normalisation has a true gradient of zero; its path is open all the same
        cancels = name.endswith(("temporal.bias", "shortcut.0.bias"))
        assert cancels or parameter.grad.abs().max() > 1e-12, name


def test_gradient_matches_finite_differences():
    encoder = scrambled(small(temporal_kernel=3).double())
    x = torch.randn(2, 3, 3, HAND.joints, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder, (x,), eps=1e-7, atol=1e-4, rtol=1e-3)


def test_input_is_left_as_it_was():
    x = torch.randn(2, 3, 8, HAND.joints, 2)
    before = x.clone()
    small()(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_dropout_acts_in_training_only_and_not_in_the_first_block():
    encoder = small(dropout=0.5)
    assert [block.dropout.p for block in encoder.blocks] == [0.0, 0.5, 0.5, 0.5]
    x = torch.randn(2, 3, 8, HAND.joints, 1)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))


def test_bfloat16_autocast_stays_near_float32():
    encoder = small().eval()
    x = torch.randn(2, 3, 8, HAND.joints, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(x)
    torch.testing.assert_close(half.float(), encoder(x), rtol=0.1, atol=0.05)


def test_graph_is_not_a_weight():
    assert not any("graph" in key for key in small().state_dict())


# --- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "parameters", "macs"),
    [("stgcn", 64, 3.10e6, 3.65e9), ("stgcn_slim", 50, 0.84e6, 0.61e9)],
)
def test_sizes_are_the_published_ones(name, frames, parameters, macs):
    """Published counts include a head for 60 classes; summing over neighbours first saves 1-3 % of MACs."""
    encoder = build(name, KINECT_V2).eval()
    head = encoder.dim * 60 + 60
    assert sum(p.numel() for p in encoder.parameters()) + head == pytest.approx(parameters, rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, frames, 25, 2))
    assert 0.97 * macs <= counter.get_total_flops() / 2 <= macs


def test_parameters_of_the_full_encoder_alone():
    encoder = build("stgcn", KINECT_V2)
    assert sum(p.numel() for p in encoder.parameters()) == 3_083_412


@pytest.mark.parametrize("blocks", [FULL, SLIM])
def test_ten_blocks_with_stride_at_five_and_eight(blocks):
    assert [stride for _, stride in blocks] == [1, 1, 1, 1, 2, 1, 1, 2, 1, 1]


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


def test_skipping_empty_bodies_equals_encoding_only_those_who_are_there() -> None:
    torch.manual_seed(0)
    network = build("stgcn", KINECT_V2, blocks=[(8, 1), (8, 2)], skip_empty=True).double().eval()
    clips = torch.randn(4, 3, 16, 25, 2, dtype=torch.float64)
    clips[1, ..., 1] = 0
    clips[2, ..., 0] = 0
    clips[3] = 0
    features = network(clips)
    alone = build("stgcn", KINECT_V2, blocks=[(8, 1), (8, 2)]).double().eval()
    alone.load_state_dict(network.state_dict())
    torch.testing.assert_close(features[0], alone(clips[:1])[0])
    torch.testing.assert_close(features[1], alone(clips[1:2, ..., :1])[0])
    # the first body is always encoded, so that a clip of nobody has a feature
    torch.testing.assert_close(features[2], alone(clips[2:3])[0])
    torch.testing.assert_close(features[3], alone(clips[3:, ..., :1])[0])
