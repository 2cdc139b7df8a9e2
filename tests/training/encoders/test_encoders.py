"""All encoders: shapes, invariances, published sizes, options."""

from __future__ import annotations

import copy

import pytest
import torch

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_manifests.recipe_training import EncoderConfig
from c2vl_training import encoders
from c2vl_training.encoders import ENCODERS, build, count, ctrgcn
from c2vl_training.encoders.batchnorm import BatchNorm
from c2vl_training.encoders.stgcn import STGCN
from support.encoders import GRAPHS, HAND, LITTLE, SMALL, little, noise, scrambled, small
from support.layouts import EACH

FLAT = Layout("flat17", tuple(f"j{j}" for j in range(17)), tuple(max(0, j - 1 - j % 3) for j in range(17)), 2)
MANY = Layout("many33", tuple(f"j{j}" for j in range(33)), tuple(max(0, j - 1 - j % 2) for j in range(33)))


def unfilled(name, layout, **options):
    """Full size, without memory for the weights."""
    with torch.device("meta"):
        return build(name, layout, **options)


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
    "msg3d": ("conv.bias", "squeeze.bias", "single.bias", "join.bias", *(f"convs.{i}.bias" for i in range(4))),
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
        assert key.endswith(CANCELS.get(name, ())) or parameter.grad.abs().max() > 1e-12, key


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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters", "macs"), [("bigru", 45.0e6, 2.88e9), ("transformer", 17.2e6, 0.99e9)])
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


@pytest.mark.slow
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


# --- messages ----------------------------------------------------------------------------------------------


def test_unknown_name_is_told_the_nearest_and_all():
    with pytest.raises(
        ConfigError, match=r"unknown encoder 'stgnc'; did you mean 'stgcn'\? use one of stgcn, stgcn_slim"
    ):
        build("stgnc", KINECT_V2)
    with pytest.raises(ConfigError, match="unknown encoder 'resnet'; use one of"):
        build("resnet", KINECT_V2)


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="without blocks"):
        build("stgcn", KINECT_V2, blocks=())
    with pytest.raises(ConfigError, match="temporal_kernel = 4 is even"):
        STGCN(HAND, blocks=SMALL, graph="proper", temporal_kernel=4)
    for name in GRAPHS:
        with pytest.raises(ConfigError, match="without blocks"):
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
    config = EncoderConfig(name=name, **LITTLE.get(name, {}))
    assert isinstance(encoders.build_encoder(config, HAND, 2), type(little(name)))
    with torch.device("meta"):
        assert encoders.build_encoder(EncoderConfig(name=name), HAND, 2).dim == build(name, HAND).dim


@pytest.mark.slow
@EACH
def test_every_encoder_builds_for_every_layout(layout: Layout) -> None:
    x = torch.zeros(1, layout.dims, 16, layout.joints, 1)
    for name in ("stgcn_slim", "bigru"):
        assert torch.isfinite(build(name, layout, bodies=1).eval()(x)).all()
