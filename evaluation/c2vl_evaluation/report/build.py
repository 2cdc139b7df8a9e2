"""`report.html`: the results of a table in one self-contained file that needs no network.

Every sentence is computed from the numbers. Where something is absent (a work folder, a curve, a readable
shard), the page gives the reason in its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from c2vl_evaluation import cache
from c2vl_evaluation.features import extract
from c2vl_evaluation.metrics import class_name, data_read
from c2vl_evaluation.report import classes as report_classes
from c2vl_evaluation.report import figures, sections
from c2vl_evaluation.report.mistakes import Mistake, mistakes
from c2vl_evaluation.report.verdict import verdict
from c2vl_evaluation.results import FILE, Table
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.events import byte_size, duration
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import render, shorten_paths
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_log import read_histograms, read_metrics

if TYPE_CHECKING:
    from c2vl_pipeline.browse.cards import Card

_COMPARED = ("floor", "shuffled", "ceiling")
_READABLE = 0.85
"""Scale below which the names of a matrix, 10 pixels high, cannot be read."""
_SAMPLES = 12
"""Samples whose prompts are shown."""


@dataclass(frozen=True)
class MainRun:
    """The test split with the features of the main run (`Table.main_row`) and the answers of all rows."""

    features: npt.NDArray[np.float32]
    """Shape: (N, D), the frozen encoder's output before the projector."""
    labels: npt.NDArray[np.int64]
    """Shape: (N,), -1 where unknown."""
    predictions: npt.NDArray[np.int64]
    """Shape: (N,), of the linear probe's last epoch."""
    sample_ids: Sequence[str]
    answers: Mapping[str, Sequence[npt.NDArray[np.int64]]] = field(default_factory=dict)
    """Name of a row -> answers of its seeds, (N,) each; rows without stored answers are absent."""
    mistakes: Sequence[Mistake] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption, or the reason why there is none."""

    title: str
    caption: str
    svg: Markup | None = None
    wide: bool = False
    least: int = 0
    """Width in pixels below which its text cannot be read; narrower screens scroll the figure."""


# --------------------------------------------------------------------------------------------- figures


def _drawn(title: str, caption: str, draw: Callable[[], str], *, wide: bool = False) -> Figure:
    """Return a drawn figure; if drawing raises ValueError, one that gives the reason."""
    try:
        svg = draw()
        across = float(svg.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0])
        return Figure(title, caption, Markup(svg), wide, round(_READABLE * across) if wide else 0)
    except ValueError as error:
        return Figure(title, f"Not drawn: {shorten_paths(str(error))}.")


def _logged(
    table: Table, folder: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> tuple[dict[str, list[list[dict[str, Any]]]], list[str]]:
    """Return a log of the pre-training runs by name, and the names of runs without a readable log."""
    logs: dict[str, list[list[dict[str, Any]]]] = {}
    absent = []
    for row in table.rows:
        if row.role not in {"pretrained", "shuffled"}:
            continue
        try:
            epochs = [line for line in read(folder / row.run) if isinstance(line, dict) and _number(line.get("epoch"))]
        except (OSError, ValueError):
            epochs = []
        if epochs:
            logs.setdefault(row.name, []).append(epochs)
        else:
            absent.append(Path(row.run).name)
    return logs, absent


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counted(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, list[int]]]:
    """Return the histograms of similarities per epoch, summed over seeds; malformed counts are skipped."""
    epochs: dict[int, dict[str, list[int]]] = {}
    for line in (line for run in runs for line in run):
        held = epochs.setdefault(int(line["epoch"]), {})
        for kind, counts in line.items():
            whole = isinstance(counts, list) and counts and all(isinstance(c, int) and c >= 0 for c in counts)
            if whole and len(held.get(kind, counts)) == len(counts):
                held[kind] = [a + b for a, b in zip(held.get(kind, [0] * len(counts)), counts, strict=True)]
    return [epochs[epoch] for epoch in sorted(epochs) if epochs[epoch]]


def _training_figures(table: Table, folder: Path) -> list[Figure]:
    logs, absent = _logged(table, folder, read_metrics)
    curves = {
        name: [[{k: v for k, v in epoch.items() if _number(v)} for epoch in run] for run in runs]
        for name, runs in logs.items()
    }
    lacking = f" Not drawn, no readable metrics.jsonl: {', '.join(absent)}." if absent else ""
    compared = [table.main_row().name, *(row.name for row in table.rows if row.role == "shuffled")]
    spread = {name: _counted(runs) for name, runs in _logged(table, folder, read_histograms)[0].items()}
    return [
        _drawn(
            "All rows",
            "Compare each bar with the floor and the ceiling (dashed). Mean over seeds; whiskers: one "
            "standard deviation; dotted line: chance.",
            lambda: figures.accuracy_bars(table),
        ),
        _drawn(
            "Training",
            "Loss should fall and flatten; losses of different targets are not comparable. One line per "
            f"seed, from the metrics.jsonl of each run; equal alpha schedules overlap.{lacking}",
            lambda: figures.training_curves(curves),
        ),
        _drawn(
            "Similarity of pairs",
            "Solid lines should separate from dotted ones: skeletons become more similar to their own "
            "prompts than to those of other samples. Mean cosine over the batches of an epoch, training "
            "split.",
            lambda: figures.similarity_curves({name: curves[name] for name in compared if name in curves}),
        ),
        _drawn(
            "Spread of similarities",
            "The two distributions should separate: cosine of a skeleton with its own prompt and with "
            "prompts of other samples in the batch, over all seeds, each normalised by its own pairs, "
            "without half a percent at either end. Training split.",
            lambda: figures.similarity_histograms({name: spread[name] for name in compared if spread.get(name)}),
        ),
    ]  # fmt: skip


def _all_figures(table: Table, main: MainRun | str | None, folder: Path) -> list[Figure]:
    drawn = _training_figures(table, folder)
    titles = ("t-SNE of test features", "Accuracy by class", "Confusion matrix")
    if not isinstance(main, MainRun):
        why = main or "the main run or its packed data are not available"
        return [*drawn, *(Figure(title, f"Not drawn: {shorten_paths(why)}.") for title in titles)]
    run, names = table.main_row(), _names(table, main)
    try:
        layout = figures.project(main.features, main.labels)
    except ValueError as error:
        drawn.append(Figure(titles[0], f"Not drawn: {shorten_paths(str(error))}."))
    else:
        how = (
            f"Look for compact classes; distances between groups mean little. Point at a dot for its clip. {run.name}, seed {run.seed}: "
            f"{len(layout.points):,} test samples of the {len(layout.classes)} most frequent of {len(names)} "
            f"classes; unit-length features, perplexity {layout.perplexity:.3g}, t-SNE seed {layout.seed}."
        )
        drawn.append(_drawn(titles[0], how, lambda: figures.scatter(layout, names, main.sample_ids)))
    drawn.append(_class_figure(table, main, names))
    counts = figures.confusion_counts(main.labels, main.predictions, len(names))
    how = (
        "Rows: truth; columns: answer of the linear probe; each row sums to one. Orange cells off the "
        f"diagonal are mistakes. {run.name}, seed {run.seed}, last epoch. {_mistakes(counts, main, names)}"
    )
    drawn.append(_drawn(titles[2], how, lambda: figures.confusion_matrix(counts, names), wide=True))
    return drawn


def _class_figure(table: Table, main: MainRun, names: Sequence[str]) -> Figure:
    of = class_table(table, main, names)["answers"]
    series = {a.name: (a.role, report_classes.accuracies(main.labels, a.runs, len(names))) for a in of}
    first = series[of[0].name][1]
    against = next((a for a in of[1:] if a.role != "ceiling"), None)
    gain = first - series[against.name][1] if against else first
    at = report_classes.shown(gain, first)
    known = int((~np.isnan(gain)).sum())
    order = f"gain over {against.name}" if against else "accuracy"
    how = (
        f"Hollow marks to the right of the filled dot are classes that {of[0].name} recognises worse. Linear "
        f"probe, last epoch, means over seeds; sorted by {order}."
        + (f" {len(at)} of {known} classes: both ends of the order." if known > len(at) else "")
    )
    drawn = {name: (role, values[at]) for name, (role, values) in series.items()}
    return _drawn("Accuracy by class", how, lambda: report_classes.draw([names[i] for i in at], drawn))


def _names(table: Table, main: MainRun) -> tuple[str, ...]:
    """Return the names of all classes that occur, also of those that the dataset does not name."""
    answers = [a for runs in main.answers.values() for a in runs]
    most = max(int(values.max(initial=-1)) for values in (main.labels, main.predictions, *answers))
    return tuple(class_name(table.classes, i) for i in range(max(len(table.classes), most + 1)))


def _mistakes(counts: npt.NDArray[np.int64], main: MainRun, classes: Sequence[str]) -> str:
    """Return a sentence on the three most frequent mistakes, each with an example."""
    wrong = counts - np.diag(np.diag(counts))
    order = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda at: (-wrong[at], at))[:3]
    if not order:
        return "No mistakes."
    parts = []
    for i, j in order:
        example = main.sample_ids[np.flatnonzero((main.labels == i) & (main.predictions == j))[0]]
        parts.append(f"{classes[i]} for {classes[j]}, {wrong[i, j]} of {counts[i].sum()} (e.g. {example})")
    return f"Most frequent mistakes: {'; '.join(parts)}."


# ------------------------------------------------------------------------------------------------ page


def main_run(table: Table, work: Path, folder: Path) -> MainRun | str:
    """Return the stored answers of all rows and the features of `table.main_row()`.

    Args:
        table: the table.
        work: the packed data, or the work folder around them.
        folder: of the table.

    Returns:
        Instead, the reason as a sentence, if run, answers or packed data are gone or changed.
    """
    _need_rows(table, folder)
    row = table.main_row()
    try:
        packed = PackedDataset(work)
        if data_read(packed, table.benchmark) != table.data_fingerprint:
            return "the packed data have changed since the table was made"
        test, train = (extract(folder / row.run, packed, table.benchmark, split) for split in ("test", "train"))
        main = cache.predictions_of(folder / row.run, row.result("linear").key)
        if not np.array_equal(main.labels, test.labels):
            return "the stored answers are to other samples than the test split has; evaluate the run again"
        shown = mistakes(packed, main, test, train)
    except (C2VLError, OSError, ValueError, KeyError, TypeError) as error:
        return str(error) or type(error).__name__
    answers: dict[str, list[npt.NDArray[np.int64]]] = {}
    for other in (r for r in table.rows if r.run):
        try:
            predictions = cache.predictions_of(folder / other.run, other.result("linear").key)
        except (C2VLError, OSError):
            continue
        if predictions.sample_ids == main.sample_ids:
            answers.setdefault(other.name, []).append(predictions.answers)
    return MainRun(test.values, test.labels, main.answers, main.sample_ids, answers, shown)


def class_table(table: Table, main: MainRun, names: Sequence[str]) -> dict[str, Any]:
    """Return the accuracy per class of the main row and its controls, and the confusions that changed most.

    Without stored answers of other rows, only the seed of the main run is included.
    """
    name = table.main_row().name
    held = main.answers if name in main.answers else {name: [main.predictions], **main.answers}
    firsts = {role: next((r.name for r in table.rows if r.role == role), "") for role in _COMPARED}
    chosen = dict.fromkeys([name, *(other for other in firsts.values() if other in held)])
    of = [report_classes.Answers(n, table.of(n)[0].role, held[n]) for n in chosen]
    values = [report_classes.accuracies(main.labels, a.runs, len(names)) for a in of]
    totals = np.bincount(main.labels[main.labels >= 0], minlength=len(names))
    return {
        "answers": of,
        "lines": [
            {"name": names[i], "samples": int(totals[i]), "values": [float(v[i]) for v in values]}
            for i in np.flatnonzero(totals).tolist()
        ],
        "moved": [
            {"control": a, "found": [(names[m.truth], names[m.answer], m) for m in moves]}
            for a in of[1:] if a.role != "ceiling"
            for moves in [report_classes.moved(main.labels, of[0], a, len(names))]
        ],
    }  # fmt: skip


def build(table: Table, out: Path, *, work: Path | None = None, main: MainRun | str | None = None) -> Path:
    """Write the report and return its path.

    Args:
        table: the table with its controls.
        out: the HTML file, in the folder of the table.
        work: the work folder, for samples with their prompts.
        main: from `main_run`.

    Raises:
        DataError: the table has no row.
    """
    _need_rows(table, out.parent)
    lines = [sections.line(line) for line in table.lines()]
    groups = sections.protocols(table)
    shown = {name for each in groups for name in each["group"].cells}
    prompts, notes = _prompts(work)
    text = render(
        "c2vl_evaluation.report",
        "report.html.j2",
        table=table,
        verdict=verdict(table, out.parent),
        kinds=sections.KINDS,
        roles=sections.MEANINGS,
        lines=lines,
        derived=any(line["derived"] for line in lines),
        groups=groups,
        oracle=any(cell.best for each in groups for cell in each["group"].cells.values()),
        grouped={line["name"]: line["derived"] for line in lines if line["name"] in shown},
        floors={"chance": sections.floor(table.chance), "majority": sections.floor(table.majority)},
        details=[(row, Path(row.run).name) for row in table.rows],
        percent=lambda value: f"{100 * value:.1f}",
        duration=duration,
        byte_size=byte_size,
        engines={role: shorten_paths(engine) for role, engine in table.engines.items()},
        prompts=prompts,
        notes=[shorten_paths(note) for note in notes],
        figures=_all_figures(table, main, out.parent),
        mistakes=main.mistakes if isinstance(main, MainRun) else (),
        per_class=class_table(table, main, _names(table, main)) if isinstance(main, MainRun) else None,
        stages=sections.stages(table, work),
        total=sum(table.stage_seconds.values()),
        training=sections.training(table, out.parent),
        evaluation=sections.evaluation(table, out.parent),
        configuration=sections.configuration(table, out.parent),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    commit_text(out, text)
    return out


def _prompts(work: Path | None) -> tuple[list[Card], list[str]]:
    """Return the cards of some samples, and notes on what cannot be shown."""
    from c2vl_pipeline.browse.cards import few

    if work is None:
        return [], ["No work folder was given: no crops and captions to show."]
    try:
        return few(work, _SAMPLES)
    except C2VLError as error:
        return [], [f"No crops and captions to show: {error}."]


def _need_rows(table: Table, folder: Path) -> None:
    if not table.rows:
        raise DataError(
            f"{folder / FILE} holds no row, expected at least one; run `c2vl-eval benchmark` into a new folder"
        )
