"""Accuracy per class, and the confusions that changed most between two rows of a table.

Rows of a confusion matrix are the truth. If a row of the table has several seeds, counts are means over them,
so that a confusion of one seed weighs little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from c2vl_evaluation.features import Labels
from c2vl_evaluation.report.figures import confusion_counts
from c2vl_evaluation.report.svg import COLOURS, GREY, legend, short, svg
from c2vl_evaluation.results import Role

Floats = npt.NDArray[np.float64]
SHOWN = 30
"""Classes in the figure; of more, those with the largest and the smallest gain."""
MOVED = 8
"""Confusions listed per control."""
_MARKS: dict[Role, dict[str, Any]] = {
    "pretrained": {"marker": "o", "markersize": 5.5, "color": COLOURS[0]},
    "shuffled": {"marker": "D", "markersize": 4.5, "color": COLOURS[1], "markerfacecolor": "none"},
    "floor": {"marker": "o", "markersize": 5, "color": GREY, "markerfacecolor": "none"},
    "ceiling": {"marker": "|", "markersize": 8, "color": GREY},
    "baseline": {"marker": "x", "markersize": 4, "color": GREY},
}


@dataclass(frozen=True)
class Answers:
    """Answers of the runs of one row of the table to the test split."""

    name: str
    role: Role
    runs: Sequence[Labels]
    """(N,) each, one per seed."""


@dataclass(frozen=True)
class Moved:
    """One confusion in two rows of the table: `answer` instead of `truth`."""

    truth: int
    answer: int
    samples: int
    """Of the class `truth` in the test split."""
    main: float
    """Number of them in the main row."""
    control: float
    """Number of them in the control."""

    @property
    def points(self) -> float:
        """Main minus control, in percent of the samples of the class."""
        return 100 * (self.main - self.control) / self.samples


def mean_counts(labels: Labels, runs: Sequence[Labels], classes: int) -> Floats:
    """Return how often class i was taken for class j, mean over runs. Shape: -> (classes, classes)."""
    counts = [confusion_counts(labels, answers, classes) for answers in runs]
    return np.asarray(np.mean(counts, axis=0, dtype=np.float64))


def accuracies(labels: Labels, runs: Sequence[Labels], classes: int) -> Floats:
    """Return the recall of every class, NaN without samples. Shape: -> (classes,)."""
    counts = mean_counts(labels, runs, classes)
    totals = counts.sum(axis=1)
    return np.asarray(np.divide(np.diag(counts), totals, where=totals > 0, out=np.full(classes, np.nan)))


def moved(labels: Labels, main: Answers, control: Answers, classes: int, limit: int = MOVED) -> list[Moved]:
    """Return the confusions whose number of samples differs most, in descending order.

    Ranked by samples and not by share: in a class of three samples, each one is a third.
    """
    ours, theirs = (mean_counts(labels, of.runs, classes) for of in (main, control))
    change = np.abs(ours - theirs).round(9)
    np.fill_diagonal(change, 0)
    pairs = sorted(np.argwhere(change).tolist(), key=lambda at: (-change[*at], at))
    totals = np.bincount(labels[labels >= 0], minlength=classes)
    return [Moved(i, j, int(totals[i]), float(ours[i, j]), float(theirs[i, j])) for i, j in pairs[:limit]]


def shown(gain: Floats, main: Floats, limit: int = SHOWN) -> list[int]:
    """Return the classes to draw, the largest gain first; of many, those at both ends.

    Args:
        gain: accuracy of the main row minus the control's (C,), NaN for a class without samples.
        main: accuracy of the main row (C,), which orders equal gains.
        limit: maximum number of classes.
    """
    known = np.flatnonzero(~np.isnan(gain))
    order: list[int] = known[np.lexsort((known, -main[known], -np.round(gain[known], 9)))].tolist()
    if len(order) <= limit:
        return order
    half = limit // 2
    return [*order[:half], *order[-(limit - half) :]]


def draw(names: Sequence[str], series: Mapping[str, tuple[Role, Floats]]) -> str:
    """Draw the accuracy of every class: a filled dot for the first series, marks for controls.

    Args:
        names: classes, in the order in which they are drawn.
        series: name of a row -> its role and its accuracy per class (C,), in [0, 1], NaN without samples.
    """
    lines = [short(name, 26) for name in names]
    places = np.arange(len(names))
    first = next(iter(series))

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        values = [accuracy for _, accuracy in series.values()]
        low, high = (100 * reduce(values, axis=0) for reduce in (np.fmin.reduce, np.fmax.reduce))
        ax.hlines(places, low, high, color=GREY, linewidth=0.8, alpha=0.5, zorder=1)
        entries = []
        for name, (role, accuracy) in series.items():
            style = _MARKS["pretrained" if name == first else role]
            ax.plot(100 * accuracy, places, linestyle="", zorder=3 if name == first else 2, **style)
            entries.append((name, {"linestyle": "", **style}))
        ax.set_yticks(places, lines)
        ax.tick_params(axis="y", length=0)
        ax.set(xlim=(-2, 102), ylim=(len(names) - 0.4, -0.6))
        ax.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("accuracy of the class, %")
        legend(figure, entries, columns=2)

    return svg("accuracy by class", 0.75 + 0.19 * len(names) + 0.17 * -(-len(series) // 2), paint)
