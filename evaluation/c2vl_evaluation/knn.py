"""kNN protocol: cosine neighbours among the training split, in the encoder's feature before the projector.

Source: the field's common form (CMD, whose numbers the paper's Table IV lists): k = 1, L2-normalised features,
gallery = training split.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from c2vl_evaluation.features import Array, Features, Labels

_CHUNK = 512


def _unit(values: Array) -> Array:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)


def predict(gallery: Features, query: Features, k: int = 1) -> Labels:
    """Return the class of each query by a vote of its `k` nearest, ties to the nearer. Shape: (N,).

    Exact search, in chunks of queries so that memory stays at 512 x the gallery.
    """
    known, asked = _unit(gallery.values), _unit(query.values)
    k = min(k, len(known))
    answers: list[npt.NDArray[np.int64]] = []
    for start in range(0, len(asked), _CHUNK):
        similarity = asked[start : start + _CHUNK] @ known.T
        if k == 1:
            answers.append(gallery.labels[similarity.argmax(axis=1)])
            continue
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        answers.append(np.array([_vote(gallery.labels[row]) for row in nearest], np.int64))
    return np.concatenate(answers)


def _vote(labels: Labels) -> int:
    """Most frequent label; of equally frequent ones, that of the nearest neighbour."""
    counts = {int(label): int((labels == label).sum()) for label in labels}
    return max(counts, key=lambda label: counts[label])


def accuracy(predicted: Labels, labels: Labels) -> float:
    """Share of right answers."""
    return float((predicted == labels).mean())
