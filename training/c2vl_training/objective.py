"""The training objective, Eq. 1-13 of the paper: one pure function per equation.

Notation as in the paper: S, V, L are the L2-normalised embeddings of a batch of skeletons, vision prompts
and language prompts. Shape of each: (B, D). In every (B, B) matrix rows are queries and columns are keys, so
a row of a target says for one query how probable each key should be. Nothing here normalises embeddings.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.targets import Hard, Inter, Intra, Targets

Scalar: TypeAlias = float | Tensor
"""A number, or a tensor of no dimensions through which gradients may flow."""

Embeddings: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]
"""(S, V, L) of one batch; None where that knowledge is not used."""


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
        scores: similarities before division by `tau`. Shape (R, B).
        tau: temperature.

    Returns:
        A tensor of no dimensions.
    """
    return -(P * torch.log_softmax(scores / tau, dim=-1)).sum() / max(len(scores), 1)


# --- targets -----------------------------------------------------------------------------------------------


def intra_target(X: Tensor, tau: Scalar, beta: float = 0.2) -> Tensor:
    """Intra-modal self-similarity target beta rho(X X^T) + (1 - beta) I.

    With X = V it is P^{v2s} (Eq. 4), with L P^{l2s} (Eq. 5), with S both P^{s2v} and P^{s2l} (Eq. 6): a
    target comes from the modality of its own queries.

    Shape: (B, D) -> (B, B)
    """
    return beta * row_softmax(X @ X.T, tau) + (1.0 - beta) * _identity(X)


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


def inter_target(S: Tensor, V: Tensor, tau: Scalar, *, hard: float = 0.0, average: bool = False) -> Tensor:
    """Inter-modal cross-consistency target Q^{v2s} = rho(`inter_scores`) (Eq. 7; 8-10 by its arguments).

    Args:
        S: embeddings of the keys, whose predictions are swapped in. Shape (B, D).
        V: embeddings of the queries. Shape (B, D).
        tau: temperature.
        hard: share of the identity mixed in; 0 is the paper.
        average: divide the sum by its three terms, back to the range of one similarity; False is the paper.

    Returns:
        Shape (B, B).
    """
    scores = inter_scores(S, V)
    soft = row_softmax(scores / 3.0 if average else scores, tau)
    return (1.0 - hard) * soft + hard * _identity(S) if hard else soft


# --- the loss ----------------------------------------------------------------------------------------------


class LossParts(NamedTuple):
    """What `loss` returns: the number to minimise, and detached numbers for the log."""

    total: Tensor
    """Eq. 11."""

    parts: dict[str, Tensor]
    """Every cross-entropy before its weight, by direction and target: `s2v/intra`, `l2s/inter`, ..."""

    similarity: dict[str, Tensor]
    """Mean similarity of pairs and of non-pairs: `vision/positive`, `language/negative`, ..."""


def loss(
    S: Tensor,
    V: Tensor | None,
    L: Tensor | None,
    *,
    targets: Targets,
    alpha: float,
    scale_v: Scalar,
    scale_l: Scalar,
    teacher: Embeddings | None = None,
) -> LossParts:
    """Align skeletons with vision and language: L^{sv} + L^{sl} (Eq. 11), each by `alignment` (Eq. 12-13).

    Computed in float32 (float64 if S is), also under autocast. Targets carry no gradient.

    *Reading:* "the two soft targets are dynamically updated by the teacher network" of the same
    architecture, at no cost in memory: the teacher is the student, and targets come from its present
    outputs. Embeddings of another teacher (an earlier epoch, a moving average) may be given instead.

    Args:
        S: skeleton embeddings. Shape (B, D).
        V: vision embeddings, or None to leave vision out. Shape (B, D).
        L: language embeddings, or None to leave language out. Shape (B, D).
        targets: what supervises; the rows of Table VII are its kinds.
        alpha: weight of P, and for `partition` its share of the rows; ignored by `hard`, `intra` and `inter`.
        scale_v: 1 / tau between skeleton and vision.
        scale_l: 1 / tau between skeleton and language.
        teacher: (S, V, L) from which targets are made; None for the student's own.

    Raises:
        ConfigError: neither V nor L is given, the teacher lacks one of them, or alpha is not in [0, 1].

    Examples:
        >>> from c2vl_manifests.targets import Partition
        >>> S, V = torch.nn.functional.normalize(torch.randn(2, 8, 4), dim=-1)
        >>> parts = loss(S, V, None, targets=Partition(), alpha=0.9, scale_v=1 / 0.07, scale_l=1.0)
        >>> sorted(parts.parts)  # 7 rows have intra targets, 1 row has inter targets
        ['s2v/inter', 's2v/intra', 'v2s/inter', 'v2s/intra']
    """
    if V is None and L is None:
        raise ConfigError("no knowledge to align with; give vision embeddings, language embeddings or both")
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha = {alpha} is not a share; give a number from 0 to 1")
    guide_S, guide_V, guide_L = (S, V, L) if teacher is None else teacher
    sides = (("vision", "v", V, guide_V, scale_v), ("language", "l", L, guide_L, scale_l))
    parts: dict[str, Tensor] = {}
    similarity: dict[str, Tensor] = {}
    with torch.autocast(device_type=S.device.type, enabled=False):
        S, guide_S = _exact(S), _exact(guide_S)
        total = S.new_zeros(())
        for name, letter, K, guide_K, scale in sides:
            if K is None:
                continue
            if guide_K is None:
                raise ConfigError(f"the teacher has no {name} embeddings but the student does; give both or neither")
            knowledge, tau = _exact(K), 1.0 / scale
            side, entropies = alignment(
                S, knowledge, tau, targets=targets, alpha=alpha, teacher=(guide_S, _exact(guide_K))
            )
            total = total + side
            for key, entropy in entropies.items():
                parts[key.replace("v", letter, 1)] = entropy.detach()
            with torch.no_grad():
                similarity[f"{name}/positive"], similarity[f"{name}/negative"] = mean_similarity(S, knowledge)
    return LossParts(total, parts, similarity)


def alignment(
    S: Tensor, V: Tensor, tau: Scalar, *, targets: Targets, alpha: float, teacher: tuple[Tensor, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Soft alignment of skeletons with one knowledge: Eq. 12 for vision, Eq. 13 with L for V.

    alpha [H(P^{s2v}, rho(S V^T)) + H(P^{v2s}, rho(V S^T))] + (1 - alpha) [the same with Q]. With `partition`
    the first bracket sees the first floor(alpha B) rows, the second the others; columns are the whole batch
    in both. `hard`, `intra` and `inter` are a single bracket of weight 1 over all rows.

    *Reading:* each H is a mean over its own rows and is weighted by alpha besides, as printed, so the
    contribution of one row does not depend on alpha while both subsets have rows; an empty subset
    contributes 0.

    Args:
        S: skeleton embeddings. Shape (B, D).
        V: embeddings of the knowledge. Shape (B, D).
        tau: the student's temperature.
        targets: what supervises.
        alpha: weight and share of P.
        teacher: (S, V) from which targets are made; gradients do not reach it.

    Returns:
        The weighted sum, and every cross-entropy by direction and target (`s2v/intra`, `v2s/inter`, ...).
    """
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
        P_s2v, P_v2s = target_pair(name, *teacher, tau, targets)
        entropies[f"s2v/{name}"] = cross_entropy(P_s2v[rows], S[rows] @ V.T, tau)
        entropies[f"v2s/{name}"] = cross_entropy(P_v2s[rows], V[rows] @ S.T, tau)
        total = total + weight * (entropies[f"s2v/{name}"] + entropies[f"v2s/{name}"])
    return total, entropies


@torch.no_grad()
def target_pair(name: str, S: Tensor, V: Tensor, tau: Scalar, targets: Targets) -> tuple[Tensor, Tensor]:
    """Build one kind of target in both directions, without gradient.

    Args:
        name: `hard` (I), `intra` (Eq. 4-6) or `inter` (Eq. 7-10).
        S: the teacher's skeleton embeddings. Shape (B, D).
        V: the teacher's embeddings of the knowledge. Shape (B, D).
        tau: the student's temperature, used unless `targets` has one of its own.
        targets: the numbers of the targets.

    Returns:
        The target of skeleton queries and that of knowledge queries. Shape (B, B) each.
    """
    if isinstance(targets, Hard):
        return _identity(S), _identity(S)
    own = tau if targets.temperature is None else targets.temperature
    if name == "intra":
        assert not isinstance(targets, Inter)
        return intra_target(S, own, targets.beta), intra_target(V, own, targets.beta)
    assert not isinstance(targets, Intra)
    Q_s2v = inter_target(V, S, own, hard=targets.inter_hard, average=targets.average)
    Q_v2s = inter_target(S, V, own, hard=targets.inter_hard, average=targets.average)
    return Q_s2v, Q_v2s


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


def _exact(X: Tensor) -> Tensor:
    """Lift half precision to float32, leave float64."""
    return X if X.dtype == torch.float64 else X.float()
