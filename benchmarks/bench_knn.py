"""Exact kNN of 16,487 clips among 40,091 in 256 dimensions: time and memory, against two bare products, one thread.

The usual way here is what exactness costs without a second look: the whole matrix of cosines in float64 (chunked, or it
would take 5.3 GB). The float32 product alone, of which nothing is read, says what is left to gain. Memory is the rise of
the peak above what the features take, where the system says it. Answers are compared on a part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from c2vl_evaluation.features import Features, Labels
from c2vl_evaluation.protocols import knn
from timing import PROCESSOR, Parser, Spent, compare, report_spent, timed

T = TypeVar("T")

GALLERY, QUERY, DIM, CLASSES = 40_091, 16_487, 256, 60


def features(count: int, seed: int) -> Features:
    """Non-negative features about centres, as after a ReLU and a mean; a hundredth of them twice."""
    centres = np.random.default_rng(99).gamma(1.0, 1.0, (CLASSES, DIM))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    values = np.maximum(centres[labels] + 0.5 * rng.standard_normal((count, DIM), np.float32), 0).astype(np.float32)
    values[rng.integers(0, count, count // 100)] = values[rng.integers(0, count, count // 100)]
    return Features(values, labels, np.arange(count), 0)


def usual(gallery: Features, query: Features) -> Labels:
    """Return answers by float64 throughout, 256 queries at a time."""
    known = gallery.values.astype(np.float64)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    asked = query.values.astype(np.float64)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    answers = []
    for start in range(0, len(asked), 256):
        cosine = (asked[start : start + 256] @ known.T).round(12)
        answers.append(gallery.labels[cosine.argmax(axis=1)])
    return np.concatenate(answers)


def product(gallery: Features, query: Features) -> None:
    """Multiply in float32, 256 queries at a time."""
    room = np.empty((256, len(gallery.values)), np.float32)
    for start in range(0, len(query.values), 256):
        some = query.values[start : start + 256]
        np.matmul(some, gallery.values.T, out=room[: len(some)])


def memory(function: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Return a function's answer, and as a fact the MiB by which this process's peak rose; none where there is no /proc."""
    if not (status := Path("/proc/self/status")).is_file():
        return function(), {}

    def mebibytes(field: str) -> float:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1024

    status.with_name("clear_refs").write_text("5")  # the peak begins anew: that of making the features is not ours
    before = mebibytes("VmRSS")
    answer = function()
    return answer, {"mebibytes_more": mebibytes("VmHWM") - before}


def main() -> None:
    """Print the lines."""
    pairs = Parser(__doc__).parse_args().pairs
    torch.set_num_threads(1)
    gallery, query = features(GALLERY, 0), features(QUERY, 1)
    spent: list[Spent] = []
    (answers, _), more = memory(lambda: timed(lambda: knn.search(gallery, query, CLASSES), spent))
    part = Features(query.values[:2048], query.labels[:2048], query.rows[:2048], 0)
    same = float((answers[:2048] == usual(gallery, part)).mean())
    report_spent(f"kNN of {QUERY:,} among {GALLERY:,}", spent, answers_of_2048_equal_to_float64=same, **more)

    def ours() -> None:
        knn.search(gallery, part, CLASSES)

    ways = {"the usual way": usual, "the float32 product alone": product}
    for baseline, way in ways.items():
        compare("2,048 queries", ours, partial(way, gallery, part), pairs, baseline=baseline, judged_by=PROCESSOR)


if __name__ == "__main__":
    main()
