"""kNN protocol: cosine neighbours among the training split, in the encoder's feature before the projector.

Source: the field's common form (CMD, whose numbers the paper's Table IV lists): k = 1, L2-normalised
features, gallery = training split.
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
from c2vl_evaluation.metrics import score_of_ranks, true_class_ranks
from c2vl_evaluation.results import Result, Score

_CHUNK = 256
_DIGITS = 12
"""Decimals to which cosines must agree to be a tie."""
_AT_ONCE = 1 << 21
"""Limit of float64 values in memory when cosines are recomputed exactly."""


def _unit(values: Array, order: Labels | slice = slice(None)) -> Array:
    """Return values of length 1, in an order."""
    lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return np.asarray(values[order] / lengths[order], np.float32)


def _kth_best(values: Array, k: int) -> Array:
    """Shape: (N, G) -> (N,)."""
    return np.asarray(values.max(axis=1) if k == 1 else np.partition(values, -k, axis=1)[:, -k])


def search(gallery: Features, query: Features, classes: int, k: int = 1) -> tuple[Labels, Array]:
    """Return the class of each query by a vote of its `k` nearest, and its best cosine to each class.

    Exact: neighbours are those of float64 arithmetic; of equally near ones, the first in the gallery. A
    float32 product finds the candidates within its error bound; their cosines are recomputed in float64.
    A tied vote goes to the nearest neighbour. Queries are processed in chunks, which bounds memory to
    about 260 values per gallery sample besides the features. The cosine to a class without a gallery
    sample is -1.

    Shape: (N,) and (N, classes).
    """
    order = np.argsort(
        gallery.labels, kind="stable"
    )  # by class, so that the best cosine of each class is one reduction
    known, asked = _unit(gallery.values, order), _unit(query.values)
    present, first = np.unique(gallery.labels[order], return_index=True)
    k = min(k, len(known))
    # twice the error bound of a float32 dot product of D terms, including the rounding of both vectors
    slack = np.float32(2 * (known.shape[1] + 8) * np.finfo(np.float32).eps)
    answers: list[int] = []
    nearest = np.full((len(asked), classes), -1, np.float32)
    room = np.empty((min(_CHUNK, len(asked)), len(known)), np.float32)  # fresh memory for each chunk costs page faults
    for start in range(0, len(asked), _CHUNK):
        some = asked[start : start + _CHUNK]
        cosine = np.matmul(some, known.T, out=room[: len(some)])
        best_of = np.maximum.reduceat(cosine, first, axis=1)  # (n, classes that are present)
        nearest[start : start + len(some), present] = best_of
        # the k-th best of the classes' best is no better than the k-th best, and found among few
        least = _kth_best(best_of if k <= len(present) else cosine, k) - slack
        alone = (best_of >= least[:, None]).sum(axis=1) == 1
        for place, row in enumerate(cosine):
            if k == 1 and alone[place]:
                answers.append(int(present[best_of[place].argmax()]))  # all candidates are of one class
                continue
            close = np.flatnonzero(row >= least[place])
            close = close[row[close] >= _kth_best(row[None, close], k) - slack]
            close = np.sort(order[close])
            exact = _cosines(gallery.values, close, query.values[start + place])
            best = close[np.argsort(-exact, kind="stable")[:k]]
            answers.append(_vote(gallery.labels[best]))
    return np.array(answers, np.int64), nearest


def _cosines(values: Array, rows: Labels, query: Array) -> npt.NDArray[np.float64]:
    """Return the float64 cosines of some rows to a query, rounded to `_DIGITS`."""
    q = query.astype(np.float64)
    length = math.sqrt((q * q).sum()) or 1.0
    cosines = np.empty(len(rows))
    step = max(1, _AT_ONCE // values.shape[1])
    for start in range(0, len(rows), step):
        part = values[rows[start : start + step]].astype(np.float64)
        norms = np.sqrt((part * part).sum(axis=1))
        cosines[start : start + step] = (part * q).sum(axis=1) / length / np.where(norms > 0, norms, 1)
    return cosines.round(_DIGITS)


def score(gallery: Features, query: Features, classes: int, k: int = 1) -> tuple[Score, Labels, Array]:
    """Return the score of `search`, its answers and its cosines.

    The answer ranks first; the other classes follow by their nearest gallery sample.
    """
    answers, nearest = search(gallery, query, classes, k)
    ranks = true_class_ranks(torch.from_numpy(nearest), torch.from_numpy(query.labels)).numpy()
    ranks = np.where(answers == query.labels, 0, np.maximum(ranks, 1))
    return score_of_ranks(ranks, query.labels, classes), answers, nearest


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
    """Return the most frequent label; of equally frequent ones, that of the nearest neighbour."""
    counts = {int(label): int((labels == label).sum()) for label in labels}
    return max(counts, key=lambda label: counts[label])
