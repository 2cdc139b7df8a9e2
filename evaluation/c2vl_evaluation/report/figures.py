"""The report's figures as SVG texts: arrays in, one string out; no file is read or written.

With more series than colours, the dash or the marker changes too.
"""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from c2vl_evaluation.report.svg import COLOURS, FONT, GREY, WIDTH, legend, short, svg
from c2vl_evaluation.results import ALWAYS, Role, Table, mean_std

Metrics = Mapping[str, float]
Curves = Mapping[str, Sequence[Sequence[Metrics]]]
"""Name -> its runs (one per seed) -> their epochs."""
Counted = Sequence[Mapping[str, Sequence[int]]]
"""Epochs of a run: `vision/positive`, ... -> counts of similarities in equal bins of [-1, 1]."""

SHOWN = 10  # classes of a t-SNE
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))
_MARKERS = ("o", "^")
_POINT = "point-"
_PAIRS = (("negative", COLOURS[1], "other prompts"), ("positive", COLOURS[0], "own prompt"))
_ENDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("first epoch", {"linewidth": 1, "linestyle": (0, (2, 2))}),
    ("last epoch", {"linewidth": 1.3, "linestyle": "-"}),
)


def _line(index: int) -> dict[str, Any]:
    """Return colour and dash of a series."""
    dash = _DASHES[index // len(COLOURS) % len(_DASHES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": dash}


def _plot(ax: Axes, epochs: Sequence[Metrics], key: str, **style: Any) -> None:
    drawn = [epoch for epoch in epochs if key in epoch]
    dot = "." if len(drawn) == 1 else ""
    ax.plot([e["epoch"] for e in drawn], [e[key] for e in drawn], linewidth=1.3, marker=dot, **style)


def _epoch_axes(figure: Figure, titles: Sequence[str]) -> list[Axes]:
    grid = figure.subplots(len(titles), 1, sharex=True, squeeze=False)[:, 0]
    for ax, title in zip(grid, titles, strict=True):
        ax.set_title(title)
        ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.5)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.get_major_locator().set_params(integer=True)
    return list(grid)


def training_curves(curves: Curves) -> str:
    """Draw loss and alpha over the epochs, one axis each: a colour per name, a line per seed.

    Raises:
        ValueError: there is no epoch of any run.
    """
    _need(curves, ("loss",))

    def paint(figure: Figure) -> None:
        loss, alpha = _epoch_axes(figure, ("loss", "alpha: share of intra-modal targets"))
        for i, runs in enumerate(curves.values()):
            for epochs in runs:
                _plot(loss, epochs, "loss", alpha=0.55 if len(runs) > 1 else 1, **_line(i))
                _plot(alpha, epochs, "alpha", **_line(i))
        alpha.set_ylim(-0.03, 1.03)
        legend(figure, ((name, _line(i)) for i, name in enumerate(curves)))

    return svg("loss and alpha over epochs", 3.5 + 0.17 * len(curves), paint)


def similarity_curves(curves: Curves) -> str:
    """Draw the mean cosine of matching (solid) and other pairs (dotted), an axis per knowledge.

    Raises:
        ValueError: no run recorded similarities.
    """
    kinds = [k for k in ("vision", "language") if any(f"{k}/positive" in e for e in _epochs(curves))]
    _need(curves, [f"{k}/positive" for k in kinds])

    def paint(figure: Figure) -> None:
        axes = _epoch_axes(figure, [f"cosine of skeleton and {kind}" for kind in kinds])
        for i, runs in enumerate(curves.values()):
            style = {"color": COLOURS[i % len(COLOURS)], "alpha": 0.6 if len(runs) > 1 else 1}
            for epochs in runs:
                for ax, kind in zip(axes, kinds, strict=True):
                    _plot(ax, epochs, f"{kind}/positive", linestyle="-", **style)
                    _plot(ax, epochs, f"{kind}/negative", linestyle=_DASHES[2], **style)
        pairs = (("of the same sample", "-"), ("of other samples", _DASHES[2]))
        entries = [
            (f"{short(name, 36)}, {what}", {"color": COLOURS[i % len(COLOURS)], "linestyle": dash})
            for i, name in enumerate(curves)
            for what, dash in pairs
        ]
        legend(figure, entries)

    return svg("similarity of pairs over epochs", 0.4 + 1.55 * len(kinds) + 0.34 * len(curves), paint)


def similarity_histograms(counted: Mapping[str, Counted]) -> str:
    """Draw histograms of similarities, a row per knowledge and a column per name; the first epoch is dotted.

    Each outline is normalised by its own pairs, since non-pairs are far more (Fig. 4-5 of the paper).

    Args:
        counted: name -> epochs in order, each `<kind>/positive` and `<kind>/negative` -> counts in equal bins
            of [-1, 1].

    Raises:
        ValueError: no run counted similarities.
    """
    ends_of = [epoch for epochs in counted.values() for epoch in (*epochs[:1], *epochs[-1:])]
    kinds = [k for k in ("vision", "language") if any(f"{k}/positive" in epoch for epoch in ends_of)]
    if not kinds:
        raise ValueError("no run counted its similarities (histograms.jsonl); there is nothing to draw")
    ends = [_middle(counts) for epoch in ends_of for counts in epoch.values()]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)

    def outline(ax: Axes, epoch: Mapping[str, Sequence[int]], kind: str, style: dict[str, Any]) -> None:
        for word, colour, _ in _PAIRS:
            counts = np.asarray(epoch.get(f"{kind}/{word}", ()), float)
            if len(counts):
                edges = np.linspace(-1, 1, len(counts) + 1)
                ax.stairs(counts / max(counts.sum(), 1), edges, color=colour, **style)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(kinds), len(counted), sharex=True, squeeze=False)
        for row, kind in zip(grid, kinds, strict=True):
            for ax, (name, epochs) in zip(row, counted.items(), strict=True):
                for epoch, (_, style) in zip((epochs[0], epochs[-1]), _ENDS, strict=True):
                    outline(ax, epoch, kind, style)
                ax.set_title(f"{kind}, {short(name, 22)}")
                ax.set(yticks=[], xlim=(low, high), ylim=(0, None))
                ax.spines["left"].set_visible(False)
        for ax in grid[-1]:
            ax.set_xlabel("cosine")
        entries = [(f"{label}, {at}", {"color": c, **style}) for _, c, label in _PAIRS[::-1] for at, style in _ENDS]
        legend(figure, entries, columns=2)

    return svg("spread of similarities", 0.8 + 1.4 * len(kinds), paint)


def _middle(counts: Sequence[int]) -> tuple[float, float]:
    """Return the range of similarities without half a percent of the counts at either end."""
    total = np.cumsum(counts)
    first, last = np.searchsorted(total, [0.005 * total[-1], 0.995 * total[-1]])
    return 2 * float(first) / len(counts) - 1, 2 * float(min(last + 1, len(counts))) / len(counts) - 1


def _epochs(curves: Curves) -> list[Metrics]:
    return [epoch for runs in curves.values() for epochs in runs for epoch in epochs]


def _need(curves: Curves, keys: Sequence[str]) -> None:
    if not any(key in epoch for epoch in _epochs(curves) for key in keys):
        raise ValueError(f"no epoch records {' or '.join(keys) or 'similarities'}; there is no curve to draw")


def confusion_counts(
    labels: npt.NDArray[np.int64], predictions: npt.NDArray[np.int64], classes: int
) -> npt.NDArray[np.int64]:
    """Return how often class i was taken for class j; unlabelled samples (-1) are skipped.

    Shape: (N,), (N,) -> (classes, classes), rows are the truth.
    """
    known = labels >= 0
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels[known], predictions[known]), 1)
    return counts


def confusion_matrix(counts: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """Draw counts (K, K) normalised by row: hits on the diagonal in blue, mistakes in orange, zeros empty.

    Each cell has a tooltip with its count; with up to 12 classes it shows the percentage. Written without
    matplotlib, which has no tooltips.
    """
    K = len(names)
    if counts.shape != (K, K):
        raise ValueError(f"counts of shape {counts.shape} for {K} class names; expected ({K}, {K})")
    cell = 34 if K <= 12 else 18 if K <= 30 else 13
    font = 12 if K <= 12 else 11 if K <= 30 else 10
    cut = [short(name, 30) for name in names]
    edge = int(max((len(name) for name in cut), default=0) * font * 0.56) + 10
    side, totals = K * cell, counts.sum(axis=1)
    width, height = edge + side + 4, side + edge + 4
    frame = f'<rect x="{edge}" y="2" width="{side}" height="{side}" fill="none"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" color="{GREY}" '
        f'fill="currentColor" font-family="{FONT}" font-size="{font}" role="img" aria-label="confusion matrix">',
        f'{frame} stroke="currentColor" stroke-opacity="0.4"/>',
    ]
    for i, name in enumerate(cut):
        at = (i + 0.5) * cell
        for place in (f"translate({edge - 6} {at + 2:g})", f"translate({edge + at:g} {side + 8}) rotate(-90)"):
            style = f'transform="{place}" text-anchor="end" dominant-baseline="central"'
            out.append(f"<text {style}>{escape(name)}</text>")
    for i, j in zip(*(axis.tolist() for axis in np.nonzero(counts)), strict=True):
        share, hit = counts[i, j] / totals[i], i == j
        label = names[i] if hit else f"{names[i]} taken for {names[j]}"
        x, y = edge + j * cell, 2 + i * cell
        place = f'x="{x}.5" y="{y}.5" width="{cell - 1}" height="{cell - 1}" rx="1.5"'
        fill = f'fill="{COLOURS[0 if hit else 1]}" fill-opacity="{0.2 + 0.5 * share:.2f}"'
        tip = f"<title>{escape(label)}: {counts[i, j]} of {totals[i]}</title>"
        out.append(f"<rect {place} {fill}>{tip}</rect>")
        if K <= 12:
            middle = f'x="{x + cell / 2:g}" y="{y + cell / 2:g}" text-anchor="middle"'
            out.append(f'<text class="in" {middle} dominant-baseline="central">{100 * share:.0f}</text>')
    return "\n".join([*out, "</svg>"])


@dataclass(frozen=True)
class Projection:
    """Points of a t-SNE and its parameters."""

    points: npt.NDArray[np.float32]
    """Shape: (n, 2)."""
    labels: npt.NDArray[np.int64]
    """Shape: (n,)."""
    rows: npt.NDArray[np.int64]
    """Place of each point among the samples, (n,)."""
    classes: tuple[int, ...]
    """Shown classes, the most frequent first."""
    perplexity: float
    seed: int


def project(
    features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], *, seed: int = 0, limit: int = 1500
) -> Projection:
    """Project unit-length features to the plane by t-SNE; deterministic.

    Only samples of the ten most frequent classes (ties by id) are used, drawn at random if more than `limit`.
    Shape: (N, D), (N,) -> points (n, 2).

    Raises:
        ValueError: fewer than five labelled samples, or features that are not finite.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    ids, count = np.unique(labels[labels >= 0], return_counts=True)
    chosen = ids[np.lexsort((ids, -count))][:SHOWN]
    at = np.flatnonzero(np.isin(labels, chosen))
    at = np.sort(np.random.default_rng(seed).permutation(at)[:limit])
    picked = np.asarray(features[at], np.float32)
    if len(at) < 5 or not np.isfinite(picked).all():
        raise ValueError(f"t-SNE needs at least five labelled samples with finite features; there are {len(at)}")
    picked = picked / np.maximum(np.linalg.norm(picked, axis=1, keepdims=True), 1e-12)
    perplexity = min(30.0, (len(at) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    with threadpool_limits(1):  # sums in a fixed order; more threads gain little with so few points
        points = np.asarray(layout.fit_transform(picked), np.float32)
    return Projection(points, labels[at], at, tuple(int(c) for c in chosen), perplexity, seed)


def scatter(projection: Projection, names: Sequence[str], sample_ids: Sequence[str]) -> str:
    """Draw a projection: a colour and marker per class; each point has a tooltip with its class and clip."""

    def paint(figure: Figure) -> None:
        ax = figure.subplots()
        entries = []
        size = 14 if len(projection.points) < 500 else 7
        for i, label in enumerate(projection.classes):
            colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i // len(COLOURS) % len(_MARKERS)]
            own = np.flatnonzero(projection.labels == label)
            x, y = projection.points[own].T
            dots = ax.scatter(x, y, s=size, marker=marker, color=colour, alpha=0.8, linewidths=0)
            dots.set_urls([f"{_POINT}{n}" for n in own])  # a link is the one mark that matplotlib sets at each point
            style = {"color": colour, "marker": marker, "linestyle": "", "markersize": 4.5}
            entries.append((short(names[label], 32), style))
        ax.set(xticks=[], yticks=[], aspect="equal")
        ax.spines[:].set_visible(False)
        legend(figure, entries, columns=2)

    across, up = np.ptp(projection.points, axis=0)
    height = WIDTH * float(np.clip(up / max(across, 1e-9), 0.35, 1))  # no empty band above and below
    drawn = svg("t-SNE of test features", height + 0.2 + 0.17 * -(-len(projection.classes) // 2), paint)

    def titled(found: re.Match[str]) -> str:
        n = int(found[1])
        title = f"{names[projection.labels[n]]}, {sample_ids[projection.rows[n]]}"
        return f"<g>{found[2]}<title>{escape(title)}</title></g>"

    return re.sub(rf'<a [^>]*"{_POINT}(\d+)"[^>]*>(.*?)</a>', titled, drawn, flags=re.DOTALL)


def _name_lines(ax: Axes, lines: Sequence[tuple[str, float]]) -> None:
    """Label vertical lines at their top: the lowest on its left, others on their right, never overlapping."""
    for n, (text, at) in enumerate(sorted(lines, key=lambda line: line[1])):
        side, gap = ("left", 2) if n or (text == "ceiling" and len(lines) == 1) else ("right", -2)
        ax.annotate(
            text, (at, 1), xycoords=ax.get_xaxis_transform(), xytext=(gap, 2), textcoords="offset points", fontsize=8,
            ha=side,
        )  # fmt: skip


def accuracy_bars(table: Table) -> str:
    """Draw kNN and linear accuracy per name over seeds, with floor, ceiling and chance."""
    groups = [(name, table.of(name)) for name in table.names()]
    paints: dict[Role, str] = {
        "pretrained": COLOURS[0],
        "shuffled": COLOURS[1],
        "floor": GREY,
        "ceiling": GREY,
        "baseline": GREY,
    }
    lines = ["\n".join(textwrap.wrap(name, 22, max_lines=2, placeholder="…")) for name, _ in groups]
    top = 106 * max(row.top1(protocol) for row in table.rows for protocol in ALWAYS)
    height = sum(0.2 + 0.15 * (line.count("\n") + 1) for line in lines)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2, 1, sharex=True)
        panels[1].set_xlabel("top-1 accuracy on the test split, %")
        for ax, title, measure in zip(panels, ("kNN", "linear probe, last epoch"), ALWAYS, strict=True):
            ax.set_title(f"{title}\n", linespacing=1.2)
            marks = [("chance", table.chance.top1, (0, (1, 2)))]
            for y, (_, rows) in enumerate(groups):
                values = [row.top1(measure) for row in rows]
                mean, role = 100 * statistics.mean(values), rows[0].role
                error = 100 * statistics.stdev(values) if len(values) > 1 else None
                bar = {"height": 0.62, "color": paints[role], "alpha": 0.85, "error_kw": {"elinewidth": 0.9}}
                ax.barh(y, mean, xerr=error, ecolor=GREY, capsize=2 if error else 0, **bar)
                if role in {"floor", "ceiling"}:
                    marks.append((role, mean / 100, (0, (4, 2))))
            for _, at, dash in marks:
                ax.axvline(100 * at, color=GREY, linewidth=0.8, linestyle=dash, zorder=3)
            _name_lines(ax, [(text, 100 * at) for text, at, _ in marks[1:]])
            ax.set_yticks(range(len(groups)), lines)
            ax.tick_params(axis="y", length=0)
            ax.invert_yaxis()
            ax.set_xlim(0, top)
            right = ax.twinx()
            right.set_yticks(range(len(groups)), [mean_std([r.top1(measure) for r in rows]) for _, rows in groups])
            right.tick_params(axis="y", length=0)
            right.set_ylim(ax.get_ylim())

    return svg("accuracy of all rows", 1.7 + 2 * height, paint)
