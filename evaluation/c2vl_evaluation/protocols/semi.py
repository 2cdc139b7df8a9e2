"""Semi-supervised protocol: 1, 5 and 10 % of the labels, drawn several times.

*Reading:* "finetuning the classifier" may freeze the encoder (`frozen`: the linear protocol on the labelled
samples) or not (`tuned`). The paper does not state how labels are drawn: peers take the share of each class
(`stratified`) or of the split (`random`). A draw depends only on its number, so that all encoders get the
same labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from c2vl_evaluation.cache import Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Features, Labels
from c2vl_evaluation.metrics import usable_splits
from c2vl_evaluation.protocols import finetuning, linear
from c2vl_evaluation.results import Result


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
    """Return why a share of these labels cannot be drawn; empty if it can."""
    sizes = np.unique(labels, return_counts=True)[1]
    if sampling == "stratified" and round(share * sizes.min()) == 0:
        none = int((np.round(share * sizes) == 0).sum())
        return (
            f"{100 * share:g} % of the {sizes.min()} clips of a class is less than half a clip ({none} of "
            f"{len(sizes)} classes)"
        )
    if sampling == "random" and (count := _part(share, len(labels))) < len(sizes):
        return f"{100 * share:g} % of {len(labels)} clips are {count}, fewer than the {len(sizes)} classes"
    return ""


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield every setting and draw before it is run.

    Raises:
        DataError: a sample has no label, or a class of the test split no training sample.
    """
    train, config = usable_splits(context.packed, context.benchmark)[0], context.recipe.evaluation.semi
    for share, sampling, encoder in product(config.shares, config.sampling, config.encoder):
        name = f"{100 * share:g} % {sampling}, {encoder}"
        if why := impossible(train.labels, share, sampling):
            absent = ResultWithPredictions(Result(protocol="semi", setting=name, why=why), None)
            yield Cell("semi", partial(_same, absent), None, name)
            continue
        for draw in range(config.draws):
            # drawn where it is computed: a stored result does not need it
            places = partial(subset, train.labels, share, sampling, draw)
            key: dict[str, Any] = {"setting": name, "draw": draw}
            if encoder == "frozen":
                cell = _frozen(context, places, **key)
            else:
                label = f"{context.run.name}, {name}, draw {draw}"
                cell = finetuning.cell(context, "semi", config.tune, label, places, **key)
            yield replace(cell, **key)


def _same(result: ResultWithPredictions) -> ResultWithPredictions:
    return result


def _frozen(context: EvalContext, draw_places: Callable[[], Labels], **key: Any) -> Cell:
    semi, config = context.recipe.evaluation.semi, context.recipe.evaluation.linear

    def compute() -> ResultWithPredictions:
        places, (train, test, classes) = draw_places(), context.features()
        some = Features(train.values[places], train.labels[places], train.rows[places], 0)
        # if a class has one label, holding it out says nothing about the rate
        sweeps = np.unique(some.labels, return_counts=True)[1].min() > 1
        used = config if sweeps else config.model_copy(update={"lrs": (semi.lr,)})
        # standardised by all samples: the others lack labels, not features
        by = linear.standard(train.values, config.standardise)
        found = linear.probe(some, test, classes, used, context.seed, by)
        return ResultWithPredictions(found.result("semi"), context.predictions(test.rows, found.logits))

    return Cell("semi", compute, context.key("semi", config, lr=semi.lr, **key))
