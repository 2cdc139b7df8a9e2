"""BiGRU against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from support.encoders import HAND, little, naive_norm, noise, scrambled


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
