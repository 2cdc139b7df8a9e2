"""The protocols by name, and the computation of their results, of which each may fail alone.

A protocol is a module with `cells(context)`, which yields its results before they are computed, and an entry
in `PROTOCOLS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from c2vl_evaluation.cache import Cell
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import ensemble, finetuning, knn, linear, semi, transfer
from c2vl_evaluation.results import Protocol, Result
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.pages import shorten_paths
from c2vl_training.dataset import PackedDataset
from c2vl_training.memory import OutOfMemoryError

PROTOCOLS: dict[Protocol, Callable[[EvalContext], Iterator[Cell]]] = {
    "knn": knn.cells,
    "linear": linear.cells,
    "finetune": finetuning.cells,
    "semi": semi.cells,
    "transfer": transfer.cells,
    "ensemble": ensemble.cells,
}
"""Name -> its results on a run before they are computed, in the order of a table."""


def protocol_name(word: str) -> Protocol:
    """Return the protocol that a word names.

    Raises:
        ConfigError: there is none.
    """
    for name in PROTOCOLS:
        if name == word:
            return name
    raise ConfigError(f"protocol {word!r} is unknown; expected one of {', '.join(PROTOCOLS)}")


def evaluate(
    runs: Path | Sequence[Path],
    data: Path,
    protocol: str = "linear",
    *,
    benchmark: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    emit: Emit = silent,
) -> list[Result]:
    """Evaluate a finished run by one protocol, or return what is stored next to it.

    Args:
        runs: folder of a run that `c2vl-train` wrote; one for each stream for `ensemble`.
        data: packed data, or the work folder around them; those to go to for `transfer`.
        protocol: a key of `PROTOCOLS`.
        benchmark: see `EvalContext.open`.
        recipe: see `EvalContext.open`.
        overrides: see `EvalContext.open`.
        emit: receives progress.

    Raises:
        C2VLError: the run, the data or the configuration cannot be used, or the evaluation diverged.
    """
    name, packed = protocol_name(protocol), PackedDataset(data)
    folders = [runs] if isinstance(runs, Path) else runs
    contexts = [EvalContext.open(run, packed, benchmark, recipe, overrides, emit) for run in folders]
    if name == "ensemble":
        contexts = [ensemble.joined(contexts)]
    return [cell.run().result for context in contexts for cell in PROTOCOLS[name](context)]


def fails_alone(error: C2VLError) -> bool:
    """Return True if an error concerns one result (it diverged, or memory ran out), and not data, settings or the machine."""
    return type(error) in {C2VLError, CheckpointError, OutOfMemoryError}


def run_safely(cells: Iterable[Cell], label: str, emit: Emit = silent) -> Iterator[Result]:
    """Run cells; one that diverges becomes a result that says why, and the others are still computed.

    Args:
        cells: of one run.
        label: name of the run, for notes.
        emit: receives a note of each failure.

    Raises:
        C2VLError: an error of data or settings.
        OSError: the disk is full.
    """
    for cell in cells:
        try:
            yield cell.run().result
        except C2VLError as error:
            if not fails_alone(error):
                raise
            why = " ".join(str(error).split())
            result = Result(
                protocol=cell.protocol, setting=cell.setting, draw=cell.draw, target=cell.target,
                why=shorten_paths(why), failed=True,
            )  # fmt: skip
            where = f"{label}, {cell.protocol} {cell.setting}".rstrip()
            emit(Note(f"{where}: failed: {why}; the other results are still computed", "warning"))
            yield result
