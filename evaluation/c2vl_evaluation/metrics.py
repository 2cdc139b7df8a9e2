"""Accuracies: top-1, top-5 and balanced, of scores a class; and what they are without looking at a sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from c2vl_evaluation.features import Labels, Split, labelled_split
from c2vl_evaluation.results import Evaluated, Score
from c2vl_manifests.errors import DataError
from c2vl_training.dataset import Packed

TOP = 5


def ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes stand before the true one; of equal scores the lower class is first, as for argmax.

    A row that is not finite (a rate that diverged) is wrong, whatever it says. Shape: (N, C), (N,) -> (N,).
    """
    truth = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    before = ((scores > truth) | ((scores == truth) & lower)).sum(dim=1)
    return torch.where(scores.isfinite().all(dim=1), before, scores.shape[1])


def score(scores: Tensor, labels: Tensor) -> Score:
    """Return the accuracies of scores a class. Shape: (N, C), (N,)."""
    return of_ranks(ranks(scores, labels).cpu().numpy(), labels.cpu().numpy(), scores.shape[1])


def of_ranks(found: Labels, labels: Labels, classes: int) -> Score:
    """Return the accuracies of the ranks of the true classes, both (N,)."""
    return Score(
        top1=float((found == 0).mean()),
        top5=float((found < TOP).mean()) if classes > TOP else None,
        balanced=balanced(found == 0, labels),
    )


def balanced(right: np.ndarray, labels: Labels) -> float:
    """Mean of the recalls of the classes that occur. Shape: (N,) bool, (N,)."""
    _, members = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(members, right) / np.bincount(members)))


def majority(train: Labels, test: Labels, classes: int) -> Score:
    """Score of answering the training split's largest classes, the largest first."""
    order = np.argsort(-np.bincount(train, minlength=classes), kind="stable")
    return of_ranks(np.argsort(order)[test], test, classes)


def chance(classes: int) -> Score:
    """Return the expected score of a blind draw among `classes`."""
    one = 1 / max(classes, 1)
    return Score(top1=one, top5=TOP * one if classes > TOP else None, balanced=one)


def class_count(packed: Packed, *labels: Labels) -> int:
    """How many classes a classifier answers with: those that the dataset names, or more if labels hold more."""
    return max(len(packed.manifest.classes), *(int(some.max()) + 1 for some in labels))


def class_name(names: Sequence[str], label: int) -> str:
    """Return the name of a class, `class 7` where the dataset names no such class; empty for a label below 0."""
    return "" if label < 0 else names[label] if label < len(names) else f"class {label}"


def check_classes(packed: Packed, train: Labels, test: Labels) -> int:
    """Return `class_count` of two splits.

    Raises:
        DataError: a class of the test split has no training sample.
    """
    if len(absent := np.setdiff1d(test, train)):
        first = class_name(packed.manifest.classes, int(absent[0]))
        raise DataError(
            f"{len(absent)} of {len(np.unique(test))} classes of the test split have no training sample (first: "
            f"{first!r}), so nothing can learn to answer them; give samples of them, or leave them out of the split"
        )
    return class_count(packed, train, test)


def usable_splits(packed: Packed, benchmark: str) -> tuple[Split, Split, int]:
    """Return the training and the test split of a benchmark, and the number of classes.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a sample has no label, or a class of the test split has no training sample.
    """
    train, test = (labelled_split(packed, benchmark, split) for split in ("train", "test"))
    return train, test, check_classes(packed, train.labels, test.labels)


def no_encoder_scores(packed: Packed, benchmark: str) -> Evaluated:
    """Return the scores of a benchmark that need no encoder: of the majority class and of chance.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a sample has no label.
    """
    train, test = (labelled_split(packed, benchmark, split).labels for split in ("train", "test"))
    classes, m = class_count(packed, train, test), packed.manifest
    return Evaluated(
        dataset=m.dataset,
        title=m.title,
        benchmark=benchmark,
        data_fingerprint=m.fingerprint,
        train=len(train),
        test=len(test),
        majority=majority(train, test, classes),
        chance=chance(classes),
    )
