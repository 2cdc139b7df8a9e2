"""Schedules: end points, monotony, and the whole-epoch rate as a special case of the stepwise one."""

from __future__ import annotations

import itertools
import math

import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_training.schedule import alpha, learning_rate, learning_rate_at


@pytest.mark.parametrize("epochs", [2, 3, 7, 150])
def test_cosine_alpha_has_exact_ends_and_falls(epochs):
    values = [alpha(epoch, epochs) for epoch in range(epochs)]
    assert values[0] == 0.9
    assert values[-1] == 0.1
    assert all(a > b for a, b in itertools.pairwise(values))


def test_cosine_alpha_is_half_a_cosine():
    assert alpha(5, 11) == pytest.approx(0.5)
    for epoch in range(11):
        assert alpha(epoch, 11) == pytest.approx(0.5 + 0.4 * math.cos(math.pi * epoch / 10))
        assert alpha(epoch, 11) + alpha(10 - epoch, 11) == pytest.approx(1.0)


def test_alpha_of_a_run_of_one_epoch_is_the_start():
    assert alpha(0, 1) == 0.9


def test_alpha_after_the_last_epoch_keeps_the_end():
    assert alpha(200, 150) == 0.1


def test_constant_alpha_is_the_start_throughout():
    assert {alpha(epoch, 20, start=0.5, kind="constant") for epoch in range(20)} == {0.5}


def test_unknown_alpha_schedule_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown alpha schedule 'linear'; use one of cosine, constant"):
        alpha(0, 10, kind="linear")


def test_learning_rate_of_the_paper():
    rates = [learning_rate(epoch, 0.1, warmup=5, milestones=(130, 140)) for epoch in range(150)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:130] == [0.1] * 125
    assert rates[130:140] == pytest.approx([0.01] * 10)
    assert rates[140:] == pytest.approx([0.001] * 10)


def test_no_warmup_begins_at_the_base():
    assert learning_rate(0, 0.3) == 0.3


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_stepwise_rate_meets_the_whole_epoch_rate_at_the_end_of_every_epoch(steps):
    numbers = {"base": 0.1, "warmup": 4, "milestones": (8, 6), "gamma": 0.5}
    for epoch in range(10):
        last = (epoch + 1) * steps - 1
        assert learning_rate_at(last, steps, **numbers) == pytest.approx(learning_rate(epoch, **numbers))


def test_stepwise_warmup_rises_by_equal_amounts_from_above_zero():
    rates = [learning_rate_at(step, 10, 1.0, warmup=2) for step in range(25)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20:] == [1.0] * 5
