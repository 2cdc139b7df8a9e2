"""The paper's tables: the transcription against the paper's own text, cells that are never made twice, and what is written."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from c2vl_evaluation.paper import cells as paper
from c2vl_evaluation.paper import cli as paper_cli
from c2vl_evaluation.paper import export as paper_write
from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper import probe as probing
from c2vl_evaluation.paper.cells import compute, reason, unfinished
from c2vl_evaluation.paper.experiments import Cell, Lab
from c2vl_evaluation.paper.export import as_csv, as_html, as_latex, as_markdown
from c2vl_evaluation.paper.plan import duration, plan
from c2vl_evaluation.paper.sets import find_sets
from c2vl_evaluation.paper.spec import FIGURES, Column, Variant, component, everything, lines, printed
from c2vl_evaluation.paper.tables import Sheet, SheetRow, Shown, derived, sheet
from c2vl_manifests.errors import ConfigError, StageError
from c2vl_manifests.events import Emit, Event, Note, Progress
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.recipe import TABLE_VII, Cosine, Intra, Partition, targets_name
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed
from c2vl_training.encoders import build
from c2vl_training.trainer import Run
from test_trainer import BASE, COUNT, StoppedError, sticks

FAST = (
    *BASE,
    "training.pretrain.epochs=3",
    "training.pretrain.optimiser.milestones=[2]",
    "training.supervised.epochs=1",
    "training.encoder.blocks=[[8,1],[16,2]]",
    "evaluation.linear.epochs=4",
    "evaluation.linear.milestones=[3]",
    "evaluation.linear.lrs=[0.1]",
    "evaluation.finetune.epochs=1",
    "evaluation.semi.shares=[0.5]",
    "evaluation.semi.draws=2",
    "evaluation.semi.tune.epochs=1",
    "evaluation.transfer.tune.epochs=1",
)

# -------------------------------------------------------------------------------------- as printed

NUMBER = re.compile(r"\d\d\.\d|-")


def text_of(path: Path) -> dict[str, list[list[str]]]:
    """Read the paper's text on its own: table -> rows of cells, marks of the layout removed."""
    tables: dict[str, list[list[str]]] = {}
    roman = dict(zip(["I", "II", "III", "IV", "V", "VI", "VII", "VIII"], range(1, 9), strict=True))
    name = ""
    for line in path.read_text("utf-8").splitlines():
        if head := re.match(r"\s*TABLE[\s|]+([IV]+)\b", line):
            name = f"table{roman[head[1]]}"
        elif re.match(r"\d\) [A-Z]", line):  # the text between tables
            name = "" if name not in {"table1", "table2", "table3", "table4"} else name
        if name and "\t" in line:
            tables.setdefault(name, []).append([re.sub(r"</?\w+>", "", cell) for cell in line.split("\t")])
    return tables


def numbers(cells: list[str]) -> list[str]:
    """Cells that hold nothing but a number or a dash; stray spaces and rules of the layout do not count."""
    found = []
    for cell in cells:
        bare = re.sub(r"\([^)]*\)", "", cell).replace(" ", "")
        bare = bare.strip("-") or ("-" if "-" in bare else "")
        if NUMBER.fullmatch(bare):
            found.append(bare)
    return found


@pytest.fixture(scope="module")
def text(shared: Path) -> dict[str, list[list[str]]]:
    path = shared.parent / "paper" / "paper.txt"
    if not path.is_file():
        pytest.skip(f"needs the text of the paper, {path}")
    return text_of(path)


@pytest.mark.parametrize("name", printed())
def test_the_transcription_is_what_the_paper_prints(name: str, text: dict[str, list[list[str]]]) -> None:
    wanted = []
    for cells in text[name]:
        cite = re.search(r"\[(\d+)\]", cells[0])
        # a row ends in its numbers; words before them may be a dash too
        found = numbers(cells[1:])[-len(printed()[name].columns) :]
        if len(found) == len(printed()[name].columns):
            wanted.append((int(cite[1]) if cite else None, found))
    rows = [
        (row.cite, ["-" if v is None else f"{v:.1f}" for v in row.values]) for row in printed()[name].rows
    ]
    assert rows == wanted


def test_differences_that_table_viii_prints_agree_with_its_accuracies(
    text: dict[str, list[list[str]]],
) -> None:
    rows = printed()["table8"].rows
    said = [re.findall(r"\(([+-][\d .]+)\)", "\t".join(cells).replace("\t", " ")) for cells in text["table8"]]
    differences = [[float(d.replace(" ", "")) for d in found] for found in said if found]
    assert len(differences) == len(rows) - 1
    for row, found in zip(rows[:-1], differences, strict=True):
        ours = [round((v or 0) - (own or 0), 1) for v, own in zip(row.values, rows[-1].values, strict=True)]
        assert ours == found


def test_one_number_is_the_same_in_every_table_that_prints_it() -> None:
    t = printed()
    joint = next(r for r in t["table1"].rows if r.ours == "joint").values
    assert t["table6"].rows[-1].values == t["table8"].rows[-1].values == joint[:2]
    assert t["table7"].rows[-1].values == joint[:1]
    assert t["table7"].rows[0].method == "hard"


@pytest.mark.parametrize("name", printed())
def test_every_row_of_the_paper_that_is_ours_has_a_line_and_every_line_its_row(name: str) -> None:
    table = printed()[name]
    assert all(len(row.values) == len(table.columns) for row in table.rows)
    repeated = {line.repeats for line in lines(name)} - {""}
    assert repeated == {row.ours for row in table.rows} - {""}
    assert {"floor", "ceiling", "shuffled"} <= {line.role for line in lines(name)}


def test_three_streams_and_every_reading_of_table_iii_have_their_controls() -> None:
    told = {n: {line.label: line for line in lines(n)} for n in ("table1", "table2", "table3")}
    every = {
        "random encoder (floor)": "floor",
        "supervised (ceiling)": "ceiling",
        "shuffled pairs (control)": "shuffled",
    }
    for name, of in (("table1", "linear"), ("table2", "finetune")):
        found = {label: line for label, line in told[name].items() if label.startswith("3s ")}
        wanted = {f"3s {c}": role for c, role in every.items() if name == "table1" or role != "floor"}
        assert {label: line.role for label, line in found.items()} == wanted
        assert {(line.protocol, line.setting, line.of) for line in found.values()} == {
            ("ensemble", "fixed weights", of)
        }
    assert told["table2"]["3s-ST-GCN from random weights"].role == "floor"
    readings = {line.setting for line in told["table3"].values() if line.role == "pretrained"}
    assert len(readings) == 4
    assert {(line.setting, line.role) for line in told["table3"].values()} == {
        (reading, role) for reading in readings for role in ("pretrained", *every.values())
    }


# ------------------------------------------------------------------------------------------ variants


def test_components_of_table_vii_keep_the_numbers_of_the_recipe() -> None:
    own = Partition(beta=0.3, temperature=0.2, alpha=Cosine(start=0.8, end=0.3))
    for name in TABLE_VII:
        found = component(own, name)
        assert targets_name(found) == name
        kept = {k: getattr(own, k) for k in ("beta", "temperature") if k in type(found).model_fields}
        assert {k: getattr(found, k) for k in kept} == kept
    assert component(own, "blend(cosine)").model_dump()["alpha"] == own.alpha.model_dump()
    assert component(own, "partition(cosine)") is own
    assert component(Intra(beta=0.4), "partition(cosine)") == Partition(beta=0.4)


def test_other_encoders_are_of_published_size_or_as_small_as_the_recipes_own() -> None:
    full, small = load_recipe("paper"), load_recipe("debug")
    for name in ("bigru", "transformer", "msg3d", "ctrgcn"):
        variant = Variant(encoder=name)
        assert variant.recipe(full).training.encoder.model_dump(exclude_defaults=True) == {"name": name}
        own = variant.recipe(small).training.encoder
        assert (own.blocks, own.width) == (
            {"msg3d": ((12, 1), (18, 2)), "ctrgcn": ((8, 1), (16, 2))}.get(name),
            None if name in {"msg3d", "ctrgcn"} else 16,
        )
    assert Variant(encoder="stgcn").recipe(small) == small
    skipping = load_recipe("debug", ['training.encoder.empty_bodies="leave_out"'])
    for name in ("bigru", "transformer", "msg3d", "ctrgcn"):
        own = Variant(encoder=name).recipe(skipping).training.encoder
        assert own.empty_bodies == ("leave_out" if name in {"msg3d", "ctrgcn"} else "exact_skip")
        build(own.name, load_layout("kinect_v2"), empty_bodies=own.empty_bodies)  # none refuses it
    narrow = load_recipe("paper", ['training.encoder={name="bigru",width=12}'])
    assert Variant(encoder="transformer").recipe(narrow).training.encoder.width == 12


def test_table_viii_has_one_floor_for_each_encoder_beside_the_recipes_own() -> None:
    said = {
        "bigru": "bidirectional GRU",
        "transformer": "Transformer",
        "msg3d": "MS-G3D",
        "ctrgcn": "CTR-GCN",
        "stgcn": "ST-GCN",
    }
    for own in ("stgcn", "ctrgcn", "stgcn_slim"):
        floors = {x.label: x.variant for x in lines("table8", own) if x.label.endswith(", random")}
        assert {label: v.encoder for label, v in floors.items()} == {
            f"{word}, random": name for name, word in said.items() if name != own
        }
        assert {v.kind for v in floors.values()} == {"random"}


@pytest.mark.parametrize(
    "departs",
    [
        'pretrain.targets="hard"',
        'pretrain.targets="intra"',
        "input.stream=bone",
        "pretrain.knowledge=language",
    ],
)
def test_a_row_with_the_papers_label_is_the_papers_method_whatever_the_recipe_says(departs: str) -> None:
    base = load_recipe("debug", [f"training.{departs}"])
    every = [(name, line) for name in everything() for line in lines(name)]
    streams = {"joint", "bone", "motion"}
    for name, line in every:
        for variant in line.streams:
            t = variant.recipe(base).training
            if line.protocol != "ensemble":
                assert t.input.stream == "joint", (name, line.label)
            if line.repeats in {"joint", "streams", "tuned"} or line.label == "C²VL":
                assert targets_name(t.pretrain.targets) == "partition(cosine)", (name, line.label)
                assert t.pretrain.knowledge == "both"
        if line.protocol == "ensemble":
            assert {v.recipe(base).training.input.stream for v in line.streams} == streams
    for name in ("figure7", "figure8"):
        told = {n: v.recipe(base).training.pretrain for n, v in ((x.label, x.variant) for x in lines(name))}
        assert {n: targets_name(p.targets) for n, p in told.items()} == {
            f"{loss}, {k}": which
            for k in ("vision", "language")
            for loss, which in (("InfoNCE", "hard"), ("C²VL", "partition(cosine)"))
        }
        assert {n.split(", ")[1] for n in told} == {p.knowledge for p in told.values()}


# ---------------------------------------------------------------------------------------------- labs


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up sets under the names of datasets, one of them of the paper; tests must not write into it."""
    root = tmp_path_factory.mktemp("lab")
    for name in ("ntu60", "utd-mhad"):
        splits = [dict.fromkeys(("xsub", "xview"), "train" if n % 4 else "test") for n in range(COUNT)]
        more = {} if name == "ntu60" else {"splits": [{"xsub": s["xsub"]} for s in splits]}
        folder = sticks(root / name / "packed", **({"splits": splits} | more))
        facts = json.loads((folder / "packed.json").read_text())
        facts |= {"dataset": name, "title": f"Sticks {name}", "fingerprint": name.ljust(32, "x")}
        (folder / "packed.json").write_text(json.dumps(facts))
    return root


def lab(work: Path, out: Path, *overrides: str, seeds: int = 1) -> Lab:
    return Lab(find_sets(work), out, "debug", (*FAST, *overrides), seeds)


def stop_at(epochs: int) -> object:
    """An emit that ends everything after some epochs, whichever training they are of."""
    seen: list[Event] = []

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done:
            seen.append(event)
            if len(seen) == epochs:
                raise StoppedError

    return emit


@pytest.fixture(scope="module")
def finished(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Table VII, table IV and figure 4, complete; tests must not write into it."""
    found = lab(work, tmp_path_factory.mktemp("out"))
    compute(found, found.cells(["table4", "table7", "figure4"]))
    return found


def test_packed_sets_are_named_by_dataset_or_by_folder_where_two_hold_the_same(
    work: Path, tmp_path: Path
) -> None:
    assert list(find_sets(work)) == ["ntu60", "utd-mhad"]
    shutil.copytree(work / "utd-mhad", tmp_path / "gestures")
    assert list(find_sets(tmp_path)) == ["utd-mhad"]
    shutil.copytree(work / "utd-mhad", tmp_path / "utd-mhad")
    assert list(find_sets(tmp_path)) == ["utd-mhad (gestures)", "utd-mhad"]
    # made-up samples in a folder of another dataset's name never stand for that dataset
    shutil.copytree(work / "utd-mhad", tmp_path / "ntu60")
    assert list(find_sets(tmp_path)) == ["utd-mhad (gestures)", "utd-mhad (ntu60)", "utd-mhad"]
    shutil.rmtree(tmp_path / "utd-mhad")
    shutil.rmtree(tmp_path / "gestures")
    assert list(find_sets(tmp_path)) == ["utd-mhad"]
    nested = tmp_path / "twice"
    shutil.copytree(work / "utd-mhad", nested)
    shutil.copytree(work / "utd-mhad", nested / "twice")
    with pytest.raises(ConfigError, match=r"both be named 'utd-mhad \(twice\)'; rename"):
        find_sets(nested)
    assert list(find_sets(work / "ntu60")) == ["ntu60"]
    with pytest.raises(StageError, match=r"no packed dataset below .*nothing"):
        find_sets(tmp_path / "nothing")


def test_the_papers_datasets_keep_its_columns_and_others_are_added(work: Path, tmp_path: Path) -> None:
    small = lab(work, tmp_path)
    wide = Lab(small.sets, tmp_path, "debug", FAST, wide=True)
    assert [c.title for c in small.columns("table7")] == ["ntu60 xsub", "utd-mhad xsub"]
    assert [c.title for c in wide.columns("table7")] == ["ntu60 xsub", "ntu60 xview", "utd-mhad xsub"]
    assert [c.title for c in small.columns("table3")][-1] == "utd-mhad xsub, 50 %"
    assert [c.title for c in small.columns("table5")] == [
        "ntu60 → pku-mmd-2 xsub", "ntu120 → pku-mmd-2 xsub", "ntu60 → utd-mhad xsub", "utd-mhad → ntu60 xsub",
    ]  # fmt: skip
    assert [c.title for c in small.columns("figure6")] == ["ntu60 xsub", "utd-mhad xsub"]


def test_equal_trainings_are_shared_between_tables_and_unequal_ones_never(work: Path, tmp_path: Path) -> None:
    small = lab(work, tmp_path)
    cells = {(c.table, c.line.label): c for c in small.cells(everything()) if c.column.title == "ntu60 xsub"}

    def run(table: str, label: str) -> Path:
        return cells[table, label].jobs[0].runs[0].out

    own = run("table1", "C²VL")
    for table, label in (
        ("table2", "C²VL"), ("table4", "C²VL"), ("table6", "vision and language"), ("table7", "partition(cosine)"),
        ("table8", "C²VL with ST-GCN"), ("figure4", "C²VL"), ("figure6", "alpha 0.9 → 0.1"), ("figure6", "beta 0.2"),
    ):  # fmt: skip
        assert run(table, label) == own
    assert run("figure7", "C²VL, vision") == run("figure8", "C²VL, vision") == run("table6", "vision")
    different = [run("table7", name) for name in TABLE_VII] + [run("table4", c) for c, *_ in _controls()]
    assert len({*different}) == len(TABLE_VII) + 3
    other = lab(work, tmp_path, "training.pretrain.epochs=2")
    assert other.cells(["table7"])[0].jobs[0].runs[0].out != run("table7", "hard")
    assert len({job.path for c in cells.values() for job in c.jobs}) > 40


def _controls() -> list[tuple[str, str]]:
    return [(line.label, line.role) for line in lines("table4") if line.role != "pretrained"]


def test_a_finished_cell_is_never_made_again(
    finished: Lab, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = lab(work, finished.out)
    cells = again.cells(["table4", "table7", "figure4"])
    assert [c for c in cells if not c.jobs]  # ntu120 is not there
    assert unfinished(again, cells) == []

    def fail(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(paper, "train", fail)
    monkeypatch.setattr(paper, "evaluate", fail)
    compute(again, cells)
    assert again.failed == {}


def test_an_interrupted_table_ends_with_the_numbers_of_an_undisturbed_one(
    finished: Lab, work: Path, tmp_path: Path
) -> None:
    broken = lab(work, tmp_path / "out")
    cells = [c for c in broken.cells(["table7"]) if c.column.dataset == "utd-mhad"]
    with pytest.raises(StoppedError):
        compute(broken, cells, stop_at(11))  # type: ignore[arg-type]
    left = unfinished(broken, cells)
    assert 0 < len(left) < len({job.path for cell in cells for job in cell.jobs})
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("cells/*.json")}
    said: list[str] = []
    resumed = lab(work, tmp_path / "out")
    compute(resumed, cells, lambda e: said.append(e.text) if isinstance(e, Note) else None)
    assert any("going on after epoch" in text for text in said)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    both = [
        sheet(one, "table7", [c for c in one.cells(["table7"]) if c.column.dataset == "utd-mhad"])
        for one in (resumed, finished)
    ]
    assert both[0] == both[1]
    assert sum(bool(c.ours) for row in both[0].rows if row.trained for c in row.cells) == 10


def test_other_weights_make_a_cell_unfinished_and_deleted_ones_do_not(finished: Lab, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    here = Lab(finished.sets, out, "debug", FAST)
    cells = [c for c in here.cells(["table7"]) if c.jobs]
    changed, deleted = (c.jobs[0].runs[0].out for c in cells[:2])
    tensors, facts = checkpoint.load(changed / checkpoint.ENCODER)
    checkpoint.save(changed / checkpoint.ENCODER, {k: v + 1 for k, v in tensors.items()}, facts)
    shutil.rmtree(deleted)
    assert unfinished(here, cells) == [cells[0].jobs[0]]


def test_what_cannot_be_trained_is_said_and_the_rest_goes_on(work: Path, tmp_path: Path) -> None:
    root = tmp_path / "work"
    shutil.copytree(work / "utd-mhad", root / "utd-mhad")
    np.save(root / "utd-mhad" / "packed" / "language_ok.npy", np.zeros((COUNT, 4), bool))
    index = Packed(root / "utd-mhad")._index
    import pyarrow as pa
    import pyarrow.parquet as pq

    at = index.column_names.index("language_rows")
    zero = pa.array([0] * COUNT, index.schema.field("language_rows").type)
    pq.write_table(
        index.set_column(at, index.schema.field(at), zero), root / "utd-mhad" / "packed" / "index.parquet"
    )
    mute = lab(root, tmp_path / "out")
    cells = [c for c in mute.cells(["table6"]) if c.jobs]
    compute(mute, cells)
    found = {c.line.label: mute.kept(c.jobs[0]) is not None for c in cells}
    assert found["vision"]
    assert found["random encoder (floor)"]
    assert not found["language"]
    language = next(c for c in cells if c.line.label == "language")
    assert "no usable train samples" in reason(mute, language)
    shown = sheet(mute, "table6", cells)
    row = next(r for r in shown.rows if r.label == "language")
    assert "no usable train samples" in row.cells[0].why


def test_one_odd_set_does_not_stop_the_others(
    app: typer.Typer, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "work"
    shutil.copytree(work / "utd-mhad", root / "utd-mhad")
    odd = {
        "ntu60": {"splits": [{"xsub": "train"}] * COUNT},
        "ntu120": {"splits": [{}] * COUNT},
        "pku-mmd-2": {},
    }
    for name, more in odd.items():
        facts = json.loads((sticks(root / name / "packed", **more) / "packed.json").read_text())
        facts |= {"dataset": name, "fingerprint": name.ljust(32, "x")}
        if name == "pku-mmd-2":
            facts["recipe"] = str(tmp_path / "gone.toml")
        (root / name / "packed" / "packed.json").write_text(json.dumps(facts))
    for name in ("broken", "old"):
        shutil.copytree(work / "utd-mhad", root / name)
        text = json.dumps({"format": 1}) if name == "old" else "{"
        (root / name / "packed" / "packed.json").write_text(text)
    said: list[str] = []
    sets = find_sets(root, lambda e: said.append(e.text) if isinstance(e, Note) else None)
    assert set(sets) == {"utd-mhad", *odd}
    assert [text.split(" is left out: ")[0] for text in said] == [str(root / n) for n in ("broken", "old")]
    here = Lab(sets, tmp_path / "out")
    why = {c.column.title: c.why for c in here.cells(everything())}
    assert "no usable test samples in xsub" in why["ntu60 xsub"]
    assert "has no benchmark" in why["ntu120 xsub"]
    assert "gone.toml" in why["pku-mmd-2 xsub"]
    assert why["utd-mhad xsub"] == ""
    assert set(here.unusable()) == {"ntu120", "pku-mmd-2"}
    assert "gone.toml" in here.unusable()["pku-mmd-2"]
    monkeypatch.setattr(paper, "compute", lambda *_: None)
    words = ["--work", str(root), "--out", str(tmp_path / "out"), "--only", "table7"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "broken" in done.output
    assert "ntu120 is left out" in done.output
    assert "gone.toml" in (tmp_path / "out" / "paper.html").read_text()
    # a word that no set can be used with is a mistake of the user's
    refused = CliRunner().invoke(app, [*words, "--set", "training.nothing=1"])
    assert isinstance(refused.exception, ConfigError)


@pytest.mark.parametrize(
    "text", ["CUDA out of memory. Tried to allocate 2 GiB\nmore", "can't allocate memory"]
)
def test_a_lack_of_memory_is_said_with_its_remedy_and_the_rest_goes_on(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    here = lab(work, tmp_path)
    cells = [c for c in here.cells(["table4"]) if c.column.title == "utd-mhad xsub"]
    real = paper.train

    def full(run: Run, emit: Emit) -> object:
        if run.kind == "pretrain":
            raise torch.OutOfMemoryError(text)
        return real(run, emit)

    monkeypatch.setattr(paper, "train", full)
    compute(here, cells)
    for cell in cells:
        why = reason(here, cell)
        if cell.jobs[0].runs[0].kind == "pretrain":
            assert why.startswith(f"out of memory in the pretrain training ({text.splitlines()[0]}")
            assert "--set training.pretrain.batch_size=" in why
            assert "\n" not in why
        else:
            assert here.kept(cell.jobs[0]) is not None

    def wrong(*_: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(paper, "train", wrong)
    with pytest.raises(RuntimeError, match="shapes"):  # a fault of the program stays one
        compute(lab(work, tmp_path / "other"), cells)


def test_the_files_are_written_whatever_ends_the_command(
    app: typer.Typer, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--work", str(work), "--recipe", "debug", "--only", "table4"]
    for error in (RuntimeError("a fault"), OSError("disk full"), KeyboardInterrupt()):

        def end(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(paper, "compute", end)
        out = tmp_path / type(error).__name__
        assert CliRunner().invoke(app, [*words, "--out", str(out)]).exit_code != 0
        assert {p.suffix for p in out.glob("paper.*")} == {".csv", ".md", ".tex", ".html"}


def test_a_cell_shows_the_seeds_that_are_finished(finished: Lab) -> None:
    more = Lab(finished.sets, finished.out, "debug", FAST, seeds=2)
    part = sheet(more, "table7", more.cells(["table7"]))
    whole = sheet(finished, "table7", finished.cells(["table7"]))
    for row, one in zip(part.rows, whole.rows, strict=True):
        for cell, done in zip(row.cells, one.cells, strict=True):
            assert (cell.ours, cell.difference) == (done.ours, done.difference)
            if cell.ours and row.trained:
                assert cell.mean == f"{done.mean}, 1 of 2 seeds"
                assert cell.why == "1 of 2 seeds, the others: not computed yet"
                assert (done.part, done.why) == ("", "")
    assert "1 of 2 seeds" in as_markdown([part])


def test_seeds_that_other_calls_finished_stay_and_none_of_later_ones_after_a_gap(
    finished: Lab, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    shutil.rmtree(out / "figures", ignore_errors=True)
    more = Lab(finished.sets, out, "debug", FAST, seeds=3)
    own = [c for c in more.cells(["table4"]) if (c.column.title, c.line.role) == ("utd-mhad xsub", "floor")]
    compute(more, own)
    paths = [job.path for job in own[0].jobs]
    scores = [100 * json.loads(path.read_text())["findings"][0]["last"]["top1"] for path in paths]

    def told() -> tuple[Lab, list[Cell], Shown]:
        few = Lab(finished.sets, out, "debug", FAST)
        whole = few.cells(everything(), finished=True)
        shown = sheet(few, "table4", [c for c in whole if c.table == "table4"])
        at = [column.title for column in shown.columns].index("utd-mhad xsub")
        return few, whole, next(row for row in shown.rows if row.role == "floor").cells[at]

    few, whole, shown = told()
    assert shown.ours == pytest.approx(scores)
    assert (shown.part, shown.why) == ("", "")
    assert few.others(whole) == 0
    asked = few.cells(["table4"])
    assert {len(c.jobs) for c in asked} == {0, 1}  # what is computed and planned is what was asked for
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
    assert few.others(whole) == 1
    paths[2].write_text("{")  # damaged: not finished
    few, whole, shown = told()
    assert few.others(whole) == 0


# ---------------------------------------------------------------------------------------------- plan


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


# ------------------------------------------------------------------------------------------- protocols


def test_every_protocol_fills_its_table(work: Path, tmp_path: Path) -> None:
    here = lab(work, tmp_path, "training.pretrain.epochs=1", "training.pretrain.optimiser.milestones=[]")
    names = ["table1", "table2", "table3", "table5"]
    cells = [c for c in here.cells(names) if c.column.dataset == "utd-mhad"]
    compute(here, cells)
    assert here.failed == {}
    for name in names:
        shown = sheet(here, name, [c for c in cells if c.table == name])
        filled = {row.label: row.cells[0] for row in shown.rows if row.trained}
        assert all(cell.ours for cell in filled.values()), (name, filled)
        assert all(0 <= value <= 100 for cell in filled.values() for value in cell.ours)
        assert {len(cell.ours) for cell in filled.values()} == {2 if name == "table3" else 1}  # draws
    fused = sheet(here, "table1", [c for c in cells if c.table == "table1"])
    controls = {
        f"3s {c}" for c in ("random encoder (floor)", "supervised (ceiling)", "shuffled pairs (control)")
    }
    assert {"3s-C²VL", "3s-C²VL, equal weights", *controls} <= {row.label for row in fused.rows}
    told = {(c.table, c.line.label): c.jobs[0] for c in cells}
    both = [told["table1", name].path for name in ("3s-C²VL", "3s-C²VL, equal weights")]
    assert len({*both, *(told["table1", name].path for name in controls)}) == 4  # one job has both weights
    floor = told["table1", "3s random encoder (floor)"].runs
    assert floor == told["table2", "3s-ST-GCN from random weights"].runs
    assert {(run.kind, run.recipe.training.input.stream) for run in floor} == {
        ("random", stream) for stream in ("joint", "bone", "motion")
    }
    assert {row.cells[0].best for row in fused.rows if row.label.startswith("3s")} == {()}  # scores are added


# -------------------------------------------------------------------------- without looking at a sample


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packed]:
    """A set with seven classes of unequal size under the name of a target of the paper, and one with a lost label."""
    root = tmp_path_factory.mktemp("uneven")
    train, test = [6, 6, 6, 6, 1, 1, 2, 2, 3, 4, 5, 0], [6, 6, 3, 5]
    labels = [test[n // 4] if n % 4 == 0 else train[n - n // 4 - 1] for n in range(COUNT)]
    for name, more in (("pku-mmd-2", labels), ("utd-mhad", [-1, *labels[1:]])):
        folder = sticks(root / name / "packed", labels=more)
        facts = json.loads((folder / "packed.json").read_text())
        facts |= {"dataset": name, "fingerprint": name.ljust(32, "x")}
        (folder / "packed.json").write_text(json.dumps(facts))
    return find_sets(root)


def by_hand(packed: Packed) -> dict[str, tuple[float, float, float]]:
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
    uneven: dict[str, Packed], tmp_path: Path
) -> None:
    here = Lab(uneven, tmp_path, "debug", (*FAST, "evaluation.semi.shares=[0.25,0.5]"), wide=True)
    wanted = by_hand(uneven["pku-mmd-2"])
    assert wanted["majority class"] == pytest.approx((50, 75, 100 / 3))
    assert wanted["chance"] == pytest.approx((100 / 7, 500 / 7, 100 / 7))
    counted = 0
    for name in printed():
        shown = sheet(here, name, here.cells([name]))
        assert [row.label for row in shown.rows[-2:]] == ["majority class", "chance"]
        for row in shown.rows[-2:]:
            assert (row.role, row.trained) == ("baseline", False)
            for column, cell in zip(shown.columns, row.cells, strict=True):
                on = column.to or column.dataset
                if on == "pku-mmd-2":  # the source of a transfer may be absent
                    found = (*cell.ours, *cell.top5, *cell.balanced)
                    assert found == pytest.approx(wanted[row.label]), (name, column)
                    assert (cell.paper, cell.best, cell.why) == (None, (), "")
                    counted += 1
                else:
                    assert cell.ours == ()
                    lost = "1 of 4 test samples of xsub have no label"
                    assert (lost if on == "utd-mhad" else f"{on} is not there") in cell.why
        if name == "table3":
            assert {c.share for c in shown.columns if c.dataset == "pku-mmd-2"} == {0.25, 0.5}
        if name == "table5":
            assert any(c.dataset == "ntu120" and c.to == "pku-mmd-2" for c in shown.columns)
    # III: two shares; V: two columns of the paper and one more; one each else
    assert counted == 2 * (2 + 3 + 6)
    page = as_html([sheet(here, "table4", here.cells(["table4"]))], [], [])
    assert "No cell has been computed yet" in page
    assert "majority class" in page
    told = csv.DictReader(io.StringIO(as_csv([sheet(here, "table7", here.cells(["table7"]))])))
    blind = next(t for t in told if (t["row"], t["dataset"]) == ("majority class", "pku-mmd-2"))
    assert [blind[name] for name in ("role", "paper", "ours", "top5", "balanced", "best_oracle", "runs")] == [
        "baseline", "-", "50.00", "75.00", "33.33", "", "",
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------- writing


BESIDE = Shown(
    84.4,
    (84.0, 82.0),
    top5=(97.0, 98.0),
    balanced=(80.0, 81.0),
    best=(85.5, 82.5),
    last_epochs=(9,),
    best_epochs=(4, 7),
)


def small_sheet() -> Sheet:
    columns = (Column(dataset="ntu60", benchmark="xsub"), Column(dataset="a_b", benchmark="x|v", share=0.05))
    rows = (
        SheetRow("P&C [61]", "", "peer", (Shown(50.0), Shown())),
        SheetRow("C²VL", "GCN", "pretrained", (BESIDE, Shown(None, (61.5,)))),
        SheetRow("even", "", "pretrained", (Shown(80.0, (80.04,)), Shown(70.0, (71.0,)))),
        SheetRow("floor", "", "floor", (Shown(None, (12.5,)), Shown(None, (), "a_b is <not> there"))),
    )
    return Sheet("table9", "IX", "100 % & more", "Caption with $ and _.", columns, rows)


def test_differences_are_signed_and_near_ones_are_equal() -> None:
    up, same, down = Shown(70.0, (71.0,)), Shown(80.0, (80.04,)), Shown(84.4, (84.0, 82.0))
    assert [(c.sense, c.points) for c in (up, same, down)] == [
        ("up", "+1.0"),
        ("same", "+0.0"),
        ("down", "−1.4"),
    ]
    assert down.mean == "83.0 ± 1.4"
    for nothing in (Shown(70.0), Shown(None, (1.0,)), Shown()):
        assert (nothing.difference, nothing.sense, nothing.points) == (None, "", "")


def test_the_csv_says_everything() -> None:
    lines_ = list(csv.DictReader(io.StringIO(as_csv([small_sheet()]))))
    assert len(lines_) == 8
    ours = lines_[2]
    assert (ours["row"], ours["paper"], ours["ours"], ours["runs"], ours["difference"]) == (
        "C²VL", "84.4", "83.00", "2", "-1.40",
    )  # fmt: skip
    assert float(ours["std"]) == pytest.approx(np.std([84, 82], ddof=1), abs=0.01)
    for name, values in (("top5", (97, 98)), ("balanced", (80, 81)), ("best_oracle", (85.5, 82.5))):
        assert float(ours[name]) == pytest.approx(np.mean(values), abs=0.01)
        assert float(ours[f"{name}_std"]) == pytest.approx(np.std(values, ddof=1), abs=0.01)
    assert (ours["last_epoch"], ours["best_epochs"]) == ("9", "4 7")
    assert {
        lines_[3][name] for name in ("top5", "balanced", "balanced_std", "best_oracle", "best_epochs")
    } == {""}
    assert (lines_[3]["paper"], lines_[3]["share"], lines_[3]["ours"]) == ("-", "0.05", "61.50")
    assert (lines_[7]["ours"], lines_[7]["why_empty"]) == ("", "a_b is <not> there")


def test_markdown_has_as_many_cells_in_every_row() -> None:
    text = as_markdown([small_sheet()])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "83.0 ± 1.4 (paper 84.4, −1.4) ▼" in text
    assert "top-5 / balanced accuracy / best epoch (oracle) / runs:" in text
    assert "| C²VL | 97.5 ± 0.7 / 80.5 ± 0.7 / 84.0 ± 2.1 / 2 | - / - / - / 1 |" in text
    assert [row.split("|")[1].strip() for row in rows if "**" in row] == ["**C²VL, GCN**", "**even**"]
    assert "not shown" not in text
    assert (
        "In `cells/`, 7 cells are elsewhere."
        in as_markdown([small_sheet()], "7 cells are elsewhere").splitlines()
    )
    assert "61.5 (paper -)" in text


def test_latex_is_balanced_and_escaped() -> None:
    text = as_latex([small_sheet()])
    bare = re.sub(r"\\[{}]", "", text)
    depth = np.cumsum([{"{": 1, "}": -1}.get(letter, 0) for letter in bare])
    assert depth.min() >= 0
    assert depth[-1] == 0
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 4
    assert {len(re.findall(r"(?<!\\)&", row)) for row in body} == {2}
    assert r"P\&C" in text
    assert r"(84.4, \textcolor{c2vldown}{$-$1.4})" in text
    assert "top-1, last epoch" in text.splitlines()[0]
    assert not re.search(r"(?<!\\)[%_#](?![^\n]*usepackage)", text.split("\\begin{table}", 1)[1])


class _Cells(HTMLParser):
    """What a page loads, and the number of cells in each row of its tables."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append(0)
        elif tag in {"td", "th"}:
            self.rows[-1] += 1
        here = dict(attrs)
        self.loads += [v for k in ("src", "href") if (v := here.get(k)) and not v.startswith("#")]
        self.loads += [tag] if tag in {"script", "link", "iframe"} else []


def test_the_page_stands_alone_and_colours_differences() -> None:
    text = as_html([small_sheet()], [], [])
    found = _Cells()
    found.feed(text)
    assert found.rows == [3] * (5 + 4)  # four more of C²VL, folded
    assert text.count('<tr class="more">') == 4
    folded = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in text.split('<tr class="more">')[1:]]
    assert [row[:3] for row in folded] == [
        ["runs", "2", "1"], ["top-5", "97.5 ± 0.7", ""], ["balanced accuracy", "80.5 ± 0.7", ""], ["best epoch (oracle)", "84.0 ± 2.1", ""],
    ]  # fmt: skip
    assert re.search(
        r'<input type="checkbox"[^>]* id="(table9-more)"><label for="\1">Show runs, top-5, balanced', text
    )
    assert "2 cells of other" in as_html([small_sheet()], [], [], "2 cells of other settings")
    assert found.loads == []
    assert '<span class="d down">−1.4</span>' in text
    assert '<span class="d up">+1.0</span>' in text
    assert "a_b is &lt;not&gt; there" in text
    assert "prefers-color-scheme: dark" in text
    assert re.search(
        r"\.scroll \{[^}]*overflow-x: auto[^}]*no-repeat local[^}]*var\(--shade\)", text
    )  # cut is seen
    assert text.count("--shade: ") == 2  # light and dark


def test_numbers_in_the_files_are_those_of_the_findings(finished: Lab) -> None:
    whole = finished.cells(everything())
    page = paper_write.write(finished, whole)
    assert {p.name for p in finished.out.glob("paper.*")} == {
        f"paper.{e}" for e in ("csv", "md", "tex", "html")
    }
    told = list(csv.DictReader(io.StringIO((finished.out / "paper.csv").read_text("utf-8"))))
    shown = [t for t in told if t["table"] == "table7" and t["row"] == "hard"]
    assert [(t["dataset"], t["paper"]) for t in shown] == [("ntu60", "82.0"), ("utd-mhad", "-")]
    for line in shown:
        cell = next(
            c
            for c in whole
            if (c.table, c.line.label, c.column.dataset) == ("table7", "hard", line["dataset"])
        )
        held = json.loads((cell.jobs[0].runs[0].out / "evaluations" / _only(cell)).read_text())
        last, best = held["finding"]["last"], held["finding"]["best"]
        assert float(line["ours"]) == pytest.approx(100 * last["top1"], abs=0.01)
        assert float(line["balanced"]) == pytest.approx(100 * last["balanced"], abs=0.01)
        assert float(line["best_oracle"]) == pytest.approx(100 * best["top1"], abs=0.01)
        assert line["top5"] == ""  # three classes
        assert line["best_epochs"] == str(held["finding"]["best_epoch"])
        assert line["last_epoch"] == "4"
    assert float(shown[0]["difference"]) == pytest.approx(float(shown[0]["ours"]) - 82.0, abs=0.011)
    assert shown[1]["difference"] == ""
    rest = {t["why_empty"] for t in told if t["table"] == "table1" and t["role"] == "pretrained"}
    assert {"not computed yet", "ntu120 is not there", "pku-mmd-2 is not there"} <= rest
    text = page.read_text("utf-8")
    assert "Figure 4. Similarity of positive pairs: ntu60 xsub" in text
    assert text.count("<svg") == 8  # figures 4 and 5, vision and language, two datasets
    assert "Not drawn: not computed yet (" in text


def _only(cell: Cell) -> str:
    (path,) = (cell.jobs[0].runs[0].out / "evaluations").glob("linear-*.json")
    return path.name


# ------------------------------------------------------------------------- what a number is, and of what

MARKED = "captions derived from the joints"
ROWS = (
    "vision",
    "vision and language",
    "shuffled pairs (control)",
    "random encoder (floor)",
    "majority class",
)


def row_of(text: str, label: str) -> str:
    """Return the first row of a written table, of whichever kind of file, that has a label."""
    found = re.split(r"\n(?=\||<tr)|\\\\", text)
    said = re.compile(rf"(\*\*|>|\| |^\s*){re.escape(label)}(\*\*|<| [&|])", re.MULTILINE)
    return next(row for row in found if said.search(row))


@pytest.fixture(scope="module")
def ruled(finished: Lab, work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lab, list[Cell]]:
    """The finished lab, where captions are made by rule on utd-mhad alone, and vision alone is trained on it."""
    root = tmp_path_factory.mktemp("ruled")
    shutil.copytree(work, root / "work")
    shutil.copytree(finished.out, root / "out")
    assert (
        json.loads((work / "utd-mhad" / "packed" / "packed.json").read_text())["engines"]["captions"][
            "backend"
        ]
        == "posecode"
    )
    file = root / "work" / "ntu60" / "packed" / "packed.json"
    facts = json.loads(file.read_text())
    facts["engines"]["captions"] = {"backend": "llava"}
    file.write_text(json.dumps(facts))
    here = lab(root / "work", root / "out")
    vision = [c for c in here.cells(["table6"]) if (c.line.label, c.column.dataset) == ("vision", "utd-mhad")]
    compute(here, vision)
    return here, here.cells(["table4", "table5", "table6", "table7", "figure6"])


def test_what_was_trained_on_captions_made_by_rule_is_marked_in_every_file(
    ruled: tuple[Lab, list[Cell]],
) -> None:
    here, cells = ruled
    sheets = [sheet(here, n, [c for c in cells if c.table == n]) for n in ("table4", "table6", "table7")]
    told = list(csv.DictReader(io.StringIO(as_csv(sheets))))
    both = {"C²VL", "language", "vision and language", "shuffled pairs (control)", *TABLE_VII}
    marked = {(t["row"], t["dataset"]) for t in told if t["derived_from_joints"] == "yes"}
    assert marked == {(row, "utd-mhad") for row in both}
    assert {t["derived_from_joints"] for t in told} == {"yes", ""}
    numbers_ = {(t["table"], t["row"], t["dataset"]): t["ours"] for t in told}
    # vision stands between the others with a number of its own
    assert numbers_["table6", "vision", "utd-mhad"] != ""
    for text in (as_markdown(sheets[1:2]), as_latex(sheets[1:2]), as_html(sheets[1:2], [], [])):
        assert MARKED in text
        marks = {row: len(re.findall(r"†|dagger", row_of(text, row))) for row in ROWS}
        assert marks == {row: int(row in both) for row in ROWS}
    plain_ = [c for c in cells if c.table == "table7" and c.column.dataset == "ntu60"]
    for text in (
        as_markdown([sheet(here, "table7", plain_)]),
        as_latex([sheet(here, "table7", plain_)]),
        as_html([sheet(here, "table7", plain_)], [], []),
    ):
        assert MARKED not in text
        assert "†" not in text
        assert "dagger" not in text


def test_a_transfer_is_marked_by_what_its_source_was_trained_on(ruled: tuple[Lab, list[Cell]]) -> None:
    found = {
        (c.column.dataset, c.column.to, c.line.role): derived(c)
        for c in ruled[1]
        if c.table == "table5" and c.jobs
    }
    assert {key for key, marked in found.items() if marked} == {
        ("utd-mhad", "ntu60", "pretrained"),
        ("utd-mhad", "ntu60", "shuffled"),
    }
    assert ("ntu60", "utd-mhad", "pretrained") in found


def test_the_mark_is_told_in_the_terminal(
    ruled: tuple[Lab, list[Cell]], capsys: pytest.CaptureFixture[str]
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
    here = lab(work, tmp_path)
    found = sheet(here, "table8", here.cells(["table8"]))
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
    for name in printed():  # the paper's C²VL keeps its name, methods of others theirs
        one = sheet(here, name, here.cells([name]))
        peers = {row.method for row in printed()[name].rows if row.cite is not None and not row.ours}
        for row in one.rows:
            bare = row.label.split(" [")[0]
            assert (bare in peers) == (row.role == "peer" and row.label != bare), (name, row.label)


def test_columns_that_can_be_filled_come_first_and_none_is_lost(work: Path, tmp_path: Path) -> None:
    here = lab(work / "utd-mhad", tmp_path)
    for name in (*printed(), "figure6"):
        cells = here.cells([name])
        found = sheet(here, name, cells)
        there = [c.dataset in here.sets and (not c.to or c.to in here.sets) for c in found.columns]
        assert there == sorted(there, reverse=True), name
        assert set(found.columns) == {c.column for c in cells}
        assert [c for c in found.columns if c.dataset != "utd-mhad"] == list(everything()[name].columns)
        if name in {"table1", "table7"}:
            assert found.columns[0].title.startswith("utd-mhad")
            (row,) = (r for r in found.rows if r.printed in {"C²VL", "partition(cosine)"})
            values = {c.title: cell.paper for c, cell in zip(found.columns, row.cells, strict=True)}
            assert (values["ntu60 xsub"], values[found.columns[0].title]) == (84.4, None)


def test_the_number_of_runs_is_said_and_beside_each_number_where_they_differ() -> None:
    uneven = small_sheet()
    assert (uneven.counts(), uneven.runs()) == ([1, 2], "Numbers of ours are of 1 to 2 runs.")
    even = Sheet("table9", "IX", "even", "Caption.", uneven.columns, uneven.rows[2:])
    assert (even.counts(), even.runs()) == ([1], "Every number of ours is of 1 run.")
    bare = Sheet("table9", "IX", "bare", "Caption.", uneven.columns, uneven.rows[:1])
    assert (bare.counts(), bare.runs()) == ([], "")
    blind = SheetRow("chance", "", "baseline", (Shown(None, (50.0,)), Shown()))
    page = as_html([Sheet("t", "IX", "t", "C.", uneven.columns, (*uneven.rows, blind))], [], [])
    assert re.findall(r">n = (\d+)<", page) == ["2", "1", "1", "1", "1"]  # none of chance, none of the peer
    assert ">n = " not in as_html([even], [], [])
    half = SheetRow("half", "", "pretrained", (Shown(None, (50.0,), "why", "1 of 2 seeds"), Shown()))
    page = as_html([Sheet("t", "IX", "t", "C.", uneven.columns, (half,))], [], [])
    assert '<span class="under">1 of 2 seeds</span>' in page
    for text in (as_markdown([even]), as_latex([even]), as_html([even], [], [])):
        assert "Every number of ours is of 1 run." in text


def test_figure_6_in_numbers_has_the_controls_of_table_vii_at_no_cost(
    finished: Lab, work: Path, tmp_path: Path
) -> None:
    cells = finished.cells(["figure6"])
    controls = [c for c in cells if c.line.role != "pretrained"]
    assert {c.line.role for c in controls} == {"floor", "ceiling", "shuffled"}
    assert unfinished(finished, controls) == []
    found = sheet(finished, "figure6", cells)
    other = sheet(finished, "table7", finished.cells(["table7"]))
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
    here = Lab(find_sets(tmp_path / "set"), tmp_path / "out", "debug", FAST)
    for name in ("figure7", "figure8"):
        for column in here.columns(name):
            of = [c for c in here.cells([name]) if c.column == column]
            text = paper_figures.caption(of)
            wanted = said if of[0].jobs else "the same ten random test classes"
            assert wanted.removesuffix(" in every panel" if name == "figure8" else "") in text
            assert "{" not in text


# -------------------------------------------------------------------------------------------- figures


def test_the_same_ten_random_classes_are_shown_whatever_the_order() -> None:
    labels = np.repeat(np.arange(60), 3)
    first = paper_figures.chosen(labels)
    assert len(first) == 10
    assert first == sorted({*first})
    assert first == paper_figures.chosen(np.random.default_rng(1).permutation(labels))
    assert paper_figures.chosen(np.array([4, 2, -1, 2])) == [2, 4]


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


def test_all_figures_are_drawn_of_finished_trainings(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = lab(work, tmp_path, "training.pretrain.epochs=1", "training.pretrain.optimiser.milestones=[]")
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


# ---------------------------------------------------------------------------------------------- cli


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(paper_cli.paper)
    return made


def test_the_command_plans_without_writing_and_refuses_unknown_tables(
    app: typer.Typer, work: Path, tmp_path: Path
) -> None:
    words = ["--work", str(work), "--out", str(tmp_path / "out"), "--recipe", "debug"]
    said = CliRunner().invoke(app, [*words, "--dry-run", "--only", "table7,figure4"])
    assert said.exit_code == 0, said.output
    assert "table7" in said.output
    assert "table1" not in said.output
    assert "trainings and" in said.output
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(app, [*words, "--only", "table9"])
    assert isinstance(refused.exception, ConfigError)
    assert "--only 'table9' is none of table1, table2" in str(refused.exception)


def test_the_command_computes_writes_and_has_nothing_to_do_the_second_time(
    app: typer.Typer, work: Path, tmp_path: Path
) -> None:
    words = [
        "--work",
        str(work / "utd-mhad"),
        "--out",
        str(tmp_path),
        "--only",
        "table6",
        "--recipe",
        "debug",
    ]
    words += [word for value in FAST for word in ("--set", value)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "paper.html").is_file()
    assert "vision and language" in first.output
    second = CliRunner().invoke(app, words)
    assert "0 trainings and 0 evaluations to do: nothing to do" in second.output
    assert '"cell' not in second.output
    assert "other settings" not in second.output + (tmp_path / "paper.html").read_text("utf-8")
    there = len(list((tmp_path / "cells").glob("*.json")))
    third = CliRunner().invoke(app, [*words, "--set", "evaluation.linear.epochs=3"])
    assert third.exit_code == 0, third.output
    note = f"{there} finished cells are of other settings, data or seeds and not shown"
    assert note in " ".join(third.output.split())
    for name in ("paper.html", "paper.md"):
        assert note in (tmp_path / name).read_text("utf-8")
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2 * there  # none is deleted
