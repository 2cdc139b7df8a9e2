"""Notes on joints that no person can have."""

from __future__ import annotations

import numpy as np
import pytest

from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, LAYOUTS, Layout
from c2vl_pipeline.readers.oddities import oddities

COCO, HAND = LAYOUTS["coco_17"], Layout("hand", ("wrist", "thumb", "index"), (0, 0, 0))


def person(layout: Layout, height: float = 1.7) -> np.ndarray:
    """A standing person, heads up, in every frame: (T, M, V, C)."""
    joints = np.random.default_rng(0).uniform(0.3, 0.6, (9, 1, layout.joints, layout.dims)) * height
    for name, at in (("head", 1.0), ("nose", 0.95), ("ankle_left", 0.05), ("foot_left", 0.02), ("hip_left", 0.5)):
        if name in layout.names:
            joints[:, :, layout.names.index(name), 1] = at * height
    return joints.astype(np.float32)


@pytest.mark.parametrize("layout", [KINECT_V1, KINECT_V2, COCO, HAND], ids=lambda layout: layout.name)
def test_people_as_they_should_be_are_not_noted(layout: Layout) -> None:
    size = 0.8 if layout.dims == 2 else 0.2 if layout is HAND else 1.7
    joints = person(layout, size)
    assert oddities(joints, layout) == []
    joints[2, 0, 1], joints[4] = 0, 0  # missing joints and frames are nothing odd
    assert oddities(joints, layout) == []


@pytest.mark.parametrize(
    ("joints", "layout", "cause"),
    [
        (person(KINECT_V2, 1700), KINECT_V2, "millimetres? Divide them by 1000"),
        (person(KINECT_V2, 170), KINECT_V2, "centimetres? Divide them by 100"),
        (person(COCO, 700), COCO, "pixels? Divide them by the height"),
        (person(KINECT_V1) * np.float32([1, -1, 1]), KINECT_V1, "y points down? Turn it up: -y"),
        (np.float32([0, 1]) - person(COCO, 0.8) * np.float32([-1, 1]), COCO, "y points down? Turn it up: 1 - y"),
        (person(KINECT_V2)[..., [0, 2, 1]], KINECT_V2, "does z point up"),
        (person(KINECT_V2) * 0 + np.float32(2), KINECT_V2, "at one point"),
        (np.zeros((9, 1, 17, 2), np.float32), COCO, "no frame shows two joints"),
        (np.where(np.arange(17)[:, None] == 9, np.float32([0, 1]), person(COCO, 0.8)), COCO, "at (0, 1) exactly"),
    ],
)
def test_what_no_person_can_be_is_noted_with_its_likely_cause(joints: np.ndarray, layout: Layout, cause: str) -> None:
    (note,) = oddities(joints, layout)
    assert cause in note


def test_millimetres_with_y_down_are_two_notes() -> None:
    notes = oddities(person(KINECT_V2, 1700) * np.float32([1, -1, 1]), KINECT_V2)
    assert ["millimetres" in note for note in notes] == [True, False]
    assert "y points down" in notes[1]


@pytest.mark.parametrize(
    ("value", "layout", "size"),
    [
        ([-1, -1], COCO, 0.8),
        ([-1, 0], COCO, 0.8),
        ([-1, -1, -1], KINECT_V2, 1.7),
        ([-1000, -1000, -1000], KINECT_V1, 1700),
        ([3.4e38, 3.4e38, 3.4e38], KINECT_V2, 1.7),
        ([1e10, 0, 0], KINECT_V1, 1.7),
    ],
)
@pytest.mark.parametrize("frames", [9, 4])
def test_missing_joints_that_are_written_as_numbers_are_noted(value, layout: Layout, size: float, frames: int) -> None:
    joints, plain = person(layout, size), oddities(person(layout, size), layout)
    joints[:frames, :, 7] = value
    note, *others = oddities(joints, layout)
    place = ", ".join(f"{number:.4g}" for number in value)
    assert note.startswith(f"joint 7 ({layout.names[7]}) is at ({place}) in {frames} frames")
    assert note.endswith("Write zero or NaN")
    assert [other.partition(": ")[2] for other in others] == [other.partition(": ")[2] for other in plain]


def test_an_absent_person_that_is_written_as_a_number_is_noted() -> None:
    joints = np.concatenate([person(COCO, 0.8), np.full((9, 2, 17, 2), -1, np.float32)], axis=1)
    (note,) = oddities(joints, COCO)
    assert note.startswith("joint 0 (nose) and 16 more are at (-1, -1) in 9 frames")


def test_who_stands_still_holds_no_missing_joints() -> None:
    photo = np.repeat(person(COCO, 0.8)[:1], 60, axis=0)
    assert oddities(photo, COCO) == []
    photo[:, :, 5:11] += np.random.default_rng(0).normal(0, 0.02, (60, 1, 6, 2)).astype(np.float32)
    assert oddities((photo * 64).round() / 64, COCO) == []


def test_what_no_unit_explains_is_said_in_a_short_number() -> None:
    (note,) = oddities(person(KINECT_V2, 1e30), KINECT_V2)
    assert note.startswith("bodies are 9.8e+29 large")
    assert "metres" not in note
