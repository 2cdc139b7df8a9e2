"""Plan and time of the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c2vl_evaluation.paper.compute import plan
from c2vl_evaluation.paper.experiments import Lab
from c2vl_evaluation.paper.spec import everything
from support.paper import FAST, lab


def test_time_is_told_by_what_other_tables_finished(finished: Lab) -> None:
    more = Lab(finished.sets, finished.out, "debug", FAST, seeds=2)
    asked = [c for c in more.cells(["table6"]) if c.line.label == "vision"]
    assert [job for c in asked for job in c.jobs if more.results(job) is not None] == []
    assert plan(more, asked).unknown > 0
    told = plan(more, asked, more.cells(everything()))
    assert told.unknown == 0
    assert told.seconds > 0


def test_the_plan_counts_cells_and_measures_its_time(finished: Lab, work: Path, tmp_path: Path) -> None:
    fresh = lab(work, tmp_path)
    before = plan(fresh, fresh.cells(["table4", "table7"]))
    # IV: 4 columns of the paper, 2 of them of ntu120, and one more; VII: one, and one more
    assert [(t.table, t.todo, t.finished, t.impossible) for t in before.tallies] == [
        ("table4", 12, 0, 8),
        ("table7", 20, 0, 0),
    ]
    assert before.absent == {"ntu120 is not there": 8}
    assert before.unknown == before.trainings + before.evaluations
    assert "unknown" in before.time()
    assert list(tmp_path.iterdir()) == []
    more = Lab(finished.sets, finished.out, "debug", FAST, seeds=3)
    cells = more.cells(["table4", "table7"])
    after = plan(more, cells)
    assert [t.finished for t in after.tallies] == [0, 0]  # three seeds are asked of each cell, one is there
    assert after.unknown == 0
    # by hand: each kind's mean time of the first seed, twice more
    runs = {job.runs[0].out: job.runs[0] for cell in cells for job in cell.jobs if job.runs[0].seed == 0}
    by_hand = 2 * sum(spent(run.out) for run in runs.values())
    jobs = {job.id: job for cell in cells for job in cell.jobs if job.runs[0].seed == 0}
    by_hand += 2 * sum(result.seconds for job in jobs.values() for result in more.results(job) or ())
    assert after.seconds == pytest.approx(by_hand, rel=0.02)
    assert after.trainings == 2 * len(runs)


def spent(run: Path) -> float:
    return float(json.loads((run / "run.json").read_text())["seconds"])
