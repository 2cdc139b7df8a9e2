"""What the joints of no person are like: another unit, a turned axis, one point. Notes with the likely cause, no refusals."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from c2vl_manifests.layouts import Layout
from c2vl_pipeline.readers.base import Array, Seen, without_gaps

_UPPER = ("head", "nose")
_LOWER = ("ankle_left", "ankle_right", "foot_left", "foot_right", "hip_left", "hip_right")
_HIPS = ("hip_left", "hip_right")
_HELD = 8
"""Frames from which on hips that never leave zero are no chance."""
_LARGEST = {2: 4.0, 3: 5.0}
"""Extent of a body beyond which the unit is another one: image heights in 2D, metres in 3D."""
_ABSURD = 1e6
"""Extent of a body that no unit explains."""
_AGAIN = 4
"""A joint that comes back to a place so often, in times of the others, was put there."""
_FAR = 2.5
"""Distance from a body's middle that no joint has, in spreads (between quartiles) of its joints."""
_NUMBERS = re.compile(r"-?\d[\d,.]*(e\+\d+)?|\(\w+\) (is|and \d+ more are)")


def of_files(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return one note for the files whose reasons differ in numbers and joints alone, of pairs of file and reason."""
    alike: dict[str, dict[str, str]] = {}
    for file, reason in found:
        alike.setdefault(_NUMBERS.sub("", reason), {})[file] = reason
    notes = []
    for files in alike.values():
        name, reason = next(iter(files.items()))
        notes.append(f"{name}{f' and {len(files) - 1:,} more' if len(files) > 1 else ''}: {reason}")
    return notes


def placeholders(joints: Array) -> list[tuple[Array, Seen]]:
    """Return where missing joints were put, (-1, -1) for example, and which ones; the commonest place first.

    They are exactly there again and again while others move, and far from the body, or in most frames at a place with
    equal coordinates where no other joint ever is. Shape: (T, M, V, C), finite -> (C,), (T, M, V).
    """
    some = joints[:: len(joints) // 1000 + 1]
    points = some[some.any(axis=3)].astype(np.float64)
    if not len(points):
        return []
    places, counts = np.unique(points, axis=0, return_counts=True)
    low, middle, high = np.quantile(points, (0.25, 0.5, 0.75), axis=0)
    far = (np.abs(places - middle) > _FAR * (high - low).max()).any(axis=1)
    again = counts >= _AGAIN * np.median(counts)
    others = places[~again]
    aside = ((places < others.min(axis=0)) | (places > others.max(axis=0))).any(axis=1)
    held = np.flatnonzero(again & (far | aside & (places == places[:, :1]).all(axis=1) & (2 * counts > len(some))))
    put = [places[n].astype(np.float32) for n in held[np.argsort(-counts[held])]]
    return [(place, (joints == place).all(axis=3)) for place in put]


def oddities(joints: Array, layout: Layout, upright: bool = True) -> list[str]:
    """Return what is odd about own joints before centring, each with its likely cause; axes only if `upright` is set.

    Shape: (T, M, V, C)
    """
    notes = []
    finite = np.asarray(np.isfinite(joints).all(axis=3), np.bool_)
    if not finite.all():
        where = np.flatnonzero(~finite.all(axis=(1, 2)))
        notes.append(
            f"{int((~finite).sum()):,} joints in {len(where):,} frames, the first {where[0]}, are NaN or infinite; "
            "they count as missing"
        )
    joints = without_gaps(joints)
    edge = (joints == np.array([0, 1])).all(axis=3) if layout.dims == 2 else np.zeros(joints.shape[:3], np.bool_)
    if edge.any():
        notes.append(
            f"{int(edge.sum()):,} joints are at (0, 1) exactly: missing ones, turned up with the others? Keep them zero"
        )
        joints = joints if edge[joints.any(axis=3)].all() else np.where(edge[..., None], np.float32(0), joints)
    for number, (place, at) in enumerate(placeholders(joints)):
        joints = np.where(at[..., None], np.float32(0), joints)
        if number == 0:
            first, more = int(at.sum(axis=(0, 1)).argmax()), int(at.any(axis=(0, 1)).sum()) - 1
            notes.append(
                f"joint {first} ({layout.names[first]}) {f'and {more} more are' if more else 'is'} at "
                f"({', '.join(f'{value:.4g}' for value in place)}) in {int(at.any(axis=(1, 2)).sum()):,} frames: "
                "a missing one? Write zero or NaN"
            )
    seen = np.asarray(joints.any(axis=3), np.bool_)
    some = seen.sum(axis=2) > 1
    if not some.any():
        alone = "no frame shows two joints of a body; missing joints alone are zero"
        return [*notes, alone] if len(joints) else notes
    places = np.where(seen[..., None], joints, np.float64(np.nan))[some]
    size = float(np.median((np.nanmax(places, axis=1) - np.nanmin(places, axis=1)).max(axis=1)))
    largest = _LARGEST[layout.dims]
    if size == 0:
        notes.append("all joints of a body are at one point")
    elif size > _ABSURD:
        notes.append(f"bodies are {size:.2g} large: does a large number stand for missing joints? Write zero or NaN")
    elif size > largest and layout.dims == 2:
        notes.append(f"bodies are {size:,.0f} image heights large: pixels? Divide them by the height of the image")
    elif size > largest:
        unit, factor = ("millimetres", 1000) if size > 400 else ("centimetres", 100)
        notes.append(f"bodies are {size:,.0f} m large: {unit}? Divide them by {factor}")
    return [*notes, *_held(joints, layout, size), *(_turned(places, layout) if upright else [])]


def _held(joints: Array, layout: Layout, size: float) -> list[str]:
    """Return a note if the hips of a person who moves are at zero in every frame. Shape: (T, M, V, C)."""
    hips = [layout.names.index(name) for name in _HIPS if name in layout.names]
    shown = joints[joints[:, 0][:, hips].any(axis=(1, 2)), 0] if len(hips) == len(_HIPS) else joints[:0, 0]
    if len(shown) < _HELD or not np.ptp(shown, axis=0).any() or not size:
        return []
    if np.abs(shown[:, hips].mean(axis=1)).max() > size / 1000:
        return []
    return ["the hips are at zero in every frame: relative to them, nobody walks (MediaPipe's world landmarks are so)"]


def _turned(places: Array, layout: Layout) -> list[str]:
    """Return a note if heads are not above feet. Shape: (bodies, V, C), NaN where missing."""
    upper = layout.index(*_UPPER)
    lower = [layout.names.index(name) for name in _LOWER if name in layout.names]
    if upper is None or not lower:
        return []
    with np.errstate(invalid="ignore"):
        up = places[:, upper, None] - places[:, lower]
    up = up.reshape(-1, layout.dims)
    up = up[np.isfinite(up).all(axis=1)]
    if not len(up):
        return []
    middle = np.median(up, axis=0)
    along = int(np.argmax(np.abs(middle)))
    if along == 1 and middle[1] < 0:
        remedy = "1 - y" if layout.dims == 2 else "-y, and z if the hands change sides"
        return [f"heads are below feet: y points down? Turn it up: {remedy}"]
    if along == 2:
        return ["heads and feet differ in z, not in y: does z point up? Save y as the coordinate that points up"]
    return []
