"""Objective: every equation against loops in float64, and the properties the text claims."""

from __future__ import annotations

import doctest
import math

import pytest
import torch
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.recipe_training import Temperature
from c2vl_manifests.targets import Blend, Hard, Inter, Intra, Partition, Sigmoid
from c2vl_training import objective
from c2vl_training.model import LogitScale
from c2vl_training.objective import (
    Prompts,
    Side,
    alignment,
    cross_entropy,
    inter_scores,
    inter_target,
    intra_target,
    mean_similarity,
    row_softmax,
    target_pair,
)

TAU = 0.2
KINDS = ["hard", "intra", "inter", "blend", "partition"]
VARIANTS = [
    Hard(),
    Intra(),
    Intra(beta=0.6, temperature=0.1),
    Inter(),
    Inter(inter_hard=0.5, average=True),
    Blend(temperature=0.3),
    Partition(),
    Partition(beta=0.4, inter_hard=0.3, temperature=0.5, average=True),
]


CLASSES = {one.model_fields["kind"].default: one for one in (Hard, Intra, Inter, Blend, Partition)}


def of_kind(kind, **more):
    """Build the targets of a kind."""
    return CLASSES[kind](**more)


def infonce(S, V, tau):
    """Hard alignment in both directions, H(I, row_softmax(S V^T)) + H(I, row_softmax(V S^T)) (Eq. 1-3)."""
    eye = torch.eye(len(S), dtype=S.dtype)
    return cross_entropy(eye, S @ V.T, tau) + cross_entropy(eye, V @ S.T, tau)


def embeddings(count=3, B=7, D=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=1).to(dtype) for _ in range(count)
    )


def loss(S, V, L, *, scale_v, scale_l, teacher=None, **more):
    """Return the loss of Eq. 11 for (S, V, L); None where that knowledge is not used."""
    guide = teacher or (None, None, None)
    sides = {
        kind: Side(S, K, scale, teacher and (guide[0], G))
        for kind, K, scale, G in (("vision", V, scale_v, guide[1]), ("language", L, scale_l, guide[2]))
        if K is not None
    }
    return objective.loss(sides, **more)


def total(S, V, L, targets, alpha=0.5, tau=TAU, **more):
    return loss(S, V, L, targets=targets, alpha=alpha, scale_v=1 / tau, scale_l=1 / tau, **more).total


# --- naive reference: lists of numbers and loops -----------------------------------------------------------


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def naive_softmax(row, tau):
    powers = [math.exp(score / tau) for score in row]
    return [power / sum(powers) for power in powers]


def naive_intra(X, tau, beta):
    rows = [naive_softmax([dot(x, y) for y in X], tau) for x in X]
    return [[beta * p + (1 - beta) * (i == j) for j, p in enumerate(row)] for i, row in enumerate(rows)]


def naive_inter(queries, keys, tau, hard, average):
    """Row i supervises query i. Its first term is swapped: it scores key i against every query."""
    Q = []
    for i in range(len(queries)):
        row = []
        for j in range(len(queries)):
            score = dot(keys[i], queries[j]) + dot(queries[i], keys[i]) + dot(keys[j], queries[j])
            row.append(score / 3 if average else score)
        Q.append([(1 - hard) * q + hard * (i == j) for j, q in enumerate(naive_softmax(row, tau))])
    return Q


def naive_entropy(target, queries, keys, rows, tau):
    terms = []
    for i in rows:
        predicted = naive_softmax([dot(queries[i], key) for key in keys], tau)
        terms.append(-sum(p * math.log(q) for p, q in zip(target[i], predicted, strict=True)))
    return sum(terms) / len(terms) if terms else 0.0


def naive_side(S, V, targets, alpha, tau, teacher):
    tS, tV = teacher
    B = len(S)
    t = Partition().model_copy(update=dict(targets))  # with the numbers that its kind does not have
    own = t.temperature or tau
    eye = [[float(i == j) for j in range(B)] for i in range(B)]
    built = {
        "hard": (eye, eye),
        "intra": (naive_intra(tS, own, t.beta), naive_intra(tV, own, t.beta)),
        "inter": (naive_inter(tS, tV, own, t.inter_hard, t.average), naive_inter(tV, tS, own, t.inter_hard, t.average)),
    }
    n = math.floor(alpha * B)
    plan = {
        "blend": [("intra", alpha, range(B)), ("inter", 1 - alpha, range(B))],
        "partition": [("intra", alpha, range(n)), ("inter", 1 - alpha, range(n, B))],
    }.get(targets.kind, [(targets.kind, 1.0, range(B))])
    return sum(
        weight * (naive_entropy(built[name][0], S, V, rows, tau) + naive_entropy(built[name][1], V, S, rows, tau))
        for name, weight, rows in plan
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("targets", VARIANTS, ids=str)
@pytest.mark.parametrize("own_teacher", [True, False])
def test_matches_naive_reference(targets, alpha, own_teacher):
    S, V, L = embeddings()
    teacher = (S, V, L) if own_teacher else embeddings(seed=1)
    found = loss(
        S, V, L, targets=targets, alpha=alpha, scale_v=1 / 0.2, scale_l=1 / 0.4,
        teacher=None if own_teacher else teacher,
    )  # fmt: skip
    s, v, l, ts, tv, tl = (x.tolist() for x in (S, V, L, *teacher))  # noqa: E741
    expected = naive_side(s, v, targets, alpha, 0.2, (ts, tv)) + naive_side(s, l, targets, alpha, 0.4, (ts, tl))
    assert found.total.item() == pytest.approx(expected, rel=1e-10)


def test_equations_match_naive_reference():
    S, V = embeddings(2)
    s, v = S.tolist(), V.tolist()
    close = {"rtol": 1e-10, "atol": 1e-12}
    reference = lambda rows: torch.tensor(rows, dtype=torch.float64)  # noqa: E731
    torch.testing.assert_close(
        row_softmax(S @ V.T, TAU), reference([naive_softmax([dot(x, y) for y in v], TAU) for x in s]), **close
    )
    torch.testing.assert_close(intra_target(V, TAU, 0.2), reference(naive_intra(v, TAU, 0.2)), **close)
    torch.testing.assert_close(inter_target(S, V, TAU), reference(naive_inter(v, s, TAU, 0.0, False)), **close)
    torch.testing.assert_close(inter_target(V, S, TAU), reference(naive_inter(s, v, TAU, 0.0, False)), **close)


# --- what the paper does not have: equal prompts, further negatives, a teacher with gaps --------------------

SAME = [0, 1, 0, 2, 3, 2, 0]  # samples with equal numbers have the same prompt
KNOWN = [True, True, False, True, True, True, False]


def naive_settled(P, i, known, repeats):
    """One row of a target: what is unknown goes to the pair, repeats of the prompt are shared out or left out."""
    alike = [SAME[j] == SAME[i] for j in range(7)]
    pair = [a / sum(alike) for a in alike] if repeats == "positives" else [float(i == j) for j in range(7)]
    kept = [p if known[i] and known[j] else 0.0 for j, p in enumerate(P(pair))]
    row = [k + (1 - sum(kept)) * p for k, p in zip(kept, pair, strict=True)]
    if repeats == "ignored":
        row = [p if j == i or not alike[j] else 0.0 for j, p in enumerate(row)]
    return [p / sum(row) for p in row]


def naive_extended(S, V, tS, tV, targets, alpha, tau, repeats, others, hidden, known):
    """Return the sums of both directions over brackets, key by key."""
    t = Partition().model_copy(update=dict(targets))
    soft = {
        "intra": [naive_intra(X, tau, 1.0) for X in (tS, tV)],
        "inter": [naive_inter(tS, tV, tau, 0.0, False), naive_inter(tV, tS, tau, 0.0, False)],
    }
    shares = {"hard": 0.0, "intra": t.beta, "inter": 1 - t.inter_hard}
    n = math.floor(alpha * 7)
    plan = {"partition": [("intra", alpha, range(n)), ("inter", 1 - alpha, range(n, 7))]}.get(
        targets.kind, [(targets.kind, 1.0, range(7))]
    )
    total = 0.0
    for name, weight, rows in plan:
        for direction, (queries, keys) in enumerate(((S, V), (V, S))):
            for i in rows:
                row = soft.get(name, soft["intra"])[direction][i]
                mix = lambda pair, row=row, name=name: [  # noqa: E731
                    shares[name] * q + (1 - shares[name]) * p for q, p in zip(row, pair, strict=True)
                ]
                target = naive_settled(mix, i, known if name != "hard" else [True] * 7, repeats)
                met = [j for j in range(7) if repeats != "ignored" or j == i or SAME[j] != SAME[i]]
                further = [n for n in range(len(others)) if not hidden[i][n]] if direction == 0 else []
                scores = {j: dot(queries[i], keys[j]) / tau for j in met}
                bottom = sum(math.exp(x) for x in scores.values())
                bottom += sum(math.exp(dot(queries[i], others[n]) / tau) for n in further)
                total += weight / len(rows) * sum(target[j] * (math.log(bottom) - scores[j]) for j in met)
    return total


@pytest.mark.parametrize("directions", ["sum", "mean"])
@pytest.mark.parametrize("repeats", ["negatives", "ignored", "positives"])
@pytest.mark.parametrize("targets", [Hard(), Intra(), Inter(inter_hard=0.2), Partition(inter_hard=0.3)], ids=str)
def test_readings_and_ideas_match_naive_reference_together(targets, repeats, directions):
    (S, V), (tS, tV), (others,) = embeddings(2), embeddings(2, seed=1), embeddings(1, B=9, seed=2)
    hidden = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.4
    same = torch.tensor([[a == b for b in SAME] for a in SAME])
    prompts = Prompts(None if repeats == "negatives" else same, repeats == "positives", others, hidden)
    side = Side(S, V, 1 / TAU, (tS, tV), torch.tensor(KNOWN), prompts)
    found = objective.loss({"vision": side}, targets=targets, alpha=0.5, directions=directions).total
    lists = [X.tolist() for X in (S, V, tS, tV)]
    expected = naive_extended(*lists, targets, 0.5, TAU, repeats, others.tolist(), hidden.tolist(), KNOWN)
    assert found.item() == pytest.approx(expected / (2 if directions == "mean" else 1), rel=1e-10)


@pytest.mark.parametrize("repeats", ["negatives", "ignored", "positives"])
def test_sigmoid_matches_naive_reference(repeats):
    (S, V), (others,) = embeddings(2), embeddings(1, B=9, seed=2)
    hidden = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.4
    same = torch.tensor([[a == b for b in SAME] for a in SAME])
    prompts = Prompts(None if repeats == "negatives" else same, repeats == "positives", others, hidden, bias=-2.0)
    found = objective.loss({"language": Side(S, V, 1 / TAU, prompts=prompts)}, targets=Sigmoid(), alpha=1.0)
    s, v, o = (X.tolist() for X in (S, V, others))
    expected = 0.0
    for i in range(7):
        for j in range(7):
            alike = i != j and SAME[i] == SAME[j]
            if alike and repeats == "ignored":
                continue
            z = 1 if i == j or (alike and repeats == "positives") else -1
            expected += math.log(1 + math.exp(-z * (dot(s[i], v[j]) / TAU - 2.0))) / 7
        expected += sum(math.log(1 + math.exp(dot(s[i], o[n]) / TAU - 2.0)) / 7 for n in range(9) if not hidden[i, n])
    assert found.total.item() == pytest.approx(expected, rel=1e-10)
    assert found.parts.keys() == {"s2l/sigmoid"}


def test_sides_may_have_skeletons_of_their_own():
    S, V, L, other = embeddings(4)
    sides = {"vision": Side(S, V, 1 / TAU), "language": Side(other, L, 1 / TAU)}
    found = objective.loss(sides, targets=Partition(), alpha=0.5).total
    torch.testing.assert_close(found, total(S, V, None, Partition()) + total(other, None, L, Partition()))


# --- softmax, cross-entropy, InfoNCE -----------------------------------------------------------------------


def test_infonce_equals_torch_cross_entropy():
    S, V = embeddings(2)
    classes = torch.arange(len(S))
    logits = S @ V.T / TAU
    expected = F.cross_entropy(logits, classes) + F.cross_entropy(logits.T, classes)
    torch.testing.assert_close(infonce(S, V, TAU), expected)


def test_hard_loss_equals_infonce_of_both_knowledges():
    S, V, L = embeddings()
    torch.testing.assert_close(total(S, V, L, Hard()), infonce(S, V, TAU) + infonce(S, L, TAU))


def test_infonce_of_equal_embeddings_is_twice_log_of_the_batch():
    S = embeddings(1, B=1)[0].expand(6, -1)
    assert infonce(S, S, TAU).item() == pytest.approx(2 * math.log(6))


def test_cross_entropy_of_no_rows_is_zero_and_differentiable():
    S, V = (X.requires_grad_() for X in embeddings(2))
    nothing = cross_entropy(torch.eye(7)[:0], S[:0] @ V.T, TAU)
    nothing.backward()
    assert nothing.item() == 0.0
    assert not S.grad.any()


def test_cross_entropy_is_least_at_its_own_target():
    scores = embeddings(1, B=4, D=4)[0]
    P = row_softmax(scores, TAU)
    least = cross_entropy(P, scores, TAU)
    torch.testing.assert_close(least, -(P * P.log()).sum(1).mean())
    for seed in range(5):
        assert cross_entropy(P, scores + 0.1 * embeddings(1, B=4, D=4, seed=seed)[0], TAU) > least


def test_cross_entropy_survives_large_scores():
    scores = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.isfinite(cross_entropy(torch.full((2, 2), 0.5), scores, 1e-3))


# --- targets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", VARIANTS, ids=str)
def test_rows_sum_to_one_and_are_not_negative(targets):
    both = ("intra", "inter")
    for name in {"blend": both, "partition": both}.get(targets.kind, (targets.kind,)):
        for P in target_pair(name, Side(*embeddings(2), 1 / TAU), targets):
            torch.testing.assert_close(P.sum(dim=1), torch.ones(7, dtype=torch.float64))
            assert (P >= 0).all()


def test_intra_target_comes_from_the_querys_own_modality():
    S, V = embeddings(2)
    P_s2v, P_v2s = target_pair("intra", Side(S, V, 1 / TAU), Intra())
    torch.testing.assert_close(P_s2v, 0.2 * torch.softmax(S @ S.T / TAU, 1) + 0.8 * torch.eye(7))
    torch.testing.assert_close(P_v2s, 0.2 * torch.softmax(V @ V.T / TAU, 1) + 0.8 * torch.eye(7))


def test_beta_zero_is_hard():
    S, V, L = embeddings()
    torch.testing.assert_close(total(S, V, L, Intra(beta=0.0)), total(S, V, L, Hard()))


def test_inter_scores_are_the_printed_product_with_diagonals():
    S, V = embeddings(2)
    eye, J = torch.eye(7, dtype=torch.float64), torch.ones(7, 7, dtype=torch.float64)
    printed = S @ V.T + (eye * (V @ S.T)) @ J + J @ ((S @ V.T) * eye)
    torch.testing.assert_close(inter_scores(S, V), printed)


def test_row_constant_term_of_eq_7_cancels_in_the_softmax():
    S, V = embeddings(2)
    sound = (S * V).sum(dim=1)
    torch.testing.assert_close(inter_target(S, V, TAU), row_softmax(S @ V.T + sound[None, :], TAU))


def test_column_term_of_eq_7_does_not_cancel():
    S, V = embeddings(2)
    assert not torch.allclose(inter_target(S, V, TAU), row_softmax(S @ V.T, TAU))


def test_inter_target_is_the_swapped_prediction():
    """Row i for query v_i holds the scores of s_i: with all pairs equally sound it is row_softmax(S V^T)."""
    generator = torch.Generator().manual_seed(5)
    S = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    V = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    V = V - ((S * V).sum(1, keepdim=True) - 0.3) * S / S.square().sum(1, keepdim=True)
    Q_s2v, Q_v2s = target_pair("inter", Side(S, V, 1 / TAU), Inter())
    torch.testing.assert_close(Q_v2s, row_softmax(S @ V.T, TAU))
    torch.testing.assert_close(Q_s2v, row_softmax(V @ S.T, TAU))


def test_unsound_pairs_lose_weight_as_keys_and_to_their_negatives():
    S = torch.eye(3, 6, dtype=torch.float64)
    V = torch.diag_embed(torch.tensor([0.9, 0.9, 0.1], dtype=torch.float64)) @ S
    V = V + (1 - V.square().sum(1, keepdim=True)).sqrt() * torch.eye(6, dtype=torch.float64)[3:]
    Q = inter_target(S, V, TAU)
    assert Q[0, 1] > Q[0, 2]
    assert Q[2, 0] > Q[2, 2]
    assert Q[0, 0] > Q[0, 1]


def test_average_is_a_threefold_temperature():
    S, V = embeddings(2)
    torch.testing.assert_close(inter_target(S, V, TAU, average=True), inter_target(S, V, 3 * TAU))


def test_inter_hard_of_one_is_hard():
    S, V, L = embeddings()
    torch.testing.assert_close(total(S, V, L, Inter(inter_hard=1.0)), total(S, V, L, Hard()))


def test_target_temperature_defaults_to_the_students():
    S, V, L = embeddings()
    for kind in KINDS[1:]:
        torch.testing.assert_close(
            total(S, V, L, of_kind(kind)), total(S, V, L, of_kind(kind, temperature=TAU)), rtol=1e-12, atol=0
        )


# --- alpha -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blend", "partition"])
@pytest.mark.parametrize(("alpha", "alone"), [(1.0, "intra"), (0.0, "inter")])
def test_ends_of_alpha_are_one_target_only(kind, alpha, alone):
    S, V, L = embeddings()
    found = loss(S, V, L, targets=of_kind(kind), alpha=alpha, scale_v=5.0, scale_l=5.0)
    torch.testing.assert_close(found.total, total(S, V, L, of_kind(alone)))
    if kind == "partition":
        other = {"intra": "inter", "inter": "intra"}[alone]
        assert found.parts[f"s2v/{other}"] == 0.0


@pytest.mark.parametrize(
    ("alpha", "B", "first"), [(0.9, 7, 6), (0.5, 7, 3), (0.1, 7, 0), (0.29, 100, 29), (0.7, 10, 7), (0.57, 100, 57)]
)
def test_partition_gives_the_first_floor_of_alpha_b_rows_to_p(alpha, B, first):
    S, V = embeddings(2, B=B)
    P, Q = (target_pair(name, Side(S, V, 1 / TAU), Partition()) for name in ("intra", "inter"))
    expected = alpha * (
        cross_entropy(P[0][:first], S[:first] @ V.T, TAU) + cross_entropy(P[1][:first], V[:first] @ S.T, TAU)
    ) + (1 - alpha) * (
        cross_entropy(Q[0][first:], S[first:] @ V.T, TAU) + cross_entropy(Q[1][first:], V[first:] @ S.T, TAU)
    )
    found, _ = alignment(Side(S, V, 1 / TAU), targets=Partition(), alpha=alpha)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["hard", "intra", "inter"])
def test_alpha_is_ignored_by_single_targets(kind):
    S, V, L = embeddings()
    torch.testing.assert_close(
        total(S, V, L, of_kind(kind), alpha=0.1), total(S, V, L, of_kind(kind), alpha=0.9), rtol=0, atol=0
    )


def test_blend_is_linear_in_alpha():
    S, V, L = embeddings()
    ends = [total(S, V, L, Blend(), alpha=a) for a in (0.0, 1.0)]
    torch.testing.assert_close(total(S, V, L, Blend(), alpha=0.3), 0.7 * ends[0] + 0.3 * ends[1])


@pytest.mark.parametrize("kind", ["hard", "intra", "inter", "blend"])
def test_order_of_the_batch_does_not_matter(kind):
    S, V, L = embeddings()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(total(S[order], V[order], L[order], of_kind(kind)), total(S, V, L, of_kind(kind)))
    gradients = []
    for rows in (torch.arange(7), order):
        leaf = S[rows].clone().requires_grad_()
        total(leaf, V[rows], L[rows], of_kind(kind)).backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[1], gradients[0][order])


def test_order_matters_to_partition_only_across_the_cut():
    S, V, L = embeddings()
    targets = Partition()
    within, across = [2, 0, 1, 6, 4, 5, 3], [6, 1, 2, 3, 4, 5, 0]  # alpha 0.5 of 7: rows 0-2 and 3-6
    before = total(S, V, L, targets)
    torch.testing.assert_close(total(S[within], V[within], L[within], targets), before)
    assert not torch.isclose(total(S[across], V[across], L[across], targets), before)


# --- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", VARIANTS, ids=str)
def test_targets_carry_no_gradient(targets):
    """The gradient is that of a loss whose targets are numbers computed beforehand."""
    leaves = [X.requires_grad_() for X in embeddings()]
    scale = torch.tensor(1 / TAU, dtype=torch.float64, requires_grad=True)
    found = loss(*leaves, targets=targets, alpha=0.5, scale_v=scale, scale_l=scale).total
    gradients = torch.autograd.grad(found, [*leaves, scale])

    S, V, L = leaves
    plan = {
        "blend": [("intra", 0.5, slice(0, 7)), ("inter", 0.5, slice(0, 7))],
        "partition": [("intra", 0.5, slice(0, 3)), ("inter", 0.5, slice(3, 7))],
    }.get(targets.kind, [(targets.kind, 1.0, slice(0, 7))])
    expected = 0.0
    for K in (V, L):
        for name, weight, rows in plan:
            constants = [P.numpy().copy() for P in target_pair(name, Side(S.detach(), K.detach(), 1 / TAU), targets)]
            for P, queries, keys in ((constants[0], S, K), (constants[1], K, S)):
                logits = queries @ keys.T * scale
                rowwise = -(torch.from_numpy(P) * logits.log_softmax(1)).sum(1)
                expected = expected + weight * rowwise[rows].mean()
    torch.testing.assert_close(found, expected)
    for found_gradient, wanted in zip(gradients, torch.autograd.grad(expected, [*leaves, scale]), strict=True):
        torch.testing.assert_close(found_gradient, wanted)


@pytest.mark.parametrize("targets", VARIANTS, ids=str)
def test_gradient_matches_finite_differences(targets):
    teacher = embeddings(B=4, D=3, seed=9)
    inputs = [X.requires_grad_() for X in embeddings(B=4, D=3)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    has_none = "temperature" in type(targets).model_fields and targets.temperature is None
    fixed = targets.model_copy(update={"temperature": 0.3}) if has_none else targets

    def function(S, V, L, scale):
        return loss(S, V, L, targets=fixed, alpha=0.5, scale_v=scale, scale_l=2 * scale, teacher=teacher).total

    assert torch.autograd.gradcheck(function, (*inputs, scale))


def test_gradient_does_not_reach_a_teacher():
    S, V, L = embeddings()
    teacher = tuple(X.requires_grad_() for X in embeddings(seed=1))
    found = total(S.requires_grad_(), V, L, Blend(), teacher=teacher)
    found.backward()
    assert S.grad.abs().sum() > 0
    assert all(X.grad is None for X in teacher)


# --- what is given and returned ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_knowledges_add_up(kind):
    S, V, L = embeddings()
    targets = of_kind(kind)
    torch.testing.assert_close(total(S, V, L, targets), total(S, V, None, targets) + total(S, None, L, targets))


def test_the_student_as_explicit_teacher_changes_nothing():
    S, V, L = embeddings()
    for kind in KINDS:
        torch.testing.assert_close(
            total(S, V, L, of_kind(kind), teacher=(S, V, L)), total(S, V, L, of_kind(kind)), rtol=0, atol=0
        )


def test_scales_are_separate():
    S, V, L = embeddings()
    found = loss(S, V, L, targets=Hard(), alpha=0.5, scale_v=2.0, scale_l=10.0).total
    torch.testing.assert_close(found, infonce(S, V, 0.5) + infonce(S, L, 0.1))


@pytest.mark.parametrize(
    ("kind", "names", "weights"),
    [
        ("hard", ["hard"], [1.0]),
        ("intra", ["intra"], [1.0]),
        ("inter", ["inter"], [1.0]),
        ("blend", ["intra", "inter"], [0.4, 0.6]),
        ("partition", ["intra", "inter"], [0.4, 0.6]),
    ],
)
def test_parts_are_named_by_direction_and_weigh_up_to_the_total(kind, names, weights):
    S, V, L = (X.requires_grad_() for X in embeddings())
    found = loss(S, V, L, targets=of_kind(kind), alpha=0.4, scale_v=5.0, scale_l=5.0)
    directions = ["s2v", "v2s", "s2l", "l2s"]
    assert set(found.parts) == {f"{direction}/{name}" for direction in directions for name in names}
    weighted = sum(
        weight * found.parts[f"{direction}/{name}"]
        for direction in directions
        for name, weight in zip(names, weights, strict=True)
    )
    torch.testing.assert_close(found.total.detach(), weighted)
    assert not any(value.requires_grad for value in (*found.parts.values(), *found.similarity.values()))


def test_mean_similarity_is_of_the_diagonal_and_of_the_rest():
    S, V, L = embeddings()
    scores = S @ V.T
    off = scores[~torch.eye(7, dtype=torch.bool)]
    positive, negative = mean_similarity(S, V)
    torch.testing.assert_close(positive, scores.diagonal().mean())
    torch.testing.assert_close(negative, off.mean())
    found = loss(S, V, L, targets=Hard(), alpha=0.5, scale_v=5.0, scale_l=5.0).similarity
    assert list(found) == ["vision/positive", "vision/negative", "language/positive", "language/negative"]
    assert found["vision/positive"] == positive


def test_a_batch_of_one_is_finite():
    S, V, L = embeddings(B=1)
    for kind in KINDS:
        found = loss(S, V, L, targets=of_kind(kind), alpha=0.5, scale_v=5.0, scale_l=5.0)
        assert all(torch.isfinite(x) for x in (found.total, *found.similarity.values()))


def test_computes_in_float32_under_autocast_and_from_half():
    S, V, L = embeddings(dtype=torch.float32)
    expected = total(S, V, L, Partition())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(total(S, V, L, Partition()), expected)
    half = total(S.bfloat16(), V.bfloat16(), L.bfloat16(), Partition())
    assert half.dtype == torch.float32
    assert expected.dtype == torch.float32
    assert total(*embeddings(), Partition()).dtype == torch.float64


def test_messages_name_the_value_and_the_remedy():
    S, V, L = embeddings()
    with pytest.raises(ConfigError, match="give vision embeddings, language embeddings or both"):
        total(S, None, None, Hard())
    with pytest.raises(ConfigError, match=r"alpha = 1\.5 is not a share"):
        total(S, V, L, Hard(), alpha=1.5)


def test_scale_learns_through_the_loss():
    S, V, L = embeddings(dtype=torch.float32)
    scale_v, scale_l = LogitScale(Temperature()), LogitScale(Temperature())
    loss(S, V, L, targets=Partition(), alpha=0.5, scale_v=scale_v(), scale_l=scale_l()).total.backward()
    assert scale_v.value.grad.abs() > 0
    assert scale_l.value.grad.abs() > 0


def test_the_example_of_the_docstring_runs():
    assert doctest.testmod(objective) == (0, 4)
