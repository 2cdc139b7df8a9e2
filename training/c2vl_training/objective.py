"""The training objective, Eq. 1-13 of the paper: one pure function per equation. What the paper lacks is in `beyond`.

Notation as in the paper: S, V, L are the L2-normalised embeddings of a batch of skeletons, vision prompts
and language prompts. Shape of each: (B, D). In every (B, B) matrix rows are queries and columns are keys, so
a row of a target says for one query how probable each key should be. Nothing here normalises embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.targets import Hard, Inter, Intra, Sigmoid, Targets
from c2vl_training.beyond import hard_where_unknown, pair_target, scores, sigmoid_loss, without

Scalar: TypeAlias = float | Tensor
"""A number, or a tensor of no dimensions through which gradients may flow."""

Directions: TypeAlias = Literal["sum", "mean"]
"""Whether the losses from skeleton to knowledge and back are added or averaged."""


class Prompts(NamedTuple):
    """What is known of the prompts of one batch besides their embeddings; the paper uses nothing of it."""

    same: Tensor | None = None
    """Samples with the same prompt, themselves included, if they are no negatives. Shape (B, B), bool."""
    positive: bool = False
    """Samples with the same prompt are positives; otherwise they are left out."""
    others: Tensor | None = None
    """Embedded prompts of further samples: negatives of skeletons. Shape (N, D)."""
    others_hidden: Tensor | None = None
    """Which of `others` a skeleton does not meet: those of the batch and those equal to its own. Shape (B, N), bool."""
    bias: Scalar = 0.0
    """Of `sigmoid` alone."""


class Side(NamedTuple):
    """Skeletons and one knowledge, embedded: what Eq. 12 (vision) or Eq. 13 (language) aligns."""

    S: Tensor
    """Skeletons. Shape (B, D)."""
    V: Tensor
    """Their vision or language prompts. Shape (B, D)."""
    scale: Scalar
    """1 / tau."""
    teacher: tuple[Tensor, Tensor] | None = None
    """S and V from which targets are made; None for the student's own."""
    known: Tensor | None = None
    """Samples that the teacher knows; None for all. Shape (B,), bool."""
    prompts: Prompts = Prompts()


# --- softmax and cross-entropy -----------------------------------------------------------------------------


def row_softmax(scores: Tensor, tau: Scalar) -> Tensor:
    """Row-wise softmax of scores / tau, the paper's rho (Eq. 2-13).

    *Reading:* the paper calls rho "the standard softmax"; Eq. 1 divides by tau, so every rho does.

    Shape: (R, B) -> (R, B)
    """
    return torch.softmax(scores / tau, dim=-1)


def cross_entropy(P: Tensor, scores: Tensor, tau: Scalar) -> Tensor:
    """Cross-entropy H(P, rho(scores)) = -sum P log rho(scores), the H of Eq. 2-3 and 12-13.

    *Reading:* the mean over the rows it is given, as in Eq. 1, and 0 when it is given none.

    Args:
        P: target, rows that sum to one. Shape (R, B).
        scores: similarities before division by `tau`. Shape (R, B), or wider: keys beyond the batch are negatives.
        tau: temperature.

    Returns:
        A tensor of no dimensions.
    """
    return -(P * torch.log_softmax(scores / tau, dim=-1)[:, : P.shape[1]]).sum() / max(len(scores), 1)


# --- targets -----------------------------------------------------------------------------------------------


def intra_target(X: Tensor, tau: Scalar, beta: float = 0.2, pairs: Tensor | None = None) -> Tensor:
    """Intra-modal self-similarity target beta rho(X X^T) + (1 - beta) I.

    With X = V it is P^{v2s} (Eq. 4), with L P^{l2s} (Eq. 5), with S both P^{s2v} and P^{s2l} (Eq. 6): a
    target comes from the modality of its own queries. `pairs` (B, B) may stand for I, see `beyond.pair_target`.

    Shape: (B, D) -> (B, B)
    """
    return beta * row_softmax(X @ X.T, tau) + (1.0 - beta) * (_identity(X) if pairs is None else pairs)


def inter_scores(S: Tensor, V: Tensor) -> Tensor:
    """Scores inside Q^{v2s} before the softmax: S V^T + diag(V S^T) 1^T + 1 diag(S^T V)^T (Eq. 7).

    The entry (i, j) is how well s_i matches v_j, plus how sound pair i is, plus how sound pair j is.
    Exchanging the arguments gives Q^{s2v} (Eq. 8); L in the place of V gives Q^{l2s} and Q^{s2l} (Eq. 9-10).

    *Reading:* as printed, the third term multiplies S^T V, which is d x d and does not conform. Following
    the cycle-consistent prediction of the work cited there (Morgado et al. 2021), I_B picks the diagonal of
    the pair similarities and J spreads it over columns (second term) or rows (third). The second term is
    then the same along a row and cancels in the softmax; it is kept because the paper writes it and because
    `average` counts it.

    *Reading:* the first term is printed as S V^T for the target of v2s, so row i of the target for query v_i
    holds the scores of s_i: the prediction is swapped.

    Shape: (B, D), (B, D) -> (B, B)
    """
    sound = (S * V).sum(dim=-1)
    return S @ V.T + sound[:, None] + sound[None, :]


def inter_target(
    S: Tensor, V: Tensor, tau: Scalar, *, hard: float = 0.0, average: bool = False, pairs: Tensor | None = None
) -> Tensor:
    """Inter-modal cross-consistency target Q^{v2s} = rho(`inter_scores`) (Eq. 7; 8-10 by its arguments).

    Args:
        S: embeddings of the keys, whose predictions are swapped in. Shape (B, D).
        V: embeddings of the queries. Shape (B, D).
        tau: temperature.
        hard: share of the identity mixed in; 0 is the paper. *Reading:* both works that the paper builds on here keep
            one, 0.2 or more in PS-KD.
        average: divide the sum by its three terms, back to the range of one similarity; False is the paper.
        pairs: in place of the identity, see `beyond.pair_target`. Shape (B, B).

    Returns:
        Shape (B, B).
    """
    terms = inter_scores(S, V)
    soft = row_softmax(terms / 3.0 if average else terms, tau)
    return (1.0 - hard) * soft + hard * (_identity(S) if pairs is None else pairs) if hard else soft


# --- the loss ----------------------------------------------------------------------------------------------


class LossParts(NamedTuple):
    """What `loss` returns: the number to minimise, and detached numbers for the log."""

    total: Tensor
    """Eq. 11."""

    parts: dict[str, Tensor]
    """Every cross-entropy before its weight, by direction and target: `s2v/intra`, `l2s/inter`, ..."""

    similarity: dict[str, Tensor]
    """Mean similarity of pairs and of non-pairs: `vision/positive`, `language/negative`, ..."""


def loss(sides: Mapping[str, Side], *, targets: Targets, alpha: float, directions: Directions = "sum") -> LossParts:
    """Align skeletons with vision and language: L^{sv} + L^{sl} (Eq. 11), each by `alignment` (Eq. 12-13).

    Computed in float32 (float64 if S is), also under autocast. Targets carry no gradient.

    *Reading:* "the two soft targets are dynamically updated by the teacher network" of the same
    architecture, at no cost in memory: the teacher is the student, and targets come from its present
    outputs. Embeddings of another teacher (an earlier epoch, a moving average) may be given instead.

    *Reading:* skeletons have one projector, so S is the same on both sides. Where each knowledge has a skeleton
    projector of its own, as in later code of the first author, the sides have an S each.

    Args:
        sides: by kind of knowledge, `vision`, `language` or both.
        targets: what supervises; the rows of Table VII are its kinds.
        alpha: weight of P, and for `partition` its share of the rows; ignored by the other kinds but `blend`.
        directions: see `alignment`.

    Raises:
        ConfigError: there is no side, or alpha is not in [0, 1].

    Examples:
        >>> from c2vl_manifests.targets import Partition
        >>> S, V = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
        >>> parts = loss({"vision": Side(S, V, scale=1 / 0.07)}, targets=Partition(), alpha=0.9)
        >>> sorted(parts.parts)  # 7 rows have intra targets, 1 row has inter targets
        ['s2v/inter', 's2v/intra', 'v2s/inter', 'v2s/intra']
    """
    if not sides:
        raise ConfigError("no knowledge to align with; give vision embeddings, language embeddings or both")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha = {alpha} is not a share; give a number from 0 to 1")
    parts: dict[str, Tensor] = {}
    similarity: dict[str, Tensor] = {}
    total: Tensor | None = None
    for name, given in sides.items():
        with torch.autocast(device_type=given.S.device.type, enabled=False):
            side = _exact_side(given)
            total = side.S.new_zeros(()) if total is None else total
            if isinstance(targets, Sigmoid):
                value, entropies = pairwise(side)
            else:
                value, entropies = alignment(side, targets=targets, alpha=alpha, directions=directions)
            total = total + value
            for key, entropy in entropies.items():
                parts[key.replace("v", name[0], 1)] = entropy.detach()
            with torch.no_grad():
                similarity[f"{name}/positive"], similarity[f"{name}/negative"] = mean_similarity(side.S, side.V)
    assert total is not None
    return LossParts(total, parts, similarity)


def alignment(
    side: Side, *, targets: Targets, alpha: float, directions: Directions = "sum"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Soft alignment of skeletons with one knowledge: Eq. 12 for vision, Eq. 13 with L for V.

    alpha [H(P^{s2v}, rho(S V^T)) + H(P^{v2s}, rho(V S^T))] + (1 - alpha) [the same with Q]. With `partition`
    the first bracket sees the first floor(alpha B) rows, the second the others; columns are the whole batch
    in both. `hard`, `intra` and `inter` are a single bracket of weight 1 over all rows.

    *Reading:* each H is a mean over its own rows and is weighted by alpha besides, as printed, so the
    contribution of one row does not depend on alpha while both subsets have rows; an empty subset
    contributes 0.

    *Reading:* a bracket is printed as a sum. CLIP, and later code of the first author, average the two directions,
    which halves the loss against weight decay: `directions`.

    Args:
        side: the embeddings.
        targets: what supervises.
        alpha: weight and share of P.
        directions: `sum` or `mean` of the two terms of a bracket.

    Returns:
        The weighted sum, and every cross-entropy by direction and target (`s2v/intra`, `v2s/inter`, ...).
    """
    S, V, tau, prompts = side.S, side.V, 1.0 / side.scale, side.prompts
    B = len(S)
    split = math.floor(alpha * B + 1e-9)  # 0.29 * 100 is 28.999999999999996
    everything = slice(0, B)
    brackets: dict[str, list[tuple[str, float, slice]]] = {
        "hard": [("hard", 1.0, everything)],
        "intra": [("intra", 1.0, everything)],
        "inter": [("inter", 1.0, everything)],
        "blend": [("intra", alpha, everything), ("inter", 1.0 - alpha, everything)],
        "partition": [("intra", alpha, slice(0, split)), ("inter", 1.0 - alpha, slice(split, B))],
    }
    total = S.new_zeros(())
    entropies: dict[str, Tensor] = {}
    for name, weight, rows in brackets[targets.kind]:
        P_s2v, P_v2s = target_pair(name, side, targets)
        hidden = None if prompts.same is None or prompts.positive else _repeats(prompts.same)[rows]
        further = None if prompts.others_hidden is None else prompts.others_hidden[rows]
        s2v = scores(S[rows], V, hidden, prompts.others, further)
        entropies[f"s2v/{name}"] = cross_entropy(P_s2v[rows], s2v, tau)
        entropies[f"v2s/{name}"] = cross_entropy(P_v2s[rows], scores(V[rows], S, hidden), tau)
        total = total + weight * (entropies[f"s2v/{name}"] + entropies[f"v2s/{name}"])
    return total if directions == "sum" else total / 2.0, entropies


def pairwise(side: Side) -> tuple[Tensor, dict[str, Tensor]]:
    """Align skeletons with one knowledge by SigLIP's loss, see `beyond.sigmoid_loss`; returns as `alignment` does."""
    prompts = side.prompts
    pairs = _identity(side.S).bool()
    same = pairs if prompts.same is None else prompts.same
    hidden = pairs & False if prompts.same is None or prompts.positive else _repeats(same)
    if prompts.others is not None:
        assert prompts.others_hidden is not None
        same = F.pad(same, (0, len(prompts.others)))
        hidden = torch.cat([hidden, prompts.others_hidden], dim=1)
    logits = scores(side.S, side.V, None, prompts.others) * side.scale + prompts.bias
    value = sigmoid_loss(logits, same, hidden)
    return value, {"s2v/sigmoid": value}


@torch.no_grad()
def target_pair(name: str, side: Side, targets: Targets) -> tuple[Tensor, Tensor]:
    """Build one kind of target in both directions, without gradient.

    Args:
        name: `hard` (I), `intra` (Eq. 4-6) or `inter` (Eq. 7-10).
        side: the embeddings; its tau is used unless `targets` has one of its own.
        targets: the numbers of the targets.

    Returns:
        The target of skeleton queries and that of knowledge queries. Shape (B, B) each.
    """
    S, V = side.teacher or (side.S, side.V)
    same, positive = side.prompts.same, side.prompts.positive
    pairs = pair_target(same, S.dtype) if same is not None and positive else _identity(S)
    if isinstance(targets, Hard | Sigmoid):
        return pairs, pairs
    tau = 1.0 / side.scale if targets.temperature is None else targets.temperature
    if name == "intra":
        assert not isinstance(targets, Inter)
        found = [intra_target(X, tau, targets.beta, pairs) for X in (S, V)]
    else:
        assert not isinstance(targets, Intra)
        hard, average = targets.inter_hard, targets.average
        found = [inter_target(K, X, tau, hard=hard, average=average, pairs=pairs) for X, K in ((S, V), (V, S))]
    if side.known is not None:
        found = [hard_where_unknown(P, side.known, pairs) for P in found]
    if same is not None and not positive:
        found = [without(P, _repeats(same), pairs) for P in found]
    return found[0], found[1]


def mean_similarity(S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """Mean similarity of pairs (diagonal of S V^T) and of non-pairs (the rest), the means of Fig. 4 and 5.

    Shape: (B, D), (B, D) -> (), ()
    """
    B = len(S)
    pairs = (S * V).sum()
    return pairs / max(B, 1), (S.sum(dim=0) @ V.sum(dim=0) - pairs) / max(B * (B - 1), 1)


def _identity(X: Tensor) -> Tensor:
    """I_B in the dtype and on the device of X."""
    return torch.eye(len(X), dtype=X.dtype, device=X.device)


def _repeats(same: Tensor) -> Tensor:
    """Return the other samples with the same prompt. Shape: (B, B), bool -> (B, B), bool."""
    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


def _exact(X: Tensor) -> Tensor:
    """Lift half precision to float32, leave float64."""
    return X if X.dtype == torch.float64 else X.float()


def _exact_side(side: Side) -> Side:
    """Lift all embeddings of a side."""
    teacher = side.teacher and (_exact(side.teacher[0]), _exact(side.teacher[1]))
    others = side.prompts.others
    prompts = side.prompts._replace(others=None if others is None else _exact(others))
    return side._replace(S=_exact(side.S), V=_exact(side.V), teacher=teacher, prompts=prompts)
