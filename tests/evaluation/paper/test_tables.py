"""Tables with our numbers beside the paper's: differences, marks, controls."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from c2vl_evaluation.paper import cli as paper_cli
from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper.compute import compute, unfinished
from c2vl_evaluation.paper.experiments import Experiments, TableCell, find_datasets
from c2vl_evaluation.paper.export import as_csv, as_html, as_latex, as_markdown
from c2vl_evaluation.paper.spec import printed_tables, tables_and_figures
from c2vl_evaluation.paper.tables import FilledRow, FilledTable, derived, fill
from c2vl_manifests.targets import TABLE_VII
from c2vl_training.dataset import PackedDataset
from support.packed import COUNT, sticks
from support.paper import FAST, experiments, shown, small_table

pytestmark = pytest.mark.slow

# -------------------------------------------------------------------------- without looking at a sample


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedDataset]:
    """A set with seven classes of unequal size under the name of a target of the paper, and one with a lost label."""
    root = tmp_path_factory.mktemp("uneven")
    train, test = [6, 6, 6, 6, 1, 1, 2, 2, 3, 4, 5, 0], [6, 6, 3, 5]
    labels = [test[n // 4] if n % 4 == 0 else train[n - n // 4 - 1] for n in range(COUNT)]
    for name, more in (("pku-mmd-2", labels), ("utd-mhad", [-1, *labels[1:]])):
        folder = sticks(root / name / "packed", labels=more)
        facts = json.loads((folder / "packed.json").read_text())
        facts |= {"dataset": name, "fingerprint": name.ljust(32, "x")}
        (folder / "packed.json").write_text(json.dumps(facts))
    return find_datasets(root)


def by_hand(packed: PackedDataset) -> dict[str, tuple[float, float, float]]:
    """Top-1, top-5 and balanced accuracy in percent, counted one by one."""
    known = {s: packed.labels()[packed.select("xsub", s).rows].tolist() for s in ("train", "test")}
    classes = range(max(*known["train"], *known["test"]) + 1)
    largest = sorted(classes, key=lambda c: (-known["train"].count(c), c))
    asked = known["test"]
    top1 = sum(c == largest[0] for c in asked) / len(asked)
    top5 = sum(c in largest[:5] for c in asked) / len(asked)
    balanced = sum(c == largest[0] for c in {*asked}) / len({*asked})
    blind = 1 / len(classes)
    return {
        "majority class": (100 * top1, 100 * top5, 100 * balanced),
        "chance": (100 * blind, 500 * blind, 100 * blind),
    }


def test_majority_and_chance_stand_in_every_table_before_anything_is_computed(
    uneven: dict[str, PackedDataset], tmp_path: Path
) -> None:
    here = Experiments(uneven, tmp_path, "debug", (*FAST, "evaluation.semi.shares=[0.25,0.5]"), wide=True)
    wanted = by_hand(uneven["pku-mmd-2"])
    assert wanted["majority class"] == pytest.approx((50, 75, 100 / 3))
    assert wanted["chance"] == pytest.approx((100 / 7, 500 / 7, 100 / 7))
    counted = 0
    for name in printed_tables():
        shown = fill(here, name, here.cells([name]))
        assert [row.label for row in shown.rows[-2:]] == ["majority class", "chance"]
        for row in shown.rows[-2:]:
            assert (row.role, row.trained) == ("baseline", False)
            for column, cell in zip(shown.columns, row.cells, strict=True):
                on = column.to or column.dataset
                if on == "pku-mmd-2":  # the source of a transfer may be absent
                    found = (*cell.ours, *cell.values("top5"), *cell.values("balanced"))
                    assert found == pytest.approx(wanted[row.label]), (name, column)
                    assert (cell.paper, cell.values("best"), cell.why) == (None, (), "")
                    counted += 1
                else:
                    assert cell.ours == ()
                    lost = "1 of 4 test samples of xsub have no label"
                    assert (lost if on == "utd-mhad" else f"{on} is not available") in cell.why
        if name == "table3":
            assert {c.share for c in shown.columns if c.dataset == "pku-mmd-2"} == {0.25, 0.5}
        if name == "table5":
            assert any(c.dataset == "ntu120" and c.to == "pku-mmd-2" for c in shown.columns)
    # III: two shares; V: two columns of the paper and one more; one each else
    assert counted == 2 * (2 + 3 + 6)
    page = as_html([fill(here, "table4", here.cells(["table4"]))], [], [])
    assert "No cell has been computed yet" in page
    assert "majority class" in page
    told = csv.DictReader(io.StringIO(as_csv([fill(here, "table7", here.cells(["table7"]))])))
    blind = next(t for t in told if (t["row"], t["dataset"]) == ("majority class", "pku-mmd-2"))
    assert [blind[name] for name in ("role", "paper", "ours", "top5", "balanced", "best_oracle", "runs")] == [
        "baseline", "-", "50.00", "75.00", "33.33", "", "",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_differences_are_signed_and_near_ones_are_equal() -> None:
    up, same, down = shown(70.0, (71.0,)), shown(80.0, (80.04,)), shown(84.4, (84.0, 82.0))
    assert [(c.direction, c.signed_difference) for c in (up, same, down)] == [
        ("up", "+1.0"),
        ("same", "+0.0"),
        ("down", "−1.4"),
    ]
    assert down.marked_text == "83.0 ± 1.4"
    for nothing in (shown(70.0), shown(None, (1.0,)), shown()):
        assert (nothing.difference, nothing.direction, nothing.signed_difference) == (None, "", "")


# ------------------------------------------------------------------------- what a number is, and of what

MARKED = "captions derived from the joints"
ROWS = ("vision", "vision and language", "shuffled pairs (control)", "random encoder (floor)", "majority class")


def row_of(text: str, label: str) -> str:
    """Return the first row of a written table, of whichever kind of file, that has a label."""
    found = re.split(r"\n(?=\||<tr)|\\\\", text)
    said = re.compile(rf"(\*\*|>|\| |^\s*){re.escape(label)}(\*\*|<| [&|])", re.MULTILINE)
    return next(row for row in found if said.search(row))


@pytest.fixture(scope="module")
def ruled(
    finished: Experiments, work: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Experiments, list[TableCell]]:
    """Finished experiments, where captions are made by rule on utd-mhad alone, and vision alone is trained on it."""
    root = tmp_path_factory.mktemp("ruled")
    shutil.copytree(work, root / "work")
    shutil.copytree(finished.out, root / "out")
    assert (
        json.loads((work / "utd-mhad" / "packed" / "packed.json").read_text())["engines"]["captions"]["backend"]
        == "posecode"
    )
    file = root / "work" / "ntu60" / "packed" / "packed.json"
    facts = json.loads(file.read_text())
    facts["engines"]["captions"] = {"backend": "llava"}
    file.write_text(json.dumps(facts))
    here = experiments(root / "work", root / "out")
    vision = [c for c in here.cells(["table6"]) if (c.row.label, c.column.dataset) == ("vision", "utd-mhad")]
    compute(here, vision)
    return here, here.cells(["table4", "table5", "table6", "table7", "figure6"])


def test_what_was_trained_on_captions_made_by_rule_is_marked_in_every_file(
    ruled: tuple[Experiments, list[TableCell]],
) -> None:
    here, cells = ruled
    tables = [fill(here, n, [c for c in cells if c.table == n]) for n in ("table4", "table6", "table7")]
    told = list(csv.DictReader(io.StringIO(as_csv(tables))))
    both = {"C²VL", "language", "vision and language", "shuffled pairs (control)", *TABLE_VII}
    marked = {(t["row"], t["dataset"]) for t in told if t["derived_from_joints"] == "yes"}
    assert marked == {(row, "utd-mhad") for row in both}
    assert {t["derived_from_joints"] for t in told} == {"yes", ""}
    numbers_ = {(t["table"], t["row"], t["dataset"]): t["ours"] for t in told}
    # vision stands between the others with a number of its own
    assert numbers_["table6", "vision", "utd-mhad"] != ""
    for text in (as_markdown(tables[1:2]), as_latex(tables[1:2]), as_html(tables[1:2], [], [])):
        assert MARKED in text
        marks = {row: len(re.findall(r"†|dagger", row_of(text, row))) for row in ROWS}
        assert marks == {row: int(row in both) for row in ROWS}
    plain_ = [c for c in cells if c.table == "table7" and c.column.dataset == "ntu60"]
    for text in (
        as_markdown([fill(here, "table7", plain_)]),
        as_latex([fill(here, "table7", plain_)]),
        as_html([fill(here, "table7", plain_)], [], []),
    ):
        assert MARKED not in text
        assert "†" not in text
        assert "dagger" not in text


def test_a_transfer_is_marked_by_what_its_source_was_trained_on(ruled: tuple[Experiments, list[TableCell]]) -> None:
    found = {
        (c.column.dataset, c.column.to, c.row.role): derived(c)
        for c in ruled[1]
        if c.table == "table5" and c.evaluations
    }
    assert {key for key, marked in found.items() if marked} == {
        ("utd-mhad", "ntu60", "pretrained"),
        ("utd-mhad", "ntu60", "shuffled"),
    }
    assert ("ntu60", "utd-mhad", "pretrained") in found


def test_the_mark_is_told_in_the_terminal(
    ruled: tuple[Experiments, list[TableCell]], capsys: pytest.CaptureFixture[str]
) -> None:
    here, cells = ruled
    paper_cli._show(here, ["table6"], cells)
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if "│ vision " in line and "and" not in line)
    assert "†" not in line
    assert re.search(r"│ vision and language +│.*†", said)
    assert not re.search(r"│ (random encoder|supervised|majority|chance).*†", said)
    assert MARKED in " ".join(said.split())


def test_no_number_of_ours_stands_under_the_name_of_another_method(work: Path, tmp_path: Path) -> None:
    here = experiments(work, tmp_path)
    found = fill(here, "table8", here.cells(["table8"]))
    own = {row.label: (row.printed, row.about) for row in found.rows if row.role == "pretrained"}
    assert own == {
        "C²VL with a bidirectional GRU": ("PCM³", "GRU"),
        "C²VL with a Transformer": ("UmURL", "Transformer"),
        "C²VL with MS-G3D": ("MS-G3D", "GCN"),
        "C²VL with CTR-GCN": ("CTR-GCN", "GCN"),
        "C²VL with ST-GCN": ("ST-GCN", "GCN"),
    }
    told = {t["row"]: t["paper_row"] for t in csv.DictReader(io.StringIO(as_csv([found])))}
    assert told["C²VL with a bidirectional GRU"] == "PCM³"
    assert told["random encoder (floor)"] == ""
    assert "| **C²VL with a bidirectional GRU, GRU; the paper's row: PCM³** |" in as_markdown([found])
    assert r"C$^2$VL with a Transformer (paper: UmURL) & " in as_latex([found])
    page = as_html([found], [], [])
    assert re.findall(r'class="name">([^<]*)</span><span class="under">([^<]*PCM³)</span>', page) == [
        ("C²VL with a bidirectional GRU", "GRU; the paper&#39;s row: PCM³")
    ]
    for name in printed_tables():  # the paper's C²VL keeps its name, methods of others theirs
        one = fill(here, name, here.cells([name]))
        peers = {row.method for row in printed_tables()[name].rows if row.cite is not None and not row.ours}
        for row in one.rows:
            bare = row.label.split(" [")[0]
            assert (bare in peers) == (row.role == "peer" and row.label != bare), (name, row.label)


def test_columns_that_can_be_filled_come_first_and_none_is_lost(work: Path, tmp_path: Path) -> None:
    here = experiments(work / "utd-mhad", tmp_path)
    for name in (*printed_tables(), "figure6"):
        cells = here.cells([name])
        found = fill(here, name, cells)
        there = [c.dataset in here.datasets and (not c.to or c.to in here.datasets) for c in found.columns]
        assert there == sorted(there, reverse=True), name
        assert set(found.columns) == {c.column for c in cells}
        assert [c for c in found.columns if c.dataset != "utd-mhad"] == list(tables_and_figures()[name].columns)
        if name in {"table1", "table7"}:
            assert found.columns[0].title.startswith("utd-mhad")
            (row,) = (r for r in found.rows if r.printed in {"C²VL", "partition(cosine)"})
            values = {c.title: cell.paper for c, cell in zip(found.columns, row.cells, strict=True)}
            assert (values["ntu60 xsub"], values[found.columns[0].title]) == (84.4, None)


def test_the_number_of_runs_is_said_and_beside_each_number_where_they_differ() -> None:
    uneven = small_table()
    assert (uneven.counts(), uneven.runs()) == ([1, 2], "Our numbers are of 1 to 2 runs each.")
    even = FilledTable("table9", "IX", "even", "Caption.", uneven.columns, uneven.rows[2:])
    assert (even.counts(), even.runs()) == ([1], "Each of our numbers is of 1 run.")
    bare = FilledTable("table9", "IX", "bare", "Caption.", uneven.columns, uneven.rows[:1])
    assert (bare.counts(), bare.runs()) == ([], "")
    blind = FilledRow("chance", "", "baseline", (shown(None, (50.0,)), shown()))
    page = as_html([FilledTable("t", "IX", "t", "C.", uneven.columns, (*uneven.rows, blind))], [], [])
    assert re.findall(r">n = (\d+)<", page) == ["2", "1", "1", "1", "1"]  # none of chance, none of the peer
    assert ">n = " not in as_html([even], [], [])
    half = FilledRow("half", "", "pretrained", (shown(None, (50.0,), "why", "1 of 2 seeds"), shown()))
    page = as_html([FilledTable("t", "IX", "t", "C.", uneven.columns, (half,))], [], [])
    assert '<span class="under">1 of 2 seeds</span>' in page
    for text in (as_markdown([even]), as_latex([even]), as_html([even], [], [])):
        assert "Each of our numbers is of 1 run." in text


def test_figure_6_in_numbers_has_the_controls_of_table_vii_at_no_cost(
    finished: Experiments, work: Path, tmp_path: Path
) -> None:
    cells = finished.cells(["figure6"])
    controls = [c for c in cells if c.row.role != "pretrained"]
    assert {c.row.role for c in controls} == {"floor", "ceiling", "shuffled"}
    assert unfinished(finished, controls) == []
    found = fill(finished, "figure6", cells)
    other = fill(finished, "table7", finished.cells(["table7"]))
    below = {row.label: row.cells for row in other.rows if row.role not in {"pretrained", "peer"}}
    assert {row.label: row.cells for row in found.rows if row.role != "pretrained"} == below
    assert list(below)[-2:] == ["majority class", "chance"]
    assert all(cell.ours for cells_ in below.values() for cell in cells_)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (list(range(COUNT)), "the same ten random test classes in every panel"),
        ([n % 3 for n in range(COUNT)], "all three test classes"),
        ([n // 4 if n % 4 == 0 else 0 for n in range(COUNT)], "all four test classes"),
    ],
)
def test_captions_say_how_many_classes_are_shown(tmp_path: Path, labels: list[int], said: str) -> None:
    test = 12 if max(labels) > 9 else 4
    splits = [{"xsub": "test" if n % 4 < test // 4 else "train"} for n in range(COUNT)]
    sticks(tmp_path / "set" / "packed", labels=labels, splits=splits)
    here = Experiments(find_datasets(tmp_path / "set"), tmp_path / "out", "debug", FAST)
    for name in ("figure7", "figure8"):
        for column in here.columns(name):
            of = [c for c in here.cells([name]) if c.column == column]
            text = paper_figures.caption(of)
            wanted = said if of[0].evaluations else "the same ten random test classes"
            assert wanted.removesuffix(" in every panel" if name == "figure8" else "") in text
            assert "{" not in text
