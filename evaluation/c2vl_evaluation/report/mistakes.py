"""Wrong answers of the main run, to be seen: the clip and the training clip that its encoder finds nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from c2vl_evaluation.cache import Predictions, softmax
from c2vl_evaluation.clips import clip_cards
from c2vl_evaluation.features import Features
from c2vl_evaluation.metrics import class_name
from c2vl_training.dataset import PackedDataset

if TYPE_CHECKING:
    from c2vl_pipeline.browse.cards import Card

SHOWN = 6
"""Confusions that are shown, the most frequent first: one clip of each."""


@dataclass(frozen=True)
class Mistake:
    """One wrong answer."""

    clip: Card
    answer: str
    probability: float
    count: int
    """Wrong answers of this kind, clips of `clip.name` taken for `answer`."""
    of: int
    """Test clips of the class."""
    nearest: Card
    """The training clip whose features have the highest cosine with the clip's."""
    cosine: float


def worst(found: Predictions, limit: int = SHOWN) -> list[int]:
    """Return one test clip of each of the most frequent confusions: the one answered with the highest probability."""
    wrong = np.flatnonzero((found.answers != found.labels) & (found.labels >= 0))
    kinds: dict[tuple[int, int], list[int]] = {}
    for n in wrong.tolist():
        kinds.setdefault((int(found.labels[n]), int(found.answers[n])), []).append(n)
    sure = softmax(found.scores).max(axis=1)
    order = sorted(kinds.values(), key=lambda clips: -len(clips))[:limit]
    return [max(clips, key=lambda n: sure[n]) for clips in order]


def mistakes(packed: PackedDataset, found: Predictions, test: Features, train: Features) -> list[Mistake]:
    """Return the mistakes to show.

    Args:
        packed: the data.
        found: answers to the test clips, in the order of `test`.
        test: frozen features of the test split.
        train: frozen features of the training split.
    """
    names, sure = packed.manifest.classes, softmax(found.scores)
    chosen = worst(found)
    similarity = _unit(test.values[chosen]) @ _unit(train.values).T
    nearest = similarity.argmax(axis=1)
    cards = clip_cards(packed, [*test.rows[chosen].tolist(), *train.rows[nearest].tolist()])
    shown = []
    for place, n in enumerate(chosen):
        truth, answer = int(found.labels[n]), int(found.answers[n])
        same = found.labels == truth
        shown.append(
            Mistake(
                clip=cards[place], answer=class_name(names, answer), probability=float(sure[n, answer]),
                count=int((same & (found.answers == answer)).sum()), of=int(same.sum()),
                nearest=cards[place + len(chosen)], cosine=float(similarity[place, nearest[place]]),
            )
        )  # fmt: skip
    return shown


def _unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)
