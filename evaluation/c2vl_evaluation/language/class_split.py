"""A division of classes into seen and unseen ones, and whether a run has kept to it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from c2vl_evaluation import metrics
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Labels
from c2vl_manifests.class_choice import chosen_classes, zero_shot_splits
from c2vl_manifests.errors import ConfigError
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import rows_trained_on

OPTION = "--split"


@dataclass(frozen=True)
class ClassSplit:
    """Unseen classes among all classes of a dataset."""

    words: tuple[str, ...]
    """As the user named them."""
    name: str
    """Of the dataset's own zero-shot split, `55/5`; empty for another choice of classes."""
    unseen: Labels
    """Numbers of the unseen classes, ascending."""
    classes: int
    """Number of all classes."""
    names: tuple[str, ...]
    """Of all classes."""

    @property
    def seen(self) -> Labels:
        """Numbers of the other classes, ascending."""
        return np.setdiff1d(np.arange(self.classes), self.unseen)

    @property
    def unseen_names(self) -> tuple[str, ...]:
        """Names of the unseen classes."""
        return tuple(self.names[number] for number in self.unseen)

    @property
    def title(self) -> str:
        """Name of the split, or its numbers of seen and unseen classes."""
        return self.name or f"{self.classes - len(self.unseen)}/{len(self.unseen)} (own)"


def class_split(packed: PackedDataset, words: Sequence[str]) -> ClassSplit:
    """Return the split whose unseen classes words name, see `chosen_classes`.

    Raises:
        ConfigError: a word names no class, a class is named twice, or fewer than two or all classes are unseen.
    """
    m = packed.manifest
    unseen = np.asarray(chosen_classes(words, m.dataset, m.classes, OPTION), np.int64)
    classes = metrics.class_count(packed, packed.labels())
    if len(unseen) < 2:
        raise ConfigError(f"{OPTION} names {len(unseen)} unseen class; name at least 2: one alone is always right")
    if len(unseen) == classes:
        raise ConfigError(
            f"{OPTION} names all {classes} classes of {m.title}; leave seen ones, or evaluate all classes without {OPTION}"
        )
    splits = zero_shot_splits(m.dataset).items()
    name = next((name for name, numbers in splits if sorted(numbers) == unseen.tolist()), "")
    names = tuple(metrics.class_name(m.classes, number) for number in range(classes))
    return ClassSplit(tuple(words), name, unseen, classes, names)


def clips_trained_on(context: EvalContext, split: ClassSplit) -> int | None:
    """Return how many clips of the unseen classes a run was trained on; None if that cannot be known from these data.

    Clips are compared, not settings: a run on another part of the data is judged as well.
    """
    if context.facts().get("kind") == "random":
        return 0
    rows = rows_trained_on(context.facts(), context.packed)
    return int(np.isin(context.packed.labels()[rows], split.unseen).sum()) if len(rows) else None


def training_note(context: EvalContext, split: ClassSplit) -> str:
    """Return a warning if a run was trained on clips of the unseen classes, or if that cannot be known; else nothing."""
    facts, count = context.facts(), clips_trained_on(context, split)
    if count is None:
        return (
            f"{context.run} was trained on other clips than {context.packed.folder} holds: whether it has seen the unseen "
            "classes is not known"
        )
    if not count:
        return ""
    if facts.get("kind") == "supervised":
        return f"{context.run} was trained on {count:,} clips of the unseen classes with their labels: this is no zero-shot result"
    words = split.words[0] if len(split.words) == 1 else "'[" + ",".join(f'"{word}"' for word in split.words) + "]'"
    return (
        f"the pre-training of {context.run} has seen {count:,} clips of the unseen classes, without their labels; for a strict "
        f"zero-shot number pre-train without them: --set training.pretrain.exclude_classes={words}"
    )


@cache
def _published() -> Mapping[str, Any]:
    return tomllib.loads(files("c2vl_evaluation.language").joinpath("published.toml").read_text("utf-8"))


def published(dataset: str, benchmark: str, split: str) -> dict[str, float]:
    """Return published zero-shot accuracies on a split, method -> top-1 in [0, 1]; see `published.toml` for sources."""
    held = _published()
    found = held["accuracies"].get(dataset, {}).get(split, {}) if benchmark == held["benchmark"] else {}
    return {method: value / 100 for method, value in found.items()}
