"""`c2vl-pipeline skeletons`: skeleton files to joints, (T, M, V, C) float32, valid frames only.

One reader a file format (NTU `.skeleton`, UTD-MHAD `.mat`, PKU-MMD text, plain arrays), then the assembly the
field uses. Malformed files raise DataError with file and line; the stage turns that into a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c2vl_manifests.config import SkeletonsConfig
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.schema import SKELETONS, Status
from c2vl_pipeline.index import Index
from c2vl_pipeline.runner import Shard, Stage, failure, row_status

Array = npt.NDArray[np.float32]

_MAX_FRAMES_IN_FILE = 200_000
"""A count above this in a header is damage, not a recording; it also bounds what a hostile file can allocate."""


@dataclass(frozen=True)
class BodyTrack:
    """One tracked person: frames of the file, joints (n, 25, 3) metres, colour-image pixels (n, 25, 2)."""

    frames: npt.NDArray[np.int32]
    joints: Array
    pixels: Array


@dataclass(frozen=True)
class NtuFile:
    """A parsed `.skeleton` file: tracks by body id in order of appearance."""

    frames: int
    tracks: dict[str, BodyTrack]


@dataclass(frozen=True)
class Assembled:
    """Joints of one sample, (T, M, V, C) float32, and the file frame of each kept frame, (T,)."""

    joints: Array
    frame_index: npt.NDArray[np.int32]
    frames_in_file: int

    @property
    def bodies(self) -> int:
        """Bodies that are not all zero."""
        return int(self.joints.any(axis=(0, 2, 3)).sum())


# ------------------------------------------------------------------------------------------ NTU RGB+D


def read_ntu(path: Path) -> NtuFile:
    """Parse a `.skeleton` file.

    Format: number of frames; per frame number of bodies; per body one line of 10 fields (body id first), a line
    with the number of joints, 25 lines of 12 values (x y z, depth x y, colour x y, orientation, state).

    Raises:
        DataError: `file:line: reason`.
    """
    try:
        lines = path.read_text("ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    at = 0

    def line(what: str) -> str:
        nonlocal at
        if at >= len(lines) or (at == len(lines) - 1 and not lines[at].strip()):
            raise DataError(f"{path}:{at + 1}: file ends where {what} should stand; download it again")
        at += 1
        return lines[at - 1]

    def count(what: str, most: int) -> int:
        text = line(what).strip()
        if not text.isdigit() or len(text) > 9 or int(text) > most:
            raise DataError(f"{path}:{at}: {what} is {text[:40]!r}; expected a whole number up to {most}")
        return int(text)

    frames = count("the number of frames", _MAX_FRAMES_IN_FILE)
    seen: dict[str, list[tuple[int, Array]]] = {}
    for frame in range(frames):
        for _ in range(count("the number of bodies", 100)):
            fields = line("a body line").split()
            if len(fields) != 10:
                raise DataError(f"{path}:{at}: body line has {len(fields)} fields; expected 10")
            if count("the number of joints", 25) != 25:
                raise DataError(f"{path}:{at}: expected 25 joints")
            first = at
            block = [line("a joint line").split() for _ in range(25)]
            try:
                values = np.array(block, dtype=np.float32)
                if values.shape != (25, 12) or not np.isfinite(values[:, :3]).all():
                    raise ValueError
            except ValueError:
                bad = next((i for i, row in enumerate(block) if not _joint(row)), 0)
                raise DataError(
                    f"{path}:{first + bad + 1}: joint line is {' '.join(block[bad])[:60]!r}; expected 12 numbers, the first three finite"
                ) from None
            track = seen.setdefault(fields[0], [])
            if track and track[-1][0] == frame:
                raise DataError(
                    f"{path}:{first - 1}: body {fields[0][:40]} stands twice in frame {frame + 1}"
                )
            track.append((frame, values))
    tracks = {
        body: BodyTrack(
            np.array([f for f, _ in rows], np.int32),
            np.stack([v[:, :3] for _, v in rows]),
            np.stack([v[:, 5:7] for _, v in rows]),
        )
        for body, rows in seen.items()
    }
    return NtuFile(frames, tracks)


def _joint(row: list[str]) -> bool:
    try:
        return len(row) == 12 and bool(np.isfinite(np.array(row, np.float32)[:3]).all())
    except ValueError:
        return False


@dataclass(eq=False)
class _Body:
    """A track during assembly: `start` and `end` count frames in which anybody is seen."""

    joints: Array
    start: int
    motion: float

    @property
    def end(self) -> int:
        # A body that vanishes and returns is stitched contiguous, as the public scripts do: the interval
        # continues from the previous index, not from the frame of return.
        return self.start + len(self.joints) - 1


def assemble_ntu(file: NtuFile, config: SkeletonsConfig) -> Assembled:
    """Pick two actors and put the origin at the first actor's spine, as CTR-GCN's scripts do.

    Source: CTR-GCN's NTU preprocessing, on which GAP and so the paper build. Empty frames are dropped; of two
    or more bodies the short (<= 11 frames) and the wide ones go; the rest is ordered by motion, later bodies
    fill gaps of actor 1, then of actor 2. *Reading:* where every body is short the public script fails; the
    longest is kept.
    """
    anybody = np.zeros(file.frames, bool)
    for track in file.tracks.values():
        anybody[track.frames] = True
    valid = np.flatnonzero(anybody).astype(np.int32)
    position = np.cumsum(anybody) - 1
    bodies = [_Body(t.joints, int(position[t.frames[0]]), _motion(t.joints)) for t in file.tracks.values()]
    joints = np.zeros((len(valid), 2, 25, 3), np.float32)
    if len(bodies) == 1:
        joints[: len(bodies[0].joints), 0] = bodies[0].joints
    elif bodies:
        _two_actors(joints, _denoise(bodies))
    kept = joints.reshape(len(joints), 150).sum(axis=1) != 0
    joints, valid = joints[kept], valid[kept]
    if len(joints):
        present = _present(joints)
        first = int(np.argmax(present[:, 0]))
        joints = np.where(present[:, :, None, None], joints - joints[first, 0, 1], np.float32(0))
        if config.second_body == "copy" and not present[:, 1].any():
            joints[:, 1] = joints[:, 0]
    joints, valid = joints[: config.max_frames], valid[: config.max_frames]
    return Assembled(np.ascontiguousarray(joints, np.float32), valid, file.frames)


def _present(joints: Array) -> npt.NDArray[np.bool_]:
    """Which bodies are there in which frame. Shape: (T, M, V, C) -> (T, M)."""
    return np.asarray(joints.any(axis=(2, 3)), np.bool_)


def _motion(joints: Array) -> float:
    return float(joints.reshape(-1, 3).var(axis=0).sum())


def _denoise(bodies: list[_Body]) -> list[_Body]:
    """Drop short and wide bodies, lower the motion of partly wide ones, order by motion."""
    longest = max(bodies, key=lambda b: len(b.joints))
    bodies = [b for b in bodies if len(b.joints) > 11] or [longest]
    for body in list(bodies):
        if len(bodies) == 1:
            break
        width, height = np.ptp(body.joints[:, :, 0], axis=1), np.ptp(body.joints[:, :, 1], axis=1)
        good = width <= np.float32(0.8) * height
        if 1 - good.mean() >= 0.69754:
            bodies.remove(body)
        else:
            body.motion = min(body.motion, _motion(body.joints[good]))
    return sorted(bodies, key=lambda b: -b.motion)


def _two_actors(joints: Array, bodies: list[_Body]) -> None:
    """Fill (T, 2, 25, 3): actor 1 moves most; a later body joins the first actor whose interval it does not overlap."""
    intervals: list[tuple[int, int]] = [(bodies[0].start, bodies[0].end), (0, 0)]
    joints[bodies[0].start : bodies[0].end + 1, 0] = bodies[0].joints
    for body in bodies[1:]:
        for actor, (start, end) in enumerate(intervals):
            if min(end, body.end) - max(start, body.start) <= 0:
                joints[body.start : body.end + 1, actor] = body.joints
                intervals[actor] = (min(start, body.start), max(end, body.end))
                break


def projected(file: NtuFile, frame: int) -> Array | None:
    """Return the joints of every body seen in a frame as pixels of the colour image, (bodies, 25, 2), or None."""
    rows = [t.pixels[at[0]] for t in file.tracks.values() if len(at := np.flatnonzero(t.frames == frame))]
    return np.stack(rows) if rows else None


# ------------------------------------------------------------------------------- UTD, PKU, plain arrays

_UTD_TO_KINECT_V1 = [3, 2, 1, 0, *range(4, 20)]


def read_utd(path: Path) -> Assembled:
    """Read `d_skel` (20, 3, T) of a UTD-MHAD `.mat` file; hip centre of the first frame becomes the origin."""
    import scipy.io

    try:
        array = scipy.io.loadmat(path)["d_skel"]
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise DataError(
            f"{path}: not a MATLAB file with d_skel ({type(error).__name__}: {str(error)[:80]})"
        ) from error
    if array.ndim != 3 or array.shape[:2] != (20, 3):
        raise DataError(f"{path}: d_skel has the shape {array.shape}; expected (20, 3, frames)")
    joints = array.transpose(2, 0, 1)[:, None, _UTD_TO_KINECT_V1].astype(np.float32)
    return _anchored(joints, path, anchor=0)


def read_array(path: Path, layout: Layout, bodies: int) -> Assembled:
    """Read own joints: `.npy` or the first array of an `.npz`, (T, V, C) or (T, M, V, C), metres.

    The layout's centre in the first frame becomes the origin.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                array = loaded[loaded.files[0]]
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zip and zlib raise a dozen kinds on damaged files
        raise DataError(f"{path}: not a numpy array ({str(error)[:100]})") from error
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: holds {array.dtype}; expected numbers, in metres")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[2:] != (layout.joints, layout.dims) or array.shape[1] < 1:
        raise DataError(
            f"{path}: shape {array.shape}; layout {layout.name!r} needs (T, {layout.joints}, {layout.dims}) or "
            f"(T, M, {layout.joints}, {layout.dims})"
        )
    return _anchored(array[:, :bodies].astype(np.float32), path, anchor=layout.centre)


def read_pku(path: Path, start: int, end: int, config: SkeletonsConfig) -> Assembled:
    """Read frames [start, end) of a PKU-MMD file: one line a frame, 150 numbers, two bodies of 25 joints."""
    rows = []
    with path.open(encoding="ascii", errors="replace") as handle:
        for number, text in enumerate(handle):
            if number >= end:
                break
            if number >= start:
                try:
                    row = np.array(text.split(), dtype=np.float32)
                except ValueError as error:
                    raise DataError(f"{path}:{number + 1}: expected 150 numbers ({error})") from error
                if row.size != 150:
                    raise DataError(f"{path}:{number + 1}: {row.size} numbers; expected 150")
                rows.append(row)
    joints = np.array(rows, np.float32).reshape(-1, 2, 25, 3)
    joints[~np.isfinite(joints)] = 0
    kept = np.asarray(joints.any(axis=(1, 2, 3)), np.bool_)
    index = np.flatnonzero(kept).astype(np.int32) + start
    joints = joints[kept]
    present = _present(joints)
    if len(joints) and config.pku_norm == "first_frame_joint2":
        joints = np.where(
            present[:, :, None, None], joints - joints[int(np.argmax(present[:, 0])), 0, 1], np.float32(0)
        )
    elif len(joints) and config.pku_norm == "aimclr":
        joints = np.where(present[:, :, None, None], _face_front(joints - joints[:, :, 20:21]), np.float32(0))
    if len(joints) > config.max_frames:
        cut = (len(joints) - config.max_frames) // 2
        joints, index = joints[cut : cut + config.max_frames], index[cut : cut + config.max_frames]
    return Assembled(np.ascontiguousarray(joints, np.float32), index, end - start)


def _face_front(joints: Array) -> Array:
    """Rotate each body of each frame about y so that the shoulders (9 - 5, 1-based) lie along x."""
    shoulders = joints[:, :, 8] - joints[:, :, 4]
    angle = np.arctan2(shoulders[..., 2], shoulders[..., 0])
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    return np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=-1).astype(np.float32)


def _anchored(joints: Array, path: Path, anchor: int) -> Assembled:
    """Drop empty frames and subtract the first body's anchor joint of the first frame; absent bodies stay zero."""
    if not np.isfinite(joints).all():
        raise DataError(f"{path}: holds NaN or infinite joints; expected finite metres")
    total = len(joints)
    index = np.flatnonzero(joints.any(axis=(1, 2, 3))).astype(np.int32)
    joints = joints[index]
    if len(joints):
        present = _present(joints)
        first = int(np.argmax(present[:, 0]))
        joints = np.where(present[:, :, None, None], joints - joints[first, 0, anchor], np.float32(0))
    return Assembled(np.ascontiguousarray(joints, np.float32), index, total)


# ---------------------------------------------------------------------------------------------- stage


def read_sample(index: Index, sample: dict[str, Any], config: SkeletonsConfig) -> Assembled:
    """Read and assemble the skeleton of one sample of the index.

    Raises:
        DataError: the file is malformed.
        OSError: it cannot be opened.
    """
    path = index.root / sample["skeleton"]
    if index.dataset.reader in {"ntu", "synthetic"}:
        return assemble_ntu(read_ntu(path), config)
    if index.dataset.reader == "utd":
        return read_utd(path)
    if index.dataset.reader == "pku":
        return read_pku(path, sample["start_frame"], sample["end_frame"], config)
    return read_array(path, index.layout, index.bodies)


def _rows(shard: Shard) -> Iterator[dict[str, Any]]:
    config = shard.recipe.pipeline.skeletons
    nothing = {"frames": 0, "frames_in_file": 0, "bodies": 0, "frame_index": [], "joints": b""}
    for sample in shard.samples:
        row: dict[str, Any] = {"sample_id": sample["sample_id"], **nothing}
        if sample["problem"]:
            yield row | row_status(Status.FAILED, "problem", sample["problem"])
        elif sample["skeleton"] is None or sample["known_missing"]:
            why = (
                "on the dataset's list of missing skeletons"
                if sample["known_missing"]
                else "no skeleton file"
            )
            yield row | row_status(Status.MISSING_SKELETON, "missing", why)
        else:
            try:
                body = read_sample(shard.index, sample, config)
            except DataError as error:
                yield row | failure(error, Status.DECODE_ERROR)
                continue
            except OSError as error:
                yield row | failure(error, Status.MISSING_SKELETON)
                continue
            row |= {
                "frames": len(body.joints),
                "frames_in_file": body.frames_in_file,
                "bodies": body.bodies,
                "frame_index": body.frame_index.tolist(),
                "joints": body.joints.tobytes(),
            }
            seen = (
                row_status(Status.OK)
                if len(body.joints)
                else row_status(Status.MISSING_SKELETON, "empty", "no body in any frame")
            )
            yield row | seen


def process(shard: Shard) -> pa.Table:
    """Make one shard: a row a sample."""
    return pa.Table.from_pylist(list(_rows(shard)), schema=SKELETONS)


STAGE = Stage(
    name="skeletons",
    command="skeletons",
    process=process,
    upstream=lambda recipe: (),
    row_group=256,
    reads_joints=True,
)


def stored_joints(row: dict[str, Any], layout: Layout) -> Array:
    """Return the joints of a row of the skeletons stage, (T, M, V, C)."""
    shape = (
        (row["frames"], -1, layout.joints, layout.dims)
        if row["frames"]
        else (0, 1, layout.joints, layout.dims)
    )
    return np.frombuffer(row["joints"], np.float32).reshape(shape)
