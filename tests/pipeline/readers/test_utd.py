"""Skeleton files of UTD-MHAD."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_pipeline.readers.utd import read_utd


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
    assert not read_utd(utd(path, array)).joints[2, 0, 0].any()  # a joint that is not finite is missing
    scipy.io.savemat(path, {"other": array})
    with pytest.raises(DataError, match=r"not a MATLAB file with d_skel .*; save other joints as \.npy"):
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
