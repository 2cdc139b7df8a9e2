"""Plan and time of the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c2vl_evaluation.paper import probe as probing
from c2vl_evaluation.paper.experiments import Lab
from c2vl_evaluation.paper.plan import duration, plan
from c2vl_evaluation.paper.spec import everything
from c2vl_training.trainer import Run
from support.paper import FAST, lab


def test_time_is_told_by_what_other_tables_finished(finished: Lab) -> None:
    more = Lab(finished.sets, finished.out, "debug", FAST, seeds=2)
    asked = [c for c in more.cells(["table6"]) if c.line.label == "vision"]
    assert [job for c in asked for job in c.jobs if more.kept(job) is not None] == []
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
    jobs = {job.path: job for cell in cells for job in cell.jobs if job.runs[0].seed == 0}
    by_hand += 2 * sum(kept.seconds for job in jobs.values() if (kept := more.kept(job)))
    assert after.seconds == pytest.approx(by_hand, rel=0.02)
    assert after.trainings == 2 * len(runs)


def test_a_first_estimate_is_probed_where_nothing_is_measured_and_writes_nothing(
    finished: Lab, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = lab(work, tmp_path)
    cells = fresh.cells(["table2", "table7"])
    asked: list[tuple[str, str]] = []
    real = probing.pace

    def seen(run: Run) -> float | None:
        asked.append((run.kind, run.recipe.training.encoder.name))
        assert real(run) is not None
        return 0.5

    monkeypatch.setattr(probing, "pace", seen)
    before = plan(fresh, cells, probe=True)
    assert list(tmp_path.iterdir()) == []
    assert asked == [
        ("pretrain", "stgcn"),
        ("supervised", "stgcn"),
        ("supervised", "stgcn"),
    ]  # and fine-tuning
    runs = {run.out: run for c in cells for j in c.jobs for run in j.runs if run.kind != "random"}
    tuned = {j.path: j for c in cells if c.table == "table2" for j in c.jobs}
    streams = [2 if j.protocol == "ensemble" else 1 for j in tuned.values()]  # the joint stream has its own
    assert before.probed == len(runs) + len(tuned)
    samples = 12  # of 16
    epochs = sum({"pretrain": 3, "supervised": 1}[run.kind] for run in runs.values()) + sum(streams)
    assert before.seconds == pytest.approx(0.5 * samples * epochs)
    assert before.unknown == before.trainings + before.evaluations - before.probed > 0
    assert f"{before.probed} of these were probed by a few steps" in before.time()
    # what has run is never probed
    asked.clear()
    more = Lab(finished.sets, finished.out, "debug", FAST, seeds=2)
    after = plan(more, more.cells(["table7"]), more.cells(everything()), probe=True)
    assert (asked, after.probed) == ([], 0)
    assert "probed" not in after.time()


def test_a_probe_tells_the_pace_of_every_encoder_and_leaves_what_cannot_be_trained_unknown(
    work: Path, tmp_path: Path
) -> None:
    here = lab(work, tmp_path)
    cells = here.cells(["table8"])
    runs = {(r.kind, r.recipe.training.encoder.name): r for c in cells if c.jobs for r in c.jobs[0].runs}
    found = {key: probing.pace(run) for key, run in runs.items()}
    wide = lab(work, tmp_path, "training.pretrain.batch_size=99").cells(["table7"])
    assert probing.pace(wide[0].jobs[0].runs[0]) is None  # the training would refuse it
    assert {key for key, each in found.items() if each is None} == {key for key in runs if key[0] == "random"}
    assert all(0 < each < 5 for each in found.values() if each is not None)
    assert len(found) > 8
    assert list(tmp_path.iterdir()) == []


def spent(run: Path) -> float:
    epochs = [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()] if (
        run / "metrics.jsonl"
    ).is_file() else [json.loads((run / "run.json").read_text())["seconds"]]  # fmt: skip
    return float(sum(epochs))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "1 h 00 min"),
        (12000, "3 h 20 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_read_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
