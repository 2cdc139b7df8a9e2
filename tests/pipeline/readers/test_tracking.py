"""Tracking: who is who over time, whoever comes, goes or crosses, and who is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from c2vl_pipeline.engines import Box, Person
from c2vl_pipeline.readers.tracking import PATIENCE, box_of, chosen, cost, distinct, overlap, track

SHAPE = np.random.default_rng(0).uniform(-1, 1, (17, 2)) * (20, 50)


def person(x: float, y: float = 100.0, size: float = 1.0, score: float = 0.9) -> Person:
    pixels = np.column_stack([SHAPE * size + (x, y), np.full(17, 0.9)])
    return Person(pixels.astype(np.float32), score)


def places(people: dict[int, Person]) -> dict[int, float]:
    return {n: float(p.pixels[:, 0].mean()) - SHAPE[:, 0].mean() for n, p in people.items()}


def areas(frames: int) -> dict[int, float]:
    return dict.fromkeys(range(frames), 640.0 * 480.0)


@pytest.mark.parametrize("seed", range(5))
def test_two_people_stay_who_they_are_in_whatever_order_they_are_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = [(n, list(rng.permutation([person(100 + n), person(300 - n, 110)]))) for n in range(60)]
    tracks = track(frames)
    assert len(tracks) == 2
    for one in tracks:
        steps = np.diff([*places(one.people).values()])
        assert np.abs(steps).max() < 1.5


def test_the_pairs_are_the_cheapest_of_all_that_there_are() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        before = [person(x) for x in rng.uniform(0, 60, 4)]
        after = [person(x) for x in rng.uniform(0, 60, 4)]
        if len(distinct(before)) < 4 or len(distinct(after)) < 4:
            continue
        tracks = track([(0, before), (1, after)])
        pairs = {id(one.people[0]): one.people[1] for one in tracks if len(one.people) == 2}
        if len(pairs) == 4:
            made = sum(cost(one, pairs[id(one)]) for one in before)
            best = min(sum(map(cost, before, order)) for order in permutations(after))
            assert made == pytest.approx(best)


def test_somebody_unseen_for_a_while_continues_and_for_long_is_new() -> None:
    for gap, expected in ((PATIENCE, 1), (PATIENCE + 1, 2)):
        assert len(track([(0, [person(100)]), (gap, [person(102)])])) == expected


def test_a_person_far_away_is_another_one() -> None:
    assert len(track([(0, [person(100)]), (1, [person(400)])])) == 2


def test_two_boxes_of_one_person_are_one_person_the_surer_one() -> None:
    low, high = person(100, score=0.6), person(101, score=0.9)
    assert distinct([low, high]) == [high]
    assert len(distinct([person(100), person(160)])) == 2


def test_the_large_and_long_ones_are_kept_and_the_main_one_is_first() -> None:
    frames = [(n, [person(100, size=0.4), person(300), *([person(500)] if n < 12 else [])]) for n in range(30)]
    kept = chosen(track(frames), areas(30), 2)
    assert [places(people)[0] for people in kept] == pytest.approx([300, 500], abs=1e-3)


def test_who_comes_after_another_has_gone_takes_that_place() -> None:
    frames: list[tuple[int, Sequence[Person]]] = [(n, [person(100)]) for n in range(10)]
    frames += [(n, []) for n in range(10, 40)] + [(n, [person(500)]) for n in range(40, 60)]
    (one,) = chosen(track(frames), areas(60), 2)
    assert sorted(one) == [*range(10), *range(40, 60)]


def test_who_is_there_for_a_moment_only_is_nobody() -> None:
    frames = [(n, [person(100), *([person(400)] if n < 2 else [])]) for n in range(30)]
    assert len(chosen(track(frames), areas(30), 2)) == 1
    frames = [(n, [person(100), *([person(400)] if n < 3 else [])]) for n in range(30)]
    assert len(chosen(track(frames), areas(30), 2)) == 2
    assert len(chosen(track(frames[:3]), areas(3), 2)) == 2


def test_nobody_is_kept_of_nobody() -> None:
    assert track([(0, []), (1, [])]) == []
    assert chosen([], {}, 2) == []


def test_overlap_matches_counting_pixels() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        corners = rng.integers(0, 40, (2, 2, 2))
        boxes = [Box(*map(float, c.min(axis=0)), *map(float, c.max(axis=0) + 1), 1.0) for c in corners]
        masks = np.zeros((2, 50, 50), bool)
        for mask, b in zip(masks, boxes, strict=True):
            mask[int(b.y0) : int(b.y1), int(b.x0) : int(b.x1)] = True
        assert overlap(*boxes) == pytest.approx((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_a_box_holds_the_sure_joints_only() -> None:
    pixels = np.array([[10, 10, 0.9], [30, 50, 0.9], [900, 900, 0.0]], np.float32)
    box = box_of(Person(pixels, 0.9))
    assert (box.x0, box.y0, box.x1, box.y1) == (10, 10, 30, 50)
