"""Skeletons as drawings for an SVG: poses of a clip from the front, and bodies that move."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.joints import missing_joints
from c2vl_manifests.layouts import Layout

KEYS = 24
"""Poses of an animation; joints move on straight lines between them."""
_SIDE = 4
"""Units of a moving body per unit of `poses`, so that coordinates are whole numbers."""


@dataclass(frozen=True)
class StickFigure:
    """Bones and joints of the bodies in one frame, within a square of 100 units."""

    bones: list[tuple[float, ...]]
    """(body, x0, y0, x1, y1)."""
    joints: list[tuple[int, float, float]]
    """(body, x, y)."""


def poses(joints: npt.NDArray[Any], layout: Layout) -> list[StickFigure]:
    """Project frames of one clip, (n, M, V, C), to the front plane at one scale; absent bodies are left out.

    Bones of missing joints have no length, so that all figures of a body have the same number of lines.
    """
    shown = joints[..., :2].astype(np.float64)
    present = np.asarray(joints.any(axis=(2, 3)), np.bool_)
    if not present.any():
        return [StickFigure([], []) for _ in joints]
    there = present[..., None] & ~missing_joints(joints, layout)
    seen = shown[there]
    low, high = seen.min(axis=0), seen.max(axis=0)
    scale = 90 / max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2
    at = np.round((shown - middle) * scale * (1, -1) + 50, 1)
    figures = []
    for points, drawn in zip(at, there, strict=True):
        bodies = [int(m) for m in np.flatnonzero(drawn.any(axis=1))]
        bones = []
        for m, (a, b) in product(bodies, layout.bones):
            known = [j for j in (a, b) if drawn[m, j]] or [int(np.argmax(drawn[m]))]
            bones.append((m, *map(float, points[m, known[0]]), *map(float, points[m, known[-1]])))
        figures.append(StickFigure(bones, [(m, float(x), float(y)) for m in bodies for x, y in points[m][drawn[m]]]))
    return figures


@dataclass(frozen=True)
class Body:
    """One person of a clip as SVG paths within a square of 400 units."""

    still: list[str]
    """Four poses, for print and for readers who prefer no motion."""
    poses: str
    """All poses, as the `values` of `animate`."""
    shown: str
    """1 or 0 per pose: absent bodies are hidden."""


def moving(joints: npt.NDArray[Any], layout: Layout, keys: int = KEYS) -> list[Body]:
    """Draw the bodies of a clip from the front at one scale, without those that are never seen. Shape: (T, M, V, C)."""
    frames = np.linspace(0, len(joints) - 1, min(len(joints), keys)).round().astype(int)
    drawn, bodies = poses(joints[frames], layout), []
    for body in range(joints.shape[1]):
        paths = [
            "".join(
                f"M{_SIDE * x0:.0f} {_SIDE * y0:.0f}L{_SIDE * x1:.0f} {_SIDE * y1:.0f}"
                for m, x0, y0, x1, y1 in pose.bones if m == body
            )
            for pose in drawn
        ]  # fmt: skip
        seen = [bool(path) for path in paths]
        if not any(seen):
            continue
        last = paths[seen.index(True)]
        for n, path in enumerate(paths):  # all values of an animation need the same number of lines
            last = paths[n] = path or last
        four = np.unique(np.linspace(0, len(paths) - 1, 4).round().astype(int))
        still = [paths[n] for n in four if seen[n]]
        bodies.append(Body(still, ";".join(paths), ";".join("1" if one else "0" for one in seen)))
    return bodies
