"""Ideas beside the paper's objective: equal prompts, more negatives, a contrast of two views, the sigmoid loss.

One pure function per idea, in the notation of `objective`: rows are queries, columns are keys, embeddings are
L2-normalised. `objective` uses them where a recipe asks for them; the paper's setting uses none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

HIDDEN = -1e4
"""Similarity of a key that a query does not meet: no softmax sees it, and unlike infinity it times 0 is 0."""


# --- which keys a query meets ------------------------------------------------------------------------------


def equal_prompts(X: Tensor, Y: Tensor, tolerance: float = 1e-4) -> Tensor:
    """Return which prompts are the same, from their frozen vectors of length 1 before any projector.

    *Reading:* the paper treats every other sample of a batch as a negative. One caption in five of the authors'
    own set is word for word another's in a batch of 400. Equal captions have equal vectors up to the rounding of
    half precision, about 1e-7 in the cosine, while one other word changes it by more than 1e-3.

    Shape: (R, K), (B, K) -> (R, B), bool
    """
    cosines = X @ Y.T
    return cosines > 1 - tolerance


def pair_target(same: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the hard target that shares each row evenly among the keys with the query's own prompt.

    With `same` = I it is I.

    Shape: (B, B), bool -> (B, B)
    """
    return same.to(dtype) / same.sum(dim=1, keepdim=True)


def without(P: Tensor, hidden: Tensor, pairs: Tensor) -> Tensor:
    """Return a target without the keys that its queries do not meet, as rows that sum to one again.

    A row of which nothing is left, as where a softmax at a small tau rounds all other keys to 0, is that of `pairs`.

    Shape: (R, B), (R, B) bool, (R, B) -> (R, B)
    """
    kept = P.masked_fill(hidden, 0.0)
    left = kept.sum(dim=1, keepdim=True)
    return torch.where(left > 0, kept / left, pairs)


def hard_where_unknown(P: Tensor, known: Tensor, pairs: Tensor) -> Tensor:
    """Return a teacher's target, hard in all that the teacher does not know.

    The probability of an unknown key goes to the query's own pair, and so does the whole row of an unknown query.

    *Reading:* a memory of the previous epoch is empty in the first one, where the self-distillation that the paper
    cites (PS-KD) trains on hard targets. Later it lacks only samples that no batch has held yet.

    Args:
        P: targets. Shape (B, B).
        known: samples that the teacher has embeddings of. Shape (B,), bool.
        pairs: the hard target. Shape (B, B).
    """
    kept = P * (known[:, None] & known[None, :])
    return kept + (1.0 - kept.sum(dim=1, keepdim=True)) * pairs


def scores(
    queries: Tensor,
    keys: Tensor,
    hidden: Tensor | None = None,
    others: Tensor | None = None,
    others_hidden: Tensor | None = None,
) -> Tensor:
    """Return similarities of queries to the keys of the batch and, after them, to prompts of other samples.

    Frozen prompts need no queue and no momentum encoder to be negatives of many batches: their projector is applied
    anew in each step.

    Args:
        queries: Shape (R, D).
        keys: of the batch. Shape (B, D).
        hidden: keys that a query does not meet. Shape (R, B), bool.
        others: further negatives. Shape (N, D).
        others_hidden: the same of `others`. Shape (R, N), bool.

    Returns:
        Shape (R, B) or (R, B + N).
    """
    found = queries @ keys.T
    if hidden is not None:
        found = found.masked_fill(hidden, HIDDEN)
    if others is None:
        return found
    further = queries @ others.T
    if others_hidden is not None:
        further = further.masked_fill(others_hidden, HIDDEN)
    return torch.cat([found, further], dim=1)


# --- losses ------------------------------------------------------------------------------------------------


def view_contrast(A: Tensor, B: Tensor, tau: float) -> Tensor:
    """Contrast two views of the same skeletons: NT-Xent, Eq. 1 of SimCLR (Chen et al. 2020).

    Each of the 2 B embeddings has its other view as the positive and the 2 B - 2 embeddings of other samples, of
    both views, as negatives; the mean over all of them.

    Shape: (B, D), (B, D) -> ()
    """
    both = torch.cat([A, B])
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    other_view = torch.arange(len(both), device=both.device).roll(len(A))
    return F.cross_entropy((both @ both.T).masked_fill(itself, HIDDEN) / tau, other_view)


def sigmoid_loss(logits: Tensor, same: Tensor, hidden: Tensor) -> Tensor:
    """Judge every pair of a skeleton and a prompt on its own (SigLIP, Zhai et al. 2023).

    -1/B sum_ij log sigmoid(z_ij logits_ij) with z = 1 where the pair belongs together and -1 elsewhere. One sum holds
    both directions.

    Args:
        logits: similarity / tau + bias. Shape (B, C), of which the first B keys are the batch.
        same: pairs that belong together. Shape (B, C), bool.
        hidden: pairs that are left out. Shape (B, C), bool.
    """
    signs = torch.where(same, 1.0, -1.0).to(logits.dtype)
    return -F.logsigmoid(signs * logits).masked_fill(hidden, 0.0).sum() / max(len(logits), 1)
