"""`c2vl-eval`: parse, call, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_evaluation.paper.cli import paper
from c2vl_manifests.cli_common import RecipeOption, Reporter, SetOption, application, say, show_table
from c2vl_manifests.cli_common import main as run_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from c2vl_evaluation.cache import Subject
    from c2vl_evaluation.results import Protocol, Results
    from c2vl_manifests.recipe import Recipe
    from c2vl_training.dataset import Packed

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


RunsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--run",
        help="Folder of a finished run; give one more for each control: random, supervised, shuffled pairs.",
        show_default=False,
    ),
]
TableOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        help="Folder of a finished table in place of runs: all its runs are evaluated, and the table grows.",
        show_default=False,
    ),
]
EncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--encoder",
        exists=True,
        file_okay=False,
        help="Folder of the checkpoint of the text encoder that made the data's vectors, if it was moved.",
        show_default=False,
    ),
]
SpaceRunsOption = Annotated[
    list[Path],
    typer.Option("--run", help="Folder of a finished pre-training; give one more for shuffled pairs."),
]


def _recipe(packed: Packed, recipe: str | None, set_: list[str] | None) -> Recipe:
    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.recipe_loading import load_recipe

    m, overrides = packed.manifest, list(set_ or ())
    if recipe is None:  # as the work folder was made, its overrides included
        recipe, overrides = m.recipe or load_dataset(m.dataset).default_recipe, [*m.overrides, *overrides]
    return load_recipe(recipe, overrides)


def _subject(run: Path, packed: Packed, benchmark: str | None, recipe: Recipe) -> Subject:
    from c2vl_evaluation.cache import Subject
    from c2vl_training.checkpoint import load_finished

    facts = load_finished(run)[1]
    return Subject(run, packed, benchmark or facts.get("benchmark", ""), recipe, int(facts.get("seed", 0)))


def _warn(subject: Subject) -> Subject:
    """Say so if a run was trained on clips that it is about to be tested on."""
    from c2vl_evaluation.protocols.common import overlap
    from c2vl_manifests.events import Note

    if text := overlap(subject):
        Reporter()(Note(text, "warning"))
    return subject


def _one(
    run: Path, data: Path, benchmark: str | None, recipe: str | None, set_: list[str] | None, protocol: str
) -> None:
    from c2vl_evaluation.protocols import knn as nearest
    from c2vl_evaluation.protocols import linear as probe
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    subject = _warn(_subject(run, packed, benchmark, _recipe(packed, recipe, set_)))
    found = (nearest.outcome if protocol == "knn" else probe.outcome)(subject).finding
    if found.last is None or (found.best is None and protocol != "knn"):
        return
    top5 = "" if found.last.top5 is None else f", {100 * found.last.top5:.2f} % top-5"
    also = f"{top5}, {100 * found.last.balanced:.2f} % balanced"
    sizes = f"{found.train:,} training and {found.test:,} test samples"
    top1 = f"{100 * found.last.top1:.2f} % top-1"
    if found.best is None:
        say(f"kNN (k = {subject.recipe.evaluation.knn.k}): {top1} over {sizes}{also}")
    else:
        oracle = f"{100 * found.best.top1:.2f} % at the best, {found.best_epoch}, an oracle"
        say(f"linear: {top1} at the last epoch ({oracle}), lr {found.lr:g}, over {sizes}{also}")


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


def _more(
    protocol: Protocol,
    run: list[Path] | None,
    out: Path | None,
    data: Path,
    benchmark: str | None,
    recipe: str | None,
    set_: list[str] | None,
) -> None:
    """Run a protocol on runs, or on all runs of a table."""
    from c2vl_evaluation.protocols import common
    from c2vl_evaluation.report.console import Line, lines_of, show_findings
    from c2vl_manifests.errors import C2VLError, ConfigError
    from c2vl_training.dataset import Packed

    if bool(run) == (out is not None):
        raise ConfigError("give either --run (once a run) or --out with the folder of a finished table")
    packed = Packed(data)
    resolved = _recipe(packed, recipe, set_)
    lines: list[Line] = []
    failed, where = "", None
    with Reporter() as emit:
        if out is not None:
            results = common.extend(out, packed, protocol, resolved, emit, benchmark or "")
            benchmark = benchmark or results.benchmark
            where = results.targets[-1] if protocol == "transfer" else None
            lines, failed = lines_of(results, protocol, where), common.failures(results, protocol)
        for folder in run or ():
            subject = _warn(_subject(folder, packed, benchmark, resolved))
            benchmark = benchmark or subject.benchmark
            found = common.findings(subject, [protocol], emit)
            derived = common.derived(folder, packed)
            lines.append(Line(folder.name, common.role_of(folder), found, derived))
    show_findings(protocol, lines, where or common.target(packed, benchmark or ""))
    if failed:
        raise C2VLError(failed)


@app.command()
def finetune(
    data: DataOption,
    run: RunsOption = None,
    out: TableOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """The whole network with a fresh fully connected layer, on all labels."""
    _more("finetune", run, out, data, benchmark, recipe, set_)


@app.command()
def semi(
    data: DataOption,
    run: RunsOption = None,
    out: TableOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """1, 5 and 10 % of the labels, drawn several times, with a frozen and with a tuned encoder."""
    _more("semi", run, out, data, benchmark, recipe, set_)


@app.command()
def transfer(
    data: DataOption,
    run: RunsOption = None,
    out: TableOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """An encoder trained on other data, frozen and tuned; --data is the dataset to go to."""
    _more("transfer", run, out, data, benchmark, recipe, set_)


@app.command()
def ensemble(
    data: DataOption,
    run: RunsOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Scores of a joint, a bone and a motion run added up, with weights fixed in advance: give --run three times.

    With all controls: `c2vl-eval benchmark --protocol ensemble`.
    """
    from c2vl_evaluation.protocols import common
    from c2vl_evaluation.protocols import ensemble as fusion
    from c2vl_evaluation.report.console import Line, show_findings
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    resolved = _recipe(packed, recipe, set_)
    streams = fusion.by_stream([_subject(folder, packed, benchmark, resolved) for folder in run or ()])
    for subject in streams.values():
        _warn(subject)
    with Reporter() as emit:
        found = common.findings(streams["joint"], ["ensemble"], emit, streams)
    first = streams["joint"]
    where = common.target(packed, first.benchmark)
    derived = common.derived(first.run, packed)
    line = Line(first.run.name, common.role_of(first.run), found, derived)
    show_findings("three streams (joint/bone/motion)", [line], where)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of an evaluated run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another one, evaluated alike.")],
    protocol: Annotated[str, typer.Option("--protocol", help="Whose answers are compared.")] = "linear",
) -> None:
    """Two runs on the same test samples: differences with 95 % intervals by a paired bootstrap."""
    from typing import get_args

    from c2vl_evaluation import compare as paired
    from c2vl_evaluation.results import Protocol
    from c2vl_manifests.errors import ConfigError

    known = {name: name for name in get_args(Protocol)}
    if protocol not in known:
        raise ConfigError(f"--protocol {protocol!r} is none of {', '.join(known)}")
    for found in paired.compare(run_a, run_b, known[protocol]):
        setting = f" ({found.setting})" if found.setting else ""
        say(
            f"{found.protocol}{setting}, {found.samples:,} test samples"
            + (f", mean of {found.draws} draws" if found.draws > 1 else "")
            + f": right in {run_a} alone {100 * found.only_a:.1f} %, in {run_b} alone {100 * found.only_b:.1f} %"
        )
        for word, d in (("top-1", found.top1), ("balanced", found.balanced)):
            clear = "" if d.low <= 0 <= d.high else ", beyond chance in the choice of test samples"
            say(
                f"  {word}: {100 * d.a:.2f} % against {100 * d.b:.2f} %, {100 * (d.a - d.b):+.2f} points "
                f"(95 %: {100 * d.low:+.2f} to {100 * d.high:+.2f}){clear}"
            )


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Skeleton files: .skeleton, .mat, .npy or .npz.")],
    run: RunOption,
    data: DataOption,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Say what is done in skeleton files, with the five most probable classes."""
    from c2vl_evaluation import predict as skeletons
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    subject = _subject(run, packed, benchmark, _recipe(packed, recipe, set_))
    for answer in skeletons.predict(subject, files):
        say(f"{answer.file} ({answer.frames} frames): " + ", ".join(f"{n} {p:.3f}" for n, p in answer.top))


@app.command()
def zeroshot(
    data: DataOption,
    run: SpaceRunsOption,
    descriptions: Annotated[
        Path | None,
        typer.Option(
            "--descriptions",
            help="TOML or JSON: the name of each class = a description, or several, which are averaged.",
            show_default=False,
        ),
    ] = None,
    encoder: EncoderOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """No labels: the class whose name or description lies nearest to a clip, with permuted names as the control."""
    from c2vl_evaluation.language import zeroshot as named
    from c2vl_evaluation.protocols import common
    from c2vl_evaluation.report.console import show_zeroshot
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    resolved = _recipe(packed, recipe, set_)
    found = []
    for folder in run:
        subject = _warn(_subject(folder, packed, benchmark, resolved))
        one = named.outcome(subject, descriptions, encoder)
        found.append((folder.name, common.role_of(folder), one))
    show_zeroshot(f"{packed.manifest.title}, {subject.benchmark}", found)


@app.command()
def retrieval(
    data: DataOption,
    run: SpaceRunsOption,
    caption: Annotated[
        str, typer.Option("--caption", help="mean of a clip's captions, or one of them.")
    ] = "mean",
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Each test clip searched by its own captions among all test clips, with permuted captions as the control."""
    from c2vl_evaluation.language import retrieval as captions
    from c2vl_evaluation.protocols import common
    from c2vl_evaluation.report.console import show_retrieval
    from c2vl_manifests.errors import ConfigError
    from c2vl_training.dataset import Packed

    if caption not in {"mean", "one"}:
        raise ConfigError(f"--caption {caption!r} is none of mean, one")
    packed = Packed(data)
    resolved = _recipe(packed, recipe, set_)
    found = []
    for folder in run:
        subject = _warn(_subject(folder, packed, benchmark, resolved))
        one = captions.outcome(subject, "one" if caption == "one" else "mean")
        found.append((folder.name, common.role_of(folder), one))
    show_retrieval(f"{packed.manifest.title}, {subject.benchmark}", found)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help='What to look for, e.g. "a person waving".')],
    run: RunOption,
    data: DataOption,
    top: Annotated[int, typer.Option("--top", min=1, help="How many clips.")] = 12,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    out: Annotated[Path, typer.Option("--out", help="The page with the clips, drawn and moving.")] = Path(
        "search.html"
    ),
    encoder: EncoderOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """List the clips that lie nearest to a text, and draw them."""
    from c2vl_evaluation.language import search as nearest
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    subject = _subject(run, packed, benchmark, _recipe(packed, recipe, set_))
    found = nearest.search(subject, text, top, split, encoder)
    show_table(
        f"{packed.manifest.title}, {subject.benchmark}: nearest to {text!r}",
        ["sample", "class", "cosine"],
        [[hit.sample_id, hit.name, f"{hit.cosine:.3f}"] for hit in found.hits],
        f"Of {found.clips:,} {split} clips, whose cosines are {found.mean:.3f} ± {found.std:.3f}.",
    )
    for note in found.notes:
        say(note)
    say(f"drawn: {nearest.page(found, subject, out).resolve()}")


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
    protocol: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            help="finetune, semi, ensemble, or all three, beside kNN and linear; may be repeated.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--target",
            help="Packed data of another dataset with the same joints: the transfer protocol goes there.",
            show_default=False,
        ),
    ] = None,
    target_benchmark: Annotated[
        str | None,
        typer.Option("--target-benchmark", help="xsub, or its first one, unless given.", show_default=False),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Pre-train, run the controls (random, supervised, shuffled pairs), evaluate all, write table and report."""
    from c2vl_evaluation.protocols.common import failures
    from c2vl_evaluation.report.console import show_results
    from c2vl_evaluation.table import entries, run_table
    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.errors import C2VLError
    from c2vl_training.dataset import Packed

    packed = Packed(data)
    lines = entries(recipe or load_dataset(packed.manifest.dataset).default_recipe, set_ or (), targets or ())
    where = _target(target, target_benchmark)
    with Reporter() as emit:
        results = run_table(packed, benchmark, lines, range(seeds), out, emit, _chosen(protocol or ()), where)
    show_results(results)
    path = _report(results, packed.folder.parent, out)
    say(f"report: {path.resolve()}")
    if failed := failures(results):
        raise C2VLError(failed)


def _chosen(words: Sequence[str]) -> list[Protocol]:
    """Return the protocols that `--protocol` names, each once."""
    from c2vl_manifests.errors import ConfigError

    names: dict[str, Protocol] = {"finetune": "finetune", "semi": "semi", "ensemble": "ensemble"}
    for word in words:
        if word not in {*names, "all"}:
            raise ConfigError(
                f"--protocol {word!r} is none of {', '.join(names)}, all; kNN and linear are in every table, and "
                "transfer needs the data to go to: --target"
            )
    asked = [name for word in words for name in (names if word == "all" else [word])]
    return [names[name] for name in dict.fromkeys(asked)]


def _target(folder: Path | None, benchmark: str | None) -> tuple[Packed, str] | None:
    """Return the data that encoders are transferred to, and the benchmark there."""
    from c2vl_manifests.errors import ConfigError
    from c2vl_training.dataset import Packed

    if folder is None:
        if benchmark is not None:
            raise ConfigError(f"--target-benchmark {benchmark} needs --target with the data it is of")
        return None
    packed = Packed(folder)
    return packed, benchmark or packed.main_benchmark()


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="Folder that `c2vl-eval benchmark` wrote.")],
    data: DataOption,
) -> None:
    """Draw the report again from a finished table."""
    from c2vl_evaluation.report.console import show_results
    from c2vl_evaluation.results import load
    from c2vl_manifests.errors import DataError
    from c2vl_training.dataset import Packed

    results = load(out)
    packed = Packed(data)
    if packed.manifest.fingerprint != results.data_fingerprint:
        raise DataError(
            f"the table in {out} was made from other data than {data} holds now; run `c2vl-eval benchmark` into a new folder"
        )
    show_results(results)
    path = _report(results, packed.folder.parent, out)
    say(f"report: {path.resolve()}")


def _report(results: Results, work: Path, out: Path) -> Path:
    from c2vl_evaluation.report.build import build, main_run

    return build(results, out / "report.html", work=work, main=main_run(results, work, out))


app.command()(paper)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
