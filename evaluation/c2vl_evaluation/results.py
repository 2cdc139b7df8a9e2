"""What an evaluation found, as plain values: one file a table, read by the terminal and by the report."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_text, first_error

FILE = "results.json"
FAILED = "failed: "
"""How the `why` of a finding begins whose evaluation ended with an error; it is tried again next time."""
Role = Literal["pretrained", "baseline", "floor", "ceiling", "shuffled"]
Protocol = Literal["knn", "linear", "finetune", "semi", "transfer", "ensemble", "zeroshot", "retrieval"]


class Score(BaseModel):
    """Accuracies over one split, in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    top1: float
    top5: float | None
    """None where five classes or fewer leave nothing to be wrong about."""
    balanced: float
    """Mean over the classes of the split of the share of each that was recognised."""


class Finding(BaseModel):
    """One protocol under one setting: what a cell of a table says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    protocol: Protocol
    setting: str = ""
    """`1 % stratified, frozen`; empty where a protocol has one setting."""
    draw: int = 0
    """Which draw of a subset, where subsets are drawn."""
    last: Score | None = None
    """At the last epoch; None where the protocol makes no sense on this data, and `why` says so."""
    best: Score | None = None
    """At the epoch that is best on the test split: an oracle, shown because peers report it."""
    best_epoch: int | None = None
    """Counted from 1."""
    epochs: int = 0
    lr: float | None = None
    held_out: float | None = None
    """Accuracy on the held-out part of the training split at the chosen rate, where rates were swept."""
    train: int = 0
    """Labelled training samples that were used."""
    test: int = 0
    seconds: float = 0.0
    why: str = ""


class Row(BaseModel):
    """One run under all protocols."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    """What is compared: `partition(cosine)`, `random encoder`, `supervised`, `shuffled pairs`."""
    role: Role
    seed: int
    run: str
    """Folder of the run, relative to the table's, so that a table can be moved."""
    knowledge: str = ""
    derived_from_joints: bool = False
    """Its language prompts are a function of the encoder's own input."""
    knn: float
    """Top-1 accuracy of the nearest neighbour, in [0, 1]."""
    linear: float
    """Top-1 accuracy of a linear probe, last epoch."""
    linear_best: float
    """The same at its best epoch on the test split: an oracle, shown because peers report it."""
    linear_lr: float
    epochs: int
    seconds: float
    """Of training."""
    samples: int
    left_out: int
    knn_top5: float | None = None
    knn_balanced: float | None = None
    linear_top5: float | None = None
    linear_balanced: float | None = None
    findings: tuple[Finding, ...] = ()
    """Of the other protocols."""


class Target(BaseModel):
    """Another dataset that encoders were transferred to, with what needs no encoder there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str
    title: str
    benchmark: str
    train: int
    test: int
    majority: Score
    chance: Score
    data: str = ""
    """Fingerprint; empty in tables of earlier versions."""
    named: str = ""
    """What its findings call it; the dataset alone where empty."""

    def holds(self, finding: Finding) -> bool:
        """Whether a finding is of a transfer to it."""
        to = finding.setting.rpartition(", ")[0]
        return finding.protocol == "transfer" and to.endswith(f" to {self.named or self.dataset}")


class Results(BaseModel):
    """A table with its controls."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str
    title: str
    benchmark: str
    recipe: str
    recipe_fingerprint: str
    data_fingerprint: str
    engines: dict[str, str]
    """Role -> what made it, e.g. crops -> motion."""
    classes: tuple[str, ...]
    train: int
    test: int
    chance: float
    majority: float
    """Accuracy of always answering the training split's largest class."""
    majority_score: Score | None = None
    """The same with five answers (the five largest classes) and balanced."""
    chance_score: Score | None = None
    """Expected of answers drawn blindly."""
    targets: tuple[Target, ...] = ()
    """Of the transfer protocol."""
    rows: tuple[Row, ...]
    seconds: dict[str, float] = {}
    """Stage -> seconds spent, summed over workers."""

    def names(self) -> list[str]:
        """Names of the rows in order, each once."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def of(self, name: str) -> list[Row]:
        """Rows of one name, one a seed."""
        return [row for row in self.rows if row.name == name]

    def main_run(self) -> Row:
        """The row that figures are drawn of: the first pre-trained one."""
        return next((row for row in self.rows if row.role == "pretrained"), self.rows[0])


def by_setting(findings: Iterable[Finding]) -> dict[tuple[Protocol, str], list[Finding]]:
    """Group findings by protocol and setting: those of several draws and seeds are one cell."""
    found: dict[tuple[Protocol, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.protocol, finding.setting), []).append(finding)
    return found


def mean_std(values: list[float]) -> str:
    """Return percent as `61.2` or, for several seeds, `61.2 ± 1.3` (sample standard deviation)."""
    if len(values) < 2:
        return f"{100 * values[0]:.1f}"
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def save(folder: Path, results: Results) -> None:
    """Write results.json."""
    commit_text(folder / FILE, results.model_dump_json(indent=1) + "\n")


def load(folder: Path) -> Results:
    """Read results.json; raises DataError where there is none or it is damaged."""
    path = folder / FILE
    try:
        return Results.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; run `c2vl-eval benchmark` first") from error
    except (ValidationError, OSError) as error:
        raise DataError(
            f"{path}: damaged ({first_error(error)}); run `c2vl-eval benchmark` again, finished runs are kept"
        ) from error
