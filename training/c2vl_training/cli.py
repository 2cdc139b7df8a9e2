"""`c2vl-train`: parse, call, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import PackedOption, RecipeOption, SetOption, application, optional
from c2vl_manifests.cli_common import main as run_app
from c2vl_manifests.cli_output import Reporter, next_steps, say, say_json

if TYPE_CHECKING:
    from c2vl_training.run_folder import Kind, Run

app = application(
    "Train skeleton encoders on packed data. A run that was killed or interrupted is resumed by the same command. "
    "On several GPUs: torchrun --no-python --nproc-per-node 8 c2vl-train pretrain …"
)

BenchmarkOption = Annotated[
    str | None, optional("--benchmark", "xsub (if the data have it), xview, xset, or a custom one.")
]
OutOption = Annotated[Path | None, optional("--out", "Folder of the run; runs/<dataset>-<benchmark>-<kind>-<seed>.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0)]
DryOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print the resolved configuration, parameters, memory and steps; train and write nothing."
    ),
]


def _resolve(
    kind: Kind,
    data: Path,
    benchmark: str | None,
    out: Path | None,
    recipe: str | None,
    seed: int,
    set_: list[str] | None,
) -> Run:
    from c2vl_manifests.packed import resolve_recipe
    from c2vl_training.dataset import PackedDataset
    from c2vl_training.run_folder import Run

    packed = PackedDataset(data)
    benchmark = benchmark or packed.main_benchmark()
    out = out or Path("runs") / f"{packed.manifest.dataset}-{benchmark}-{kind}-{seed}"
    return Run(kind, packed, resolve_recipe(packed.manifest, recipe, set_ or ()), benchmark, seed, out)


def _command(kind: Kind) -> Callable[..., None]:
    def command(
        data: PackedOption,
        benchmark: BenchmarkOption = None,
        out: OutOption = None,
        recipe: RecipeOption = None,
        seed: SeedOption = 0,
        set_: SetOption = None,
        dry_run: DryOption = False,
    ) -> None:
        from c2vl_training import distributed
        from c2vl_training.dry_run import estimate, lines, resolved
        from c2vl_training.trainer import train

        with distributed.joined() as rank:
            run = _resolve(kind, data, benchmark, out, recipe, seed, set_)
            if dry_run:
                report = lines(run, estimate(run))
                if rank == 0:
                    say_json(resolved(run))
                    for line in report:
                        say(line)
                return
            with Reporter() as emit:
                result = train(run, emit)
            if rank == 0:
                say(
                    f"{run.describe()}: {result.epochs} epochs over {result.samples:,} samples "
                    f"({result.left_out} left out) in {result.seconds:,.0f} s; "
                    + next_steps(["c2vl-eval", "run", "knn", "--run", run.out, "--data", data])
                )

    return command


_COMMANDS: dict[Kind, str] = {
    "pretrain": "Pre-train by cross-modal contrastive learning with soft targets; reads no labels.",
    "supervised": "Train the same encoder with labels: the ceiling in every table.",
    "random": "Write the encoder as initialised: the floor in every table.",
}
for _kind, _help in _COMMANDS.items():
    app.command(_kind, help=_help)(_command(_kind))


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Option("--run", help="Folder of a finished run.")],
    out: Annotated[Path | None, optional("--out", "The file; encoder.onnx in the run's folder.")] = None,
) -> None:
    """Write the encoder as one ONNX file: clips (N, C, T, V, M) in, features (N, D) out."""
    from c2vl_training.export import checked, export

    exported = export(run, out or run / "encoder.onnx")
    C, T, V, M = exported.shape[1:]
    say(
        f"{exported.path}: clips (N, {C}, {T}, {V}, {M}) -> features (N, {exported.dim}); {checked(exported.difference)}"
    )


def main() -> None:
    """Entry point of the console script."""
    try:
        run_app(app)
    except SystemExit as ended:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from c2vl_training.distributed import end_process

            end_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise
