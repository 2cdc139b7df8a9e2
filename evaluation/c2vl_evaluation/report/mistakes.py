"""Wrong answers of the main run, to be seen: the clip and the training clip that its encoder finds nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from c2vl_evaluation.cache import Predictions, softmax
from c2vl_evaluation.features import Features
from c2vl_evaluation.language.search import moving_clip
from c2vl_evaluation.metrics import class_name
from c2vl_manifests.motion import Body
from c2vl_training.dataset import PackedDataset

SHOWN = 6
"""Confusions that are shown, the most frequent first: one clip of each."""


@dataclass(frozen=True)
class Clip:
    """One clip as a moving skeleton."""

    sample_id: str
    name: str
    """Of its class."""
    bodies: Sequence[Body]
    seconds: float


@dataclass(frozen=True)
class Mistake:
    """One wrong answer."""

    clip: Clip
    answer: str
    probability: float
    count: int
    """Wrong answers of this kind, clips of `clip.name` taken for `answer`."""
    of: int
    """Test clips of the class."""
    nearest: Clip
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
    shown = []
    for n, row in zip(chosen, similarity, strict=True):
        at, truth, answer = int(row.argmax()), int(found.labels[n]), int(found.answers[n])
        same = found.labels == truth
        shown.append(
            Mistake(
                clip=_clip(packed, int(test.rows[n])), answer=class_name(names, answer),
                probability=float(sure[n, answer]), count=int((same & (found.answers == answer)).sum()),
                of=int(same.sum()), nearest=_clip(packed, int(train.rows[at])), cosine=float(row[at]),
            )
        )  # fmt: skip
    return shown


def _unit(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)


def _clip(packed: PackedDataset, row: int) -> Clip:
    name = class_name(packed.manifest.classes, int(packed.labels()[row]))
    return Clip(packed.sample_ids([row])[0], name, *moving_clip(packed, row))
