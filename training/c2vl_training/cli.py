"""`c2vl-train`: parse, call, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.terminal import RecipeOption, Reporter, SetOption, application, say
from c2vl_manifests.terminal import main as run_app

if TYPE_CHECKING:
    from c2vl_training.trainer import Kind

app = application("Train skeleton encoders on packed data. A killed run goes on from its last checkpoint.")

DataOption = Annotated[
    Path,
    typer.Option("--data", help="Folder that `c2vl-pipeline pack` wrote (or the work folder around it)."),
]
BenchmarkOption = Annotated[str, typer.Option("--benchmark", help="xsub, xview, xset, or one of your own.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder of the run.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]


def _train(
    kind: Kind, data: Path, benchmark: str, out: Path, recipe: str | None, seed: int, set_: list[str] | None
) -> None:
    from c2vl_manifests.config import load_recipe
    from c2vl_manifests.datasets import load_dataset
    from c2vl_training.data import Packed
    from c2vl_training.trainer import Run, describe, train

    packed = Packed(data)
    resolved = load_recipe(recipe or load_dataset(packed.manifest.dataset).default_recipe, set_ or ())
    run = Run(kind, packed, resolved, benchmark, seed, out)
    with Reporter() as emit:
        result = train(run, emit)
    say(
        f"{describe(run)}: {result.epochs} epochs over {result.samples:,} samples ({result.left_out} left out) in {result.seconds:,.0f} s; "
        f"next: c2vl-eval knn --run {out} --data {data}"
    )


@app.command()
def pretrain(
    data: DataOption,
    benchmark: BenchmarkOption,
    out: OutOption,
    recipe: RecipeOption = None,
    seed: SeedOption = 0,
    set_: SetOption = None,
) -> None:
    """Pre-train by cross-modal contrastive learning with soft targets; reads no labels."""
    _train("pretrain", data, benchmark, out, recipe, seed, set_)


@app.command()
def supervised(
    data: DataOption,
    benchmark: BenchmarkOption,
    out: OutOption,
    recipe: RecipeOption = None,
    seed: SeedOption = 0,
    set_: SetOption = None,
) -> None:
    """Train the same encoder with labels: the ceiling in every table."""
    _train("supervised", data, benchmark, out, recipe, seed, set_)


@app.command("random")
def random_(
    data: DataOption,
    benchmark: BenchmarkOption,
    out: OutOption,
    recipe: RecipeOption = None,
    seed: SeedOption = 0,
    set_: SetOption = None,
) -> None:
    """Write the encoder as initialised: the floor in every table."""
    _train("random", data, benchmark, out, recipe, seed, set_)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
