"""Left and right: the synthetic people against a Kinect's convention, and that convention against real recordings.

A Kinect's camera space is right-handed: x to the sensor's left, y up, z away from it. Somebody who faces the sensor
has the left hand on the sensor's right, so x of the left shoulder less x of the right one is negative (`FACING`). Its
pictures are mirrored: columns grow with x (NTU's first published joint lies at x = 0.218 m and column 1036 of 1920),
and so a facing person's left arm is on the left of the picture, as in a mirror.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat
from scipy.spatial.transform import Rotation

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Crop, Pose
from c2vl_pipeline.readers.utd import read_utd
from c2vl_pipeline.synthetic import dataset
from c2vl_pipeline.synthetic.actions import ACTIONS, perform
from c2vl_pipeline.synthetic.body import Person, Take, rest, solve
from c2vl_pipeline.synthetic.render import Scene, camera, film
from support.synthetic import read

FACING = -1.0
"""Sign of x of the left side less x of the right side, for a person who faces a Kinect."""


MIDDLE = 2
"""The camera that a person at yaw 0 faces, but for a few degrees."""


JOINT = KINECT_V2.names.index
PAIRS = ("shoulder", "elbow", "hip", "knee")
SIZE = (320, 240)


def person(seed: int, left_handed: bool = False) -> Person:
    return replace(Person.draw(np.random.default_rng(seed)), left_handed=left_handed)


def standing(seed: int, yaw: float) -> np.ndarray:
    """Somebody who stands about, turned by `yaw`: joints (20, 25, 3) in the world of the cameras."""
    who = person(seed)
    pose = rest(Take(who, np.random.default_rng(seed), 20))
    return solve(pose, who, np.zeros((20, 2)), np.full(20, yaw))


def across(body: np.ndarray, part: str) -> np.ndarray:
    """x of the left joint less x of the right one, (T,)."""
    gap: np.ndarray = body[:, JOINT(f"{part}_left"), 0] - body[:, JOINT(f"{part}_right"), 0]
    return gap


# --------------------------------------------------------------------------------------- the real convention


def raw_utd(path: Path) -> np.ndarray:
    """Joints (T, 20, 3) as the file has them: the head first, the left shoulder fifth, the right one ninth."""
    joints: np.ndarray = loadmat(path)["d_skel"].transpose(2, 0, 1)
    return joints


def test_real_people_who_face_the_sensor_have_the_left_side_at_smaller_x(shared: Path) -> None:
    files = sorted((shared / "utd_mhad" / "Skeleton").glob("a*_s[1-8]_t1_skeleton.mat"))
    assert len(files) > 200
    for path in files:
        joints = raw_utd(path)
        toes = joints[:, [15, 19], 2] - joints[:, [14, 18], 2]
        assert toes.mean() < 0, "everybody in this set faces the sensor: the toes are nearer than the ankles"
        for left, right in ((4, 8), (12, 16)):
            assert np.sign((joints[:, left, 0] - joints[:, right, 0]).mean()) == FACING


def test_columns_of_a_real_picture_grow_with_x(shared: Path) -> None:
    """Hands are looked for in the depth picture where they are if columns grow with x, and where if they fall."""
    hits: Counter[int] = Counter()
    looks = 0
    for action in (1, 2, 3, 5):
        name = f"a{action}_s1_t1"
        joints = raw_utd(shared / "utd_mhad" / "Skeleton" / f"{name}_skeleton.mat")
        capture = cv2.VideoCapture(str(shared / "utd_mhad" / "Depth_video" / f"{name}_depth.mp4"))
        for frame in joints:
            picture = capture.read()[1][..., 0]
            for x, y, z in frame[[7, 11]]:
                looks += 1
                row = round(120 - 285 * y / z)  # 285 pixels: the focal length of its 320 x 240 depth camera
                for sign in (1, -1):
                    column = round(160 + sign * 285 * x / z)
                    hits[sign] += int(picture[row - 3 : row + 4, column - 3 : column + 4].max(initial=0) > 30)
    assert hits[1] > 0.75 * looks
    assert hits[-1] < 0.5 * looks


# ------------------------------------------------------------------------------------- the synthetic people


@pytest.mark.parametrize("yaw", [-0.6, 0.0, 0.6])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_synthetic_people_who_face_the_camera_have_the_left_side_at_smaller_x(seed: int, yaw: float) -> None:
    seen = camera(0, MIDDLE, SIZE).see(standing(seed, yaw))
    for part in PAIRS:
        assert np.sign(across(seen, part).mean()) == FACING
    toes = [seen[:, JOINT(f"foot_{s}"), 2] - seen[:, JOINT(f"ankle_{s}"), 2] for s in ("left", "right")]
    assert np.mean(toes) < 0


def test_one_who_turns_round_has_it_at_larger_x() -> None:
    seen = camera(0, MIDDLE, SIZE).see(standing(1, np.pi))
    assert np.sign(across(seen, "shoulder").mean()) == -FACING


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_a_camera_turns_and_does_not_mirror(number: int) -> None:
    rotation = camera(0, number, SIZE).rotation
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


@pytest.mark.parametrize("yaw", [0.0, 0.7, 2.0, -2.5])
def test_a_body_has_its_left_its_top_and_its_front_as_people_do(yaw: float) -> None:
    """Left x up = front, in a right-handed space; in a mirrored body it would be the back."""
    body = standing(1, yaw).mean(axis=0)
    left = body[JOINT("hip_left")] - body[JOINT("hip_right")]
    front = sum(body[JOINT(f"foot_{s}")] - body[JOINT(f"ankle_{s}")] for s in ("left", "right"))
    assert np.cross(left, [0, 1, 0]) @ front > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_drawn_hand_is_on_its_side_of_the_picture(side: str) -> None:
    """A ball in one hand, drawn alone: on the left of the picture in the left hand, as in a Kinect's pictures."""
    eye = camera(0, MIDDLE, SIZE)
    body = standing(2, 0.0)
    stage, empty = Scene(), Scene()
    stage.thing("ball", body[:, JOINT(f"hand_{side}")], (255, 255, 255))
    empty.thing("ball", body[:, JOINT("head")] + [0.0, 50.0, 0.0], (255, 255, 255))  # out of the picture
    drawn, bare = (next(film(s, eye, 0, MIDDLE)).astype(int) for s in (stage, empty))
    columns = np.nonzero(np.abs(drawn - bare).sum(-1) > 60)[1]
    middle = eye.project(eye.see(body[:1]))[0, JOINT("spine_mid"), 0]
    assert len(columns) > 20
    assert np.sign(columns.mean() - middle) == (FACING if side == "left" else -FACING)


def test_faces_are_drawn_in_front_of_the_hair() -> None:
    who, body = person(4), standing(4, 0.0)
    stage = Scene()
    stage.person(who, body)
    *_, hair, face = stage.points
    eye = camera(0, MIDDLE, SIZE)
    assert (eye.see(face)[:, 2] < eye.see(hair)[:, 2]).all()


def test_skeleton_files_have_the_convention_in_all_their_numbers(tmp_path: Path) -> None:
    """Joints, colour and depth columns, and the orientation, which turns (1, 0, 0) to the left of the body."""
    root = dataset.generate(
        tmp_path / "set", classes=4, subjects=2, views=2, repeats=1, seed=3, size=(64, 48), frames=(8, 12)
    ).root
    files = sorted((root / "nturgb+d_skeletons").glob("S001C002*"))
    assert len(files) == 8
    for path in files:
        body = np.array([next(iter(bodies.values())) for bodies in read(path) if bodies])
        gap = body[:, JOINT("shoulder_left")] - body[:, JOINT("shoulder_right")]
        for column in (0, 3, 5):  # metres, depth pixels, colour pixels
            assert np.sign(gap[:, column].mean()) == FACING
        w, x, y, z = body[:, 0, 7:11].T
        left = Rotation.from_quat(np.stack([x, y, z, w], -1)).apply([1.0, 0.0, 0.0])
        flat = gap[:, :3] * [1, 0, 1]
        np.testing.assert_allclose(left, flat / np.linalg.norm(flat, axis=-1, keepdims=True), atol=1e-3)
        assert (np.abs(np.diff(y)) < 0.5).all(), "a quaternion and its negative are one turn; no jumps between them"


# --------------------------------------------------------------------------------------- what captions say


def says(joints: np.ndarray, layout: Layout) -> Counter[str]:
    """How often the movement sentence says what, over 16 instants of a clip (T, M, V, 3)."""
    engine = engines.load(EngineSpec(role="captioner", backend="posecode"))
    at = np.linspace(0, len(joints) - 1, 16).round().astype(int)
    crops = [Crop(np.zeros((8, 8, 3), np.uint8), "s", 0, Pose(joints, int(t), layout)) for t in at]
    found: Counter[str] = Counter()
    for answer in engine.caption(crops, "question"):
        if (said := re.search(r"moving (the \w+ hand) (to the \w+|up|down)", answer.text)) is not None:
            found[said[1]] += 1
            found[f"{said[1]} {said[2]}"] += 1
    return found


@pytest.mark.parametrize(("action", "way", "other"), [(1, "left", "right"), (2, "right", "left")])
def test_captions_of_a_real_right_arm_swipe_name_the_arm_and_the_way(
    shared: Path, action: int, way: str, other: str
) -> None:
    """UTD-MHAD's classes 1 and 2: the right arm swipes to the left, and to the right."""
    total: Counter[str] = Counter()
    files = sorted((shared / "utd_mhad" / "Skeleton").glob(f"a{action}_s*_skeleton.mat"))
    for path in files:
        total += says(read_utd(path).joints, KINECT_V1)
    assert len(files) == 32
    assert total["the left hand"] < 0.02 * total["the right hand"]
    assert total[f"the right hand to the {way}"] > 1.5 * total[f"the right hand to the {other}"] > 0


@pytest.mark.parametrize("left_handed", [False, True])
def test_captions_of_a_synthetic_throw_name_the_arm(left_handed: bool) -> None:
    action = next(action for action in ACTIONS if action.name == "throw")
    side, other = ("left", "right") if left_handed else ("right", "left")
    total: Counter[str] = Counter()
    for seed in range(6):
        who = person(seed, left_handed)
        (body,) = perform(action, who, who, np.random.default_rng(seed), 60)
        total += says(camera(0, MIDDLE, SIZE).see(body)[:, None], KINECT_V2)
    assert total[f"the {side} hand"] > 4 * total[f"the {other} hand"]
