"""Two runs on the same test samples: the difference, and how far chance in the choice of samples may have made it.

A paired bootstrap: test samples are drawn anew with replacement, each with the answers of both runs. The interval
speaks of these two runs and of other test samples; what other seeds would give is not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_evaluation import cache
from c2vl_evaluation.features import Labels
from c2vl_evaluation.results import Protocol
from c2vl_manifests.errors import CheckpointError, DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A minus B, as shares; `low` and `high` hold 95 % of the resamples."""

    a: float
    b: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two runs under one setting of a protocol."""

    protocol: Protocol
    setting: str
    samples: int
    draws: int
    """Each sample's answers are averaged over so many draws of labels."""
    top1: Difference
    balanced: Difference
    only_a: float
    """Share of the samples that A alone gets right."""
    only_b: float


def bootstrap(
    a: Floats, b: Floats, labels: Labels, resamples: int = 10_000, seed: int = 0
) -> tuple[Difference, Difference]:
    """Return the differences of top-1 and of balanced accuracy.

    Samples that agree in class and in what both runs said are interchangeable, so a resample is a draw of how often
    each such group occurs: the same distribution as drawing samples, in a hundredth of the time.

    Args:
        a: how far the first run was right, (N,), 0 or 1, or a mean over draws.
        b: the same of the second run.
        labels: true classes (N,).
        resamples: how many.
        seed: of the resamples.
    """
    groups, counts = np.unique(np.stack([labels, a, b], axis=1), axis=0, return_counts=True)
    _, member = np.unique(groups[:, 0], return_inverse=True)
    of_class = (member[:, None] == np.arange(member.max() + 1)).astype(np.float64)  # (groups, classes)
    rng = np.random.default_rng(seed)
    found: dict[str, list[Floats]] = {"top1": [], "balanced": []}
    difference = groups[:, 1] - groups[:, 2]
    for start in range(0, resamples, 500):
        drawn = rng.multinomial(counts.sum(), counts / counts.sum(), min(500, resamples - start)).astype(
            float
        )
        found["top1"].append(drawn @ difference / counts.sum())
        sizes = drawn @ of_class
        # a class that a resample lacks has no recall there
        recall = np.divide((drawn * difference) @ of_class, sizes, where=sizes > 0, out=np.zeros_like(sizes))
        found["balanced"].append(recall.sum(axis=1) / (sizes > 0).sum(axis=1))
    totals = counts @ of_class
    said = []
    for kind, shares in (
        ("top1", counts / counts.sum()),
        ("balanced", counts / totals[member] / len(totals)),
    ):
        low, high = np.quantile(np.concatenate(found[kind]), [0.025, 0.975])
        said.append(
            Difference(float(shares @ groups[:, 1]), float(shares @ groups[:, 2]), float(low), float(high))
        )
    return said[0], said[1]


def compare(
    one: Path, other: Path, protocol: Protocol = "linear", resamples: int = 10_000
) -> list[Comparison]:
    """Compare two runs in every setting of a protocol in which both were evaluated.

    Raises:
        CheckpointError: a folder holds no finished run, or what they have in common is of another encoder than it
            holds now.
        DataError: they have no setting in common, or a file is damaged.
    """
    ours, theirs = cache.stored(one, protocol), cache.stored(other, protocol)
    common = [name for name in ours.found if name in theirs.found]
    if not common:
        _refuse_stale(one, ours, other, theirs)
        raise DataError(
            f"{one} and {other} have no {protocol} result of the same data, benchmark and configuration; "
            f"run `c2vl-eval run {protocol}` on both"
        )
    settings: dict[str, list[tuple[cache.Predictions, cache.Predictions]]] = {}
    for name in common:
        a, b = ours.found[name], theirs.found[name]
        assert a.predictions is not None
        assert b.predictions is not None
        if a.predictions.sample_ids != b.predictions.sample_ids:
            raise DataError(f"{one} and {other} answered other test samples; evaluate both on the same data")
        settings.setdefault(a.result.setting, []).append((a.predictions, b.predictions))
    return [_compared(protocol, setting, pairs, resamples) for setting, pairs in settings.items()]


def _refuse_stale(one: Path, ours: cache.Stored, other: Path, theirs: cache.Stored) -> None:
    """Raise where results would be in common, were they not of another encoder than their run holds now."""
    names = (ours.found.keys() | ours.stale.keys()) & (theirs.found.keys() | theirs.stale.keys())
    files = [str(side.stale[name]) for name in sorted(names) for side in (ours, theirs) if name in side.stale]
    if files:
        raise CheckpointError(
            f"{' and '.join(files[:2])}{f' and {len(files) - 2} more' if len(files) > 2 else ''}: of another encoder than "
            f"the run holds now, and nothing else is common to {one} and {other}; delete what is out of date, then "
            f"evaluate both by one command line (equal --data, --benchmark, --recipe and --set)"
        )


def _compared(
    protocol: Protocol,
    setting: str,
    pairs: list[tuple[cache.Predictions, cache.Predictions]],
    resamples: int,
) -> Comparison:
    labels = pairs[0][0].labels
    a, b = (
        np.asarray(np.mean([pair[side].answers == labels for pair in pairs], axis=0, dtype=np.float64))
        for side in (0, 1)
    )
    top1, balanced = bootstrap(a, b, labels, resamples)
    alone = [
        float(np.mean([(p.answers == labels) & (q.answers != labels) for p, q in order]))
        for order in (pairs, [(q, p) for p, q in pairs])
    ]
    return Comparison(protocol, setting, len(labels), len(pairs), top1, balanced, alone[0], alone[1])
