"""Command `c2vl-eval paper`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, SetOption, optional
from c2vl_manifests.cli_output import Reporter, link, say, show_table

if TYPE_CHECKING:
    from c2vl_evaluation.paper.compute import Workload
    from c2vl_evaluation.paper.experiments import Experiments, TableCell


_MANY = 20
"""Trainings for which a smaller way is offered."""


def paper(
    work: Annotated[
        Path, typer.Option("--work", help="Folder whose subfolders are work folders with packed datasets.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of runs, tables and figures.")] = Path("runs/paper"),
    only: Annotated[
        list[str] | None,
        optional("--only", "table1 to table8 or figure4 to figure8; may be repeated, or joined by commas."),
    ] = None,
    recipe: RecipeOption = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs per row: seeds 0, 1, …; further finished seeds are shown too.")
    ] = 1,
    wide: Annotated[
        bool, typer.Option("--wide", help="Fill every table for every dataset, even where the paper has no number.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what is to be computed, and stop.")] = False,
    set_: SetOption = None,
) -> None:
    """Tables I-VIII and Figures 4-8 of the paper on every available dataset, next to the paper's numbers."""
    from c2vl_evaluation.paper.compute import compute, workload
    from c2vl_evaluation.paper.experiments import Experiments, find_datasets
    from c2vl_evaluation.paper.export import unshown_note, write
    from c2vl_evaluation.paper.spec import tables_and_figures
    from c2vl_manifests.errors import C2VLError

    names = list(tables_and_figures())
    chosen = _chosen(names, only)
    with Reporter() as emit:
        datasets = find_datasets(work, emit)
    experiments = Experiments(datasets, out, recipe, tuple(set_ or ()), seeds, wide)
    _show_unusable(experiments)
    cells = experiments.cells(chosen)
    # results of earlier calls stay in the files, more seeds included, and their times give the estimate
    all_cells = experiments.cells(names, finished=True)
    _show_workload(experiments, workload(experiments, cells, all_cells))
    if note := unshown_note(experiments, all_cells):
        say(f"{out / 'runs'}: {note}")
    if dry_run:
        return
    complete = False
    try:
        with Reporter() as emit:
            compute(experiments, cells, emit)
        complete = True
    finally:
        # after Ctrl-C or a fault nothing is drawn: the user waits for the prompt
        path = write(experiments, all_cells, chosen if only else (), fresh=complete)
    say(f"tables and figures: {link(path)} (and .md, .tex, .csv)")
    _show(experiments, [name for name in chosen if name.startswith("table") or name == "figure6"], all_cells)
    if experiments.failed:
        raise C2VLError(
            f"{len(experiments.failed)} of the trainings and evaluations failed, first: {next(iter(experiments.failed.values()))}"
        )


def _chosen(names: list[str], only: list[str] | None) -> list[str]:
    """Return the tables and figures that `--only` names, in the paper's order."""
    from c2vl_manifests.errors import ConfigError

    asked = [word.strip().lower() for text in only or () for word in text.split(",") if word.strip()]
    for word in asked:
        if word not in names:
            raise ConfigError(f"--only {word!r} is unknown; expected one of {', '.join(names)}")
    return [name for name in names if not asked or name in asked]


def _show_unusable(experiments: Experiments) -> None:
    """Print which datasets are left out.

    Raises:
        ConfigError: all are left out, most often because of --recipe or --set.
    """
    from c2vl_manifests.errors import ConfigError

    unusable = experiments.unusable()
    if len(unusable) == len(experiments.datasets):
        raise ConfigError(next(iter(unusable.values())))
    for name, why in unusable.items():
        say(f"{name} is left out: {why}")


def _show_workload(experiments: Experiments, work: Workload) -> None:
    """Print what is to be computed: a sentence, a smaller way where it is much, and a table."""
    said = f"{work.trainings} trainings and {work.evaluations} evaluations to do: {work.time()}"
    less = ["name tables by --only table7"] if len(work.tallies) > 1 else []
    if any(
        experiments.recipe_of(name).name == "paper" for name in experiments.datasets.keys() - experiments.unusable()
    ):
        less.append("take the small recipe by --recipe small")
    say(said + (f"; for less, {' or '.join(less)}" if less and work.trainings > _MANY else ""))
    rows = [[t.table, str(t.todo), str(t.finished), str(t.impossible)] for t in work.tallies]
    impossible = "; ".join(f"{why} ({count})" for why, count in work.impossible.items())
    show_table(
        f"datasets: {', '.join(experiments.datasets)}",
        ["", "cells to compute", "finished", "not possible"],
        rows,
        f"Not possible: {impossible}." if impossible else None,
    )


def _show(experiments: Experiments, names: list[str], cells: list[TableCell]) -> None:
    """Print the tables with at least one computed result."""
    from c2vl_evaluation.paper.export import plain
    from c2vl_evaluation.paper.tables import DERIVED, MARK, fill

    for name in names:
        table = fill(experiments, name, [cell for cell in cells if cell.table == name])
        filled = [n for n in range(len(table.columns)) if any(row.cells[n].ours for row in table.rows if row.trained)]
        rows = [
            [row.label, *(plain(row.role, row.cells[n]) for n in filled)]
            for row in table.rows
            if any(row.cells[n].ours for n in filled)
        ]
        if rows:
            title = f"{table.name}: {table.title}, top-1, %"
            note = f"{MARK} {DERIVED}" if table.derived else None
            show_table(title, ["", *(table.columns[n].title for n in filled)], rows, note)
