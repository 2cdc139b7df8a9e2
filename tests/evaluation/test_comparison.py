"""Paired bootstrap: against a loop that draws samples, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation import comparison
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import knn, linear
from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import evaluated, outcomes
from support.training import recipe, run


def drawn(seed: int, count: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, count, p=[0.6, 0.25, 0.1, 0.05])
    b = rng.random(count) < 0.5
    a = np.where(rng.random(count) < 0.6, b, rng.random(count) < 0.7)
    return a.astype(float), b.astype(float), labels


def recalls(values: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([values[labels == label].mean() for label in np.unique(labels)]))


def test_intervals_match_a_loop_that_draws_samples():
    a, b, labels = drawn(0)
    rng = np.random.default_rng(1)
    top1, balanced = [], []
    for _ in range(4000):
        at = rng.integers(0, len(a), len(a))
        top1.append((a[at] - b[at]).mean())
        balanced.append(recalls(a[at], labels[at]) - recalls(b[at], labels[at]))
    found = comparison.bootstrap(a, b, labels, resamples=20_000)
    for got, loop in zip(found, (top1, balanced), strict=True):
        low, high = np.quantile(loop, [0.025, 0.975])
        width = high - low
        assert abs(got.low - low) < 0.06 * width
        assert abs(got.high - high) < 0.06 * width
    assert (found[0].a, found[0].b) == (pytest.approx(a.mean()), pytest.approx(b.mean()))
    assert (found[1].a, found[1].b) == (pytest.approx(recalls(a, labels)), pytest.approx(recalls(b, labels)))


def test_means_over_draws_are_compared_as_they_are():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 120)
    a, b = rng.integers(0, 6, 120) / 5, rng.integers(0, 4, 120) / 5
    found, _ = comparison.bootstrap(a, b, labels)
    spread = (a - b).std() / np.sqrt(len(a))
    assert found.low == pytest.approx((a - b).mean() - 1.96 * spread, abs=0.2 * spread)
    assert found.high == pytest.approx((a - b).mean() + 1.96 * spread, abs=0.2 * spread)


def test_turned_round_the_interval_is_mirrored():
    a, b, labels = drawn(3)
    one, other = comparison.bootstrap(a, b, labels), comparison.bootstrap(b, a, labels)
    for this, that in zip(one, other, strict=True):
        assert this.low == pytest.approx(-that.high, abs=0.01)
        assert this.high == pytest.approx(-that.low, abs=0.01)


def test_a_class_that_a_resample_lacks_is_left_out_of_its_mean():
    """Of 30 clips of one class A is right, of the one clip of another B: without that clip the difference is whole."""
    labels = np.array([0] * 30 + [1])
    a = (labels == 0).astype(float)
    _, found = comparison.bootstrap(a, 1 - a, labels)
    assert (found.a, found.b) == (0.5, 0.5)
    assert (found.low, found.high) == (0.0, 1.0)


def test_equal_answers_do_not_differ():
    a, _, labels = drawn(4)
    for found in comparison.bootstrap(a, a, labels, resamples=100):
        assert (found.low, found.high) == (0.0, 0.0)


def test_one_in_twenty_intervals_misses_no_difference_at_all():
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(300):
        a, b = (rng.random((2, 200)) < 0.5).astype(float)
        found, _ = comparison.bootstrap(a, b, np.zeros(200, int), resamples=500)
        missed += not found.low <= 0 <= found.high
    assert 3 <= missed <= 32


@pytest.fixture
def pair(data: PackedDataset, tmp_path: Path) -> tuple[EvalContext, EvalContext]:
    found = []
    for seed in (0, 1):
        train(run(data.folder, tmp_path / f"run{seed}", kind="random", seed=seed))
        found.append(EvalContext(tmp_path / f"run{seed}", data, "xsub", recipe("evaluation.linear.epochs=3"), seed))
    return found[0], found[1]


def test_runs_evaluated_alike_are_compared_sample_by_sample(pair):
    one, other = (evaluated(linear, subject) for subject in pair)
    (found,) = comparison.compare(pair[0].run, pair[1].run)
    right = [o.predictions.answers == o.predictions.labels for o in (one, other)]
    assert (found.samples, found.draws, found.setting) == (4, 1, "")
    assert (found.top1.a, found.top1.b) == (one.result.last.top1, other.result.last.top1)
    assert (found.balanced.a, found.balanced.b) == (
        pytest.approx(one.result.last.balanced),
        pytest.approx(other.result.last.balanced),
    )
    assert found.only_a == pytest.approx((right[0] & ~right[1]).mean())
    assert found.only_b == pytest.approx((right[1] & ~right[0]).mean())


def test_draws_of_one_setting_are_one_comparison(pair):
    from c2vl_evaluation.protocols import semi

    for subject in pair:
        some = ("evaluation.linear.epochs=3", "evaluation.semi.shares=[0.5]", "evaluation.semi.encoder=['frozen']")
        list(outcomes(semi, replace(subject, recipe=recipe(*some, "evaluation.semi.draws=3"))))
    found = comparison.compare(pair[0].run, pair[1].run, "semi")
    assert [(c.setting, c.draws) for c in sorted(found, key=lambda c: c.setting)] == [
        ("50 % random, frozen", 3),
        ("50 % stratified, frozen", 3),
    ]


def test_runs_without_a_common_result_say_what_to_run(pair, tmp_path):
    said = "have no linear result of the same data, benchmark and configuration; run `c2vl-eval run linear` on both"
    with pytest.raises(DataError, match=said):
        comparison.compare(pair[0].run, pair[1].run)
    evaluated(linear, pair[0])
    evaluated(linear, replace(pair[1], recipe=recipe("evaluation.linear.epochs=2")))
    evaluated(knn, pair[0])
    with pytest.raises(DataError, match=said):
        comparison.compare(pair[0].run, pair[1].run)
    with pytest.raises(CheckpointError, match=r"nothing/encoder\.safetensors does not exist"):
        comparison.compare(pair[0].run, tmp_path / "nothing")


def altered(run: Path) -> None:
    """Give a run another encoder, as training it again does."""
    found, facts = checkpoint.load(run / checkpoint.ENCODER)
    checkpoint.save(
        run / checkpoint.ENCODER, {k: v + 0.1 if v.is_floating_point() else v for k, v in found.items()}, facts
    )


def test_findings_of_a_former_encoder_do_not_stand_in_the_way(pair):
    evaluated(linear, replace(pair[0], recipe=recipe("evaluation.linear.epochs=2")))
    altered(pair[0].run)
    for subject in pair:
        evaluated(linear, subject)
    (found,) = comparison.compare(pair[0].run, pair[1].run)
    assert found.samples == 4


def test_findings_of_a_former_encoder_alone_are_named_and_the_remedy_helps(pair):
    for subject in pair:
        evaluated(linear, replace(subject, recipe=recipe("evaluation.linear.epochs=2")))
    (path,) = (pair[0].run / "evaluations").glob("linear-*.json")
    altered(pair[0].run)
    with pytest.raises(
        CheckpointError, match=r"of another encoder than the run has now.*; delete these files"
    ) as caught:
        comparison.compare(pair[0].run, pair[1].run)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    path.unlink()
    for subject in pair:
        evaluated(linear, subject)
    assert len(comparison.compare(pair[0].run, pair[1].run)) == 1
