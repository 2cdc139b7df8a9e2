"""`c2vl-pipeline export`: a packed set as one file of annotations, for training in pyskl or MMAction2.

Format: see `c2vl_pipeline.readers.files.pyskl`. Joints are those of the packed set: valid frames, the first body's origin at
zero in the first frame. 3D ones stay metres, y up. 2D ones become pixels of an image of 1920 x 1080, y down, with the origin
in its middle, since the place of the person in the picture is not packed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.joints import missing_joints
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import commit_file
from c2vl_manifests.packed import read_packed_manifest
from c2vl_manifests.reading import map_array, read_array
from c2vl_manifests.tables import read_table
from c2vl_pipeline.readers.files.pickles import dump

_WIDTH, _HEIGHT = 1920, 1080
_SIDES = {"train": "train", "test": "val"}
"""Names of the two sides of a split here and there."""


def write(folder: Path, out: Path) -> int:
    """Write a packed set as a file of annotations; returns the number of samples with joints, which are all it holds.

    Args:
        folder: the packed set, such as `work/packed`.
        out: the file, `.pkl`.

    Raises:
        StageError: the folder holds no packed set.
        DataError: a file of it is damaged, or no sample has joints.
        OSError: the file cannot be written.
    """
    layout = read_packed_manifest(folder).joint_layout()
    try:
        rows = read_table(folder / "index.parquet").select(["sample_id", "frames", "splits"]).to_pylist()
        offsets, labels = (read_array(folder / f"{name}.npy") for name in ("offsets", "labels"))
        joints = map_array(folder / "joints.npy")
        sizes = [int(row["frames"]) for row in rows]
        if not len(rows) == len(labels) == len(offsets) - 1 or sizes != np.diff(offsets).tolist():
            raise ValueError("its files have different numbers of samples")
        if joints.ndim != 4 or joints.shape[1::2] != (layout.dims, layout.joints) or len(joints) != offsets[-1]:
            raise ValueError(f"joints of the shape {joints.shape}")
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{folder}: damaged ({one_line(error)}); run `c2vl-pipeline pack` again") from error
    if not any(sizes):
        raise DataError(f"{folder}: no sample has joints; there is nothing to export")

    def annotations() -> Iterator[dict[str, Any]]:
        for n, row in enumerate(rows):
            if row["frames"]:
                clip = joints[offsets[n] : offsets[n + 1]].transpose(0, 2, 3, 1)
                yield _annotation(row["sample_id"], clip, int(labels[n]), layout)

    def store(path: Path) -> None:
        with path.open("wb") as file:
            for part in dump({"split": _splits(rows), "annotations": annotations()}):
                file.write(part)

    out.parent.mkdir(parents=True, exist_ok=True)
    commit_file(out, store)
    return sum(map(bool, sizes))


def _splits(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return lists of samples by benchmark and side: xsub_train, xsub_val."""
    splits: dict[str, list[str]] = {}
    for row in rows:
        if row["frames"]:
            for benchmark, side in row["splits"]:
                splits.setdefault(f"{benchmark}_{_SIDES[side]}", []).append(row["sample_id"])
    return splits


def _annotation(name: str, clip: npt.NDArray[np.float32], label: int, layout: Layout) -> dict[str, Any]:
    """Return the annotation of a clip, (T, M, V, C); bodies that are never seen are left out."""
    bodies = max(1, int(np.flatnonzero(clip.any(axis=(0, 2, 3))).max(initial=0)) + 1)
    clip = clip[:, :bodies]
    facts: dict[str, Any] = {"frame_dir": name, "label": label, "total_frames": len(clip)}
    if layout.dims == 3:
        return facts | {"keypoint": np.ascontiguousarray(clip.swapaxes(0, 1))}
    bodies_there = np.asarray(clip.any(axis=(2, 3)), np.bool_)
    there = bodies_there[..., None] & ~missing_joints(clip, layout)
    pixels = clip * np.array([_HEIGHT, -_HEIGHT], np.float32) + np.array([_WIDTH / 2, _HEIGHT / 2], np.float32)
    return facts | {
        "img_shape": (_HEIGHT, _WIDTH),
        "original_shape": (_HEIGHT, _WIDTH),
        "keypoint": np.ascontiguousarray(np.where(there[..., None], pixels, np.float32(0)).swapaxes(0, 1)),
        "keypoint_score": np.ascontiguousarray(there.swapaxes(0, 1), np.float32),
    }
