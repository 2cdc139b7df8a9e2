"""Files of other tools give the joints that the same joints as `.npy` give, and a wrong file is one line."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.arrays import READER, read_array
from c2vl_pipeline.readers.base import Scan
from c2vl_pipeline.readers.files import FORMATS, pyskl
from c2vl_pipeline.readers.files.base import frame_numbers
from support import ROOT, other_tools
from support.other_tools import HEIGHT, IN_METRES, IN_PIXELS, WIDTH, annotation, in_heights, upright, walkers, world
from support.video import film

CONFIG = SkeletonsConfig(image_size=(WIDTH, HEIGHT))


def as_npy(folder: Path, array: np.ndarray, layout: Any) -> np.ndarray:
    np.save(folder / "same.npy", array)
    return read_array(folder / "same.npy", layout, 2).joints


@pytest.mark.parametrize("tool", IN_PIXELS)
def test_people_found_in_any_order_are_those_of_the_array(tmp_path: Path, tool: str) -> None:
    name, write = IN_PIXELS[tool]
    layout = load_layout(name)
    pixels = walkers(layout, seed=1)
    path = tmp_path / write(tmp_path, "clip1", pixels)
    made = READER.read_joints(path, {}, layout, 2, CONFIG)
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels), layout))
    assert made.bodies == 2


@pytest.mark.parametrize("form", IN_METRES)
def test_world_landmarks_are_turned_upright(tmp_path: Path, form: str) -> None:
    layout, landmarks = load_layout("mediapipe_33"), world(2)
    path = tmp_path / IN_METRES[form](tmp_path, "a", landmarks)
    made = READER.read_joints(path, {}, layout, 2, SkeletonsConfig())
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, upright(landmarks), layout))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_annotation_is_found_by_the_sample_s_id(tmp_path: Path, protocol: int) -> None:
    layout = load_layout("coco_17")
    clips = {f"clip{n}": walkers(layout, n) for n in range(3)}
    other_tools.pyskl(tmp_path / "a.pkl", [annotation(*clip) for clip in clips.items()], protocol)
    for name, pixels in clips.items():
        made = READER.read_joints(tmp_path / "a.pkl", {"sample_id": name}, layout, 2, SkeletonsConfig())
        np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels), layout))
    with pytest.raises(DataError, match=r"no annotation has the frame_dir 'b'; its first is 'clip0'"):
        READER.read_joints(tmp_path / "a.pkl", {"sample_id": "b"}, layout, 2, SkeletonsConfig())


def test_3d_annotations_are_taken_as_they_are(tmp_path: Path) -> None:
    layout = load_layout("kinect_v2")
    joints = np.random.default_rng(0).normal(size=(2, 30, 25, 3)).astype(np.float32)
    entry = {"frame_dir": "a", "label": 0, "total_frames": 30, "keypoint": joints}
    other_tools.pyskl(tmp_path / "a.pkl", [entry])
    made = READER.read_joints(tmp_path / "a.pkl", {"sample_id": "a"}, layout, 2, SkeletonsConfig())
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, joints.swapaxes(0, 1), layout))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"xsub_train": 0, "xsub_val": 1}, {"xsub": ["train", "test"]}),
        ({"train": 0, "val": 1}, {"split": ["train", "test"]}),
        ({"train1": 0, "test1": 1}, {"split1": ["train", "test"]}),
        ({"a_train": 0, "a_val": 2, "a_test": 1}, {"a": ["train", "test", None]}),
    ],
)
def test_lists_of_samples_are_the_splits_of_benchmarks(tmp_path: Path, names: dict[str, int], expected: Any) -> None:
    splits = {name: [f"clip{n}"] for name, n in names.items()}
    entries = [annotation(f"clip{n}", walkers(load_layout("coco_17"), n, 8)) for n in range(3)]
    (tmp_path / "samples.pkl").write_bytes(pickle.dumps({"split": splits, "annotations": entries}))
    made = pyskl.expected_rows(tmp_path / "samples.pkl", Scan(others=["x/clip1.mp4"]))
    by_id = {row["sample_id"]: row for row in made.rows}
    (benchmark, sides), *_ = expected.items()
    for n, side in enumerate(sides):
        assert dict(by_id[f"clip{n}"]["splits"]).get(benchmark) == side
    assert by_id["clip1"]["video"] == "x/clip1.mp4"
    assert [by_id[f"clip{n}"]["label"] for n in range(3)] == [0, 1, 2]
    assert made.classes == ("0", "1", "2")


def _of_lists(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value] * 11
    return value


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda held: held["split"].update(xsub_val=["clip0"]), "'clip0' is in training and in test of 'xsub'"),
        (lambda held: held["split"].update({"\ud800": []}), "a split has no name that can be written"),
        (lambda held: held["split"].update({f"s{n}_train": [] for n in range(1001)}), "splits; expected up to 1,000"),
        (lambda held: held["annotations"][0].update(frame_dir="a\ud800"), "annotation 0 has no frame_dir"),
        (lambda held: held["annotations"][0].update(label=_of_lists(90)), "label a list of 'clip0'; expected a whole"),
        (lambda held: held["annotations"][0].update(keypoint=_of_lists(9)), "keypoint is a list; expected an array"),
        (
            lambda held: held["annotations"][0].update(fps=Fraction(30, 1)),
            r"\(the name 'fractions.Fraction' at byte [\d,]+, which plain values do not need\); save it again with dictionaries",
        ),
    ],
)
def test_annotations_that_say_two_things_or_too_much_are_one_line(tmp_path: Path, change: Any, says: str) -> None:
    entries = [annotation(f"clip{n}", walkers(load_layout("coco_17"), n, 8)) for n in range(2)]
    held = {"split": {"xsub_train": ["clip0"], "xsub_val": ["clip1"]}, "annotations": entries}
    change(held)
    path = tmp_path / "samples.pkl"
    path.write_bytes(pickle.dumps(held))

    def read() -> None:
        pyskl.expected_rows(path, Scan())
        read_array(path, load_layout("coco_17"), 2, {"sample_id": "clip0"})

    with pytest.raises(DataError, match=says) as refused:
        read()
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_an_annotation_without_people_has_no_frames(tmp_path: Path) -> None:
    entry = annotation("clip0", walkers(load_layout("coco_17"), 0, 8))
    entry |= {name: entry[name][:0] for name in ("keypoint", "keypoint_score")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([entry]))
    made = read_array(tmp_path / "a.pkl", load_layout("coco_17"), 2, {"sample_id": "clip0"})
    assert len(made.joints) == 0


def test_a_row_of_empty_cells_is_a_frame_without_anybody(tmp_path: Path) -> None:
    names = [f"{axis}{n}" for n in range(33) for axis in "xyz"]
    rows = [",".join(f"{0.1 * (n + k):.3f}" for k in range(99)) for n in (1, 2, 3)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(names), rows[0], "," * 98, rows[1], "", rows[2]]) + "\n")
    made = read_array(tmp_path / "a.csv", load_layout("mediapipe_33"), 1)
    assert made.frame_index.tolist() == [0, 2, 3]


def test_joints_of_a_larger_layout_are_mapped_by_name(tmp_path: Path) -> None:
    whole, asked = load_layout("body_25"), load_layout("coco_17")
    pixels = walkers(whole, 3)
    path = tmp_path / other_tools.openpose(tmp_path, "clip1", pixels)
    made = READER.read_joints(path, {}, asked, 2, CONFIG)
    chosen = [whole.names.index(name) for name in asked.names]
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels[:, :, chosen]), asked))
    with pytest.raises(DataError, match=r"'body_25' cannot be mapped to 'kinect_v2_2d'"):
        READER.read_joints(path, {}, load_layout("kinect_v2_2d"), 2, CONFIG)


def test_the_body_is_taken_of_a_model_of_the_whole_body(tmp_path: Path) -> None:
    layout = load_layout("coco_17")
    for whole, write in ((133, other_tools.mmpose), (136, other_tools.alphapose)):
        body = load_layout("coco_17" if whole == 133 else "halpe_26")
        pixels = walkers(body, 3)
        more = np.concatenate([pixels, np.repeat(pixels[:, :, :1], whole - body.joints, axis=2)], axis=2)
        made = READER.read_joints(tmp_path / write(tmp_path, f"clip{whole}", more), {}, layout, 2, CONFIG)
        np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels[:, :, :17]), layout))


def test_eighteen_joints_of_openpose_are_coco_s_in_another_order(tmp_path: Path) -> None:
    own, asked = load_layout("coco_18"), load_layout("coco_17")
    pixels = walkers(own, 3)
    path = tmp_path / other_tools.openpose(tmp_path, "clip1", pixels)
    chosen = [own.names.index(name) for name in asked.names]
    made = READER.read_joints(path, {}, asked, 2, CONFIG)
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels[:, :, chosen]), asked))


def test_mmpose_s_files_of_pictures_are_a_clip(tmp_path: Path) -> None:
    layout = load_layout("coco_17")
    pixels = walkers(layout, 4)
    video = tmp_path / other_tools.mmpose(tmp_path, "clip1", pixels)
    (tmp_path / "clip").mkdir()
    for frame in json.loads(video.read_text())["instance_info"]:
        (tmp_path / "clip" / f"img_{frame['frame_id']:05d}_v2.json").write_text(json.dumps(frame["instances"]))
    made = READER.read_joints(tmp_path / "clip", {}, layout, 2, CONFIG)
    np.testing.assert_array_equal(made.joints, READER.read_joints(video, {}, layout, 2, CONFIG).joints)


@pytest.mark.parametrize("tool", ["OpenPose", "AlphaPose", "MMPose"])
def test_shares_of_an_image_in_place_of_pixels_are_refused(tmp_path: Path, tool: str) -> None:
    name, write = IN_PIXELS[tool]
    layout = load_layout(name)
    path = tmp_path / write(tmp_path, "clip1", walkers(layout, 1) / [WIDTH, HEIGHT])
    with pytest.raises(DataError, match=r"all joints are within 2 pixels of the image's corner: shares of its size\?"):
        READER.read_joints(path, {}, layout, 2, CONFIG)


def test_of_three_people_the_two_largest_and_longest_are_kept(tmp_path: Path) -> None:
    layout = load_layout("coco_17")
    pixels = walkers(layout, 4)
    third = np.zeros_like(pixels[:, :1])
    third[5:15] = pixels[5:15, 1:] / 4 + [300, 10]
    path = tmp_path / other_tools.mmpose(tmp_path, "clip1", np.concatenate([pixels, third], axis=1))
    made = READER.read_joints(path, {}, layout, 2, CONFIG)
    np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels), layout))
    assert READER.look is not None
    row = {"skeleton": path.name, "skeleton_bytes": 1, "problem": None}
    _, notes = READER.look(tmp_path, [row], layout, True, CONFIG)
    assert any(
        "up to 3 people in a frame; those who are largest and longest in view are kept, at most 2" in n for n in notes
    )


def test_pixels_need_the_size_of_their_image(tmp_path: Path) -> None:
    layout = load_layout("coco_17")
    path = tmp_path / other_tools.alphapose(tmp_path, "clip1", walkers(layout, 5))
    with pytest.raises(DataError, match=r"name the video in the table, or give --set pipeline\.skeletons\.image_size="):
        READER.read_joints(path, {}, layout, 2, SkeletonsConfig())


def test_landmarks_of_the_image_are_told_from_those_of_the_world(tmp_path: Path) -> None:
    landmarks = world(6) / 10 + 0.5
    row = {"skeleton": other_tools.world_long(tmp_path, "a", landmarks), "skeleton_bytes": 1, "problem": None}
    assert READER.look is not None
    _, notes = READER.look(tmp_path, [row], load_layout("mediapipe_33"), True, SkeletonsConfig())
    assert any("landmarks of the image? Give --layout mediapipe_33_2d" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["img_00001.jpg", "img_00007.jpg"], [1, 7]),
        (["000001.png", "000010.png"], [1, 10]),
        (["f00011_v2.jpg", "f00012_v2.jpg"], [11, 12]),
        (["cam1_frame_9.png", "cam1_frame_10.png"], [9, 10]),
        (["2026-11-30_08.15.00/12", "2026-11-30_08.15.00/13"], [12, 13]),
        (["s1.mp4_frame.3", "s1.mp4_frame.4"], [3, 4]),
        (["clip2_000000000003_keypoints.json", "clip2_000000000004_keypoints.json"], [3, 4]),
        (["clip.f0012", "clip.f0013"], [12, 13]),
        (["v2_7.jpg", "v2_7.jpg"], [7, 7]),
        ([5, 6, True, -1, None, [3]], [5, 6, None, None, None, None]),
        (["12.jpg", "a.jpg", "9" * 30], [12, None, None]),
        ([], []),
    ],
)
def test_the_number_of_a_frame_is_the_one_in_which_names_differ(names: list[Any], numbers: list[int | None]) -> None:
    assert frame_numbers(names, Path("a")) == numbers


@pytest.mark.parametrize(
    "names",
    [["cam1_frame_1.png", "cam2_frame_2.png"], ["1.04.jpg", "2.08.jpg"], ["a_1.jpg", "b_2.jpg"], ["a_1_2.jpg", "a_1.jpg"]],
)  # fmt: skip
def test_names_that_differ_in_more_than_one_number_are_refused(names: list[str]) -> None:
    with pytest.raises(
        DataError, match=r"^a: '.*' and '.*' differ in more than the number of the frame; give"
    ) as caught:
        frame_numbers(names, Path("a"))
    assert all(repr(name) in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("nope", "not JSON"),
        ("[3]", "JSON of no known form; expected that of AlphaPose, COCO results, MMPose, MediaPipe"),
        ('[{"image_id": "x", "keypoints": [1, 2, 3]}]', "entry 0 has no image_id with the number of its frame"),
        ('[{"image_id": 1, "keypoints": [1, 2]}]', "keypoints of entry 0 are 2 numbers; expected x, y, score of each"),
        ('[{"image_id": 1, "keypoints": ["a"]}]', "is no list of numbers"),
        ('[{"image_id": 1, "keypoints": [1, 2, 3]}]', "1 joints in frame 1; layout 'coco_17' needs 17"),
        ('[{"instances": [{"keypoints": [[1, 2]], "keypoint_scores": [1, 2]}]}]', "2 scores of 1 joints of frame 0"),
        ('[{"instances": 3}]', "frame 0 has no list of instances"),
        ("[[[1, 2, 3]]]", "1 landmarks of frame 0; expected MediaPipe's 33"),
        (json.dumps([{"image_id": 10**12, "keypoints": []}]), "has no image_id"),
    ],
)
def test_a_wrong_json_file_is_one_line(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        READER.read_joints(tmp_path / "a.json", {}, load_layout("coco_17"), 2, CONFIG)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "frames"),
    [
        ("[]", 0),
        ('{"meta_info": {}, "instance_info": []}', 0),
        ('[{"frame_id": 0, "instances": []}]', 1),
        ("[null, [], null]", 3),
        ('{"frames": []}', 0),
    ],
)
@pytest.mark.parametrize("layout", ["mediapipe_33_2d", "mediapipe_33"])
def test_a_file_of_nobody_is_a_clip_without_frames(tmp_path: Path, content: str, frames: int, layout: str) -> None:
    if layout == "mediapipe_33" and "ins" in content:
        return  # pixels
    (tmp_path / "a.json").write_text(content)
    made = READER.read_joints(tmp_path / "a.json", {}, load_layout(layout), 2, SkeletonsConfig())
    assert (len(made.joints), made.frames_in_file) == (0, frames)
    if not frames:
        made = READER.read_joints(
            tmp_path / "a.json", {"start_frame": 5, "end_frame": 9}, load_layout(layout), 2, CONFIG
        )
        assert len(made.joints) == 0


def test_every_format_has_its_line_in_the_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "other-tools.md").read_text("utf-8")
    for format in FORMATS:
        assert all(name in guide for name in format.name.split(", "))
        assert all(f"`{suffix}`" in guide for suffix in format.suffixes)


@pytest.mark.slow
def test_another_number_of_frames_than_the_video_s_is_noted_and_frames_without_anybody_are_filled_in(
    tmp_path: Path,
) -> None:
    film(tmp_path / "v.avi", 48, (WIDTH, HEIGHT))
    layout = load_layout("coco_17")
    pixels = walkers(layout, 1)
    dense, sparse = other_tools.mmpose(tmp_path, "a", pixels), other_tools.alphapose(tmp_path, "b", pixels)
    assert READER.look is not None
    for name, expected in ((dense, True), (sparse, False)):
        row = {"skeleton": name, "skeleton_bytes": 1, "problem": None, "video": "v.avi"}
        _, notes = READER.look(tmp_path, [row], layout, True, SkeletonsConfig())
        assert (
            any("24 frames of joints, and its video has 48: another frame rate" in note for note in notes) == expected
        )
        made = READER.read_joints(tmp_path / name, row, layout, 2, SkeletonsConfig())
        assert made.frames_in_file == (24 if expected else 48)
        np.testing.assert_array_equal(made.joints, as_npy(tmp_path, in_heights(pixels), layout))
