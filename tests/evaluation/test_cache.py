"""The store of findings: made once, kept apart, made again when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel

from c2vl_evaluation import cache
from c2vl_evaluation.cache import Outcome, Subject
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.results import Finding, Score
from c2vl_manifests.errors import DataError
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed
from c2vl_training.trainer import train
from support.training import recipe, run


@pytest.fixture
def subject(data: Packed, tmp_path: Path) -> Subject:
    train(run(data.folder, tmp_path / "floor", kind="random"))
    settings = ("evaluation.linear.epochs=3", "evaluation.linear.milestones=[2]")
    return Subject(tmp_path / "floor", data, "xsub", recipe(*settings), 0)


def files(subject: Subject, suffix: str) -> list[Path]:
    return sorted((subject.run / cache.FOLDER).glob(f"linear-*.{suffix}"))


def test_predictions_are_a_row_a_test_sample(subject, data):
    found = linear.outcome(subject)
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
    assert np.mean([row["right"] for row in rows]) == pytest.approx(found.finding.last.top1)


def counting(subject: Subject) -> tuple[list[int], Outcome]:
    calls = [0]

    def compute() -> Outcome:
        calls[0] += 1
        return Outcome(
            Finding(protocol="linear", last=Score(top1=0.5, top5=None, balanced=0.5)),
            subject.predictions(np.array([0, 4]), np.array([[1.0, 0, 0], [0, 1, 0]], np.float32)),
        )

    task = subject.task("linear", subject.recipe.evaluation.linear)
    for _ in range(2):
        outcome = cache.kept(task, compute)
    return calls, outcome


def test_a_finding_is_made_once(subject):
    calls, outcome = counting(subject)
    assert calls == [1]
    assert outcome.predictions.answers.tolist() == [0, 1]


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


def test_a_finding_that_lies_on_disk_is_read_field_by_field(subject):
    task = subject.task("knn", subject.recipe.evaluation.knn)
    last = {"top1": 0.25, "top5": None, "balanced": 0.5}
    finding = {"protocol": "knn", "last": last, "train": 12, "test": 4, "seconds": 3.5}
    path = subject.run / cache.FOLDER / f"{task.settings}.json"
    path.parent.mkdir()
    whole = {"key": task.key, "encoder": cache.weights_of(subject.run), "sha256": "", "finding": finding}
    path.write_text(json.dumps(whole))
    wanted = Finding(protocol="knn", last=Score(**last), train=12, test=4, seconds=3.5)
    assert cache.kept(task, lambda: pytest.fail("made again")) == Outcome(wanted, None)
    for change in ({"key": "0" * 32}, {"finding": {"protocol": "knn", "through": "language"}}, {"sha256": 3}):
        path.write_text(json.dumps(whole | change))
        made = cache.kept(task, lambda: Outcome(wanted, None))
        assert made.finding.seconds < 3.5
        held = json.loads(path.read_text())
        assert held.keys() == whole.keys()
        assert (held["key"], held["finding"]["last"]) == (task.key, last)


class Told(BaseModel):
    """A finding of a form of its own."""

    protocol: str = "zeroshot"
    ranks: tuple[int, ...]
    seconds: float = 0.0


@pytest.mark.parametrize("table", [pa.table({"rank": [3, 1]}), None])
@pytest.mark.parametrize("damage", ["", "cut json", "cut parquet", "no parquet", "other key", "other form"])
def test_findings_of_every_form_are_kept_alike(subject, table, damage):
    task, calls = subject.task("zeroshot", subject.recipe.evaluation.knn), []

    def compute() -> tuple[Told, pa.Table | None]:
        calls.append(1)
        return Told(ranks=(3, 1)), table

    found = cache.recorded(task, "key", Told, compute)
    path = subject.run / cache.FOLDER / f"{task.settings}.json"
    beside = path.with_suffix(".parquet")
    assert json.loads(path.read_text())["finding"]["ranks"] == [3, 1]
    assert beside.exists() == (table is not None)
    what, _, kind = damage.partition(" ")
    if what == "cut":
        file = path.with_suffix(f".{kind}")
        file.write_bytes(file.read_bytes()[:40] if file.exists() else b"")
    elif what == "no":
        beside.unlink(missing_ok=True)
    elif kind == "form":
        path.write_text(path.read_text().replace("ranks", "rankings"))
    again = cache.recorded(task, "another" if kind == "key" else "key", Told, compute)
    assert again.ranks == found.ranks
    lost = bool(damage) and (kind != "parquet" or table is not None)
    assert len(calls) == 1 + lost
    if table is not None:
        assert pq.read_table(beside).equals(table)
    assert cache.read(subject.run, task.settings) is None  # no finding of a classifier


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
    task = subject.task("linear", subject.recipe.evaluation.linear)
    key = task.key
    others = [
        Subject(subject.run, subject.packed, "xsub-val", subject.recipe, 0),
        Subject(subject.run, subject.packed, "xsub", subject.recipe, 1),
        Subject(subject.run, subject.packed, "xsub", recipe("evaluation.linear.epochs=4"), 0),
    ]
    keys = {other.task("linear", other.recipe.evaluation.linear).key for other in others}
    found, facts = checkpoint.load(subject.run / checkpoint.ENCODER)
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(subject.run / checkpoint.ENCODER, changed, facts)
    assert len({key, task.key, *keys}) == 5
    assert {other.task("linear", other.recipe.evaluation.linear).settings for other in others[1:2]} == {
        task.settings  # runs that differ in their seed are compared under one name
    }


def test_findings_of_another_encoder_stand_apart(subject):
    counting(subject)
    (path,) = files(subject, "json")
    assert (list(cache.stored(subject.run, "linear").found), cache.stored(subject.run, "linear").stale) == (
        [path.stem],
        {},
    )
    found, facts = checkpoint.load(subject.run / checkpoint.ENCODER)
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(subject.run / checkpoint.ENCODER, changed, facts)
    held = cache.stored(subject.run, "linear")
    assert (held.found, held.stale) == ({}, {path.stem: path})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"key": 1}', "key: Input should be a valid string"),
        ('{"key": "k", "encoder": "e", "sha256": "s", "finding": {}}', "protocol: Field required"),
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


def test_a_truncated_folder_is_one_line(subject):
    counting(subject)
    (path,) = files(subject, "parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"parquet: damaged .*; delete it and evaluate the run again"
    ) as caught:
        cache.stored(subject.run, "linear")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(
        DataError, match=r"\.parquet, which holds its answers, is gone; delete linear-\w+\.json and"
    ):
        cache.stored(subject.run, "linear")
    path.with_suffix(".json").unlink()
    assert cache.stored(subject.run, "linear").found == {}
