"""Shared parts of the commands: options, the recipe that applies, and the worker processes of one call."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import c2vl_manifests
from c2vl_manifests.cli_output import Reporter, next_steps, say
from c2vl_manifests.errors import one_line
from c2vl_manifests.events import Note

if TYPE_CHECKING:
    from c2vl_manifests.datasets import Dataset
    from c2vl_manifests.events import Emit
    from c2vl_manifests.manifest import StageManifest
    from c2vl_manifests.recipe import Recipe
    from c2vl_pipeline.execution.keys import Redo
    from c2vl_pipeline.execution.sharing import Share
    from c2vl_pipeline.execution.workers import Workers
    from c2vl_pipeline.stages.base import Stage

WorkOption = Annotated[Path, typer.Option("--work", help="Folder for everything that is made from one dataset.")]
# the files, not `datasets.dataset_names`: --help loads no pydantic
_DATASETS = sorted(p.stem for p in (Path(c2vl_manifests.__file__).parent / "data" / "datasets").glob("*.toml"))
DATASET = typer.Option("--dataset", help=f"{', '.join(_DATASETS)}; `generic` is for custom data.")
DATA = typer.Option("--data", help="Folder of the raw dataset, as downloaded and unpacked.")
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        help="Most worker processes (default: one per usable core; one per GPU for engines with weights); 0: this process, unprotected.",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Running Dask scheduler (tcp://host:8786) whose workers see the same folders.",
    ),
]
ResourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--resource",
        metavar="NAME=AMOUNT",
        help="What each task asks of a scheduler's worker, e.g. GPU=1; may be repeated.",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Also make rows again that another engine or configuration made.")
]
FailuresOption = Annotated[
    float,
    typer.Option(
        "--max-failures",
        min=0,
        max=1,
        help="Share of rows an engine may fail on before the stage stops; 1: even all, or all of one kind.",
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N samples.")]
ShardLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="Only the shards that hold the first N samples.")
]
ShareOption = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="K/N",
        help="Only the K-th of N shares of the shards, e.g. 3/8, while other processes make the others: for job arrays.",
    ),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", help="Engine preset or back-end to use instead of the recipe's.")
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", help="Custom data: joint layout by name, or a TOML file in the data folder.")
]
AllowMissing = Annotated[
    bool,
    typer.Option("--allow-missing", help="Continue although expected files are missing; their rows give the reason."),
]
OnlyPresent = Annotated[
    bool, typer.Option("--only-present", help="Expect only the samples that exist: part of a dataset.")
]


def recipe_of(
    work: Path, recipe: str | None, set_: list[str] | None, engine: str | None = None, stage: str | None = None
) -> Recipe:
    """Return the recipe of a stage: the given one, else the one of `index` with its overrides."""
    from c2vl_manifests.recipe_loading import engine_names, load_recipe
    from c2vl_pipeline.workspace import load

    overrides = list(set_ or ())
    if engine is not None:
        key = "engine" if engine in engine_names() else "engine.backend"
        overrides.insert(0, f"pipeline.{stage}.{key}={engine}")
    if recipe is None:
        index = load(work)
        recipe, overrides = index.recipe, [*index.overrides, *overrides]
    return load_recipe(recipe, overrides)


def recipe_for_index(work: Path, dataset: Dataset, recipe: str | None, set_: list[str] | None) -> tuple[str, list[str]]:
    """Return recipe and overrides of an index: the given ones, else those of the index it replaces, else the dataset's."""
    from c2vl_manifests.manifest import read_shard_manifest

    overrides = list(set_ or ())
    if recipe is not None:
        return recipe, overrides
    old = read_shard_manifest(work / "samples.parquet")
    if old is None or old.extra.get("dataset") != dataset.name:
        return dataset.default_recipe, overrides
    latest: dict[str, str] = {}
    for assignment in [*old.extra["overrides"], *overrides]:
        key = assignment.partition("=")[0].strip()
        latest.pop(key, None)  # a value given again is the last one
        latest[key] = assignment
    return old.extra["recipe"], list(latest.values())


@dataclass
class StageRunner:
    """Runs stages with the options of one command line, in worker processes that they share."""

    work: Path
    recipe: Recipe
    workers: int | None
    scheduler: str | None = None
    resource: list[str] | None = None
    max_failures: float = 0.05
    overwrite: bool = True
    share: str | None = None
    _stack: ExitStack = field(default_factory=ExitStack)
    _pool: Workers | None = None

    def __post_init__(self) -> None:
        self._resources = _resources(self.resource)
        self._share = _share(self.share)

    def __enter__(self) -> StageRunner:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def run(
        self,
        stage: Stage,
        only: frozenset[int] | None = None,
        redo: Redo | None = None,
        limit: int | None = None,
        place: str = "",
        following: str = "",
    ) -> None:
        """Run one stage and print the counts of its rows, `place` before them and, if all are made, `following` behind."""
        from c2vl_pipeline.execution.runner import run_stage

        with Reporter(place) as emit:
            manifest = run_stage(
                stage,
                self.work,
                self.recipe,
                workers=lambda: self._workers_for(stage, emit),
                limit=limit,
                only=only,
                share=self._share,
                redo=redo,
                max_failures=self.max_failures,
                overwrite=self.overwrite,
                emit=emit,
            )
        counts = ", ".join(f"{status} {n:,}" for status, n in manifest.statuses.items())
        unfinished = f"share {self._share} is done" if self._share else "unfinished"
        state = "all accounted for" if manifest.complete else unfinished
        made = f"{manifest.rows:,} of {manifest.expected_rows:,} rows, {state}: {counts}"
        if manifest.complete and _no_video(manifest):
            made = "left out, no sample has a video"
        say(f"{place}{manifest.stage}: {made}{following if manifest.complete else ''}")

    def _workers_for(self, stage: Stage, emit: Emit) -> Workers | None:
        """Return the processes for a stage; those of the stage before if as many are wanted."""
        from c2vl_pipeline.execution.runner import default_workers

        count = default_workers(stage, self.work, self.recipe) if self.workers is None else self.workers
        if self.scheduler is None and not (count and can_start_processes(emit)):
            return None
        from c2vl_pipeline.execution.workers import Workers  # dask takes a second to import

        if self._pool is None or self._pool.count != count:
            self._stack.close()
            self._pool = self._stack.enter_context(Workers(count, self.scheduler, self._resources))
        self._pool.emit = emit
        return self._pool


def _no_video(stage: StageManifest) -> bool:
    """True if the rows of a stage lack nothing but videos, of which the dataset has none here."""
    from c2vl_manifests.schema import Status

    return {*stage.statuses} == {Status.MISSING_VIDEO}


def look_and_train(work: Path, packed: Path) -> str:
    """Return the commands that follow when all stages are done."""
    from c2vl_manifests.manifest import read_stage_manifest

    crops = read_stage_manifest(work / "crops")
    language = ["--set", "training.pretrain.knowledge=language"] if crops and _no_video(crops) else []
    return next_steps(
        ["c2vl-pipeline", "inspect", "--work", work], ["c2vl-train", "pretrain", "--data", packed, *language]
    )


def can_start_processes(emit: Emit) -> bool:
    """True if this machine can start worker processes: they need semaphores and a folder for temporary files."""
    import multiprocessing
    import tempfile

    missing = "room for semaphores in /dev/shm"
    try:
        multiprocessing.get_context("spawn").Lock()
        missing = "a folder for temporary files: set TMPDIR"
        tempfile.gettempdir()
    except (OSError, ImportError) as error:
        text = f"worker processes need {missing} ({one_line(error)}); going on in this process alone, more slowly and unprotected"
        emit(Note(text, "warning"))
        return False
    return True


def _share(text: str | None) -> Share | None:
    from c2vl_pipeline.execution.sharing import Share

    if text is None:
        return None
    parts = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if parts is None or not 1 <= int(parts[1]) <= int(parts[2]):
        raise typer.BadParameter(
            f"{text!r} is not a share of the form K/N with K from 1 to N, e.g. 3/8 in a job array of 1-8",
            param_hint="--share",
        )
    return Share(int(parts[1]), int(parts[2]))


def _resources(options: list[str] | None) -> dict[str, float]:
    resources = {}
    for text in options or ():
        name, _, amount = text.partition("=")
        try:
            resources[name.strip()] = float(amount)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is not of the form NAME=AMOUNT, e.g. GPU=1", param_hint="--resource"
            ) from None
    return resources
