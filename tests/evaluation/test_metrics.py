"""Scores of answers and controls without an encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from c2vl_evaluation import metrics
from c2vl_evaluation.results import Score
from c2vl_training.dataset import PackedDataset
from support.packed import COUNT, moving, sticks

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
    found = metrics.score(torch.from_numpy(values), torch.from_numpy(labels))
    assert found.top1 == pytest.approx(np.mean(right))
    assert found.top5 == (pytest.approx(np.mean(five)) if classes > 5 else None)
    assert found.balanced == pytest.approx(np.mean([np.mean(r) for r in recalls.values()]))


def test_the_highest_score_is_the_answer_that_counts():
    values = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    answers = values.argmax(dim=1)
    assert metrics.score(values, answers).top1 == 1.0
    assert metrics.score(values, torch.tensor([1, 2])).top1 == 0.0


def test_what_is_not_finite_is_wrong():
    values = torch.full((2, 7), float("nan"))
    assert metrics.score(values, torch.tensor([0, 6])) == Score(top1=0.0, top5=0.0, balanced=0.0)


def test_answers_without_an_encoder_match_their_definition():
    train_labels, test_labels = np.array([4, 4, 4, 1, 1, 0, 2, 3]), np.array([4, 1, 5, 6, 0, 4])
    found = metrics.majority(train_labels, test_labels, 7)
    assert found.top1 == pytest.approx(2 / 6)
    assert found.top5 == pytest.approx(4 / 6)  # 4, 1, 0, 2, 3 are answered
    assert found.balanced == pytest.approx(1 / 5)
    assert metrics.chance(60) == Score(top1=1 / 60, top5=5 / 60, balanced=1 / 60)
    assert metrics.chance(5).top5 is None


@pytest.mark.parametrize(("label", "name"), [(0, "wave"), (1, "kick"), (2, "class 2"), (40, "class 40"), (-1, "")])
def test_every_class_has_a_name_and_what_has_no_class_has_none(label, name):
    assert metrics.class_name(("wave", "kick"), label) == name
    assert metrics.class_name(["wave", "kick"], label) == name


# ------------------------------------------------------------------------------------------------ tables


def test_majority_is_the_training_splits_largest_class():
    assert metrics.majority(np.array([2, 2, 0]), np.array([2, 1, 0, 2]), 3).top1 == 0.5
    assert metrics.majority(np.array([0, 0, 2]), np.array([2, 1, 0, 2]), 3).top1 == 0.25


def test_test_samples_with_the_joints_of_a_training_sample_are_counted(tmp_path):
    joints = moving()
    joints[4], joints[8] = joints[1], joints[0]  # a test sample that is in training, and one that is twice in the test
    splits = [{"xsub": "train" if n % 4 else "test"} for n in range(COUNT)]
    packed = PackedDataset(sticks(tmp_path / "twice", joints=joints, splits=splits))
    assert metrics.doubles(packed, "xsub") == 1
    scores = metrics.no_encoder_scores(packed, "xsub")
    assert (scores.doubles, [note[:36] for note in scores.notes()]) == (1, ["1 of 4 test samples (25.0 %) have th"])
    assert metrics.no_encoder_scores(PackedDataset(sticks(tmp_path / "once")), "xsub").notes() == []
