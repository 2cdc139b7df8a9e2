"""Write the paper's tables, with its numbers and ours, as CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from c2vl_evaluation.paper import figures as paper_figures
from c2vl_evaluation.paper.experiments import Experiments, TableCell
from c2vl_evaluation.paper.spec import tables_and_figures
from c2vl_evaluation.paper.tables import DERIVED, MARK, MEASURES, FilledCell, FilledRow, FilledTable, Measure, fill
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import portable, render, shorten_paths


def write(
    experiments: Experiments, cells: Sequence[TableCell], asked: Sequence[str] = (), *, fresh: bool = True
) -> Path:
    """Write all four files and return the path of the HTML page.

    Args:
        experiments: for the stored results and the output folder.
        cells: cells of all tables and figures.
        asked: names of tables and figures that the page begins with; the others are folded. All unless given.
        fresh: draw figures that were not drawn before; each takes seconds.
    """
    of: dict[str, list[TableCell]] = {}
    for cell in cells:
        of.setdefault(cell.table, []).append(cell)
    tables = [fill(experiments, name, of[name]) for name in of if name.startswith("table") or name == "figure6"]
    figures = _figures(experiments, of, fresh)
    note = unshown_note(experiments, cells)
    for name, text in (
        ("paper.csv", as_csv(tables)), ("paper.md", as_markdown(tables, note)), ("paper.tex", as_latex(tables)),
        ("paper.html", as_html(tables, figures, _datasets(experiments), note, asked)),
    ):  # fmt: skip
        commit_text(experiments.out / name, text)
    return experiments.out / "paper.html"


def unshown_note(experiments: Experiments, cells: Sequence[TableCell]) -> str:
    """Return a note on the finished trainings of the folder that no cell uses; empty if there are none."""
    if not (count := experiments.unshown_trainings(cells)):
        return ""
    return f"{count} finished training{'s are' if count > 1 else ' is'} of other settings, data or seeds and not shown"


def _figures(experiments: Experiments, of: dict[str, list[TableCell]], fresh: bool) -> list[dict[str, Any]]:
    figures = []
    for name, spec in tables_and_figures().items():
        if not name.startswith("figure"):
            continue
        for column in dict.fromkeys(cell.column for cell in of.get(name, ())):
            cells = [cell for cell in of[name] if cell.column == column]
            panels = [
                {"title": shorten_paths(panel.title), "svg": Markup(panel.svg)}
                for panel in paper_figures.draw(experiments, cells, fresh=fresh)
            ]
            caption = paper_figures.caption(cells)
            figures.append({"name": name, "spec": spec, "column": column, "caption": caption, "panels": panels})
    return figures


def _datasets(experiments: Experiments) -> list[dict[str, Any]]:
    """Return facts on the datasets and how their prompts were made."""
    facts = []
    unusable = experiments.unusable()
    for name, packed in experiments.datasets.items():
        m = packed.manifest
        engines = ", ".join(
            f"{stage}: {e.get('model') or e.get('backend')}" for stage, e in portable(m.engines).items()
        )
        recipe = f"not used ({shorten_paths(unusable[name])})" if name in unusable else experiments.recipe_of(name).name
        facts.append(
            {
                "name": name, "title": m.title, "samples": m.samples, "engines": engines, "recipe": recipe,
                "derived": m.derived_from_joints("language"),
            }
        )  # fmt: skip
    return facts


_FEW_CLIPS = 2000
"""Test clips of a set below which the page says their number: one clip is then a twentieth of a point or more."""

_CSV = (
    "table", "row", "paper_row", "role", "derived_from_joints", "dataset", "to", "benchmark", "share",
    "paper", "ours", "std", "runs", "difference", "last_epoch", "top5", "top5_std", "balanced", "balanced_std", "best_oracle", "best_oracle_std", "best_epochs",
    "why_empty",
)  # fmt: skip


def as_csv(tables: Sequence[FilledTable]) -> str:
    """Return one line per cell with everything that the other files show, for programs to read.

    `ours`, `top5` and `balanced` are of the last epoch. `best_oracle` is top-1 at the epoch that is best on the test
    split, `best_epochs` the number of that epoch in each run, and `paper_row` the paper's own name of a row.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(_CSV)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                out.writerow(
                    (
                        table.name, row.label, row.printed, row.role, "yes" if cell.derived else "",
                        column.dataset, column.to, column.benchmark,
                        "" if column.share is None else column.share,
                        "-" if cell.paper is None else f"{cell.paper:.1f}",
                        *_mean_and_std(cell.ours), (len(cell.ours) or "") if row.trained else "",
                        "" if cell.difference is None else f"{cell.difference:.2f}",
                        " ".join(map(str, cell.last_epochs)),
                        *(text for m in MEASURES for text in _mean_and_std(cell.values(m))),
                        " ".join(map(str, cell.best_epochs)), cell.why,
                    )
                )  # fmt: skip
    return text.getvalue()


def _mean_and_std(values: Sequence[float]) -> tuple[str, str]:
    """Return mean and standard deviation as text; empty if there are too few values."""
    mean = f"{statistics.mean(values):.2f}" if values else ""
    return mean, f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""


def plain(role: str, cell: FilledCell) -> str:
    """Return a cell as text: `84.4` of a peer, `61.2 (paper 84.4, −23.2)` of a computed one; empty without a number."""
    printed = "" if cell.paper is None else f"{cell.paper:.1f}"
    if role == "peer":
        return printed
    if not cell.ours:
        return f"(paper {printed})" if printed else ""
    if not printed:
        return cell.marked_text
    difference = f", {cell.signed_difference}" if cell.signed_difference else ""
    return f"{cell.marked_text} (paper {printed}{difference})"


def as_markdown(tables: Sequence[FilledTable], note: str = "") -> str:
    """Return the tables as Markdown; differences are marked ▲, ▼ or =, because Markdown has no colours.

    A second table below each shows the other measures of our rows and the controls.
    """
    marks = {"": "", "up": " ▲", "down": " ▼", "same": " ="}
    lines = [
        "# The paper's tables and ours",
        "",
        "Percent top-1, last epoch; mean ± standard deviation over runs.",
        *(["", f"In `runs/`, {note}."] if note else []),
    ]
    for table in tables:
        lines += ["", f"## {table.heading}", "", _caption(table), "", *_header(table)]
        for row in table.rows:
            remark = row.subtitle if row.other_name else row.about
            label = f"{row.label}, {remark}" if remark else row.label
            cells = [plain(row.role, cell) + marks[cell.direction] for cell in row.cells]
            lines.append(_line(f"**{label}**" if row.role == "pretrained" else label, cells))
        if table.derived:
            lines += ["", f"{MARK} {DERIVED}"]
        if measured := [row for row in table.rows if row.measures()]:
            of = table.measures()
            lines += ["", f"{' / '.join((*(MEASURES[measure] for measure in of), 'runs'))}:", "", *_header(table)]
            lines += [_line(row.label, [_measures(of, row, cell) for cell in row.cells]) for row in measured]
        lines += ["", *(f"- empty or incomplete: {why}" for why in _reasons(table))]
    return "\n".join(lines).rstrip() + "\n"


def _caption(table: FilledTable) -> str:
    return " ".join(filter(None, (table.caption, table.runs())))


def _header(table: FilledTable) -> list[str]:
    return [_line("", [column.title for column in table.columns]), "|---|" + "---:|" * len(table.columns)]


def _line(label: str, cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in (label, *cells)) + " |"


def _measures(of: Sequence[Measure], row: FilledRow, cell: FilledCell) -> str:
    """Return the measures of a cell as `97.1 / 60.8 / 63.0 / 1`, with a dash for one that the protocol lacks."""
    if not cell.ours:
        return ""
    runs = str(len(cell.ours)) if row.trained else "-"
    text = " / ".join((*(cell.text_of(measure) or "-" for measure in of), runs))
    return f"{text} {MARK}" if cell.mark else text


def _reasons(table: FilledTable) -> list[str]:
    """Return the reasons of empty cells, each once with the number of its cells."""
    counts = Counter(cell.why for row in table.rows for cell in row.cells if cell.why)
    return [f"{shorten_paths(why)} ({count} cell{'s' if count > 1 else ''})" for why, count in counts.items()]


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "²": "$^2$", "³": "$^3$", "±": r"$\pm$", "→": r"$\to$",
    "−": "$-$", MARK: r"$^\dagger$",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def as_latex(tables: Sequence[FilledTable]) -> str:
    r"""Return `table` environments for `\input`, with coloured differences; they need booktabs and xcolor."""
    out = [
        "% top-1, last epoch; the other measures are in paper.csv, .md and .html",
        "% needs \\usepackage{booktabs,xcolor}",
        "\\definecolor{c2vlup}{HTML}{12795A}", "\\definecolor{c2vldown}{HTML}{B03A2A}",
        "\\definecolor{c2vlsame}{HTML}{5D666F}",
    ]  # fmt: skip
    for table in tables:
        out += ["", "\\begin{table}", f"\\caption{{{_tex(f'{table.heading}. {_caption(table)}')}}}"]
        out += ["\\centering", f"\\begin{{tabular}}{{l{'r' * len(table.columns)}}}", "\\toprule"]
        out.append(" & ".join(["", *(_tex(column.title) for column in table.columns)]) + r" \\ \midrule")
        for row in table.rows:
            cells = [_tex_cell(row.role, cell) for cell in row.cells]
            label = f"{row.label} (paper: {row.other_name})" if row.other_name else row.label
            out.append(" & ".join([_tex(label), *cells]) + r" \\")
        out += ["\\bottomrule", "\\end{tabular}"]
        out += [f"\\par\\smallskip{{\\footnotesize {_tex(f'{MARK} {DERIVED}')}}}"] if table.derived else []
        out.append("\\end{table}")
    return "\n".join(out) + "\n"


def _tex_cell(role: str, cell: FilledCell) -> str:
    if cell.paper is None or not cell.ours:
        return _tex(plain(role, cell))
    difference = f"\\textcolor{{c2vl{cell.direction}}}{{{_tex(cell.signed_difference)}}}"
    return f"{_tex(cell.marked_text)} ({cell.paper:.1f}, {difference})"


def as_html(
    tables: Sequence[FilledTable],
    figures: Sequence[dict[str, Any]],
    datasets: Sequence[dict[str, Any]],
    note: str = "",
    asked: Sequence[str] = (),
) -> str:
    """Return one self-contained page, which begins with the tables and figures that were asked for."""
    tables = sorted(tables, key=lambda table: bool(asked) and table.name not in asked)
    figures = sorted(figures, key=lambda figure: bool(asked) and figure["name"] not in asked)
    cells = [cell for table in tables for row in table.rows if row.trained for cell in row.cells]
    compared = [cell for cell in cells if cell.difference is not None]
    return render(
        "c2vl_evaluation.paper",
        "paper.html.j2",
        tables=tables,
        figures=figures,
        datasets=datasets,
        note=note,
        asked=asked,
        few_clips=_FEW_CLIPS,
        measure_names=MEASURES,
        oracle=any("best" in table.measures() for table in tables),
        derived=DERIVED,
        reasons=_reasons,
        filled=sum(bool(cell.ours) for cell in cells),
        compared=len(compared),
        close=sum(abs(cell.difference or 0) <= 1 for cell in compared),
    )
