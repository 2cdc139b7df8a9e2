"""SVG canvas of the report's figures: one width, one font, text as text, axes in the page's colour.

Figures work inside a page and alone: the background is transparent, axes are drawn in `currentColor`
(mid-grey by default) and colours are distinguishable for colour-blind readers on white and on black.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

GREY = "#808890"
COLOURS = ("#2f86c9", "#dd8a1a", "#169b74", "#c4513a", "#a772c4")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
WIDTH = 4.6  # inches: at a phone's width the text is still about 10 px high
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.labelcolor": GREY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "text.color": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
}
_ROUND = re.compile(r"(\.\d\d)\d+")


def svg(label: str, height: float, paint: Callable[[Figure], None]) -> str:
    """Return a figure as SVG; `height` is in inches, `label` is the text for screen readers."""
    slug = re.sub(r"[^a-z]+", "-", label.lower()).strip("-")
    settings: Any = _STYLE | {"svg.hashsalt": slug}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _tidy(buffer.getvalue(), label, slug)


def _tidy(text: str, label: str, slug: str) -> str:
    """Prepare matplotlib's SVG for a page with others: no prologue, no clashing ids, inherited colour."""
    text = re.sub(r"<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{slug}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\1{slug}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]+", rf"font: \1px {FONT}", text)
    text = re.sub(r'(?<= d=")[^"]+|(?<= [xy]=")[^"]+', lambda m: _ROUND.sub(r"\1", m[0]), text)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would apply to the whole page
    text = text.replace(GREY, "currentColor")
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(
        r'<svg ([^>]*?)height="[^"]*"',
        rf'<svg \1color="{GREY}" stroke-linejoin="round" role="img" aria-label="{label}"',
        text,
        count=1,
    )
    return re.sub(r"\n\s*", "\n", text)


def short(name: str, most: int) -> str:
    """Return a name cut to at most `most` letters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


def legend(figure: Figure, entries: Iterable[tuple[str, dict[str, Any]]], columns: int = 1) -> None:
    """Add a legend below a figure; an entry is a name and the style of a line."""
    lines = [(short(name, 56 // columns), Line2D([], [], **style)) for name, style in entries]
    figure.legend([line for _, line in lines], [n for n, _ in lines], loc="outside lower left", ncols=columns)
