"""A format of joints files: what its module is given and returns, and the steps that several formats share.

Every format gives joints in this project's form: metres, or in 2D image heights, y up, zero where a joint is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.layouts import LAYOUTS, Layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.base import Array, Row, video_of
from c2vl_pipeline.readers.tracking import Person, chosen, track

Numbers = npt.NDArray[np.number[Any]]

MOST_PEOPLE = 2
"""People kept of a file that does not say who is who."""
MOST_FRAMES = 200_000
"""Frames of a file that numbers them; a larger number means damage."""
_FARTHEST = 1e6
"""Pixels from the corner of an image at which there is no joint."""
_CORNER = 2
"""Pixels from the corner within which nobody is as a whole."""
_MOST_FOUND = 100
"""People of one frame."""
_MOST_VALUES = 1 << 27
"""Numbers of the joints of one clip."""


class DamagedError(DataError):
    """A file is not whole."""


@dataclass(frozen=True)
class Recording:
    """The joints of a file, (T, M, V, C) float32, and notes on what was taken for granted."""

    joints: Array
    notes: tuple[str, ...] = ()
    sparse: bool = False
    """Frames in which nobody was found are not in the file, so that those at the end are not counted."""


@dataclass(frozen=True)
class Source:
    """One file and what is known about it."""

    path: Path
    row: Row
    """Of the index; empty for a file that is read without one."""
    layout: Layout
    """Of the joints that are wanted."""
    config: SkeletonsConfig
    value: Any = None
    """The content of a JSON file."""

    def image_size(self) -> tuple[int, int]:
        """Return width and height of the image that pixels are of: those of the row's video, else as the recipe says.

        Raises:
            DataError: neither is known.
        """
        video = video_of(self.path, self.row)
        if video is not None and (size := _size_of(video, video.stat().st_mtime_ns)) is not None:
            return size
        if self.config.image_size is not None:
            return self.config.image_size
        raise DataError(
            f"{self.path}: holds pixels, and the size of their image is not known; name the video in the table, or give "
            "--set pipeline.skeletons.image_size=[width,height]"
        )


@lru_cache(maxsize=256)
def _size_of(video: Path, _changed: int) -> tuple[int, int] | None:
    from c2vl_pipeline.readers.video import Video

    try:
        with Video(video) as opened:
            image = next((image for _, image in opened.frames([0], lent=True)), None)
    except (DataError, OSError):
        return None
    return None if image is None else (image.shape[1], image.shape[0])


@dataclass(frozen=True)
class Format:
    """One format of joints files. `read` raises DataError for malformed content, OSError if a file cannot be opened."""

    name: str
    """As messages and documents call it."""
    read: Callable[[Source], Recording]
    suffixes: tuple[str, ...]
    """Of its files, in small letters; empty for a folder of files."""
    fits: Callable[[Any], bool] | None = None
    """Whether the content of a JSON file, or of the first file of a folder, has this form; None: the suffix says so."""
    clip: bool = True
    """One file holds one clip, so that it can be read without an index."""


# ---------------------------------------------------------------------------------------------- arrays


def fitting(path: Path, arrays: Mapping[str, Numbers], layout: Layout, turned: bool = False) -> Recording:
    """Return the first of several arrays that fits the layout: (T, V, C) or (T, M, V, C).

    *Reading:* more people than frames are taken for people first, (M, T, V, C).

    Args:
        path: of the file, for messages.
        arrays: by name.
        layout: of the joints.
        turned: also take (V, C, T), as MATLAB's users have it.

    Raises:
        DataError: none fits; the message says what probably makes one fit.
    """
    tail = (layout.joints, layout.dims)
    for given in arrays.values():
        last = turned and given.ndim == 3 and given.shape[:2] == tail != given.shape[1:]
        array = given.transpose(2, 0, 1) if last else given
        people_first = array.ndim == 4 and 0 < array.shape[0] < array.shape[1]
        joints = array[:, None] if array.ndim == 3 else array.swapaxes(0, 1) if people_first else array
        if joints.ndim == 4 and joints.shape[2:] == tail and joints.shape[1] > 0:
            if joints.size > _MOST_VALUES:
                raise DataError(f"{path}: {joints.size:,} numbers; expected up to {_MOST_VALUES:,} in a clip")
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
                made = joints.astype(np.float32, copy=False)
            note = f"read as (people, T, V, C): {made.shape[1]} people in {len(made):,} frames"
            return Recording(made, (note,) if people_first else ())
    shape = max((array.shape for array in arrays.values()), key=len)
    names = [f"{name} {array.shape}" for name, array in arrays.items()]
    found = f"arrays {', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if len(names) > 1 else f"shape {shape}"
    needs = f"(T, {tail[0]}, {tail[1]}) or (T, M, {tail[0]}, {tail[1]})"
    raise DataError(f"{path}: {found}; layout {layout.name!r} needs {needs}{_remedy(shape, tail)}")


def _remedy(shape: tuple[int, ...], tail: tuple[int, int]) -> str:
    """Return what probably turns an array of this shape into joints."""
    if shape == tail:
        return "; this is one frame: save x[None]"
    if len(shape) == 2 and shape[1] == tail[0] * tail[1]:
        return f"; save x.reshape(-1, {tail[0]}, {tail[1]})"
    if shape[-2:] == (tail[0], tail[1] + 1):
        return f"; if the last coordinate is a confidence, save x[..., :{tail[1]}]"
    for order in list(permutations(range(len(shape))))[1:] if len(shape) in {3, 4} else []:
        turned = tuple(shape[axis] for axis in order)
        if turned[-2:] == tail and (len(shape) == 3 or turned[0] >= turned[1]):
            return f"; frames come first, joints and coordinates last: save x.transpose{order}"
    if near := [other.name for other in LAYOUTS.values() if tail != (other.joints, other.dims) == shape[-2:]]:
        return f"; for these joints give --layout {' or '.join(near)}"
    return "; give the layout of these joints with --layout, or save them in this order"


# ---------------------------------------------------------------------------------- people in pixels


def numbers(value: Any, path: Path, what: str) -> npt.NDArray[np.float64]:
    """Return a list of numbers of a JSON file, or lists of such, as an array.

    Raises:
        DataError: it holds something else, or lists of unequal length.
    """
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0, object)
    if array.size and array.dtype.kind not in "iuf":
        raise DataError(f"{path}: {what} is no list of numbers ({str(value)[:40]}); expected numbers")
    return array.astype(np.float64)


def in_heights(pixels: npt.NDArray[Any], seen: npt.NDArray[np.bool_], height: float) -> Array:
    """Return pixels, y down, as image heights, y up; zero where not seen. Shape: (..., 2), (...) -> (..., 2)."""
    with np.errstate(over="ignore", invalid="ignore"):
        turned = pixels.astype(np.float64) / height * [1, -1] + [0, 1]
        return np.where(seen[..., None], turned, 0).astype(np.float32)


def visible(pixels: npt.NDArray[Any], scores: npt.NDArray[Any] | None = None) -> npt.NDArray[np.bool_]:
    """Mark joints that were found: not at (0, 0), of possible coordinates, and with a score above 0 where there is one."""
    seen = (np.abs(pixels) < _FARTHEST).all(axis=-1) & pixels.any(axis=-1)
    return np.asarray(seen if scores is None else seen & (scores > 0), np.bool_)


def tracked(
    source: Source, frames: Mapping[int, Sequence[npt.NDArray[np.float64]]], own: Layout | None, *, sparse: bool = False
) -> Recording:
    """Return the people of single frames as people over time: at most two, by the rule of `tracking.chosen`.

    Args:
        source: the file.
        frames: frame -> people, each (joints, 3): x and y in pixels, and a score.
        own: layout of these joints, which are mapped to the one that is wanted; None: they are in its order.
        sparse: frames without anybody are not in the file.

    Raises:
        DataError: the layout wanted is not one of pixels, or lacks joints.
    """
    layout, path = source.layout, source.path
    if layout.dims != 2:
        raise DataError(f"{path}: joints in pixels; layout {layout.name!r} has 3 coordinates, give a 2D --layout")
    ways = _ways(path, layout, own)
    count = len(own.names) if own else layout.joints
    total = max(frames, default=-1) + 1
    if total > MOST_FRAMES or total * MOST_PEOPLE * layout.joints * 2 > _MOST_VALUES:
        raise DataError(f"{path}: frame {total - 1:,}; expected less than {MOST_FRAMES:,}")
    people: list[tuple[int, list[Person]]] = []
    for number, found in sorted(frames.items()):
        if len(found) > _MOST_FOUND:
            raise DataError(f"{path}: {len(found):,} people in frame {number}; expected up to {_MOST_FOUND}")
        here = []
        for person in found:
            if person.shape != (count, 3):
                raise DataError(f"{path}: {_count(person)} in frame {number}; layout {layout.name!r} needs {count}")
            mapped = person if ways is None else _mapped(person, ways)
            seen = visible(mapped[:, :2], mapped[:, 2])
            if seen.any():
                mapped = np.where(seen[:, None], mapped, 0)
                mapped[:, 2] = mapped[:, 2].clip(0, 1)
                here.append(Person(mapped.astype(np.float32), float(mapped[seen, 2].mean())))
        people.append((number, here))
    if 0 < max((float(abs(one.pixels[:, :2]).max()) for _, here in people for one in here), default=0) <= _CORNER:
        raise DataError(
            f"{path}: all joints are within {_CORNER} pixels of the image's corner: shares of its size? Write pixels (OpenPose: "
            "--keypoint_scale 0)"
        )
    width, height = source.image_size() if any(here for _, here in people) else (1, 1)
    kept = chosen(track(people), dict.fromkeys(frames, float(width * height)), MOST_PEOPLE)
    pixels = np.zeros((total, max(len(kept), 1), layout.joints, 3), np.float32)
    for slot, one in enumerate(kept):
        for number, held in one.items():
            pixels[number, slot] = held.pixels
    most = max((len(here) for _, here in people), default=0)
    note = f"up to {most} people in a frame; those who are largest and longest in view are kept, at most {MOST_PEOPLE}"
    joints = in_heights(pixels[..., :2], pixels[..., 2] > 0, height)
    return Recording(joints, (note,) if most > MOST_PEOPLE else (), sparse)


def _count(person: npt.NDArray[Any]) -> str:
    """Say how many joints somebody has, and in which layouts that is so."""
    near = [other.name for other in LAYOUTS.values() if other.joints == len(person)]
    hint = f" (--layout {' or '.join(name if LAYOUTS[name].dims == 2 else f'{name}_2d' for name in near)}?)"
    return f"{len(person)} joints{hint if near else ''}"


def _ways(path: Path, layout: Layout, own: Layout | None) -> list[list[int]] | None:
    """Return for each joint of a layout those of the file's own whose mean it is; None if they are the same."""
    if own is None or own.names == layout.names:
        return None
    try:
        return [list(way) for way in own.mapping_to(layout)]
    except ConfigError as error:
        raise DataError(f"{path}: {error}") from error


def _mapped(person: npt.NDArray[np.float64], ways: Sequence[Sequence[int]]) -> npt.NDArray[np.float64]:
    """Return the joints of another layout; one that is made of a missing joint is missing. Shape: (V, 3) -> (W, 3)."""
    seen = visible(person[:, :2], person[:, 2])
    return np.stack([person[way].mean(axis=0) * bool(seen[way].all()) for way in map(list, ways)])


def with_joints_of(source: Source, own: Layout, made: Recording) -> Recording:
    """Return joints of a layout of the file's own as those of the layout that is wanted; what is made of missing is missing.

    Raises:
        DataError: the layout wanted has joints that the file's own lacks.
    """
    if (ways := _ways(source.path, source.layout, own)) is None:
        return made
    seen = np.asarray(made.joints.any(axis=3))
    parts = [made.joints[:, :, way].mean(axis=2) * seen[:, :, way].all(axis=2, keepdims=True) for way in ways]
    return replace(made, joints=np.stack(parts, axis=2))


_NUMBER = re.compile(r"[0-9]+")
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,4}$")


def frame_numbers(names: Sequence[Any], path: Path) -> list[int | None]:
    """Return the number of the frame of each picture or file of a clip: the one number in which their names differ.

    `cam1_f00011_v2.jpg` and `cam1_f00012_v2.jpg` are frames 11 and 12; where no number differs, the last one counts.
    None stands for a name without a number of a frame.

    Raises:
        DataError: the names differ in more than one number; `path` holds them.
    """
    parsed = [_parsed(name) for name in names]
    known = {text: counts for text, counts in zip(map(str, names), parsed, strict=True) if counts}
    first = next(iter(known), "")
    places: set[int] = set()
    for text, (form, counts) in known.items():
        places |= {at for at, count in enumerate(counts) if known[first][0] == form and count != known[first][1][at]}
        if form != known[first][0] or len(places) > 1:
            raise DataError(
                f"{path}: {first[:60]!r} and {text[:60]!r} differ in more than the number of the frame; give the pictures "
                "of one clip, and let one number of their names count them"
            )
    at = next(iter(places), -1)
    return [counts[1][at] if counts and counts[1][at] < MOST_FRAMES else None for counts in parsed]


def _parsed(name: Any) -> tuple[list[str], list[int]] | None:
    """Return what stands around the numbers of a name, and the numbers; None if it has none."""
    if isinstance(name, int) and not isinstance(name, bool) and name >= 0:
        return ["", ""], [name]
    whole = name if isinstance(name, str) and len(name) < 1000 else ""
    # the number of `clip.f0012` is no suffix
    text = short if _NUMBER.search(short := _SUFFIX.sub("", whole)) else whole
    return (_NUMBER.split(text), [int(one) for one in _NUMBER.findall(text)]) if _NUMBER.search(text) else None
