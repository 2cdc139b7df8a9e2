"""The report's verdict: what it concludes, and what it leaves open."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_evaluation import cache
from c2vl_evaluation.cache import Predictions
from c2vl_evaluation.report.verdict import Verdict, verdict
from c2vl_manifests.errors import DataError
from support.report import BASE, both, found, table

CLIPS = 600
CLEAR = {"pretrained": 0.8, "floor": 0.5, "shuffled": 0.6}


@pytest.fixture
def said(monkeypatch, tmp_path):
    """Judge a table whose runs answered some share of the same clips rightly, each run others."""

    def judged(shares, seeds=1, clips=CLIPS) -> Verdict:
        roles = {role: name for name, role in reversed(BASE)}
        results = table({(roles[role], role): (share, share) for role, share in shares.items()}, seeds)

        def stored(run, key):
            row = next(r for r in results.rows if run == tmp_path / r.run)
            right = np.random.default_rng(len(row.name) + row.seed).permutation(clips) < clips * shares[row.role]
            labels = np.arange(clips) % 3
            return Predictions(list(map(str, range(clips))), labels, np.where(right, labels, 3), np.zeros((clips, 4)))

        monkeypatch.setattr(cache, "predictions_of", stored)
        return verdict(results, tmp_path)

    return judged


def test_a_clear_gain_is_stated_with_what_the_pairing_is_worth(said):
    found = said(CLEAR)
    assert found.text == (
        "partition(cosine) gains 30.0 points kNN and 30.0 points linear over random encoder. Pairing each skeleton with "
        "its own prompts is worth 20.0 points kNN and 20.0 points linear."
    )
    gap = found.gaps["random encoder"]["linear"]
    assert gap.interval.low < 0.3 < gap.interval.high
    assert "within noise" not in gap.words()


@pytest.mark.parametrize(
    ("changes", "words", "never"),
    [
        ({"pretrained": 0.52}, "differs from random encoder within noise: no effect", "worth"),
        (
            {"shuffled": 0.79},
            "differ from it within noise (kNN, linear), so nothing follows about the pairing",
            "worth",
        ),
        ({"shuffled": 0.95}, "shuffled pairs gain more, so the gain is not owed to the pairing", "worth"),
        ({"pretrained": 0.3}, "loses 20.0 points kNN and 20.0 points linear against random encoder", " gains"),
    ],
)
def test_what_lies_within_noise_supports_no_conclusion(said, changes, words, never):
    text = said(CLEAR | changes).text
    assert words in text
    assert never not in text


def test_the_same_difference_on_few_clips_is_noise(said):
    shares = {"pretrained": 0.55, "floor": 0.5, "shuffled": 0.5}
    assert "gains 5.0 points" in said(shares, clips=6000).text
    assert "within noise" in said(shares, clips=100).text


def test_a_difference_smaller_than_the_spread_over_seeds_is_noise(said, monkeypatch, tmp_path):
    found = said(CLEAR, seeds=2)
    assert found.seeds == 2
    assert found.gaps["random encoder"]["knn"].clear
    rows = [
        row.model_copy(update={"results": both(row.top1("knn") + 0.4 * row.seed, row.top1("linear"))})
        for row in table({key: (0.5, 0.6) if key[1] != "pretrained" else (0.6, 0.8) for key in BASE}, 2).rows
        if row.name != "hard"
    ]
    wide = verdict(table(seeds=2).model_copy(update={"rows": tuple(rows)}), tmp_path)
    assert not wide.gaps["random encoder"]["knn"].beyond_seeds
    assert wide.gaps["random encoder"]["linear"].beyond_seeds


def test_the_main_row_is_compared_with_other_pretrained_rows_but_not_judged_by_them(monkeypatch, tmp_path):
    rows = table().rows
    answers = np.arange(600) % 3

    def stored(run, key):
        row = next(r for r in rows if run == tmp_path / r.run)
        right = np.random.default_rng(len(row.name) + row.seed).permutation(600) < 600 * row.top1("knn")
        return Predictions(list(map(str, range(600))), answers, np.where(right, answers, 3), np.zeros((600, 4)))

    monkeypatch.setattr(cache, "predictions_of", stored)
    found = verdict(table(), tmp_path)
    assert list(found.gaps) == ["random encoder", "shuffled pairs", "hard"]
    assert found.gaps["hard"]["knn"].points == pytest.approx(2.0)
    assert found.gaps["hard"]["knn"].interval.low < 0.02 < found.gaps["hard"]["knn"].interval.high
    alone = verdict(table().model_copy(update={"rows": tuple(r for r in rows if r.name != "hard")}), tmp_path)
    assert found.text == alone.text


def test_numbers_without_stored_answers_are_not_judged(monkeypatch, tmp_path):
    def gone(run, key):
        raise DataError("gone")

    monkeypatch.setattr(cache, "predictions_of", gone)
    text = verdict(table(), tmp_path).text
    assert "+12.0 points kNN and +11.0 points linear; whether that exceeds noise is unknown" in text
    assert " gains" not in text
    assert "pairing" not in text


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("floor", "without a random encoder in the table, the gain of pre-training is unknown."),
        ("shuffled", "Without shuffled pairs in the table, the effect of the pairing is unknown."),
    ],
)
def test_verdict_names_the_control_that_is_missing(said, role, words):
    assert said({key: share for key, share in CLEAR.items() if key != role}).text.endswith(words)


def test_the_verdict_names_joints_without_an_encoder(tmp_path):
    results = table()
    before = verdict(results, tmp_path).text
    assert "raw joints" not in before
    raw = results.rows[0].model_copy(update={"name": "raw joints", "role": "baseline", "results": both(0.9, 0.5)})
    spoken = verdict(results.model_copy(update={"rows": (*results.rows, raw)}), tmp_path).text
    assert spoken == f"{before} The raw joints, without any encoder, reach 90.0 % kNN and 50.0 % linear."


@pytest.mark.parametrize(
    ("reached", "told"),
    [
        (0.7, "it gains 30.0 points against"),
        (0.41, "it differs within noise from"),
        (0.2, "it loses 20.0 points against"),
    ],
)
def test_few_labels_are_compared_with_the_same_network_from_scratch(monkeypatch, tmp_path, reached, told):
    setting, shares = "10 % stratified, tuned", {"pretrained": reached, "floor": 0.4}
    roles = {role: name for name, role in reversed(BASE)}
    results = table({(roles[role], role): (0.5, 0.5) for role in shares}, seeds=1)
    rows = tuple(
        row.model_copy(
            update={
                "results": (
                    *row.results,
                    found(0.9, "10 % stratified, frozen"),
                    *(found(shares[row.role], setting, draw, key=f"tuned {draw}") for draw in range(2)),
                )
            }
        )
        for row in results.rows
    )
    results = results.model_copy(update={"rows": rows})

    def stored(run, key):
        row = next(r for r in rows if run == tmp_path / r.run)
        share = shares[row.role] if key.startswith("tuned") else 0.5
        right = np.random.default_rng([len(row.name), len(key)]).permutation(CLIPS) < CLIPS * share
        labels = np.arange(CLIPS) % 3
        return Predictions(list(map(str, range(CLIPS))), labels, np.where(right, labels, 3), np.zeros((CLIPS, 4)))

    monkeypatch.setattr(cache, "predictions_of", stored)
    assert verdict(results, tmp_path).text.endswith(
        f" Fine-tuned with 10 % of the labels (stratified) {told} the same network from scratch, which reaches 40.0 ± 0.0 %."
    )
