"""The paper's tables beside ours, written as CSV, Markdown, LaTeX and HTML; nothing is computed here."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from c2vl_evaluation.gallery import clean
from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper.cells import Cell, Lab, reason
from c2vl_evaluation.paper.tables import FIGURES, Column, Printed, everything
from c2vl_evaluation.results import mean_std
from c2vl_manifests.manifest import commit_text

NEAR = 0.05
"""Points within which two numbers are printed alike."""


@dataclass(frozen=True)
class Shown:
    """What one place of a table says, in percent."""

    paper: float | None = None
    ours: tuple[float, ...] = ()
    """One a seed and draw."""
    why: str = ""
    """Why there is no number of ours, or of fewer seeds than were asked for; empty for rows of others."""
    part: str = ""
    """`1 of 2 seeds`, until all are finished."""

    @property
    def mean(self) -> str:
        """`61.2`, `61.2 ± 1.3`, or `61.2, 1 of 2 seeds`."""
        end = f", {self.part}" if self.part else ""
        return mean_std([value / 100 for value in self.ours]) + end if self.ours else ""

    @property
    def difference(self) -> float | None:
        """Ours less the paper's."""
        return statistics.mean(self.ours) - self.paper if self.ours and self.paper is not None else None

    @property
    def sense(self) -> Literal["", "up", "same", "down"]:
        """Where ours stands; empty without a difference."""
        if (d := self.difference) is None:
            return ""
        return "same" if abs(d) < NEAR else "up" if d > 0 else "down"

    @property
    def points(self) -> str:
        """`+0.3`, `−1.2`, or nothing."""
        return "" if self.difference is None else f"{self.difference:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class SheetRow:
    """A row; `role` is `peer` for methods of others."""

    label: str
    about: str
    role: str
    cells: tuple[Shown, ...]


@dataclass(frozen=True)
class Sheet:
    """A table with all its numbers."""

    name: str
    number: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[SheetRow, ...]


# ---------------------------------------------------------------------------------------------- collecting


def sheet(lab: Lab, name: str, cells: Sequence[Cell]) -> Sheet:
    """Collect a table: the paper's rows in its order, ours below the rows that they repeat, controls last.

    Args:
        lab: where finished cells are read from.
        name: of the table, or figure6.
        cells: of this table, all columns.
    """
    spec = everything()[name]
    columns = tuple(dict.fromkeys(cell.column for cell in cells))
    ours = {
        line: {c.column: c for c in cells if c.line == line} for line in dict.fromkeys(c.line for c in cells)
    }
    rows: list[SheetRow] = []
    for printed in spec.rows:
        values = dict(zip(spec.columns, printed.values, strict=True))
        repeating = [line for line in ours if line.repeats and line.repeats == printed.ours]
        if not repeating:
            shown = tuple(Shown(values.get(column)) for column in columns)
            rows.append(SheetRow(_cited(printed), printed.about, "peer", shown))
        for line in repeating:
            shown = tuple(_shown(lab, ours[line].get(column), values.get(column)) for column in columns)
            own = len(repeating) == 1 and line.role == "pretrained"
            rows.append(SheetRow(printed.method if own else line.label, printed.about, line.role, shown))
    for line, places in ours.items():
        if not line.repeats:
            shown = tuple(_shown(lab, places.get(column), None) for column in columns)
            rows.append(SheetRow(line.label, "", line.role, shown))
    return Sheet(name, spec.number, spec.title, spec.caption, columns, tuple(rows))


def _cited(printed: Printed) -> str:
    return f"{printed.method} [{printed.cite}]" if printed.cite else printed.method


def _shown(lab: Lab, cell: Cell | None, value: float | None) -> Shown:
    """Read what finished jobs of a cell found; of the seeds that are finished, where some are not."""
    if cell is None:  # a floor of Table VIII that is the recipe's own encoder there
        return Shown(value, (), "the recipe's own encoder: see the floor of all tables")
    kept = [one for job in cell.jobs if (one := lab.kept(job)) is not None]
    if not kept:
        return Shown(value, (), reason(lab, cell))
    findings = [f for one in kept for f in one.findings if cell.wants(f)]
    ours = tuple(100 * f.last.top1 for f in findings if f.last is not None)
    if ours and len(kept) < len(cell.jobs):
        part = f"{len(kept)} of {len(cell.jobs)} seeds"
        return Shown(value, ours, f"{part}, the others: {reason(lab, cell)}", part)
    why = "; ".join(dict.fromkeys(f.why for f in findings if f.why)) or "nothing was found"
    return Shown(value, ours, "" if ours else why)


# ------------------------------------------------------------------------------------------------- writing


def write(lab: Lab, cells: Sequence[Cell], *, fresh: bool = True) -> Path:
    """Write all four files and return the path of the HTML.

    Args:
        lab: where finished cells are, and where the files go.
        cells: of all tables and figures.
        fresh: draw figures that were not drawn before; they take seconds each.
    """
    of = {
        name: [cell for cell in cells if cell.table == name] for name in dict.fromkeys(c.table for c in cells)
    }
    sheets = [sheet(lab, name, of[name]) for name in of if name.startswith("table") or name == "figure6"]
    shown = _figures(lab, of, fresh)
    for name, text in (
        ("paper.csv", as_csv(sheets)), ("paper.md", as_markdown(sheets)), ("paper.tex", as_latex(sheets)),
        ("paper.html", as_html(sheets, shown, _sets(lab))),
    ):  # fmt: skip
        commit_text(lab.out / name, text)
    return lab.out / "paper.html"


def _figures(lab: Lab, of: dict[str, list[Cell]], fresh: bool) -> list[dict[str, Any]]:
    found = []
    for name, spec in FIGURES.items():
        for column in dict.fromkeys(cell.column for cell in of.get(name, ())):
            here = [cell for cell in of[name] if cell.column == column]
            panels = paper_figures.draw(lab, here, fresh=fresh)
            drawn = [{"title": clean(p.title), "svg": Markup(p.svg)} for p in panels]
            found.append({"name": name, "spec": spec, "column": column, "panels": drawn})
    return found


def _sets(lab: Lab) -> list[dict[str, Any]]:
    """Say which datasets take part, and how their prompts were made."""
    told = []
    unusable = lab.unusable()
    for name, packed in lab.sets.items():
        m = packed.manifest
        engines = ", ".join(
            f"{stage}: {e.get('model') or e.get('backend')}" for stage, e in m.engines.items()
        )
        told.append(
            {
                "name": name, "title": m.title, "samples": m.samples, "engines": engines,
                "recipe": f"not used ({unusable[name]})" if name in unusable else lab.base(name).name, "derived": m.derived_from_joints("language"),
            }
        )  # fmt: skip
    return told


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Return one line a cell: everything the other files say, to be read by programs."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(
        (
            "table", "row", "role", "dataset", "to", "benchmark", "share",
            "paper", "ours", "std", "runs", "difference", "why_empty",
        )
    )  # fmt: skip
    for one in sheets:
        for row in one.rows:
            for column, cell in zip(one.columns, row.cells, strict=True):
                std = f"{statistics.stdev(cell.ours):.2f}" if len(cell.ours) > 1 else ""
                mean = f"{statistics.mean(cell.ours):.2f}" if cell.ours else ""
                difference = "" if cell.difference is None else f"{cell.difference:.2f}"
                out.writerow(
                    (
                        one.name, row.label, row.role, column.dataset, column.to, column.benchmark,
                        "" if column.share is None else column.share,
                        "-" if cell.paper is None else f"{cell.paper:.1f}",
                        mean, std, len(cell.ours) or "", difference, cell.why,
                    )
                )  # fmt: skip
    return text.getvalue()


def _heading(one: Sheet) -> str:
    word = "Table" if one.name.startswith("table") else "Figure"
    return f"{word} {one.number}. {one.title}"


def plain(role: str, cell: Shown) -> str:
    """`84.4` of a peer; `61.2 (paper 84.4, −23.2)`, `61.2 (paper -)` or nothing of ours."""
    printed = "-" if cell.paper is None else f"{cell.paper:.1f}"
    if role == "peer":
        return printed
    if not cell.ours:
        return f"(paper {printed})" if cell.paper is not None else ""
    if cell.paper is None and role != "pretrained":
        return cell.mean
    return f"{cell.mean} (paper {printed}{', ' if cell.points else ''}{cell.points})"


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Return the tables; a difference to the paper is marked ▲, ▼ or =, since Markdown has no colours."""
    marks = {"": "", "up": " ▲", "down": " ▼", "same": " ="}
    lines = [
        "# The paper's tables and ours",
        "",
        "Percent top-1, last epoch; mean ± standard deviation over runs.",
    ]
    for one in sheets:
        lines += ["", f"## {_heading(one)}", "", one.caption, ""]
        titles = [column.title.replace("|", "\\|") for column in one.columns]
        lines.append("| | " + " | ".join(titles) + " |")
        lines.append("|---|" + "---:|" * len(one.columns))
        for row in one.rows:
            label = f"{row.label}, {row.about}" if row.about else row.label
            label = label if row.role in {"peer", "control"} else f"**{label}**"
            cells = [plain(row.role, cell) + marks[cell.sense] for cell in row.cells]
            lines.append("| " + " | ".join(text.replace("|", "\\|") for text in (label, *cells)) + " |")
        lines += [f"- empty or incomplete: {why}" for why in _reasons(one)]
    return "\n".join(lines) + "\n"


def _reasons(one: Sheet) -> list[str]:
    """Why cells are empty, each reason once with its number of cells."""
    found: dict[str, int] = {}
    for cell in (cell for row in one.rows for cell in row.cells if cell.why):
        found[cell.why] = found.get(cell.why, 0) + 1
    return [f"{clean(why)} ({count} cell{'s' if count > 1 else ''})" for why, count in found.items()]


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": "$^2$", "³": "$^3$", "±": r"$\pm$", "→": r"$\to$",
    "−": "$-$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def as_latex(sheets: Sequence[Sheet]) -> str:
    r"""Return `table` environments to `\input`; they need booktabs and xcolor, and colour the differences."""
    out = [
        "% needs \\usepackage{booktabs,xcolor}",
        "\\definecolor{c2vlup}{HTML}{12795A}", "\\definecolor{c2vldown}{HTML}{B03A2A}",
        "\\definecolor{c2vlsame}{HTML}{5D666F}",
    ]  # fmt: skip
    for one in sheets:
        out += ["", "\\begin{table}", f"\\caption{{{_tex(f'{_heading(one)}. {one.caption}')}}}"]
        out += ["\\centering", f"\\begin{{tabular}}{{l{'r' * len(one.columns)}}}", "\\toprule"]
        out.append(" & ".join(["", *(_tex(column.title) for column in one.columns)]) + r" \\ \midrule")
        for row in one.rows:
            cells = [_tex_cell(row.role, cell) for cell in row.cells]
            out.append(" & ".join([_tex(row.label), *cells]) + r" \\")
        out += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(out) + "\n"


def _tex_cell(role: str, cell: Shown) -> str:
    if cell.paper is None or not cell.ours:
        return _tex(plain(role, cell))
    return f"{_tex(cell.mean)} ({cell.paper:.1f}, \\textcolor{{c2vl{cell.sense}}}{{{_tex(cell.points)}}})"


def as_html(sheets: Sequence[Sheet], shown: Sequence[dict[str, Any]], sets: Sequence[dict[str, Any]]) -> str:
    """Return one page that needs nothing else."""
    source = files("c2vl_evaluation.paper").joinpath("page.html.j2").read_text("utf-8")
    settings: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, **settings).from_string(source)
    cells = [cell for one in sheets for row in one.rows for cell in row.cells]
    compared = [cell for cell in cells if cell.difference is not None]
    return page.render(
        sheets=sheets,
        figures=shown,
        sets=sets,
        heading=_heading,
        reasons=_reasons,
        measured=sum(bool(cell.ours) for cell in cells),
        compared=len(compared),
        close=sum(abs(cell.difference or 0) <= 1 for cell in compared),
    )
