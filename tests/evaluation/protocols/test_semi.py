"""Semi-supervised evaluation: draws and shares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from c2vl_evaluation.protocols import linear, semi
from support.evaluation import logits, outcomes, told

LABELS = np.repeat(np.arange(6), [40, 30, 20, 50, 10, 16])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_a_stratified_draw_takes_the_share_of_each_class(share):
    places = semi.subset(LABELS, share, "stratified", 0)
    assert places.tolist() == sorted(set(places.tolist()))
    for label in range(6):
        assert np.count_nonzero(LABELS[places] == label) == round(share * np.count_nonzero(label == LABELS))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.05, 8), (0.1, 16), (1.0, 166)])
def test_a_random_draw_takes_the_share_of_all_rounded_down(share, count):
    places = semi.subset(LABELS, share, "random", 0)
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(places) == count


def test_shares_are_rounded_as_written_and_not_as_stored():
    assert len(semi.subset(np.zeros(100, int), 0.07, "random", 0)) == 7  # 0.07 * 100 is 7.000000000000001
    assert len(semi.subset(np.zeros(100, int), 0.29, "random", 0)) == 29  # 28.999999999999996


@pytest.mark.parametrize("sampling", ["stratified", "random"])
def test_draws_differ_and_are_the_same_for_everybody(sampling):
    draws = [semi.subset(LABELS, 0.2, sampling, n).tolist() for n in range(5)]
    assert len({tuple(draw) for draw in draws}) == 5
    assert draws == [semi.subset(LABELS, 0.2, sampling, n).tolist() for n in range(5)]
    often = np.bincount(np.concatenate([semi.subset(LABELS, 0.5, sampling, n) for n in range(400)]))
    assert often.min() > 120
    assert often.max() < 280  # nobody is preferred


def test_a_share_that_makes_no_sense_says_why():
    labels = np.repeat(np.arange(27), 16)
    assert semi.impossible(labels, 0.01, "stratified") == (
        "1 % of the 16 clips of a class is less than half a clip (27 of 27 classes)"
    )
    assert semi.impossible(labels, 0.05, "stratified") == ""
    assert semi.impossible(labels, 0.05, "random") == "5 % of 432 clips are 21, fewer than the 27 classes"
    assert semi.impossible(labels, 0.1, "random") == ""


def test_every_setting_has_its_draws_or_a_reason(subject):
    found = list(outcomes(semi, subject))
    cells = [(o.result.setting, o.result.draw, o.result.train, bool(o.result.why)) for o in found]
    settings = ["stratified, frozen", "stratified, tuned", "random, frozen", "random, tuned"]
    assert cells[:4] == [(f"5 % {setting}", 0, 0, True) for setting in settings]
    assert cells[4:] == [(f"50 % {setting}", draw, 6, False) for setting in settings for draw in (0, 1)]
    assert all(o.result.last is None and o.predictions is None for o in found[:4])
    assert all(o.result.last is not None and o.predictions is not None for o in found[4:])


def test_stored_results_are_found_without_drawing_labels(subject, monkeypatch):
    made = [o.result for o in outcomes(semi, subject)]

    def never(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(semi, "subset", never)
    assert [cell.cached() for cell in semi.cells(subject)] == made


def test_a_frozen_encoder_with_few_labels_is_a_linear_probe_of_them(subject):
    found = next(o for o in outcomes(semi, subject) if o.result.setting == "50 % stratified, frozen")
    gallery, query, classes = subject.features()
    places = semi.subset(gallery.labels, 0.5, "stratified", 0)
    some = replace(gallery, values=gallery.values[places], labels=gallery.labels[places])
    config = subject.recipe.evaluation.linear
    wanted = linear.probe(some, query, classes, config, 0, linear.standard(gallery.values))
    np.testing.assert_array_equal(logits(found), wanted.logits)
    assert found.result.held_out is not None


def test_one_label_a_class_leaves_nothing_to_sweep(subject):
    some = told(subject, "evaluation.semi.shares=[0.25]", "evaluation.semi.lr=0.5")
    found = next(o.result for o in outcomes(semi, some) if o.result.setting == "25 % stratified, frozen")
    assert (found.train, found.lr, found.held_out) == (3, 0.5, None)
