"""Schedules: end points, monotony, warm-up and milestones."""

from __future__ import annotations

import itertools
import math

import pytest

from c2vl_manifests.recipe_training import Optimiser
from c2vl_manifests.targets import Constant, Cosine, Hard, Inter, Partition
from c2vl_training.schedule import alpha, hard_share, learning_rate, of_epoch


@pytest.mark.parametrize("epochs", [2, 3, 7, 150])
def test_cosine_alpha_has_exact_ends_and_falls(epochs):
    values = [alpha(Cosine(), epoch, epochs) for epoch in range(epochs)]
    assert values[0] == 0.9
    assert values[-1] == 0.1
    assert all(a > b for a, b in itertools.pairwise(values))


def test_cosine_alpha_is_half_a_cosine():
    values = [alpha(Cosine(), epoch, 11) for epoch in range(11)]
    assert values == pytest.approx([0.5 + 0.4 * math.cos(math.pi * epoch / 10) for epoch in range(11)])


def test_alpha_of_a_run_of_one_epoch_is_the_start_and_after_the_last_epoch_the_end():
    assert alpha(Cosine(), 0, 1) == 0.9
    assert alpha(Cosine(), 200, 150) == 0.1


def test_constant_alpha_is_its_value_throughout():
    assert {alpha(Constant(value=0.4), epoch, 20) for epoch in range(20)} == {0.4}


def test_a_linear_soft_share_is_ps_kds():
    targets = Inter(inter_hard=0.2, inter_hard_schedule="linear")
    assert [1 - hard_share(targets, t - 1, 8) for t in range(1, 9)] == pytest.approx([0.8 * t / 8 for t in range(1, 9)])
    assert hard_share(targets, 20, 8) == hard_share(targets, 7, 8)
    assert {hard_share(Inter(inter_hard=0.2), epoch, 8) for epoch in range(8)} == {0.2}


def test_targets_of_an_epoch_have_its_numbers():
    targets, share = of_epoch(Partition(inter_hard=0.5, inter_hard_schedule="linear"), 0, 4)
    assert (targets.inter_hard, share) == (pytest.approx(0.875), 0.9)
    assert of_epoch(Partition(), 3, 4) == (Partition(), 0.1)
    assert of_epoch(Hard(), 3, 4) == (Hard(), 1.0)


def test_learning_rate_of_the_paper():
    o = Optimiser(warmup_epochs=5, milestones=(130, 140))
    rates = [learning_rate(epoch, 1, o) for epoch in range(150)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:130] == [0.1] * 125
    assert rates[130:140] == pytest.approx([0.01] * 10)
    assert rates[140:] == pytest.approx([0.001] * 10)


def test_no_warmup_begins_at_the_base():
    assert learning_rate(0, 10, Optimiser(lr=0.3, warmup_epochs=0)) == 0.3


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_every_epoch_ends_with_the_same_rate_however_many_steps_it_has(steps):
    o = Optimiser(warmup_epochs=4, milestones=(8, 6), gamma=0.5)
    for epoch in range(10):
        last = (epoch + 1) * steps - 1
        assert learning_rate(last, steps, o) == pytest.approx(learning_rate(epoch, 1, o))


def test_warmup_rises_by_equal_amounts_from_above_zero():
    rates = [learning_rate(step, 10, Optimiser(lr=1.0, warmup_epochs=2)) for step in range(25)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20:] == [1.0] * 5
