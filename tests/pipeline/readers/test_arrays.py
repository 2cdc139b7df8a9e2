"""Skeletons in own array files and pose files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.layouts import KINECT_V2, LAYOUTS, Layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.arrays import READER, read_array
from support.layouts import EACH
from support.video import film


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


@pytest.mark.parametrize(("slots", "used"), [(2, [1]), (3, [2]), (4, [1, 3]), (5, [2, 3, 4]), (3, [0, 2])], ids=str)
@pytest.mark.parametrize("absent", [0, np.nan])
def test_people_are_read_from_whatever_slot_and_the_first_is_centred(tmp_path, slots, used, absent: float) -> None:
    people = walk(people=len(used))
    people[:20, -1] = 0  # who comes later keeps the place
    array = np.full((60, slots, 17, 2), absent, np.float32)
    array[:, used] = people
    made = read_array(saved(tmp_path / "x.npy", array), COCO, 2)
    wanted = read_array(saved(tmp_path / "y.npy", people), COCO, 2)
    np.testing.assert_array_equal(made.joints[:, : wanted.bodies], wanted.joints)
    assert (made.bodies, made.joints.shape[1], made.frame_index.tolist()) == (
        min(len(used), 2), 2, wanted.frame_index.tolist()
    )  # fmt: skip
    assert not made.joints[0, 0, COCO.anchor].any()


@pytest.mark.parametrize("shape", [(0, 17, 2), (0, 1, 17, 2), (0, 3, 17, 2)])
def test_a_file_without_frames_holds_nobody(tmp_path: Path, shape: tuple[int, ...]) -> None:
    made = read_array(saved(tmp_path / "x.npy", np.zeros(shape)), COCO, 2)
    assert (len(made.joints), made.bodies, made.frames_in_file) == (0, 0, 0)


def test_who_is_absent_from_a_range_takes_no_place_in_it(tmp_path: Path) -> None:
    array = walk(people=3)
    array[30:, 0], array[:30, 1:] = 0, 0
    path = saved(tmp_path / "x.npy", array)
    late = read_array(path, COCO, 1, {"start_frame": 30, "end_frame": 60, "ranges": 2})
    np.testing.assert_array_equal(late.joints[:, 0], array[30:, 1] - array[30, 1, 0])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 4, 2)), "shape (6, 4, 2); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 3)), "shape (6, 3); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 0, 3, 2)), "shape (6, 0, 3, 2); layout 'stick' needs"),
        (np.full((6, 3, 2), "a"), "holds <U1; expected numbers"),
        (np.full((6, 3, 2), 1j), "holds complex128; expected numbers"),
        (np.full((6, 3, 2), None), "holds Python objects, which are never loaded; expected numbers; save"),
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


COCO = LAYOUTS["coco_17"]


def walk(frames: int = 60, people: int | None = None, seed: int = 0) -> np.ndarray:
    """Keypoints of people who walk about in an image, in image heights."""
    rng = np.random.default_rng(seed)
    shape = (frames, people or 1, 17, 2)
    joints = np.cumsum(rng.normal(0, 0.01, shape), 0) + rng.uniform(0.2, 0.8, (1, *shape[1:]))
    return (joints if people else joints[:, 0]).astype(np.float32)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


# ---------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize(("people", "frames"), [(1, 40), (2, 30), (5, 6)])
def test_people_before_frames_are_put_behind(tmp_path: Path, people: int, frames: int) -> None:
    array = walk(frames, people)
    made = read_array(saved(tmp_path / "x.npy", array.swapaxes(0, 1)), COCO, 2)
    np.testing.assert_array_equal(made.joints, read_array(saved(tmp_path / "y.npy", array), COCO, 2).joints)
    assert made.frames_in_file == frames


@pytest.mark.parametrize(
    ("order", "remedy"),
    [
        ((2, 0, 1), "save x.transpose(1, 2, 0)"),  # (C, T, V)
        ((0, 2, 1), "save x.transpose(0, 2, 1)"),  # (T, C, V)
        ((1, 2, 0), "save x.transpose(2, 0, 1)"),  # (V, C, T)
    ],
)
def test_other_orders_of_axes_are_refused_with_the_turn_that_mends_them(tmp_path, order, remedy) -> None:
    with pytest.raises(DataError, match=r"needs \(T, 17, 2\) or \(T, M, 17, 2\)") as caught:
        read_array(saved(tmp_path / "x.npy", walk(40).transpose(order)), COCO, 2)
    assert remedy in str(caught.value)
    turn = tuple(map(int, remedy.partition("(")[2].rstrip(")").split(",")))
    assert walk(40).transpose(order).transpose(turn).shape == (40, 17, 2)


def test_the_order_of_feeders_is_named_too(tmp_path: Path) -> None:
    array = np.zeros((40, 2, 25, 3)).transpose(3, 0, 2, 1)  # (C, T, V, M)
    with pytest.raises(DataError, match=r"shape \(3, 40, 25, 2\)") as caught:
        read_array(saved(tmp_path / "x.npy", array), KINECT_V2, 2)
    turn = str(caught.value).partition("x.transpose")[2]
    assert array.transpose(tuple(map(int, turn.strip("()").split(",")))).shape == (40, 2, 25, 3)


@pytest.mark.parametrize(
    ("array", "remedy"),
    [
        (np.zeros((9, 34)), "save x.reshape(-1, 17, 2)"),
        (np.zeros((9, 17, 3)), "if the last coordinate is a confidence, save x[..., :2]"),
        (np.zeros((9, 20, 3)), "for these joints give --layout kinect_v1"),
        (np.zeros((9, 2, 25, 3)), "for these joints give --layout kinect_v2"),
        (np.zeros((17, 2)), "this is one frame: save x[None]"),
        (np.zeros((9, 0, 17, 2)), "give the layout of these joints with --layout"),
        (np.zeros((9, 19, 2)), "give the layout of these joints with --layout"),
    ],
)
def test_other_shapes_are_refused_with_their_likely_remedy(tmp_path: Path, array: np.ndarray, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        read_array(saved(tmp_path / "x.npy", array), COCO, 2)
    assert f"shape {array.shape}; layout 'coco_17' needs" in str(caught.value)
    assert remedy in str(caught.value)


# ---------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(("start", "end"), [(0, 20), (20, 50), (50, 60)])
def test_a_range_is_cut_from_a_recording_and_counted_in_a_segment(tmp_path: Path, start: int, end: int) -> None:
    array, row = walk(), {"start_frame": start, "end_frame": end}
    whole = read_array(saved(tmp_path / "x.npy", array), COCO, 2, row)
    alone = read_array(saved(tmp_path / "y.npy", array[start:end]), COCO, 2, row)
    assert whole.frame_index.tolist() == alone.frame_index.tolist() == list(range(start, end))
    np.testing.assert_array_equal(whole.joints, alone.joints)
    assert not whole.joints[0, 0, COCO.anchor].any()
    assert whole.frames_in_file == end - start


@pytest.mark.parametrize(
    ("frames", "start", "end"), [(45, 20, 60), (59, 40, 60), (61, 60, 130), (60, 70, None), (30, 0, 59)]
)
def test_joints_that_fit_neither_recording_nor_segment_are_refused(tmp_path, frames, start, end) -> None:
    path = saved(tmp_path / "x.npy", walk(frames))
    with pytest.raises(DataError, match=f"{frames} frames; the row means frames {start} to .*; give|: give joints"):
        read_array(path, COCO, 2, {"start_frame": start, "end_frame": end})


def test_the_video_tells_how_long_the_recording_is(tmp_path: Path) -> None:
    film(tmp_path / "v.avi", 60)
    row = {"video": "v.avi", "skeleton": "x.npy", "start_frame": 0, "end_frame": 20}
    for frames in (60, 61, 59, 20):  # decoders and estimators lose a frame
        assert len(read_array(saved(tmp_path / "x.npy", walk(frames)), COCO, 2, row).joints) == 20
    with pytest.raises(DataError, match=r"100 frames; .*segment \(20 frames\) or of the whole recording \(60 frames\)"):
        read_array(saved(tmp_path / "x.npy", walk(100)), COCO, 2, row)
    tail = row | {"start_frame": 45, "end_frame": None}
    made = read_array(saved(tmp_path / "x.npy", walk(60)), COCO, 2, tail)
    assert made.frame_index.tolist() == list(range(45, 60))
    assert len(read_array(saved(tmp_path / "x.npy", walk(15)), COCO, 2, tail).joints) == 15


@pytest.mark.parametrize(("start", "end"), [(500, 520), (65, 70), (90, None)])
def test_a_range_behind_the_recording_is_the_table_s_mistake(tmp_path: Path, start: int, end: int | None) -> None:
    film(tmp_path / "v.avi", 60)
    row = {"video": "v.avi", "skeleton": "x.npy", "start_frame": start, "end_frame": end}
    with pytest.raises(DataError) as caught:
        read_array(saved(tmp_path / "x.npy", walk(60)), COCO, 2, row)
    assert f"start_frame {start} lies behind the end of the recording (60 frames); correct the table" in str(
        caught.value
    )


def test_a_file_from_which_several_rows_cut_is_no_segment(tmp_path: Path) -> None:
    row = {"start_frame": 20, "end_frame": 40, "ranges": 2}
    with pytest.raises(DataError, match="20 frames; the row means frames 20 to 40"):
        read_array(saved(tmp_path / "x.npy", walk(20)), COCO, 2, row)


# ---------------------------------------------------------------------------------------------- missing joints


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_missing_joints_stay_missing(tmp_path: Path, value: float) -> None:
    array = walk(people=2)
    array[:, 0, 9] = array[10:20, 1, 4] = array[30:33, 0] = value
    made = read_array(saved(tmp_path / "x.npy", array), COCO, 2).joints
    assert not made[:, 0, 9].any()
    assert not made[10:20, 1, 4].any()
    assert not made[30:33, 0].any()
    seen = np.isfinite(array).all(3) & array.any(3)
    np.testing.assert_array_equal(made[seen], (array - array[0, 0, 0])[seen])


def test_one_coordinate_that_is_no_number_makes_a_joint_missing(tmp_path: Path) -> None:
    array = walk()
    array[5, 9, 1] = np.nan
    made = read_array(saved(tmp_path / "x.npy", array), COCO, 2).joints
    assert not made[5, 0, 9].any()
    assert made[5, 0, 8].all()


@pytest.mark.parametrize("first", [1, 7, 59])
def test_the_origin_is_where_it_was_first_seen(tmp_path: Path, first: int) -> None:
    array = walk()
    array[:first, 0] = 0
    made = read_array(saved(tmp_path / "x.npy", array), COCO, 2).joints
    assert not made[: first + 1, 0, 0].any()
    np.testing.assert_array_equal(made[:, 0, 3], array[:, 3] - array[first, 0])


def test_a_clip_that_never_shows_its_origin_stays_where_it_is(tmp_path: Path) -> None:
    array = walk()
    array[:, 0] = 0
    np.testing.assert_array_equal(read_array(saved(tmp_path / "x.npy", array), COCO, 2).joints[:, 0], array)


def test_clips_that_were_centred_before_keep_their_zeros(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(20, 25, 3)).astype(np.float32)
    once = array - array[0, 1]  # on the origin of the first frame
    np.testing.assert_array_equal(read_array(saved(tmp_path / "x.npy", once), KINECT_V2, 2).joints[:, 0], once)
    always = array - array[:, :1]  # on the root of every frame, which is not the layout's origin
    made = read_array(saved(tmp_path / "x.npy", always), KINECT_V2, 2).joints[:, 0]
    np.testing.assert_array_equal(made, always - always[0, 1])


# ---------------------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("name", ["a.txt", "a.trc", "a.bvh", "a"])
def test_other_kinds_of_files_are_refused_by_what_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[[1, 2]]")
    with pytest.raises(
        DataError, match=r"is not read; give \.npy or \.npz, .*, a Kinect v2's \.skeleton, or one of \.mat"
    ):
        read_array(tmp_path / name, COCO, 2)


@pytest.mark.parametrize("data", [b"", bytes(300), b"[[0.1, 0.2]]", pickle.dumps([1, 2])])
def test_what_is_called_an_array_and_is_none_says_how_it_begins(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(DataError, match=r"not a numpy array, it begins with .*; save it again with np\.save"):
        read_array(tmp_path / "x.npy", COCO, 2)


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Bomb()], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", keypoint=np.array([Bomb()], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(DataError, match="holds Python objects, which are never loaded") as caught:
            read_array(tmp_path / name, COCO, 2)
        assert "unsafely" not in str(caught.value)


def test_scores_before_the_joints_of_an_npz_are_passed_over(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", scores=np.ones((60, 17)), keypoint=walk())
    assert read_array(tmp_path / "x.npz", COCO, 2).joints.shape == (60, 1, 17, 2)


@pytest.mark.parametrize(
    "first",
    [
        {"scores": np.ones((60, 1, 17))},
        {"joints_3d": np.ones((60, 17, 3)), "fps": np.float32(30)},
        {"meta": np.array({"a": 1}, object), "names": np.array(["a"] * 17)},
        {"mask": np.ones((60, 17, 2), bool), "rest": np.ones((17, 2))},
        {"image": np.ones((2, 3, 4, 5, 6))},
    ],
)
def test_the_array_of_an_npz_that_fits_the_layout_is_read(tmp_path: Path, first: dict[str, Any]) -> None:
    array = walk()
    np.savez(tmp_path / "x.npz", **first, keypoints=array, meta_too=np.array([None]))
    np.testing.assert_array_equal(
        read_array(tmp_path / "x.npz", COCO, 2).joints, read_array(saved(tmp_path / "y.npy", array), COCO, 2).joints
    )


def test_an_npz_without_a_fitting_array_names_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", scores=np.ones((60, 17)), poses=np.ones((60, 17, 3)), meta=np.array([None]))
    with pytest.raises(DataError) as caught:
        read_array(tmp_path / "x.npz", COCO, 2)
    for part in ("scores (60, 17)", "poses (60, 17, 3)", "needs (T, 17, 2)", "save x[..., :2]"):
        assert part in str(caught.value)
    np.savez(tmp_path / "x.npz", names=np.array(["a"]), meta=np.array([None]))
    with pytest.raises(DataError, match="holds <U1; expected numbers"):
        read_array(tmp_path / "x.npz", COCO, 2)
    np.savez(tmp_path / "x.npz")
    with pytest.raises(DataError, match="holds no array"):
        read_array(tmp_path / "x.npz", COCO, 2)


def test_a_kinect_s_own_recordings_are_read_and_cut(raw: Path) -> None:
    path = next(iter(sorted(raw.rglob("*.skeleton"))))
    config = SkeletonsConfig()
    whole = READER.read_joints(path, {}, KINECT_V2, 2, config)
    clips = {".npy", ".npz", ".mat", ".c3d", ".json", ".csv"}
    assert READER.clip_files.keys() == clips  # `predict` reads them by NTU's reader
    part = READER.read_joints(path, {"start_frame": 4, "end_frame": 12}, KINECT_V2, 2, config)
    assert part.frame_index.tolist() == list(range(4, 12))
    moved = whole.joints[4:12, 0] - whole.joints[4, 0, 1]
    np.testing.assert_allclose(part.joints[:, 0], moved, atol=1e-6)
    with pytest.raises(
        DataError, match=r"\.skeleton files hold the joints of kinect_v2, not 'coco_17'; give that --layout"
    ):
        READER.read_joints(path, {}, COCO, 2, config)


# ---------------------------------------------------------------------------------------------- in the image


def projected(tmp_path: Path, array: np.ndarray, layout: Layout = COCO, **row: Any):
    assert READER.project is not None
    return READER.project(saved(tmp_path / "x.npy", array), row, layout)


def standing(frames: int = 60) -> np.ndarray:
    """A person on the left of an image, head up: (frames, 17, 2)."""
    joints = walk(frames) * np.float32(0.2) + np.float32([0.3, 0.4])
    joints[:, COCO.names.index("nose"), 1] = 0.9
    joints[:, [COCO.names.index(f"ankle_{side}") for side in ("left", "right")], 1] = 0.1
    return joints


def test_own_2d_joints_are_pixels_of_the_image(tmp_path: Path) -> None:
    array = standing()
    lower = projected(tmp_path, array)(7, 100)
    np.testing.assert_allclose(lower[0], array[7] * [100, -100] + [0, 100], rtol=1e-5)
    upper = projected(tmp_path, array - np.float32([0, 1]))(7, 100)  # y is 0 at the upper edge
    np.testing.assert_allclose(upper, lower, rtol=1e-4, atol=1e-4)


def test_missing_joints_and_frames_have_no_pixels(tmp_path: Path) -> None:
    array = standing()
    array[3, 5], array[4] = 0, np.nan
    at = projected(tmp_path, array)
    assert np.isnan(at(3, 100)[0, 5]).all()
    assert np.isfinite(at(3, 100)[0, 6]).all()
    assert at(4, 100) is None
    assert at(60, 100) is None
    part = projected(tmp_path, array[:20], start_frame=30, end_frame=50)
    assert part(29, 100) is None
    np.testing.assert_array_equal(part(31, 100), projected(tmp_path, array)(1, 100))


@pytest.mark.parametrize("value", [[-1, -1], [-1, 0], [1e10, 1e10]])
def test_missing_joints_that_are_written_as_numbers_place_no_crop(tmp_path: Path, value: list[float]) -> None:
    array = standing()
    array[:, 9] = value
    pixels = projected(tmp_path, array)(7, 100)
    assert np.isnan(pixels[0, 9]).all()
    assert np.isfinite(pixels[0, :9]).all()


@pytest.mark.parametrize(
    ("turned", "why"),
    [
        (lambda x: x * 1080, "pixels"),
        (lambda x: x * 0 + [0, 1], "at .0, 1. exactly"),
        (lambda x: x - x[:1, :1], "not in the image"),
        (lambda x: x * 0 + 0.5, "at one point"),
    ],
)
def test_joints_that_are_not_in_the_image_place_no_crop_and_say_why(tmp_path: Path, turned, why: str) -> None:
    with pytest.raises(DataError, match=f"do not place a crop: .*{why}"):
        projected(tmp_path, turned(standing()).astype(np.float32))


def test_a_handstand_places_its_crop_and_joints_with_y_down_are_no_reason_to_use_them(tmp_path: Path) -> None:
    turned = (standing() * np.float32([1, -1]) + np.float32([0, 1])).astype(np.float32)
    assert projected(tmp_path, turned) is not None
    row = {"video": "v.avi", "skeleton": "x.npy", "problem": None}
    assert READER.in_image is not None
    assert not READER.in_image(tmp_path, [row], COCO)
    np.save(tmp_path / "x.npy", standing())
    assert READER.in_image(tmp_path, [row], COCO)
    assert not READER.in_image(tmp_path, [row, row | {"skeleton": None}], COCO)


def test_3d_arrays_are_in_no_image(tmp_path: Path) -> None:
    assert projected(tmp_path, np.ones((4, 25, 3)), KINECT_V2) is None


# ---------------------------------------------------------------------------------------------- index


def looked(
    root: Path, files: dict[str, np.ndarray | bytes], deep: bool = True, **row: Any
) -> tuple[list[str], list[str]]:
    rows = []
    for name, content in files.items():
        (root / name).write_bytes(content) if isinstance(content, bytes) else np.save(root / name, content)
        size = (root / name).stat().st_size
        rows.append({"skeleton": name, "skeleton_bytes": size, "problem": None} | row)
    assert READER.look is not None
    return READER.look(root, rows, COCO, deep)


def test_a_look_at_own_files_notes_what_is_odd_and_names_what_is_damaged(tmp_path: Path) -> None:
    nans = standing()
    nans[2:5, 9] = np.nan
    files = {
        "good.npy": standing(),
        "people.npy": standing()[None],
        "nan.npy": nans,
        "pixels.npy": standing() * 720,
        "cut.npy": b"\x93NUMPY\x01\x00",
        "a.json": b"[0]",
        "b.json": b"[0]",
        "axes.npy": standing().transpose(0, 2, 1),
    }
    truncated, notes = looked(tmp_path, files)
    assert [line.split(":")[0] for line in truncated] == ["cut.npy"]
    said = {note.split(":")[0]: note for note in notes}
    assert set(said) == {"people.npy", "nan.npy", "pixels.npy", "a.json and 1 more", "axes.npy"}
    assert "read as (people, T, V, C): 1 people in 60 frames" in said["people.npy"]
    assert "3 joints in 3 frames, the first 2, are NaN" in said["nan.npy"]


def test_one_note_stands_for_all_files_with_the_same_fault(tmp_path: Path) -> None:
    files: dict[str, Any] = {}
    for n in range(5):
        files[f"{n}.npy"] = standing() * np.float32(500 + 70 * n)
        files[f"held{n}.npy"] = np.where(np.arange(17)[:, None] < n + 1, -1 - n, standing())
        files[f"nan{n}.npy"] = np.where(np.arange(60)[:, None, None] < n + 1, np.nan, standing())
    _, notes = looked(tmp_path, files)
    assert [note.split(":")[0] for note in notes] == ["0.npy and 4 more", "held0.npy and 4 more", "nan0.npy and 4 more"]


def test_without_deep_only_the_first_files_are_read_and_damage_is_a_note(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"{n:02d}.npy": standing() for n in range(30)}
    truncated, notes = looked(tmp_path, files | {"00.npy": bytes(99), "29.npy": bytes(99)}, deep=False)
    assert (truncated, [note.split(":")[0] for note in notes]) == ([], ["00.npy"])


def test_ranges_are_looked_at_row_by_row(tmp_path: Path) -> None:
    (_, (note,)) = looked(tmp_path, {"x.npy": standing(45)}, start_frame=20, end_frame=60)
    assert "45 frames; the row means frames 20 to 60" in note


def test_an_absent_own_file_stays_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "none.npy", STICK, 2)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_pipe_in_place_of_an_array_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="a pipe, socket, device or folder"):
        read_array(tmp_path / name, KINECT_V2, 1)
