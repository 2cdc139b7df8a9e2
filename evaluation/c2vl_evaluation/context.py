"""Context of an evaluation: a finished run with data, configuration, role and keys of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from c2vl_evaluation.cache import CacheKey, Predictions
from c2vl_evaluation.features import Array, Features, Labels, extract
from c2vl_evaluation.metrics import check_classes
from c2vl_evaluation.results import Protocol, Role
from c2vl_manifests.events import Emit, silent
from c2vl_manifests.packed import resolve_recipe
from c2vl_manifests.recipe import Recipe
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import rows_trained_on


@dataclass(frozen=True)
class EvalContext:
    """A finished run, and the data and configuration that it is evaluated with."""

    run: Path
    packed: PackedDataset
    benchmark: str
    recipe: Recipe
    seed: int
    emit: Emit = field(default=silent, compare=False)
    """Receives progress."""
    streams: Mapping[str, EvalContext] = field(default_factory=dict)
    """Stream -> the run trained on it, for an ensemble."""
    target: str = ""
    """Name of the data in results of `transfer`; made of dataset and benchmark if empty."""

    @classmethod
    def open(
        cls,
        run: Path,
        data: Path | PackedDataset,
        benchmark: str | None = None,
        recipe: str | None = None,
        overrides: Sequence[str] = (),
        emit: Emit = silent,
    ) -> EvalContext:
        """Return the context of a run on packed data.

        Args:
            run: folder that `c2vl-train` wrote.
            data: packed data, or the work folder around them.
            benchmark: the one that the run was trained on unless given.
            recipe: name or TOML file; the one that the work folder was made with unless given.
            overrides: assignments `section.key=value`.
            emit: receives progress.

        Raises:
            CheckpointError: there is no finished run.
            ConfigError: an unknown recipe, key or value.
            StageError: there are no packed data.
        """
        packed = data if isinstance(data, PackedDataset) else PackedDataset(data)
        resolved = resolve_recipe(packed.manifest, recipe, overrides)
        facts = checkpoint.load_finished(run)[1]
        where = benchmark or str(facts.get("benchmark", ""))
        return cls(run, packed, where, resolved, int(facts.get("seed", 0)), emit)

    def facts(self) -> dict[str, Any]:
        """Return the facts saved with the encoder's weights.

        Raises:
            CheckpointError: there is no finished run.
        """
        return checkpoint.finished_facts(self.run)

    def key(self, protocol: Protocol, config: BaseModel, **more: Any) -> CacheKey:
        """Return the key of a protocol under a configuration (and what else determines the result)."""
        # it adds the best epoch to a result and changes nothing in it: see `Cell.oracle`
        settings = config.model_dump(mode="json", exclude={"every_epoch"}) | more
        return CacheKey(self.run, self.packed, self.benchmark, protocol, settings, self.seed)

    def features(self) -> tuple[Features, Features, int]:
        """Return frozen features of the training and of the test split, and the number of classes.

        Raises:
            DataError: a sample without a label, or a class of the test split without a training sample.
        """
        device = self.recipe.training.device
        train, test = (extract(self.run, self.packed, self.benchmark, split, device) for split in ("train", "test"))
        return train, test, check_classes(self.packed, train.labels, test.labels)

    def predictions(self, rows: Labels, scores: Array, answers: Labels | None = None) -> Predictions:
        """Return scores (N, C) of some rows with truth and answers, by default the highest scores."""
        answers = scores.argmax(axis=1) if answers is None else answers
        return Predictions(self.packed.sample_ids(rows), self.packed.labels()[rows], answers, scores)

    def role(self) -> Role:
        """Return the run's role in a table: controls are known by how they were trained."""
        facts = self.facts()
        if facts.get("kind") == "pretrain":
            return "shuffled" if (facts.get("config") or {}).get("pairs") == "shuffled" else "pretrained"
        return "ceiling" if facts.get("kind") == "supervised" else "floor"

    def uses_joint_captions(self) -> bool:
        """Return True if the run was pre-trained on captions computed from the joints."""
        return bool(self.facts().get("joint_captions"))

    def overlap(self) -> str:
        """Return a warning if the run was trained on clips that are test clips here."""
        facts, packed = self.facts(), self.packed
        kind, rows = facts.get("kind"), rows_trained_on(facts, packed)
        if kind == "random" or not len(rows):
            return ""
        asked = packed.select(self.benchmark, "test").rows
        seen = int(np.isin(asked, rows).sum())
        if not seen:
            return ""
        labels = ", with their labels" if kind == "supervised" else ""
        return (
            f"{self.run} was trained on {facts.get('benchmark')}: {seen:,} of the {len(asked):,} test clips of "
            f"{self.benchmark} were among its training clips{labels}; for a fair number train a new run on {self.benchmark}"
        )
