"""Commands of `c2vl-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from c2vl_evaluation.paper.cli import paper
from c2vl_manifests.cli_common import PackedOption, RecipeOption, SetOption, application, optional
from c2vl_manifests.cli_common import main as run_app
from c2vl_manifests.cli_output import Reporter, link, next_steps, say, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from c2vl_evaluation.context import EvalContext
    from c2vl_evaluation.language.class_split import ClassSplit
    from c2vl_evaluation.results import Protocol, Table
    from c2vl_manifests.events import Emit
    from c2vl_training.dataset import PackedDataset

app = application("Evaluate frozen skeleton encoders, with controls, and write the report.")

RunOption = Annotated[Path, typer.Option("--run", help="Folder of a finished c2vl-train run.")]
BenchmarkOption = Annotated[str | None, optional("--benchmark", "Default: the one that the run was trained on.")]
RunsOption = Annotated[
    list[Path],
    typer.Option(
        "--run", help="Folder of a finished run; may be repeated, e.g. for the controls (random, supervised, shuffled)."
    ),
]
EncoderOption = Annotated[
    Path | None,
    optional(
        "--encoder",
        "Checkpoint folder of the text encoder that made the data's vectors, if it was moved.",
        exists=True,
        file_okay=False,
    ),
]
SplitOption = Annotated[
    list[str] | None,
    optional(
        "--split", "Unseen classes: a zero-shot split (55/5), or a class by name or number from 0; may be repeated."
    ),
]
SpaceRunsOption = Annotated[
    list[Path],
    typer.Option("--run", help="Folder of a finished pre-training; may be repeated, e.g. for shuffled pairs."),
]


def _contexts(
    runs: Sequence[Path],
    data: Path,
    benchmark: str | None,
    recipe: str | None,
    set_: list[str] | None,
    emit: Emit | None = None,
) -> list[EvalContext]:
    """Return the contexts of runs; warns if a run was trained on clips of the test split."""
    from c2vl_evaluation.context import EvalContext
    from c2vl_manifests.events import Note, silent
    from c2vl_training.dataset import PackedDataset

    packed = PackedDataset(data)
    contexts = [EvalContext.open(run, packed, benchmark, recipe, set_ or (), emit or silent) for run in runs]
    for context in contexts:
        if text := context.overlap():
            (emit or Reporter())(Note(text, "warning"))
    return contexts


@app.command("run")
def run_command(
    protocol: Annotated[
        str, typer.Argument(help="knn, linear, finetune, semi, transfer or ensemble.", metavar="PROTOCOL")
    ],
    run: RunsOption,
    data: PackedOption,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Evaluate finished runs by one protocol; stored results are not computed again.

    knn: the nearest training sample by cosine. linear: one fully connected layer on frozen features. finetune:
    the whole network with a fresh layer. semi: 1, 5 and 10 % of the labels, drawn several times, encoder frozen
    and tuned. transfer: --data is another dataset than the run was trained on, encoder frozen and tuned.
    ensemble: scores of a joint, a bone and a motion run added up with fixed weights; give --run three times.

    With all controls, and for all runs of a table: `c2vl-eval benchmark --protocol`.
    """
    from c2vl_evaluation.metrics import no_encoder_scores
    from c2vl_evaluation.protocols import PROTOCOLS, ensemble, protocol_name
    from c2vl_evaluation.report.console import show_protocol
    from c2vl_evaluation.results import Line

    name = protocol_name(protocol)
    with Reporter() as emit:
        contexts = _contexts(run, data, benchmark, recipe, set_, emit)
        if name == "ensemble":
            contexts = [ensemble.joined(contexts)]
        names, lines = [context.run.name for context in contexts], []
        for context in contexts:
            results = [cell.run().result for cell in PROTOCOLS[name](context)]
            label = context.run.name if names.count(context.run.name) == 1 else str(context.run)
            lines.append(Line(label, context.role(), results, context.uses_joint_captions()))
    show_protocol(protocol, lines, no_encoder_scores(contexts[0].packed, contexts[0].benchmark))
    on = contexts[0].benchmark
    say(next_steps(["c2vl-eval", "benchmark", "--data", data, "--benchmark", on, "--out", Path("runs", f"table-{on}")]))


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder of an evaluated run.")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another run with the same settings of evaluation.")],
    protocol: Annotated[str, typer.Option("--protocol", help="Protocol whose answers are compared.")] = "linear",
) -> None:
    """Compare two runs on the same test samples: differences with 95 % intervals by a paired bootstrap."""
    from c2vl_evaluation import comparison
    from c2vl_evaluation.protocols import protocol_name

    for one in comparison.compare(run_a, run_b, protocol_name(protocol)):
        setting = f" ({one.setting})" if one.setting else ""
        say(
            f"{one.protocol}{setting}, {one.samples:,} test samples"
            + (f", mean of {one.draws} draws" if one.draws > 1 else "")
            + f": correct in {run_a} only {100 * one.only_a:.1f} %, in {run_b} only {100 * one.only_b:.1f} %"
        )
        for word, d in (("top-1", one.top1), ("balanced", one.balanced)):
            clear = ", more than the choice of test samples explains" if d.clear else ", within noise"
            say(
                f"  {word}: {100 * d.a:.2f} % against {100 * d.b:.2f} %, {100 * (d.a - d.b):+.2f} points (95 "
                f"%: {100 * d.low:+.2f} to {100 * d.high:+.2f}){clear}"
            )


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Skeleton files (.skeleton, .mat, .json, .npy, .npz) or videos.")],
    run: RunOption,
    data: PackedOption,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Classify skeleton files and videos: the most probable classes of each, and how far their probabilities can be trusted."""
    from c2vl_evaluation import prediction
    from c2vl_evaluation.report.console import show_predictions
    from c2vl_manifests.errors import C2VLError, DataError

    (context,) = _contexts([run], data, benchmark, recipe, set_)
    failed: list[C2VLError] = []
    answers = prediction.predict_files(context, files, failed)
    if answers:
        show_predictions(answers, prediction.calibration(context))
    if failed:
        raise DataError("; ".join(map(str, failed)))


@app.command("export")
def export_command(
    run: RunOption,
    data: PackedOption,
    out: Annotated[Path | None, optional("--out", "The file; recogniser.onnx in the run's folder.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights of 8 bits, and what that changes on the test clips.")
    ] = False,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Write encoder and linear layer as one ONNX file: joints (T, M, V, C) of any clip in, class probabilities out."""
    from c2vl_evaluation import export

    (context,) = _contexts([run], data, benchmark, recipe, set_)
    made = export.export(context, out or run / "recogniser.onnx", int8)
    checked = (
        f"differs from torch by {made.difference:.0e} in onnxruntime"
        if made.difference == made.difference
        else "not run: onnxruntime is not installed"
    )
    say(f"{made.path}: joints (T, M, {made.joints}, {made.dims}) -> probabilities ({made.classes}); {checked}")
    if made.loss is not None:
        say(made.loss.words())


@app.command()
def zeroshot(
    data: PackedOption,
    run: SpaceRunsOption,
    split: SplitOption = None,
    descriptions: Annotated[
        Path | None,
        optional("--descriptions", "TOML or JSON: class name = a description, or a list of them, which are averaged."),
    ] = None,
    class_vectors: Annotated[
        Path | None,
        optional(
            "--class-vectors", "Parquet or .npz: vectors of the classes by name, made elsewhere by the data's model."
        ),
    ] = None,
    standardise: Annotated[
        bool, typer.Option("--standardise", help="Give each class cosines of mean 0 and deviation 1 over the clips.")
    ] = False,
    encoder: EncoderOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Classify without labels, by the nearest class name or description; control: permuted names.

    With --split: unseen classes alone (ZSL, beside published figures) and all classes (GZSL: seen, unseen, harmonic mean).
    """
    from c2vl_evaluation.language import unseen, zeroshot
    from c2vl_evaluation.report.console import show_unseen, show_zeroshot

    contexts = _contexts(run, data, benchmark, recipe, set_)
    title = f"{contexts[0].packed.manifest.title}, {contexts[-1].benchmark}"
    how = (descriptions, encoder, standardise, class_vectors)
    if split:
        chosen = _class_split(contexts, split)
        show_unseen(title, chosen, [(c.run.name, c.role(), unseen.evaluate(c, split, *how)) for c in contexts])
    else:
        show_zeroshot(title, [(c.run.name, c.role(), zeroshot.evaluate(c, *how)) for c in contexts])
    if class_vectors is None and (note := zeroshot.words_note(contexts[0], descriptions)):
        say(note)


def _class_split(contexts: Sequence[EvalContext], words: Sequence[str]) -> ClassSplit:
    """Return the split that words name; warns if a run was trained on clips of its unseen classes."""
    from c2vl_evaluation.language.class_split import class_split, training_note
    from c2vl_manifests.events import Note

    split = class_split(contexts[0].packed, words)
    for text in filter(None, (training_note(context, split) for context in contexts)):
        Reporter()(Note(text, "warning"))
    return split


@app.command()
def features(
    data: PackedOption,
    run: RunOption,
    split: Annotated[list[str], typer.Option("--split", help="Unseen classes, as of zeroshot.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the arrays.")],
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Write frozen features of a zero-shot split as SynSE, SA-DVAE and TDSM read them: train, ztest and gtest with labels."""
    from c2vl_evaluation.language.split_features import write

    (context,) = _contexts([run], data, benchmark, recipe, set_)
    written = write(context, _class_split([context], split), out)
    say(f"{link(out)}: {written}")


@app.command()
def retrieval(
    data: PackedOption,
    run: SpaceRunsOption,
    caption: Annotated[str, typer.Option("--caption", help="mean of a clip's captions, or one of them.")] = "mean",
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """Search each test clip by its own captions among all test clips; control: permuted captions."""
    from c2vl_evaluation.language import retrieval
    from c2vl_evaluation.report.console import show_retrieval
    from c2vl_manifests.errors import ConfigError

    if caption not in {"mean", "one"}:
        raise ConfigError(f"--caption {caption!r} is not one of mean, one")
    contexts = _contexts(run, data, benchmark, recipe, set_)
    words: Literal["one", "mean"] = "one" if caption == "one" else "mean"
    found = [(one.run.name, one.role(), retrieval.evaluate(one, words)) for one in contexts]
    show_retrieval(f"{contexts[0].packed.manifest.title}, {contexts[-1].benchmark}", found)


@app.command()
def search(
    text: Annotated[str, typer.Argument(help='Text to search for, e.g. "a person waving".')],
    run: RunOption,
    data: PackedOption,
    top: Annotated[int, typer.Option("--top", min=1, help="Number of clips.")] = 12,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    out: Annotated[Path, typer.Option("--out", help="HTML page that shows the clips, animated.")] = Path("search.html"),
    encoder: EncoderOption = None,
    benchmark: BenchmarkOption = None,
    recipe: RecipeOption = None,
    set_: SetOption = None,
) -> None:
    """List and draw the clips that are nearest to a text."""
    from c2vl_evaluation.language import search

    (context,) = _contexts([run], data, benchmark, recipe, set_)
    found = search.search(context, text, top, split, encoder)
    show_table(
        f"{context.packed.manifest.title}, {context.benchmark}: nearest to {text!r}",
        ["sample", "class", "cosine"],
        [[hit.sample_id, hit.name, f"{hit.cosine:.3f}"] for hit in found.hits],
        f"Of {found.clips:,} {split} clips, whose cosines are {found.mean:.3f} ± {found.std:.3f}.",
    )
    for note in found.notes:
        say(note)
    say(f"page: {link(search.write_page(found, context, out))}")


@app.command()
def benchmark(
    data: PackedOption,
    benchmark: Annotated[
        str, typer.Option("--benchmark", help="xsub, xview, xset, a custom one, or <name>-val to choose settings.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the table, its runs and the report.")],
    recipe: RecipeOption = None,
    targets: Annotated[
        list[str] | None,
        optional("--targets", "A value of Table VII, e.g. hard or partition(cosine); may be repeated."),
    ] = None,
    variants: Annotated[
        Path | None,
        optional("--variants", 'TOML file, a line for each variant: "name" = ["training.pretrain.views=2", …].'),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of runs per line: seeds 0, 1, …")] = 1,
    protocol: Annotated[
        list[str] | None,
        optional("--protocol", "finetune, semi, ensemble or all, in addition to kNN and linear; may be repeated."),
    ] = None,
    target: Annotated[
        Path | None,
        optional("--target", "Packed data of another dataset with the same joints, for the transfer protocol."),
    ] = None,
    target_benchmark: Annotated[
        str | None, optional("--target-benchmark", "Benchmark of the target. Default: xsub, or its first one.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Pre-train, run the controls (random, supervised, shuffled pairs), evaluate all, write table and report.

    The same command with a further --protocol, --target, --targets or variant, or more --seeds, adds to the table;
    finished runs and results are reused.
    """
    from c2vl_evaluation.table import entries, run_table
    from c2vl_manifests.errors import C2VLError
    from c2vl_manifests.recipe_loading import load_variants
    from c2vl_training.dataset import PackedDataset

    packed = PackedDataset(data)
    lines = entries(
        packed.manifest,
        recipe,
        [*_without_vision(packed, recipe, set_ or ()), *(set_ or ())],
        targets or (),
        load_variants(variants) if variants else {},
    )
    where = _target(target, target_benchmark)
    with Reporter() as emit:
        table = run_table(packed, benchmark, lines, range(seeds), out, emit, _chosen(protocol or ()), where)
    _show_and_write(table, packed, out)
    if failed := table.failure_summary():
        raise C2VLError(failed)


def _without_vision(packed: PackedDataset, recipe: str | None, overrides: Sequence[str]) -> list[str]:
    """Return the override by which a table of data without pictures is made, and say so; empty if it is not needed."""
    from c2vl_manifests.packed import resolve_recipe

    asked = resolve_recipe(packed.manifest, recipe, overrides).training.pretrain.knowledge
    named = any(one.partition("=")[0].strip() == "training.pretrain.knowledge" for one in overrides)
    if asked != "both" or named or packed.kinds() != ("language",):
        return []
    say(
        f"{packed.manifest.title} has no pictures here: pre-training uses language alone; the other rows need only joints"
    )
    return ["training.pretrain.knowledge=language"]


def _chosen(words: Sequence[str]) -> list[Protocol]:
    """Return the protocols that `--protocol` names, each once."""
    from c2vl_evaluation.protocols import PROTOCOLS
    from c2vl_evaluation.results import ALWAYS
    from c2vl_manifests.errors import ConfigError

    names = [name for name in PROTOCOLS if name not in (*ALWAYS, "transfer")]
    for word in words:
        if word not in {*names, "all"}:
            raise ConfigError(
                f"--protocol {word!r} is not one of {', '.join(names)}, all; kNN and linear are in every table, "
                "and transfer needs another dataset: --target"
            )
    return [name for name in names if name in words or "all" in words]


def _target(folder: Path | None, benchmark: str | None) -> tuple[PackedDataset, str] | None:
    """Return the packed data that encoders are transferred to, and their benchmark."""
    from c2vl_manifests.errors import ConfigError
    from c2vl_training.dataset import PackedDataset

    if folder is None:
        if benchmark is not None:
            raise ConfigError(f"--target-benchmark {benchmark} needs --target with the data of that benchmark")
        return None
    packed = PackedDataset(folder)
    return packed, benchmark or packed.main_benchmark()


@app.command()
def report(
    out: Annotated[Path, typer.Option("--out", help="Folder that `c2vl-eval benchmark` wrote.")], data: PackedOption
) -> None:
    """Write the report of a finished table again."""
    from c2vl_evaluation.metrics import data_read
    from c2vl_evaluation.results import load
    from c2vl_manifests.errors import DataError
    from c2vl_training.dataset import PackedDataset

    table, packed = load(out), PackedDataset(data)
    if data_read(packed, table.benchmark) != table.data_fingerprint:
        raise DataError(
            f"the table in {out} was made from other data than {data} holds now; run `c2vl-eval benchmark` "
            "into a new folder"
        )
    _show_and_write(table, packed, out)


def _show_and_write(table: Table, packed: PackedDataset, out: Path) -> None:
    from c2vl_evaluation.report.build import build, main_run
    from c2vl_evaluation.report.console import show_results
    from c2vl_evaluation.report.verdict import verdict

    show_results(table)
    work = packed.folder.parent
    path = build(table, out / "report.html", work=work, main=main_run(table, work, out))
    say(f"report: {link(path)}")
    say(verdict(table, out).text)
    row = table.main_row()
    commands: list[list[str | Path]] = [["tensorboard", "--logdir", out]]
    if row.knowledge in {"language", "both"}:
        commands.insert(0, ["c2vl-eval", "search", table.classes[0], "--run", out / row.run, "--data", work])
    say(next_steps(*commands))


app.command()(paper)


def main() -> None:
    """Entry point of the console script."""
    run_app(app)
