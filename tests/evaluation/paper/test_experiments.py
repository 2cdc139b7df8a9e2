"""Cells of the paper's tables: shared, resumed, refused."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from c2vl_evaluation.paper import compute as paper
from c2vl_evaluation.paper import export as paper_write
from c2vl_evaluation.paper.compute import compute, reason, unfinished
from c2vl_evaluation.paper.experiments import Evaluation, Experiments, TableCell, find_datasets
from c2vl_evaluation.paper.export import as_markdown
from c2vl_evaluation.paper.spec import rows_of, tables_and_figures
from c2vl_evaluation.paper.tables import MEASURES, FilledCell, fill
from c2vl_manifests.errors import ConfigError, StageError
from c2vl_manifests.events import Event, Note, Progress
from c2vl_manifests.targets import TABLE_VII
from c2vl_training import checkpoint, trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.methods import Method
from c2vl_training.pretraining import Pretraining
from support.packed import COUNT
from support.paper import FAST, experiments
from support.training import StoppedError

pytestmark = pytest.mark.slow


def stop_at(epochs: int) -> object:
    """An emit that ends everything after some epochs, whichever training they are of."""
    seen: list[Event] = []

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done:
            seen.append(event)
            if len(seen) == epochs:
                raise StoppedError

    return emit


def test_packed_sets_are_named_by_dataset_or_by_folder_where_two_hold_the_same(work: Path, tmp_path: Path) -> None:
    assert list(find_datasets(work)) == ["ntu60", "utd-mhad"]
    shutil.copytree(work / "utd-mhad", tmp_path / "gestures")
    assert list(find_datasets(tmp_path)) == ["utd-mhad"]
    shutil.copytree(work / "utd-mhad", tmp_path / "utd-mhad")
    assert list(find_datasets(tmp_path)) == ["utd-mhad (gestures)", "utd-mhad"]
    # made-up samples in a folder of another dataset's name never stand for that dataset
    shutil.copytree(work / "utd-mhad", tmp_path / "ntu60")
    assert list(find_datasets(tmp_path)) == ["utd-mhad (gestures)", "utd-mhad (ntu60)", "utd-mhad"]
    shutil.rmtree(tmp_path / "utd-mhad")
    shutil.rmtree(tmp_path / "gestures")
    assert list(find_datasets(tmp_path)) == ["utd-mhad"]
    nested = tmp_path / "twice"
    shutil.copytree(work / "utd-mhad", nested)
    shutil.copytree(work / "utd-mhad", nested / "twice")
    with pytest.raises(ConfigError, match=r"both be named 'utd-mhad \(twice\)'; rename"):
        find_datasets(nested)
    assert list(find_datasets(work / "ntu60")) == ["ntu60"]
    with pytest.raises(StageError, match=r"no packed dataset below .*nothing"):
        find_datasets(tmp_path / "nothing")


def test_the_papers_datasets_keep_its_columns_and_others_are_added(work: Path, tmp_path: Path) -> None:
    small = experiments(work, tmp_path)
    wide = Experiments(small.datasets, tmp_path, "debug", FAST, wide=True)
    assert [c.title for c in small.columns("table7")] == ["ntu60 xsub", "utd-mhad xsub"]
    assert [c.title for c in wide.columns("table7")] == ["ntu60 xsub", "ntu60 xview", "utd-mhad xsub"]
    assert [c.title for c in small.columns("table3")][-1] == "utd-mhad xsub, 50 %"
    assert [c.title for c in small.columns("table5")] == [
        "ntu60 → pku-mmd-2 xsub", "ntu120 → pku-mmd-2 xsub", "ntu60 → utd-mhad xsub", "utd-mhad → ntu60 xsub",
    ]  # fmt: skip
    assert [c.title for c in small.columns("figure6")] == ["ntu60 xsub", "utd-mhad xsub"]


def test_equal_trainings_are_shared_between_tables_and_unequal_ones_never(work: Path, tmp_path: Path) -> None:
    small = experiments(work, tmp_path)
    cells = {(c.table, c.row.label): c for c in small.cells(tables_and_figures()) if c.column.title == "ntu60 xsub"}

    def run(table: str, label: str) -> Path:
        return cells[table, label].evaluations[0].runs[0].out

    own = run("table1", "C²VL")
    for table, label in (
        ("table2", "C²VL"), ("table4", "C²VL"), ("table6", "vision and language"), ("table7", "partition(cosine)"),
        ("table8", "C²VL with ST-GCN"), ("figure4", "C²VL"), ("figure6", "alpha 0.9 → 0.1"), ("figure6", "beta 0.2"),
    ):  # fmt: skip
        assert run(table, label) == own
    assert run("figure7", "C²VL, vision") == run("figure8", "C²VL, vision") == run("table6", "vision")
    different = [run("table7", name) for name in TABLE_VII] + [run("table4", c) for c, *_ in _controls()]
    assert len({*different}) == len(TABLE_VII) + 3
    other = experiments(work, tmp_path, "training.pretrain.epochs=2")
    assert other.cells(["table7"])[0].evaluations[0].runs[0].out != run("table7", "hard")
    assert len({evaluation.id for c in cells.values() for evaluation in c.evaluations}) > 40


def _controls() -> list[tuple[str, str]]:
    return [(line.label, line.role) for line in rows_of("table4") if line.role != "pretrained"]


def test_a_finished_cell_is_never_made_again(
    finished: Experiments, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = experiments(work, finished.out)
    cells = again.cells(["table4", "table7", "figure4"])
    assert [c for c in cells if not c.evaluations]  # ntu120 is not there
    assert unfinished(again, cells) == []

    def fail(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(paper, "train", fail)
    monkeypatch.setattr(Evaluation, "cells", fail)
    compute(again, cells)
    assert again.failed == {}


def test_an_interrupted_table_ends_with_the_numbers_of_an_undisturbed_one(
    finished: Experiments, work: Path, tmp_path: Path
) -> None:
    broken = experiments(work, tmp_path / "out")
    cells = [c for c in broken.cells(["table7"]) if c.column.dataset == "utd-mhad"]
    with pytest.raises(StoppedError):
        compute(broken, cells, stop_at(11))
    left = unfinished(broken, cells)
    assert 0 < len(left) < len({evaluation.id for cell in cells for evaluation in cell.evaluations})
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/*/*/evaluations/*.json")}
    said: list[str] = []
    resumed = experiments(work, tmp_path / "out")
    compute(resumed, cells, lambda e: said.append(e.text) if isinstance(e, Note) else None)
    assert any("resuming after epoch" in text for text in said)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    both = [
        fill(one, "table7", [c for c in one.cells(["table7"]) if c.column.dataset == "utd-mhad"])
        for one in (resumed, finished)
    ]
    numbers = [
        [(row.label, [(c.ours, *(c.values(m) for m in MEASURES)) for c in row.cells]) for row in one.rows]
        for one in both
    ]
    assert numbers[0] == numbers[1]
    assert sum(bool(c.ours) for row in both[0].rows if row.trained for c in row.cells) == 10


def test_other_weights_make_a_cell_unfinished_and_deleted_ones_do_not(finished: Experiments, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    here = Experiments(finished.datasets, out, "debug", FAST)
    cells = [c for c in here.cells(["table7"]) if c.evaluations]
    changed, deleted = (c.evaluations[0].runs[0].out for c in cells[:2])
    tensors, facts = checkpoint.load(changed / checkpoint.ENCODER)
    checkpoint.save(changed / checkpoint.ENCODER, {k: v + 1 for k, v in tensors.items()}, facts)
    (deleted / checkpoint.ENCODER).unlink()
    assert unfinished(here, cells) == [cells[0].evaluations[0]]


def test_what_cannot_be_trained_is_said_and_the_rest_goes_on(work: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    shutil.copytree(work / "utd-mhad", root / "utd-mhad")
    np.save(root / "utd-mhad" / "packed" / "language_ok.npy", np.zeros((COUNT, 4), bool))
    index = PackedDataset(root / "utd-mhad")._index
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = index.column_names.index("language_rows")
    zero = pa.array([0] * COUNT, index.schema.field("language_rows").type)
    pq.write_table(index.set_column(at, index.schema.field(at), zero), root / "utd-mhad" / "packed" / "index.parquet")
    mute = experiments(root, tmp_path / "out")
    cells = [c for c in mute.cells(["table6"]) if c.evaluations]
    compute(mute, cells)
    found = {c.row.label: mute.results(c.evaluations[0]) is not None for c in cells}
    assert found["vision"]
    assert found["random encoder (floor)"]
    assert not found["language"]
    language = next(c for c in cells if c.row.label == "language")
    assert "no usable train samples" in reason(mute, language)
    shown = fill(mute, "table6", cells)
    row = next(r for r in shown.rows if r.label == "language")
    assert "no usable train samples" in row.cells[0].why


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 2 GiB\nmore", "can't allocate memory"])
def test_a_lack_of_memory_is_said_with_its_remedy_and_the_rest_goes_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    here = experiments(work, tmp_path)
    cells = [c for c in here.cells(["table4"]) if c.column.title == "utd-mhad xsub"]
    real = trainer.fit

    def full(method: Method, clips: Clips, session: trainer.Session) -> object:
        if isinstance(method, Pretraining):
            raise torch.OutOfMemoryError(text)
        return real(method, clips, session)

    monkeypatch.setattr(trainer, "fit", full)
    compute(here, cells)
    for cell in cells:
        why = reason(here, cell)
        if cell.evaluations[0].runs[0].kind == "pretrain":
            assert f"in the pretrain training (OutOfMemoryError: {text.splitlines()[0]}" in why
            assert "--set training.pretrain.batch_size=" in why
            assert "\n" not in why
        else:
            assert here.results(cell.evaluations[0]) is not None

    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(paper, "train", wrong)
    with pytest.raises(RuntimeError, match="shapes"):  # a fault of the program stays one
        compute(experiments(work, tmp_path / "other"), cells)


def test_a_cell_shows_the_seeds_that_are_finished(finished: Experiments) -> None:
    more = Experiments(finished.datasets, finished.out, "debug", FAST, seeds=2)
    part = fill(more, "table7", more.cells(["table7"]))
    whole = fill(finished, "table7", finished.cells(["table7"]))
    for row, one in zip(part.rows, whole.rows, strict=True):
        for cell, done in zip(row.cells, one.cells, strict=True):
            assert (cell.ours, cell.difference) == (done.ours, done.difference)
            if cell.ours and row.trained:
                assert cell.marked_text == f"{done.marked_text}, 1 of 2 seeds"
                assert cell.why == "1 of 2 seeds, the others: not computed yet"
                assert (done.part, done.why) == ("", "")
    assert "1 of 2 seeds" in as_markdown([part])


def test_seeds_that_other_calls_finished_stay_and_none_of_later_ones_after_a_gap(
    finished: Experiments, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    shutil.rmtree(out / "figures", ignore_errors=True)
    more = Experiments(finished.datasets, out, "debug", FAST, seeds=3)
    own = [c for c in more.cells(["table4"]) if (c.column.title, c.row.role) == ("utd-mhad xsub", "floor")]
    compute(more, own)
    paths = [next((evaluation.runs[0].out / "evaluations").glob("knn-*.json")) for evaluation in own[0].evaluations]
    scores = [100 * json.loads(path.read_text())["result"]["last"]["top1"] for path in paths]

    def told() -> tuple[Experiments, list[TableCell], FilledCell]:
        few = Experiments(finished.datasets, out, "debug", FAST)
        whole = few.cells(tables_and_figures(), finished=True)
        shown = fill(few, "table4", [c for c in whole if c.table == "table4"])
        at = [column.title for column in shown.columns].index("utd-mhad xsub")
        return few, whole, next(row for row in shown.rows if row.role == "floor").cells[at]

    few, whole, shown = told()
    assert shown.ours == pytest.approx(scores)
    assert (shown.part, shown.why) == ("", "")
    assert few.unshown_trainings(whole) == 0
    asked = few.cells(["table4"])
    assert {len(c.evaluations) for c in asked} == {0, 1}  # what is computed and planned is what was asked for
    paper_write.write(few, whole, fresh=False)
    line = next(
        t
        for t in csv.DictReader(io.StringIO((out / "paper.csv").read_text("utf-8")))
        if (t["table"], t["role"], t["dataset"]) == ("table4", "floor", "utd-mhad")
    )
    assert (line["runs"], line["std"]) == ("3", f"{np.std(scores, ddof=1):.2f}")
    paths[1].unlink()
    few, whole, shown = told()
    assert shown.ours == pytest.approx(scores[:1])
    assert few.unshown_trainings(whole) == 2  # trainings of seeds 1 and 2
    paths[0].write_text("{")  # damaged: not finished
    assert told()[2].ours == ()


def test_every_protocol_fills_its_table(work: Path, tmp_path: Path) -> None:
    here = experiments(work, tmp_path, "training.pretrain.epochs=1", "training.pretrain.optimiser.milestones=[]")
    names = ["table1", "table2", "table3", "table5"]
    cells = [c for c in here.cells(names) if c.column.dataset == "utd-mhad"]
    compute(here, cells)
    assert here.failed == {}
    for name in names:
        shown = fill(here, name, [c for c in cells if c.table == name])
        filled = {row.label: row.cells[0] for row in shown.rows if row.trained}
        assert all(cell.ours for cell in filled.values()), (name, filled)
        assert all(0 <= value <= 100 for cell in filled.values() for value in cell.ours)
        assert {len(cell.ours) for cell in filled.values()} == {2 if name == "table3" else 1}  # draws
    fused = fill(here, "table1", [c for c in cells if c.table == "table1"])
    controls = {f"3s {c}" for c in ("random encoder (floor)", "supervised (ceiling)", "shuffled pairs (control)")}
    assert {"3s-C²VL", "3s-C²VL, equal weights", *controls} <= {row.label for row in fused.rows}
    told = {(c.table, c.row.label): c.evaluations[0] for c in cells}
    both = [told["table1", name].id for name in ("3s-C²VL", "3s-C²VL, equal weights")]
    assert len({*both, *(told["table1", name].id for name in controls)}) == 4  # one evaluation has both weights
    floor = told["table1", "3s random encoder (floor)"].runs
    assert floor == told["table2", "3s-ST-GCN from random weights"].runs
    assert {(run.kind, run.recipe.training.input.stream) for run in floor} == {
        ("random", stream) for stream in ("joint", "bone", "motion")
    }
    assert {row.cells[0].values("best") for row in fused.rows if row.label.startswith("3s")} == {()}  # scores are added
