"""Ensemble protocol: weighted sum of the scores of a joint, a bone and a motion encoder.

*Reading:* the paper states neither which scores are added nor the weights. Logits with 0.6, 0.6 and 0.4
(joint, bone, motion) follow AimCLR; equal weights are reported next to them. Nothing is fitted, and no test
label is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import Cell, Predictions, ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.protocols import finetuning, linear
from c2vl_evaluation.results import Result
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError

STREAMS = ("joint", "bone", "motion")
_SHARED = ("targets", "knowledge", "pairs")
"""Settings that the streams of one ensemble must share, besides the kind of training."""


def joined(contexts: Sequence[EvalContext]) -> EvalContext:
    """Return the context of the joint stream, with all three in its `streams`.

    Raises:
        ConfigError: there is not one run of each stream, or they were not trained alike.
    """
    found: dict[str, EvalContext] = {}
    how: dict[str, dict[str, Any]] = {}
    for context in contexts:
        facts = context.facts()
        stream = str(facts.get("input", {}).get("stream"))
        if stream in found:
            raise ConfigError(
                f"{found[stream].run} and {context.run} are both of the {stream} stream; give one run of "
                f"each of {', '.join(STREAMS)}"
            )
        found[stream] = context
        config = facts.get("config") or {}
        how[stream] = {"kind": facts.get("kind"), **_shared(config)}
    for stream, settings in how.items():
        first = next(iter(how))
        names = sorted({*settings, *how[first]}, key=lambda name: (not name.endswith("kind"), name))
        for name in (name for name in names if settings.get(name) != how[first].get(name)):
            raise ConfigError(
                f"{found[first].run} and {found[stream].run} were not trained alike: {name} is "
                f"{how[first].get(name)} there and {settings.get(name)} here; give three runs that differ in "
                "training.input.stream alone (or in their seed)"
            )
    if lacking := [stream for stream in STREAMS if stream not in found]:
        raise ConfigError(
            f"no run of the {' and of the '.join(lacking)} stream is given; train "
            f"{'it' if len(lacking) == 1 else 'them'} by "
            f"{' and by '.join(f'--set training.input.stream={stream}' for stream in lacking)}, then give "
            "--run three times"
        )
    return replace(found["joint"], streams={stream: found[stream] for stream in STREAMS})


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that streams must share, flat: `targets.kind`, `pairs`."""
    found: dict[str, Any] = {}
    for name in _SHARED:
        value = config.get(name)
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def cells(context: EvalContext) -> Iterator[Cell]:
    """Yield the sums with fixed and with equal weights, for each protocol whose scores are added."""
    config = context.recipe.evaluation.ensemble
    fixed = {stream: float(getattr(config, stream)) for stream in STREAMS}
    for protocol in config.protocol:
        yield _fused(context, protocol, "/".join(f"{weight:g}" for weight in fixed.values()), fixed)
        yield _fused(context, protocol, "equal weights", dict.fromkeys(STREAMS, 1.0))


def _fused(context: EvalContext, protocol: str, weighting: str, weights: Mapping[str, float]) -> Cell:
    name = f"{protocol}, {weighting}"
    cells_of = finetuning.cells if protocol == "finetune" else linear.cells
    parts = {stream: next(cells_of(one)) for stream, one in context.streams.items()}

    def compute() -> ResultWithPredictions:
        results = {stream: cell.run() for stream, cell in parts.items()}
        found = add({stream: part.predictions for stream, part in results.items() if part.predictions}, weights)
        last = metrics.score(torch.from_numpy(found.scores), torch.from_numpy(found.labels))
        first = next(iter(results.values())).result
        result = Result(
            protocol="ensemble", setting=name, last=last, epochs=first.epochs, train=first.train, test=len(found.labels)
        )  # fmt: skip
        return ResultWithPredictions(result, found)

    evaluation = context.recipe.evaluation
    config = evaluation.finetune if protocol == "finetune" else evaluation.linear
    key = context.key("ensemble", config, setting=name, weights=dict(weights))
    others = {stream: cell.key for stream, cell in parts.items() if cell.key is not None}
    return Cell("ensemble", compute, replace(key, others=others), name)


def add(parts: Mapping[str, Predictions], weights: Mapping[str, float]) -> Predictions:
    """Return the weighted sum of the scores of several streams.

    Raises:
        DataError: the streams answered other samples or in another order.
        CheckpointError: a score is NaN or infinite.
    """
    streams = list(parts)
    first = parts[streams[0]]
    for stream in streams[1:]:
        if parts[stream].sample_ids != first.sample_ids:
            raise DataError(
                f"the {streams[0]} and the {stream} stream answered other test samples; evaluate all on the same data"
            )
    total = np.sum([weights[stream] * parts[stream].scores for stream in streams], axis=0)
    if not np.isfinite(total).all():
        raise CheckpointError("scores of a stream are not finite: its training diverged; lower its learning rate")
    return Predictions(first.sample_ids, first.labels, total.argmax(axis=1), np.asarray(total, np.float32))
