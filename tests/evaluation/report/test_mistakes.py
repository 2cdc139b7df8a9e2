"""Wrong answers that a report shows."""

from __future__ import annotations

import numpy as np

from c2vl_evaluation.cache import Predictions
from c2vl_evaluation.features import Features
from c2vl_evaluation.report.mistakes import mistakes, worst
from c2vl_training.dataset import PackedDataset
from support.packed import sticks


def answered(labels, answers, sure) -> Predictions:
    scores = np.zeros((len(labels), 3), np.float32)
    scores[np.arange(len(labels)), answers] = sure
    return Predictions([f"s{n}" for n in range(len(labels))], np.array(labels), np.array(answers), scores)


def test_the_most_certain_clip_of_the_most_frequent_confusions_comes_first():
    found = answered([0, 0, 1, 1, 2, -1], [1, 1, 1, 0, 2, 0], [1, 3, 9, 2, 9, 9])
    assert worst(found) == [1, 3]
    assert worst(found, limit=1) == [1]
    assert worst(answered([0, 1], [0, 1], [1, 1])) == []


def test_a_mistake_shows_the_training_clip_with_the_nearest_features(tmp_path):
    packed = PackedDataset(sticks(tmp_path / "packed"))
    test, train = (packed.select("xsub", split).rows for split in ("test", "train"))
    labels = packed.labels()[test]
    answers = np.where(np.arange(len(test)) == 1, (labels + 1) % 3, labels)
    values = np.random.default_rng(0).normal(size=(len(train), 4)).astype(np.float32)
    own = np.zeros((len(test), 4), np.float32)
    own[1] = 5 * values[2]  # the same direction at another length
    found = answered(labels, answers, np.ones(len(test)))
    (shown,) = mistakes(packed, found, Features(own, labels, test, 0), Features(values, labels, train, 0))
    assert [shown.clip.sample_id] == packed.sample_ids([test[1]])
    assert [shown.nearest.sample_id] == packed.sample_ids([train[2]])
    assert shown.nearest.name == packed.manifest.classes[packed.labels()[train[2]]]
    assert (shown.answer, shown.count) == (packed.manifest.classes[answers[1]], 1)
    assert shown.cosine > 0.999
    assert shown.clip.bodies
