"""`c2vl-eval paper`: parse, plan, compute, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, Reporter, SetOption, say, show_table

if TYPE_CHECKING:
    from c2vl_evaluation.paper.compute import Plan
    from c2vl_evaluation.paper.experiments import Cell, Lab


def paper(
    work: Annotated[
        Path, typer.Option("--work", help="Folder whose subfolders are work folders with packed datasets.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of runs, tables and figures.")] = Path(
        "runs/paper"
    ),
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="table1 to table8 or figure4 to figure8; may be repeated, or joined by commas.",
            show_default=False,
        ),
    ] = None,
    recipe: RecipeOption = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", min=1, help="Runs a line: seeds 0, 1, …; later ones that are finished are shown too."
        ),
    ] = 1,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide", help="Every table on every dataset, also where the paper has no number of it."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "--plan-only", help="Say what there is to do, and stop.")
    ] = False,
    set_: SetOption = None,
) -> None:
    """Tables I-VIII and Figures 4-8 of the paper over every dataset that is there, beside the paper's numbers."""
    from c2vl_evaluation.paper.compute import compute, plan
    from c2vl_evaluation.paper.experiments import Lab, find_sets
    from c2vl_evaluation.paper.export import unshown, write
    from c2vl_evaluation.paper.spec import everything
    from c2vl_manifests.errors import C2VLError

    names = list(everything())
    chosen = _chosen(names, only)
    with Reporter() as emit:
        found = find_sets(work, emit)
    lab = Lab(found, out, recipe, tuple(set_ or ()), seeds, wide)
    _show_unusable(lab)
    cells = lab.cells(chosen)
    # what other calls finished stays in the files, further seeds too, and tells the time
    whole = lab.cells(names, finished=True)
    _show_plan(lab, plan(lab, cells, whole))
    if note := unshown(lab, whole):
        say(f"{out / 'runs'}: {note}")
    if dry_run:
        return
    complete = False
    try:
        with Reporter() as emit:
            compute(lab, cells, emit)
        complete = True
    finally:
        # nothing is drawn after Ctrl-C or a fault: whoever interrupts is waiting
        path = write(lab, whole, fresh=complete)
    say(f"tables and figures: {path.resolve()} (and .md, .tex, .csv)")
    _show(lab, [name for name in chosen if name.startswith("table") or name == "figure6"], whole)
    if lab.failed:
        raise C2VLError(
            f"{len(lab.failed)} of the trainings and evaluations failed, first: {next(iter(lab.failed.values()))}"
        )


def _chosen(names: list[str], only: list[str] | None) -> list[str]:
    """Return what was asked for, in the paper's order."""
    from c2vl_manifests.errors import ConfigError

    asked = [word.strip().lower() for text in only or () for word in text.split(",") if word.strip()]
    for word in asked:
        if word not in names:
            raise ConfigError(f"--only {word!r} is none of {', '.join(names)}")
    return [name for name in names if not asked or name in asked]


def _show_unusable(lab: Lab) -> None:
    """Say which datasets are left out.

    Raises:
        ConfigError: all of them are; most often a word of --recipe or --set.
    """
    from c2vl_manifests.errors import ConfigError

    unusable = lab.unusable()
    if len(unusable) == len(lab.sets):
        raise ConfigError(next(iter(unusable.values())))
    for name, why in unusable.items():
        say(f"{name} is left out: {why}")


def _show_plan(lab: Lab, found: Plan) -> None:
    rows = [[t.table, str(t.todo), str(t.finished), str(t.impossible)] for t in found.tallies]
    absent = "; ".join(f"{why} ({count})" for why, count in found.absent.items())
    show_table(
        f"datasets: {', '.join(lab.sets)}",
        ["", "cells to compute", "finished", "not possible"],
        rows,
        f"Not possible: {absent}." if absent else None,
    )
    say(f"{found.trainings} trainings and {found.evaluations} evaluations to do: {found.time()}")


def _show(lab: Lab, names: list[str], cells: list[Cell]) -> None:
    from c2vl_evaluation.paper.export import plain
    from c2vl_evaluation.paper.tables import DERIVED, MARK, sheet

    for name in names:
        one = sheet(lab, name, [cell for cell in cells if cell.table == name])
        filled = [
            n for n in range(len(one.columns)) if any(row.cells[n].ours for row in one.rows if row.trained)
        ]
        rows = [
            [row.label, *(plain(row.role, row.cells[n]) for n in filled)]
            for row in one.rows
            if any(row.cells[n].ours for n in filled)
        ]
        if rows:
            title = f"{one.name}: {one.title}, top-1, %"
            note = f"{MARK} {DERIVED}" if one.derived else None
            show_table(title, ["", *(one.columns[n].title for n in filled)], rows, note)
