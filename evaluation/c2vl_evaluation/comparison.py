"""Comparison of two runs on the same test samples: differences with intervals by a paired bootstrap.

Test samples are drawn with replacement, each with the answers of both runs. An interval covers the choice of
test samples for these two runs; it does not cover what other seeds would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_evaluation import cache
from c2vl_evaluation.features import Labels
from c2vl_evaluation.results import Protocol
from c2vl_manifests.errors import CheckpointError, DataError

Floats = npt.NDArray[np.float64]
Pair = tuple[cache.Predictions, cache.Predictions]
"""Answers of two runs to the same test samples."""


@dataclass(frozen=True)
class Difference:
    """Difference A minus B of two shares; `low` and `high` enclose 95 % of the resamples."""

    a: float
    b: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """True if the interval excludes zero: more than the choice of test samples explains."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs under one setting of a protocol."""

    protocol: Protocol
    setting: str
    samples: int
    draws: int
    """Number of draws of labels over which each sample's answers are averaged."""
    top1: Difference
    balanced: Difference
    only_a: float
    """Share of the samples that A alone gets right."""
    only_b: float


def bootstrap(
    a: Floats, b: Floats, labels: Labels, resamples: int = 10_000, seed: int = 0
) -> tuple[Difference, Difference]:
    """Return the differences of top-1 and of balanced accuracy.

    Samples of equal class and equal answers of both runs are interchangeable, so a resample is a draw of how
    often each such group occurs: the same distribution as drawing samples, in a hundredth of the time.

    Args:
        a: correctness of the first run per sample, (N,): 0 or 1, or a mean over draws.
        b: the same for the second run.
        labels: true classes (N,).
        resamples: number of resamples.
        seed: of the resamples.
    """
    groups, counts = np.unique(np.stack([labels, a, b], axis=1), axis=0, return_counts=True)
    _, member = np.unique(groups[:, 0], return_inverse=True)
    of_class = (member[:, None] == np.arange(member.max() + 1)).astype(np.float64)  # (groups, classes)
    rng = np.random.default_rng(seed)
    found: dict[str, list[Floats]] = {"top1": [], "balanced": []}
    difference = groups[:, 1] - groups[:, 2]
    for start in range(0, resamples, 500):
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), min(500, resamples - start)).astype(float)
        found["top1"].append(drawn @ difference / counts.sum())
        sizes = drawn @ of_class
        # a class without samples in a resample has no recall there
        recall = np.divide((drawn * difference) @ of_class, sizes, where=sizes > 0, out=np.zeros_like(sizes))
        found["balanced"].append(recall.sum(axis=1) / (sizes > 0).sum(axis=1))
    totals = counts @ of_class
    differences = []
    for kind, shares in (("top1", counts / counts.sum()), ("balanced", counts / totals[member] / len(totals))):
        low, high = np.quantile(np.concatenate(found[kind]), [0.025, 0.975])
        differences.append(
            Difference(float(shares @ groups[:, 1]), float(shares @ groups[:, 2]), float(low), float(high))
        )
    return differences[0], differences[1]


def compare(one: Path, other: Path, protocol: Protocol = "linear", resamples: int = 10_000) -> list[Comparison]:
    """Compare two runs under every setting of a protocol under which both were evaluated.

    Args:
        one: folder of a run.
        other: folder of another run.
        protocol: whose stored answers are compared.
        resamples: see `bootstrap`.

    Raises:
        CheckpointError: a folder holds no finished run, or the results in common are of an earlier encoder.
        DataError: the runs have no setting in common, or a file is damaged.
    """
    first, second = cache.stored(one, protocol), cache.stored(other, protocol)
    common = [name for name in first.found if name in second.found]
    if not common:
        _check_stale(one, first, other, second)
        raise DataError(
            f"{one} and {other} have no {protocol} result of the same data, benchmark and configuration; run "
            f"`c2vl-eval run {protocol}` on both"
        )
    settings: dict[str, list[Pair]] = {}
    for name in common:
        a, b = first.found[name], second.found[name]
        assert a.predictions is not None
        assert b.predictions is not None
        if a.predictions.sample_ids != b.predictions.sample_ids:
            raise DataError(f"{one} and {other} have answers to different test samples; evaluate both on the same data")
        settings.setdefault(a.result.setting, []).append((a.predictions, b.predictions))
    return [_compared(protocol, setting, pairs, resamples) for setting, pairs in settings.items()]


def _check_stale(one: Path, first: cache.Stored, other: Path, second: cache.Stored) -> None:
    """Raise CheckpointError if the only results in common are of an earlier encoder."""
    names = (first.found.keys() | first.stale.keys()) & (second.found.keys() | second.stale.keys())
    files = [str(side.stale[name]) for name in sorted(names) for side in (first, second) if name in side.stale]
    if files:
        raise CheckpointError(
            f"{' and '.join(files[:2])}{f' and {len(files) - 2} more' if len(files) > 2 else ''}: of another "
            f"encoder than the run has now, and {one} and {other} have no other result in common; delete "
            "these files, then evaluate both by one command line (equal --data, --benchmark, --recipe and "
            "--set)"
        )


def paired(pairs: Sequence[Pair], resamples: int = 10_000) -> tuple[Difference, Difference]:
    """Return the differences of top-1 and of balanced accuracy of two runs (or several seeds of two) in pairs."""
    labels = pairs[0][0].labels
    a, b = (
        np.asarray(np.mean([pair[side].answers == labels for pair in pairs], axis=0, dtype=np.float64))
        for side in (0, 1)
    )
    return bootstrap(a, b, labels, resamples)


def _compared(protocol: Protocol, setting: str, pairs: Sequence[Pair], resamples: int) -> Comparison:
    labels = pairs[0][0].labels
    top1, balanced = paired(pairs, resamples)
    alone = [
        float(np.mean([(p.answers == labels) & (q.answers != labels) for p, q in order]))
        for order in (pairs, [(q, p) for p, q in pairs])
    ]
    return Comparison(protocol, setting, len(labels), len(pairs), top1, balanced, alone[0], alone[1])
