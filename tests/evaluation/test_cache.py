"""The store of findings: made once, kept apart, made again when damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from c2vl_evaluation import cache
from c2vl_evaluation.cache import ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.results import Result, Score
from c2vl_manifests.errors import DataError
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import evaluated
from support.training import recipe, run


@pytest.fixture
def subject(data: PackedDataset, tmp_path: Path) -> EvalContext:
    train(run(data.folder, tmp_path / "floor", kind="random"))
    settings = ("evaluation.linear.epochs=3", "evaluation.linear.milestones=[2]")
    return EvalContext(tmp_path / "floor", data, "xsub", recipe(*settings), 0)


def changed(run: Path) -> None:
    """Give a run other weights."""
    found, facts = checkpoint.load(run / checkpoint.ENCODER)
    weights = {k: v + 1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(run / checkpoint.ENCODER, weights, facts)


def files(subject: EvalContext, suffix: str) -> list[Path]:
    return sorted((subject.run / cache.FOLDER).glob(f"linear-*.{suffix}"))


def test_predictions_are_a_row_a_test_sample(subject, data):
    found = evaluated(linear, subject)
    (path,) = files(subject, "parquet")
    table = pq.read_table(path)
    assert table.column("sample_id").to_pylist() == ["s00", "s04", "s08", "s12"]
    assert table.column("label_name").to_pylist() == ["class 0", "class 1", "class 2", "class 0"]
    rows = table.to_pylist()
    for row in rows:
        assert row["right"] == (row["label"] == row["answer"])
        assert row["answer"] == int(np.argmax(row["scores"])) == row["top5"][0]
        odds = np.exp(np.array(row["scores"]) - max(row["scores"]))
        assert row["probability"] == pytest.approx(max(odds / odds.sum()), rel=1e-5)
        assert sorted(row["top5"]) == [0, 1, 2]
    assert np.mean([row["right"] for row in rows]) == pytest.approx(found.result.last.top1)


def counting(subject: EvalContext) -> tuple[list[int], ResultWithPredictions]:
    calls = [0]

    def compute() -> ResultWithPredictions:
        calls[0] += 1
        return ResultWithPredictions(
            Result(protocol="linear", last=Score(top1=0.5, top5=None, balanced=0.5)),
            subject.predictions(np.array([0, 4]), np.array([[1.0, 0, 0], [0, 1, 0]], np.float32)),
        )

    key = subject.key("linear", subject.recipe.evaluation.linear)
    for _ in range(2):
        outcome = cache.Cell("linear", compute, key).run()
    return calls, outcome


def test_a_finding_is_made_once(subject):
    calls, outcome = counting(subject)
    assert calls == [1]
    assert outcome.predictions.answers.tolist() == [0, 1]


def test_a_number_is_read_without_hashing_its_answers(subject, monkeypatch):
    made = counting(subject)[1].result
    (answers,) = files(subject, "parquet")
    hashed = []
    monkeypatch.setattr(cache, "remembered_sha256", lambda path: hashed.append(path) or remembered_sha256(path))
    cell = cache.Cell("linear", None, subject.key("linear", subject.recipe.evaluation.linear))
    assert cell.cached() == made
    assert answers not in hashed
    assert cell.run().result == made
    assert answers in hashed


@pytest.mark.parametrize("damage", ["cut parquet", "other parquet", "no parquet", "cut json", "text json"])
def test_a_damaged_finding_is_made_again(subject, damage):
    counting(subject)
    what, kind = damage.split()
    (path,) = files(subject, kind)
    whole = path.read_bytes()
    if what == "no":
        path.unlink()
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2], "other": whole[::-1], "text": b"hello"}[what])
    assert counting(subject)[0] == [1]
    assert path.read_bytes()[:4] == whole[:4]


def test_a_stored_result_is_read_field_by_field(subject):
    key = subject.key("knn", subject.recipe.evaluation.knn)
    last = {"top1": 0.25, "top5": None, "balanced": 0.5}
    result = {"protocol": "knn", "last": last, "train": 12, "test": 4, "seconds": 3.5, "key": key.text}
    path = subject.run / cache.FOLDER / f"{key.name}.json"
    path.parent.mkdir()
    whole = {"key": key.text, "encoder": cache.weights_of(subject.run), "sha256": "", "result": result}
    path.write_text(json.dumps(whole))
    wanted = Result(protocol="knn", last=Score(**last), train=12, test=4, seconds=3.5, key=key.text)
    cell = cache.Cell("knn", lambda: pytest.fail("computed again"), key)
    assert cell.run() == ResultWithPredictions(wanted, None)
    assert cell.cached() == wanted
    made = cache.Cell("knn", lambda: ResultWithPredictions(wanted, None), key)
    for change in ({"key": "0" * 32}, {"result": {"protocol": "knn", "through": "language"}}, {"sha256": 3}):
        path.write_text(json.dumps(whole | change))
        assert made.cached() is None
        assert made.run().result.seconds < 3.5
        held = json.loads(path.read_text())
        assert held.keys() == whole.keys()
        assert (held["key"], held["result"]["last"]) == (key.text, last)


def test_results_of_a_run_whose_encoder_was_deleted_are_read(subject):
    wanted = evaluated(linear, subject).result
    key = subject.key("linear", subject.recipe.evaluation.linear)
    (subject.run / checkpoint.ENCODER).unlink()
    assert cache.Cell("linear", lambda: pytest.fail("computed again"), key).cached() == wanted


def test_a_key_finds_its_own_predictions_alone(subject):
    found = evaluated(linear, subject)
    again = cache.predictions_of(subject.run, found.result.key)
    np.testing.assert_array_equal(again.scores, found.predictions.scores)
    other = evaluated(linear, replace(subject, recipe=recipe("evaluation.linear.epochs=4"))).result.key
    assert cache.holds(subject.run, other)
    for key in ("", "linear-000000000000.0", found.result.key + "0"):
        assert not cache.holds(subject.run, key)
        with pytest.raises(DataError, match="no longer holds the answers behind this number"):
            cache.predictions_of(subject.run, key)
    changed(subject.run)
    assert not cache.holds(subject.run, found.result.key)


class Told(BaseModel):
    """A finding of a form of its own."""

    protocol: str = "zeroshot"
    ranks: tuple[int, ...]
    seconds: float = 0.0


@pytest.mark.parametrize("table", [pa.table({"rank": [3, 1]}), None])
@pytest.mark.parametrize("damage", ["", "cut json", "cut parquet", "no parquet", "other key", "other form"])
def test_findings_of_every_form_are_kept_alike(subject, table, damage):
    key, calls = subject.key("zeroshot", subject.recipe.evaluation.knn), []

    def compute() -> tuple[Told, pa.Table | None]:
        calls.append(1)
        return Told(ranks=(3, 1)), table

    found = cache.cached(key, Told, compute)
    path = subject.run / cache.FOLDER / f"{key.name}.json"
    beside = path.with_suffix(".parquet")
    assert json.loads(path.read_text())["result"]["ranks"] == [3, 1]
    assert beside.exists() == (table is not None)
    what, _, kind = damage.partition(" ")
    if what == "cut":
        file = path.with_suffix(f".{kind}")
        file.write_bytes(file.read_bytes()[:40] if file.exists() else b"")
    elif what == "no":
        beside.unlink(missing_ok=True)
    elif kind == "form":
        path.write_text(path.read_text().replace("ranks", "rankings"))
    again = cache.cached(replace(key, seed=7) if kind == "key" else key, Told, compute)
    assert again.ranks == found.ranks
    lost = bool(damage) and (kind != "parquet" or table is not None)
    assert len(calls) == 1 + lost
    if table is not None:
        assert pq.read_table(beside).equals(table)


def test_a_temperature_sharpens_probabilities_and_nothing_else(subject):
    values = np.array([[0.2, 0.3, 0.1], [0.9, 0.9, -1.0]], np.float32)
    found = subject.predictions(np.array([0, 4]), values)
    plain, sharp = (cache.table_of(found, (), t).to_pylist() for t in (1.0, 0.1))
    for one, other, row in zip(plain, sharp, values, strict=True):
        for t, of in ((1.0, one), (0.1, other)):
            odds = np.exp(row / t)
            assert of.pop("probability") == pytest.approx(max(odds) / sum(odds), rel=1e-5)
        assert one == other


def test_other_weights_data_seed_or_configuration_make_another_finding(subject):
    key = subject.key("linear", subject.recipe.evaluation.linear)
    text = key.text
    others = [
        EvalContext(subject.run, subject.packed, "xsub-val", subject.recipe, 0),
        EvalContext(subject.run, subject.packed, "xsub", subject.recipe, 1),
        EvalContext(subject.run, subject.packed, "xsub", recipe("evaluation.linear.epochs=4"), 0),
    ]
    keys = {other.key("linear", other.recipe.evaluation.linear).text for other in others}
    changed(subject.run)
    assert len({text, key.text, *keys}) == 5
    assert {other.key("linear", other.recipe.evaluation.linear).name for other in others[1:2]} == {
        key.name  # runs that differ in their seed are compared under one name
    }


def test_findings_of_another_encoder_stand_apart(subject):
    counting(subject)
    (path,) = files(subject, "json")
    assert (list(cache.stored(subject.run, "linear").found), cache.stored(subject.run, "linear").stale) == (
        [path.stem],
        {},
    )
    changed(subject.run)
    held = cache.stored(subject.run, "linear")
    assert (held.found, held.stale) == ({}, {path.stem: path})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"key": 1}', "key: Input should be a valid string"),
        ('{"key": "k", "encoder": "e", "sha256": "s", "result": {}}', "protocol: Field required"),
        ("{", "Invalid JSON: EOF while parsing an object"),
    ],
)
def test_a_damaged_finding_says_where_and_what(subject, text, said):
    counting(subject)
    (path,) = files(subject, "json")
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        cache.stored(subject.run, "linear")
    assert str(caught.value).startswith(f"{path}: damaged ({said}")
    assert str(caught.value).endswith("; delete it and evaluate the run again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "values"),
    [("answer", [None] * 99), ("label", [[1]] * 99), ("scores", [["a"]] * 99), ("scores", [1.5] * 99)],
)
def test_answers_with_columns_of_another_type_are_one_line(subject, name, values):
    counting(subject)
    (path,) = files(subject, "parquet")
    table = pq.read_table(path)
    column = pa.array(values[: table.num_rows])
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
    with pytest.raises(DataError, match=r"damaged \(.*\); delete it and evaluate the run again"):
        cache.load(path)


def test_two_answers_to_a_sample_are_one_line(subject):
    counting(subject)
    (path,) = files(subject, "parquet")
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(DataError, match=r"damaged \(a sample has two answers\); delete it and evaluate"):
        cache.load(path)


def test_a_truncated_folder_is_one_line(subject):
    counting(subject)
    (path,) = files(subject, "parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"parquet: damaged .*; delete it and evaluate the run again") as caught:
        cache.stored(subject.run, "linear")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"\.parquet, which holds its answers, is gone; delete linear-\w+\.json and"):
        cache.stored(subject.run, "linear")
    path.with_suffix(".json").unlink()
    assert cache.stored(subject.run, "linear").found == {}
