"""Commands of `c2vl-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_evaluation import cli_language
from c2vl_evaluation.cli_options import BenchmarkOption, RunOption, open_contexts
from c2vl_evaluation.paper.cli import paper
from c2vl_manifests.cli_common import PackedOption, RecipeOption, SetOption, application, optional
from c2vl_manifests.cli_common import main as run_app
from c2vl_manifests.cli_output import Reporter, link, next_steps, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from c2vl_evaluation.results import Protocol, Table
    from c2vl_training.dataset import PackedDataset

app = application("Evaluate frozen skeleton encoders, with controls, and write the report.")

RunsOption = Annotated[
    list[Path],
    typer.Option(
        "--run", help="Folder of a finished run; may be repeated, e.g. for the controls (random, supervised, shuffled)."
    ),
]


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
        contexts = open_contexts(run, data, benchmark, recipe, set_, emit)
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

    failed: list[C2VLError] = []
    with Reporter() as emit:
        (context,) = open_contexts([run], data, benchmark, recipe, set_, emit)
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
    from c2vl_training.export import checked

    (context,) = open_contexts([run], data, benchmark, recipe, set_)
    made = export.export(context, out or run / "recogniser.onnx", int8)
    shape = f"joints (T, M, {made.joints}, {made.dims}) -> probabilities ({made.classes})"
    say(f"{made.path}: {shape}; {checked(made.difference)}")
    if made.loss is not None:
        say(made.loss.words())


app.command()(cli_language.zeroshot)
app.command()(cli_language.features)
app.command()(cli_language.retrieval)
app.command()(cli_language.search)


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
    from c2vl_evaluation.entries import entries
    from c2vl_evaluation.table import run_table
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
