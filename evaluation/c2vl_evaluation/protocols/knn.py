"""kNN protocol: cosine neighbours among the training split, in the encoder's feature before the projector.

Source: the field's common form (CMD, whose numbers the paper's Table IV lists): k = 1, L2-normalised features,
gallery = training split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from c2vl_evaluation.cache import Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Features, Labels
from c2vl_evaluation.metrics import of_ranks, ranks
from c2vl_evaluation.results import Result, Score

_CHUNK = 256
_DIGITS = 12
"""Cosines that agree to so many digits are a tie."""
_AT_ONCE = 1 << 21
"""Numbers of float64 that a second look may hold at once."""


def _unit(values: Array) -> Array:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)


def search(gallery: Features, query: Features, classes: int, k: int = 1) -> tuple[Labels, Array]:
    """Return the class of each query by a vote of its `k` nearest, and its cosine to the nearest of each class.

    Exact: neighbours are those of float64 arithmetic, and of equally near ones the first in the gallery. A float32
    product finds the few that can be among the nearest, within its error bound; these are looked at again in float64.
    A vote that is tied goes to the nearer. Queries are taken in chunks, so that memory stays at some 200 numbers a
    member of the gallery beside the features; a class without a member is at cosine -1.

    Shape: (N,) and (N, classes).
    """
    order = np.argsort(
        gallery.labels, kind="stable"
    )  # a class after the other, so that its best is one reduction
    known, asked = _unit(gallery.values)[order], _unit(query.values)
    present, first = np.unique(gallery.labels[order], return_index=True)
    k = min(k, len(known))
    # |computed - true| of a sum of D products of unit vectors, and of the rounding of both vectors; two of them
    slack = np.float32(2 * (known.shape[1] + 8) * np.finfo(np.float32).eps)
    answers: list[int] = []
    nearest = np.full((len(asked), classes), -1, np.float32)
    for start in range(0, len(asked), _CHUNK):
        cosine = asked[start : start + _CHUNK] @ known.T
        nearest[start : start + len(cosine), present] = np.maximum.reduceat(cosine, first, axis=1)
        kth = cosine.max(axis=1) if k == 1 else np.partition(cosine, -k, axis=1)[:, -k]
        for place, row in enumerate(cosine):
            close = order[np.flatnonzero(row >= kth[place] - slack)]
            if k == 1 and (gallery.labels[close] == gallery.labels[close[0]]).all():
                answers.append(int(gallery.labels[close[0]]))  # whichever is the nearest
                continue
            close.sort()
            exact = _cosines(gallery.values, close, query.values[start + place])
            best = close[np.argsort(-exact, kind="stable")[:k]]
            answers.append(_vote(gallery.labels[best]))
    return np.array(answers, np.int64), nearest


def _cosines(values: Array, rows: Labels, query: Array) -> npt.NDArray[np.float64]:
    """Return the cosines of some rows to a query in float64, rounded to `_DIGITS`."""
    q = query.astype(np.float64)
    length = math.sqrt((q * q).sum()) or 1.0
    found = np.empty(len(rows))
    step = max(1, _AT_ONCE // values.shape[1])
    for start in range(0, len(rows), step):
        part = values[rows[start : start + step]].astype(np.float64)
        norms = np.sqrt((part * part).sum(axis=1))
        found[start : start + step] = (part * q).sum(axis=1) / length / np.where(norms > 0, norms, 1)
    return found.round(_DIGITS)


def score(gallery: Features, query: Features, classes: int, k: int = 1) -> tuple[Score, Labels, Array]:
    """Return the score of `search`, and what it returned.

    The answer stands first; the other classes follow by their nearest member.
    """
    answers, nearest = search(gallery, query, classes, k)
    found = ranks(torch.from_numpy(nearest), torch.from_numpy(query.labels)).numpy()
    found = np.where(answers == query.labels, 0, np.maximum(found, 1))
    return of_ranks(found, query.labels, classes), answers, nearest


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the one cell of the protocol."""
    config = context.recipe.evaluation.knn

    def compute() -> ResultWithPredictions:
        gallery, query, classes = context.features()
        last, answers, nearest = score(gallery, query, classes, config.k)
        result = Result(protocol="knn", last=last, train=len(gallery.labels), test=len(query.labels))
        return ResultWithPredictions(result, context.predictions(query.rows, nearest, answers))

    yield Cell("knn", compute, context.key("knn", config))


def _vote(labels: Labels) -> int:
    """Most frequent label; of equally frequent ones, that of the nearest neighbour."""
    counts = {int(label): int((labels == label).sum()) for label in labels}
    return max(counts, key=lambda label: counts[label])
