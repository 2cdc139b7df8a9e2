"""What every skeleton reader returns, and the steps that readers share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError


def _present(joints: Array) -> npt.NDArray[np.bool_]:
    """Which bodies are there in which frame. Shape: (T, M, V, C) -> (T, M)."""
    return np.asarray(joints.any(axis=(2, 3)), np.bool_)


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


Array = npt.NDArray[np.float32]


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
