"""Skeleton files of PKU-MMD."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.pku import READER, read_pku
from support.video import film

CONFIG = SkeletonsConfig()


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


@pytest.mark.parametrize("norm", ["first_frame_joint2", "aimclr", "none"])
def test_a_pku_person_in_the_second_place_alone_is_the_first(tmp_path: Path, walk: np.ndarray, norm: str) -> None:
    alone = walk.copy()
    alone[:, 1] = 0
    config = SkeletonsConfig(pku_norm=norm)
    made = read_pku(pku(tmp_path / "a.txt", alone[:, ::-1]), 0, len(walk), config)
    wanted = read_pku(pku(tmp_path / "b.txt", alone), 0, len(walk), config)
    np.testing.assert_array_equal(made.joints, wanted.joints)
    assert made.bodies == 1


def test_pku_aimclr_puts_shoulders_along_x_and_keeps_lengths(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, SkeletonsConfig(pku_norm="aimclr")).joints
    raw = walk[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]]
    there = raw.any(axis=(2, 3))
    assert not made[~there].any()
    assert not made[there][:, 20].any()
    across = made[:, :, 8] - made[:, :, 4]
    shoulders = (raw[:, :, 8] - raw[:, :, 4]).astype(float)
    for body in range(2):  # the sign of the angles is one per body, as in the public code
        x, z = shoulders[:, body, 0], shoulders[:, body, 2]
        turned = np.sign(z) == (1 if z.sum() >= 0 else -1)
        mine = there[:, body]
        assert (across[mine & turned, body, 0] > 0).all()
        assert np.abs(across[mine & turned, body, 2] / np.hypot(x, z)[mine & turned]).max() < 0.02
        theta = np.arccos(x / (np.hypot(x, z) + 1e-4)) * (1 if z.sum() >= 0 else -1)
        np.testing.assert_allclose(across[mine, body, 2], (np.cos(theta) * z - np.sin(theta) * x)[mine], atol=1e-5)
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


@pytest.mark.parametrize(
    ("span", "row"), [((40, 50), {}), ((2, 200), {}), ((9, 14), {"latest_start": 30}), ((9, 14), {"latest_start": 12})]
)
def test_a_pku_file_that_ends_before_its_labels_is_truncated(tmp_path: Path, walk: np.ndarray, span, row) -> None:
    with pytest.raises(DataError, match=r"x\.txt: truncated: it ends after 12 frames.*; download it again"):
        read_pku(pku(tmp_path / "x.txt", walk), *span, CONFIG, row)


@pytest.mark.parametrize(("frames", "cut_off"), [(30, True), (12, False), (13, False)])
def test_the_video_tells_a_truncated_pku_file_from_a_label_that_is_too_long(
    tmp_path: Path, walk: np.ndarray, frames: int, cut_off: bool
) -> None:
    path = pku(tmp_path / "x.txt", walk)
    film(tmp_path / "x.avi", frames)
    row = {"video": "x.avi", "skeleton": "x.txt", "latest_start": 9}
    if cut_off:
        with pytest.raises(DataError, match="ends after 12 frames, its video has 30"):
            read_pku(path, 9, 20, CONFIG, row)
    else:
        made = read_pku(path, 9, 20, CONFIG, row)
        assert (len(made.joints), made.frames_in_file) == (3, 3)
    assert len(read_pku(path, 2, 9, CONFIG, row).joints) == 6  # what is there stays usable


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
    with pytest.raises(DataError, match=rf"^{path}:6: 'x .*expected 150 numbers"):
        read_pku(path, 0, 12, CONFIG)


def test_a_line_without_end_is_counted_in_parts(tmp_path: Path) -> None:
    raw = tmp_path / "a.txt"
    with raw.open("wb") as file:
        file.write(b"1 ")
        file.truncate(4 << 30)
    row = {"skeleton": "a.txt", "skeleton_bytes": 1, "problem": None, "start_frame": 0, "end_frame": 9}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    try:
        assert READER.look(tmp_path, [row], KINECT_V2, True, SkeletonsConfig()) == ([], [])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_pipe_in_place_of_joints_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="a pipe, socket, device or folder"):
        read_pku(tmp_path / "a.txt", 0, 9, SkeletonsConfig())
