"""What an evaluation found, as plain values: one file a table, read by the terminal and by the report."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_text

FILE = "results.json"
Role = Literal["pretrained", "baseline", "floor", "ceiling", "shuffled"]


class Row(BaseModel):
    """One run under all protocols."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Results(BaseModel):
    """A table with its controls."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
            f"{path}: damaged ({str(error).splitlines()[0]}); run `c2vl-eval benchmark` again, finished runs are kept"
        ) from error
