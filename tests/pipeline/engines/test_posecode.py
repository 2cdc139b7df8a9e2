"""Sentences made from joints."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, LAYOUTS, Layout, load_layout
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Crop, Pose
from c2vl_pipeline.engines.posecode import roles

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
    text = say(pose(hand_right=(0.05, 1.2, 0.3), hand_left=(-0.05, 1.2, 0.3)))
    assert "Both hands are together." in text
    assert text.count("together") == 1


def without(body: np.ndarray, *names: str) -> np.ndarray:
    body = body.copy()
    body[[KINECT_V2.names.index(name) for name in names]] = 0
    return body


@pytest.mark.parametrize(
    ("names", "said", "never"),
    [
        (("hand_right",), "The right hand is not seen and the left hand is down.", "moving"),
        (("ankle_left", "ankle_right", "knee_left"), "The person is seen in part.", "sitting"),
        (("ankle_left",), "The person is standing.", "crouching"),
        (("head",), "The right hand is raised above the head", "near the face"),
        (("spine_base",), "The right hand is not seen and the left hand is not seen.", "raised"),
    ],
)
def test_missing_joints_are_not_described(names: tuple[str, ...], said: str, never: str) -> None:
    text = say(without(RAISED, *names))
    assert said in text
    assert never not in text
    assert "nan" not in text


def test_a_hand_that_comes_into_view_does_not_move() -> None:
    clip = np.repeat(pose()[None], 9, axis=0)
    clip[:3] = without(pose(), "hand_right")
    assert say(clip).endswith("The person is holding still.")


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


def test_sentences_need_no_pelvis_where_there_are_hips() -> None:
    for name in ("coco_17", "mediapipe_33", "azure_kinect", "body_25_3d"):
        layout = load_layout(name)
        found = roles(layout)
        assert found["hip_left"] == [layout.names.index("hip_left")]
    assert [LAYOUTS["coco_17"].names[n] for n in roles(LAYOUTS["coco_17"])["pelvis"]] == ["hip_left", "hip_right"]
