"""Transfer protocol: an encoder trained on one dataset, evaluated on the splits of another one.

Both have the same joints, or the target was packed in the layout of the source (`c2vl-pipeline pack
--layout`).

*Reading:* the paper fine-tunes (`tuned`); the header of its Table V says PKU-MMD I, its caption and text say
II. `frozen`, the linear protocol on the other dataset, shows what the features carry over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from c2vl_evaluation.cache import Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.protocols.finetuning import Job, tune
from c2vl_evaluation.results import target_id
from c2vl_manifests.errors import ConfigError
from c2vl_training.dataset import Packed


def target_name(packed: Packed, benchmark: str, source: str, *more: str) -> str:
    """Return the name of a target: dataset, benchmark, and its folder if the source is of the same dataset.

    Args:
        packed: the target.
        benchmark: there.
        source: dataset that the encoder was trained on.
        more: further words that make the name unique.
    """
    own = (folder_name(packed.folder),) if packed.manifest.dataset == source else ()
    words = ", ".join(dict.fromkeys((*own, *more)))
    return f"{packed.manifest.dataset}, {benchmark}" + (f" ({words})" if words else "")


def folder_name(packed: Path) -> str:
    """Return the name of a work folder, or of the packed one if it stands alone."""
    at = packed.resolve()
    return at.parent.name if at.name == "packed" else at.name


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the frozen and the tuned encoder before either is run.

    Raises:
        CheckpointError: there is no finished run.
        ConfigError: it was trained on this very data.
    """
    facts, packed = context.facts(), context.packed
    if facts.get("data") == packed.manifest.fingerprint:
        raise ConfigError(
            f"{context.run} was trained on the data of {packed.folder} itself; give another dataset, or run "
            "`c2vl-eval run finetune`"
        )
    source = str(facts.get("dataset", "elsewhere"))
    target = context.target or target_name(packed, context.benchmark, source)
    for encoder in context.recipe.evaluation.transfer.encoder:
        cell = (_frozen if encoder == "frozen" else _tuned)(context, f"{source} to {target}, {encoder}")
        yield replace(cell, target=target_id(packed.manifest.fingerprint, context.benchmark))


def _frozen(context: EvalContext, name: str) -> Cell:
    config = context.recipe.evaluation.linear

    def compute() -> ResultWithPredictions:
        train, test, classes = context.features()
        found = linear.probe(train, test, classes, config, context.seed)
        result = found.result(config, len(train.labels), protocol="transfer")
        return ResultWithPredictions(result, context.predictions(test.rows, found.logits))

    return Cell("transfer", compute, context.key("transfer", config, encoder="frozen"), name)


def _tuned(context: EvalContext, name: str) -> Cell:
    config, precision = context.recipe.evaluation.transfer.tune, context.recipe.training.precision

    def compute() -> ResultWithPredictions:
        train, test, classes = context.splits()
        job = Job(context, train.rows, test.rows, classes, config, f"{context.run.name} {name}")
        return tune(job).result(job, "transfer")

    key = context.key("transfer", config, encoder="tuned", precision=precision)
    return Cell("transfer", compute, key, name)
