"""Zero-shot recognition: a clip gets the class whose name or description is nearest in the shared space.

Beyond the paper, which trains skeletons toward frozen CLIP vectors (Section III-B) and then evaluates them with labels.
Class texts go through the text encoder that made the data's vectors and then through the run's projector; labels are
used for the score only. Clips of these classes were part of the pre-training, without their names.

`probability` is a softmax of cosines divided by the run's own temperature, learned or fixed, as in its training.

`standardise` gives the cosines to each class zero mean and unit deviation over the test clips: a class whose text lies near
all clips no longer wins most of them. It needs no label, and all test clips at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import BaseModel

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import cached, table_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, labels_of
from c2vl_evaluation.language import caption_words
from c2vl_evaluation.language.class_prompts import ClassPrompts, class_texts
from c2vl_evaluation.language.shared_space import cosines, open_space
from c2vl_evaluation.results import Score
from c2vl_manifests.errors import DataError

PERMUTATIONS = 199
SIGNIFICANT = 0.05
"""Share of permutations that may do as well as the true names before they count as distinguishable."""


class Control(BaseModel, frozen=True, extra="forbid"):
    """Score of the same clips with permuted class texts: a paired test of whether the names matter.

    All permutations are equally likely, the true one included, so the mean is chance up to luck, and the standard
    deviation measures the luck.
    """

    draws: int
    mean: Score
    std: Score
    p: float
    """Share of permutations, the true one included, with a top-1 at least as high as the true one's."""


class ByTexts(BaseModel, frozen=True, extra="forbid"):
    """Result of recognition by class texts on one run: what `ZeroShot` and `unseen.Unseen` share."""

    protocol: Literal["zeroshot"] = "zeroshot"
    through: Literal["language", "vision"]
    texts: int
    described: bool
    """Class texts are from a file, not the names of the classes."""
    standardised: bool = False
    """Scores are standardised cosines."""
    temperature: float
    """Divides cosines before the softmax of the stored probabilities; ranks do not depend on it."""
    last: Score
    shuffled: Control
    chance: Score
    answered: int
    """Number of classes that any clip was answered with."""
    test: int
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class ZeroShot(ByTexts):
    """Result among all classes."""

    majority: Score | None
    """None if training samples have no labels, which are not needed."""
    classes: int

    def verdict(self) -> str:
        """Return how many classes were ever answered, and whether the names matter at all."""
        return verdict(self.answered, self.classes, self.shuffled.p)


def verdict(answered: int, classes: int, p: float, kind: str = "") -> str:
    """Return how many of some classes, e.g. the `unseen ` ones, were answered, and whether their names matter."""
    said = f"{answered} of {classes} {kind}classes were ever answered"
    if p <= SIGNIFICANT:
        return f"{said}; better than permuted names (p = {p:.3f})"
    few = math.factorial(classes) * SIGNIFICANT < 1
    why = f"; {classes} classes have too few orders to tell" if few else ""
    return f"{said}; not distinguishable from permuted names (p = {p:.3f}{why})"


def evaluate(
    context: EvalContext,
    descriptions: Path | None = None,
    encoder: Path | None = None,
    standardise: bool = False,
    class_vectors: Path | None = None,
) -> ZeroShot:
    """Evaluate a run on the test split, or return the stored result.

    Args:
        context: a finished pre-training, and the data that it is evaluated on.
        descriptions: file of class descriptions; the names of the classes unless given.
        encoder: folder of the text encoder's checkpoint, if it was moved.
        standardise: the cosines to each class over the test clips.
        class_vectors: file of vectors of the classes, made elsewhere; no text encoder is loaded then.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: a class has no text or vector, or texts cannot be compared with clips of the run.
        DataError: a test sample has no label.
        EngineError: the text encoder cannot be loaded.
    """
    packed, shared = context.packed, open_space(context, encoder, made_elsewhere=class_vectors is not None)
    test = packed.select(context.benchmark, "test").rows
    labels = labels_of(packed, test, f"test samples of {context.benchmark}")
    classes = metrics.class_count(packed, labels)
    prompts = ClassPrompts.of(shared, classes, descriptions, class_vectors)

    def compute() -> tuple[ZeroShot, pa.Table]:
        targets, notes = prompts.embed(shared)
        clips, rows = shared.clips("test")
        values = cosines(clips, targets).numpy().astype(np.float32)
        temperature = shared.temperature
        if standardise:
            values, temperature = standardised(values), 1.0
        last, shuffled = control(values, labels)
        result = ZeroShot(
            through=shared.through,
            texts=sum(prompts.counts),
            described=prompts.described,
            standardised=standardise,
            temperature=temperature,
            last=last,
            shuffled=shuffled,
            chance=metrics.chance(classes),
            majority=_majority(context, labels, classes),
            classes=classes,
            answered=len(np.unique(values.argmax(axis=1))),
            test=len(rows),
            notes=tuple(notes),
        )
        predictions = context.predictions(rows, values)
        return result, table_of(predictions, packed.manifest.classes, temperature)

    further = {"standardise": True} if standardise else {}
    return cached(shared.key("zeroshot", **prompts.facts, **further), ZeroShot, compute)


def standardised(values: Array) -> Array:
    """Return cosines with zero mean and unit deviation per class; a class at the same cosine to all clips gets zeros.

    Shape: (N, C) -> the same.
    """
    deviations = values - values.mean(axis=0, dtype=np.float64)
    return np.asarray(deviations / np.maximum(deviations.std(axis=0), 1e-12), np.float32)


def words_note(context: EvalContext, descriptions: Path | None = None) -> str:
    """Return a note on class texts in words that no caption of the data holds; empty if there are none."""
    packed = context.packed
    labels = packed.labels()[packed.select(context.benchmark, "test").rows]
    texts = class_texts(packed, metrics.class_count(packed, labels), descriptions)
    known = caption_words.vocabulary(packed.folder.parent / "captions", [text for of in texts for text in of])
    strange = [unknown for of in texts if (unknown := caption_words.unknown_words(of, known))]
    if not strange:
        return ""
    hint = caption_words.hint(list(dict.fromkeys(word for of in strange for word in of)), known)
    remedy = "; describe them in words of the captions by --descriptions FILE" if descriptions is None else ""
    return f"{hint} {len(strange)} of {len(texts)} classes are named in such words{remedy}."


def control(values: Array, labels: Labels, draws: int = PERMUTATIONS) -> tuple[Score, Control]:
    """Return the score of cosines per class, and of the same with permuted class texts; the draws are fixed.

    Shape: (N, C), (N,)
    """
    scores, truth = torch.from_numpy(values), torch.from_numpy(labels)
    last, rng = metrics.score(scores, truth), np.random.default_rng(0)
    drawn = [metrics.score(scores[:, rng.permutation(values.shape[1])], truth) for _ in range(draws)]
    table = np.array([[s.top1, np.nan if s.top5 is None else s.top5, s.balanced] for s in drawn])
    reached = 1 + sum(s.top1 >= last.top1 for s in drawn)
    mean, std = _score(table.mean(axis=0)), _score(table.std(axis=0, ddof=1))
    return last, Control(draws=draws, mean=mean, std=std, p=reached / (draws + 1))


def _score(row: npt.NDArray[Any]) -> Score:
    top1, top5, balanced = map(float, row)
    return Score(top1=top1, top5=None if np.isnan(top5) else top5, balanced=balanced)


def _majority(context: EvalContext, labels: Labels, classes: int) -> Score | None:
    try:
        known = context.packed.labels()[context.packed.select(context.benchmark, "train").rows]
    except DataError:  # no training samples
        return None
    return None if (known < 0).any() else metrics.majority(known, labels, max(classes, int(known.max()) + 1))
