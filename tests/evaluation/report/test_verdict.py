"""The report's verdict."""

from __future__ import annotations

import pytest

from c2vl_evaluation.report.verdict import verdict
from support.report import BASE, both, table


def said(seeds=3, **changes):
    roles = {role: name for name, role in reversed(BASE)}
    return verdict(table(BASE | {(roles[role], role): value for role, value in changes.items()}, seeds))


def test_verdict_is_one_sentence_of_the_numbers():
    assert said() == (
        "partition(cosine) gains 12.0 points kNN and 11.0 points linear over random encoder (3 seeds, both beyond two "
        "standard errors); with shuffled pairs it is +1.0 and +2.0, so most of the gain comes from pairing each "
        "skeleton with its own prompts."
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": (0.45, 0.61)}, "loses 5.0 points kNN and gains 1.0 points linear against random encoder"),
        ({"pretrained": (0.4, 0.5)}, "so there is no gain to explain."),
        ({"shuffled": (0.6, 0.7)}, "so most of the gain does not need the right pairing."),
        ({"shuffled": (0.6, 0.6)}, "so most of the linear gain comes from pairing"),
        ({"shuffled": (0.45, 0.6)}, "it is −5.0 and +0.0"),
        ({"pretrained": (0.5005, 0.6)}, "3 seeds, neither beyond two standard errors"),
        ({"pretrained": (0.7, 0.6)}, "3 seeds, only kNN beyond two standard errors"),
        ({"seeds": 1}, "one seed, so the spread over seeds is unknown"),
    ],
)
def test_verdict_changes_with_the_numbers(changes, words):
    assert words in said(**changes)


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("floor", "without a random encoder in the table, the gain of pre-training is unknown."),
        ("shuffled", "without shuffled pairs in the table, the effect of the pairing is unknown."),
    ],
)
def test_verdict_names_the_control_that_is_missing(role, words):
    assert verdict(table({key: value for key, value in BASE.items() if key[1] != role})).endswith(words)


def test_the_verdict_names_joints_without_an_encoder():
    results = table()
    assert "raw joints" not in verdict(results)
    raw = results.rows[0].model_copy(update={"name": "raw joints", "role": "baseline", "results": both(0.9, 0.5)})
    spoken = verdict(results.model_copy(update={"rows": (*results.rows, raw)}))
    assert spoken == f"{verdict(results)} The raw joints, without any encoder, reach 90.0 % kNN and 50.0 % linear."
