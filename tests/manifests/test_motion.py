"""Drawings of skeletons: poses and moving bodies."""

from __future__ import annotations

import re

import numpy as np

from c2vl_manifests import motion
from c2vl_manifests.layouts import KINECT_V2
from support.packed import STICK, moving


def test_missing_joints_are_not_drawn():
    joints = np.random.default_rng(0).normal(size=(4, 2, 25, 3)).astype(np.float32)
    joints[0, 0, KINECT_V2.anchor] = 0
    whole = motion.poses(joints, KINECT_V2)
    joints[1:3, 0, 7] = joints[2, 1] = 0
    drawn = motion.poses(joints, KINECT_V2)
    assert [len(f.joints) for f in drawn] == [50, 49, 24, 50]
    assert [len(f.bones) for f in drawn] == [48, 48, 24, 48]  # as many lines in every pose of a body
    assert [sum(b[1:3] == b[3:] for b in f.bones) for f in drawn] == [0, 2, 2, 0]
    assert drawn[3] == whole[3]


def points(path: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"(-?\d+) (-?\d+)", path)]


def test_poses_of_an_animation_have_equal_lines_and_follow_the_joints():
    joints = moving()[1][:, [0, 0]].copy()
    joints[:, 1, :, 0] += 1
    joints[: len(joints) // 2, 1] = 0  # the second person comes in later
    first, second = motion.moving(joints, STICK)
    at = np.linspace(0, len(joints) - 1, min(len(joints), motion.KEYS)).round().astype(int)
    assert set(first.shown.split(";")) == {"1"}
    assert second.shown == ";".join("1" if joints[t, 1].any() else "0" for t in at)
    for body, person in ((first, 0), (second, 1)):
        poses = body.poses.split(";")
        assert len(poses) == len(at)
        assert len({len(points(p)) for p in poses}) == 1  # what does not match is not interpolated
        assert {len(points(p)) for p in poses} == {2 * len(STICK.bones)}
        for t, pose in zip(at, poses, strict=True):
            if not joints[t, person].any():
                continue
            drawn = np.array(points(pose)).reshape(-1, 2, 2)
            real = np.array([[joints[t, person, a, :2], joints[t, person, b, :2]] for a, b in STICK.bones])
            moved = (drawn - drawn[0, 0]) * [1, -1]  # upwards is up
            scale = 360 / np.ptp(joints[joints.any(axis=(2, 3))][..., :2].reshape(-1, 2), axis=0).max()
            np.testing.assert_allclose(moved, (real - real[0, 0]) * scale, atol=3)
        assert all(0 <= v <= 400 for p in poses for xy in points(p) for v in xy)
        assert 1 <= len(body.still) <= 4
    assert motion.moving(np.zeros((4, 2, 5, 3), np.float32), STICK) == []
