"""Ideas beyond the paper, each against loops in float64, and their properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_training import beyond
from c2vl_training.objective import cross_entropy


def unit(B: int, D: int = 5, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def test_prompts_are_equal_up_to_the_rounding_of_half_precision_and_no_further() -> None:
    X = F.normalize(torch.randn(6, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    X[4] = X[1]
    same = beyond.equal_prompts(X, F.normalize(X.half().float(), dim=1))
    expected = torch.eye(6, dtype=torch.bool)
    expected[1, 4] = expected[4, 1] = True
    assert torch.equal(same, expected)
    near = F.normalize(X + 0.05 * F.normalize(torch.randn(6, 64), dim=1), dim=1)  # cosine 0.999
    assert not beyond.equal_prompts(X, near).any()


def test_pairs_share_a_row_evenly_and_are_the_identity_without_repeats() -> None:
    assert torch.equal(beyond.pair_target(torch.eye(3, dtype=torch.bool)), torch.eye(3))
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    assert beyond.pair_target(same).tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]


def test_a_target_that_lies_on_hidden_keys_alone_is_hard() -> None:
    P, hidden = torch.tensor([[0.0, 1, 0], [0.2, 0.5, 0.3]]), torch.tensor([[0, 1, 0], [1, 0, 0]]).bool()
    found = beyond.without(P, hidden, torch.eye(3)[:2])
    torch.testing.assert_close(found, torch.tensor([[1.0, 0, 0], [0, 0.625, 0.375]]))


def test_a_teacher_that_knows_nothing_leaves_hard_targets_and_one_that_knows_all_its_own() -> None:
    P, eye = torch.softmax(unit(6, 6), dim=1), torch.eye(6, dtype=torch.float64)
    assert torch.equal(beyond.hard_where_unknown(P, torch.zeros(6).bool(), eye), eye)
    torch.testing.assert_close(beyond.hard_where_unknown(P, torch.ones(6).bool(), eye), P)
    some = beyond.hard_where_unknown(P, torch.arange(6) != 2, eye)
    torch.testing.assert_close(some.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(some[2], eye[2])
    assert not some[[0, 1, 3, 4, 5], 2].any()


def test_negatives_of_other_samples_only_raise_the_loss_and_hidden_ones_do_nothing() -> None:
    S, V, others = unit(6), unit(6, seed=1), unit(9, seed=2)
    P = torch.eye(6, dtype=torch.float64)
    alone = cross_entropy(P, beyond.scores(S, V), 0.1)
    assert cross_entropy(P, beyond.scores(S, V, None, others), 0.1) > alone
    nothing = beyond.scores(S, V, None, others, torch.ones(6, 9).bool())
    torch.testing.assert_close(cross_entropy(P, nothing, 0.1), alone, rtol=1e-14, atol=0)


def test_the_batch_and_the_rest_of_all_samples_are_all_samples() -> None:
    """A batch of them all has the same loss as a part of it that meets the others as further negatives."""
    S, V = unit(8), unit(8, seed=1)
    places = torch.tensor([5, 2, 7])
    hidden = torch.zeros(3, 8, dtype=torch.bool)
    hidden[:, places] = True
    found = cross_entropy(torch.eye(3).double(), beyond.scores(S[places], V[places], None, V, hidden), 0.1)
    torch.testing.assert_close(found, F.cross_entropy(S[places] @ V.T / 0.1, places))


def test_the_contrast_of_views_matches_a_loop_over_simclrs_equation() -> None:
    A, B, tau = unit(5), unit(5, seed=1), 0.3
    both = [*A.tolist(), *B.tolist()]
    expected = 0.0
    for i in range(10):
        powers = {k: math.exp(dot(both[i], both[k]) / tau) for k in range(10) if k != i}
        expected -= math.log(powers[(i + 5) % 10] / sum(powers.values())) / 10
    assert beyond.view_contrast(A, B, tau).item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(beyond.view_contrast(A, B, tau), beyond.view_contrast(B, A, tau))


def test_the_contrast_of_views_is_least_where_they_agree_and_samples_differ() -> None:
    apart = torch.eye(4, dtype=torch.float64)
    assert beyond.view_contrast(apart, apart, 0.1) < 1e-3 < beyond.view_contrast(apart, apart.roll(1, 0), 0.1)


def test_a_sigmoid_with_a_large_negative_bias_starts_at_the_cost_of_the_positives() -> None:
    """The reason for the bias of -10: among B^2 pairs nearly all are negatives, which then cost nothing."""
    eye = torch.eye(50, dtype=torch.bool)
    logits = 10 * unit(50, 40) @ unit(50, 40, seed=1).T - 10
    found = beyond.sigmoid_loss(logits, eye, eye & False)
    positives = F.softplus(-logits.diagonal()).mean()
    assert positives < found < positives + 1


def test_gradients_match_finite_differences() -> None:
    A, B, C = (unit(4, seed=seed).requires_grad_() for seed in range(3))
    hidden = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    assert torch.autograd.gradcheck(lambda a, b: beyond.view_contrast(a, b, 0.3), (A, B))
    assert torch.autograd.gradcheck(
        lambda a, b, c: cross_entropy(torch.eye(4).double(), beyond.scores(a, b, None, c, hidden), 0.3), (A, B, C)
    )
    assert torch.autograd.gradcheck(
        lambda a, b: beyond.sigmoid_loss(a @ b.T, torch.eye(4, dtype=torch.bool), hidden), (A, B)
    )
