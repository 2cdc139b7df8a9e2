"""What encoders share: bodies, normalisation of the input, empty bodies."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V2
from c2vl_training.encoders import ENCODERS
from c2vl_training.encoders.base import PerBodyEncoder, merge_empty_bodies
from support.encoders import GRAPHS, HAND, little, naive_norm, noise, scrambled, small


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


# --- empty bodies ------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(empty=hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 3))), alike=st.booleans())
@settings(deadline=None)
def test_every_body_is_found_again_and_counted_once(empty, alike):
    rows, copies, place = merge_empty_bodies(torch.from_numpy(empty), alike)
    flat = empty.flatten()
    where = np.arange(flat.size) % empty.shape[1]
    told = len(rows) - len(copies)
    assert told + int(copies.sum()) == flat.size
    assert sorted(rows[:told].tolist()) == np.flatnonzero(~flat).tolist()
    for body, row in enumerate(rows[place].tolist()):
        assert row == body if not flat[body] else flat[row] and (alike or where[row] == where[body])
    assert torch.equal(torch.bincount(place, minlength=len(rows))[told:].float(), copies)


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


@pytest.mark.slow
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
    each = [plain.encode(plain.normalised(x, None).view(4, 2, 16, -1, 3)[:, m], None) for m in range(2)]
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
    assert all(isinstance(little(name), PerBodyEncoder) == (name in GRAPHS) for name in ENCODERS)
