"""Figures 4-8 of the paper, drawn from finished trainings; what is not there yet is said in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from pydantic import BaseModel, ValidationError

from c2vl_evaluation.features import extract
from c2vl_evaluation.metrics import class_name
from c2vl_evaluation.paper.compute import reason
from c2vl_evaluation.paper.experiments import Cell, Lab
from c2vl_evaluation.paper.spec import FIGURES
from c2vl_evaluation.paper.tables import DERIVED, derived
from c2vl_evaluation.report import figures
from c2vl_evaluation.report.svg import COLOURS, GREY, legend, svg
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_training.run_log import read_histograms

_FORMAT = 3
CLASSES = 10
"""Of the t-SNE and the confusion matrices; drawn once from the test split, by a seed of their own."""
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Panel:
    """One drawing; `svg` is empty where there is none, and the title says why."""

    title: str
    svg: str = ""


class _Drawn(BaseModel):
    panels: tuple[Panel, ...]


def draw(lab: Lab, cells: Sequence[Cell], *, fresh: bool = True) -> list[Panel]:
    """Draw a figure for one dataset, or return it as it was drawn of the same trainings before.

    Args:
        lab: where the trainings are; drawings are kept in `figures/` of its folder.
        cells: of one figure and column.
        fresh: draw what was not drawn before, which takes seconds.
    """
    cells = [cell for cell in cells if cell.line.role == "pretrained"]  # controls stand in the numbers alone
    waiting = [cell for cell in cells if not cell.jobs or any(lab.results(job) is None for job in cell.jobs)]
    if waiting:
        several = f" ({len(waiting)} of {len(cells)} trainings)" if cells[0].jobs else ""
        return [Panel(f"Not drawn: {reason(lab, waiting[0])}{several}.")]
    made_of = [(c.line.label, [r.key for job in c.jobs for r in lab.results(job) or ()]) for c in cells]
    first = cells[0]
    key = fingerprint({"format": _FORMAT, "figure": first.table, "made_of": made_of})[:16]
    path = lab.out / "figures" / f"{first.table}-{first.column.dataset}-{first.column.benchmark}-{key}.json"
    try:
        return list(_Drawn.model_validate_json(path.read_bytes()).panels)
    except (OSError, ValidationError):  # none, or damaged
        pass
    if not fresh:
        return [Panel("Not drawn yet: run the same command again.")]
    panels = _draw(lab, cells)
    if all(panel.svg for panel in panels):
        commit_text(path, _Drawn(panels=tuple(panels)).model_dump_json() + "\n")
    return panels


def _draw(lab: Lab, cells: Sequence[Cell]) -> list[Panel]:
    drawn: dict[str, Callable[[], list[Panel]]] = {
        "figure4": lambda: _similarities(cells, "positive"),
        "figure5": lambda: _similarities(cells, "negative"),
        "figure6": lambda: _sweeps(lab, cells),
        "figure7": lambda: [_scatter(cell) for cell in cells],
        "figure8": lambda: [_confusion(cell) for cell in cells],
    }
    try:
        return drawn[cells[0].table]()
    except (C2VLError, OSError, ValueError) as error:  # a run's folder was deleted, or too few samples
        return [Panel(f"Not drawn: {error}.")]


# -------------------------------------------------------------------------------------------- similarities


def _similarities(cells: Sequence[Cell], pairs: str) -> list[Panel]:
    """Panels of the histograms of the last epoch."""
    panels = []
    for kind in ("vision", "language"):
        counts = {}
        for cell in cells:
            lines = read_histograms(cell.jobs[0].runs[0].out)
            if lines and f"{kind}/{pairs}" in lines[-1]:
                counts[cell.line.label] = [int(n) for n in lines[-1][f"{kind}/{pairs}"]]
        if counts:
            panels.append(Panel(kind, histograms(counts, f"cosine of skeleton and {kind}, {pairs} pairs")))
    return panels or [Panel(f"Not drawn: no run counted similarities of {pairs} pairs.")]


def histograms(counts: Mapping[str, Sequence[int]], label: str) -> str:
    """Draw histograms over equal bins of [-1, 1], each as a share of its pairs.

    Raises:
        ValueError: nothing was counted.
    """
    if not any(sum(found) for found in counts.values()):
        raise ValueError("no similarity was counted")

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        for i, found in enumerate(counts.values()):
            edges = np.linspace(-1, 1, len(found) + 1)
            share = 100 * np.asarray(found) / max(1, sum(found))
            colour = COLOURS[i % len(COLOURS)]
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
            ax.stairs(share, edges, linewidth=1.3, color=colour)
        filled = np.flatnonzero(np.sum(list(counts.values()), axis=0))
        width = 2 / len(next(iter(counts.values())))
        ax.set_xlim(max(-1, -1 + width * (filled[0] - 2)), min(1, -1 + width * (filled[-1] + 3)))
        ax.set_xlabel(label)
        ax.set_ylabel("% of pairs")
        legend(
            figure, ((name, {"color": COLOURS[i % len(COLOURS)]}) for i, name in enumerate(counts)), columns=2
        )

    return svg(label, 2.4, paint)


# -------------------------------------------------------------------------------------------------- sweeps


def _sweeps(lab: Lab, cells: Sequence[Cell]) -> list[Panel]:
    panels = []
    for name in ("alpha", "beta"):
        points = {}
        for cell in cells:
            if cell.line.label.startswith(name):
                results = [r for job in cell.jobs for r in lab.results(job) or ()]
                scores = [r.last.top1 for r in results if r.last is not None]
                points[cell.line.label.removeprefix(f"{name} ")] = scores
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
        means = [100 * statistics.mean(found) for found in points.values()]
        spread = [100 * statistics.stdev(found) if len(found) > 1 else 0.0 for found in points.values()]
        error = spread if any(spread) else None
        ax.errorbar(
            range(len(points)), means, yerr=error, marker="o", markersize=4, capsize=2, color=COLOURS[0]
        )
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


def chosen(labels: npt.NDArray[np.int64]) -> list[int]:
    """Return ten random classes of a test split, in order; equal for equal sets of classes. Shape: (N,)."""
    present = np.unique(labels[labels >= 0])
    picked = np.random.default_rng(0).permutation(present)[:CLASSES]
    return sorted(int(label) for label in picked)


def caption(cells: Sequence[Cell]) -> str:
    """Return what stands below a figure: how many classes it shows, and whether captions are derived from the joints.

    Args:
        cells: of one figure and column.
    """
    first = cells[0]
    text = FIGURES[first.table].caption.format(classes=_counted(first))
    return f"{text} {DERIVED}" if any(derived(cell) for cell in cells) else text


def _counted(cell: Cell) -> str:
    """`ten random test classes, the same`, or `all six test classes` where there are no more."""
    count, every = CLASSES, False
    if cell.jobs:
        job = cell.jobs[0]
        labels = job.packed.labels()[job.packed.select(job.benchmark, "test").rows]
        count, every = len(chosen(labels)), np.unique(labels[labels >= 0]).size <= CLASSES
    word = _WORDS[count]
    return f"{'all' if every else 'the same'} {word}{'' if every else ' random'} test class{'' if count == 1 else 'es'}"


def _names(cell: Cell) -> dict[int, str]:
    known = cell.jobs[0].packed.manifest.classes
    rows = cell.jobs[0].packed.select(cell.jobs[0].benchmark, "test").rows
    shown = chosen(cell.jobs[0].packed.labels()[rows])
    return {label: class_name(known, label) for label in shown}


def _scatter(cell: Cell) -> Panel:
    job, names = cell.jobs[0], _names(cell)
    run = job.runs[0]
    test = extract(run.out, job.packed, job.benchmark, "test", run.recipe.training.device)
    at = np.isin(test.labels, list(names))
    layout = figures.project(test.values[at], test.labels[at])
    every = [names.get(label, "") for label in range(max(names) + 1)]
    return Panel(cell.line.label, figures.scatter(layout, every))


def _confusion(cell: Cell) -> Panel:
    names = _names(cell)
    (found,) = [one.run().predictions for one in cell.jobs[0].results()]
    if found is None:
        raise ValueError("the linear evaluation answered nothing")
    return Panel(cell.line.label, figures.confusion_matrix(*confusion_of(found.labels, found.answers, names)))


def confusion_of(
    labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], names: Mapping[int, str]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Count the answers for the samples of some classes; all other answers share a last column.

    Shape: (N,), (N,) -> (K, K) and its K names; K is one more than the classes where other answers were given.
    """
    shown = list(names)
    at = np.isin(labels, shown)
    place = {label: n for n, label in enumerate(shown)}
    truth = np.array([place[label] for label in labels[at].tolist()], np.int64)
    said = np.array([place.get(label, len(shown)) for label in answers[at].tolist()], np.int64)
    classes = len(shown) + bool((said == len(shown)).any())
    return figures.confusion_counts(truth, said, classes), [*names.values(), "any other"][:classes]
