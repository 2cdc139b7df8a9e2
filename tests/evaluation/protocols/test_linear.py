"""Linear evaluation against autograd, its choice of rate and its stored head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import linear
from c2vl_manifests.recipe import LinearConfig
from c2vl_training import checkpoint
from support.evaluation import evaluated, noisy, table_lines


def by_autograd(
    x: torch.Tensor, y: torch.Tensor, classes: int, lr: float, config: LinearConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The probe as anyone would write it; returns weight (D, C) and bias (C,)."""
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    plan = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(config.milestones), 0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(config.epochs):
        for at in torch.randperm(len(x), generator=generator).split(config.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(layer(x[at]), y[at]).backward()
            optimiser.step()
        plan.step()
    return layer.weight.detach().T, layer.bias.detach()


@pytest.mark.parametrize(
    ("epochs", "batch"), [(1, 64), (6, 64), (6, 20)], ids=["one step", "whole batches", "with a rest"]
)
def test_every_head_of_the_sweep_matches_autograd_and_torchs_sgd(epochs, batch):
    data = noisy(64, 6, 4, 0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    config = LinearConfig(epochs=epochs, batch_size=batch, milestones=(3,))
    lrs = (0.05, 0.5)
    found = linear.fit(x, y, 4, lrs, config, 3)
    assert (found.weight.shape, found.bias.shape) == ((2, 6, 4), (2, 4))
    for head, lr in enumerate(lrs):
        weight, bias = by_autograd(x, y, 4, lr, config)
        torch.testing.assert_close(found.weight[head], weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.bias[head], bias, rtol=1e-5, atol=1e-5)


def test_every_head_of_the_sweep_equals_its_own_run():
    """The last rates are far too high: any difference in rounding would be blown up to the size of the weights."""
    data = noisy(300, 20, 7, 0, 4.0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    config = LinearConfig(epochs=100, batch_size=64, milestones=(80,))
    lrs = (0.01, 0.1, 1.0, 10.0, 30.0)
    together = linear.fit(x, y, 7, lrs, config, 0)
    assert not torch.allclose(together.weight[0], together.weight[2], atol=1e-3)
    for head, lr in enumerate(lrs):
        alone = linear.fit(x, y, 7, (lr,), config, 0)
        size = float(alone.weight.abs().max())
        assert float((together.weight[head] - alone.weight[0]).abs().max()) < 1e-5 * size
        assert float((together.bias[head] - alone.bias[0]).abs().max()) < 1e-5 * size


def test_the_heads_are_seen_after_every_epoch():
    data = noisy(40, 5, 3, 0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    seen = []
    config = LinearConfig(epochs=4, batch_size=16, milestones=(2,))
    last = linear.fit(x, y, 3, (0.1,), config, 0, lambda heads: seen.append(heads.weight.clone()))
    for epochs, weight in enumerate(seen, 1):
        shorter = config.model_copy(update={"epochs": epochs})
        torch.testing.assert_close(weight, linear.fit(x, y, 3, (0.1,), shorter, 0).weight)
    assert len(seen) == 4
    torch.testing.assert_close(seen[-1], last.weight)


def test_the_learning_rate_is_chosen_without_the_test_split():
    train_split, test_split = noisy(120, 8, 4, 0, 2.0), noisy(60, 8, 4, 1, 2.0)
    config = LinearConfig(epochs=8, batch_size=32, milestones=(6,), lrs=(1e-4, 0.1, 30.0))
    honest = linear.probe(train_split, test_split, 4, config)
    permuted = replace(test_split, labels=np.roll(test_split.labels, 7))
    cheated = linear.probe(train_split, permuted, 4, config)
    assert (honest.lr, honest.held_out) == (cheated.lr, cheated.held_out)
    assert honest.logits.argmax(axis=1).tolist() == cheated.logits.argmax(axis=1).tolist()
    assert honest.result().last.top1 != cheated.result().last.top1
    assert honest.result().last.top1 == pytest.approx((honest.logits.argmax(axis=1) == test_split.labels).mean())
    assert honest.result().best.top1 >= honest.result().last.top1


def test_the_best_epoch_is_the_first_best_of_the_recorded_ones():
    train_split, test_split = noisy(120, 8, 4, 0, 2.0), noisy(60, 8, 4, 1, 2.0)
    config = LinearConfig(epochs=12, batch_size=32, milestones=(), lrs=(3.0,))
    reached = []
    for epochs in range(1, 13):
        shorter = config.model_copy(update={"epochs": epochs})
        reached.append(linear.probe(train_split, test_split, 4, shorter).result().last.top1)
    found = linear.probe(train_split, test_split, 4, config)
    assert found.result().best.top1 == max(reached) > found.result().last.top1
    assert found.result().best_epoch == 1 + reached.index(max(reached))
    assert found.held_out is None  # one rate: nothing was swept


def test_the_chosen_rate_is_the_best_on_the_held_out_tenth():
    train_split, test_split = noisy(100, 8, 4, 0, 1.5), noisy(10, 8, 4, 1)
    config = LinearConfig(epochs=3, batch_size=10, milestones=(), lrs=(300.0, 0.1, 100.0))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    x = linear.standard(train_split.values)(train_split.values)
    points, y = torch.from_numpy(x), torch.from_numpy(train_split.labels)
    logits = linear.fit(points[order[10:]], y[order[10:]], 4, config.lrs, config, 5).logits(points[order[:10]])
    held = y[order[:10]]
    losses = [float(torch.nn.functional.cross_entropy(head, held)) for head in logits]
    found = linear.probe(train_split, test_split, 4, config, seed=5)
    assert found.lr == config.lrs[int(np.argmin(losses))] == 0.1
    assert len(set(losses)) > 1
    assert found.held_out == pytest.approx((logits[1].argmax(dim=1) == held).float().mean().item())


def test_separable_data_reach_one_hundred_percent():
    found = linear.probe(noisy(90, 8, 3, 0, 0.05), noisy(60, 8, 3, 1, 0.05), 3, LinearConfig(epochs=20, milestones=()))
    assert (found.history[-1].top1, found.result().best.top1, found.history[-1].balanced, found.held_out) == (
        1.0,
        1.0,
        1.0,
        1.0,
    )


def test_standardise_centres_and_scales_by_the_training_split_alone():
    rng = np.random.default_rng(0)
    one, other = rng.normal(5, 3, (200, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    by = linear.standard(one)
    found, moved = by(one), by(other)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(moved, (other - one.mean(axis=0)) / one.std(axis=0), rtol=1e-4, atol=1e-5)
    assert found.dtype == moved.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1000.1])
def test_constant_features_become_zero_whatever_their_size(value):
    one = np.full((1000, 1), value, np.float32)  # its float32 mean is off in the last digits
    by = linear.standard(one)
    found, moved = by(one), by(one[:5] + np.float32(0.01))
    assert (found == 0).all()
    assert (moved == 0).all()


@pytest.mark.parametrize("damage", ["gone", "cut", "of another encoder"])
def test_a_head_that_is_not_stored_is_trained_again(data, floor, damage):
    subject = EvalContext(floor, data, "xsub", table_lines()[0].recipe, 0)
    evaluated(linear, subject)
    (path,) = (floor / "evaluations").glob("linear-*.safetensors")
    weights = linear.head_of(subject)[0].weight.clone()  # it lies in the file, which is cut in place
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors, _ = checkpoint.load(path)
        checkpoint.save(path, tensors, {"key": "another"})
    assert torch.equal(linear.head_of(subject)[0].weight, weights)
    assert checkpoint.load(path)[1]["key"] == linear._key(subject).text


def test_plain_features_are_left_as_they_are():
    values = np.random.default_rng(0).normal(3, 5, (9, 4)).astype(np.float32)
    assert np.array_equal(linear.standard(values, False)(values), values)
    (line, *_) = table_lines(more=("evaluation.linear.standardise=false",))
    assert line.recipe.evaluation.linear.standardise is False
