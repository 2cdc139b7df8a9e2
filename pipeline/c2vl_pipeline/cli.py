"""`c2vl-pipeline`: parse, call, report. The stages themselves are one module each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.terminal import RecipeOption, Reporter, SetOption, application, say, show_table
from c2vl_manifests.terminal import main as run_app

if TYPE_CHECKING:
    from c2vl_manifests.config import Recipe
    from c2vl_manifests.manifest import StageManifest

app = application(
    "The prompt factory: raw videos and skeleton files in, packed training arrays out. Run the commands in the "
    "order below, or all of them with `prompts`. Every command goes on where it stopped."
)

WorkOption = Annotated[
    Path, typer.Option("--work", help="Folder for everything that is made from one dataset.")
]
DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset", help="ntu60, ntu120, pku-mmd-1, pku-mmd-2, utd-mhad, synthetic or generic (own data)."
    ),
]
DataOption = Annotated[
    Path, typer.Option("--data", help="Folder of the raw dataset, as downloaded and unpacked.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Processes (default: one a core; 1 for engines with weights).",
        show_default=False,
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many samples.", show_default=False)
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine", help="Engine preset or back-end to use instead of the recipe's.", show_default=False
    ),
]
LayoutOption = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="Own data: joint layout by name, or a TOML file in the data folder.",
        show_default=False,
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Go on where promised files are missing; their rows say so.")
]
OnlyPresent = Annotated[
    bool, typer.Option("--only-present", help="Promise only the samples that are there: part of a dataset.")
]


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

    from c2vl_pipeline import synth as maker

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
    set_: SetOption = None,
) -> None:
    """Check the raw folder against what the dataset promises and write one row a sample."""
    _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, set_)


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
) -> str:
    from c2vl_manifests.config import load_recipe
    from c2vl_manifests.datasets import load_dataset
    from c2vl_pipeline import index as stage

    spec = load_dataset(dataset)
    name = recipe or spec.default_recipe
    config = load_recipe(name, set_ or ()).pipeline
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
    )
    rows = [
        ["samples promised", f"{found.promised:,}"],
        ["  with video", f"{found.with_video:,}"],
        ["  with skeleton file", f"{found.with_skeleton:,}"],
        ["  on the list of missing skeletons", f"{found.known_missing:,}"],
    ]
    expected = spec.expected.splits if spec.expected and limit is None and not only_present else {}
    for benchmark, counts in stage.split_counts(made).items():
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
    for doubt in found.doubts():
        say(f"note: {doubt}")
    return name


def _recipe(
    work: Path,
    recipe: str | None,
    set_: list[str] | None,
    engine: str | None = None,
    stage: str | None = None,
) -> Recipe:
    """Resolve the recipe of a stage: as given, else as `index` was called, overrides included."""
    from c2vl_manifests.config import engine_names, load_recipe
    from c2vl_pipeline.index import load

    overrides = list(set_ or ())
    if engine is not None:
        key = "engine" if engine in engine_names() else "engine.backend"
        overrides.insert(0, f"pipeline.{stage}.{key}={engine}")
    if recipe is None:
        index = load(work)
        recipe, overrides = index.recipe, [*index.overrides, *overrides]
    return load_recipe(recipe, overrides)


def _stage(
    module: str,
    work: Path,
    recipe: str | None,
    workers: int | None,
    limit: int | None,
    engine: str | None,
    set_: list[str] | None,
) -> None:
    import importlib
    import os

    from c2vl_pipeline import runner
    from c2vl_pipeline.index import load

    stage: runner.Stage = importlib.import_module(f"c2vl_pipeline.{module}").STAGE
    resolved = _recipe(work, recipe, set_, engine, stage.command)
    if workers is None:
        heavy = stage.engine is not None and stage.engine(resolved, load(work)).backend == "hf"
        workers = 1 if heavy else os.cpu_count() or 1
    with Reporter() as emit:
        manifest = runner.run(stage, work, resolved, workers=workers, limit=limit, emit=emit)
    _say_stage(manifest)


def _say_stage(manifest: StageManifest) -> None:
    counts = ", ".join(f"{status} {n:,}" for status, n in manifest.statuses.items())
    state = "all accounted for" if manifest.complete else "unfinished"
    say(f"{manifest.stage}: {manifest.rows:,} of {manifest.expected_rows:,} rows, {state}: {counts}")


@app.command()
def skeletons(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """Read and assemble the skeleton files: joints of the valid frames."""
    _stage("skeletons", work, recipe, workers, limit, None, set_)


@app.command()
def crop(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """Decode 16 frames a sample and crop the person: the vision prompts."""
    _stage("crop", work, recipe, workers, limit, engine, set_)


@app.command()
def caption(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """Ask the paper's question about every crop: the language prompts."""
    _stage("caption", work, recipe, workers, limit, engine, set_)


@app.command()
def embed(
    work: WorkOption,
    recipe: RecipeOption = None,
    engine: EngineOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """Turn crops and captions into vectors."""
    _stage("embed", work, recipe, workers, limit, engine, set_)


@app.command()
def pack(work: WorkOption, recipe: RecipeOption = None, set_: SetOption = None) -> None:
    """Write the memory-mapped arrays that training reads."""
    from c2vl_pipeline import pack as stage

    with Reporter() as emit:
        manifest = stage.run(work, _recipe(work, recipe, set_), emit)
    say(
        f"packed: {manifest.samples:,} samples, {manifest.frames:,} frames, {manifest.bodies} bodies in {work / 'packed'}"
    )


@app.command()
def prompts(
    dataset: DatasetOption,
    data: DataOption,
    work: WorkOption,
    recipe: RecipeOption = None,
    layout: LayoutOption = None,
    workers: WorkersOption = None,
    allow_missing: AllowMissing = False,
    only_present: OnlyPresent = False,
    limit: LimitOption = None,
    set_: SetOption = None,
) -> None:
    """All stages: index, skeletons, crop, caption, embed, pack."""
    name = _index(dataset, data, work, recipe, layout, allow_missing, only_present, limit, set_)
    for module in ("skeletons", "crop", "caption", "embed"):
        _stage(module, work, name, workers, None, None, set_)
    pack(work, name, set_)


@app.command()
def status(
    work: WorkOption,
    recipe: RecipeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Say of each stage what is done, what is stale, and what became of every row.

    Exit code 0 when every expected row of every stage is accounted for, 1 when something is still to do.
    """
    from c2vl_pipeline.status import survey

    found = survey(work, _recipe(work, recipe, set_))
    if as_json:
        say(json.dumps([entry.as_dict() for entry in found], indent=1))
    else:
        rows = [
            [
                e.stage,
                e.state,
                f"{e.shards_done}/{e.shards}",
                f"{e.rows:,}/{e.expected_rows:,}",
                e.counts(),
                f"{e.seconds:,.0f} s",
            ]
            for e in found
        ]
        show_table(f"{work}", ["stage", "state", "shards", "rows", "statuses", "time"], rows)
    if any(e.state != "complete" for e in found):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
