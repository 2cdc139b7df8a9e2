"""`c2vl-pipeline`: parse, call, report. The stages themselves are one module each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.terminal import RecipeOption, Reporter, SetOption, application, say, show_table
from c2vl_manifests.terminal import main as run_app

if TYPE_CHECKING:
    from c2vl_manifests.config import Recipe
    from c2vl_manifests.events import Emit
    from c2vl_manifests.manifest import StageManifest
    from c2vl_pipeline.findings import Findings
    from c2vl_pipeline.plan import StagePlan
    from c2vl_pipeline.stage import Stage
    from c2vl_pipeline.status import StageStatus
    from c2vl_pipeline.workers import Workers

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
        "--dataset",
        help="ntu60, ntu120, pku-mmd-1, pku-mmd-2, utd-mhad, msr-action3d, synthetic or generic (own data).",
    ),
]
DataOption = Annotated[
    Path, typer.Option("--data", help="Folder of the raw dataset, as downloaded and unpacked.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Worker processes (default: one a core; one a GPU for engines with weights); 0: this process, unprotected.",
        show_default=False,
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Running Dask scheduler (tcp://host:8786) whose workers see the same folders.",
        show_default=False,
    ),
]
ResourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--resource",
        metavar="NAME=AMOUNT",
        help="What each task asks of a scheduler's worker, e.g. GPU=1; may be repeated.",
        show_default=False,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Make rows again that another engine or configuration made.")
]
FailuresOption = Annotated[
    float,
    typer.Option(
        "--max-failures", min=0, max=1, help="Share of rows an engine may fail on before the stage stops."
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first so many samples.", show_default=False)
]
ShardLimit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Only the shards that hold the first so many samples.", show_default=False
    ),
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
    from c2vl_manifests.config import load_recipe
    from c2vl_manifests.datasets import load_dataset
    from c2vl_pipeline import index as stage

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
    except stage.DoubtfulError as error:
        _show_doubts(error.findings)
        raise
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


class _Run:
    """Options of one call that are the same for all its stages, and the worker processes they share."""

    def __init__(
        self,
        work: Path,
        workers: int | None,
        scheduler: str | None = None,
        resource: list[str] | None = None,
        max_failures: float = 0.05,
        overwrite: bool = True,
    ) -> None:
        self.work, self._count, self._scheduler, self._max_failures = work, workers, scheduler, max_failures
        self._overwrite = overwrite
        self._resources = _resources(resource)
        self._stack = ExitStack()
        self._open: Workers | None = None

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def stage(
        self,
        module: str,
        recipe: Recipe,
        limit: int | None = None,
        only: frozenset[int] | None = None,
        redo: Mapping[int, frozenset[str]] | None = None,
    ) -> StageManifest:
        """Run one stage and say what became of it."""
        import importlib

        from c2vl_pipeline import runner

        stage: Stage = importlib.import_module(f"c2vl_pipeline.{module}").STAGE
        with Reporter() as emit:
            manifest = runner.run(
                stage,
                self.work,
                recipe,
                workers=self._workers(stage, recipe, emit),
                limit=limit,
                only=only,
                redo=redo,
                max_failures=self._max_failures,
                overwrite=self._overwrite,
                emit=emit,
            )
        _say_stage(manifest)
        return manifest

    def _workers(self, stage: Stage, recipe: Recipe, emit: Emit) -> Workers | None:
        """Return the processes for a stage; those of the stage before where as many are wanted."""
        from c2vl_pipeline.runner import default_workers

        count = default_workers(stage, self.work, recipe) if self._count is None else self._count
        if count == 0 and self._scheduler is None:
            return None
        from c2vl_pipeline.workers import Workers  # dask takes a second to import

        if self._open is None or self._open.count != count:
            self._stack.close()
            self._open = self._stack.enter_context(Workers(count, self._scheduler, self._resources))
        self._open.emit = emit
        return self._open


def _resources(given: list[str] | None) -> dict[str, float]:
    found = {}
    for text in given or ():
        name, _, amount = text.partition("=")
        try:
            found[name.strip()] = float(amount)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not of the form NAME=AMOUNT, e.g. GPU=1", param_hint="--resource"
            ) from None
    return found


def _say_stage(manifest: StageManifest) -> None:
    counts = ", ".join(f"{status} {n:,}" for status, n in manifest.statuses.items())
    state = "all accounted for" if manifest.complete else "unfinished"
    say(f"{manifest.stage}: {manifest.rows:,} of {manifest.expected_rows:,} rows, {state}: {counts}")


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
    with _Run(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("skeletons", _recipe(work, recipe, set_), limit)


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
    with _Run(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("crop", _recipe(work, recipe, set_, engine, "crop"), limit)


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
    with _Run(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("caption", _recipe(work, recipe, set_, engine, "caption"), limit)


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
    with _Run(work, workers, scheduler, resource, max_failures, overwrite) as run:
        run.stage("embed", _recipe(work, recipe, set_, engine, "embed"), limit)


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
    from c2vl_pipeline import pack as stage

    with Reporter() as emit:
        manifest = stage.run(work, _recipe(work, recipe, set_), emit, layout)
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
    resolved = _recipe(work, name, set_)
    with _Run(work, workers, scheduler, resource, max_failures, overwrite) as run:
        from c2vl_pipeline.stage import COMMANDS

        for command in COMMANDS.values():
            run.stage(command, resolved)
    pack(work, name, set_=set_)


@app.command()
def status(
    work: WorkOption,
    recipe: RecipeOption = None,
    why: Annotated[bool, typer.Option("--why", help="Say for each stage why shards are not done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Say of each stage what is done, what is stale, and what became of every row.

    Exit code 0 when every expected row of every stage is accounted for, 1 when something is still to do.
    """
    from c2vl_pipeline import plan
    from c2vl_pipeline.status import survey

    found = survey(work, _recipe(work, recipe, set_))
    planned = plan.read(work)
    if as_json:
        say(json.dumps([entry.as_dict() for entry in found], indent=1))
    else:
        foreseen = {s.stage: s for s in planned.stages} if planned else {}
        rows = [
            [
                e.stage,
                e.state,
                f"{e.shards_done}/{e.shards}",
                f"{e.rows:,}/{e.expected_rows:,}",
                e.counts(),
                f"{e.seconds:,.0f} s",
                *([_foreseen(foreseen, e)] if planned else []),
            ]
            for e in found
        ]
        columns = ["stage", "state", "shards", "rows", "statuses", "work time"]
        show_table(f"{work}", [*columns, *(["planned"] if planned else [])], rows)
        for entry in found if why else ():
            for reason, shards in entry.why.items():
                say(f"{entry.stage}: {shards:,} shard{'s' if shards > 1 else ''}: {reason}")
    if any(e.state != "complete" for e in found):
        raise typer.Exit(1)


def _foreseen(foreseen: Mapping[str, StagePlan], entry: StageStatus) -> str:
    """Say what `plan` expected of the samples that a stage has done, in the same unit as its work time."""
    plan = foreseen.get(entry.stage)
    if plan is None or not plan.samples or not entry.expected_rows:
        return ""
    samples = plan.samples * entry.rows / entry.expected_rows
    return f"{samples * plan.sample_seconds:,.0f} s"


@app.command()
def plan(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes the run will have.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="How long to probe.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    set_: SetOption = None,
) -> None:
    """Probe the stages on a few samples and estimate time, GPU-hours and disk of the rest.

    Exit code 1 when the disk will not do.
    """
    from c2vl_pipeline import plan as planner

    with Reporter() as emit:
        made = planner.estimate(
            work, _recipe(work, recipe, set_), seconds=seconds, workers=workers, emit=emit
        )
    if as_json:
        say(made.model_dump_json(indent=1))
    else:
        rows = [
            [
                s.stage,
                f"{s.samples:,}",
                f"{s.probed}",
                f"{1000 * s.sample_seconds:,.1f} ms",
                f"{s.workers}",
                _duration(s.seconds),
                f"{s.gpu_hours:,.1f}",
                f"{s.bytes / 1e9:,.2f} GB",
            ]
            for s in made.stages
        ]
        total = sum(s.seconds for s in made.stages)
        rows.append(
            [
                "all",
                "",
                "",
                "",
                "",
                _duration(total),
                f"{sum(s.gpu_hours for s in made.stages):,.1f}",
                f"{sum(s.bytes for s in made.stages) / 1e9:,.2f} GB",
            ]
        )
        show_table(
            f"{work}: {made.all_samples:,} samples",
            ["stage", "to do", "probed", "a sample", "workers", "wall time", "GPU-hours", "disk"],
            rows,
            caption="Extrapolated from one process; workers are taken to scale, and GPUs to be this machine's.",
        )
    problem = made.problem()
    if problem:
        say(f"warning: {problem}")
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


RawOption = Annotated[
    bool, typer.Option("--raw", help="Hash the raw files again too, and compare with what was read.")
]


@app.command()
def verify(
    work: WorkOption,
    raw: RawOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of lines.")] = False,
) -> None:
    """Read every committed byte and compare it with the manifests. Exit code 1 when anything is damaged."""
    from c2vl_pipeline import verify as checks

    with Reporter() as emit:
        found = checks.verify(work, raw=raw, emit=emit)
    if as_json:
        say(json.dumps([damage.as_dict() for damage in found], indent=1))
    else:
        for damage in found:
            say(f"{damage.stage}: {damage.path} {damage.problem}")
        if any(damage.stage == "index" for damage in found):
            say(f"{len(found)} damaged; run `c2vl-pipeline index` again first, then verify again")
        elif found:
            mend = f"c2vl-pipeline repair --work {work}{' --raw' if raw else ''}"
            say(f"{len(found)} damaged; mend with: {mend}")
        else:
            say(f"{work}: everything is as it was committed")
    if found:
        raise typer.Exit(1)


@app.command()
def repair(
    work: WorkOption,
    recipe: RecipeOption = None,
    raw: RawOption = False,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    set_: SetOption = None,
) -> None:
    """Make what `verify` finds damaged again, and nothing else."""
    from c2vl_pipeline import verify as checks

    with Reporter() as emit:
        found = checks.verify(work, raw=raw, emit=emit)
    for damage in found:
        say(f"{damage.stage}: {damage.path} {damage.problem}")
    if not found:
        say(f"{work}: everything is as it was committed")
        return
    resolved = _recipe(work, recipe, set_)
    with _Run(work, workers, scheduler, resource) as run:
        checks.repair(
            work,
            resolved,
            found,
            lambda command, only, redo: run.stage(command, resolved, only=only, redo=redo),
        )
    left = checks.verify(work, raw=raw)
    for damage in left:
        say(f"still damaged: {damage.path} {damage.problem}")
    if left:
        raise typer.Exit(1)
    say(f"repaired {len(found)}; {work} is whole again (`c2vl-pipeline status` says whether to pack again)")


@app.command("retry-failed")
def retry_failed(
    work: WorkOption,
    recipe: RecipeOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    resource: ResourceOption = None,
    max_failures: FailuresOption = 1.0,
    set_: SetOption = None,
) -> None:
    """Try the samples with failed or undecodable rows again, and bring the later stages up to date."""
    from c2vl_pipeline import verify as checks

    resolved = _recipe(work, recipe, set_)
    with _Run(work, workers, scheduler, resource, max_failures) as run:
        tried = checks.retry(work, resolved, lambda command, redo: run.stage(command, resolved, redo=redo))
    if not tried:
        say(f"{work}: no row has failed or could not be decoded; nothing to try again")
        return
    for stage, samples in tried.items():
        left = sum(len(ids) for ids in checks.failed_samples(work, stage).values())
        fate = f"{left:,} failed again" if left else "none failed again"
        say(
            f"{stage}: {samples:,} sample{'s' if samples > 1 else ''} tried again, {fate}"
            if samples
            else f"{stage}: brought up to date"
        )
    if (work / "packed").is_dir():
        say(f"`c2vl-pipeline status --work {work}` says whether to pack again")


@app.command()
def chaos(
    work: WorkOption,
    kills: Annotated[int, typer.Option("--kills", min=0, help="SIGKILLs in all.")] = 20,
    seed: int = 0,
    limit: LimitOption = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Worker processes of each stage.")] = 2,
    garbage: Annotated[int, typer.Option("--garbage", min=0, help="Raw files to replace by garbage.")] = 2,
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the report as JSON.", show_default=False)
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option("--scratch", help="Where to make the copy.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the copy.")] = False,
    set_: SetOption = None,
) -> None:
    """Run a copy of all stages under kills, damaged files and a full disk; its rows must equal a clean run's.

    The given work folder and raw data are only read. Exit code 0 if nothing was lost, doubled, or changed without
    a word.
    """
    from c2vl_manifests.manifest import commit_text
    from c2vl_pipeline import chaos as storm
    from c2vl_pipeline.chaos_report import TABLE

    with Reporter() as emit:
        report = storm.run(
            work,
            kills=kills,
            seed=seed,
            limit=limit,
            workers=workers,
            garbage=garbage,
            overrides=set_ or [],
            scratch=scratch,
            keep=keep,
            emit=emit,
        )
    title = (
        f"{len(report.kills)} kills, {report.damages.total()} damages, {len(report.garbage)} files of garbage"
    )
    show_table(title, list(TABLE), report.table())
    for line in report.lines():
        say(line)
    if out is not None:
        commit_text(out, json.dumps(report.as_dict(), indent=1) + "\n")
    if not report.held:
        raise typer.Exit(1)


OutOption = Annotated[
    Path | None,
    typer.Option("--out", help="HTML file to write (default: in the work folder).", show_default=False),
]


@app.command()
def inspect(
    work: WorkOption,
    out: OutOption = None,
    status: Annotated[
        str | None,
        typer.Option(help="A row has it in any stage: no_person, captions:failed, not-ok (all but ok) ..."),
    ] = None,
    sample: Annotated[
        list[str] | None, typer.Option(help="Id, or a pattern with * and ?; may be repeated.")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", help="Name of a class, or its 0-based number.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Such as xsub:test.")] = None,
    subject: int | None = None,
    camera: Annotated[str | None, typer.Option(help="Camera of the index, or the number of a view.")] = None,
    shard: int | None = None,
    text: Annotated[str | None, typer.Option(help="A caption holds it, in any case.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most so many samples.")] = 48,
    seed: Annotated[int | None, typer.Option(min=0, help="Show random ones, not the first.")] = None,
) -> None:
    """Write an offline gallery of any slice: crops, captions, and what became of them."""
    from c2vl_pipeline import inspect as pages

    filters = pages.Filters(
        status=status,
        samples=tuple(sample or ()),
        label=label,
        split=split,
        subject=subject,
        camera=camera,
        shard=shard,
        text=text,
    )
    made = pages.gallery(work, out or work / "inspect.html", filters, limit=limit, seed=seed)
    say(f"{made.shown:,} of {made.matched:,} samples that match ({filters.words()}), of {made.total:,}")
    for note in made.notes:
        say(f"note: {note}")
    say(str(made.path))


@app.command()
def explain(
    sample_id: Annotated[str, typer.Argument(metavar="SAMPLE_ID", show_default=False)],
    work: WorkOption,
    out: OutOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
) -> None:
    """Follow one sample from its raw files to its vectors: every frame, engine and configuration involved."""
    from c2vl_pipeline import explain as pages

    found = pages.trace(work, sample_id)
    path = pages.write(found, out or work / pages.page_name(sample_id))
    if as_json:
        say(json.dumps({**found.facts, "page": str(path)}, indent=1, ensure_ascii=False))
        return
    for line in pages.outline(found.facts):
        say(line)
    say(str(path))


@app.command()
def audit(
    work: WorkOption,
    out: OutOption = None,
    released: Annotated[
        Path | None,
        typer.Option(
            help="Captions the authors released (.json or .zip), to compare with.", show_default=False
        ),
    ] = None,
    check: Annotated[
        int, typer.Option(min=1, help="Samples whose joints are compared with their crops.")
    ] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of their choice, and of the shuffled control.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Audit crops and captions on one offline page: joints inside, vocabulary, repeats, contradictions, agreement."""
    from c2vl_pipeline import audit as pages

    found = pages.measure(work, released, check=check, seed=seed)
    path = pages.write(found, out or work / "audit.html")
    if as_json:
        say(json.dumps({**found.as_dict(), "page": str(path)}, indent=1, ensure_ascii=False))
        return
    for line in [*found.summary(), *(f"note: {note}" for note in found.notes)]:
        say(line)
    say(str(path))


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
