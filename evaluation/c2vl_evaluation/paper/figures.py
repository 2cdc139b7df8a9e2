"""Figures 4-8 of the paper, drawn from finished trainings; a sentence replaces a figure that cannot be drawn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from pydantic import BaseModel

from c2vl_evaluation.features import extract
from c2vl_evaluation.metrics import class_name
from c2vl_evaluation.paper.compute import reason
from c2vl_evaluation.paper.experiments import Experiments, TableCell
from c2vl_evaluation.paper.spec import tables_and_figures
from c2vl_evaluation.paper.tables import DERIVED, derived
from c2vl_evaluation.report import figures
from c2vl_evaluation.report.svg import COLOURS, GREY, legend, svg
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_manifests.reading import read_bytes
from c2vl_training.run_log import read_histograms

_FORMAT = 3
CLASSES = 10
"""Classes of the t-SNE and the confusion matrices: a fixed random choice from the test split."""
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Panel:
    """One drawing; if `svg` is empty, the title is the reason."""

    title: str
    svg: str = ""


class _Drawn(BaseModel):
    panels: tuple[Panel, ...]


def draw(experiments: Experiments, cells: Sequence[TableCell], *, fresh: bool = True) -> list[Panel]:
    """Draw a figure for one dataset, or return the stored drawing of the same results.

    Args:
        experiments: for the stored results; drawings are stored in `figures/` of its folder.
        cells: cells of one figure and column.
        fresh: draw figures that were not drawn before; each takes seconds.
    """
    cells = [cell for cell in cells if cell.row.role == "pretrained"]  # controls are in the table of numbers only
    results = [[experiments.results(one) for one in cell.evaluations] for cell in cells]
    todo = [cell for cell, of in zip(cells, results, strict=True) if not of or None in of]
    if todo:
        several = f" ({len(todo)} of {len(cells)} trainings)" if cells[0].evaluations else ""
        return [Panel(f"Not drawn: {reason(experiments, todo[0])}{several}.")]
    first = cells[0]
    keys = [
        (cell.row.label, [result.key for one in of for result in one or ()])
        for cell, of in zip(cells, results, strict=True)
    ]
    key = fingerprint({"format": _FORMAT, "figure": first.table, "results": keys})[:16]
    name = f"{first.table}-{first.column.dataset}-{first.column.benchmark}-{key}.json"
    path = experiments.out / "figures" / name
    try:
        return list(_Drawn.model_validate_json(read_bytes(path)).panels)
    except (OSError, ValueError):  # absent or damaged
        pass
    if not fresh:
        return [Panel("Not drawn yet: run the same command again.")]
    panels = _draw(experiments, cells)
    if all(panel.svg for panel in panels):
        commit_text(path, _Drawn(panels=tuple(panels)).model_dump_json() + "\n")
    return panels


def _draw(experiments: Experiments, cells: Sequence[TableCell]) -> list[Panel]:
    draw_: dict[str, Callable[[], list[Panel]]] = {
        "figure4": lambda: _similarities(cells, "positive"),
        "figure5": lambda: _similarities(cells, "negative"),
        "figure6": lambda: _sweeps(experiments, cells),
        "figure7": lambda: [_scatter(cell) for cell in cells],
        "figure8": lambda: [_confusion(cell) for cell in cells],
    }
    try:
        return draw_[cells[0].table]()
    except (C2VLError, OSError, ValueError) as error:  # a run was deleted, or too few samples
        return [Panel(f"Not drawn: {error}.")]


# -------------------------------------------------------------------------------------------- similarities


def _similarities(cells: Sequence[TableCell], pairs: str) -> list[Panel]:
    """Draw the histograms of the last epoch, one panel per kind of prompt."""
    panels = []
    for kind in ("vision", "language"):
        counts = {}
        for cell in cells:
            lines = read_histograms(cell.evaluations[0].runs[0].out)
            if lines and f"{kind}/{pairs}" in lines[-1]:
                counts[cell.row.label] = [int(n) for n in lines[-1][f"{kind}/{pairs}"]]
        if counts:
            panels.append(Panel(kind, histograms(counts, f"cosine of skeleton and {kind}, {pairs} pairs")))
    return panels or [Panel(f"Not drawn: no run counted similarities of {pairs} pairs.")]


def histograms(counts: Mapping[str, Sequence[int]], label: str) -> str:
    """Draw histograms over equal bins of [-1, 1], each as a share of its pairs.

    Raises:
        ValueError: nothing was counted.
    """
    if not any(sum(bins) for bins in counts.values()):
        raise ValueError("no similarity was counted")

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        for i, bins in enumerate(counts.values()):
            edges = np.linspace(-1, 1, len(bins) + 1)
            share = 100 * np.asarray(bins) / max(1, sum(bins))
            colour = COLOURS[i % len(COLOURS)]
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            ax.stairs(share, edges, linewidth=1.3, color=colour)
        filled = np.flatnonzero(np.sum(list(counts.values()), axis=0))
        width = 2 / len(next(iter(counts.values())))
        ax.set_xlim(max(-1, -1 + width * (filled[0] - 2)), min(1, -1 + width * (filled[-1] + 3)))
        ax.set_xlabel(label)
        ax.set_ylabel("% of pairs")
        legend(figure, ((name, {"color": COLOURS[i % len(COLOURS)]}) for i, name in enumerate(counts)), columns=2)

    return svg(label, 2.4, paint)


# -------------------------------------------------------------------------------------------------- sweeps


def _sweeps(experiments: Experiments, cells: Sequence[TableCell]) -> list[Panel]:
    panels = []
    for name in ("alpha", "beta"):
        points = {}
        for cell in cells:
            if cell.row.label.startswith(name):
                results = [r for one in cell.evaluations for r in experiments.results(one) or ()]
                scores = [r.last.top1 for r in results if r.last is not None]
                points[cell.row.label.removeprefix(f"{name} ")] = scores
        panels.append(Panel(name, sweep(points, name)))
    return panels


def sweep(points: Mapping[str, Sequence[float]], label: str) -> str:
    """Draw accuracy, mean and standard deviation over seeds, against the values of a hyper-parameter.

    Raises:
        ValueError: a value has no score.
    """
    if not points or not all(points.values()):
        raise ValueError(f"not every value of {label} has a score")

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        means = [100 * statistics.mean(values) for values in points.values()]
        spread = [100 * statistics.stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
        error = spread if any(spread) else None
        ax.errorbar(range(len(points)), means, yerr=error, marker="o", markersize=4, capsize=2, color=COLOURS[0])
        for at, (mean, wide) in enumerate(zip(means, spread, strict=True)):
            # where no line leaves the point: above a peak, below a valley, above and aside of a slope
            left = at == 0 or means[at - 1] <= mean
            right = at == len(means) - 1 or means[at + 1] <= mean
            end = at in {0, len(means) - 1}
            side = "center" if end or left == right else "right" if left else "left"
            up = left and right if end else left or right
            lift = wide if side == "center" else 0.0
            ax.annotate(
                f"{mean:.1f}",
                (at, mean + lift if up else mean - lift),
                xytext=({"center": 0, "right": -4, "left": 4}[side], 6 if up else -6),
                textcoords="offset points",
                ha=side,
                va="bottom" if up else "top",
                fontsize=8,
            )
        ax.set_xticks(range(len(points)), list(points))
        ax.margins(x=0.08, y=0.25)
        ax.set_xlabel(label)
        ax.set_ylabel("linear, top-1, %")
        ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)

    return svg(f"linear accuracy against {label}", 2.4, paint)


# ------------------------------------------------------------------------------------------------- classes


def chosen_classes(labels: npt.NDArray[np.int64]) -> list[int]:
    """Return ten random classes of a test split in order, the same for the same set of classes. Shape: (N,)."""
    present = np.unique(labels[labels >= 0])
    chosen = np.random.default_rng(0).permutation(present)[:CLASSES]
    return sorted(int(label) for label in chosen)


def caption(cells: Sequence[TableCell]) -> str:
    """Return the caption of a figure, with the number of classes and a note on captions computed from joints.

    Args:
        cells: cells of one figure and column.
    """
    first = cells[0]
    text = tables_and_figures()[first.table].caption.format(classes=_class_words(first))
    return f"{text} {DERIVED}" if any(derived(cell) for cell in cells) else text


def _class_words(cell: TableCell) -> str:
    """Return `the same ten random test classes`, or `all six test classes` if there are no more."""
    count, all_ = CLASSES, False
    if cell.evaluations:
        labels = _test_labels(cell)
        count, all_ = len(chosen_classes(labels)), np.unique(labels[labels >= 0]).size <= CLASSES
    plural = "" if count == 1 else "es"
    return f"{'all' if all_ else 'the same'} {_WORDS[count]}{'' if all_ else ' random'} test class{plural}"


def _test_labels(cell: TableCell) -> npt.NDArray[np.int64]:
    one = cell.evaluations[0]
    return one.packed.labels()[one.packed.select(one.benchmark, "test").rows]


def _class_names(cell: TableCell) -> dict[int, str]:
    """Return the names of the classes that a figure shows."""
    names = cell.evaluations[0].packed.manifest.classes
    return {label: class_name(names, label) for label in chosen_classes(_test_labels(cell))}


def _scatter(cell: TableCell) -> Panel:
    one, names = cell.evaluations[0], _class_names(cell)
    run = one.runs[0]
    test = extract(run.out, one.packed, one.benchmark, "test", run.recipe.training.device)
    shown = np.isin(test.labels, list(names))
    layout = figures.project(test.values[shown], test.labels[shown])
    all_names = [names.get(label, "") for label in range(max(names) + 1)]
    return Panel(cell.row.label, figures.scatter(layout, all_names, one.packed.sample_ids(test.rows[shown])))


def _confusion(cell: TableCell) -> Panel:
    (predictions,) = [result.run().predictions for result in cell.evaluations[0].cells()]
    if predictions is None:
        raise ValueError("the linear evaluation has no predictions")
    counts, names = confusion_of(predictions.labels, predictions.answers, _class_names(cell))
    return Panel(cell.row.label, figures.confusion_matrix(counts, names))


def confusion_of(
    labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], names: Mapping[int, str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Count the answers to the samples of some classes; all other answers share a last column.

    Shape: (N,), (N,) -> (K, K) and its K names; K is the number of classes, plus one if other answers exist.
    """
    shown = list(names)
    rows = np.isin(labels, shown)
    place = {label: n for n, label in enumerate(shown)}
    truth = np.array([place[label] for label in labels[rows].tolist()], np.int64)
    given = np.array([place.get(label, len(shown)) for label in answers[rows].tolist()], np.int64)
    classes = len(shown) + bool((given == len(shown)).any())
    return figures.confusion_counts(truth, given, classes), [*names.values(), "any other"][:classes]
