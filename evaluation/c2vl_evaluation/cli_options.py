"""What several commands of `c2vl-eval` share: options, and the runs that they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c2vl_manifests.cli_common import optional
from c2vl_manifests.cli_output import Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from c2vl_evaluation.context import EvalContext
    from c2vl_manifests.events import Emit

RunOption = Annotated[Path, typer.Option("--run", help="Folder of a finished c2vl-train run.")]
BenchmarkOption = Annotated[str | None, optional("--benchmark", "Default: the one that the run was trained on.")]


def open_contexts(
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
