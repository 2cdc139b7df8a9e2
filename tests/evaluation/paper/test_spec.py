"""Transcription of the paper's tables and their variants."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from c2vl_evaluation.paper.spec import Variant, printed_tables, rows_of, tables_and_figures, targets_of
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.targets import TABLE_VII, Cosine, Intra, Partition, targets_name
from c2vl_training.encoders import build

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


@pytest.mark.parametrize("name", printed_tables())
def test_the_transcription_is_what_the_paper_prints(name: str, text: dict[str, list[list[str]]]) -> None:
    wanted = []
    for cells in text[name]:
        cite = re.search(r"\[(\d+)\]", cells[0])
        # a row ends in its numbers; words before them may be a dash too
        found = numbers(cells[1:])[-len(printed_tables()[name].columns) :]
        if len(found) == len(printed_tables()[name].columns):
            wanted.append((int(cite[1]) if cite else None, found))
    rows = [(row.cite, ["-" if v is None else f"{v:.1f}" for v in row.values]) for row in printed_tables()[name].rows]
    assert rows == wanted


def test_differences_that_table_viii_prints_agree_with_its_accuracies(text: dict[str, list[list[str]]]) -> None:
    rows = printed_tables()["table8"].rows
    said = [re.findall(r"\(([+-][\d .]+)\)", "\t".join(cells).replace("\t", " ")) for cells in text["table8"]]
    differences = [[float(d.replace(" ", "")) for d in found] for found in said if found]
    assert len(differences) == len(rows) - 1
    for row, found in zip(rows[:-1], differences, strict=True):
        ours = [round((v or 0) - (own or 0), 1) for v, own in zip(row.values, rows[-1].values, strict=True)]
        assert ours == found


def test_one_number_is_the_same_in_every_table_that_prints_it() -> None:
    t = printed_tables()
    joint = next(r for r in t["table1"].rows if r.ours == "joint").values
    assert t["table6"].rows[-1].values == t["table8"].rows[-1].values == joint[:2]
    assert t["table7"].rows[-1].values == joint[:1]
    assert t["table7"].rows[0].method == "hard"


@pytest.mark.parametrize("name", printed_tables())
def test_every_row_of_the_paper_that_is_ours_has_a_line_and_every_line_its_row(name: str) -> None:
    table = printed_tables()[name]
    assert all(len(row.values) == len(table.columns) for row in table.rows)
    repeated = {line.repeats for line in rows_of(name)} - {""}
    assert repeated == {row.ours for row in table.rows} - {""}
    assert {"floor", "ceiling", "shuffled"} <= {line.role for line in rows_of(name)}


def test_three_streams_and_every_reading_of_table_iii_have_their_controls() -> None:
    told = {n: {line.label: line for line in rows_of(n)} for n in ("table1", "table2", "table3")}
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


def test_targets_of_table_vii_keep_the_numbers_of_the_recipe() -> None:
    own = Partition(beta=0.3, temperature=0.2, alpha=Cosine(start=0.8, end=0.3))
    for name in TABLE_VII:
        found = targets_of(own, name)
        assert targets_name(found) == name
        kept = {k: getattr(own, k) for k in ("beta", "temperature") if k in type(found).model_fields}
        assert {k: getattr(found, k) for k in kept} == kept
    assert targets_of(own, "blend(cosine)").model_dump()["alpha"] == own.alpha.model_dump()
    assert targets_of(own, "partition(cosine)") is own
    assert targets_of(Intra(beta=0.4), "partition(cosine)") == Partition(beta=0.4)


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
        floors = {x.label: x.variant for x in rows_of("table8", own) if x.label.endswith(", random")}
        assert {label: v.encoder for label, v in floors.items()} == {
            f"{word}, random": name for name, word in said.items() if name != own
        }
        assert {v.kind for v in floors.values()} == {"random"}


@pytest.mark.parametrize(
    "departs",
    ['pretrain.targets="hard"', 'pretrain.targets="intra"', "input.stream=bone", "pretrain.knowledge=language"],
)
def test_a_row_with_the_papers_label_is_the_papers_method_whatever_the_recipe_says(departs: str) -> None:
    base = load_recipe("debug", [f"training.{departs}"])
    every = [(name, line) for name in tables_and_figures() for line in rows_of(name)]
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
        told = {n: v.recipe(base).training.pretrain for n, v in ((x.label, x.variant) for x in rows_of(name))}
        assert {n: targets_name(p.targets) for n, p in told.items()} == {
            f"{loss}, {k}": which
            for k in ("vision", "language")
            for loss, which in (("InfoNCE", "hard"), ("C²VL", "partition(cosine)"))
        }
        assert {n.split(", ")[1] for n in told} == {p.knowledge for p in told.values()}
