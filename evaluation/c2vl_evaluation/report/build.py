"""`report.html`: what an evaluation found, in one file that needs nothing else and asks no network for anything.

The page is made from numbers alone: the verdict is a sentence computed from the rows, not written by hand. What
is absent (a work folder, a curve, a readable shard) is said in a sentence where it would have stood.
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

from c2vl_evaluation.html import render
from c2vl_evaluation.report import classes as report_classes
from c2vl_evaluation.report import figures, samples, sections
from c2vl_evaluation.report.samples import clean
from c2vl_evaluation.report.verdict import verdict
from c2vl_evaluation.results import FILE, Results, Row
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.recipe import Recipe

if TYPE_CHECKING:
    from c2vl_evaluation.cache import Outcome, Predictions
    from c2vl_training.dataset import Packed

__all__ = ["Figure", "MainRun", "build", "class_table", "main_run", "verdict"]

_COMPARED = ("floor", "shuffled", "ceiling")
_READABLE = 0.85
"""How far a matrix may be scaled down before its names, 10 pixels high, cannot be read."""


@dataclass(frozen=True)
class MainRun:
    """The test split as the main run (`Results.main_run`) sees it, and what the other rows answered on it."""

    features: npt.NDArray[np.float32]
    """Shape: (N, D), the frozen encoder's output before the projector."""
    labels: npt.NDArray[np.int64]
    """Shape: (N,), -1 where unknown."""
    predictions: npt.NDArray[np.int64]
    """Shape: (N,), of the linear probe's last epoch."""
    sample_ids: Sequence[str]
    answers: Mapping[str, Sequence[npt.NDArray[np.int64]]] = field(default_factory=dict)
    """Name of a row -> what its seeds answered, (N,) each; rows whose answers are not at hand are absent."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption, or the sentence that says why there is none."""

    title: str
    caption: str
    svg: Markup | None = None
    wide: bool = False
    least: int = 0
    """Pixels below which its text could not be read; the figure is scrolled on a narrower screen."""


# --------------------------------------------------------------------------------------------- figures


def _drawn(title: str, caption: str, draw: Callable[[], str], *, wide: bool = False) -> Figure:
    """Draw, or say why not."""
    try:
        svg = draw()
        across = float(svg.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0])
        return Figure(title, caption, Markup(svg), wide, round(_READABLE * across) if wide else 0)
    except ValueError as error:
        return Figure(title, f"Not drawn: {clean(str(error))}.")


def _logged(
    results: Results, table: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> tuple[dict[str, list[list[dict[str, Any]]]], list[str]]:
    """Read a log of the pre-training runs, by name; names of runs without a readable one come second."""
    found: dict[str, list[list[dict[str, Any]]]] = {}
    absent = []
    for row in results.rows:
        if row.role not in {"pretrained", "shuffled"}:
            continue
        try:
            epochs = [
                line
                for line in read(table / row.run)
                if isinstance(line, dict) and _number(line.get("epoch"))
            ]
        except (OSError, ValueError):
            epochs = []
        if epochs:
            found.setdefault(row.name, []).append(epochs)
        else:
            absent.append(Path(row.run).name)
    return found, absent


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _counted(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, list[int]]]:
    """Add up the similarities that several seeds counted, epoch by epoch; what is no list of counts is passed over."""
    epochs: dict[int, dict[str, list[int]]] = {}
    for line in (line for run in runs for line in run):
        held = epochs.setdefault(int(line["epoch"]), {})
        for kind, counts in line.items():
            whole = isinstance(counts, list) and counts and all(isinstance(c, int) and c >= 0 for c in counts)
            if whole and len(held.get(kind, counts)) == len(counts):
                held[kind] = [a + b for a, b in zip(held.get(kind, [0] * len(counts)), counts, strict=True)]
    return [epochs[epoch] for epoch in sorted(epochs) if epochs[epoch]]


def _training_figures(results: Results, table: Path) -> list[Figure]:
    from c2vl_training.run_log import read_histograms, read_metrics

    logged, absent = _logged(results, table, read_metrics)
    curves = {
        name: [[{k: v for k, v in epoch.items() if _number(v)} for epoch in run] for run in runs]
        for name, runs in logged.items()
    }
    lacking = f" Without readable metrics.jsonl, hence not drawn: {', '.join(absent)}." if absent else ""
    compared = [results.main_run().name, *(row.name for row in results.rows if row.role == "shuffled")]
    spread = {name: _counted(runs) for name, runs in _logged(results, table, read_histograms)[0].items()}
    return [
        _drawn(
            "All rows",
            "Look at how far a bar stands from the floor and from the ceiling (dashed). Mean over seeds; whiskers are "
            "one standard deviation; the dotted line is chance.",
            lambda: figures.accuracy_bars(results),
        ),
        _drawn(
            "Training",
            "Loss should fall and flatten; losses of different targets are not comparable in height. One line a seed, "
            f"from each run's metrics.jsonl; equal alpha schedules hide one another.{lacking}",
            lambda: figures.training_curves(curves),
        ),
        _drawn(
            "Similarity of pairs",
            "Solid lines should leave the dotted ones: skeletons come closer to their own prompts than to others'. "
            "Mean cosine over the batches of an epoch, training split.",
            lambda: figures.similarity_curves({name: curves[name] for name in compared if name in curves}),
        ),
        _drawn(
            "Spread of similarities",
            "The two shapes should part: cosine of a skeleton and its own prompt against prompts of others in the "
            "batch, of all seeds, each shape a share of its own pairs; half a percent at either end is cut off. Training split.",
            lambda: figures.similarity_histograms({name: spread[name] for name in compared if spread.get(name)}),
        ),
    ]  # fmt: skip


def _all_figures(results: Results, main: MainRun | str | None, table: Path) -> list[Figure]:
    drawn = _training_figures(results, table)
    titles = ("t-SNE of test features", "Accuracy by class", "Confusion matrix")
    if not isinstance(main, MainRun):
        why = main or "the main run, or the packed data it was evaluated on, is not at hand"
        return [*drawn, *(Figure(title, f"Not drawn: {clean(why)}.") for title in titles)]
    run, names = results.main_run(), _names(results, main)
    try:
        layout = figures.project(main.features, main.labels)
    except ValueError as error:
        drawn.append(Figure(titles[0], f"Not drawn: {clean(str(error))}."))
    else:
        how = (
            f"Look for classes that hold together; distances between groups mean little. {run.name}, seed {run.seed}: "
            f"{len(layout.points):,} test samples of the {len(layout.classes)} most frequent of "
            f"{len(names)} classes; unit-length features, perplexity {layout.perplexity:.3g}, "
            f"t-SNE seed {layout.seed}."
        )
        drawn.append(_drawn(titles[0], how, lambda: figures.scatter(layout, names)))
    drawn.append(_class_figure(results, main, names))
    counts = figures.confusion_counts(main.labels, main.predictions, len(names))
    how = (
        "Rows are the truth, columns the answer of the linear probe, each row sums to one; orange off the diagonal "
        f"are mistakes. {run.name}, seed {run.seed}, last epoch. {_mistakes(counts, main, names)}"
    )
    drawn.append(_drawn(titles[2], how, lambda: figures.confusion_matrix(counts, names), wide=True))
    return drawn


def _class_figure(results: Results, main: MainRun, names: Sequence[str]) -> Figure:
    table = class_table(results, main, names)
    of = table["answers"]
    series = {a.name: (a.role, report_classes.accuracies(main.labels, a.runs, len(names))) for a in of}
    first = series[of[0].name][1]
    against = next((a for a in of[1:] if a.role != "ceiling"), None)
    gain = first - series[against.name][1] if against else first
    at = report_classes.shown(gain, first)
    known = int((~np.isnan(gain)).sum())
    order = f"what is gained over {against.name}" if against else "accuracy"
    how = (
        f"Look for hollow marks to the right of the filled dot: classes that {of[0].name} recognises worse. Linear "
        f"probe, last epoch, means over seeds; sorted by {order}."
        + (f" {len(at)} of {known} classes: both ends of the order." if known > len(at) else "")
    )
    drawn = {name: (role, values[at]) for name, (role, values) in series.items()}
    return _drawn("Accuracy by class", how, lambda: report_classes.draw([names[i] for i in at], drawn))


def _names(results: Results, main: MainRun) -> tuple[str, ...]:
    """Names of all classes that occur, those that the dataset does not name included."""
    from c2vl_evaluation.metrics import class_name

    answers = [a for runs in main.answers.values() for a in runs]
    most = max(int(values.max(initial=-1)) for values in (main.labels, main.predictions, *answers))
    return tuple(class_name(results.classes, i) for i in range(max(len(results.classes), most + 1)))


def _mistakes(counts: npt.NDArray[np.int64], main: MainRun, classes: Sequence[str]) -> str:
    """Name the three most frequent mistakes, each with a sample to look at."""
    wrong = counts - np.diag(np.diag(counts))
    order = sorted(zip(*np.nonzero(wrong), strict=True), key=lambda at: (-wrong[at], at))[:3]
    if not order:
        return "Nothing was mistaken."
    parts = []
    for i, j in order:
        example = main.sample_ids[np.flatnonzero((main.labels == i) & (main.predictions == j))[0]]
        parts.append(f"{classes[i]} for {classes[j]}, {wrong[i, j]} of {counts[i].sum()} (such as {example})")
    return f"Most often mistaken: {'; '.join(parts)}."


# ------------------------------------------------------------------------------------------------ page


def main_run(results: Results, work: Path, table: Path) -> MainRun | str:
    """Read what `results.main_run()` and the other rows answered, and the main run's features; cached ones are reused.

    Returns a sentence that says why where the run or the packed data it was evaluated on is gone or is another.
    """
    from c2vl_evaluation.features import extract
    from c2vl_training.dataset import Packed

    _need_rows(results, table)
    row = results.main_run()
    try:
        packed = Packed(work)
        if packed.manifest.fingerprint != results.data_fingerprint:
            return "the packed data are others than those that the table was made from"
        found = _predictions(row, packed, results, table)
        test = extract(table / row.run, packed, results.benchmark, "test")
    except (C2VLError, OSError, ValueError, KeyError, TypeError) as error:
        return str(error) or type(error).__name__
    if found is None:
        return f"the answers that gave {row.name} its number in the table are not at hand; run `c2vl-eval benchmark` again"
    answers: dict[str, list[npt.NDArray[np.int64]]] = {}
    for other in (r for r in results.rows if r.run):
        try:
            held = found if other is row else _predictions(other, packed, results, table)
        except (C2VLError, OSError, ValueError, KeyError, TypeError):
            continue
        if held is not None and held.sample_ids == found.sample_ids:
            answers.setdefault(other.name, []).append(held.answers)
    return MainRun(test.values, test.labels, found.answers, found.sample_ids, answers)


def _predictions(row: Row, packed: Packed, results: Results, table: Path) -> Predictions | None:
    """Return what the linear probe of a row answered: the stored answers that gave the table's number, or else anew."""
    from c2vl_evaluation import cache
    from c2vl_evaluation.protocols import linear

    run = table / row.run
    cache.weights_of(run)  # says what is the matter with a run that is gone
    asked = packed.sample_ids(packed.select(results.benchmark, "test").rows)
    try:
        found = [*cache.stored(run, "linear").found.values()]
    except C2VLError:  # damaged: made again
        found = []
    if not any(_gave(held, row, asked) for held in found):
        recipe = _recipe_of(run)
        found = [linear.outcome(cache.Subject(run, packed, results.benchmark, recipe, row.seed))]
    return next((held.predictions for held in found if _gave(held, row, asked)), None)


def _recipe_of(run: Path) -> Recipe:
    try:
        return Recipe.model_validate(sections.facts_of(run)["recipe"])
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{run / 'run.json'}: damaged or absent, so the answers of {run.name} cannot be made again; run "
            "`c2vl-eval linear` on it with the recipe of the table"
        ) from error


def _gave(held: Outcome, row: Row, asked: Sequence[str]) -> bool:
    """Whether a finding is that of a row: of the samples that the table asked, and all its numbers are the row's.

    A run may have been evaluated on other data and benchmarks, too, and by other settings.
    """
    of, last, best = held.finding, held.finding.last, held.finding.best
    if held.predictions is None or held.predictions.sample_ids != asked or last is None or best is None:
        return False
    known = (row.linear, row.linear_best, row.linear_lr)
    beside = ((row.linear_top5, last.top5), (row.linear_balanced, last.balanced))  # absent in older tables
    return known == (last.top1, best.top1, of.lr) and all(told in {None, found} for told, found in beside)


def class_table(results: Results, main: MainRun, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy of every class in the main row and its controls, and the confusions that moved most against each.

    Without answers of other rows, the main run's own seed stands alone.
    """
    name = results.main_run().name
    held = main.answers if name in main.answers else {name: [main.predictions], **main.answers}
    firsts = {role: next((r.name for r in results.rows if r.role == role), "") for role in _COMPARED}
    chosen = dict.fromkeys([name, *(other for other in firsts.values() if other in held)])
    of = [report_classes.Answers(n, results.of(n)[0].role, held[n]) for n in chosen]
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


def build(
    results: Results, out: Path, *, work: Path | None = None, main: MainRun | str | None = None
) -> Path:
    """Write the report and return its path.

    Args:
        results: the table with its controls.
        out: the HTML file; curves are read of the runs below its folder, or else of where `Row.run` points.
        work: folder with `crops/` and `captions/` for the gallery of prompts.
        main: what `results.main_run()` and the other rows answered, or why that is not at hand.

    Raises:
        DataError: the table has no row.
    """
    _need_rows(results, out.parent)
    lines = [sections.line(results.of(name)) for name in results.names()]
    groups = sections.protocols(results)
    text = render(
        "c2vl_evaluation.report",
        "report.html.j2",
        results=results,
        verdict=verdict(results),
        lines=lines,
        derived=any(line["derived"] for line in lines),
        groups=groups,
        grouped={cell["name"]: cell["derived"] for group in groups for cell in group["lines"]},
        floors={
            "chance": sections.floor(results.chance_score),
            "majority": sections.floor(results.majority_score),
        },
        details=[(row, Path(row.run).name) for row in results.rows],
        percent=lambda value: f"{100 * value:.1f}",
        duration=sections.duration,
        size=sections.size,
        engines={role: clean(engine) for role, engine in results.engines.items()},
        gallery=samples.read(work, results.classes) if work is not None else None,
        figures=_all_figures(results, main, out.parent),
        per_class=class_table(results, main, _names(results, main)) if isinstance(main, MainRun) else None,
        stages=sections.stages(results, work),
        total=sum(results.seconds.values()),
        training=sections.training(results, out.parent),
        evaluation=sections.evaluation(results, out.parent),
        configuration=sections.configuration(results, out.parent),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    commit_text(out, text)
    return out


def _need_rows(results: Results, table: Path) -> None:
    if not results.rows:
        raise DataError(
            f"{table / FILE} holds no row, a table has at least one; run `c2vl-eval benchmark` into a new folder"
        )
