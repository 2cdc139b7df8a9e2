"""Exact nearest neighbours against a loop."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_evaluation.features import Features
from c2vl_evaluation.protocols import knn
from support.evaluation import features, noisy


def naive_knn(gallery: Features, query: Features, k: int) -> list[int]:
    answers = []
    for q in query.values.astype(np.float64):
        near = []
        for g, label in zip(gallery.values.astype(np.float64), gallery.labels, strict=True):
            near.append((-round(float(q @ g / np.linalg.norm(q) / np.linalg.norm(g)), 12), int(label)))
        near = sorted(near, key=lambda pair: pair[0])[:k]
        votes: dict[int, int] = {}
        for _, label in near:
            votes[label] = votes.get(label, 0) + 1
        most = max(votes.values())
        answers.append(next(label for _, label in near if votes[label] == most))
    return answers


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_knn_matches_a_loop(k, monkeypatch):
    monkeypatch.setattr(knn, "_CHUNK", 16)  # queries span several chunks and a rest
    gallery, query = noisy(60, 6, 5, 1), noisy(41, 6, 5, 2)
    wanted = naive_knn(gallery, query, k)
    assert knn.search(gallery, query, 10, k)[0].tolist() == wanted
    assert 0.2 < (np.array(wanted) == query.labels).mean() < 1


@pytest.mark.parametrize("k", [1, 3])
def test_knn_matches_a_loop_where_float32_cannot_tell_neighbours_apart(k, monkeypatch):
    """All clips point nearly the same way, as of a collapsed encoder; cosines differ in the eighth digit."""
    monkeypatch.setattr(knn, "_CHUNK", 16)
    rng = np.random.default_rng(0)
    far = 1000 * np.ones((1, 12))
    gallery = features(far + 0.05 * rng.normal(size=(50, 12)), rng.integers(0, 5, 50))
    query = features(far + 0.05 * rng.normal(size=(30, 12)), rng.integers(0, 5, 30))
    known, asked = knn._unit(gallery.values), knn._unit(query.values)
    blunt = gallery.labels[(asked @ known.T).argmax(axis=1)].tolist()
    wanted = naive_knn(gallery, query, k)
    assert knn.search(gallery, query, 10, k)[0].tolist() == wanted
    if k == 1:
        assert blunt != wanted  # the case is one


def test_of_equally_near_neighbours_the_first_of_the_gallery_counts():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(10, 33)).astype(np.float32), 4, axis=0)
    values[1::2] *= 2  # as near by angle
    order = rng.permutation(40)
    gallery = features(values[order], rng.integers(0, 6, 40))
    query = features(rng.normal(size=(25, 33)), np.zeros(25))
    assert knn.search(gallery, query, 10)[0].tolist() == naive_knn(gallery, query, 1)


def test_nearest_of_each_class_ranks_the_classes():
    gallery, query = noisy(60, 6, 9, 1), noisy(41, 6, 9, 2)
    answers, nearest = knn.search(gallery, query, 11)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query.values, gallery.values)]
    cosines = unit[0] @ unit[1].T
    for label in range(11):
        of = cosines[:, gallery.labels == label]
        wanted = of.max(axis=1) if of.size else -np.ones(41)
        np.testing.assert_allclose(nearest[:, label], wanted, atol=1e-6)
    found, *_ = knn.score(gallery, query, 11)
    top = np.argsort(-nearest, axis=1)[:, :5]
    assert found.top5 == pytest.approx((top == query.labels[:, None]).any(axis=1).mean())
    assert found.top1 == pytest.approx((answers == query.labels).mean())


def test_knn_is_by_angle_not_by_length():
    gallery = features(np.array([[100.0, 60.0], [0.1, 0.0]]), np.array([1, 0]))
    query = features(np.array([[50.0, 1.0]]), np.array([0]))
    assert knn.search(gallery, query, 10)[0].tolist() == [0]


def test_ties_of_a_vote_go_to_the_nearer():
    angles = np.array([0.3, 0.1, 0.2, 0.4, 2.0])
    gallery = features(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([7, 3, 7, 3, 9]))
    query = features(np.array([[1.0, 0.0]]), np.array([3]))
    assert knn.search(gallery, query, 10, 2)[0].tolist() == [3]
    assert knn.search(gallery, query, 10, 3)[0].tolist() == [7]
    assert knn.search(gallery, query, 10, 4)[0].tolist() == [3]
    assert knn.search(gallery, query, 10, 99)[0].tolist() == [3]  # no more neighbours than there are
