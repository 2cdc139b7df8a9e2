"""Zero-shot recognition: a clip is given the class whose name or description lies nearest in the shared space.

Beyond the paper, which trains skeletons toward frozen CLIP vectors (Section III-B) and then asks them with labels only.
Class texts go through the text encoder that made the data's vectors and then through the run's projector; no label
takes part. Clips of these classes did take part in the pre-training, without their names.

*Reading:* several descriptions of a class become one vector as the captions of a sample do: the mean of L2-normalised
vectors, normalised again, before the projector. A run that listened to crops alone has no projector for texts; where
the encoder puts texts and images into one space (CLIP), texts go through the projector of crops, and the finding says
so.

`probability` is a softmax of cosines divided by the run's own temperature, learned or fixed, as in its training.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import BaseModel
from torch import Tensor
from torch.nn import functional as F

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import CacheKey, cached, table_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, encoder_for, extract, labels_of
from c2vl_evaluation.language import text_encoder
from c2vl_evaluation.results import Protocol, Score
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.manifest import fingerprint, remembered_sha256
from c2vl_training import checkpoint
from c2vl_training.dataset import Clips, Packed
from c2vl_training.distributed import device_of
from c2vl_training.inference import JointEmbedding, encode, load_joint_embedding

PERMUTATIONS = 199
_DIGITS = 12
"""Cosines that agree to so many digits are a tie."""
_ONE_SPACE = frozenset({"hf"})
"""Encoders that put texts and images into one space."""
_FORMAT = {"zeroshot": 2}
"""Of findings, for their keys; 1 where not named. Zero-shot 2: the run's temperature makes the probabilities."""


@dataclass(frozen=True)
class Shared:
    """The space of a finished pre-training, and the data that meet in it."""

    subject: EvalContext
    space: JointEmbedding
    through: Literal["language", "vision"]
    """Whose projector texts go through."""
    encoder: Path | None
    """Where the text encoder's checkpoint lies now, if it was moved."""

    def clips(self, split: str) -> tuple[Tensor, Labels]:
        """Embed the clips of a split, central window, not rotated.

        Returns:
            Unit vectors (N, D) on the CPU, and the rows of the packed data, (N,).

        Raises:
            CheckpointError: the encoder is of another joint layout.
            DataError: an embedding is NaN or infinite, or the split is empty.
        """
        of, packed = self.subject, self.subject.packed
        rows = packed.select(of.benchmark, split).rows
        device = of.recipe.training.device
        if (packed.labels()[rows] >= 0).all():
            features = torch.from_numpy(extract(of.run, packed, of.benchmark, split, device).values)
        else:  # the protocols' cache is of labelled clips
            encoder = encoder_for(of.run, packed, device_of(device))
            held = Clips(packed, rows, encoder.input, device_of(device))
            features = encode(encoder.module, held).float()
        with torch.inference_mode():
            vectors = F.normalize(self.space.model.skeleton(features), dim=1)
        if (broken := int((~vectors.isfinite()).any(dim=1).sum())) > 0:
            raise DataError(
                f"{broken} of {len(rows)} {split} clips have NaN or infinite embeddings: the encoder diverged; train it again with a lower learning rate"
            )
        return vectors, rows

    def texts(self, texts: Sequence[str]) -> tuple[Array, int]:
        """Encode texts by the engine that made the data's vectors.

        Returns:
            Unit vectors before the projector, (n, K), and how many texts were longer than the encoder reads.

        Raises:
            EngineError: the encoder cannot be loaded, or is not the one that made the vectors.
            DataError: a text in which the encoder finds no word.
        """
        found = text_encoder.load(self.subject.packed, self.encoder).encode_texts(list(texts))
        norms = np.linalg.norm(found.vectors, axis=1)
        for text, norm in zip(texts, norms, strict=True):
            if not (np.isfinite(norm) and norm > 0):
                raise DataError(f"the text encoder finds no word in {text!r}; say it in other words")
        return np.asarray(found.vectors / norms[:, None], np.float32), int(found.truncated.sum())

    def project(self, vectors: Array) -> Tensor:
        """Bring unit vectors of texts (n, K) into the shared space, (n, D), see `JointEmbedding.knowledge`."""
        return self.space.knowledge(self.through, vectors).cpu()

    @property
    def temperature(self) -> float:
        """Of the run's own similarities of skeletons and what texts go through."""
        return 1 / float(self.space.model.scales[self.through]())

    def notes(self) -> list[str]:
        """Say what a reader of any figure of this space must know."""
        packed, said = self.subject.packed, []
        if self.through == "vision":
            said.append(
                "This run listened to crops alone: texts go through the projector of crops, which never saw a text; "
                "what they find is owed to the encoder's common space of texts and images."
            )
        elif packed.manifest.derived_from_joints("language"):
            said.append("The captions of this data are derived from joints: no evidence for language.")
        if self.space.facts.get("data") != packed.manifest.fingerprint:
            said.append(
                "This run was trained on other data than these: their text encoders are taken to be the same."
            )
        if self.encoder is not None and text_encoder.on_trust(packed, self.encoder):
            said.append(
                "The checkpoint named by --encoder is taken to be the one that made the vectors: no captions with their vectors lie beside the packed data to tell."
            )
        return said

    def key(self, protocol: Protocol, **told: Any) -> CacheKey:
        """Return the key of a result, the engine of the vectors among its settings.

        A moved checkpoint takes part by its weights where they are not those that the data name.

        Raises:
            EngineError: there is no checkpoint where it is said to be now.
        """
        of = self.subject
        made = {
            k: v for k, v in text_encoder.engine_of(of.packed).items() if k not in {"device", "libraries"}
        }
        others: dict[str, CacheKey | str] = {
            "projectors": remembered_sha256(of.run / checkpoint.PROJECTORS),
            "format": str(_FORMAT.get(protocol, 1)),
        }
        if self.encoder is not None and (other := text_encoder.differs(of.packed, self.encoder)):
            others["encoder"] = fingerprint(other)
        settings = told | {"engine": made}
        return CacheKey(of.run, of.packed, of.benchmark, protocol, settings, of.seed, others)


def enter(subject: EvalContext, encoder: Path | None = None) -> Shared:
    """Open the shared space of a run for texts.

    Args:
        subject: a finished pre-training, and what it is evaluated on.
        encoder: folder of the text encoder's checkpoint, if it is not where it was when the vectors were made.

    Raises:
        CheckpointError: the run is no finished pre-training.
        ConfigError: it listened to crops alone, and their encoder puts texts elsewhere.
    """
    space = load_joint_embedding(subject.run)
    backend = str(text_encoder.engine_of(subject.packed).get("backend"))
    if "language" not in space.centre and backend not in _ONE_SPACE:
        raise ConfigError(
            f"{subject.run} was trained toward crops alone, and the encoder {backend!r} puts texts and images into different "
            "spaces, so no text can be asked; pre-train with `--set training.pretrain.knowledge=both`"
        )
    return Shared(subject, space, "language" if "language" in space.centre else "vision", encoder)


def cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return dot products of unit vectors in float64, rounded so that what is equal is a tie. Shape: (Q, D), (N, D) -> (Q, N)."""
    return (queries.double() @ gallery.double().T).round(decimals=_DIGITS)


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
