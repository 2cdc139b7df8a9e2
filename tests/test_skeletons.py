"""Skeleton files of UTD-MHAD and PKU-MMD, and plain arrays; NTU's are in test_ntu.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1, Layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.arrays import read_array
from c2vl_pipeline.readers.pku import read_pku
from c2vl_pipeline.readers.utd import read_utd

CONFIG = SkeletonsConfig()

# ------------------------------------------------------------------------------------------------- UTD


def utd(path: Path, array: np.ndarray) -> Path:
    scipy.io.savemat(path, {"d_skel": array})
    return path


def test_utd_joints_are_reordered_and_centred_on_the_first_hip(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(20, 3, 7))
    made = read_utd(utd(tmp_path / "x.mat", array))
    assert made.joints.shape == (7, 1, 20, 3)
    assert (made.frames_in_file, made.bodies) == (7, 1)
    single = array.astype(np.float32)
    hip, head = KINECT_V1.names.index("hip_centre"), KINECT_V1.names.index("head")
    np.testing.assert_array_equal(made.joints[:, 0, hip], (single[3] - single[3, :, :1]).T)
    np.testing.assert_array_equal(made.joints[:, 0, head], (single[0] - single[3, :, :1]).T)
    np.testing.assert_array_equal(made.joints[:, 0, 19], (single[19] - single[3, :, :1]).T)


def test_utd_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = utd(tmp_path / "x.mat", np.zeros((20, 3)))
    with pytest.raises(DataError) as caught:
        read_utd(path)
    assert str(caught.value) == f"{path}: d_skel has the shape (20, 3); expected (20, 3, frames)"
    array = np.ones((20, 3, 4))
    array[3, 1, 2] = np.nan
    with pytest.raises(DataError, match="holds NaN or infinite joints; expected finite metres"):
        read_utd(utd(path, array))
    scipy.io.savemat(path, {"other": array})
    with pytest.raises(DataError, match="not a MATLAB file with d_skel \\(KeyError"):
        read_utd(path)
    for data in (b"", b"MATLAB 5.0 MAT-file", bytes(500)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a MATLAB file with d_skel"):
            read_utd(path)


def test_utd_skeletons_have_as_many_frames_as_their_videos(shared: Path) -> None:
    files = sorted((shared / "utd_mhad" / "Skeleton").glob("*_skeleton.mat"))
    assert len(files) == 861
    for path in files[::123]:
        made = read_utd(path)
        name = path.name.replace("_skeleton.mat", "_depth.mp4")
        capture = cv2.VideoCapture(str(shared / "utd_mhad" / "Depth_video" / name))
        count = 0
        while capture.grab():
            count += 1
        assert made.frames_in_file == count > 30
        assert len(made.joints) == count
        height = np.ptp(made.joints[:, 0, :, 1], axis=1)
        assert 1.0 < np.median(height) < 2.2  # metres, upright
        assert (made.joints[:, 0, 3, 1] > made.joints[:, 0, 15, 1]).all()  # head above foot


# ------------------------------------------------------------------------------------------------- PKU


def pku(path: Path, joints: np.ndarray) -> Path:
    np.savetxt(path, joints.reshape(len(joints), 150), fmt="%.9g")
    return path


@pytest.fixture
def walk() -> np.ndarray:
    """(T, 2, 25, 3): two bodies, the second absent at first; frame 4 holds nobody."""
    joints = np.random.default_rng(0).normal(size=(12, 2, 25, 3)).astype(np.float32)
    joints[:6, 1] = 0
    joints[4] = 0
    return joints


def test_pku_cuts_the_frames_of_one_row_and_drops_empty_ones(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 2, 9, SkeletonsConfig(pku_norm="none"))
    np.testing.assert_array_equal(made.joints, walk[[2, 3, 5, 6, 7, 8]])
    assert made.frame_index.tolist() == [2, 3, 5, 6, 7, 8]
    assert made.frames_in_file == 7


def test_pku_first_frame_joint_2_becomes_the_origin(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, CONFIG)
    expected = walk[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]]
    absent = ~expected.any(axis=(2, 3))
    expected = expected - expected[0, 0, 1]
    expected[absent] = 0
    np.testing.assert_array_equal(made.joints, expected)


def test_pku_aimclr_puts_shoulders_along_x_and_keeps_lengths(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, SkeletonsConfig(pku_norm="aimclr")).joints
    raw = walk[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]]
    there = raw.any(axis=(2, 3))
    assert not made[~there].any()
    assert not made[there][:, 20].any()
    across = made[there][:, 8] - made[there][:, 4]
    assert (across[:, 0] > 0).all()
    np.testing.assert_allclose(across[:, 2], 0, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(made[there], axis=-1),
        np.linalg.norm(raw[there] - raw[there][:, 20:21], axis=-1),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(made[there][..., 1], (raw[there] - raw[there][:, 20:21])[..., 1], atol=1e-6)


def test_a_long_pku_clip_is_cut_in_its_centre(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(11, 2, 25, 3)).astype(np.float32)
    config = SkeletonsConfig(pku_norm="none", max_frames=4)
    made = read_pku(pku(tmp_path / "x.txt", joints), 0, 11, config)
    assert made.frame_index.tolist() == [3, 4, 5, 6]
    np.testing.assert_array_equal(made.joints, joints[3:7])


def test_pku_beyond_the_end_of_the_file_gives_no_joints(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 40, 50, CONFIG)
    assert made.joints.shape == (0, 2, 25, 3)


def test_pku_numbers_that_are_not_finite_become_zero(tmp_path: Path, walk: np.ndarray) -> None:
    walk[3, 0, 7, 1] = np.nan
    walk[9, 1] = np.inf
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, SkeletonsConfig(pku_norm="none")).joints
    assert made[3, 0, 7, 1] == 0
    assert not made[8, 1].any()
    assert np.isfinite(made).all()


def test_a_pku_row_that_ends_behind_the_recording_ends_with_it(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 9, 40, SkeletonsConfig(pku_norm="none"))
    np.testing.assert_array_equal(made.joints, walk[9:])
    assert made.frame_index.tolist() == [9, 10, 11]


def test_pku_damage_is_refused_with_file_and_line(tmp_path: Path, walk: np.ndarray) -> None:
    path = pku(tmp_path / "x.txt", walk)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].rsplit(" ", 1)[0], *lines[4:]]))
    with pytest.raises(DataError) as caught:
        read_pku(path, 0, 12, CONFIG)
    assert str(caught.value) == f"{path}:4: 149 numbers; expected 150"
    assert len(read_pku(path, 5, 12, CONFIG).joints) == 7  # damage elsewhere is another sample's
    path.write_text("\n".join([*lines[:5], "x " + lines[5], *lines[6:]]))
    with pytest.raises(DataError, match=rf"^{path}:6: expected 150 numbers \("):
        read_pku(path, 0, 12, CONFIG)


# -------------------------------------------------------------------------------------------- own data

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
