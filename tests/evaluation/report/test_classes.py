"""Per class: accuracies and moved confusions against plain counting, and how they stand on the page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2vl_evaluation.report import build, classes
from c2vl_evaluation.report.classes import Answers, accuracies, mean_counts, moved, shown
from support.report import main_run, read, table

K = 4


@st.composite
def answered(draw: st.DrawFn) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Labels (some unknown), and answers of two rows with one to three seeds."""
    count = draw(st.integers(1, 12))
    labels = draw(st.lists(st.integers(-1, K - 1), min_size=count, max_size=count))
    answers = st.lists(st.integers(0, K - 1), min_size=count, max_size=count)
    rows = [draw(st.lists(answers, min_size=1, max_size=3)) for _ in range(2)]
    ours, theirs = ([np.array(seed, np.int64) for seed in row] for row in rows)
    return np.array(labels, np.int64), ours, theirs


def naive(labels: np.ndarray, runs: list[np.ndarray], i: int, j: int) -> float:
    """How many samples of class i were called j, a mean over seeds, by a loop."""
    total = 0
    for run in runs:
        for label, answer in zip(labels.tolist(), run.tolist(), strict=True):
            total += label == i and answer == j
    return total / len(runs)


@given(answered())
@settings(max_examples=60, deadline=None)
def test_accuracies_match_naive_counting(case):
    labels, runs, _ = case
    found = accuracies(labels, runs, K)
    for i in range(K):
        samples = (labels == i).sum()
        if samples:
            assert found[i] == pytest.approx(naive(labels, runs, i, i) / samples)
        else:
            assert np.isnan(found[i])


@given(answered())
@settings(max_examples=60, deadline=None)
def test_moved_confusions_are_the_largest_differences_of_naive_counts(case):
    labels, ours, theirs = case
    found = moved(labels, Answers("a", "pretrained", ours), Answers("b", "floor", theirs), K, limit=3)
    change = {
        (i, j): naive(labels, ours, i, j) - naive(labels, theirs, i, j) for i in range(K) for j in range(K) if i != j
    }
    largest = sorted((abs(value) for value in change.values() if abs(value) > 1e-9), reverse=True)[:3]
    assert [abs(m.main - m.control) for m in found] == pytest.approx(largest)
    for m in found:
        assert m.main - m.control == pytest.approx(change[m.truth, m.answer])
        assert m.samples == (labels == m.truth).sum()
        assert m.points == pytest.approx(100 * change[m.truth, m.answer] / m.samples)


def test_a_right_answer_is_no_confusion_and_equal_rows_move_nothing():
    labels = np.array([0, 0, 1])
    one = Answers("a", "pretrained", [np.array([0, 0, 0])])
    assert moved(labels, one, Answers("b", "floor", one.runs), 2) == []
    other = Answers("b", "floor", [np.array([1, 1, 0])])
    assert [(m.truth, m.answer) for m in moved(labels, one, other, 2)] == [(0, 1)]


def test_mean_counts_of_a_seed_alone_weigh_less():
    labels = np.zeros(4, np.int64)
    seeds = [np.array([1, 1, 1, 1]), np.zeros(4, np.int64)]
    assert mean_counts(labels, seeds, 2).tolist() == [[2.0, 2.0], [0.0, 0.0]]


def test_classes_are_drawn_by_gain_and_of_many_both_ends():
    gain = np.array([0.1, np.nan, -0.2, 0.5, 0.1])
    assert shown(gain, np.array([0.3, np.nan, 0.0, 0.9, 0.4])) == [3, 4, 0, 2]
    many = np.linspace(-1, 1, 100)
    assert shown(many, many, limit=5) == [99, 98, 2, 1, 0]


def with_controls(count: int = 60) -> build.MainRun:
    """Three classes; the floor calls every clap a wave, shuffled pairs answer as the main run does."""
    main = main_run(count)
    floor = np.where(main.labels == 1, 0, main.labels)
    answers = {
        "partition(cosine)": [main.predictions] * 3,
        "random encoder": [floor, main.labels],
        "shuffled pairs": [main.predictions],
        "supervised": [main.labels],
    }
    return build.MainRun(main.features, main.labels, main.predictions, main.sample_ids, answers)


@pytest.mark.slow
def test_the_page_names_what_moved_against_each_control(tmp_path: Path) -> None:
    text = read(build.build(table(), tmp_path / "r.html", main=with_controls())).text
    block = text.split("Confusions that changed most against random encoder")[1].split("Confusions that changed")[0]
    # claps called waves: half of 20 over the two seeds of the floor, none in the main run
    assert "clap for wave 50.0 0.0 −50.0 20" in block
    assert "wave for clap 0.0 15.0 +15.0 20" in block
    same = text.split("Confusions that changed most against shuffled pairs")[1]
    assert same.strip().startswith("Both have the same confusions equally often.")
    assert "Confusions that changed most against supervised" not in text


def test_every_class_has_its_line_with_all_compared_rows(tmp_path: Path) -> None:
    main = with_controls()
    page = read(build.build(table(), tmp_path / "r.html", main=main))
    assert "Class Test samples partition(cosine), % random encoder, % shuffled pairs, % supervised, %" in page.text
    shares = [100 * classes.accuracies(main.labels, runs, 3)[1] for runs in main.answers.values()]
    ordered = [shares[0], shares[1], shares[2], shares[3]]
    assert f"clap 20 {' '.join(f'{share:.1f}' for share in ordered)}" in page.text
    assert ordered[1] == 50


def test_answers_of_the_main_run_alone_move_nothing_and_say_so(tmp_path: Path) -> None:
    text = read(build.build(table(), tmp_path / "r.html", main=main_run())).text
    assert "No control has stored answers" in text
    assert "sorted by accuracy." in text


def test_a_class_without_test_samples_has_no_line(tmp_path: Path) -> None:
    results = table(classes=("wave", "clap", "sit <down>", "never seen"))
    text = read(build.build(results, tmp_path / "r.html", main=with_controls())).text
    assert "never seen" not in text.split("Accuracy of all 3 classes")[1]
