"""Zero-shot recognition: a clip is given the class whose name or description lies nearest in the shared space.

Beyond the paper, which trains skeletons toward frozen CLIP vectors (Section III-B) and then asks them with labels only.
Class texts go through the text encoder that made the data's vectors and then through the run's projector; no label
takes part. Clips of these classes did take part in the pre-training, without their names.

*Reading:* several descriptions of a class become one vector as the captions of a sample do: the mean of L2-normalised
vectors, normalised again, before the projector.

`probability` is a softmax of cosines divided by the run's own temperature, learned or fixed, as in its training.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
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
from c2vl_evaluation.language.shared_space import cosines, enter
from c2vl_evaluation.results import Score
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_training.dataset import Packed

PERMUTATIONS = 199


def class_texts(packed: Packed, classes: int, path: Path | None = None) -> tuple[tuple[str, ...], ...]:
    """Return the texts of each class: its name, or what a file says.

    Args:
        packed: for the names of the classes.
        classes: how many there are.
        path: TOML or JSON, one entry a class: its name = a description or a list of them.

    Raises:
        ConfigError: a class without a name and without a description, an unreadable file, an unknown class, a class that
            the file leaves out, or something that is no text.
    """
    named = packed.manifest.classes[:classes]
    if path is None:
        if len(named) < classes or not all(name.strip() for name in named):
            raise ConfigError(
                f"{classes - sum(bool(n.strip()) for n in named)} of {classes} classes of {packed.manifest.title} have no name; describe them by --descriptions"
            )
        return tuple((name,) for name in named)
    names = [metrics.class_name(named, n) for n in range(classes)]
    given = _parsed(path)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the first class is {names[0]!r}"
            raise ConfigError(f"{path}: {name!r} is no class of {packed.manifest.title}{hint}")
    if absent := [name for name in names if name not in given]:
        raise ConfigError(
            f"{path}: describes {len(given)} of {len(names)} classes; the first without a description is {absent[0]!r}"
        )
    for name, value in given.items():
        texts = [value] if isinstance(value, str) else value
        if not (isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts)):
            raise ConfigError(f"{path}: {name!r} = {value!r}; expected a description or a list of them")
        given[name] = tuple(texts)
    return tuple(given[name] for name in names)


def _parsed(path: Path) -> dict[str, Any]:
    form, read = ("JSON", json.loads) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        found = read(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; give a TOML or JSON file of class descriptions") from error
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as {form} ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: holds no table; expected one entry a class: its name = [descriptions]")
    return found


def averaged(vectors: Array, counts: Sequence[int]) -> Array:
    """Average the unit vectors of each class and normalise the mean. Shape: (n, K), C counts -> (C, K)."""
    starts = np.cumsum([0, *counts[:-1]])
    sums = np.add.reduceat(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), starts, axis=0)
    return np.asarray(sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12), np.float32)


class Control(BaseModel, frozen=True, extra="forbid"):
    """The same clips with class texts permuted: what a naming drawn at random reaches.

    All permutations are equally likely, the true one included, so that the mean is chance but for luck; the standard
    deviation says how far luck goes.
    """

    draws: int
    mean: Score
    std: Score
    p: float
    """Share of namings, the true one among them, whose top-1 is as high as the true one's."""


class ZeroShot(BaseModel, frozen=True, extra="forbid"):
    """What was found on one run; `described`: by a file, else by the names of the classes."""

    protocol: Literal["zeroshot"] = "zeroshot"
    through: Literal["language", "vision"]
    texts: int
    described: bool
    temperature: float
    """Cosines divided by it are the logits of the stored probabilities; ranks do not depend on it."""
    last: Score
    shuffled: Control
    chance: Score
    majority: Score | None  # None where training samples have no labels: they are not needed
    classes: int
    test: int
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def outcome(subject: EvalContext, descriptions: Path | None = None, encoder: Path | None = None) -> ZeroShot:
    """Run the protocol on the test split, or read what it found before.

    Raises:
        CheckpointError: the run is no finished pre-training.
        ConfigError: a class has no text, or the run cannot be asked by texts.
        DataError: a test sample has no label.
        EngineError: the text encoder is not to be had.
    """
    packed, shared = subject.packed, enter(subject, encoder)
    test = packed.select(subject.benchmark, "test").rows
    labels = labels_of(packed, test, f"test samples of {subject.benchmark}")
    classes = metrics.class_count(packed, labels)
    texts = class_texts(packed, classes, descriptions)

    def compute() -> tuple[ZeroShot, pa.Table]:
        vectors, cut = shared.texts([text for of in texts for text in of])
        targets = shared.project(averaged(vectors, [len(of) for of in texts]))
        clips, rows = shared.clips("test")
        values = cosines(clips, targets).numpy().astype(np.float32)
        last, shuffled = control(values, labels)
        notes = shared.notes()
        if cut:
            notes.append(f"{cut} of {len(vectors)} texts are longer than the encoder reads.")
        finding = ZeroShot(
            through=shared.through,
            texts=len(vectors),
            described=descriptions is not None,
            temperature=shared.temperature,
            last=last,
            shuffled=shuffled,
            chance=metrics.chance(classes),
            majority=_majority(subject, labels, classes),
            classes=classes,
            test=len(rows),
            notes=tuple(notes),
        )
        answered = subject.predictions(rows, values)
        return finding, table_of(answered, packed.manifest.classes, shared.temperature)

    return cached(shared.key("zeroshot", texts=texts), ZeroShot, compute)


def control(values: Array, labels: Labels, draws: int = PERMUTATIONS) -> tuple[Score, Control]:
    """Score cosines a class, as they are and with class texts permuted; the same draws for every encoder.

    Shape: (N, C), (N,)
    """
    held, truth = torch.from_numpy(values), torch.from_numpy(labels)
    last, rng = metrics.score(held, truth), np.random.default_rng(0)
    found = [metrics.score(held[:, rng.permutation(values.shape[1])], truth) for _ in range(draws)]
    drawn = np.array([[s.top1, np.nan if s.top5 is None else s.top5, s.balanced] for s in found])
    reached = 1 + sum(s.top1 >= last.top1 for s in found)
    mean, std = _score(drawn.mean(axis=0)), _score(drawn.std(axis=0, ddof=1))
    return last, Control(draws=draws, mean=mean, std=std, p=reached / (draws + 1))


def _score(row: npt.NDArray[Any]) -> Score:
    top1, top5, balanced = map(float, row)
    return Score(top1=top1, top5=None if np.isnan(top5) else top5, balanced=balanced)


def _majority(subject: EvalContext, labels: Labels, classes: int) -> Score | None:
    try:
        known = subject.packed.labels()[subject.packed.select(subject.benchmark, "train").rows]
    except DataError:  # nothing to train on: a set that is only asked
        return None
    return None if (known < 0).any() else metrics.majority(known, labels, max(classes, int(known.max()) + 1))
