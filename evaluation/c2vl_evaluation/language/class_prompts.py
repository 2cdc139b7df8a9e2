"""What clips are compared with in zero-shot recognition: one vector per class, of texts or made elsewhere.

*Reading:* several descriptions of a class become one vector like the captions of a sample: the mean of L2-normalised
vectors, normalised again, before the projector.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from c2vl_evaluation import metrics
from c2vl_evaluation.features import Array
from c2vl_evaluation.language.shared_space import SharedSpace
from c2vl_manifests.errors import ConfigError, one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.reading import from_json, from_toml, read_text
from c2vl_manifests.vectors import read_vectors
from c2vl_training.dataset import PackedDataset


@dataclass(frozen=True)
class ClassPrompts:
    """Texts of the classes, or vectors of them that were made elsewhere."""

    texts: tuple[tuple[str, ...], ...]
    given: tuple[Array, ...]
    """Vectors of each class, C arrays (k, K); empty if there are texts."""
    facts: dict[str, Any]
    """What a result depends on."""
    described: bool
    """True if they are more than the names of the classes."""

    @classmethod
    def of(cls, shared: SharedSpace, classes: int, descriptions: Path | None, vectors: Path | None) -> ClassPrompts:
        """Read the prompts of the classes, none of which is embedded yet.

        Args:
            shared: the run that they are compared in.
            classes: number of classes.
            descriptions: TOML or JSON with one entry per class: its name = a description or a list of them; without it the
                names of the classes.
            vectors: file of vectors of the classes instead of texts, see `c2vl_manifests.vectors`.

        Raises:
            ConfigError: both files, a class without name, description or vector, an unknown class, an unreadable file, an
                entry that is not a text, or vectors of another width than the run was trained toward.
            DataError: the file of vectors is of another form.
        """
        packed = shared.context.packed
        if vectors is None:
            texts = class_texts(packed, classes, descriptions)
            return cls(texts, (), {"texts": texts}, descriptions is not None)
        if descriptions is not None:
            raise ConfigError("--class-vectors and --descriptions say the same in two ways; give one of them")
        width = packed.manifest.language_dim if shared.through == "language" else packed.manifest.vision_dim
        given = _vectors(packed, classes, vectors, width)
        return cls((), tuple(given), {"class_vectors": remembered_sha256(vectors)}, True)

    @property
    def counts(self) -> list[int]:
        """Number of texts or vectors of each class."""
        return [len(of) for of in self.texts or self.given]

    def embed(self, shared: SharedSpace) -> tuple[Tensor, list[str]]:
        """Return the classes in the shared space, (C, D), and notes on the result."""
        notes = shared.notes()
        if self.given:
            vectors = np.concatenate(self.given)
            notes.append(
                "The vectors of the classes were made elsewhere: they are taken to be of the model of the data's."
            )
        else:
            vectors, truncated = shared.texts([text for of in self.texts for text in of])
            if truncated:
                notes.append(f"{truncated} of {len(vectors)} texts are longer than the encoder reads.")
        return shared.project(class_means(vectors, self.counts)), notes


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


def _vectors(packed: PackedDataset, classes: int, path: Path, width: int) -> list[Array]:
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
    units = []
    for name in names:
        rows = held.by_name[name].astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise ConfigError(
                f"{path}: a vector of {name!r} has the length {lengths.max():.3g}; expected a finite one above 0"
            )
        units.append(np.asarray(rows / lengths, np.float32))
    return units


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
            f"{path}: has {len(given)} of {len(names)} classes; the first that it leaves out is {absent[0]!r}"
        )
