"""Zero-shot recognition: a clip gets the class whose name or description is nearest in the shared space.

Beyond the paper, which trains skeletons toward frozen CLIP vectors (Section III-B) and then evaluates them with labels.
Class texts go through the text encoder that made the data's vectors and then through the run's projector; labels are
used for the score only. Clips of these classes were part of the pre-training, without their names.

*Reading:* several descriptions of a class become one vector like the captions of a sample: the mean of L2-normalised
vectors, normalised again, before the projector.

`probability` is a softmax of cosines divided by the run's own temperature, learned or fixed, as in its training.

`standardise` gives the cosines to each class zero mean and unit deviation over the test clips: a class whose text lies near
all clips no longer wins most of them. It needs no label, and all test clips at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
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
from c2vl_evaluation.language.shared_space import cosines, open_space
from c2vl_evaluation.results import Score
from c2vl_manifests.errors import ConfigError, DataError, one_line
from c2vl_manifests.manifest import remembered_sha256
from c2vl_manifests.reading import from_json, from_toml, read_text
from c2vl_manifests.vectors import read_vectors
from c2vl_training.dataset import PackedDataset

PERMUTATIONS = 199
SIGNIFICANT = 0.05
"""Share of permutations that may do as well as the true names before they count as distinguishable."""


def class_texts(packed: PackedDataset, classes: int, path: Path | None = None) -> tuple[tuple[str, ...], ...]:
    """Return the texts of each class: its name, or its descriptions in a file.

    Args:
        packed: for the names of the classes.
        classes: number of classes.
        path: TOML or JSON with one entry per class: its name = a description or a list of them.

    Raises:
        ConfigError: a class without name or description, an unreadable file, an unknown class, a class that the file
            leaves out, or an entry that is not a text.
    """
    named = packed.manifest.classes[:classes]
    if path is None:
        if len(named) < classes or not all(name.strip() for name in named):
            unnamed = classes - sum(bool(name.strip()) for name in named)
            raise ConfigError(
                f"{unnamed} of {classes} classes of {packed.manifest.title} have no name; describe them by --descriptions"
            )
        return tuple((name,) for name in named)
    names = [metrics.class_name(named, n) for n in range(classes)]
    given = _load(path)
    _check_names(given, names, packed, path)
    for name, value in given.items():
        texts = [value] if isinstance(value, str) else value
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
            raise ConfigError(f"{path}: {name!r} = {value!r}; expected a description or a list of them")
        given[name] = tuple(texts)
    return tuple(given[name] for name in names)


def _load(path: Path) -> dict[str, Any]:
    form, read = ("JSON", from_json) if path.suffix.lower() == ".json" else ("TOML", from_toml)
    try:
        entries = read(read_text(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give a TOML or JSON file of class descriptions") from error
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as {form} ({one_line(error)})") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: holds no table; expected one entry per class: its name = [descriptions]")
    return entries


def class_means(vectors: Array, counts: Sequence[int]) -> Array:
    """Average the unit vectors of each class and normalise the mean. Shape: (n, K), C counts -> (C, K)."""
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), starts, axis=0)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), np.float32)


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


class ZeroShot(BaseModel, frozen=True, extra="forbid"):
    """Result on one run."""

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
    majority: Score | None
    """None if training samples have no labels, which are not needed."""
    classes: int
    answered: int
    """Number of classes that any clip was answered with."""
    test: int
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def verdict(self) -> str:
        """Return how many classes were ever answered, and whether the names matter at all."""
        said = f"{self.answered} of {self.classes} classes were ever answered"
        if self.shuffled.p <= SIGNIFICANT:
            return f"{said}; better than permuted names (p = {self.shuffled.p:.3f})"
        few = math.factorial(self.classes) * SIGNIFICANT < 1
        why = f"; {self.classes} classes have too few orders to tell" if few else ""
        return f"{said}; not distinguishable from permuted names (p = {self.shuffled.p:.3f}{why})"


def class_vectors(packed: PackedDataset, classes: int, path: Path, width: int) -> list[Array]:
    """Return the vectors of each class that were made elsewhere, of this width: C arrays (k, K), see `c2vl_manifests.vectors`.

    Raises:
        ConfigError: an unknown class, a class that the file leaves out, or another width.
        DataError: the file is of another form.
    """
    held = read_vectors(path, "class")
    names = [metrics.class_name(packed.manifest.classes[:classes], n) for n in range(classes)]
    _check_names(held.by_name, names, packed, path)
    if held.width != width:
        raise ConfigError(
            f"{path}: vectors of width {held.width}; expected {width}, that of the vectors of {packed.folder} that the run was "
            "trained toward, by the same model"
        )
    return [np.asarray(held.by_name[name], np.float32) for name in names]


def _check_names(given: Iterable[str], names: list[str], packed: PackedDataset, path: Path) -> None:
    """Raise ConfigError unless a file has an entry for every class, and for nothing else."""
    given = list(given)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the first class is {names[0]!r}"
            raise ConfigError(f"{path}: {name!r} is not a class of {packed.manifest.title}{hint}")
    if absent := [name for name in names if name not in given]:
        raise ConfigError(
            f"{path}: describes {len(given)} of {len(names)} classes; the first without a description is {absent[0]!r}"
        )


def evaluate(
    context: EvalContext,
    descriptions: Path | None = None,
    encoder: Path | None = None,
    standardise: bool = False,
    vectors_of_classes: Path | None = None,
) -> ZeroShot:
    """Evaluate a run on the test split, or return the stored result.

    Args:
        context: a finished pre-training, and the data that it is evaluated on.
        descriptions: file of class descriptions; the names of the classes unless given.
        encoder: folder of the text encoder's checkpoint, if it was moved.
        standardise: the cosines to each class over the test clips.
        vectors_of_classes: file of vectors of the classes, made elsewhere; no text encoder is loaded then.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: a class has no text, or texts cannot be compared with clips of the run.
        DataError: a test sample has no label.
        EngineError: the text encoder cannot be loaded.
    """
    if vectors_of_classes is not None and descriptions is not None:
        raise ConfigError("--class-vectors and --descriptions say the same in two ways; give one of them")
    packed, shared = context.packed, open_space(context, encoder, made_elsewhere=vectors_of_classes is not None)
    test = packed.select(context.benchmark, "test").rows
    labels = labels_of(packed, test, f"test samples of {context.benchmark}")
    classes = metrics.class_count(packed, labels)
    given, facts = None, dict[str, Any]()
    if vectors_of_classes is None:
        texts = class_texts(packed, classes, descriptions)
        counts, facts = [len(of) for of in texts], {"texts": texts}
    else:
        width = packed.manifest.language_dim if shared.through == "language" else packed.manifest.vision_dim
        given = class_vectors(packed, classes, vectors_of_classes, width)
        counts, facts = [len(of) for of in given], {"class_vectors": remembered_sha256(vectors_of_classes)}

    def compute() -> tuple[ZeroShot, pa.Table]:
        if given is None:
            vectors, truncated = shared.texts([text for of in texts for text in of])
        else:
            vectors, truncated = np.concatenate(given), 0
        targets = shared.project(class_means(vectors, counts))
        clips, rows = shared.clips("test")
        values = cosines(clips, targets).numpy().astype(np.float32)
        temperature = shared.temperature
        if standardise:
            values, temperature = standardised(values), 1.0
        last, shuffled = control(values, labels)
        notes = shared.notes()
        if given is not None:
            notes.append(
                "The vectors of the classes were made elsewhere: they are taken to be of the model of the data's."
            )
        if truncated:
            notes.append(f"{truncated} of {len(vectors)} texts are longer than the encoder reads.")
        result = ZeroShot(
            through=shared.through,
            texts=len(vectors),
            described=descriptions is not None or given is not None,
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

    facts |= {"standardise": True} if standardise else {}
    return cached(shared.key("zeroshot", **facts), ZeroShot, compute)


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
