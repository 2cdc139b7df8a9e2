"""Zero-shot recognition as the field measures it: some classes are unseen, alone (ZSL) and among all classes (GZSL).

ZSL: test clips of unseen classes get the nearest unseen class. GZSL: all test clips get one of all classes; the result is
the accuracy on clips of seen and of unseen classes, and the harmonic mean of both (Xian et al., TPAMI 2018).
Calibrated stacking (Chao et al., ECCV 2016) subtracts a constant from the cosines to seen classes.

*Reading:* Chao et al. choose the constant on seen classes that an encoder trained without them takes for unseen. No further
encoder is trained here. The constant is the one with the highest mean harmonic mean over `DRAWS` random choices of as many
seen classes as are unseen, played as unseen, on the training clips of seen classes. No test subject, and no clip or label
of an unseen class, takes part. It compensates for the small number of unseen classes, not for the encoder's bias
toward classes it was trained on. The training clips that it is chosen on may be those of the pre-training, which saw no label of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import cached, table_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Labels, labels_of
from c2vl_evaluation.language.class_prompts import ClassPrompts
from c2vl_evaluation.language.class_split import ClassSplit, class_split, published
from c2vl_evaluation.language.shared_space import SharedSpace, cosines, open_space
from c2vl_evaluation.language.zeroshot import PERMUTATIONS, ByTexts, control, standardised, verdict
from c2vl_manifests.errors import DataError

DRAWS = 20
"""Choices of seen classes that are played as unseen."""
_GRID = 400
"""Constants that are compared: quantiles of the margins between seen and unseen classes."""

Scores = npt.NDArray[np.floating[Any]]


class SeenUnseen(BaseModel, frozen=True, extra="forbid"):
    """Accuracies among all classes, in [0, 1]."""

    seen: float
    unseen: float
    harmonic: float
    seen_balanced: float
    unseen_balanced: float


class Generalised(BaseModel, frozen=True, extra="forbid"):
    """Recognition among all classes."""

    test: int
    plain: SeenUnseen
    calibrated: SeenUnseen | None
    """None where nothing could be calibrated on; a note says why."""
    constant: float | None
    """Subtracted from the cosines to seen classes; not negative."""
    calibrated_on: int
    """Number of training clips."""
    shuffled: SeenUnseen
    """Mean over permutations of all class texts, with the constant if there is one."""
    shuffled_std: SeenUnseen
    chance: SeenUnseen


class Unseen(ByTexts):
    """Result on the unseen classes: scores are of their test clips among them alone, but for `generalised`."""

    dataset: str
    benchmark: str
    split: str
    """Name of the dataset's own split; empty for another choice of classes."""
    unseen: tuple[str, ...]
    """Names of the unseen classes."""
    generalised: Generalised | None
    """None where no test clip is of a seen class."""

    @property
    def published(self) -> dict[str, float]:
        """Published top-1 on this split, method -> [0, 1]; their encoders are trained with labels of the seen classes."""
        return published(self.dataset, self.benchmark, self.split)

    def verdict(self) -> str:
        """Return how many unseen classes were ever answered, and whether their names matter."""
        return verdict(self.answered, len(self.unseen), self.shuffled.p, "unseen ")


def evaluate(
    context: EvalContext,
    words: Sequence[str],
    descriptions: Path | None = None,
    encoder: Path | None = None,
    standardise: bool = False,
    class_vectors: Path | None = None,
) -> Unseen:
    """Evaluate a run on the unseen classes of a split, or return the stored result.

    Args:
        context: a finished pre-training, and the data that it is evaluated on.
        words: name of a zero-shot split, or names and numbers of the unseen classes.
        descriptions: see `zeroshot.evaluate`.
        encoder: see `zeroshot.evaluate`.
        standardise: the cosines to each class, over the clips that are recognised together.
        class_vectors: see `zeroshot.evaluate`.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: the words name no such classes, or a class has no text.
        DataError: a test sample has no label, or none is of an unseen class.
        EngineError: the text encoder cannot be loaded.
    """
    packed, split = context.packed, class_split(context.packed, words)
    shared = open_space(context, encoder, made_elsewhere=class_vectors is not None)
    rows = packed.select(context.benchmark, "test").rows
    labels = labels_of(packed, rows, f"test samples of {context.benchmark}")
    if not np.isin(labels, split.unseen).any():
        raise DataError(
            f"no test clip of {context.benchmark} is of an unseen class ({', '.join(split.unseen_names)}); name classes that "
            "occur there"
        )
    prompts = ClassPrompts.of(shared, split.classes, descriptions, class_vectors)

    def compute() -> tuple[Unseen, pa.Table]:
        targets, notes = prompts.embed(shared)
        values = cosines(shared.clips("test")[0], targets).numpy()
        temperature = 1.0 if standardise else shared.temperature
        alone = np.isin(labels, split.unseen)
        among = np.asarray(values[alone][:, split.unseen], np.float32)
        own = np.searchsorted(split.unseen, labels[alone])
        among = standardised(among) if standardise else among
        last, shuffled = control(among, own)
        notes += _notes(split, labels)
        values = standardised(values).astype(np.float64) if standardise else values
        general, constant = None, np.inf  # without clips of seen classes no seen class is answered
        if not alone.all():
            found, clips = _calibrated(shared, split, targets, standardise)
            if found is None:
                notes.append(
                    "Nothing could be calibrated: the training split has no labelled clips of two seen classes."
                )
            general, constant = generalise(values, labels, split, found, clips), found or 0.0
        result = Unseen(
            dataset=packed.manifest.dataset,
            benchmark=context.benchmark,
            split=split.name,
            unseen=split.unseen_names,
            through=shared.through,
            texts=sum(prompts.counts),
            described=prompts.described,
            standardised=standardise,
            temperature=temperature,
            last=last,
            shuffled=shuffled,
            chance=metrics.chance(len(split.unseen)),
            answered=len(np.unique(among.argmax(axis=1))),
            test=int(alone.sum()),
            generalised=general,
            notes=tuple(notes),
        )
        predictions = context.predictions(rows, np.asarray(stacked(values, split.unseen, constant), np.float32))
        return result, table_of(predictions, packed.manifest.classes, temperature)

    further = {"unseen": split.unseen.tolist()} | ({"standardise": True} if standardise else {})
    return cached(shared.key("zeroshot", **prompts.facts, **further), Unseen, compute)


def _notes(split: ClassSplit, labels: Labels) -> list[str]:
    """Return notes on classes that no test clip is of."""
    absent = [split.names[number] for number in split.unseen if number not in labels]
    notes = (
        [f"No test clip is of the unseen classes {', '.join(absent)}; they can only be answered wrongly."]
        if absent
        else []
    )
    if np.isin(labels, split.unseen).all():
        notes.append("No test clip is of a seen class, so there is no generalised result.")
    return notes


def stacked(values: Scores, unseen: Labels, constant: float) -> Scores:
    """Subtract the constant of calibrated stacking from the scores of seen classes. Shape: (N, C) -> the same."""
    return np.asarray(values - np.where(np.isin(np.arange(values.shape[1]), unseen), 0.0, constant))


def generalise(values: Scores, labels: Labels, split: ClassSplit, constant: float | None, clips: int) -> Generalised:
    """Score all clips among all classes: as they are, calibrated, and with permuted class texts; the draws are fixed.

    Args:
        values: cosines. Shape (N, C).
        labels: Shape (N,).
        split: which classes are unseen.
        constant: of calibrated stacking.
        clips: number of clips that it was chosen on.
    """
    rng, fields = np.random.default_rng(0), list(SeenUnseen.model_fields)
    drawn = []
    for _ in range(PERMUTATIONS):
        permuted = np.take(values, rng.permutation(values.shape[1]), axis=1)  # a tenth of the time of an index
        drawn.append(seen_unseen(stacked(permuted, split.unseen, constant or 0.0), labels, split.unseen))
    table = np.array([[getattr(one, field) for field in fields] for one in drawn])
    mean, std = (
        SeenUnseen(**dict(zip(fields, map(float, row), strict=True))) for row in (table.mean(0), table.std(0, ddof=1))
    )
    one = 1 / split.classes
    calibrated = None
    if constant is not None:
        calibrated = seen_unseen(stacked(values, split.unseen, constant), labels, split.unseen)
    return Generalised(
        test=len(labels),
        plain=seen_unseen(values, labels, split.unseen),
        calibrated=calibrated,
        constant=constant,
        calibrated_on=clips,
        shuffled=mean,
        shuffled_std=std,
        chance=SeenUnseen(seen=one, unseen=one, harmonic=one, seen_balanced=one, unseen_balanced=one),
    )


def seen_unseen(scores: Scores, labels: Labels, unseen: Labels) -> SeenUnseen:
    """Return the accuracies on clips of seen and of unseen classes. Shape: (N, C), (N,), (U,)."""
    right, new = scores.argmax(axis=1) == labels, np.isin(labels, unseen)
    s, u = float(right[~new].mean()), float(right[new].mean())
    balanced = [metrics.balanced(right[part], labels[part]) for part in (~new, new)]
    return SeenUnseen(
        seen=s, unseen=u, harmonic=float(harmonic(s, u)), seen_balanced=balanced[0], unseen_balanced=balanced[1]
    )


def harmonic(seen: npt.ArrayLike, unseen: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the harmonic mean of two accuracies; 0 where both are 0."""
    s, u = np.asarray(seen, np.float64), np.asarray(unseen, np.float64)
    return np.asarray(2 * s * u / np.where(s + u > 0, s + u, 1))


def _calibrated(shared: SharedSpace, split: ClassSplit, targets: Any, standardise: bool) -> tuple[float | None, int]:
    """Return the constant of calibrated stacking and the number of clips it was chosen on; None where there are too few."""
    packed, benchmark = shared.context.packed, shared.context.benchmark
    try:
        known = packed.labels()[packed.select(benchmark, "train").rows]
    except DataError:  # no training samples
        return None, 0
    used = np.isin(known, split.seen)
    if len(np.unique(known[used])) < 2:
        return None, 0
    values = cosines(shared.clips("train")[0][np.flatnonzero(used)], targets[split.seen]).numpy()
    values = standardised(values).astype(np.float64) if standardise else values
    labels = np.searchsorted(split.seen, known[used])
    return calibration(values, labels, len(split.unseen)), int(used.sum())


def calibration(values: Scores, labels: Labels, count: int) -> float:
    """Choose the constant of calibrated stacking, 0 or more, on clips of seen classes, see the module; the draws are fixed.

    Args:
        values: cosines of clips to the seen classes. Shape (N, S).
        labels: their classes, at least two different ones. Shape (N,).
        count: classes to be played as unseen in each draw; at most half of those that occur.
    """
    rng, present = np.random.default_rng(0), np.unique(labels)
    size = min(count, len(present) // 2)
    draws = [_Played.of(values, labels, rng.choice(present, size, replace=False)) for _ in range(DRAWS)]
    margins = np.concatenate([np.concatenate([draw.seen, draw.unseen]) for draw in draws])
    grid = np.zeros(1)
    if len(margins):
        grid = np.append(grid, np.maximum(np.quantile(margins, np.linspace(0, 1, _GRID)), 0))
    found = np.sum([draw.harmonic(grid) for draw in draws], axis=0)
    best = grid[found >= found.max() - 1e-9]
    return float(best[np.abs(best).argmin()])


@dataclass(frozen=True)
class _Played:
    """Clips where some seen classes are played as unseen.

    The margin of a clip is its best score of a seen class less its best of an unseen one: where the constant exceeds it, the
    clip is answered with an unseen class.
    """

    seen: Scores
    """Sorted margins of the clips of seen classes that are right among seen classes."""
    unseen: Scores
    """The same of unseen classes."""
    counts: tuple[int, int]
    """All clips of seen and of unseen classes."""

    @classmethod
    def of(cls, values: Scores, labels: Labels, played: Labels) -> _Played:
        """Play some classes as unseen. Shape: (N, S), (N,), (P,)."""
        new, columns = np.isin(labels, played), np.isin(np.arange(values.shape[1]), played)
        seen, unseen = np.where(columns, -np.inf, values), np.where(columns, values, -np.inf)
        margins = seen.max(axis=1) - unseen.max(axis=1)
        right = np.where(new, unseen.argmax(axis=1), seen.argmax(axis=1)) == labels
        return cls(np.sort(margins[right & ~new]), np.sort(margins[right & new]), (int((~new).sum()), int(new.sum())))

    def harmonic(self, constants: Scores) -> Scores:
        """Return the harmonic mean of both accuracies under each constant. Shape: (G,) -> the same."""
        seen = (len(self.seen) - np.searchsorted(self.seen, constants)) / self.counts[0]
        return harmonic(seen, np.searchsorted(self.unseen, constants) / self.counts[1])
