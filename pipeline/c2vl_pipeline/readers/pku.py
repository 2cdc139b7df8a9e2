"""Reader of PKU-MMD's skeleton files: one text file per recording."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.assembly import Array, Assembled, _present


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


def _face_front(joints: Array) -> Array:
    """Rotate each body of each frame about y so that the shoulders (9 - 5, 1-based) lie along x."""
    shoulders = joints[:, :, 8] - joints[:, :, 4]
    angle = np.arctan2(shoulders[..., 2], shoulders[..., 0])
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    return np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=-1).astype(np.float32)
