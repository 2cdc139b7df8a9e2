"""Reader of NTU RGB+D: `.skeleton` files, and the assembly of tracked bodies into two actors.

The assembly gives the arrays of CTR-GCN's public scripts, on which GAP and the paper build.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from c2vl_manifests.errors import DataError
from c2vl_manifests.reading import MOST_FILE, TooLargeError, read_bytes
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.base import Array, Assembled, Reader, expect_ids, locate_by_name


@dataclass(frozen=True)
class BodyTrack:
    """One tracked person: frames of the file, joints (n, 25, 3) in metres and, optionally, pixels (n, 25, 2)."""

    frames: npt.NDArray[np.int32]
    joints: Array
    pixels: Array | None


@dataclass(frozen=True)
class NtuFile:
    """A parsed `.skeleton` file: tracks by body id in order of appearance."""

    frames: int
    tracks: dict[str, BodyTrack]

    def cut(self, start: int, stop: int) -> NtuFile:
        """Return frames [start, stop), counted from zero."""
        if (start, stop) == (0, self.frames):
            return self
        tracks = {}
        for body, track in self.tracks.items():
            kept = (track.frames >= start) & (track.frames < stop)
            if kept.any():
                pixels = None if track.pixels is None else track.pixels[kept]
                tracks[body] = BodyTrack(track.frames[kept] - np.int32(start), track.joints[kept], pixels)
        return NtuFile(stop - start, tracks)


MOST_FRAMES, MOST_BODIES = 200_000, 100
"""A larger count means damage."""

_NO_TEXT = {
    rb"\xff\xfe|\xfe\xff|\d\0|\0\d": "UTF-16: save it as UTF-8",
    rb"\x1f\x8b": "compressed by gzip: gunzip it",
    rb"BZh\d1AY": "compressed by bzip2: bunzip2 it",
    rb"\xfd7zXZ": "compressed by xz: unxz it",
    rb"PK\x03\x04": "a zip archive: unzip it",
}
"""What the first bytes of a file tell that holds the right text in another form."""

_IN_JOINTS = b"0123456789+-._eEinfatyINFATY \t\v\f\r\n"


def read_ntu(path: Path, *, pixels: bool = True) -> NtuFile:
    """Parse a `.skeleton` file.

    Format: number of frames; per frame number of bodies; per body one line of 10 fields (body id first), a line
    with the number of joints, 25 lines of 12 values (x y z, depth x y, colour x y, orientation, state). Values are
    `np.float32(float(token))` to the last bit; of unused values only the characters are checked. Content after the
    last frame is not read.

    Args:
        path: the file.
        pixels: also read the joints' pixels in the colour image; they may be infinite.

    Raises:
        DataError: `file:line: reason`, for the first wrong line.
        OSError: the file cannot be opened.
    """
    data = _content(path)
    order: list[tuple[int, bytes]] = []
    values: Array | list[Array] | None = None
    try:
        lines = _Lines(path, data)
        total = lines.count("the number of frames", MOST_FRAMES)
        found = list(_bodies(lines, total))
        order = [(frame, body) for frame, body, _ in found]
        values = _all_at_once([line for _, _, joints in found for line in joints], pixels)
    except DataError:
        pass  # a number before the line that is wrong may be wrong too
    if values is None:
        lines = _Lines(path, data)
        total = lines.count("the number of frames", MOST_FRAMES)
        order, values = [], []
        for frame, body, joints in _bodies(lines, total):
            values.append(lines.numbers(joints, pixels))
            order.append((frame, body))
    places: dict[bytes, list[int]] = {}
    for place, (_, body) in enumerate(order):
        places.setdefault(body, []).append(place)
    tracks = {}
    for body, mine in places.items():
        track = np.stack([values[place] for place in mine])
        xyz, pixel = (np.ascontiguousarray(part) for part in (track[:, :, :3], track[:, :, 3:]))
        frames = np.array([order[place][0] for place in mine], np.int32)
        tracks[body.decode()] = BodyTrack(frames, xyz, pixel if pixels else None)
    return NtuFile(total, tracks)


def _bodies(lines: _Lines, total: int) -> Iterator[tuple[int, bytes, list[bytes]]]:
    """Yield frame, body id and joint lines of every body; DataError for a wrong line among the others."""
    for frame in range(total):
        seen = set[bytes]()
        for _ in range(lines.count("the number of bodies", MOST_BODIES)):
            fields = lines.next("a body line").split()
            if len(fields) != 10:
                raise lines.wrong(f"body line has {len(fields)} fields; expected 10")
            body, place = fields[0], lines.number
            if lines.count("the number of joints", 25) != 25:
                raise lines.wrong("expected 25 joints")
            yield frame, body, lines.joints()
            if body in seen:
                lines.number = place
                raise lines.wrong(f"body {body.decode()[:40]!r} appears twice in frame {frame + 1}")
            seen.add(body)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_FILE)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error


class _Lines:
    """The lines of a file, read one after another, and the number of the last one for messages."""

    def __init__(self, path: Path, data: bytes) -> None:
        data = data.removeprefix(b"\xef\xbb\xbf")
        self.path, self.number, self._file = path, 1, io.BytesIO(data)
        if kind := next((kind for head, kind in _NO_TEXT.items() if re.match(head, data)), None):
            raise self.wrong(f"is {kind}")
        self.number = 0
        if not data.isascii():
            at = next(at for at, byte in enumerate(data) if byte > 127)
            self.number = data.count(b"\n", 0, at) + 1
            raise self.wrong(f"is not text (byte 0x{data[at]:02x}); download it again")

    def wrong(self, reason: str) -> DataError:
        """Return the error of the last line."""
        return DataError(f"{self.path}:{self.number}: {reason}")

    def next(self, name: str) -> bytes:
        """Return the next line, which holds `name`."""
        self.number += 1
        if not (line := self._file.readline()):
            self.number = self._file.getvalue().count(b"\n") + 1
            raise self.wrong(f"file ends where {name} was expected; download it again")
        return line

    def count(self, name: str, most: int) -> int:
        """Return the whole number that is the next line."""
        text = self.next(name).strip()
        if not text.isdigit() or len(text) > 9 or int(text) > most:
            raise self.wrong(f"{name} is {text.decode()[:40]!r}; expected a whole number up to {most}")
        return int(text)

    def joints(self) -> list[bytes]:
        """Return the next 25 lines, or those that are left."""
        lines = list(islice(self._file, 25))
        self.number += 25
        return lines

    def numbers(self, joints: list[bytes], pixels: bool) -> Array:
        """Return x, y, z and, if asked for, colour x, y of the lines that `joints` just gave: (25, 3 or 5)."""
        if (values := _numbers(joints, pixels)) is not None and len(joints) == 25:
            return values
        self.number -= 25
        self._file.seek(-sum(map(len, joints)), io.SEEK_CUR)
        while True:  # until the line that is wrong
            line = self.next("a joint line")
            if _numbers([line], pixels) is None:
                text = b" ".join(line.split()).decode()[:60]
                raise self.wrong(f"joint line is {text!r}; expected 12 numbers, the first three finite")


_COLUMNS = {str(column): pa.float64() for column in range(12)}
_PLAIN = b"0123456789+-.eEinfatyINFATY \r\n"


def _all_at_once(lines: list[bytes], pixels: bool) -> Array | None:
    """Return what `_numbers` gives for the joint lines of a whole file, (bodies, 25, 3 or 5), in a sixth of the time.

    None where a line is wrong, or in another form than the dataset's, like tabs.
    """
    text = b"".join(lines)
    if not lines or text.translate(None, _PLAIN):
        return None
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            csv.ReadOptions(use_threads=False, column_names=list(_COLUMNS)),
            csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
            csv.ConvertOptions(column_types=_COLUMNS, null_values=[], check_utf8=False),
        )
    except pa.ArrowInvalid:
        return None
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        columns = [table.column(column).to_numpy() for column in ((0, 1, 2, 5, 6) if pixels else (0, 1, 2))]
        values = np.stack(columns, axis=-1).astype(np.float32)
    if len(values) != len(lines) or len(values) % 25 or not np.isfinite(values[:, :3]).all():
        return None
    return values.reshape(-1, 25, values.shape[1])


def _numbers(lines: list[bytes], pixels: bool) -> Array | None:
    """Return the used values of joint lines, (n, 3 or 5), or None if a line is wrong."""
    rows = [line.split() for line in lines]
    if any(len(row) != 12 for row in rows) or b"".join(lines).translate(None, _IN_JOINTS):
        return None
    tokens = [token for row in rows for token in ((*row[:3], row[5], row[6]) if pixels else row[:3])]
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            values = np.array(list(map(float, tokens))).astype(np.float32).reshape(len(rows), -1)
    except ValueError:
        return None
    return values if np.isfinite(values[:, :3]).all() else None


def projected(file: NtuFile, frame: int, height: int = 0) -> Array | None:
    """Return the joints of every body in a frame as pixels of the colour image, (bodies, 25, 2), or None.

    The file must have been read with pixels; the image's `height` is not needed.
    """
    rows = [
        track.pixels[at[0]]
        for track in file.tracks.values()
        if track.pixels is not None and len(at := np.flatnonzero(track.frames == frame))
    ]
    return np.stack(rows) if rows else None


@dataclass(eq=False)
class _Body:
    """A track during assembly: `start` and `end` count the frames that show anybody."""

    joints: Array
    start: int
    motion: float

    @property
    def end(self) -> int:
        # A body that vanishes and returns is stitched contiguous, as the public scripts do: the interval
        # continues from the previous index, not from the frame of return.
        return self.start + len(self.joints) - 1


def assemble_ntu(file: NtuFile, config: SkeletonsConfig) -> Assembled:
    """Pick two actors and set the origin to the first actor's spine, exactly as CTR-GCN's scripts do.

    Empty frames are dropped; of two or more bodies the short (<= 11 frames) and the wide ones go; the rest is ordered
    by motion, later bodies fill gaps of actor 1, then of actor 2. `second_body: copy` is for clips of which one body
    remains; one whose bodies all joined actor 1 keeps its zeros, as in the public arrays.

    *Reading:* where the public scripts fail or give what nobody can want, this goes on: where every body is short
    the longest is kept; a file without bodies gives no frames; an actor 1 without any joint leaves the origin where
    it is; a frame of a single body whose joints are all zero is dropped, not shifted to minus the origin; and a
    clip ends after `max_frames` (no public one does).
    """
    seen = np.zeros(file.frames, bool)
    for track in file.tracks.values():
        seen[track.frames] = True
    index = np.flatnonzero(seen).astype(np.int32)
    position = np.cumsum(seen) - 1
    bodies = [_Body(t.joints, int(position[t.frames[0]]), 0.0) for t in file.tracks.values()]
    bodies = _denoise(bodies) if len(bodies) > 1 else bodies
    joints = _actors(bodies, len(index))
    kept = joints.reshape(len(joints), 75 * joints.shape[1]).sum(axis=1) != 0
    joints, index = joints[kept], index[kept]
    if len(joints):
        present = joints.reshape(*joints.shape[:2], 75).sum(axis=2) != 0
        first = int(np.argmax(joints[:, 0].any(axis=(1, 2))))
        joints -= joints[first, 0, 1].copy()
        joints[~present] = 0
    if joints.shape[1] == 1:
        second = joints if config.second_body == "copy" else np.zeros_like(joints)
        joints = np.concatenate([joints, second], axis=1)
    return Assembled(joints[: config.max_frames], index[: config.max_frames], file.frames)


def _motion(joints: Array) -> float:
    return float(joints.reshape(-1, 3).var(axis=0).sum())


def _denoise(bodies: list[_Body]) -> list[_Body]:
    """Drop short and wide bodies, lower the motion of partly wide ones, order by motion."""
    longest = max(bodies, key=lambda b: len(b.joints))
    bodies = [b for b in bodies if len(b.joints) > 11] or [longest]
    for body in bodies if len(bodies) > 1 else []:
        body.motion = _motion(body.joints)
    for body in list(bodies):
        if len(bodies) == 1:
            break
        # in float64, as the scripts had it under the numpy of their day
        width, height = (np.ptp(body.joints[:, :, axis], axis=1).astype(np.float64) for axis in (0, 1))
        good = width <= 0.8 * height
        bad = len(good) - int(good.sum())
        if bad / len(good) >= 0.69754:
            bodies.remove(body)
        elif bad:
            body.motion = min(body.motion, _motion(body.joints[good]))
    return sorted(bodies, key=lambda b: -b.motion)


def _actors(bodies: list[_Body], frames: int) -> Array:
    """Place bodies, the one that moves most first: (frames, 1 or 2, 25, 3).

    A later body joins the first actor whose interval it shares at most one frame with; the later write wins.
    """
    joints = np.zeros((frames, min(max(len(bodies), 1), 2), 25, 3), np.float32)
    intervals = [(0, 0), (0, 0)]
    for number, body in enumerate(bodies):
        for actor, (start, end) in enumerate(intervals):
            if number == 0 or min(end, body.end) - max(start, body.start) <= 0:
                joints[body.start : body.end + 1, actor] = body.joints
                intervals[actor] = (
                    (body.start, body.end) if number == 0 else (min(start, body.start), max(end, body.end))
                )
                break
    return joints


READER = Reader(
    expected_rows=expect_ids,
    locate=locate_by_name,
    read_joints=lambda path, row, layout, bodies, config: assemble_ntu(read_ntu(path, pixels=False), config),
    project=lambda path, row, layout: partial(projected, read_ntu(path)),
    check_file=read_ntu,
    clip_files={".skeleton": "NTU RGB+D"},
    clip_layout="kinect_v2",
)
