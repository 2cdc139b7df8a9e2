"""`c2vl-pipeline`: parse, call, report. The stages themselves are one module each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, Reporter, SetOption, application, say, show_table
from c2vl_manifests.cli_common import main as run_app
from c2vl_pipeline import cli_maintenance
from c2vl_pipeline.cli_options import (
    AllowMissing,
    Call,
    DataOption,
    DatasetOption,
    EngineOption,
    FailuresOption,
    LayoutOption,
    LimitOption,
    OnlyPresent,
    OverwriteOption,
    ResourceOption,
    SchedulerOption,
    ShardLimit,
    WorkersOption,
    WorkOption,
    recipe_of,
)

if TYPE_CHECKING:
    from c2vl_pipeline.raw.check import Findings

app = application(
    "The prompt factory: raw videos and skeleton files in, packed training arrays out. Run the commands in the "
    "order below, or all of them with `prompts`. Every command goes on where it stopped."
)


@app.command()
def synth(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    classes: Annotated[int, typer.Option(min=2)] = 8,
    subjects: Annotated[int, typer.Option(min=2)] = 8,
    views: Annotated[int, typer.Option(min=1)] = 3,
    repeats: Annotated[int, typer.Option(min=1)] = 2,
    seed: int = 0,
    workers: WorkersOption = None,
) -> None:
    """Make a synthetic dataset in NTU RGB+D's format: videos and skeleton files of kinematic people."""
    import os

    from c2vl_pipeline.synthetic import dataset as maker

    with Reporter() as emit:
        maker.generate(
            out,
            classes=classes,
            subjects=subjects,
            views=views,
            repeats=repeats,
            seed=seed,
            workers=workers or os.cpu_count() or 1,
            emit=emit,
        )
    say(
        f"{classes * subjects * views * repeats} clips in {out}; next: c2vl-pipeline index --dataset synthetic --data {out} --work DIR"
    )


@app.command()
def index(
    dataset: DatasetOption,
    data: DataOption,
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: LayoutOption = None,
    allow_missing: AllowMissing = False,
    only_present: OnlyPresent = False,
    limit: LimitOption = None,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Also read archives and skeleton files whole: minutes, not seconds."),
    ] = False,
    set_: SetOption = None,
) -> None:
    """Check the raw folder against what the dataset promises and write one row a sample."""
    _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, set_, deep)


def _index(
    dataset: str,
    data: Path,
    work: Path,
    recipe: str | None,
    layout: str | None,
    allow_missing: bool,
    only_present: bool,
    limit: int | None,
    set_: list[str] | None,
    deep: bool = False,
) -> str:
    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.recipe_loading import load_recipe
    from c2vl_pipeline import workspace
    from c2vl_pipeline.raw import check
    from c2vl_pipeline.stages import index as stage

    spec = load_dataset(dataset)
    name = recipe or spec.default_recipe
    config = load_recipe(name, set_ or ()).pipeline
    try:
        made, found = stage.build(
            spec,
            data,
            work,
            config,
            recipe=name,
            overrides=set_ or (),
            layout=layout,
            allow_missing=allow_missing,
            only_present=only_present,
            limit=limit,
            deep=deep,
        )
    except check.DoubtfulError as error:
        _show_doubts(error.findings)
        raise
    rows = [
        ["samples promised", f"{found.promised:,}"],
        ["  with video", f"{found.with_video:,}"],
        ["  with skeleton file", f"{found.with_skeleton:,}"],
        ["  on the list of missing skeletons", f"{found.known_missing:,}"],
    ]
    expected = spec.expected.splits if spec.expected and limit is None and not only_present else {}
    for benchmark, counts in workspace.split_counts(made).items():
        promise = expected.get(benchmark)
        note = (
            ""
            if promise is None
            else "  as published"
            if promise == (counts["train"], counts["test"])
            else f"  published: {promise[0]:,} / {promise[1]:,}"
        )
        rows.append([f"{benchmark} train / test", f"{counts['train']:,} / {counts['test']:,}{note}"])
    show_table(f"{spec.title} in {data}", ["", "count"], rows)
    _show_doubts(found)
    for note in [*found.doubts(), *found.hints]:
        say(f"note: {note}")
    return name


def _show_doubts(found: Findings) -> None:
    """Say where most is missing, and name the first files of every kind of doubt."""
    if found.lacks:
        show_table("What is missing", ["", "by", "most"], [list(line) for line in found.lacks])
    for kind, names in found.named().items():
        for name in names[:5]:
            say(f"{kind}: {name}")
        if len(names) > 5:
            say(f"{kind}: … and {len(names) - 5:,} more")
    for note in found.notes():
        say(f"note: {note}")


@app.command()
def skeletons(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 0.05,
    overwrite: OverwriteOption = False,
    limit: ShardLimit = None,
    set_: SetOption = None,
) -> None:
    """Read and assemble the skeleton files: joints of the valid frames."""
    with Call(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("skeletons", recipe_of(work, recipe, set_), limit)


@app.command()
def crop(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 0.05,
    overwrite: OverwriteOption = False,
    limit: ShardLimit = None,
    set_: SetOption = None,
) -> None:
    """Decode 16 frames a sample and crop the person: the vision prompts."""
    with Call(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("crop", recipe_of(work, recipe, set_, engine, "crop"), limit)


@app.command()
def caption(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 0.05,
    overwrite: OverwriteOption = False,
    limit: ShardLimit = None,
    set_: SetOption = None,
) -> None:
    """Ask the paper's question about every crop: the language prompts."""
    with Call(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("caption", recipe_of(work, recipe, set_, engine, "caption"), limit)


@app.command()
def embed(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 0.05,
    overwrite: OverwriteOption = False,
    limit: ShardLimit = None,
    set_: SetOption = None,
) -> None:
    """Turn crops and captions into vectors."""
    with Call(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("embed", recipe_of(work, recipe, set_, engine, "embed"), limit)


@app.command()
def pack(
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            help="Pack joints in this layout instead, into packed-<layout>: for transfer across sensors.",
            show_default=False,
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Write the memory-mapped arrays that training reads."""
    from c2vl_pipeline.stages import pack as stage

    with Reporter() as emit:
        manifest = stage.run(work, recipe_of(work, recipe, set_), emit, layout)
    say(
        f"packed: {manifest.samples:,} samples, {manifest.frames:,} frames, {manifest.bodies} bodies "
        f"of {manifest.joint_layout().joints} joints in {stage.folder_of(work, layout)}"
    )


@app.command()
def prompts(
    dataset: DatasetOption,
    data: DataOption,
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: LayoutOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 0.05,
    overwrite: OverwriteOption = False,
    allow_missing: AllowMissing = False,
    only_present: OnlyPresent = False,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """All stages: index, skeletons, crop, caption, embed, pack."""
    name = _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, set_)
    resolved = recipe_of(work, name, set_)
    with Call(work, workers, scheduler, resource, max_failures, overwrite) as run:
        from c2vl_pipeline.workspace import COMMANDS

        for command in COMMANDS.values():
            run.stage(command, resolved)
    pack(work, name, set_=set_)


# after the commands that make something, in the order of the help page
app.command()(cli_maintenance.status)
app.command()(cli_maintenance.plan)
app.command()(cli_maintenance.verify)
app.command()(cli_maintenance.repair)
app.command("retry-failed")(cli_maintenance.retry_failed)
app.command()(cli_maintenance.inspect)
app.command()(cli_maintenance.explain)
app.command()(cli_maintenance.audit)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
