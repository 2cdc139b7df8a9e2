"""`c2vl-pipeline skeletons`: skeleton files to joints, (T, M, V, C) float32, valid frames only.

One reader a file format: NTU `.skeleton` (`ntu.py`), UTD-MHAD `.mat`, PKU-MMD text, plain arrays. Malformed files
raise DataError with file and line; the stage turns that into a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c2vl_manifests.config import SkeletonsConfig
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.schema import SKELETONS, Status
from c2vl_pipeline import msr
from c2vl_pipeline.index import Index
from c2vl_pipeline.ntu import Array, Assembled, NtuFile, assemble_ntu, projected, read_ntu
from c2vl_pipeline.stage import Shard, Stage, row_status, unreadable

__all__ = [
    "STAGE",
    "Assembled",
    "NtuFile",
    "assemble_ntu",
    "process",
    "projected",
    "read_array",
    "read_ntu",
    "read_pku",
    "read_sample",
    "read_utd",
    "stored_joints",
]

# --------------------------------------------------------------------------------------------- readers

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

    The layout's origin (its centre, unless it says otherwise) in the first frame becomes zero.
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
    return _anchored(array[:, :bodies].astype(np.float32), path, anchor=layout.anchor)


def read_pku(path: Path, start: int, end: int, config: SkeletonsConfig) -> Assembled:
    """Read frames [start, end) of a PKU-MMD file: one line a frame, 150 numbers, two bodies of 25 joints.

    Numbers that are not finite become zero; an `end` behind the last line ends there.

    *Reading:* with `aimclr` each frame is turned here, before the resize to 64 frames; the authors' public code
    resizes first. A clip of more than `max_frames` is cut in its centre after its origin is set.
    """
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


def _present(joints: Array) -> npt.NDArray[np.bool_]:
    """Which bodies are there in which frame. Shape: (T, M, V, C) -> (T, M)."""
    return np.asarray(joints.any(axis=(2, 3)), np.bool_)


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
        return assemble_ntu(read_ntu(path, pixels=False), config)
    if index.dataset.reader == "utd":
        return read_utd(path)
    if index.dataset.reader == "msr":
        clip = msr.read_clip(path, sample["start_frame"], sample["end_frame"])
        return _anchored(clip[:, None], path, anchor=index.layout.anchor)
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
            except (DataError, OSError) as error:
                yield row | unreadable(error, Status.MISSING_SKELETON)
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
    raw="skeleton",
)


def stored_joints(row: dict[str, Any], layout: Layout) -> Array:
    """Return the joints of a row of the skeletons stage, (T, M, V, C)."""
    shape = (
        (row["frames"], -1, layout.joints, layout.dims)
        if row["frames"]
        else (0, 1, layout.joints, layout.dims)
    )
    return np.frombuffer(row["joints"], np.float32).reshape(shape)
