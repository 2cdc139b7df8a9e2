"""Exact kNN of 16,487 clips among 40,091 in 256 dimensions: time and memory, against two bare products, one thread.

The usual way here is what exactness costs without a second look: the whole matrix of cosines in float64 (chunked, or it
would take 5.3 GB). The float32 product alone, of which nothing is read, says what is left to gain. Memory is the rise of the peak above what the features take. Answers are compared on a part.

`python benchmarks/bench_knn.py [PAIRS]`
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from c2vl_evaluation.features import Features, Labels
from c2vl_evaluation.protocols import knn
from timing import compare, measured, report_spent

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


def memory(field: str) -> float:
    """Return VmRSS (now) or VmHWM (the peak) of this process in MiB; Linux alone says."""
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(field)) / 1024


def main() -> None:
    """Print the lines."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(1)
    gallery, query = features(GALLERY, 0), features(QUERY, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: that of making the features is not ours
    answers: list[Labels] = []
    before = memory("VmRSS")
    spent = measured(lambda: answers.append(knn.search(gallery, query, CLASSES)[0]))
    report_spent(f"kNN of {QUERY:,} among {GALLERY:,}", [spent], mebibytes_more=memory("VmHWM") - before)
    part = Features(query.values[:2048], query.labels[:2048], query.rows[:2048], 0)
    same = (answers[0][:2048] == usual(gallery, part)).mean()
    print(f"answers equal to those of float64 on 2,048 queries: {100 * same:.3f} %")

    def ours() -> None:
        knn.search(gallery, part, CLASSES)

    compare("2,048 queries", ours, lambda: usual(gallery, part), pairs)
    compare("2,048 queries", ours, lambda: product(gallery, part), pairs, baseline="the float32 product alone")


if __name__ == "__main__":
    main()
