"""The engines that need no weights: detectors and the classical encoder."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import cv2
import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame
from c2vl_pipeline.engines.heuristic import empty_scene

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
    image = person(np.zeros((H, W, 3), np.uint8), 60)
    (box,) = engine.detect([frame(image)], "person")[0]
    assert near(box, 60, 20, 24, 80)
    assert 0.5 < box.score <= 1


def test_motion_before_a_camera_finds_who_differs_from_the_empty_scene() -> None:
    engine = detector("motion", background="camera")
    scene = room()
    found = engine.detect(
        [frame(person(scene, x), background=lambda: scene) for x in (10, 60, 120)]
        + [frame(scene, background=lambda: scene)],
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
    boxes = detector("motion").detect([frame(image, background=lambda: scene)], "person")[0]
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


@pytest.mark.parametrize(("count", "height", "width"), [(1, 9, 7), (5, 40, 211), (12, 230, 50), (33, 31, 17)])
def test_an_empty_scene_is_the_median_of_the_frames_that_agree(count: int, height: int, width: int) -> None:
    rng = np.random.default_rng(count)
    frames = rng.integers(90, 93, (count, height, width, 3), np.uint8)
    frames[: count // 3] += 120  # a third of the frames shows somebody who is there once
    expected = np.median(frames[count // 3 :].astype(np.float32), axis=0).astype(np.uint8)
    np.testing.assert_array_equal(empty_scene(list(frames)), expected)


def test_an_empty_scene_of_still_frames_is_the_frame() -> None:
    np.testing.assert_allclose(empty_scene([room()] * 8), room(), atol=1)


# ------------------------------------------------------------------------------------------- classical


def test_classical_vectors_are_normalised_deterministic_and_of_the_asked_width() -> None:
    images = [room(seed)[:, : 60 + 20 * seed] for seed in range(4)]
    texts = ["a person is standing", "a person sits", "", "a person is standing"]
    first = encoder(image_dim=32, text_dim=48)
    engines.clear()
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


def test_a_vector_does_not_depend_on_its_batch() -> None:
    engine = engines.load(EngineSpec(role="encoder", backend="classical"))
    images = list(np.random.default_rng(0).integers(0, 256, (9, 70, 50, 3), np.uint8))
    whole = engine.encode_images(images)
    for part in (images[:1], images[:2], images[3:8]):
        at = next(i for i, image in enumerate(images) if image is part[0])
        assert (engine.encode_images(part) == whole[at : at + len(part)]).all()
