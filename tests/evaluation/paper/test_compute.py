"""Workload and time of the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c2vl_evaluation.paper.compute import workload
from c2vl_evaluation.paper.experiments import Experiments
from c2vl_evaluation.paper.spec import tables_and_figures
from support.paper import FAST, experiments


def test_time_is_told_by_what_other_tables_finished(finished: Experiments) -> None:
    more = Experiments(finished.datasets, finished.out, "debug", FAST, seeds=2)
    asked = [c for c in more.cells(["table6"]) if c.row.label == "vision"]
    assert [evaluation for c in asked for evaluation in c.evaluations if more.results(evaluation) is not None] == []
    assert workload(more, asked).unknown > 0
    told = workload(more, asked, more.cells(tables_and_figures()))
    assert told.unknown == 0
    assert told.seconds > 0


def test_the_plan_counts_cells_and_measures_its_time(finished: Experiments, work: Path, tmp_path: Path) -> None:
    fresh = experiments(work, tmp_path)
    before = workload(fresh, fresh.cells(["table4", "table7"]))
    # IV: 4 columns of the paper, 2 of them of ntu120, and one more; VII: one, and one more
    assert [(t.table, t.todo, t.finished, t.impossible) for t in before.tallies] == [
        ("table4", 12, 0, 8),
        ("table7", 20, 0, 0),
    ]
    assert before.impossible == {"ntu120 is not available": 8}
    assert before.unknown == before.trainings + before.evaluations
    assert "unknown" in before.time()
    assert list(tmp_path.iterdir()) == []
    more = Experiments(finished.datasets, finished.out, "debug", FAST, seeds=3)
    cells = more.cells(["table4", "table7"])
    after = workload(more, cells)
    assert [t.finished for t in after.tallies] == [0, 0]  # three seeds are asked of each cell, one is there
    assert after.unknown == 0
    # by hand: each kind's mean time of the first seed, twice more
    runs = {
        evaluation.runs[0].out: evaluation.runs[0]
        for cell in cells
        for evaluation in cell.evaluations
        if evaluation.runs[0].seed == 0
    }
    by_hand = 2 * sum(spent(run.out) for run in runs.values())
    evaluations = {
        evaluation.id: evaluation for cell in cells for evaluation in cell.evaluations if evaluation.runs[0].seed == 0
    }
    by_hand += 2 * sum(
        result.seconds for evaluation in evaluations.values() for result in more.results(evaluation) or ()
    )
    assert after.seconds == pytest.approx(by_hand, rel=0.02)
    assert after.trainings == 2 * len(runs)


def spent(run: Path) -> float:
    return float(json.loads((run / "run.json").read_text())["seconds"])
