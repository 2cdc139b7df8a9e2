"""Commands of `c2vl-eval` that compare clips with texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from c2vl_evaluation.cli_options import BenchmarkOption, RunOption, open_contexts
from c2vl_manifests.cli_common import PackedOption, RecipeOption, SetOption, optional
from c2vl_manifests.cli_output import Reporter, link, say, show_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from c2vl_evaluation.context import EvalContext
    from c2vl_evaluation.language.class_split import ClassSplit

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

    contexts = open_contexts(run, data, benchmark, recipe, set_)
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

    (context,) = open_contexts([run], data, benchmark, recipe, set_)
    written = write(context, _class_split([context], split), out)
    say(f"{link(out)}: {written}")


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
    contexts = open_contexts(run, data, benchmark, recipe, set_)
    words: Literal["one", "mean"] = "one" if caption == "one" else "mean"
    found = [(one.run.name, one.role(), retrieval.evaluate(one, words)) for one in contexts]
    show_retrieval(f"{contexts[0].packed.manifest.title}, {contexts[-1].benchmark}", found)


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

    (context,) = open_contexts([run], data, benchmark, recipe, set_)
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
