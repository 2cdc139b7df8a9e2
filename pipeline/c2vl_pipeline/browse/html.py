"""Offline HTML pages: one file that needs nothing else, asks no network for anything and runs no script.

`render` fills a template of `templates/` (autoescaped: captions are what a model said, never markup) into the
shell `page.html.j2`; pictures travel as data URIs. The other functions turn what the factory stored into what a
template can draw.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image

from c2vl_manifests.manifest import commit_text

THUMBNAIL = 160
"""Longer side of a small picture, pixels; bounds the size of a page."""


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("c2vl_pipeline.browse"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    made.filters.update(
        count=lambda value: f"{value:,}",
        percent=percent,
        clean=clean,
        short=short,
        json=lambda value, indent=None: json.dumps(value, indent=indent, ensure_ascii=False, default=str),
        megabytes=lambda value: f"{value / 1e6:,.1f} MB" if value >= 1e5 else f"{value:,} bytes",
    )
    return made


def render(template: str, out: Path, **context: Any) -> Path:
    """Fill a template and write the page atomically; returns its path."""
    text = _environment().get_template(template).render(**context)
    out.parent.mkdir(parents=True, exist_ok=True)
    commit_text(out, text)
    return out


def percent(share: float | None) -> str:
    """Say a share of one in percent; a share that rounds to 0 or 100 and is neither gets a sign."""
    if share is None:
        return "–"
    value = 100 * share
    if 0 < value < 0.05:
        return "< 0.1"
    return "> 99.9" if 99.95 <= value < 100 else f"{value:.1f}"


def short(value: float) -> str:
    """Write a number with three significant digits, whole ones in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def clean(text: str | None) -> str:
    """Shorten paths to their last part: a page travels, its folders do not."""
    return re.sub(r"(?:[A-Za-z]:)?(?:[\\/][^\s\\/:'\"]+)+[\\/](?=[^\s\\/])", "…/", text or "")


def spans(numbers: Iterable[int]) -> str:
    """Write slots in few signs: 0, 1, 2, 5 becomes `0–2, 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}–{b}" for a, b in runs)


# --------------------------------------------------------------------------------------------- pictures


def data_uri(jpeg: bytes) -> str:
    """Return a JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def thumbnail(jpeg: bytes | None, side: int = THUMBNAIL) -> str | None:
    """Return a JPEG of at most `side` pixels as a data URI, None if there is none or it cannot be decoded."""
    if not jpeg:
        return None
    try:
        image = Image.open(io.BytesIO(jpeg))
        image.draft("RGB", (side, side))  # decodes at a fraction of the size: a gallery holds hundreds
        return _small(image.convert("RGB"), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def picture(image: npt.NDArray[np.uint8], side: int = THUMBNAIL) -> str:
    """Return RGB pixels (H, W, 3) as a data URI of a JPEG of at most `side` pixels."""
    return _small(Image.fromarray(image), side)


def _small(image: Image.Image, side: int) -> str:
    image.thumbnail((side, side))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return data_uri(sink.getvalue())


# --------------------------------------------------------------------------------------------- drawings


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins: `edges` has one entry more than `counts`."""

    edges: list[float]
    counts: list[int]

    @classmethod
    def of(
        cls, values: npt.ArrayLike, bins: int = 20, span: tuple[float, float] | None = None
    ) -> Histogram | None:
        """Count values; None where there are none."""
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
    number: int

    @classmethod
    def of(cls, values: npt.ArrayLike) -> Quantiles | None:
        """Summarise values; None where there are none."""
        array = np.asarray(values, np.float64)
        if not array.size:
            return None
        least, median, p95, most = (float(q) for q in np.quantile(array, (0, 0.5, 0.95, 1)))
        return cls(float(array.mean()), least, median, p95, most, int(array.size))


@dataclass(frozen=True)
class Pose:
    """Bones and joints of the bodies of one instant within a square of 100 units, for an SVG."""

    bones: list[tuple[float, ...]]
    """(body, x0, y0, x1, y1)."""
    joints: list[tuple[int, float, float]]
    """(body, x, y)."""


def poses(joints: npt.NDArray[np.float32], bones: Sequence[tuple[int, int]]) -> list[Pose]:
    """Lay out instants of one clip, (n, M, V, C), seen from the front, at one scale; absent bodies are left out."""
    shown = joints[..., :2].astype(np.float64)
    present = np.asarray(joints.any(axis=(2, 3)), np.bool_)
    if not present.any():
        return [Pose([], []) for _ in joints]
    seen = shown[present].reshape(-1, 2)
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = 90 / max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2
    at = np.round((shown - middle) * scale * (1, -1) + 50, 1)
    laid = []
    for points, there in zip(at, present, strict=True):
        bodies = [int(m) for m in np.flatnonzero(there)]
        laid.append(
            Pose(
                [(m, *map(float, points[m, a]), *map(float, points[m, b])) for m in bodies for a, b in bones],
                [(m, float(x), float(y)) for m in bodies for x, y in points[m]],
            )
        )
    return laid
