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
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from c2vl_evaluation.features import Array, Features, Labels, extract
from c2vl_evaluation.results import Finding, Protocol
from c2vl_evaluation.scores import check_classes
from c2vl_manifests.config import Recipe
from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_manifests.manifest import commit_file, commit_text, file_sha256, fingerprint
from c2vl_training import checkpoint
from c2vl_training.data import Packed

FOLDER = "evaluations"
_FORMAT = 1
_TOP = 5


@dataclass(frozen=True)
class Predictions:
    """What was answered, a row a test sample."""

    sample_ids: list[str]
    labels: Labels
    """Truth, (N,)."""
    answers: Labels
    """(N,)"""
    scores: Array
    """(N, C): log-probabilities, or similarities of kNN."""


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
    finding: Finding


def kept(task: Task, compute: Callable[[], Outcome], others: Mapping[str, str] | None = None) -> Outcome:
    """Return the finding of a task: as it lies on disk, or else by `compute`, and then written.

    Args:
        task: what it is.
        compute: how it is found.
        others: keys of other runs that take part.
    """
    key = fingerprint({"key": task.key, "others": others}) if others else task.key
    if (found := read(task.run, task.settings, key)) is not None:
        return found
    started = time.monotonic()
    outcome = compute()
    finding = outcome.finding.model_copy(update={"seconds": round(time.monotonic() - started, 2)})
    outcome = Outcome(finding, outcome.predictions)
    beside = task.run / FOLDER / f"{task.settings}.parquet"
    digest = ""
    if outcome.predictions is not None:
        table = table_of(outcome.predictions, task.packed.manifest.classes)
        commit_file(
            beside, lambda path: pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        )
        digest = file_sha256(beside)
    whole = _Kept(key=key, encoder=weights_of(task.run), sha256=digest, finding=finding)
    commit_text(beside.with_suffix(".json"), whole.model_dump_json(indent=1) + "\n")
    return outcome


def read(run: Path, settings: str, key: str | None = None) -> Outcome | None:
    """Read a finding; None where there is none, it is damaged, or it is of another encoder or seed than `key` says."""
    path = run / FOLDER / f"{settings}.json"
    try:
        found = _Kept.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    if key is not None and found.key != key:
        return None
    if not found.sha256:
        return Outcome(found.finding, None)
    beside = path.with_suffix(".parquet")
    try:
        return Outcome(found.finding, load(beside)) if file_sha256(beside) == found.sha256 else None
    except (OSError, DataError):
        return None


def stored(run: Path, protocol: Protocol) -> dict[str, Outcome]:
    """Return what a protocol found on a run, by the name of its settings; what is n/a is left out.

    Raises:
        CheckpointError: the run has no encoder, or a finding is of another one than it has now.
        DataError: a file is damaged.
    """
    weights, found = weights_of(run), {}
    for path in sorted((run / FOLDER).glob(f"{protocol}-*.json")):
        try:
            held = _Kept.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{path}: damaged ({str(error).splitlines()[0][:100]}); run `c2vl-eval {protocol}` again"
            ) from error
        if held.encoder != weights:
            raise CheckpointError(
                f"{path}: of another encoder than {run} holds now; run `c2vl-eval {protocol}` again"
            )
        if held.sha256:
            found[path.stem] = Outcome(held.finding, load(path.with_suffix(".parquet")))
    return found


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


def table_of(found: Predictions, names: tuple[str, ...]) -> pa.Table:
    """Return predictions as a table: sample, label, answer, and the five most probable classes."""
    probabilities = softmax(found.scores)
    top = np.argsort(-found.scores, axis=1, kind="stable")[:, :_TOP].astype(np.int32)
    known = [*names, *(f"class {n}" for n in range(len(names), found.scores.shape[1]))]
    return pa.table(
        {
            "sample_id": pa.array(found.sample_ids, pa.string()),
            "label": found.labels.astype(np.int32),
            "answer": found.answers.astype(np.int32),
            "label_name": [known[n] for n in found.labels],
            "answer_name": [known[n] for n in found.answers],
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
