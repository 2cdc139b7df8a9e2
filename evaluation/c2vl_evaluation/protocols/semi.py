"""Semi-supervised protocol: 1, 5 and 10 % of the labels, drawn several times.

*Reading:* "finetuning the classifier" may leave the encoder as it is (`frozen`: the linear protocol on the labelled
samples) or not (`tuned`). How labels are drawn is not said either: peers take the share of each class (`stratified`)
or of the split (`random`). Draws depend on nothing but their number, so that all encoders are given the same labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from c2vl_evaluation.cache import Outcome, Subject, kept
from c2vl_evaluation.features import Features, Labels
from c2vl_evaluation.metrics import check_classes
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.protocols.finetuning import Cell, Job, labelled, tune
from c2vl_evaluation.results import Finding
from c2vl_manifests.events import Emit, silent
from c2vl_manifests.recipe import SemiConfig


def subset(labels: Labels, share: float, sampling: str, draw: int) -> Labels:
    """Return the places of the labelled samples of a draw, in order. Shape: (N,) -> (n,)."""
    rng = np.random.default_rng([draw, round(1e6 * share), sampling == "stratified"])
    if sampling == "random":
        return np.sort(rng.permutation(len(labels))[: _part(share, len(labels))])
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[: round(share * (labels == label).sum())]
        for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(chosen))


def _part(share: float, count: int) -> int:
    return int(share * count + 1e-9)  # 0.07 x 100 is 7


def impossible(labels: Labels, share: float, sampling: str) -> str:
    """Say why a share of these labels makes no sense; empty where it does."""
    sizes = np.unique(labels, return_counts=True)[1]
    if sampling == "stratified" and round(share * sizes.min()) == 0:
        none = int((np.round(share * sizes) == 0).sum())
        return (
            f"{100 * share:g} % of the {sizes.min()} clips of a class is less than half a clip "
            f"({none} of {len(sizes)} classes)"
        )
    if sampling == "random" and (count := _part(share, len(labels))) < len(sizes):
        return f"{100 * share:g} % of {len(labels)} clips are {count}, fewer than the {len(sizes)} classes"
    return ""


def settings(config: SemiConfig) -> Iterator[tuple[float, str, str]]:
    """Yield share, sampling and encoder of every setting."""
    for share in config.shares:
        for sampling in config.sampling:
            for encoder in config.encoder:
                yield share, sampling, encoder


def cells(subject: Subject, emit: Emit = silent) -> Iterator[Cell]:
    """Yield every setting and draw before it is run.

    Raises:
        DataError: a sample has no label, or a class of the test split no training sample.
    """
    train, test = labelled(subject)
    check_classes(subject.packed, train, test)
    for share, sampling, encoder in settings(subject.recipe.evaluation.semi):
        name = f"{100 * share:g} % {sampling}, {encoder}"
        if why := impossible(train.labels, share, sampling):
            absent = Outcome(Finding(protocol="semi", setting=name, why=why), None)
            yield Cell("semi", name, 0, partial(_same, absent))
            continue
        for draw in range(subject.recipe.evaluation.semi.draws):
            places = subset(train.labels, share, sampling, draw)
            how = _frozen if encoder == "frozen" else _tuned
            yield Cell("semi", name, draw, partial(how, subject, name, places, draw, emit))


def _same(outcome: Outcome) -> Outcome:
    return outcome


def _frozen(subject: Subject, name: str, places: Labels, draw: int, emit: Emit) -> Outcome:
    semi, config = subject.recipe.evaluation.semi, subject.recipe.evaluation.linear

    def compute() -> Outcome:
        train, test, classes = subject.splits()
        some = Features(train.values[places], train.labels[places], train.rows[places], 0)
        # held out of a class that has one label, a sample says nothing about the rate
        sweeps = np.unique(some.labels, return_counts=True)[1].min() > 1
        used = config if sweeps else config.model_copy(update={"lrs": (semi.lr,)})
        # the other samples lack labels, not features
        by = linear.standard(train.values)
        found = linear.probe(some, test, classes, used, subject.seed, by)
        return found.outcome(subject, test, used, len(places), protocol="semi", setting=name, draw=draw)

    return kept(subject.task("semi", config, setting=name, draw=draw, lr=semi.lr), compute)


def _tuned(subject: Subject, name: str, places: Labels, draw: int, emit: Emit) -> Outcome:
    config = subject.recipe.evaluation.semi.tune

    def compute() -> Outcome:
        train, test = labelled(subject)
        classes = check_classes(subject.packed, train, test)
        label = f"{subject.run.name}, {name}, draw {draw}"
        job = Job(subject, train.rows[places], test.rows, classes, config, label)
        return tune(job, emit).outcome(job, "semi", name, draw)

    precision = subject.recipe.training.precision
    return kept(subject.task("semi", config, setting=name, draw=draw, precision=precision), compute)
