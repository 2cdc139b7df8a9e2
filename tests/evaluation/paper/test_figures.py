"""The paper's figures of finished trainings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper.compute import compute
from c2vl_evaluation.paper.spec import tables_and_figures
from support.paper import experiments

FIGURES = [name for name in tables_and_figures() if name.startswith("figure")]


def test_the_same_ten_random_classes_are_shown_whatever_the_order() -> None:
    labels = np.repeat(np.arange(60), 3)
    first = paper_figures.chosen_classes(labels)
    assert len(first) == 10
    assert first == sorted({*first})
    assert first == paper_figures.chosen_classes(np.random.default_rng(1).permutation(labels))
    assert paper_figures.chosen_classes(np.array([4, 2, -1, 2])) == [2, 4]


def test_answers_outside_the_shown_classes_share_a_column() -> None:
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 8, 200), rng.integers(0, 8, 200)
    counts, names = paper_figures.confusion_of(labels, answers, {1: "one", 4: "four", 6: "six"})
    assert names == ["one", "four", "six", "any other"]
    for i, truth in enumerate((1, 4, 6)):
        wanted = [sum((labels == truth) & (answers == said)) for said in (1, 4, 6)]
        assert counts[i].tolist() == [*wanted, sum(labels == truth) - sum(wanted)]
    assert counts[3].tolist() == [0] * 4
    alone, names = paper_figures.confusion_of(np.array([1, 1, 4]), np.array([1, 4, 4]), {1: "one", 4: "four"})
    assert (alone.tolist(), names) == ([[1, 1], [0, 1]], ["one", "four"])


@pytest.mark.slow
def test_all_figures_are_drawn_of_finished_trainings(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = experiments(work, tmp_path, "training.pretrain.epochs=1", "training.pretrain.optimiser.milestones=[]")
    cells = [c for c in here.cells(FIGURES) if c.column.dataset == "utd-mhad"]
    early = paper_figures.draw(here, [c for c in cells if c.table == "figure6"])
    assert [p.title for p in early] == ["Not drawn: not computed yet (10 of 10 trainings)."]
    compute(here, cells)
    panels = {name: paper_figures.draw(here, [c for c in cells if c.table == name]) for name in FIGURES}
    assert {name: len(found) for name, found in panels.items()} == {
        "figure4": 2, "figure5": 2, "figure6": 2, "figure7": 1, "figure8": 4,
    }  # fmt: skip
    assert "at least five labelled samples" in panels["figure7"][0].title  # four test samples
    for name in ("figure4", "figure5", "figure6", "figure8"):
        assert all(panel.svg.startswith("<svg") for panel in panels[name])
    assert "0.9 → 0.1" in panels["figure6"][0].svg
    monkeypatch.setattr(paper_figures, "_draw", None)  # drawn before
    shutil.rmtree(tmp_path / "runs")  # to free the disk
    again = {name: [c for c in cells if c.table == name] for name in ("figure4", "figure8")}
    assert {name: paper_figures.draw(here, of, fresh=False) for name, of in again.items()} == {
        name: panels[name] for name in again
    }
