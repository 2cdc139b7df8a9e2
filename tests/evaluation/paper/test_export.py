"""The paper's tables as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from c2vl_evaluation.paper import export as paper_write
from c2vl_evaluation.paper.experiments import Experiments, TableCell
from c2vl_evaluation.paper.export import as_csv, as_html, as_latex, as_markdown, plain
from c2vl_evaluation.paper.spec import tables_and_figures
from c2vl_evaluation.paper.tables import FilledCell
from support.paper import small_table


def test_the_csv_says_everything() -> None:
    lines_ = list(csv.DictReader(io.StringIO(as_csv([small_table()]))))
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
    assert {lines_[3][name] for name in ("top5", "balanced_std", "best_oracle", "best_epochs")} == {""}
    assert (lines_[3]["paper"], lines_[3]["share"], lines_[3]["ours"]) == ("-", "0.05", "61.50")
    assert (lines_[7]["ours"], lines_[7]["why_empty"]) == ("", "a_b is <not> there")


def test_markdown_has_as_many_cells_in_every_row() -> None:
    text = as_markdown([small_table()])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4}
    assert "83.0 ± 1.4 (paper 84.4, −1.4) ▼" in text
    assert "top-5 / balanced accuracy / best epoch (oracle) / runs:" in text
    assert "| C²VL | 97.5 ± 0.7 / 80.5 ± 0.7 / 84.0 ± 2.1 / 2 | - / 0.0 / - / 1 |" in text
    assert [row.split("|")[1].strip() for row in rows if "**" in row] == ["**C²VL, GCN**", "**even**"]
    assert "not shown" not in text
    assert "In `runs/`, 7 cells are elsewhere." in as_markdown([small_table()], "7 cells are elsewhere").splitlines()
    assert "61.5" in text
    assert "(paper -)" not in text


def test_without_a_best_epoch_no_file_but_the_csv_speaks_of_one() -> None:
    table = small_table()
    (best,) = [cell for row in table.rows for cell in row.cells if cell.values("best")]
    last = replace(best, results=tuple(r.model_copy(update={"best": None, "best_epoch": None}) for r in best.results))
    rows = tuple(replace(row, cells=tuple(last if c is best else c for c in row.cells)) for row in table.rows)
    for page, shown in ((True, table), (False, without := replace(table, rows=rows))):
        for text in (as_markdown([shown]), as_html([shown], [], [])):
            assert ("best epoch" in text.lower()) == page
    assert "| C²VL | 97.5 ± 0.7 / 80.5 ± 0.7 / 2 | - / 0.0 / 1 |" in as_markdown([without])
    assert "best epoch" not in as_latex([without])


def test_latex_is_balanced_and_escaped() -> None:
    text = as_latex([small_table()])
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
    text = as_html([small_table()], [], [])
    found = _Cells()
    found.feed(text)
    assert found.rows == [3] * (5 + 8)  # folded: four more of C²VL, two of the others
    assert text.count('<tr class="more">') == 8
    folded = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in text.split('<tr class="more">')[1:]]
    assert [row[:3] for row in folded[:4]] == [
        ["runs", "2", "1"], ["top-5", "97.5 ± 0.7", ""], ["balanced accuracy", "80.5 ± 0.7", "0.0"], ["best epoch (oracle)", "84.0 ± 2.1", ""],
    ]  # fmt: skip
    assert re.search(r'<input type="checkbox"[^>]* id="(table9-more)"><label for="\1">Show runs, top-5, balanced', text)
    assert "2 cells of other" in as_html([small_table()], [], [], "2 cells of other settings")
    assert found.loads == ["script"]  # the page's own
    assert '<span class="d down">−1.4</span>' in text
    assert '<span class="d up">+1.0</span>' in text
    assert "a_b is &lt;not&gt; there" in text
    assert "prefers-color-scheme: dark" in text
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto[^}]*no-repeat local[^}]*var\(--shade\)", text)  # cut is seen
    assert text.count("--shade: ") == 2  # light and dark


@pytest.mark.slow
def test_numbers_in_the_files_are_those_of_the_findings(finished: Experiments) -> None:
    whole = finished.cells(tables_and_figures())
    page = paper_write.write(finished, whole)
    assert {p.name for p in finished.out.glob("paper.*")} == {f"paper.{e}" for e in ("csv", "md", "tex", "html")}
    told = list(csv.DictReader(io.StringIO((finished.out / "paper.csv").read_text("utf-8"))))
    shown = [t for t in told if t["table"] == "table7" and t["row"] == "hard"]
    assert [(t["dataset"], t["paper"]) for t in shown] == [("ntu60", "82.0"), ("utd-mhad", "-")]
    for line in shown:
        cell = next(c for c in whole if (c.table, c.row.label, c.column.dataset) == ("table7", "hard", line["dataset"]))
        held = json.loads((cell.evaluations[0].runs[0].out / "evaluations" / _only(cell)).read_text())
        last, best = held["result"]["last"], held["result"]["best"]
        assert float(line["ours"]) == pytest.approx(100 * last["top1"], abs=0.01)
        assert float(line["balanced"]) == pytest.approx(100 * last["balanced"], abs=0.01)
        assert float(line["best_oracle"]) == pytest.approx(100 * best["top1"], abs=0.01)
        assert line["top5"] == ""  # three classes
        assert line["best_epochs"] == str(held["result"]["best_epoch"])
        assert line["last_epoch"] == "4"
    assert float(shown[0]["difference"]) == pytest.approx(float(shown[0]["ours"]) - 82.0, abs=0.011)
    assert shown[1]["difference"] == ""
    rest = {t["why_empty"] for t in told if t["table"] == "table1" and t["role"] == "pretrained"}
    assert {"not computed yet", "ntu120 is not available", "pku-mmd-2 is not available"} <= rest
    text = page.read_text("utf-8")
    assert "Figure 4. Similarity of positive pairs: ntu60 xsub" in text
    assert text.count("<svg") == 8  # figures 4 and 5, vision and language, two datasets
    assert "Not drawn: not computed yet (" in text


def _only(cell: TableCell) -> str:
    (path,) = (cell.evaluations[0].runs[0].out / "evaluations").glob("linear-*.json")
    return path.name


def test_what_was_asked_for_comes_first_and_the_rest_is_folded() -> None:
    table = small_table()
    other = replace(table, name="table3", title="other")
    page = as_html([other, table], [], [], asked=["table9"])
    assert re.findall(r'<details id="(table\d)"( open)?>', page) == [("table9", " open"), ("table3", "")]
    assert re.findall(r'<details id="(table\d)"( open)?>', as_html([other, table], [], [])) == [
        ("table3", " open"), ("table9", " open"),
    ]  # fmt: skip


def test_few_test_clips_are_said_above_the_numbers() -> None:
    page = as_html([replace(small_table(), clips=(430, 16_487))], [], [])
    assert "430 test clips" in page
    assert "16,487" not in page


def test_a_cell_without_any_number_is_blank() -> None:
    assert plain("peer", FilledCell(None)) == plain("pretrained", FilledCell(None)) == ""
    assert plain("peer", FilledCell(84.4)) == "84.4"
