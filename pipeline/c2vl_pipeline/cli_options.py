"""What the commands of the factory have in common: options, the recipe they mean, and the processes of one call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import c2vl_manifests
from c2vl_manifests.cli_common import Reporter, say

if TYPE_CHECKING:
    from c2vl_manifests.events import Emit
    from c2vl_manifests.manifest import StageManifest
    from c2vl_manifests.recipe import Recipe
    from c2vl_pipeline.execution.workers import Workers
    from c2vl_pipeline.stages.base import Stage

WorkOption = Annotated[
    Path, typer.Option("--work", help="Folder for everything that is made from one dataset.")
]
# the files, not `datasets.dataset_names`: --help loads no pydantic
_DATASETS = sorted(
    p.stem for p in (Path(c2vl_manifests.__file__).parent / "data" / "datasets").glob("*.toml")
)
DatasetOption = Annotated[
    str, typer.Option("--dataset", help=f"{', '.join(_DATASETS)}; `generic` is for custom data.")
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


def recipe_of(
    work: Path,
    recipe: str | None,
    set_: list[str] | None,
    engine: str | None = None,
    stage: str | None = None,
) -> Recipe:
    """Resolve the recipe of a stage: as given, else as `index` was called, overrides included."""
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


class Call:
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

    def __enter__(self) -> Call:
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

        from c2vl_pipeline.execution import runner

        stage: Stage = importlib.import_module(f"c2vl_pipeline.stages.{module}").STAGE
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
        from c2vl_pipeline.execution.runner import default_workers

        count = default_workers(stage, self.work, recipe) if self._count is None else self._count
        if count == 0 and self._scheduler is None:
            return None
        from c2vl_pipeline.execution.workers import Workers  # dask takes a second to import

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
