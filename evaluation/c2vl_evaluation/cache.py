"""The one store of results, next to each run: a finished result is never computed again.

    RUN/evaluations/<protocol>-<settings>.json      the result, and the key of everything that determined it
    RUN/evaluations/<protocol>-<settings>.parquet   per test sample: truth, answer, five best answers, scores

`<settings>` is a hash of data, benchmark and the protocol's configuration, so that two runs evaluated alike
have files of the same name; the key adds the encoder's weights and the seed. The JSON is written last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from c2vl_evaluation.features import Array, Labels
from c2vl_evaluation.metrics import class_name, data_read
from c2vl_evaluation.results import Protocol, Result
from c2vl_manifests.errors import CheckpointError, DataError, one_line, passing
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.manifest import commit_file, commit_text, file_sha256, fingerprint, first_error
from c2vl_manifests.reading import read_bytes
from c2vl_manifests.tables import read_table
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.memory import memory_errors

FOLDER = "evaluations"
FORMAT = 1
"""Of every key: with another one, all results are computed again."""
_TOP = 5
_Form = TypeVar("_Form", bound=BaseModel)
_BATCHES = {
    "linear": "evaluation.linear",
    "finetune": "evaluation.finetune",
    "semi": "evaluation.semi.tune",
    "transfer": "evaluation.transfer.tune",
}
"""Section of the recipe that sets the batch size of a protocol."""


@dataclass(frozen=True)
class Predictions:
    """Answers to the test samples, one row per sample."""

    sample_ids: list[str]
    labels: Labels
    """Truth, (N,)."""
    answers: Labels
    """(N,)"""
    scores: Array
    """(N, C), higher is likelier: logits of a linear layer, their weighted sums of an ensemble, cosines of
    kNN and zero-shot."""


@dataclass(frozen=True)
class ResultWithPredictions:
    """A result with its predictions (None where it has no score)."""

    result: Result
    predictions: Predictions | None


@dataclass(frozen=True)
class CacheKey:
    """Everything that determines a result: `name` names its files, `text` tells if they are current."""

    run: Path
    packed: PackedDataset
    benchmark: str
    protocol: Protocol
    config: Mapping[str, Any]
    """Everything that the protocol was given, draw and setting included."""
    seed: int = 0
    others: Mapping[str, CacheKey | str] = field(default_factory=dict)
    """Keys of other results and files that take part; they are not part of `name`."""
    kinds: tuple[str, ...] = ()
    """Kinds of knowledge that are read besides joints and labels."""

    @property
    def name(self) -> str:
        """Name of the files: equal for equal settings of any run."""
        settings = {
            "data": data_read(self.packed, self.benchmark, self.kinds),
            "benchmark": self.benchmark,
            "config": self.config,
        }
        return f"{self.protocol}-{fingerprint(settings)[:12]}"

    @property
    def text(self) -> str:
        """`<name>.<hash of everything that determines the result>`."""
        facts = {
            "format": FORMAT,
            "settings": self.name,
            "encoder": weights_of(self.run),
            "seed": self.seed,
            "others": {k: v.text if isinstance(v, CacheKey) else v for k, v in self.others.items()},
        }
        return f"{self.name}.{fingerprint(facts)}"

    def has_weights(self) -> bool:
        """Return True if the encoders of all runs that take part exist; they may be deleted to save space."""
        others = [key for key in self.others.values() if isinstance(key, CacheKey)]
        return (self.run / checkpoint.ENCODER).is_file() and all(key.has_weights() for key in others)


def weights_of(run: Path) -> str:
    """Return the sha256 of a run's encoder.

    Raises:
        CheckpointError: there is none.
    """
    path = run / checkpoint.ENCODER
    try:
        return remembered_sha256(path)
    except OSError as error:
        checkpoint.load_finished(run)  # raises with the reason
        raise CheckpointError(f"{path}: cannot be read ({error})") from error


@dataclass(frozen=True)
class Cell:
    """One result of a protocol before it is computed, so that one that fails does not cost the others."""

    protocol: Protocol
    compute: Callable[[], ResultWithPredictions]
    key: CacheKey | None = None
    """None where nothing is computed or stored."""
    setting: str = ""
    draw: int = 0
    target: str = ""
    """`Target.id` of the data that an encoder is transferred to."""
    oracle: bool | None = None
    """True: a stored result without its best epoch is computed again; False: the best epoch is left out, also of a stored
    one; None: as the protocol has it."""

    def cached(self) -> Result | None:
        """Return the stored result without reading its predictions; None if it has to be computed."""
        if self.key is None:
            return self.compute().result
        found = self._stored(self.key)
        return None if found is None else self._named(found.result)

    def run(self) -> ResultWithPredictions:
        """Return the stored result, or compute and store it."""
        if self.key is None:
            return self.compute()
        if (found := self._stored(self.key)) is not None and found.is_intact():
            try:
                predictions = None if found.answers is None else load(found.answers)
                return ResultWithPredictions(self._named(found.result), predictions)
            except DataError:
                pass  # damaged: computed again
        started = time.monotonic()
        with memory_errors(f"the {self.protocol} evaluation", *self._batch(self.key)):
            made = self.compute()
        names, predictions = self.key.packed.manifest.classes, made.predictions
        table = None if predictions is None else table_of(predictions, names)
        result = self._named(made.result).model_copy(update={"key": self.key.text})
        return ResultWithPredictions(_commit(self.key, result, table, time.monotonic() - started), made.predictions)

    def _stored(self, key: CacheKey) -> _Read[Result] | None:
        """Read the stored result; None also where it lacks the best epoch that is asked for."""
        found = _read(key, Result)
        return None if found is not None and self.oracle and found.result.best is None else found

    def _batch(self, key: CacheKey) -> tuple[str, int]:
        """Return the setting of the protocol's batch size, and its value; empty where it has none."""
        section = "evaluation.linear" if self.setting.endswith("frozen") else _BATCHES.get(self.protocol, "")
        batch = key.config.get("batch_size")
        return (f"{section}.batch_size", batch) if section and isinstance(batch, int) else ("", 1)

    def _named(self, result: Result) -> Result:
        """Return a result as its cell shows it: the folder of a transfer's target may have had another name."""
        unasked = {"best": None, "best_epoch": None} if self.oracle is False else {}
        return result.model_copy(update={"setting": self.setting, "draw": self.draw, "target": self.target, **unasked})


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    encoder: str
    """sha256 of the weights that were evaluated."""
    sha256: str
    """Of the predictions; empty where there are none."""
    result: dict[str, Any]
    """In the form of its protocol; each form has `protocol` and `seconds`."""


def cached(key: CacheKey, form: type[_Form], compute: Callable[[], tuple[_Form, pa.Table | None]]) -> _Form:
    """Return a result that is not a `Result` from the store, or compute and store it.

    Args:
        key: everything that determines it.
        form: model of the result, with fields `protocol` and `seconds`.
        compute: returns the result, and a table with one row per test sample or query.
    """
    if (found := _read(key, form)) is not None and found.is_intact():
        return found.result
    started = time.monotonic()
    result, table = compute()
    return _commit(key, result, table, time.monotonic() - started)


def _commit(key: CacheKey, result: _Form, table: pa.Table | None, seconds: float) -> _Form:
    """Write a result, the JSON last; returns it with the seconds it took."""
    result = result.model_copy(update={"seconds": round(seconds, 2)})
    path, digest = key.run / FOLDER / f"{key.name}.json", ""
    if table is not None:
        answers = path.with_suffix(".parquet")
        commit_file(answers, partial(pq.write_table, table, compression="zstd", write_page_checksum=True))
        digest = file_sha256(answers)
    stored = _Stored(key=key.text, encoder=weights_of(key.run), sha256=digest, result=result.model_dump(mode="json"))
    commit_text(path, stored.model_dump_json(indent=1) + "\n")
    return result


class _Read(NamedTuple, Generic[_Form]):
    """A stored result, its table of answers if it has one, and the sha256 that the table should have."""

    result: _Form
    answers: Path | None
    sha256: str

    def is_intact(self) -> bool:
        """Return True if the answers are those that were written; they are hashed, megabytes each."""
        try:
            return self.answers is None or remembered_sha256(self.answers) == self.sha256
        except OSError as error:
            if passing(error):
                raise
            return False


def _read(key: CacheKey, form: type[_Form]) -> _Read[_Form] | None:
    """Read a result and the path of its table; None if either is absent, or the result damaged or of another key.

    Results of runs whose encoders were deleted stay valid.
    """
    path = key.run / FOLDER / f"{key.name}.json"
    if not path.is_file():
        return None
    try:
        stored = _Stored.model_validate_json(read_bytes(path))
        if key.has_weights() and stored.key != key.text:
            return None
        answers = path.with_suffix(".parquet") if stored.sha256 else None
        if answers is not None and not answers.is_file():
            return None
        return _Read(form.model_validate(stored.result), answers, stored.sha256)
    except (OSError, ValueError) as error:
        if passing(error):
            raise
        return None


def holds(run: Path, key: str) -> bool:
    """Return True if a run holds the result of a key (`CacheKey.text`), of its present weights."""
    return _path_of(run, key) is not None


def predictions_of(run: Path, key: str) -> Predictions:
    """Return the stored predictions of a result.

    Raises:
        DataError: they are gone or damaged, or of other weights than the run has now.
    """
    if (path := _path_of(run, key)) is None:
        raise DataError(f"{run} no longer holds the answers behind this number; run `c2vl-eval benchmark` again")
    return load(path.with_suffix(".parquet"))


def _path_of(run: Path, key: str) -> Path | None:
    path = run / FOLDER / f"{key.partition('.')[0]}.json"
    try:
        stored = _Stored.model_validate_json(read_bytes(path))
        return path if stored.key == key and stored.encoder == weights_of(run) else None
    except (OSError, ValueError, CheckpointError):
        return None


@dataclass(frozen=True)
class Stored:
    """Results of one protocol on a run, over all settings."""

    found: dict[str, ResultWithPredictions]
    """By the name of their files; those without a score are left out."""
    stale: dict[str, Path]
    """Results of another encoder than the run has now."""


def stored(run: Path, protocol: Protocol) -> Stored:
    """Return all stored results of a protocol on a run.

    Raises:
        CheckpointError: the run has no encoder.
        DataError: a file is damaged.
    """
    weights, found, stale = weights_of(run), {}, {}
    for path in sorted((run / FOLDER).glob(f"{protocol}-*.json")):
        try:
            held = _Stored.model_validate_json(read_bytes(path))
            result = Result.model_validate(held.result)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: damaged ({first_error(error)}); delete it and evaluate the run again") from error
        answers = path.with_suffix(".parquet")
        if held.encoder != weights:
            stale[path.stem] = path
        elif held.sha256 and not answers.is_file():
            raise DataError(
                f"{path}: {answers.name}, which holds its answers, is gone; delete {path.name} and evaluate "
                "the run again"
            )
        elif held.sha256:
            found[path.stem] = ResultWithPredictions(result, load(answers))
    return Stored(found, stale)


def load(path: Path) -> Predictions:
    """Read predictions.

    Raises:
        DataError: there are none, or they are damaged.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; evaluate the run first, e.g. by `c2vl-eval run linear --run`")
    try:
        table = read_table(path).combine_chunks()
        flat = table.column("scores").combine_chunks().flatten().to_numpy()
        if flat.dtype.kind != "f" or any(
            table.column(name).null_count for name in ("sample_id", "label", "answer", "scores")
        ):
            raise ValueError("a column is of another type or lacks values")
        ids = table.column("sample_id").to_pylist()
        if len(set(ids)) < len(ids):
            raise ValueError("a sample has two answers")
        return Predictions(
            ids,
            table.column("label").to_numpy().astype(np.int64),
            table.column("answer").to_numpy().astype(np.int64),
            flat.reshape(table.num_rows, -1),
        )
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: damaged ({one_line(error, limit=100)}); delete it and evaluate the run again"
        ) from error


def table_of(found: Predictions, names: tuple[str, ...], temperature: float = 1.0) -> pa.Table:
    """Return predictions as a table: sample, label, answer, and the five most probable classes.

    Args:
        found: the predictions.
        names: of the classes.
        temperature: `probability` is the softmax of scores divided by it; other columns are unaffected.
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
    """Return the probabilities of scores per class. Shape: (N, C) -> the same."""
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
