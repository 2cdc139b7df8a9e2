"""C3D, the files of motion capture: named markers in 3D, read by the package `c3d` (extra `c3d`).

The joints of the layout are the markers of their names; capitals do not count, and a name before a colon is that of the
person (`Anna:LASI`). If no marker has the name of a joint and there are as many of both, they are in the same order.
Lengths are in POINT:UNITS; POINT:X_SCREEN and POINT:Y_SCREEN name the axes to the right and up. A marker with a negative
residual is missing. The first frame of the file is frame 0; the file's own numbers of frames are not used.

*Reading:* without POINT:UNITS lengths are millimetres, without POINT:Y_SCREEN z points up.
"""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.layouts import Layout
from c2vl_manifests.reading import MOST_FILE, TooLargeError, read_bytes
from c2vl_pipeline.readers.files.base import MOST_FRAMES, DamagedError, Format, Recording, Source

_UNITS = {"mm": 1000, "cm": 100, "m": 1}
"""Unit -> how many of it are a metre."""
_AXES = "XYZ"


def read(source: Source) -> Recording:
    """Read the markers that the layout names."""
    path, layout = source.path, source.layout
    if layout.dims != 3:
        raise DataError(f"{path}: markers in 3D; layout {layout.name!r} has 2 coordinates, give a 3D --layout")
    if find_spec("c3d") is None:
        raise DataError(f"{path}: needs the package c3d, which is not installed; `pip install -e '.[c3d]'`")
    try:
        content = read_bytes(path, MOST_FILE)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _recording(path, content, layout)
    except DataError:
        raise
    except Exception as error:  # the package raises a dozen kinds on damaged files
        raise DamagedError(
            f"{path}: not a C3D file, or damaged ({one_line(error, named=True)}); export it again"
        ) from error


def _recording(path: Path, content: bytes, layout: Layout) -> Recording:
    import c3d

    held = c3d.Reader(io.BytesIO(content))
    count, frames = int(held.point_used), int(held.frame_count)
    if not count or not 0 <= frames <= MOST_FRAMES:
        raise DataError(f"{path}: {count} markers in {frames:,} frames; expected some, in up to {MOST_FRAMES:,} frames")
    people, notes = _markers(path, _labels(held, count), count, layout)
    per_metre, turn = _unit(path, held, notes), _turn(path, held, notes)
    at = np.array(people)
    found = [points[at, :4] for _, points, _ in held.read_frames(copy=False)]
    if len(found) < frames:
        raise DamagedError(f"{path}: cut off, {len(found):,} of {frames:,} frames are there; export it again")
    points = np.array(found, np.float32).reshape(frames, *at.shape, 4)
    joints = np.where(points[..., 3:] < 0, 0, points[..., :3]) @ turn.T / np.float32(per_metre)
    return Recording(np.asarray(joints, np.float32), tuple(notes))


def _text(held: Any, name: str) -> str:
    """Return a text among the parameters, empty if there is none."""
    param = held.get(f"POINT:{name}")
    return "" if param is None else str(param.bytes[:1000], "latin-1").strip(" \0")


def _labels(held: Any, count: int) -> list[str]:
    """Return the names of the markers, as many as there are; the 256th and following ones have lists of their own."""
    labels: list[str] = []
    for number in ("", *range(2, 258)):
        param = held.get(f"POINT:LABELS{number}")
        if param is None:
            break
        width, held_by = (*param.dimensions, 1, 1)[:2]
        labels += [str(param.bytes[n * width : (n + 1) * width], "latin-1").strip(" \0") for n in range(held_by)]
    return [" ".join(label.split())[:60] for label in labels[:count]]


def _markers(path: Path, labels: list[str], count: int, layout: Layout) -> tuple[list[list[int]], list[str]]:
    """Return the places of the joints' markers for each person, (M, V), and notes."""
    bodies: dict[str, dict[str, int]] = {}
    for at, label in enumerate(labels):
        person, _, name = label.lower().rpartition(":")
        bodies.setdefault(person, {}).setdefault(name.strip(), at)
    wanted = [name.lower() for name in layout.names]
    if whole := [[body[name] for name in wanted] for body in bodies.values() if body.keys() >= set(wanted)]:
        return whole, []
    most: dict[str, int] = max(bodies.values(), key=lambda body: len(body.keys() & set(wanted)), default={})
    lacking = [joint for joint, name in zip(layout.names, wanted, strict=True) if name not in most]
    if len(lacking) == count == layout.joints:
        first = f" ({labels[0]!r} is {layout.names[0]})" if labels else ""
        return [[*range(count)]], [f"no marker has the name of a joint, so they are taken in their order{first}"]
    has = ", ".join(labels[:8]) + (", …" if len(labels) > 8 else "")
    raise DataError(
        f"{path}: no marker is called {lacking[0]!r}, as a joint of layout {layout.name!r} is; the {count} markers are "
        f"{has or 'without names'}: name those that are joints in the layout file"
    )


def _unit(path: Path, held: Any, notes: list[str]) -> int:
    """Return how many units of length are a metre."""
    text = _text(held, "UNITS").lower()
    if not text:
        notes.append("no POINT:UNITS; lengths are taken for millimetres")
    elif text not in _UNITS:
        raise DataError(f"{path}: POINT:UNITS is {text[:20]!r}; expected {', '.join(_UNITS)}: export it in one of them")
    return _UNITS[text or "mm"]


def _turn(path: Path, held: Any, notes: list[str]) -> npt.NDArray[np.float32]:
    """Return the rotation after which the second axis points up, and the first one to the right. Shape: (3, 3)."""
    up, right = (_axis(path, name, _text(held, name)) for name in ("Y_SCREEN", "X_SCREEN"))
    if up is None:
        notes.append("no POINT:Y_SCREEN; z is taken for the axis that points up")
        up = np.array([0, 0, 1], np.float32)
    if right is None or np.abs(up * right).any():
        right = np.eye(3, dtype=np.float32)[int(up[0] != 0)]
    return np.stack([right, up, np.cross(right, up)]).astype(np.float32)


def _axis(path: Path, name: str, text: str) -> npt.NDArray[np.float32] | None:
    """Return the direction that `+Z` or `-X` names, None of an empty text."""
    if not text:
        return None
    if len(text) != 2 or text[0] not in "+-" or text[1].upper() not in _AXES:
        raise DataError(f"{path}: POINT:{name} is {text[:20]!r}; expected +X, -X, +Y, -Y, +Z or -Z: export it again")
    axis = np.zeros(3, np.float32)
    axis[_AXES.index(text[1].upper())] = float(f"{text[0]}1")
    return axis


FORMAT = Format("C3D", read, (".c3d",))
