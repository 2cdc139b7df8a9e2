"""`report.html`: what an evaluation found, in one file that needs nothing else and asks no network for anything.

The page is made from numbers alone: the verdict is a sentence computed from the rows, not written by hand. What
is absent (a work folder, a curve, a readable shard) is said in a sentence where it would have stood.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from c2vl_evaluation import figures, gallery
from c2vl_evaluation.gallery import clean
from c2vl_evaluation.results import Results, Row, Score, by_setting, mean_std
from c2vl_manifests.config import Recipe
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.manifest import commit_text

_ROLES = {
    "pretrained": "pre-trained",
    "floor": "floor",
    "ceiling": "ceiling",
    "shuffled": "control",
    "baseline": "baseline",
}
_KINDS = {"knn": "kNN", "linear": "linear"}


@dataclass(frozen=True)
class MainRun:
    """The test split as the main run (`Results.main_run`) sees it."""

    features: npt.NDArray[np.float32]
    """Shape: (N, D), the frozen encoder's output before the projector."""
    labels: npt.NDArray[np.int64]
    """Shape: (N,), -1 where unknown."""
    predictions: npt.NDArray[np.int64]
    """Shape: (N,), of the linear probe's last epoch."""
    sample_ids: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption, or the sentence that says why there is none."""

    title: str
    caption: str
    svg: Markup | None = None
    wide: bool = False


# --------------------------------------------------------------------------------------------- verdict


def verdict(results: Results) -> str:
    """Say what the table shows: the main row against the floor, shuffled pairs, and joints without an encoder."""
    baseline = [row for row in results.rows if row.role == "baseline"]
    if not baseline:
        return _against_floor(results)
    reached = " and ".join(f"{100 * getattr(baseline[0], k):.1f} % {kind}" for k, kind in _KINDS.items())
    return f"{_against_floor(results)} The raw joints, without any encoder, reach {reached}."


def _against_floor(results: Results) -> str:
    main = results.of(results.main_run().name)
    name, role = main[0].name, main[0].role
    reached = " and ".join(
        f"{mean_std([getattr(r, k) for r in main])} % {kind}" for k, kind in _KINDS.items()
    )
    if role != "pretrained":
        return f"No pre-trained encoder is in this table; {name} reaches {reached}."
    floor = [row for row in results.rows if row.role == "floor"]
    if not floor:
        return f"{name} reaches {reached}; without a random encoder in the table, what it gained is unknown."
    gains = _differences(main, floor)
    word = "over" if min(gains.values()) > 0 else "against"
    said = f"{name} {_gained(gains)} {word} {floor[0].name} ({_noise(main, floor)})"
    shuffled = [row for row in results.rows if row.role == "shuffled"]
    if not shuffled:
        return f"{said}; without shuffled pairs in the table, what the pairing adds is unknown."
    control = _differences(shuffled, floor)
    points = " and ".join(f"{value:+.1f}".replace("-", "−") for value in control.values())
    return f"{said}; with {shuffled[0].name} it is {points}, {_because(gains, control)}."


def _differences(rows: Sequence[Row], other: Sequence[Row]) -> dict[str, float]:
    """Return the differences of the means in points, by measure."""

    def mean(of: Sequence[Row], kind: str) -> float:
        return 100 * statistics.mean([float(getattr(row, kind)) for row in of])

    return {kind: mean(rows, kind) - mean(other, kind) for kind in _KINDS}


def _gained(gains: Mapping[str, float]) -> str:
    parts: list[str] = []
    last = ""
    for kind, value in gains.items():
        verb = "gains" if value > 0 else "loses"
        parts.append(f"{verb if verb != last else ''} {abs(value):.1f} points {_KINDS[kind]}".strip())
        last = verb
    return " and ".join(parts)


def _because(gains: Mapping[str, float], control: Mapping[str, float]) -> str:
    """Say whether the gain is owed to the right pairing: whether shuffled pairs reach half of it."""
    rising = [kind for kind, value in gains.items() if value >= 0.05]
    paired = [kind for kind in rising if control[kind] < gains[kind] / 2]
    if not rising:
        return "so there is no gain to explain"
    if not paired:
        return "so most of the gain is there without the right pairing"
    which = "" if paired == list(gains) else f" {_KINDS[paired[0]]}"
    return f"so most of the{which} gain comes from pairing each skeleton with its own prompts"


def _noise(main: Sequence[Row], floor: Sequence[Row]) -> str:
    """Say whether the differences stand out of the spread over seeds."""
    seeds = min(len(main), len(floor))
    if seeds < 2:
        return "one seed, so how much of it is luck is unknown"
    clear = []
    for kind, difference in _differences(main, floor).items():
        spread = [statistics.variance([float(getattr(row, kind)) for row in rows]) for rows in (main, floor)]
        error = 100 * (spread[0] / len(main) + spread[1] / len(floor)) ** 0.5
        clear += [_KINDS[kind]] if abs(difference) > 2 * error else []
    which = "both" if len(clear) == len(_KINDS) else f"only {clear[0]}" if clear else "neither"
    return f"{seeds} seeds, {which} beyond two standard errors"


# --------------------------------------------------------------------------------------------- figures


def _drawn(title: str, caption: str, draw: Callable[[], str], *, wide: bool = False) -> Figure:
    """Draw, or say why not."""
    try:
        return Figure(title, caption, Markup(draw()), wide)
    except ValueError as error:
        return Figure(title, f"Not drawn: {clean(str(error))}.")


def _curves(results: Results, table: Path) -> tuple[dict[str, list[list[dict[str, float]]]], list[str]]:
    """Read metrics.jsonl of the pre-training runs, by name."""
    from c2vl_training.trainer import read_metrics

    curves: dict[str, list[list[dict[str, float]]]] = {}
    damaged = []
    for row in results.rows:
        if row.role not in {"pretrained", "shuffled"}:
            continue
        try:
            epochs = [epoch for epoch in read_metrics(_folder(row, table)) if "epoch" in epoch]
        except (OSError, ValueError, TypeError):
            epochs = []
        if epochs:
            curves.setdefault(row.name, []).append(epochs)
        else:
            damaged.append(Path(row.run).name)
    return curves, damaged


def _folder(row: Row, table: Path) -> Path:
    """Return the folder of a run: below the table's folder, wherever that was moved."""
    return table / row.run


def _all_figures(results: Results, main: MainRun | None, table: Path) -> list[Figure]:
    curves, absent = _curves(results, table)
    lacking = f" Without readable metrics.jsonl, hence not drawn: {', '.join(absent)}." if absent else ""
    pairs = {name: curves[name] for name in curves if name == results.main_run().name}
    pairs |= {
        row.name: curves[row.name] for row in results.rows if row.role == "shuffled" and row.name in curves
    }
    drawn = [
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
            lambda: figures.similarity_curves(pairs),
        ),
    ]
    if main is None:
        why = "Not drawn: the main run, or the packed data it was evaluated on, is not at hand."
        return [*drawn, Figure("t-SNE of test features", why), Figure("Confusion matrix", why)]
    run = results.main_run()
    known = len(results.classes)
    classes = max(known, int(max(main.labels.max(initial=-1), main.predictions.max(initial=-1))) + 1)
    names = (*results.classes, *(f"class {i}" for i in range(known, classes)))
    try:
        layout = figures.project(main.features, main.labels)
    except ValueError as error:
        drawn.append(Figure("t-SNE of test features", f"Not drawn: {clean(str(error))}."))
    else:
        how = (
            f"Look for classes that hold together; distances between groups mean little. {run.name}, seed {run.seed}: "
            f"{len(layout.points):,} test samples of the {len(layout.classes)} most frequent of "
            f"{len(names)} classes; unit-length features, perplexity {layout.perplexity:.3g}, "
            f"t-SNE seed {layout.seed}."
        )
        drawn.append(_drawn("t-SNE of test features", how, lambda: figures.scatter(layout, names)))
    counts = figures.confusion_counts(main.labels, main.predictions, len(names))
    how = (
        "Rows are the truth, columns the answer of the linear probe, each row sums to one; orange off the diagonal "
        f"are mistakes. {run.name}, seed {run.seed}, last epoch. {_mistakes(counts, main, names)}"
    )
    drawn.append(_drawn("Confusion matrix", how, lambda: figures.confusion_matrix(counts, names), wide=True))
    return drawn


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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _line(rows: Sequence[Row]) -> dict[str, Any]:
    """One line of the table of results."""
    first = rows[0]
    measures = ("knn", "linear", "linear_best")
    return {
        "name": first.name, "role": first.role, "spoken": _ROLES[first.role], "seeds": len(rows),
        "knowledge": first.knowledge, "derived": any(row.derived_from_joints for row in rows),
        **{measure: mean_std([getattr(row, measure) for row in rows]) for measure in measures},
        **{f"{kind}_more": _beside(rows, kind) for kind in _KINDS},
    }  # fmt: skip


def _beside(rows: Sequence[Row], kind: str) -> str:
    """Say top-5 and balanced accuracy of a line, where its rows hold them."""
    said = []
    for word, name in (("top-5", f"{kind}_top5"), ("balanced", f"{kind}_balanced")):
        values = [value for row in rows if (value := getattr(row, name)) is not None]
        said += [f"{word} {mean_std(values)}"] if len(values) == len(rows) else []
    return ", ".join(said)


def _floor(score: Score | None) -> str:
    if score is None:
        return ""
    top5 = "" if score.top5 is None else f"top-5 {100 * score.top5:.1f}, "
    return f"{top5}balanced {100 * score.balanced:.1f}"


def _cells(results: Results) -> list[dict[str, Any]]:
    """Lines of the table of the other protocols: one a name, protocol and setting."""
    lines = []
    for name in results.names():
        found = by_setting(finding for row in results.of(name) for finding in row.findings)
        for (protocol, setting), findings in found.items():
            last = [f.last for f in findings if f.last is not None]
            best = [f.best.top1 for f in findings if f.best is not None]
            top5 = [s.top5 for s in last if s.top5 is not None]
            lines.append(
                {
                    "name": name, "protocol": protocol, "setting": setting, "count": len(last),
                    "why": "; ".join(dict.fromkeys(f.why for f in findings if f.why)),
                    "train": findings[0].train,
                    "top1": mean_std([s.top1 for s in last]) if last else "n/a",
                    "top5": mean_std(top5) if top5 else "n/a",
                    "balanced": mean_std([s.balanced for s in last]) if last else "n/a",
                    "best": mean_std(best) if best else "",
                }
            )  # fmt: skip
    order = {protocol: n for n, protocol in enumerate(dict.fromkeys(line["protocol"] for line in lines))}
    settings = {setting: n for n, setting in enumerate(dict.fromkeys(line["setting"] for line in lines))}
    return sorted(lines, key=lambda line: (order[line["protocol"]], settings[line["setting"]]))


def main_run(results: Results, work: Path, table: Path) -> MainRun | None:
    """Evaluate `results.main_run()` once more for its features and predictions; its cached features are reused.

    Returns None where the run or the packed data it was evaluated on is gone or is another.
    """
    from c2vl_evaluation import linear
    from c2vl_evaluation.benchmark import features_of
    from c2vl_evaluation.store import Subject
    from c2vl_training.data import Packed

    row = results.main_run()
    try:
        packed = Packed(work)
        if packed.manifest.fingerprint != results.data_fingerprint:
            return None
        run = table / row.run
        facts = json.loads((run / "run.json").read_text("utf-8"))
        recipe = Recipe.model_validate(facts["recipe"])
        found = linear.outcome(Subject(run, packed, results.benchmark, recipe, row.seed)).predictions
        _, test = features_of(run, packed, results.benchmark, recipe)
    except (C2VLError, OSError, ValueError, KeyError):
        return None
    if found is None:
        return None
    return MainRun(test.values, test.labels, found.answers, found.sample_ids)


def build(results: Results, out: Path, *, work: Path | None = None, main: MainRun | None = None) -> Path:
    """Write the report and return its path.

    Args:
        results: the table with its controls.
        out: the HTML file; curves are read of the runs below its folder, or else of where `Row.run` points.
        work: folder with `crops/` and `captions/` for the gallery of prompts.
        main: test features (N, D), labels (N,) and linear predictions (N,) of `results.main_run()`.
    """
    source = files("c2vl_evaluation").joinpath("report.html.j2").read_text("utf-8")
    settings: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    page = jinja2.Environment(undefined=jinja2.StrictUndefined, **settings).from_string(source)
    lines = [_line(results.of(name)) for name in results.names()]
    text = page.render(
        results=results,
        verdict=verdict(results),
        lines=lines,
        derived=any(line["derived"] for line in lines),
        cells=_cells(results),
        floors={"chance": _floor(results.chance_score), "majority": _floor(results.majority_score)},
        details=[(row, Path(row.run).name) for row in results.rows],
        percent=lambda value: f"{100 * value:.1f}",
        duration=_duration,
        gallery=gallery.read(work, results.classes) if work is not None else None,
        figures=_all_figures(results, main, out.parent),
        total=sum(results.seconds.values()),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    commit_text(out, text)
    return out
