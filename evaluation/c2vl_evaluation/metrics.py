"""Top-1, top-5 and balanced accuracy of class scores, and of answers that need no encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from c2vl_evaluation.features import Labels, Split, labelled_split
from c2vl_evaluation.results import Evaluated, Score
from c2vl_manifests.datasets import dataset_names, load_dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import fingerprint
from c2vl_training.dataset import PackedDataset

TOP = 5


def true_class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the rank of the true class, from 0; of equal scores the lower class is first, as for argmax.

    A row with NaN or infinite scores (a rate that diverged) ranks last. Shape: (N, C), (N,) -> (N,).
    """
    truth = scores.gather(1, labels[:, None])
    lower = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
    before = ((scores > truth) | ((scores == truth) & lower)).sum(dim=1)
    return torch.where(scores.isfinite().all(dim=1), before, scores.shape[1])


def score(scores: Tensor, labels: Tensor) -> Score:
    """Return the accuracies of class scores (N, C) for true classes (N,)."""
    return score_of_ranks(true_class_ranks(scores, labels).cpu().numpy(), labels.cpu().numpy(), scores.shape[1])


def score_of_ranks(ranks: Labels, labels: Labels, classes: int) -> Score:
    """Return the accuracies of the ranks (N,) of the true classes (N,)."""
    return Score(
        top1=float((ranks == 0).mean()),
        top5=float((ranks < TOP).mean()) if classes > TOP else None,
        balanced=balanced(ranks == 0, labels),
    )


def balanced(right: np.ndarray, labels: Labels) -> float:
    """Return the mean recall of the classes that occur. Shape: (N,) bool, (N,)."""
    _, members = np.unique(labels, return_inverse=True)
    return float(np.mean(np.bincount(members, right) / np.bincount(members)))


def majority(train: Labels, test: Labels, classes: int) -> Score:
    """Return the score of always answering the largest classes of the training split."""
    order = np.argsort(-np.bincount(train, minlength=classes), kind="stable")
    return score_of_ranks(np.argsort(order)[test], test, classes)


def chance(classes: int) -> Score:
    """Return the expected score of random answers among `classes`."""
    one = 1 / max(classes, 1)
    return Score(top1=one, top5=TOP * one if classes > TOP else None, balanced=one)


def class_count(packed: PackedDataset, *labels: Labels) -> int:
    """Return the number of classes: those that the dataset names, or more if labels exceed them."""
    return max(len(packed.manifest.classes), *(int(some.max()) + 1 for some in labels))


def class_name(names: Sequence[str], label: int) -> str:
    """Return the name of a class, `class 7` if the dataset does not name it; empty for a negative label."""
    return "" if label < 0 else names[label] if label < len(names) else f"class {label}"


def check_classes(packed: PackedDataset, train: Labels, test: Labels) -> int:
    """Return the number of classes of a training and a test split.

    Raises:
        DataError: a class of the test split has no training sample.
    """
    if len(absent := np.setdiff1d(test, train)):
        first = class_name(packed.manifest.classes, int(absent[0]))
        raise DataError(
            f"{len(absent)} of {len(np.unique(test))} classes of the test split have no training sample "
            f"(first: {first!r}), so nothing can learn to answer them; give samples of them, or leave them "
            "out of the split"
        )
    return class_count(packed, train, test)


def usable_splits(packed: PackedDataset, benchmark: str) -> tuple[Split, Split, int]:
    """Return the training and the test split of a benchmark, and the number of classes.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a sample has no label, or a class of the test split has no training sample.
    """
    train, test = (labelled_split(packed, benchmark, split) for split in ("train", "test"))
    return train, test, check_classes(packed, train.labels, test.labels)


@cache
def data_read(packed: PackedDataset, benchmark: str, kinds: tuple[str, ...] = ()) -> str:
    """Return a hash of what evaluations on a benchmark read: its splits' joints, labels and `kinds`, and class names.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a split is empty.
    """
    rows = [packed.select(benchmark, split).rows for split in ("train", "test")]
    return fingerprint([packed.manifest.classes, *(packed.digests(some, kinds, labels=True) for some in rows)])


def no_encoder_scores(packed: PackedDataset, benchmark: str) -> Evaluated:
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
        data_fingerprint=data_read(packed, benchmark),
        train=len(train),
        test=len(test),
        majority=majority(train, test, classes),
        chance=chance(classes),
        doubles=doubles(packed, benchmark),
        published=load_dataset(m.dataset).published if m.dataset in dataset_names() else "",
    )


def doubles(packed: PackedDataset, benchmark: str) -> int:
    """Return how many usable test samples have the joints of a usable training sample, byte by byte."""
    train, test = (packed.clips(packed.select(benchmark, split).rows).values() for split in ("train", "test"))
    known = set(train)
    return sum(joints in known for joints in test)
