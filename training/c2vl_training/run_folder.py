"""The folder of one run: what determines the run, what must be equal to resume it, and what it reports at the end.

See `checkpoint.py` for the files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from c2vl_manifests.class_choice import chosen_classes
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError, passing
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_manifests.pages import portable
from c2vl_manifests.reading import read_json
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.targets import targets_name
from c2vl_training import checkpoint, distributed
from c2vl_training.dataset import CLASS_NUMBERS, PackedDataset, Rows, Selection
from c2vl_training.pretraining import kinds_of
from c2vl_training.run_log import Metrics

Kind = Literal["pretrain", "supervised", "random"]
EXCLUDED = "excluded_classes"
"""Among the facts of a pre-training: names of the classes that it left out; absent if it left out none."""


@dataclass(frozen=True)
class Run:
    """Everything that determines a run."""

    kind: Kind
    packed: PackedDataset
    recipe: Recipe
    benchmark: str
    seed: int
    out: Path

    def facts(self) -> dict[str, Any]:
        """Return what is saved with the weights and must be equal to resume.

        The number of processes is left out: it changes rounding and nothing else.
        """
        m = self.packed.manifest
        excluded = {EXCLUDED: [m.classes[number] for number in self.excluded_classes()]}
        return {
            "format": 3,
            "kind": self.kind,
            "benchmark": self.benchmark,
            "seed": self.seed,
            "dataset": m.dataset,
            **(excluded if excluded[EXCLUDED] else {}),
            "data": self._data_read(),
            "layout": m.layout,
            "bodies": m.bodies,
            **settings(self.kind, self.recipe),
        }

    def trained_with(self, selection: Selection) -> dict[str, Any]:
        """Return what is saved with a finished encoder beside `facts`: its data may be changed or gone later."""
        return {
            "clips": self.packed.clips(selection.rows),
            "joint_captions": self.uses_joint_captions(),
            "embeddings": portable(self.packed.manifest.engines.get("embeddings", {})),
        }

    def uses_joint_captions(self) -> bool:
        """Return True if the run is pre-trained on captions computed from the joints that it sees."""
        return "language" in kinds_of(self._knowledge()) and self.packed.manifest.derived_from_joints("language")

    def describe(self) -> str:
        """Name what the run trains with, for tables: targets, knowledge and pairs of a pre-training."""
        if self.kind != "pretrain":
            return self.kind
        p = self.recipe.training.pretrain
        shuffled = ", shuffled pairs" if p.pairs == "shuffled" else ""
        count = len(self.excluded_classes())
        excluded = f", without {count} class{'es' if count > 1 else ''}" if count else ""
        return f"{targets_name(p.targets)}, {p.knowledge}{shuffled}{excluded}"

    def excluded_classes(self) -> tuple[int, ...]:
        """Return the classes that the pre-training leaves out, counted from 0; none for the other kinds.

        Raises:
            ConfigError: the recipe names classes that the data do not have.
        """
        m = self.packed.manifest
        words = self.recipe.training.pretrain.exclude_classes if self.kind == "pretrain" else ()
        return chosen_classes(words, m.dataset, m.classes, "training.pretrain.exclude_classes")

    def select(self) -> Selection:
        """Return the training samples that the run can use.

        Raises:
            ConfigError: no such benchmark, or an excluded class that the data do not have.
            DataError: no sample is usable.
        """
        selection = self.packed.select(self.benchmark, "train", kinds_of(self._knowledge()))
        return _without(self.packed, selection, self.excluded_classes())

    def batch_problem(self, total: int) -> str:
        """Return why the batch does not fit a split of `total` samples, or the processes; empty if it does."""
        if self.kind == "random":
            return ""
        setting, batch = f"training.{self.kind}.batch_size", getattr(self.recipe.training, self.kind).batch_size
        if batch > total:
            return (
                f"{setting} = {batch} is larger than the {total} usable training samples; "
                f"choose a smaller one by --set {setting}={max(2, total // 4)}"
            )
        try:
            distributed.per_rank(batch)
        except ConfigError as error:
            return str(error)
        return ""

    def _data_read(self) -> dict[str, str]:
        """Return hashes of all that the run reads of the data: nothing else that changes in them concerns it."""
        try:
            rows = self.select().rows
        except (ConfigError, DataError):  # nothing to train on: `select` says so where it is asked to train
            return {}
        return self.packed.digests(rows, kinds_of(self._knowledge()), labels=self.kind == "supervised")

    def _knowledge(self) -> str:
        return self.recipe.training.pretrain.knowledge if self.kind == "pretrain" else ""


def settings(kind: Kind, recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe that a run of a kind depends on; hard targets have no teacher."""
    training = recipe.training
    left_out = {"exclude_classes"} | (set() if training.pretrain.soft else {"teacher", "ema"})
    part = {"pretrain": training.pretrain, "supervised": training.supervised, "random": None}[kind]
    return {
        "encoder": training.encoder.model_dump(mode="json"),
        "input": training.input.model_dump(mode="json"),
        "precision": training.precision,
        "config": part.model_dump(mode="json", exclude=left_out if kind == "pretrain" else None) if part else None,
    }


def _without(packed: PackedDataset, selection: Selection, classes: Sequence[int]) -> Selection:
    """Return a selection without the clips of some classes, and without clips whose class is unknown if any are given.

    Raises:
        DataError: nothing is left.
    """
    if not classes:
        return selection
    labels, names = packed.labels()[selection.rows], packed.manifest.classes
    gone = np.isin(labels, classes) | (labels < 0)
    if gone.all():
        raise DataError(
            f"{packed.folder}: all {len(gone)} usable training samples are of the {len(classes)} excluded classes or have "
            "no label; exclude fewer classes by training.pretrain.exclude_classes"
        )
    reasons = [
        "no label, so it may be of an excluded class" if n < 0 else f"excluded class {names[n]!r}" for n in labels[gone]
    ]
    left_out = zip(packed.sample_ids(selection.rows[gone]), reasons, strict=True)
    return Selection(selection.rows[~gone], (*selection.left_out, *left_out))


def rows_trained_on(facts: Mapping[str, Any], packed: PackedDataset) -> Rows:
    """Return the rows of these data that the finished run of these facts was trained on, in any split.

    A clip is known by its joints. In data that hold one of the run's clips it is also known by its id, as joints are
    corrected; other data may use the same ids for other clips.
    """
    held, here = facts.get("clips") or {}, packed.clips(np.arange(packed.manifest.samples))
    same = np.isin(list(here.values()), list(held.values()))
    return np.flatnonzero(same | np.isin(list(here), list(held)) if same.any() else same)


@dataclass(frozen=True)
class Result:
    """A finished run; `seconds` of all its sessions together."""

    out: Path
    epochs: int
    seconds: float
    samples: int
    left_out: int
    last: Metrics


def check_same(wanted: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError, naming the first difference, unless the `facts` saved at `path` are the wanted ones."""
    none: dict[str, Any] = {EXCLUDED: []}
    for name, there, here in differences(none | dict(facts), none | json.loads(json.dumps(wanted))):
        if name == f"data.{CLASS_NUMBERS}" and path.name == checkpoint.ENCODER:
            continue  # the classifier is gone
        if name.startswith("data."):
            what = name.removeprefix("data.").replace("_", " ")
            raise CheckpointError(
                f"{path} is of another run: "
                f"{'its training samples are others now' if what == 'samples' else f'the {what} of its training samples changed'}"
                "; choose another --out, or delete the folder to start over"
            )
        raise CheckpointError(
            f"{path} is of another run: {name} is {there!r} there and {here!r} here; "
            "choose another --out, or delete the folder to start over"
        )


def differences(there: Any, here: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Return (dotted name, value there, value here) of all differences; outermost names of `there` alone are ignored."""
    if isinstance(there, dict) and isinstance(here, dict):
        names = [n for n in here if n in there] + [n for n in here if n not in there]
        return [d for n in names for d in differences(there.get(n), here[n], f"{place}.{n}".lstrip("."))]
    return [] if there == here else [(place, there, here)]


def made_by() -> dict[str, Any]:
    """Return what may change the last digits of a run but does not forbid resuming it."""
    return {name: version(name) for name in ("c2vl", "torch", "numpy")} | {
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
    }


def write_left_out(folder: Path, selection: Selection) -> None:
    """Write left_out.csv: the samples that cannot take part, and why."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("sample_id", "reason"), *selection.left_out])
    commit_text(folder / "left_out.csv", text.getvalue())


def write_run(run: Run, result: Result, encoder: nn.Module) -> None:
    """Write run.json."""
    same = run.facts()
    facts = {
        **same,
        "recipe": portable(run.recipe.model_dump(mode="json")),
        "recipe_fingerprint": run.recipe.fingerprint(),
        "samples": result.samples,
        "left_out": result.left_out,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "device": str(distributed.device_of(run.recipe.training.device)),
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
        "versions": {name: version(name) for name in ("c2vl", "torch", "numpy")},
        "fingerprint": fingerprint(same),
        "last": result.last,
    }
    commit_text(run.out / "run.json", json.dumps(facts, indent=1) + "\n")


def read_result(folder: Path) -> Result:
    """Read the result of a finished run from run.json.

    Raises:
        CheckpointError: it is damaged or absent.
    """
    with reading(folder) as facts:
        counts = (facts["epochs"], facts["seconds"], facts["samples"], facts["left_out"])
        return Result(folder, *counts, facts["last"])


@contextmanager
def reading(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the facts of run.json.

    Raises:
        CheckpointError: it is damaged or absent, or lacks what the body looks for.
    """
    try:
        yield read_json(folder / "run.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        if passing(error):
            raise
        raise CheckpointError(
            f"{folder / 'run.json'} is damaged ({error}); delete the folder and train again"
        ) from error
