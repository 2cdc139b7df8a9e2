"""The transformer encoder against a naive reference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from c2vl_training.encoders.transformer import positions
from support.encoders import HAND, little, noise, scrambled


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
        scores = np.array([mixed[n, i, :D] @ mixed[n, j, D : 2 * D] for j in range(h.shape[1])]) / math.sqrt(D)
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
