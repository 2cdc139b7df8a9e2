"""Layers shared by encoders against a naive reference."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_training.encoders.layers import MultiScaleTemporal
from support.encoders import naive_temporal, noise, scrambled


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "dilations"), [(1, (1, 2)), (2, (1, 2)), (2, (1, 2, 3, 4))])
def test_multi_scale_temporal_convolution_matches_naive_reference(stride, dilations, training):
    c_out = 2 * (len(dilations) + 2)
    module = scrambled(MultiScaleTemporal(3, c_out, 3, stride, dilations).double()).train(training)
    x = noise(2, 3, 7, 4)
    expected = naive_temporal(module, x.numpy(), stride)
    np.testing.assert_allclose(module(x, None).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
