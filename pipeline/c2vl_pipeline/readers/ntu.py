"""Reader of NTU RGB+D: `.skeleton` files, and the assembly of tracked bodies into two actors.

The parser is one compiled pass (`_ntu_scan.py`); this module completes it and words the errors. The assembly gives
the arrays of CTR-GCN's public scripts, on which GAP and the paper build.
"""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
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


_EXPECTED = (
    ("the number of frames", 200_000),
    ("the number of bodies", 100),
    ("a body line", 10),
    ("the number of joints", 25),
    ("a joint line", 12),
)
"""Content of a line, and its largest number or number of fields; indexed by the `what` of `_ntu_scan.scan`."""

_TOKEN = re.compile(rb"[^ \t\n\v\f\r]*")


def read_ntu(path: Path, *, pixels: bool = True) -> NtuFile:
    """Parse a `.skeleton` file.

    Format: number of frames; per frame number of bodies; per body one line of 10 fields (body id first), a line
    with the number of joints, 25 lines of 12 values (x y z, depth x y, colour x y, orientation, state). Values are
    `np.float32(float(token))` to the last bit; of unused values only the characters are checked. Content after the
    last frame is not read. Time is linear in the file's size; memory stays below 8 bytes per byte of any content.

    Args:
        path: the file.
        pixels: also read the joints' pixels in the colour image; they may be infinite.

    Raises:
        DataError: `file:line: reason`, for the first wrong line.
        OSError: the file cannot be opened.
    """
    ntu_scan = _compiled()
    data = path.read_bytes()
    text = np.frombuffer(data + bytes(ntu_scan.PADDING), np.uint8)
    if not data.isascii():
        at = int(np.argmax(text > 127))
        raise _wrong(path, data, at, f"is not text (byte 0x{data[at]:02x}); download it again")
    room = len(data) // ntu_scan.SMALLEST_BODY + 1
    values = np.empty((room * 25, 5 if pixels else 3), np.float32)
    frames, names = np.empty(room, np.int32), np.empty((room, 2), np.int64)
    hard = np.empty((256, 2), np.int64)
    met, what, at, total, bodies, left = ntu_scan.scan(text, len(data), values, frames, names, hard)
    if left > len(hard):
        hard = np.empty((left, 2), np.int64)
        ntu_scan.scan(text, len(data), values, frames, names, hard)
    order: dict[bytes, int] = {}
    # two lists, not one per body: those would call the garbage collector
    begins, ends = names[:bodies].T.tolist()
    track = np.array(
        [order.setdefault(data[a:b], len(order)) for a, b in zip(begins, ends, strict=True)], np.int64
    )
    rows = np.argsort(track, kind="stable")
    problems = [] if met == ntu_scan.FINE else [(at, _reason(met, what, data, at))]
    problems += _read_hard(hard[:left], data, values)
    same = (np.diff(track[rows]) == 0) & (np.diff(frames[rows]) == 0)
    if same.any():
        begin, end = names[rows[1:][same].min()].tolist()
        frame = frames[rows[1:][same].min()] + 1
        problems.append((begin, f"body {data[begin:end].decode()[:40]!r} appears twice in frame {frame}"))
    if problems:
        raise _wrong(path, data, *min(problems))
    joints = values.reshape(room, 25, -1)
    tracks = {}
    for name, mine in zip(order, np.split(rows, np.flatnonzero(np.diff(track[rows])) + 1), strict=False):
        own = joints[mine]
        tracks[name.decode()] = BodyTrack(
            frames[mine],
            np.ascontiguousarray(own[:, :, :3]),
            np.ascontiguousarray(own[:, :, 3:]) if pixels else None,
        )
    return NtuFile(total, tracks)


@cache
def _compiled() -> ModuleType:
    """Load the compiled scan once per process, without the garbage collector, which would take a third of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        from c2vl_pipeline.readers import _ntu_scan as ntu_scan

        ntu_scan.load()
    finally:
        if collects:
            gc.enable()
    return ntu_scan


def _read_hard(hard: npt.NDArray[np.int64], data: bytes, values: Array) -> list[tuple[int, str]]:
    """Parse in Python the numbers that the scan left; return the first wrong one as [(position, reason)]."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, as it is for np.float32(float(token))
        # row by row: a list of all would take ten times the memory
        for at, place in map(np.ndarray.tolist, hard):
            token = _TOKEN.match(data, at)
            assert token is not None
            try:
                flat[place] = float(token.group())
            except ValueError:
                return [(at, _reason(_compiled().NO_JOINT, 4, data, at))]
            if place % values.shape[1] < 3 and not np.isfinite(flat[place]):
                return [(at, _reason(_compiled().NO_JOINT, 4, data, at))]
    return []


def _reason(met: int, what: int, data: bytes, at: int) -> str:
    """Return what is wrong with the line at a position."""
    ntu_scan = _compiled()
    name, most = _EXPECTED[what]
    end = data.find(b"\n", at)
    line = data[data.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(data)]
    if met == ntu_scan.ENDS:
        return f"file ends where {name} was expected; download it again"
    if met == ntu_scan.NO_COUNT:
        return f"{name} is {line.strip().decode()[:40]!r}; expected a whole number up to {most}"
    if met == ntu_scan.NO_BODY:
        return f"body line has {len(line.split())} fields; expected {most}"
    if met == ntu_scan.NOT_25:
        return f"expected {most} joints"
    text = b" ".join(line.split()).decode()[:60]
    return f"joint line is {text!r}; expected {most} numbers, the first three finite"


def _wrong(path: Path, data: bytes, at: int, reason: str) -> DataError:
    line = data.count(b"\n", 0, at) + 1
    return DataError(f"{path}:{line}: {reason}")


def projected(file: NtuFile, frame: int) -> Array | None:
    """Return the joints of every body in a frame as pixels of the colour image, (bodies, 25, 2), or None.

    The file must have been read with pixels.
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
    project=lambda path: partial(projected, read_ntu(path)),
    check_file=read_ntu,
    clip_files={".skeleton": "NTU RGB+D"},
    clip_layout="kinect_v2",
)
