"""`c2vl-eval`: parse, call, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.terminal import RecipeOption, Reporter, SetOption, application, say, show_table
from c2vl_manifests.terminal import main as run_app

if TYPE_CHECKING:
    from c2vl_evaluation.results import Results

app = application("Evaluate frozen skeleton encoders, with controls, and write the report.")

RunOption = Annotated[Path, typer.Option("--run", help="Folder of a finished c2vl-train run.")]
DataOption = Annotated[
    Path,
    typer.Option("--data", help="Folder that `c2vl-pipeline pack` wrote (or the work folder around it)."),
]
BenchmarkOption = Annotated[
    str | None,
    typer.Option("--benchmark", help="The one the run was trained on, unless given.", show_default=False),
]


def _one(
    run: Path, data: Path, benchmark: str | None, recipe: str | None, set_: list[str] | None, protocol: str
) -> None:
    from c2vl_evaluation import knn as nearest
    from c2vl_evaluation.benchmark import features_of, linear_probe
    from c2vl_manifests.config import load_recipe
    from c2vl_manifests.datasets import load_dataset
    from c2vl_training.checkpoint import load_finished
    from c2vl_training.data import Packed

    packed = Packed(data)
    resolved = load_recipe(recipe or load_dataset(packed.manifest.dataset).default_recipe, set_ or ())
    facts = load_finished(run)[1]
    gallery, query = features_of(run, packed, benchmark or facts.get("benchmark", ""), resolved)
    sizes = f"{len(gallery.labels):,} training and {len(query.labels):,} test samples"
    if protocol == "knn":
        k = resolved.evaluation.knn.k
        accuracy = nearest.accuracy(nearest.predict(gallery, query, k), query.labels)
        say(f"kNN (k = {k}): {100 * accuracy:.2f} % top-1 over {sizes}")
    else:
        probe = linear_probe(gallery, query, packed, resolved, int(facts.get("seed", 0)))
        say(
            f"linear: {100 * probe.accuracy:.2f} % top-1 at the last epoch ({100 * probe.best:.2f} % at the best, an oracle), lr {probe.lr:g}, over {sizes}"
        )


@app.command()
def knn(
    run: RunOption,
    data: DataOption,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Nearest neighbour by cosine among the training split."""
    _one(run, data, benchmark, recipe, set_, "knn")


@app.command()
def linear(
    run: RunOption,
    data: DataOption,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """One fully connected layer on frozen features."""
    _one(run, data, benchmark, recipe, set_, "linear")


@app.command()
def benchmark(
    data: DataOption,
    benchmark: Annotated[
        str,
        typer.Option(
            "--benchmark", help="xsub, xview, xset, one of your own, or <name>-val to choose settings."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the table, its runs and the report.")],
    recipe: RecipeOption = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--targets",
            help="A value of Table VII, e.g. hard or partition(cosine); may be repeated.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Runs a line: seeds 0, 1, …")] = 1,
    set_: SetOption = None,
) -> None:
    """Pre-train, run the controls (random, supervised, shuffled pairs), evaluate all, write table and report."""
    from c2vl_evaluation.benchmark import entries, run_table
    from c2vl_manifests.datasets import load_dataset
    from c2vl_training.data import Packed

    packed = Packed(data)
    lines = entries(recipe or load_dataset(packed.manifest.dataset).default_recipe, set_ or (), targets or ())
    with Reporter() as emit:
        results = run_table(packed, benchmark, lines, range(seeds), out, emit)
    _show(results)
    path = _report(results, packed.folder.parent, out)
    say(f"report: {path.resolve()}")


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="Folder that `c2vl-eval benchmark` wrote.")],
    data: DataOption,
) -> None:
    """Draw the report again from a finished table."""
    from c2vl_evaluation.results import load
    from c2vl_manifests.errors import DataError
    from c2vl_training.data import Packed

    results = load(out)
    packed = Packed(data)
    if packed.manifest.fingerprint != results.data_fingerprint:
        raise DataError(
            f"the table in {out} was made from other data than {data} holds now; run `c2vl-eval benchmark` into a new folder"
        )
    _show(results)
    path = _report(results, packed.folder.parent, out)
    say(f"report: {path.resolve()}")


def _show(results: Results) -> None:
    from c2vl_evaluation.results import mean_std

    rows = []
    for name in results.names():
        of = results.of(name)
        role = {"pretrained": "", "shuffled": " (control)"}.get(of[0].role, f" ({of[0].role})")
        label = name + role
        if of[0].derived_from_joints:
            label += " [derived from joints]"
        cells = [mean_std([getattr(r, column) for r in of]) for column in ("knn", "linear", "linear_best")]
        rows.append([label, *cells, str(len(of)), f"{sum(r.seconds for r in of) / len(of):,.0f} s"])
    rows.append(
        ["majority class", f"{100 * results.majority:.1f}", f"{100 * results.majority:.1f}", "", "", ""]
    )
    rows.append(["chance", f"{100 * results.chance:.1f}", f"{100 * results.chance:.1f}", "", "", ""])
    show_table(
        f"{results.title}, {results.benchmark}, recipe {results.recipe}: top-1 %, {results.train:,} train / {results.test:,} test",
        ["", "kNN", "linear", "linear, best epoch", "seeds", "training"],
        rows,
        "The best epoch is chosen on the test split (an oracle). Derived from joints: captions made by rule from the encoder's own input.",
    )


def _report(results: Results, work: Path, out: Path) -> Path:
    from c2vl_evaluation.report import build, main_run

    return build(results, out / "report.html", work=work, main=main_run(results, work, out))


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
