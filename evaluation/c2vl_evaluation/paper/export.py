"""The paper's tables beside ours, written as CSV, Markdown, LaTeX and HTML; nothing is computed here."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper.experiments import Cell, Lab
from c2vl_evaluation.paper.spec import FIGURES
from c2vl_evaluation.paper.tables import DERIVED, MARK, MEASURES, Sheet, SheetRow, Shown, sheet
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import render, shorten_paths


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
    note = unshown(lab, cells)
    for name, text in (
        ("paper.csv", as_csv(sheets)), ("paper.md", as_markdown(sheets, note)), ("paper.tex", as_latex(sheets)),
        ("paper.html", as_html(sheets, shown, _sets(lab), note)),
    ):  # fmt: skip
        commit_text(lab.out / name, text)
    return lab.out / "paper.html"


def unshown(lab: Lab, cells: Sequence[Cell]) -> str:
    """Say how many finished trainings of the folder are behind none of these; empty where there are none."""
    if not (count := lab.others(cells)):
        return ""
    return f"{count} finished training{'s are' if count > 1 else ' is'} of other settings, data or seeds and not shown"


def _figures(lab: Lab, of: dict[str, list[Cell]], fresh: bool) -> list[dict[str, Any]]:
    found = []
    for name, spec in FIGURES.items():
        for column in dict.fromkeys(cell.column for cell in of.get(name, ())):
            here = [cell for cell in of[name] if cell.column == column]
            panels = paper_figures.draw(lab, here, fresh=fresh)
            drawn = [{"title": shorten_paths(p.title), "svg": Markup(p.svg)} for p in panels]
            found.append(
                {
                    "name": name,
                    "spec": spec,
                    "column": column,
                    "caption": paper_figures.caption(here),
                    "panels": drawn,
                }
            )
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


_CSV = (
    "table", "row", "paper_row", "role", "derived_from_joints", "dataset", "to", "benchmark", "share", "paper", "ours", "std", "runs", "difference",
    "last_epoch", "top5", "top5_std", "balanced", "balanced_std", "best_oracle", "best_oracle_std", "best_epochs",
    "why_empty",
)  # fmt: skip


def as_csv(sheets: Sequence[Sheet]) -> str:
    """Return one line a cell: everything the other files say, to be read by programs.

    `ours`, `top5` and `balanced` are of the last epoch. `best_oracle` is top-1 at the epoch that is best on the test
    split; `best_epochs` says which that was in each run. `paper_row` is the paper's own name of a row.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(_CSV)
    for one in sheets:
        for row in one.rows:
            for column, cell in zip(one.columns, row.cells, strict=True):
                out.writerow(
                    (
                        one.name, row.label, row.printed, row.role, "yes" if cell.derived else "", column.dataset, column.to, column.benchmark,
                        "" if column.share is None else column.share,
                        "-" if cell.paper is None else f"{cell.paper:.1f}",
                        *_two(cell.ours), (len(cell.ours) or "") if row.trained else "",
                        "" if cell.difference is None else f"{cell.difference:.2f}",
                        " ".join(map(str, cell.last_epochs)), *(text for m in MEASURES for text in _two(cell.values(m))),
                        " ".join(map(str, cell.best_epochs)), cell.why,
                    )
                )  # fmt: skip
    return text.getvalue()


def _two(values: Sequence[float]) -> tuple[str, str]:
    """Mean and standard deviation, as far as there are any."""
    mean = f"{statistics.mean(values):.2f}" if values else ""
    return mean, f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""


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


def as_markdown(sheets: Sequence[Sheet], note: str = "") -> str:
    """Return the tables; a difference to the paper is marked ▲, ▼ or =, since Markdown has no colours.

    Below each stand top-5, balanced accuracy and the best epoch of its rows of ours and of controls.
    """
    marks = {"": "", "up": " ▲", "down": " ▼", "same": " ="}
    lines = [
        "# The paper's tables and ours",
        "",
        "Percent top-1, last epoch; mean ± standard deviation over runs.",
        *(["", f"In `runs/`, {note}."] if note else []),
    ]
    for one in sheets:
        lines += ["", f"## {one.heading}", "", _caption(one), "", *_ruled(one)]
        for row in one.rows:
            under = row.under if row.renamed else row.about
            label = f"{row.label}, {under}" if under else row.label
            cells = [plain(row.role, cell) + marks[cell.sense] for cell in row.cells]
            lines.append(_piped(f"**{label}**" if row.role == "pretrained" else label, cells))
        if one.derived:
            lines += ["", f"{MARK} {DERIVED}"]
        if beside := [row for row in one.rows if row.measures()]:
            lines += ["", f"{' / '.join((*MEASURES.values(), 'runs'))}:", "", *_ruled(one)]
            lines += [_piped(row.label, [_beside(row, cell) for cell in row.cells]) for row in beside]
        lines += ["", *(f"- empty or incomplete: {why}" for why in _reasons(one))]
    return "\n".join(lines).rstrip() + "\n"


def _caption(one: Sheet) -> str:
    return " ".join(filter(None, (one.caption, one.runs())))


def _ruled(one: Sheet) -> list[str]:
    return [_piped("", [column.title for column in one.columns]), "|---|" + "---:|" * len(one.columns)]


def _piped(label: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in (label, *cells)) + " |"


def _beside(row: SheetRow, cell: Shown) -> str:
    """`97.1 / 60.8 / 63.0 / 1`, a dash for what a protocol does not have; nothing in an empty cell."""
    if not cell.ours:
        return ""
    runs = str(len(cell.ours)) if row.trained else "-"
    return " / ".join((*(cell.beside(measure) or "-" for measure in MEASURES), runs)) + (
        f" {MARK}" if cell.mark else ""
    )


def _reasons(one: Sheet) -> list[str]:
    """Why cells are empty, each reason once with its number of cells."""
    found: dict[str, int] = {}
    for cell in (cell for row in one.rows for cell in row.cells if cell.why):
        found[cell.why] = found.get(cell.why, 0) + 1
    return [f"{shorten_paths(why)} ({count} cell{'s' if count > 1 else ''})" for why, count in found.items()]


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": "$^2$", "³": "$^3$", "±": r"$\pm$", "→": r"$\to$",
    "−": "$-$", MARK: r"$^\dagger$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def as_latex(sheets: Sequence[Sheet]) -> str:
    r"""Return `table` environments to `\input`; they need booktabs and xcolor, and colour the differences."""
    out = [
        "% top-1, last epoch; top-5, balanced accuracy and the best epoch are in paper.csv, .md and .html",
        "% needs \\usepackage{booktabs,xcolor}",
        "\\definecolor{c2vlup}{HTML}{12795A}", "\\definecolor{c2vldown}{HTML}{B03A2A}",
        "\\definecolor{c2vlsame}{HTML}{5D666F}",
    ]  # fmt: skip
    for one in sheets:
        out += ["", "\\begin{table}", f"\\caption{{{_tex(f'{one.heading}. {_caption(one)}')}}}"]
        out += ["\\centering", f"\\begin{{tabular}}{{l{'r' * len(one.columns)}}}", "\\toprule"]
        out.append(" & ".join(["", *(_tex(column.title) for column in one.columns)]) + r" \\ \midrule")
        for row in one.rows:
            cells = [_tex_cell(row.role, cell) for cell in row.cells]
            label = f"{row.label} (paper: {row.renamed})" if row.renamed else row.label
            out.append(" & ".join([_tex(label), *cells]) + r" \\")
        out += ["\\bottomrule", "\\end{tabular}"]
        out += [f"\\par\\smallskip{{\\footnotesize {_tex(f'{MARK} {DERIVED}')}}}"] if one.derived else []
        out.append("\\end{table}")
    return "\n".join(out) + "\n"


def _tex_cell(role: str, cell: Shown) -> str:
    if cell.paper is None or not cell.ours:
        return _tex(plain(role, cell))
    return f"{_tex(cell.mean)} ({cell.paper:.1f}, \\textcolor{{c2vl{cell.sense}}}{{{_tex(cell.points)}}})"


def as_html(
    sheets: Sequence[Sheet], shown: Sequence[dict[str, Any]], sets: Sequence[dict[str, Any]], note: str = ""
) -> str:
    """Return one page that needs nothing else."""
    cells = [cell for one in sheets for row in one.rows if row.trained for cell in row.cells]
    compared = [cell for cell in cells if cell.difference is not None]
    return render(
        "c2vl_evaluation.paper",
        "paper.html.j2",
        sheets=sheets,
        figures=shown,
        sets=sets,
        note=note,
        spoken=MEASURES,
        derived=DERIVED,
        reasons=_reasons,
        measured=sum(bool(cell.ours) for cell in cells),
        compared=len(compared),
        close=sum(abs(cell.difference or 0) <= 1 for cell in compared),
    )
