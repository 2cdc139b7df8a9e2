"""Skeletons in own array files and pose files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.layouts import Layout
from c2vl_pipeline.readers.arrays import read_array
from support.layouts import EACH


@EACH
@pytest.mark.parametrize("people", [None, 1, 3])
def test_pose_files_of_every_layout_are_read(tmp_path: Path, layout: Layout, people: int | None) -> None:
    shape = (5, layout.joints, layout.dims) if people is None else (5, people, layout.joints, layout.dims)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
    made = read_array(tmp_path / "x.npy", layout, 2)
    assert made.joints.shape == (5, min(people or 1, 2), layout.joints, layout.dims)
    assert not made.joints[0, 0, layout.anchor].any()
    np.save(tmp_path / "y.npy", np.zeros((5, layout.joints + 1, layout.dims)))
    with pytest.raises(C2VLError, match=f"layout '{layout.name}' needs"):
        read_array(tmp_path / "y.npy", layout, 2)


STICK = Layout("stick", ("hip", "knee", "foot"), (0, 0, 1), 2)


@pytest.mark.parametrize("shape", [(6, 3, 2), (6, 1, 3, 2), (6, 2, 3, 2), (6, 4, 3, 2)])
def test_own_arrays_of_either_shape_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", joints=array)
    full = (array if array.ndim == 4 else array[:, None])[:, :2].astype(np.float32)
    for name in ("x.npy", "x.npz"):
        made = read_array(tmp_path / name, STICK, 2)
        np.testing.assert_array_equal(made.joints, full - full[0, 0, 0])
        assert made.frame_index.tolist() == list(range(6))


def test_own_empty_frames_are_dropped_and_absent_bodies_stay_zero(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 2, 3, 2))
    array[0], array[2:, 1] = 0, 0
    np.save(tmp_path / "x.npy", array)
    made = read_array(tmp_path / "x.npy", STICK, 2)
    assert made.frame_index.tolist() == [1, 2, 3, 4]
    assert made.frames_in_file == 5
    assert made.joints[0, 1].any()
    assert not made.joints[1:, 1].any()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 4, 2)), "shape (6, 1, 4, 2); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 3)), "shape (6, 3); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 0, 3, 2)), "shape (6, 0, 3, 2); layout 'stick' needs"),
        (np.full((6, 3, 2), np.inf), "holds NaN or infinite joints; expected finite metres"),
        (np.full((6, 3, 2), "a"), "holds <U1; expected numbers, in metres"),
        (np.full((6, 3, 2), 1j), "holds complex128; expected numbers, in metres"),
        (np.full((6, 3, 2), None), "not a numpy array (Object arrays cannot be loaded when allow_pickle=False)"),
    ],
)  # fmt: skip
def test_own_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, expected: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError) as caught:
        read_array(tmp_path / "x.npy", STICK, 2)
    assert str(caught.value).startswith(f"{tmp_path / 'x.npy'}: {expected}")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_every_cut_of_an_own_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    array = np.random.default_rng(0).normal(size=(9, 3, 2))
    if name == "x.npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, joints=array)
    data = path.read_bytes()
    for cut in (0, 1, 6, 40, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="not a numpy array"):
            read_array(path, STICK, 2)


def test_an_absent_own_file_stays_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "none.npy", STICK, 2)
