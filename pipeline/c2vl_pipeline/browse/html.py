"""Offline pages of the pipeline: templates, and stored values turned into what a template can draw.

A page is one file that loads nothing and runs one script of our own, without which it reads as well.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from c2vl_manifests import pages
from c2vl_manifests.errors import DataError, disk_error
from c2vl_manifests.events import byte_size
from c2vl_manifests.manifest import commit_text

THUMBNAIL = 320
"""Longer side of a small picture, pixels; bounds the size of a page."""


def render(template: str, out: Path, **context: Any) -> Path:
    """Fill a template of `templates/`, write the page atomically and return its path.

    Raises:
        DataError: the page cannot be written there.
    """
    text = pages.render("c2vl_pipeline.browse.templates", template, _FILTERS, **context)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        commit_text(out, text)
    except OSError as error:
        raise DataError(f"{disk_error(error, out)}; write the page elsewhere with --out FILE.html") from error
    return out


def percent(share: float | None) -> str:
    """Return a share in percent; one that only rounds to 0 or 100 is shown as `< 0.1` or `> 99.9`."""
    if share is None:
        return "–"
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1"
    return "> 99.9" if 99.95 <= value < 100 else f"{value:.1f}"


def short(value: float) -> str:
    """Return a number with three significant digits, whole numbers in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def spans(numbers: Iterable[int]) -> str:
    """Return slots as ranges: 0, 1, 2, 5 becomes `0–2, 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}–{b}" for a, b in runs)


_FILTERS: dict[str, Callable[..., Any]] = {
    "count": lambda value: f"{value:,}",
    "percent": percent,
    "clean": pages.shorten_paths,
    "short": short,
    "json": lambda value, indent=None: json.dumps(value, indent=indent, ensure_ascii=False, default=str),
    "byte_size": byte_size,
}


def thumbnail(jpeg: bytes | None, side: int = THUMBNAIL) -> str | None:
    """Return a stored JPEG as a small data URI; None if it cannot be decoded."""
    return pages.jpeg_data_uri(jpeg, (side, side))


def picture(image: npt.NDArray[np.uint8], side: int) -> str:
    """Return RGB pixels (H, W, 3) as the data URI of a JPEG of at most `side` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"


# --------------------------------------------------------------------------------------------- drawings


@dataclass(frozen=True)
class Histogram:
    """Counts of bins of equal width; `edges` has one more entry than `counts`."""

    edges: list[float]
    counts: list[int]

    @classmethod
    def of(cls, values: npt.ArrayLike, bins: int = 20, span: tuple[float, float] | None = None) -> Histogram | None:
        """Count values; None if there are none."""
        array = np.asarray(values, np.float64)
        if not array.size:
            return None
        counts, edges = np.histogram(array, bins=bins, range=span)
        return cls([float(e) for e in edges], [int(c) for c in counts])


@dataclass(frozen=True)
class Quantiles:
    """A distribution in six numbers."""

    mean: float
    least: float
    median: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Quantiles | None:
        """Summarise values; None if there are none."""
        array = np.asarray(values, np.float64)
        if not array.size:
            return None
        least, median, p95, most = (float(q) for q in np.quantile(array, (0, 0.5, 0.95, 1)))
        return cls(float(array.mean()), least, median, p95, most)
