"""What a protocol found on one run, kept beside the run: a finished result is not made again.

    RUN/evaluations/<protocol>-<settings>.json      the finding, and the key of all that determined it
    RUN/evaluations/<protocol>-<settings>.parquet   one row a test sample: truth, answer, five answers, scores

`<settings>` is a hash of data, benchmark and the protocol's configuration, so that two runs evaluated alike have files
of one name; the key adds the encoder's weights and the seed. The JSON is written last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from c2vl_evaluation.features import Array, Features, Labels, extract
from c2vl_evaluation.metrics import check_classes, class_name
from c2vl_evaluation.results import Finding, Protocol
from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_manifests.manifest import commit_file, commit_text, file_sha256, fingerprint, first_error
from c2vl_manifests.recipe import Recipe
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed

FOLDER = "evaluations"
_FORMAT = 1
_TOP = 5
_Form = TypeVar("_Form", bound=BaseModel)


@dataclass(frozen=True)
class Predictions:
    """What was answered, a row a test sample."""

    sample_ids: list[str]
    labels: Labels
    """Truth, (N,)."""
    answers: Labels
    """(N,)"""
    scores: Array
    """(N, C), the higher the likelier: logits of a linear layer, their weighted sums of an ensemble, cosines of kNN and
    of zero-shot."""


@dataclass(frozen=True)
class Outcome:
    """A finding with its predictions (None where it is n/a)."""

    finding: Finding
    predictions: Predictions | None


@dataclass(frozen=True)
class Task:
    """One protocol under one setting on one run: what determines a finding."""

    run: Path
    packed: Packed
    benchmark: str
    protocol: Protocol
    config: Mapping[str, Any]
    """All that the protocol was told, draw and setting included."""
    seed: int = 0

    @property
    def settings(self) -> str:
        """Name of the files: equal for equal settings, whatever the run."""
        told = {"data": self.packed.manifest.fingerprint, "benchmark": self.benchmark, "config": self.config}
        return f"{self.protocol}-{fingerprint(told)[:12]}"

    @property
    def key(self) -> str:
        """Hash of all that determines the finding."""
        told = {
            "format": _FORMAT,
            "settings": self.settings,
            "encoder": weights_of(self.run),
            "seed": self.seed,
        }
        return fingerprint(told)


def weights_of(run: Path) -> str:
    """Return the sha256 of a run's encoder.

    Raises:
        CheckpointError: there is none.
    """
    return _sha256(*_stamp(run / checkpoint.ENCODER))


def _stamp(path: Path) -> tuple[Path, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        checkpoint.load_finished(path.parent)  # says what is the matter
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return path, found.st_mtime_ns, found.st_size


@cache
def _sha256(path: Path, changed: int, size: int) -> str:
    return file_sha256(path)


@dataclass(frozen=True)
class Subject:
    """A finished run, and what it is evaluated on."""

    run: Path
    packed: Packed
    benchmark: str
    recipe: Recipe
    seed: int

    def task(self, protocol: Protocol, config: BaseModel, **more: Any) -> Task:
        """Name a protocol under a configuration (and what else determines it)."""
        return Task(
            self.run, self.packed, self.benchmark, protocol, config.model_dump(mode="json") | more, self.seed
        )

    def splits(self) -> tuple[Features, Features, int]:
        """Return frozen features of the training and of the test split, and the number of classes.

        Raises:
            DataError: a sample without a label, or a class of the test split without a training sample.
        """
        device = self.recipe.training.device
        gallery, query = (
            extract(self.run, self.packed, self.benchmark, split, device) for split in ("train", "test")
        )
        return gallery, query, check_classes(self.packed, gallery, query)

    def predictions(self, rows: Labels, scores: Array, answers: Labels | None = None) -> Predictions:
        """Set scores a class beside the truth of some rows; the answer is the highest unless given."""
        answers = scores.argmax(axis=1) if answers is None else answers
        return Predictions(self.packed.sample_ids(rows), self.packed.labels()[rows], answers, scores)


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    encoder: str
    """sha256 of the weights that were evaluated."""
    sha256: str
    """Of the predictions; empty where there are none."""
    finding: dict[str, Any]
    """As its protocol writes it; each has a `protocol` and `seconds`."""


def kept(
    task: Task,
    compute: Callable[[], Outcome],
    others: Mapping[str, str] | None = None,
    whole: Callable[[], bool] = lambda: True,
) -> Outcome:
    """Return the finding of a task: as it lies on disk, or else by `compute`, and then written.

    Args:
        task: what it is.
        compute: how it is found.
        others: keys of other runs that take part.
        whole: whether what `compute` keeps beside the finding is there; where it is not, neither is the finding.
    """
    key = fingerprint({"key": task.key, "others": others}) if others else task.key
    if (found := read(task.run, task.settings, key)) is not None and whole():
        return found
    started = time.monotonic()
    outcome = compute()
    seconds, made = time.monotonic() - started, outcome.predictions
    table = None if made is None else table_of(made, task.packed.manifest.classes)
    return Outcome(_commit(task, key, outcome.finding, table, seconds), made)


def recorded(
    task: Task, key: str, form: type[_Form], compute: Callable[[], tuple[_Form, pa.Table | None]]
) -> _Form:
    """Return a finding of a form of its own, as it lies beside the run's others, or else by `compute`, and then written.

    Args:
        task: what it is.
        key: hash of all that determines it.
        form: what is found, with `protocol` and `seconds`.
        compute: how it is found, with a table of a row a test sample or query.
    """
    if (found := _read(task.run / FOLDER / f"{task.settings}.json", form, key)) is not None:
        return found[0]
    started = time.monotonic()
    finding, table = compute()
    return _commit(task, key, finding, table, time.monotonic() - started)


def _commit(task: Task, key: str, finding: _Form, table: pa.Table | None, seconds: float) -> _Form:
    """Write what was found, the JSON last; returns it with the seconds it took."""
    finding = finding.model_copy(update={"seconds": round(seconds, 2)})
    path = task.run / FOLDER / f"{task.settings}.json"
    beside, digest = path.with_suffix(".parquet"), ""
    if table is not None:
        commit_file(beside, partial(pq.write_table, table, compression="zstd", write_page_checksum=True))
        digest = file_sha256(beside)
    told = finding.model_dump(mode="json")
    whole = _Kept(key=key, encoder=weights_of(task.run), sha256=digest, finding=told)
    commit_text(path, whole.model_dump_json(indent=1) + "\n")
    return finding


def _read(path: Path, form: type[_Form], key: str | None) -> tuple[_Form, Path | None] | None:
    """Read a finding and where its table lies; None where either is absent or damaged, or it is of another key."""
    beside = path.with_suffix(".parquet")
    try:
        found = _Kept.model_validate_json(path.read_bytes())
        if key not in {None, found.key} or (found.sha256 and file_sha256(beside) != found.sha256):
            return None
        return form.model_validate(found.finding), beside if found.sha256 else None
    except (OSError, ValidationError):
        return None


def read(run: Path, settings: str, key: str | None = None) -> Outcome | None:
    """Read a finding; None where there is none, it is damaged, or it is of another encoder or seed than `key` says."""
    if (found := _read(run / FOLDER / f"{settings}.json", Finding, key)) is None:
        return None
    finding, beside = found
    try:
        return Outcome(finding, None if beside is None else load(beside))
    except DataError:
        return None


@dataclass(frozen=True)
class Stored:
    """What a protocol found on a run, over all settings."""

    found: dict[str, Outcome]
    """By the name of the settings; what is n/a is left out."""
    stale: dict[str, Path]
    """Findings of another encoder than the run holds now."""


def stored(run: Path, protocol: Protocol) -> Stored:
    """Return what a protocol found on a run.

    Raises:
        CheckpointError: the run has no encoder.
        DataError: a file is damaged.
    """
    weights, found, stale = weights_of(run), {}, {}
    for path in sorted((run / FOLDER).glob(f"{protocol}-*.json")):
        try:
            held = _Kept.model_validate_json(path.read_bytes())
            finding = Finding.model_validate(held.finding)
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path}: damaged ({first_error(error)}); delete it and evaluate the run again"
            ) from error
        beside = path.with_suffix(".parquet")
        if held.encoder != weights:
            stale[path.stem] = path
        elif held.sha256 and not beside.is_file():
            raise DataError(
                f"{path}: {beside.name}, which holds its answers, is gone; delete {path.name} and evaluate the run again"
            )
        elif held.sha256:
            found[path.stem] = Outcome(finding, load(beside))
    return Stored(found, stale)


def load(path: Path) -> Predictions:
    """Read predictions.

    Raises:
        DataError: there are none, or they are damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; evaluate the run first, e.g. by `c2vl-eval linear --run`")
    try:
        table = pq.read_table(path, page_checksum_verification=True).combine_chunks()
        flat = table.column("scores").combine_chunks().flatten().to_numpy()
        return Predictions(
            table.column("sample_id").to_pylist(),
            table.column("label").to_numpy().astype(np.int64),
            table.column("answer").to_numpy().astype(np.int64),
            flat.reshape(table.num_rows, -1),
        )
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: damaged ({str(error).splitlines()[0][:100]}); delete it and evaluate the run again"
        ) from error


def table_of(found: Predictions, names: tuple[str, ...], temperature: float = 1.0) -> pa.Table:
    """Return predictions as a table: sample, label, answer, and the five most probable classes.

    Args:
        found: what was answered.
        names: of the classes.
        temperature: `probability` is the softmax of scores divided by it; `scores` and all else are as they are.
    """
    probabilities = softmax(found.scores / np.float32(temperature))
    top = np.argsort(-found.scores, axis=1, kind="stable")[:, :_TOP].astype(np.int32)
    return pa.table(
        {
            "sample_id": pa.array(found.sample_ids, pa.string()),
            "label": found.labels.astype(np.int32),
            "answer": found.answers.astype(np.int32),
            "label_name": [class_name(names, n) for n in found.labels],
            "answer_name": [class_name(names, n) for n in found.answers],
            "right": found.labels == found.answers,
            "probability": probabilities[np.arange(len(top)), found.answers].astype(np.float32),
            "top5": _lists(top),
            "scores": _lists(np.ascontiguousarray(found.scores, np.float32)),
        }
    )


def _lists(rows: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def softmax(scores: Array) -> Array:
    """Return probabilities of scores a class. Shape: (N, C) -> the same."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
