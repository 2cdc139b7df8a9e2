"""A packed set exported for pyskl reads as annotations, and comes back as the same joints."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.arrays import READER
from c2vl_pipeline.stages import export
from support.packed import random_joints, write_packed

STICK = Layout("stick", ("hip", "knee", "foot", "hand"), (0, 0, 1, 0), 3)


def packed(folder: Path, dims: int) -> tuple[Path, Layout, list[np.ndarray]]:
    layout = Layout("stick", STICK.names, STICK.parents, dims)
    joints = [clip - clip[:1, :1, :1] for clip in random_joints([5, 9, 0, 7], 2, layout)]
    for clip in joints:  # the other joints of a first frame lie around its origin: zero is a place there
        clip[:1, 0, 1:3] = [[1], [-1]]
    joints[1][:, 1] = 0
    joints[3][2, 0, 3] = 0
    splits = [{"xsub": side} for side in ("train", "test", "train", "train")]
    return write_packed(folder / "packed", joints, layout=layout, labels=[2, 0, 1, 1], splits=splits), layout, joints


@pytest.mark.parametrize("dims", [2, 3])
def test_an_exported_set_comes_back(tmp_path: Path, dims: int) -> None:
    folder, layout, joints = packed(tmp_path, dims)
    assert export.write(folder, tmp_path / "set.pkl") == 3
    held = pickle.loads((tmp_path / "set.pkl").read_bytes())
    assert held["split"] == {"xsub_train": ["s00", "s03"], "xsub_val": ["s01"]}
    assert [(a["frame_dir"], a["label"], a["total_frames"]) for a in held["annotations"]] == [("s00", 2, 5), ("s01", 0, 9), ("s03", 1, 7)]  # fmt: skip
    assert [a["keypoint"].shape for a in held["annotations"]] == [(2, 5, 4, dims), (1, 9, 4, dims), (2, 7, 4, dims)]
    for n, clip in enumerate(joints):
        if len(clip):
            row = {"sample_id": f"s{n:02d}"}
            made = READER.read_joints(tmp_path / "set.pkl", row, layout, 2, SkeletonsConfig()).joints
            bodies = made.shape[1]
            np.testing.assert_allclose(made, clip[:, :bodies], atol=0 if dims == 3 else 1e-6)
            assert not clip[:, bodies:].any()


def test_what_is_not_packed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="holds no packed data"):
        export.write(tmp_path, tmp_path / "set.pkl")
    folder, _, _ = packed(tmp_path, 3)
    np.save(folder / "labels.npy", np.zeros(2, np.int16))
    with pytest.raises(DataError, match=r"damaged \(its files have different numbers of samples\)"):
        export.write(folder, tmp_path / "set.pkl")
