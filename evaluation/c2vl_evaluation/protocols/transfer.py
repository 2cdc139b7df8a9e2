"""Transfer protocol: an encoder trained on one dataset, evaluated on the splits of another one.

Both have the same joints, or the target was packed in the layout of the source (`c2vl-pipeline pack
--layout`).

*Reading:* the paper fine-tunes (`tuned`); the header of its Table V says PKU-MMD I, its caption and text say
II. `frozen`, the linear protocol on the other dataset, shows what the features carry over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from c2vl_evaluation.cache import Cell, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.metrics import data_read
from c2vl_evaluation.protocols import finetuning, linear
from c2vl_evaluation.results import target_id
from c2vl_manifests.errors import ConfigError
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import rows_trained_on


def target_name(packed: PackedDataset, benchmark: str, source: str, *more: str) -> str:
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


def is_own(facts: Mapping[str, Any], packed: PackedDataset) -> bool:
    """Return True if a run of these facts was trained on clips of the same dataset; a larger one may hold them too."""
    return facts.get("dataset") == packed.manifest.dataset and len(rows_trained_on(facts, packed)) > 0


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the frozen and the tuned encoder before either is run.

    Raises:
        CheckpointError: there is no finished run.
        ConfigError: it was trained on this very data.
    """
    facts, packed = context.facts(), context.packed
    source = str(facts.get("dataset", "elsewhere"))
    if is_own(facts, packed):
        raise ConfigError(
            f"{context.run} was trained on clips of {packed.folder} itself; give another dataset, or run "
            "`c2vl-eval run finetune`"
        )
    target = context.target or target_name(packed, context.benchmark, source)
    config = context.recipe.evaluation.transfer
    for encoder in config.encoder:
        known = "other data" if source == packed.manifest.dataset else source  # the target is named by its folder
        name = f"{known} to {target}, {encoder}"
        if encoder == "frozen":
            cell = _frozen(context)
        else:
            label = f"{context.run.name} {name}"
            cell = finetuning.cell(context, "transfer", config.tune, label, encoder="tuned")
        yield replace(cell, setting=name, target=target_id(data_read(packed, context.benchmark), context.benchmark))


def _frozen(context: EvalContext) -> Cell:
    config = context.recipe.evaluation.linear

    def compute() -> ResultWithPredictions:
        train, test, classes = context.features()
        found = linear.probe(train, test, classes, config, context.seed)
        return ResultWithPredictions(found.result("transfer"), context.predictions(test.rows, found.logits))

    return Cell("transfer", compute, context.key("transfer", config, encoder="frozen"))
