"""Drive&Act: label files of three splits, pose files, and the one camera that they count the frames of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.readers import READERS, drive
from c2vl_pipeline.readers.drive import parse_labels, read_drive
from c2vl_pipeline.workspace import split_counts
from support.indexing import doubtful, indexed, refused, rows

LAYOUT = load_layout("body_25_3d")
RUNS = {1: "run1b_2018-05-29-14-02-47", 2: "run2_2018-05-03-14-31-13", 3: "run1_2018-05-08-10-46-01"}
HEAD = "participant_id,file_id,annotation_id,frame_start,frame_end,activity,chunk_id"
# in the order of the release, with the background that no layout has
JOINTS = [
    "nose", "lElbow", "lWrist", "rHeel", "rHip", "rSmallToe", "neck", "lSmallToe", "rWrist", "rAnkle", "lHip", "lHeel",
    "lKnee", "lEye", "midHip", "background", "lEar", "rElbow", "rShoulder", "rKnee", "lShoulder", "lBigToe", "rEye",
    "rEar", "rBigToe", "lAnkle",
]  # fmt: skip
POSE = np.random.default_rng(0).normal(size=(12, 26, 4)).round(4)
POSE[:, JOINTS.index("nose"), 1] = 2
PARTS = {0: (1, 2, 3), 1: (2, 3, 1), 2: (3, 1, 2)}
"""Split -> subjects of training, validation and test."""


def label_text(subject: int) -> str:
    run = f"vp{subject}/{RUNS[subject]}.ids_1"
    return f"{subject},{run},0,0,6,drinking,0\n{subject},{run},0,6,10,drinking,1\n{subject},{run},4,10,12,closing_door_inside,0\n"


def pose_text(pose: np.ndarray = POSE, first: int = 0, joints: Sequence[str] = JOINTS) -> str:
    names = ["frame_id", "timestamp", *(f"{joint}_{axis}" for joint in joints for axis in "xyzp")]
    lines = [
        f"{first + n},{1527595367 + n / 30:.3f},{','.join(map(str, frame.ravel()))}" for n, frame in enumerate(pose)
    ]
    return "\n".join([",".join(names), *lines]) + "\n"


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Three drivers, nine label files, poses, infrared videos, and a video of another camera with the same name."""
    root = tmp_path / "raw"
    labels = root / "activities_3s" / "inner_mirror"
    labels.mkdir(parents=True)
    for split, subjects in PARTS.items():
        for part, subject in zip(("train", "val", "test"), subjects, strict=True):
            text = f"{HEAD}\n{label_text(subject)}"
            (labels / f"midlevel.chunks_90.split_{split}.{part}.csv").write_text(text)
    for subject, run in RUNS.items():
        for folder, name, content in (
            ("openpose_3d", f"{run}.ids_1.openpose.3d.csv", pose_text().encode()),
            ("inner_mirror", f"{run}.ids_1.mp4", b"\0\0\0\x08ftyp\0\0\0\x08moov"),
            ("a_column_driver", f"{run}.ids_1.mp4", b"\0\0\0\x08ftyp\0\0\0\x08moov" * 2),
        ):
            (root / folder / f"vp{subject}").mkdir(parents=True, exist_ok=True)
            (root / folder / f"vp{subject}" / name).write_bytes(content)
    return root


def test_each_part_is_one_side_of_its_split_and_validation_is_its_own_benchmark(
    release: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    made, found = indexed("drive-act", release, tmp_path / "work", config)
    assert found.errors() == found.notes() == []
    assert split_counts(made) == {
        name: {"train": 3, "test": 3}
        for name in ("split0", "split0-val", "split1", "split1-val", "split2", "split2-val")
    }
    table = rows(made)
    assert len(table) == 9
    row = table[f"vp2_{RUNS[2]}_a4_c0"]
    assert dict(row["splits"]) == {
        "split0-val": "test", "split1": "train", "split1-val": "train", "split2": "test",
    }  # fmt: skip
    assert (row["subject"], row["label"], row["start_frame"], row["end_frame"]) == (2, 1, 10, 12)
    assert row["video"] == f"inner_mirror/vp2/{RUNS[2]}.ids_1.mp4"
    assert row["skeleton"] == f"openpose_3d/vp2/{RUNS[2]}.ids_1.openpose.3d.csv"
    read = READERS["drive"].read_joints(release / row["skeleton"], row, LAYOUT, 1, config.skeletons)
    assert read.frame_index.tolist() == [10, 11]


@pytest.mark.parametrize(
    ("scale", "said"),
    [((1, -1, -1), "heads are below feet: y points down?"), ((1000, 1000, 1000), "m large: millimetres?")],
)
def test_joints_that_no_person_can_have_are_noted(
    release: Path, tmp_path: Path, config: PipelineConfig, scale: tuple[int, ...], said: str
) -> None:
    for path in release.glob("openpose_3d/vp*/*.csv"):
        path.write_text(pose_text(POSE * [*scale, 1]))
    for deep, files in ((False, "run1_"), (True, "and 2 more: ")):
        _, found = indexed("drive-act", release, tmp_path / f"work{deep}", config, deep=deep)
        assert found.errors() == []
        (note,) = (note for note in found.notes() if said in note)
        assert files in note


def test_pose_files_that_end_before_their_labels_are_truncated(release: Path, config: PipelineConfig) -> None:
    path = next(release.glob("openpose_3d/vp2/*.csv"))
    path.write_text(pose_text(POSE[:9]))
    found = doubtful("drive-act", release, config, deep=True)
    assert [line for line in found.truncated if "it ends with frame 8, a label begins at 10; download it again" in line]


def test_joints_are_found_by_their_names_and_centred_on_the_first_hip(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(pose_text(first=100))
    made = read_drive(path, LAYOUT, 102, 105)
    assert made.frame_index.tolist() == [102, 103, 104]
    single = POSE.astype(np.float32)[2:5, :, :3]
    hip = single[0, JOINTS.index("midHip")]
    for name, joint in (
        ("rWrist", "wrist_right"),
        ("lSmallToe", "foot_little_left"),
        ("nose", "nose"),
        ("midHip", "hip_centre"),
    ):
        np.testing.assert_array_equal(made.joints[:, 0, LAYOUT.names.index(joint)], single[:, JOINTS.index(name)] - hip)
    order = np.random.default_rng(1).permutation(26)
    path.with_name("q.csv").write_text(pose_text(POSE[:, order], 100, [JOINTS[n] for n in order]))
    np.testing.assert_array_equal(read_drive(path.with_name("q.csv"), LAYOUT, 102, 105).joints, made.joints)


def test_the_layout_is_openposes_own_order() -> None:
    official = (
        "Nose Neck RShoulder RElbow RWrist LShoulder LElbow LWrist MidHip RHip RKnee RAnkle LHip LKnee LAnkle REye LEye REar "
        "LEar LBigToe LSmallToe LHeel RBigToe RSmallToe RHeel"
    )
    assert [drive._column(joint).lower() for joint in LAYOUT.names] == official.lower().split()


def test_joints_of_no_place_are_missing(tmp_path: Path) -> None:
    pose = POSE.copy()
    pose[1:, JOINTS.index("lKnee")] = 0
    pose[:, JOINTS.index("rKnee"), :3] = np.nan
    (tmp_path / "p.csv").write_text(pose_text(pose))
    joints = read_drive(tmp_path / "p.csv", LAYOUT, 0, 12).joints[:, 0]
    assert not joints[1:, LAYOUT.names.index("knee_left")].any()
    assert not joints[:, LAYOUT.names.index("knee_right")].any()
    assert joints[0, LAYOUT.names.index("knee_left")].any()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no line of column names that begins with frame_id"),
        (pose_text(joints=[*JOINTS[:-1], "lankle"]).encode(), "no column lAnkle_x"),
        (pose_text().replace("\n3,", "\n1,").encode(), "frame_id does not ascend"),
        (pose_text()[:-200].encode(), "not a pose file of Drive&Act"),
        (pose_text().replace("\n5,", "\nx,").encode(), "not a pose file of Drive&Act"),
        (b"\xff\xfe" + pose_text().encode(), "not a pose file of Drive&Act"),
        (pose_text(POSE[:5]).encode(), "truncated: it ends with frame 4, a label begins at 6; download it again"),
        (pose_text(POSE[:0]).encode(), "truncated: it holds no frame"),
    ],
)  # fmt: skip
def test_other_pose_files_are_refused_in_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_drive(path, LAYOUT, 6, 10)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b\n1,2\n", "f.csv:1: no column 'participant_id'; expected participant_id,file_id,"),
        (f"{HEAD}\n1,vp1/run.ids_1,0,0,9,drinking\n", "f.csv:2: 6 cells; the header has 7 columns"),
        (f"{HEAD}\n1,../run.ids_1,0,0,9,drinking,0\n", "f.csv:2: file_id '../run.ids_1'; expected the form vp1/"),
        (f"{HEAD}\n1,vp1/run.kinect_ir,0,0,9,drinking,0\n", "f.csv:2: file_id 'vp1/run.kinect_ir'; expected"),
        (f"{HEAD}\n1,vp1/run.ids_1,0,-1,9,drinking,0\n", "f.csv:2: frame_start = '-1' is not a whole number below"),
        (f"{HEAD}\n1,vp1/run.ids_1,0,0,99999999999,drinking,0\n", "frame_end = '99999999999' is not a whole number"),
        (f"{HEAD}\n1,vp1/run.ids_1,0,0,9,flying,0\n", "activity 'flying' is not one of the 34 of the splits"),
        ('"' + "x" * 200_000 + '"\n', "not a line of a table (field larger than field limit"),
    ],
)  # fmt: skip
def test_other_label_files_are_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_labels(text, "0", "train", load_dataset("drive-act"), "f.csv")
    assert expected in str(caught.value)
    assert str(caught.value).startswith("f.csv:")


def test_missing_label_files_and_chunks_that_differ_are_named(release: Path, config: PipelineConfig) -> None:
    labels = release / "activities_3s" / "inner_mirror"
    path = labels / "midlevel.chunks_90.split_2.test.csv"
    text = path.read_text()
    path.unlink()
    found = doubtful("drive-act", release, config)
    assert found.errors() == ["1 label files missing (inner_mirror/midlevel.chunks_90.split_2.test.csv)"]
    path.write_text(text.replace(",6,10,", ",6,11,"))
    assert f"vp2_{RUNS[2]}_a0_c1 is another chunk or of another part" in refused("drive-act", release, config)
    path.write_text(text + text.splitlines()[1] + "\n")
    assert "is another chunk or of another part in another file or line" in refused("drive-act", release, config)
    for file in labels.iterdir():
        file.unlink()
    assert "holds no label files; expected activities_3s/inner_mirror/midlevel" in refused("drive-act", release, config)


def test_an_end_before_its_start_is_that_rows_problem(release: Path, tmp_path: Path, config: PipelineConfig) -> None:
    for path in (release / "activities_3s" / "inner_mirror").iterdir():
        path.write_text(path.read_text().replace(",10,12,closing", ",12,12,closing"))
    _, found = indexed("drive-act", release, tmp_path / "work", config)
    assert found.notes()[0].startswith("3 impossible samples (vp")
