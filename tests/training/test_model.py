"""The scale (temperature) of similarities: fixed, learnable, raw."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from c2vl_manifests.recipe_training import Temperature
from c2vl_training.model import LogitScale

# --- temperature -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "scale"), [("fixed", 1 / 0.07), ("learnable", 1 / 0.07), ("raw", -math.log(0.07))])
def test_initial_scale(mode, scale):
    assert LogitScale(Temperature(mode=mode))().item() == pytest.approx(scale)


def test_raw_is_an_effective_temperature_of_0_376():
    assert 1 / LogitScale(Temperature(mode="raw"))().item() == pytest.approx(0.376, abs=5e-4)


@pytest.mark.parametrize(("mode", "count"), [("fixed", 0), ("learnable", 1), ("raw", 1)])
def test_only_free_scales_are_parameters_and_all_are_saved(mode, count):
    module = LogitScale(Temperature(mode=mode))
    assert len(list(module.parameters())) == count
    assert list(module.state_dict()) == ["value"]


@pytest.mark.parametrize("mode", ["learnable", "raw"])
@pytest.mark.parametrize(("pushed", "scale"), [(-50.0, 1.0), (500.0, 100.0)])
def test_scale_stays_in_bounds_and_comes_back(mode, pushed, scale):
    module = LogitScale(Temperature(mode=mode))
    with torch.no_grad():
        module.value.fill_(pushed)
    held = module()
    assert held.item() == pytest.approx(scale, rel=1e-5)
    held.backward()
    assert module.value.grad.item() > 0
    with torch.no_grad():
        module.value -= math.copysign(0.1, pushed) * module.value.grad.sign()
    assert 1.0 < module().item() < 100.0


@pytest.mark.parametrize("wrong", [{"mode": "free"}, {"tau": 7.0}, {"tau": 0.001}])
def test_a_temperature_out_of_bounds_is_no_recipe(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Temperature(**wrong)
