"""The folder of one run: what determines the run, what must be equal to resume it, and what it reports at the end.

See `checkpoint.py` for the files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from c2vl_manifests.errors import CheckpointError, passing
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.targets import targets_name
from c2vl_training import distributed, methods
from c2vl_training.dataset import PackedDataset, Selection
from c2vl_training.run_log import Metrics

Kind = Literal["pretrain", "supervised", "random"]


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
        training = self.recipe.training
        part = {"pretrain": training.pretrain, "supervised": training.supervised, "random": None}[self.kind]
        m = self.packed.manifest
        return {
            "format": 2,
            "kind": self.kind,
            "benchmark": self.benchmark,
            "seed": self.seed,
            "dataset": m.dataset,
            "data": m.fingerprint,
            "layout": m.layout,
            "bodies": m.bodies,
            "encoder": training.encoder.model_dump(mode="json"),
            "input": training.input.model_dump(mode="json"),
            "precision": training.precision,
            "config": part.model_dump(mode="json") if part else None,
        }

    def describe(self) -> str:
        """Name what the run trains with, for tables: targets, knowledge and pairs of a pre-training."""
        if self.kind != "pretrain":
            return self.kind
        p = self.recipe.training.pretrain
        shuffled = ", shuffled pairs" if p.pairs == "shuffled" else ""
        return f"{targets_name(p.targets)}, {p.knowledge}{shuffled}"

    def select(self) -> Selection:
        """Return the training samples that the run can use."""
        kinds = methods.kinds_of(self.recipe.training.pretrain) if self.kind == "pretrain" else ()
        return self.packed.select(self.benchmark, "train", kinds)


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
    for name, there, here in differences(facts, json.loads(json.dumps(wanted))):
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
    facts = {
        **run.facts(),
        "recipe": run.recipe.model_dump(mode="json"),
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
        "fingerprint": fingerprint(run.facts()),
        "last": result.last,
    }
    commit_text(run.out / "run.json", json.dumps(facts, indent=1) + "\n")


def read_result(folder: Path) -> Result:
    """Read the result of a finished run from run.json.

    Raises:
        CheckpointError: it is damaged or absent.
    """
    try:
        facts = json.loads((folder / "run.json").read_text("utf-8"))
        counts = (facts["epochs"], facts["seconds"], facts["samples"], facts["left_out"])
        return Result(folder, *counts, facts["last"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if passing(error):
            raise
        raise CheckpointError(
            f"{folder / 'run.json'} is damaged ({error}); delete the folder and train again"
        ) from error
