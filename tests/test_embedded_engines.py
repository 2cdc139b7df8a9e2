"""Engines without weights: boxes from joints and from motion, sentences from poses, classical vectors."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import cv2
import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, Layout
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Crop, Frame, Pose
from c2vl_pipeline.engines.heuristic import empty_scene
from c2vl_pipeline.engines.posecode import roles

H, W = 120, 160


def detector(backend: str, **options: Any) -> Any:
    return engines.load(EngineSpec(role="detector", backend=backend, options=options))


def encoder(**options: Any) -> Any:
    return engines.load(EngineSpec(role="encoder", backend="classical", options=options))


def frame(image: np.ndarray | None = None, **known: Any) -> Frame:
    return Frame(np.zeros((H, W, 3), np.uint8) if image is None else image, "s", 0, **known)


def room(seed: int = 0) -> np.ndarray:
    """A scene with furniture: blurred noise."""
    noise = np.random.default_rng(seed).integers(40, 200, (H // 8, W // 8, 3)).astype(np.uint8)
    return cv2.resize(noise, (W, H), interpolation=cv2.INTER_CUBIC)


def person(image: np.ndarray, left: int, top: int = 20, width: int = 24, height: int = 80, seed: int = 1) -> np.ndarray:  # fmt: skip
    """Stand somebody, brighter than the room, in an image."""
    out = image.copy()
    rng = np.random.default_rng(seed)
    out[top : top + height, left : left + width] = rng.integers(225, 255, (height, width, 3))
    return out


def near(box: Box, left: int, top: int, width: int, height: int, slack: int = 6) -> bool:
    pairs = ((box.x0, left), (box.y0, top), (box.x1, left + width), (box.y1, top + height))
    return all(abs(a - b) <= slack for a, b in pairs)


# -------------------------------------------------------------------------------------------- skeleton


def test_a_skeleton_box_holds_all_joints_and_some_more() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        joints = (rng.random((1, 25, 2)) * (60, 50) + (40, 30)).astype(np.float32)
        (box,) = detector("skeleton").detect([frame(joints=joints)], "person")[0]
        low, high = joints[0].min(axis=0), joints[0].max(axis=0)
        grow = 0.08 * (high[1] - low[1])
        np.testing.assert_allclose([box.x0, box.y0], low - grow, rtol=1e-5)
        np.testing.assert_allclose([box.x1, box.y1], high + grow, rtol=1e-5)


def test_a_skeleton_box_stays_within_the_frame_and_ignores_unseen_joints() -> None:
    joints = np.full((1, 25, 2), np.nan, np.float32)
    joints[0, :3] = [[-50, 10], [300, 90], [20, 500]]
    joints[0, 3] = [-np.inf, np.inf]
    (box,) = detector("skeleton").detect([frame(joints=joints)], "person")[0]
    assert (box.x0, box.x1, box.y1) == (0, W, H)
    assert 0 <= box.y0 <= 10


def test_skeleton_boxes_come_largest_first() -> None:
    small = np.random.default_rng(0).random((25, 2)) * 20 + 10
    large = np.random.default_rng(1).random((25, 2)) * 70 + 40
    boxes = detector("skeleton").detect([frame(joints=np.stack([small, large]).astype(np.float32))], "")[0]
    areas = [(b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes]
    assert len(areas) == 2
    assert areas == sorted(areas, reverse=True)


@pytest.mark.parametrize(
    "joints",
    [
        None,
        np.zeros((0, 25, 2), np.float32),
        np.full((1, 25, 2), np.nan, np.float32),
        np.full((1, 25, 2), 900, np.float32),
    ],
    ids=["none", "nobody", "unseen", "outside"],
)
def test_without_visible_joints_there_is_no_person(joints: np.ndarray | None) -> None:
    assert detector("skeleton").detect([frame(joints=joints)], "person") == [[]]


# ---------------------------------------------------------------------------------------------- motion


def test_motion_on_black_finds_the_bright_person() -> None:
    engine = detector("motion", background="black")
    assert engine.needs == frozenset()
    image = person(np.zeros((H, W, 3), np.uint8), 60)
    (box,) = engine.detect([frame(image)], "person")[0]
    assert near(box, 60, 20, 24, 80)
    assert 0.5 < box.score <= 1


def test_motion_before_a_camera_finds_who_differs_from_the_empty_scene() -> None:
    engine = detector("motion", background="camera")
    assert engine.needs == {"background"}
    scene = room()
    found = engine.detect(
        [frame(person(scene, x), background=scene) for x in (10, 60, 120)] + [frame(scene, background=scene)],
        "person",
    )
    for boxes, left in zip(found, (10, 60, 120), strict=False):
        assert len(boxes) == 1
        assert near(boxes[0], left, 20, 24, 80)
    assert found[3] == []


def test_motion_finds_two_people_and_no_specks() -> None:
    scene = room()
    image = person(person(scene, 20), 110)
    image[50:62, 70:86] = 255
    boxes = detector("motion").detect([frame(image, background=scene)], "person")[0]
    assert sorted(round(b.x0 / 10) for b in boxes) == [2, 11]


def test_motion_sees_nobody_in_an_empty_frame_or_noise() -> None:
    engine = detector("motion", background="black")
    assert engine.detect([frame()], "person") == [[]]
    noise = np.random.default_rng(0).integers(0, 20, (H, W, 3)).astype(np.uint8)
    assert engine.detect([frame(noise)], "person") == [[]]


def test_an_empty_scene_is_recovered_although_somebody_stands_there_most_of_the_time() -> None:
    scene = room()
    frames = []
    for colour in permutations((205, 230, 250)):  # six people stand at one place for 4 of 6 frames each
        inside = scene.copy()
        inside[20:100, 60:84] = colour
        frames += [inside] * 4 + [scene] * 2
    found = empty_scene(frames)
    assert found.shape == scene.shape
    assert np.abs(found.astype(int) - scene.astype(int)).max(axis=2)[20:100, 60:84].mean() < 6
    median = np.median(np.stack(frames), axis=0)
    assert np.abs(median - scene)[20:100, 60:84].mean() > 20  # what a median would have kept


def test_an_empty_scene_of_still_frames_is_the_frame() -> None:
    np.testing.assert_allclose(empty_scene([room()] * 8), room(), atol=1)


# ------------------------------------------------------------------------------------------- posecode

STAND = {
    "spine_base": (0, 0.95, 0), "spine_mid": (0, 1.2, 0), "spine_shoulder": (0, 1.45, 0), "neck": (0, 1.5, 0),
    "head": (0, 1.65, 0),
    "shoulder_left": (-0.18, 1.42, 0), "elbow_left": (-0.2, 1.15, 0), "wrist_left": (-0.2, 0.92, 0.02),
    "hand_left": (-0.2, 0.85, 0.02), "hand_tip_left": (-0.2, 0.8, 0.02), "thumb_left": (-0.18, 0.84, 0.05),
    "shoulder_right": (0.18, 1.42, 0), "elbow_right": (0.2, 1.15, 0), "wrist_right": (0.2, 0.92, 0.02),
    "hand_right": (0.2, 0.85, 0.02), "hand_tip_right": (0.2, 0.8, 0.02), "thumb_right": (0.18, 0.84, 0.05),
    "hip_left": (-0.1, 0.92, 0), "knee_left": (-0.1, 0.5, 0.01), "ankle_left": (-0.1, 0.08, 0), "foot_left": (-0.1, 0.03, 0.1),
    "hip_right": (0.1, 0.92, 0), "knee_right": (0.1, 0.5, 0.01), "ankle_right": (0.1, 0.08, 0), "foot_right": (0.1, 0.03, 0.1),
}  # fmt: skip


def pose(**moved: tuple[float, float, float]) -> np.ndarray:
    """One body, (25, 3), standing but for the joints named."""
    return np.array([{**STAND, **moved}[n] for n in KINECT_V2.names], np.float32)


def sitting() -> np.ndarray:
    legs = {f"knee_{s}": (x, 0.92, 0.42) for s, x in (("left", -0.1), ("right", 0.1))}
    legs |= {f"ankle_{s}": (x, 0.48, 0.42) for s, x in (("left", -0.1), ("right", 0.1))}
    return pose(**legs)


def say(*bodies: np.ndarray, at: int = 4) -> str:
    """The sentence about bodies, each (25, 3) or over time (T, 25, 3)."""
    clips = [b if b.ndim == 3 else np.repeat(b[None], 9, axis=0) for b in bodies]
    clip = np.stack(clips, axis=1).astype(np.float32)
    engine = engines.load(EngineSpec(role="captioner", backend="posecode"))
    crop = Crop(np.zeros((8, 8, 3), np.uint8), "s", 0, Pose(clip, at, KINECT_V2))
    (answer,) = engine.caption([crop], "question")
    assert answer.tokens == len(answer.text.split())
    return answer.text


def moving(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    share = np.linspace(0, 1, 9)[:, None, None]
    return start + share * (end - start)


def turned(body: np.ndarray, angle: float, shift: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return body @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + shift


RAISED = pose(hand_right=(0.2, 2.0, 0), wrist_right=(0.2, 1.9, 0), elbow_right=(0.2, 1.65, 0))
ASIDE = pose(hand_left=(-0.8, 1.42, 0), wrist_left=(-0.7, 1.42, 0), elbow_left=(-0.45, 1.42, 0))


def test_a_standing_person_is_said_to_stand_with_hands_down_and_still() -> None:
    assert (
        say(pose())
        == "The person is standing. The right hand is down and the left hand is down. The person is holding still."
    )


def test_a_sitting_person_is_said_to_sit() -> None:
    assert say(sitting()).startswith("The person is sitting.")


def test_a_raised_right_hand_is_the_right_one_and_raised() -> None:
    assert "The right hand is raised above the head and the left hand is down." in say(RAISED)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((0.05, 1.6, 0.15), "The right hand is near the face"),
        ((0.2, 1.3, 0.4), "The right hand is at chest height"),
        ((0.2, 1.1, 0.4), "The right hand is at waist height"),
        ((0.8, 1.42, 0.0), "The right hand is at chest height out to the side"),
        ((-0.2, 1.3, 0.35), "The right hand is at chest height across the body"),
    ],
)
def test_places_of_a_hand_have_words(place: tuple[float, float, float], words: str) -> None:
    assert words in say(pose(hand_right=place))


def test_hands_that_meet_are_together() -> None:
    assert "together with the left hand" in say(
        pose(hand_right=(0.05, 1.2, 0.3), hand_left=(-0.05, 1.2, 0.3))
    )


def test_movements_have_words() -> None:
    assert "is quickly moving the right hand up." in say(moving(pose(), RAISED))
    assert "moving the right hand down." in say(moving(RAISED, pose()))
    assert "moving the left hand to the left." in say(moving(pose(hand_left=(-0.2, 1.42, 0)), ASIDE))
    low = pose() - np.float32([0, 0.4, 0])
    assert "is going down." in say(moving(pose(), low))
    assert "is getting up." in say(moving(low, pose()))
    assert "is walking." in say(moving(pose(), pose() + np.float32([0.6, 0, 0])))


@pytest.mark.parametrize("angle", [0.4, 1.7, 3.0, -2.0])
@pytest.mark.parametrize("body", [pose(), sitting(), RAISED, ASIDE, moving(pose(), RAISED)])
def test_sentences_do_not_depend_on_facing_or_place(body: np.ndarray, angle: float) -> None:
    assert say(turned(body, angle, (3.0, -1.0, 2.0))) == say(body)


def test_two_people_are_they_and_their_distance_is_said() -> None:
    text = say(pose(), turned(sitting(), 3.1, (0.5, 0, 0)))
    assert text.startswith("They are two people at touching distance. The person is standing.")
    assert "The other person is sitting." in text
    assert say(pose(), pose() + np.float32([4, 0, 0])).startswith("They are two people at a distance.")


def test_an_absent_second_body_is_nobody() -> None:
    assert say(pose(), np.zeros((25, 3), np.float32)) == say(pose())


def test_both_kinect_layouts_name_all_roles() -> None:
    for layout in (KINECT_V1, KINECT_V2):
        assert set(roles(layout)) >= {"pelvis", "chest", "head", "hand_left", "ankle_right"}


def test_a_layout_without_the_joints_is_refused_by_name() -> None:
    layout = Layout("stick", ("hip_centre", "head", "hand_left"), (0, 0, 0))
    with pytest.raises(EngineError) as caught:
        roles(layout)
    assert str(caught.value) == (
        "posecode needs joints that layout 'stick' does not name: chest, shoulder_left, hip_left, knee_left, "
        "ankle_left, hand_right, shoulder_right, hip_right, knee_right, ankle_right; choose another captioner"
    )


def test_a_crop_without_a_pose_is_an_error_of_that_row() -> None:
    engine = engines.load(EngineSpec(role="captioner", backend="posecode"))
    with pytest.raises(ValueError, match="posecode was given a crop without a pose"):
        engine.caption([Crop(np.zeros((8, 8, 3), np.uint8), "s", 0)], "question")


# ------------------------------------------------------------------------------------------- classical


def test_classical_vectors_are_normalised_deterministic_and_of_the_asked_width() -> None:
    images = [room(seed)[:, : 60 + 20 * seed] for seed in range(4)]
    texts = ["a person is standing", "a person sits", "", "a person is standing"]
    first = encoder(image_dim=32, text_dim=48)
    engines._load.cache_clear()
    second = encoder(image_dim=32, text_dim=48)
    assert first is not second
    one, two = first.encode_images(images), second.encode_images(images)
    assert one.shape == (4, 32)
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, rtol=1e-5)
    words = first.encode_texts(texts)
    assert words.vectors.shape == (4, 48)
    np.testing.assert_array_equal(words.vectors, second.encode_texts(texts).vectors)
    np.testing.assert_allclose(np.linalg.norm(words.vectors, axis=1), [1, 1, 0, 1], rtol=1e-5)
    np.testing.assert_array_equal(words.vectors[0], words.vectors[3])
    assert not np.array_equal(words.vectors[0], words.vectors[1])
    assert words.tokens.tolist() == [4, 3, 0, 4]
    assert not words.truncated.any()


def test_classical_vectors_do_not_depend_on_the_batch() -> None:
    images = [room(seed) for seed in range(3)]
    batch = encoder().encode_images(images)
    alone = np.concatenate([encoder().encode_images([i]) for i in images])
    np.testing.assert_allclose(batch, alone, atol=1e-6)


def test_another_seed_projects_otherwise_and_like_images_stay_alike() -> None:
    a, b = room(0), cv2.GaussianBlur(room(0), (5, 5), 0)
    vectors = encoder().encode_images([a, b, room(1)])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.1
    assert not np.allclose(encoder(seed=1).encode_images([a]), vectors[:1])


def test_nothing_gives_no_vectors() -> None:
    assert encoder().encode_images([]).shape == (0, 256)
    assert encoder().encode_texts([]).vectors.shape == (0, 256)


# --------------------------------------------------------------------------------------------- loading


def test_an_engine_is_built_once_a_process() -> None:
    spec = EngineSpec(role="encoder", backend="classical")
    assert engines.load(spec) is engines.load(spec.model_copy())


@pytest.mark.parametrize(
    ("role", "backend", "options", "expected"),
    [
        ("detector", "yolo", {}, "no detector engine is called 'yolo'; the detector engines are hf, skeleton, motion, groundingdino-py"),
        ("detector", "posecode", {}, "no detector engine is called 'posecode'; the detector engines are hf, skeleton, motion, groundingdino-py"),
        ("captioner", "gpt", {}, "no captioner engine is called 'gpt'; the captioner engines are hf, llava, openai, released, posecode"),
        ("detector", "skeleton", {"grwo": 1}, "pipeline.crop.engine.options.grwo = 1: Extra inputs are not permitted; the options are grow"),
        ("detector", "skeleton", {"grow": "a"}, "pipeline.crop.engine.options.grow = 'a': Input should be a valid number; the options are grow"),
        ("detector", "motion", {"x": 1}, "pipeline.crop.engine.options.x = 1: Extra inputs are not permitted; the options are background, threshold, min_area"),
        ("detector", "motion", {"background": "white"}, "pipeline.crop.engine.options.background = 'white': Input should be 'camera' or 'black'; the options are background, threshold, min_area"),
        ("encoder", "classical", {"dim": 1}, "pipeline.embed.engine.options.dim = 1: Extra inputs are not permitted; the options are image_dim, text_dim, seed"),
        ("captioner", "posecode", {"style": 1}, "the captioner engine 'posecode' has no option 'style'; it has none"),
    ],
)  # fmt: skip
def test_unknown_engines_and_options_name_the_known_ones(
    role: Any, backend: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(EngineSpec(role=role, backend=backend, options=options))
    assert str(caught.value) == expected
