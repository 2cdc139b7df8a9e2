"""Results of an evaluation as plain values, and the one view of a table that terminal, report and paper show.

`results.json` repeats results of the store next to each run (`cache`), each with its key there, so that a
table can be read and moved without its runs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator

from c2vl_manifests.errors import DataError, passing
from c2vl_manifests.files import Inside
from c2vl_manifests.manifest import commit_text, first_error
from c2vl_manifests.reading import read_bytes

FILE = "results.json"
Role = Literal["pretrained", "baseline", "floor", "ceiling", "shuffled"]
Protocol = Literal["knn", "linear", "finetune", "semi", "transfer", "ensemble", "zeroshot", "retrieval"]
ALWAYS: tuple[Protocol, ...] = ("knn", "linear")
"""Protocols that every row of a table has."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Score(_Value):
    """Accuracies over one split, in [0, 1]."""

    top1: float
    top5: float | None
    """None with five classes or fewer, where top-5 is always 1."""
    balanced: float
    """Mean over the classes of the split of the share of each that was recognised."""


class Result(_Value):
    """Result of one protocol under one setting on one run."""

    protocol: Protocol
    setting: str = ""
    """`1 % stratified, frozen`; empty where a protocol has one setting."""
    draw: int = 0
    """Number of the draw of labels, where subsets are drawn."""
    target: str = ""
    """`Target.id` of the data that the encoder was transferred to; empty for the other protocols."""
    key: Inside = ""
    """Key of the stored answers (`cache.CacheKey.text`); of raw joints, whose answers are not stored, a hash of the
    settings; else empty."""
    last: Score | None = None
    """At the last epoch; None where `why` gives the reason."""
    best: Score | None = None
    """At the epoch that is best on the test split: an oracle, shown because peers report it; None where none was sought."""
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
    """Why there is no score: the data do not allow it, or the evaluation failed."""
    failed: bool = False
    """The evaluation ended with an error; the next call tries it again."""

    @property
    def reason(self) -> str:
        """`why`, marked where the evaluation failed."""
        return f"failed: {self.why}" if self.failed else self.why


class TableRow(_Value):
    """Results of one run under all protocols."""

    name: str
    """What is compared: `partition(cosine)`, `random encoder`, `supervised`, `shuffled pairs`."""
    role: Role
    seed: int
    run: Inside
    """Folder of the run, relative to the table's; empty for raw joints."""
    knowledge: str = ""
    derived_from_joints: bool = False
    """Its language prompts are a function of the encoder's own input."""
    epochs: int
    seconds: float
    """Of training."""
    samples: int
    left_out: int
    results: tuple[Result, ...]
    """In the order of the protocols; kNN and linear always have a score."""

    @model_validator(mode="after")
    def _has_scores(self) -> Self:
        for protocol in ALWAYS:
            if not any(r.protocol == protocol and r.last is not None for r in self.results):
                raise ValueError(f"{self.name}, seed {self.seed} has no {protocol} score")
        return self

    def result(self, protocol: Protocol) -> Result:
        """Return the first result of a protocol; KeyError if the row has none."""
        for result in self.results:
            if result.protocol == protocol:
                return result
        raise KeyError(protocol)

    def top1(self, protocol: Protocol) -> float:
        """Return top-1 of kNN or linear at the last epoch."""
        last = self.result(protocol).last
        assert last is not None
        return last.top1


class Evaluated(_Value):
    """A benchmark that encoders are evaluated on, with the scores that need no encoder."""

    dataset: str
    title: str
    benchmark: Inside
    data_fingerprint: str
    train: int
    test: int
    majority: Score
    """Of always answering the largest classes of the training split."""
    chance: Score
    """Expected score of random answers."""
    doubles: NonNegativeInt = 0
    """Test samples whose joints are those of a training sample, byte by byte."""
    published: str = ""
    """What others report of C²VL on this dataset, see `c2vl_manifests.datasets.Dataset`."""

    def notes(self) -> list[str]:
        """Return what a reader of the scores should know: test samples that were trained on, figures of others."""
        return [note for note in (self._doubles_note(), self.published) if note]

    def _doubles_note(self) -> str:
        if not self.doubles:
            return ""
        some = f"{self.doubles:,} of {self.test:,} test samples ({100 * self.doubles / self.test:.1f} %)"
        return f"{some} have the joints of a training sample, byte by byte: every score gains by them, kNN most."


class Target(Evaluated):
    """A benchmark of other data that encoders were transferred to."""

    name: str
    """As results call it; unique in a table."""

    @property
    def id(self) -> str:
        """What a result's `target` holds."""
        return target_id(self.data_fingerprint, self.benchmark)


def target_id(data_fingerprint: str, benchmark: str) -> str:
    """Identify a benchmark of a packed dataset, wherever its folder is."""
    return f"{benchmark}@{data_fingerprint}"


class Table(Evaluated):
    """A table with its controls."""

    recipe: str
    recipe_fingerprint: str
    engines: dict[str, str]
    """Role -> what made it, e.g. crops -> motion."""
    classes: tuple[str, ...]
    targets: tuple[Target, ...] = ()
    """Of the transfer protocol."""
    rows: tuple[TableRow, ...]
    failed: dict[str, str] = {}
    """Name and seed of rows for which memory ran out -> the error; the next call tries them again."""
    stage_seconds: dict[str, float] = {}
    """Stage -> seconds spent, summed over workers."""

    def names(self) -> list[str]:
        """Return the names of the rows in order, each once."""
        return list(dict.fromkeys(row.name for row in self.rows))

    def of(self, name: str) -> list[TableRow]:
        """Return the rows of one name, one per seed."""
        return [row for row in self.rows if row.name == name]

    def main_row(self) -> TableRow:
        """Return the row that figures are drawn of: the first pre-trained one."""
        return next((row for row in self.rows if row.role == "pretrained"), self.rows[0])

    def lines(self) -> list[Line]:
        """Return the lines of the table, one per name."""
        return [
            Line(
                name, rows[0].role, [result for row in rows for result in row.results],
                any(row.derived_from_joints for row in rows), rows[0].knowledge, len(rows),
            )
            for name in self.names() for rows in [self.of(name)]
        ]  # fmt: skip

    def lines_of(self, protocol: Protocol, target: str = "") -> list[Line]:
        """Return the lines that have results of a protocol (on a target), with those results alone."""
        found = []
        for line in self.lines():
            results = [r for r in line.results if (r.protocol, r.target) == (protocol, target)]
            found += [replace(line, results=results)] if results else []
        return found

    def failure_summary(self) -> str:
        """Return in one line how many results failed; empty where none did."""
        results = [(row, r) for row in self.rows for r in row.results if r.protocol not in ALWAYS]
        if self.failed:
            rows = "; ".join(f"{name}: {why}" for name, why in self.failed.items())
            return f"{len(self.failed)} rows failed, the others are in the table ({rows}); the same command tries them again"
        if not (bad := [(row, r) for row, r in results if r.failed]):
            return ""
        row, first = bad[0]
        where = f"{row.name}, seed {row.seed}, {first.protocol} {first.setting}".rstrip()
        return (
            f"{len(bad)} of {len(results)} results in addition to kNN and linear failed, the others are in "
            f"the table (first: {where}: {first.why}); the same command tries them again, and no others"
        )


# ---------------------------------------------------------------------------------------------------- view


@dataclass(frozen=True)
class Line:
    """Results of all runs of one name: one line of a table as it is shown."""

    name: str
    role: Role
    results: Sequence[Result]
    derived: bool = False
    """Its captions are a function of the encoder's own input."""
    knowledge: str = ""
    runs: int = 1

    def summary(self, protocol: Protocol) -> Summary:
        """Summarise all results of a protocol that has one setting."""
        return summarise([result for result in self.results if result.protocol == protocol])


@dataclass(frozen=True)
class Summary:
    """Results of several seeds and draws as one cell shows them, in percent."""

    count: int
    """Results with a score."""
    failed: int
    why: str
    """Reasons of those without one."""
    top1: str
    top5: str
    balanced: str
    best: str
    """Empty where no best epoch was sought."""
    train: tuple[int, ...]
    """Numbers of labelled training samples."""


@dataclass(frozen=True)
class Group:
    """One protocol under one setting: a summary for each line that has it."""

    protocol: Protocol
    target: str
    setting: str
    cells: dict[str, Summary]
    """Name of a line -> its results."""
    why: str
    """The one reason why the data allow no result at all; empty otherwise."""

    @property
    def train(self) -> list[int]:
        """Numbers of labelled training samples, over all lines."""
        return sorted({count for cell in self.cells.values() for count in cell.train})


def summarise(results: Sequence[Result]) -> Summary:
    """Return mean and deviation of results of one protocol and setting."""
    scores = [r.last for r in results if r.last is not None]
    top5 = [score.top5 for score in scores if score.top5 is not None]
    best = [r.best.top1 for r in results if r.best is not None]
    return Summary(
        count=len(scores),
        failed=sum(r.failed for r in results),
        why="; ".join(dict.fromkeys(r.reason for r in results if r.why)),
        top1=mean_std([score.top1 for score in scores]),
        top5=mean_std(top5),
        balanced=mean_std([score.balanced for score in scores]),
        best=mean_std(best) if best else "",
        train=tuple(sorted({r.train for r in results if r.last is not None})),
    )


def grouped(lines: Iterable[Line]) -> list[Group]:
    """Return the groups of some lines, by protocol in the order of their first results."""
    found: dict[tuple[Protocol, str, str], dict[str, list[Result]]] = {}
    for line in lines:
        for result in line.results:
            cells = found.setdefault((result.protocol, result.target, result.setting), {})
            cells.setdefault(line.name, []).append(result)
    groups = []
    for (protocol, target, setting), cells in found.items():
        summaries = {name: summarise(results) for name, results in cells.items()}
        reasons = {summary.why for summary in summaries.values()}
        possible = len(reasons) > 1 or any(s.count or s.failed for s in summaries.values())
        groups.append(Group(protocol, target, setting, summaries, "" if possible else reasons.pop()))
    order = list(dict.fromkeys(group.protocol for group in groups))
    return sorted(groups, key=lambda group: order.index(group.protocol))


def mean_std(values: Sequence[float]) -> str:
    """Return percent as `61.2`, `61.2 ± 1.3` (sample standard deviation) or, without values, `n/a`."""
    if not values:
        return "n/a"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


# ---------------------------------------------------------------------------------------------------- file


def save(folder: Path, table: Table) -> None:
    """Write results.json."""
    commit_text(folder / FILE, table.model_dump_json(indent=1) + "\n")


def load(folder: Path) -> Table:
    """Read results.json; raises DataError where there is none or it is damaged."""
    path = folder / FILE
    try:
        return Table.model_validate_json(read_bytes(path))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; run `c2vl-eval benchmark` first") from error
    except (ValueError, OSError) as error:
        if passing(error):
            raise
        raise DataError(
            f"{path}: damaged ({first_error(error)}); run `c2vl-eval benchmark` again, finished runs are kept"
        ) from error
