"""Accuracies against loops, and what is kept of a finding on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from c2vl_evaluation import linear, scores, store
from c2vl_evaluation.results import Finding, Score
from c2vl_evaluation.store import Outcome, Subject
from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_training import checkpoint
from c2vl_training.data import Packed
from c2vl_training.trainer import train
from test_trainer import recipe, run, sticks

# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("classes", [3, 5, 6, 11])
def test_scores_match_a_loop(classes):
    rng = np.random.default_rng(classes)
    values = rng.integers(0, 4, (200, classes)).astype(np.float32)  # full of ties
    labels = rng.integers(0, classes - 1, 200)  # a class that never occurs
    right, five, recalls = [], [], {}
    for row, label in zip(values, labels, strict=True):
        order = sorted(range(classes), key=lambda c: (-row[c], c))
        right.append(order[0] == label)
        five.append(label in order[:5])
        recalls.setdefault(label, []).append(right[-1])
    found = scores.score(torch.from_numpy(values), torch.from_numpy(labels))
    assert found.top1 == pytest.approx(np.mean(right))
    assert found.top5 == (pytest.approx(np.mean(five)) if classes > 5 else None)
    assert found.balanced == pytest.approx(np.mean([np.mean(r) for r in recalls.values()]))


def test_the_highest_score_is_the_answer_that_counts():
    values = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    answers = values.argmax(dim=1)
    assert scores.score(values, answers).top1 == 1.0
    assert scores.score(values, torch.tensor([1, 2])).top1 == 0.0


def test_what_is_not_finite_is_wrong():
    values = torch.full((2, 7), float("nan"))
    assert scores.score(values, torch.tensor([0, 6])) == Score(top1=0.0, top5=0.0, balanced=0.0)


def test_answers_without_an_encoder_match_their_definition():
    train_labels, test_labels = np.array([4, 4, 4, 1, 1, 0, 2, 3]), np.array([4, 1, 5, 6, 0, 4])
    found = scores.majority(train_labels, test_labels, 7)
    assert found.top1 == pytest.approx(2 / 6)
    assert found.top5 == pytest.approx(4 / 6)  # 4, 1, 0, 2, 3 are answered
    assert found.balanced == pytest.approx(1 / 5)
    assert scores.chance(60) == Score(top1=1 / 60, top5=5 / 60, balanced=1 / 60)
    assert scores.chance(5).top5 is None


# ------------------------------------------------------------------------------------------------- store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(sticks(tmp_path_factory.mktemp("sticks") / "packed"))


@pytest.fixture
def subject(data: Packed, tmp_path: Path) -> Subject:
    train(run(data.folder, tmp_path / "floor", kind="random"))
    settings = ("evaluation.linear.epochs=3", "evaluation.linear.milestones=[2]")
    return Subject(tmp_path / "floor", data, "xsub", recipe(*settings), 0)


def files(subject: Subject, suffix: str) -> list[Path]:
    return sorted((subject.run / store.FOLDER).glob(f"linear-*.{suffix}"))


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
        outcome = store.kept(task, compute)
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


def test_findings_of_another_encoder_are_refused(subject):
    counting(subject)
    found, facts = checkpoint.load(subject.run / checkpoint.ENCODER)
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(subject.run / checkpoint.ENCODER, changed, facts)
    with pytest.raises(
        CheckpointError, match=r"of another encoder than .* holds now; run `c2vl-eval linear`"
    ):
        store.stored(subject.run, "linear")


def test_a_truncated_folder_is_one_line(subject):
    counting(subject)
    (path,) = files(subject, "parquet")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        DataError, match=r"parquet: damaged .*; delete it and evaluate the run again"
    ) as caught:
        store.stored(subject.run, "linear")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"parquet does not exist; evaluate the run first"):
        store.stored(subject.run, "linear")
