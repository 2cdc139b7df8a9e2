"""Three streams: the scores of encoders of joints, bones and motion added up, with weights fixed in advance.

*Reading:* the paper says neither which scores are added nor with which weights. Logits with 0.6, 0.6 and 0.4 (joint,
bone, motion) are what AimCLR does; equal weights stand beside them. Nothing is fitted, and no test sample is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import Outcome, Predictions, Subject, kept
from c2vl_evaluation.protocols import finetuning, linear
from c2vl_evaluation.protocols.finetuning import Cell
from c2vl_evaluation.results import Finding
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Emit, silent
from c2vl_training.checkpoint import load_finished

STREAMS = ("joint", "bone", "motion")
_ALIKE = ("targets", "knowledge", "pairs")
"""What streams of one line of a table share, beside the kind of their training."""


def by_stream(subjects: list[Subject]) -> dict[str, Subject]:
    """Return three subjects by the stream that each was trained on.

    Raises:
        ConfigError: not one of each, or they were not trained alike.
    """
    found: dict[str, Subject] = {}
    how: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        facts = load_finished(subject.run)[1]
        stream = str(facts.get("input", {}).get("stream"))
        if stream in found:
            raise ConfigError(
                f"{found[stream].run} and {subject.run} are both of the {stream} stream; give one run of each of "
                f"{', '.join(STREAMS)}"
            )
        found[stream] = subject
        config = facts.get("config") or {}
        how[stream] = {"kind": facts.get("kind"), **_told(config)}
    for stream, told in how.items():
        first = next(iter(how))
        names = sorted({*told, *how[first]}, key=lambda name: (not name.endswith("kind"), name))
        for name in (name for name in names if told.get(name) != how[first].get(name)):
            raise ConfigError(
                f"{found[first].run} and {found[stream].run} were not trained alike: {name} is {how[first].get(name)} there "
                f"and {told.get(name)} here; give three runs that differ in training.input.stream alone (or in their seed)"
            )
    if lacking := [stream for stream in STREAMS if stream not in found]:
        raise ConfigError(
            f"no run of the {' and of the '.join(lacking)} stream is given; train {'it' if len(lacking) == 1 else 'them'} by "
            f"{' and by '.join(f'--set training.input.stream={stream}' for stream in lacking)}, then give --run three times"
        )
    return {stream: found[stream] for stream in STREAMS}


def _told(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what streams share of a training's configuration, flat: `targets.kind`, `pairs`."""
    found: dict[str, Any] = {}
    for name in _ALIKE:
        value = config.get(name)
        found |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def cells(subjects: Mapping[str, Subject], emit: Emit = silent) -> Iterator[Cell]:
    """Yield fixed and equal weights, for each protocol whose scores are added, before they are run."""
    first = subjects["joint"]
    config = first.recipe.evaluation.ensemble
    fixed = {stream: float(getattr(config, stream)) for stream in STREAMS}
    for protocol in config.protocol:
        for said, weights in (
            ("/".join(f"{weight:g}" for weight in fixed.values()), fixed),
            ("equal weights", dict.fromkeys(STREAMS, 1.0)),
        ):
            name = f"{protocol}, {said}"
            yield Cell("ensemble", name, 0, partial(_fused, subjects, protocol, name, weights, emit))


def _fused(
    subjects: Mapping[str, Subject], protocol: str, name: str, weights: Mapping[str, float], emit: Emit
) -> Outcome:
    first = subjects["joint"]
    e = first.recipe.evaluation
    of = e.finetune if protocol == "finetune" else e.linear
    told = {stream: subject.task("ensemble", of).key for stream, subject in subjects.items()}

    def compute() -> Outcome:
        parts = {
            stream: finetuning.outcome(subject, emit) if protocol == "finetune" else linear.outcome(subject)
            for stream, subject in subjects.items()
        }
        found = add({stream: part.predictions for stream, part in parts.items() if part.predictions}, weights)
        last = metrics.score(torch.from_numpy(found.scores), torch.from_numpy(found.labels))
        epochs, train = parts["joint"].finding.epochs, parts["joint"].finding.train
        finding = Finding(
            protocol="ensemble", setting=name, last=last, epochs=epochs, train=train, test=len(found.labels)
        )
        return Outcome(finding, found)

    # the other encoders are named by their keys, which differ from run to run: no part of the settings
    return kept(first.task("ensemble", of, setting=name, weights=dict(weights)), compute, told)


def add(parts: Mapping[str, Predictions], weights: Mapping[str, float]) -> Predictions:
    """Return the weighted sum of the scores of several streams.

    Raises:
        DataError: they are not of the same samples in the same order.
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
        raise CheckpointError(
            "scores of a stream are not finite: its training diverged; lower its learning rate"
        )
    return Predictions(first.sample_ids, first.labels, total.argmax(axis=1), np.asarray(total, np.float32))
