"""MSRAction3D: its file, its dirt, and that it lies as UTD-MHAD does, so that an encoder of one meets the other."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.raw import check
from c2vl_pipeline.readers import msr
from c2vl_pipeline.readers.utd import read_utd
from c2vl_pipeline.stages import index, skeletons

NAMES = ["a01_s01_e01", "a02_s02_e01", "a20_s10_e03"]
JOINT = KINECT_V1.names.index


def write(path: Path, **changes: object) -> Path:
    frames = np.arange(9 * 20 * 3, dtype=np.float32).reshape(9, 20, 3)
    np.savez(path, **{"x": frames, "off": np.array([0, 4, 4, 9]), "name": np.array(NAMES), **changes})
    return path


def indexed(root: Path, work: Path, recipe: Recipe, **how: bool) -> tuple[workspace.Workspace, check.Findings]:
    return index.build(load_dataset("msr-action3d"), root, work, recipe.pipeline, recipe="debug", **how)


def test_clips_are_cut_by_their_offsets_and_reordered(tmp_path: Path) -> None:
    path = write(tmp_path / "m.npz")
    assert msr.clips(path) == dict(zip(NAMES, [(0, 4), (4, 4), (4, 9)], strict=True))
    clip = msr.read_clip(path, 4, 9)
    assert clip.shape == (5, 20, 3)
    assert clip[0, JOINT("hip_centre"), 0] == (4 * 20 + 6) * 3
    assert clip[0, JOINT("head"), 0] == (4 * 20 + 19) * 3
    assert clip[0, JOINT("foot_right"), 0] == (4 * 20 + 18) * 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"x": np.zeros((9, 21, 3), np.float32)}, "x has the shape (9, 21, 3) of float32; expected (frames, 20, 3)"),
        ({"x": np.zeros((9, 20, 3), int)}, "of int64; expected (frames, 20, 3)"),
        ({"off": np.array([0, 4, 9])}, "off has the shape (3,); expected one number more than names"),
        ({"off": np.array([0, 5, 4, 9])}, "off does not cut 9 frames into clips; expected ascending numbers from 0"),
        ({"off": np.array([0, 4, 5, 99])}, "off does not cut 9 frames into clips"),
        ({"name": np.array([None] * 3, object)}, "not MSRAction3D with x, off and name (Object arrays"),
    ],
)  # fmt: skip
def test_another_file_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    path = write(tmp_path / "m.npz", **changes)
    with pytest.raises(DataError) as caught:
        msr.clips(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.npz").read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(C2VLError):
            msr.clips(tmp_path / "cut.npz")


def test_no_videos_are_promised_and_absent_clips_are_missing(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / "m.npz")
    (tmp_path / "raw" / "other.npz").write_bytes(b"x")
    _, found = indexed(tmp_path / "raw", tmp_path / "w", recipe, allow_missing=True)
    assert (found.expected, found.with_video, found.with_skeleton) == (567, 0, 3)
    assert found.errors() == ["564 skeletons missing (a01_s01_e02, …)"]
    assert found.notes()[0].startswith("1 unexpected files (other.npz: not MSRAction3D with x, off and name (")


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> workspace.Workspace:
    root = tmp_path_factory.mktemp("msr")
    (root / "msr_action3d.npz").symlink_to(shared / "msr_action3d.npz")
    made, found = indexed(root, tmp_path_factory.mktemp("work"), recipe)
    assert found.errors() == found.notes() == []
    return made


def test_the_real_file_is_the_567_promised_clips(real: workspace.Workspace) -> None:
    assert real.table.num_rows == 567
    assert workspace.split_counts(real) == {"xsub": {"train": 292, "test": 275}}
    assert real.layout == KINECT_V1


@pytest.mark.slow
def test_dirt_of_the_real_file_becomes_rows_that_say_so(real: workspace.Workspace, recipe: Recipe) -> None:
    from c2vl_manifests.manifest import read_shard
    from c2vl_pipeline.workspace import shard_path

    runner.run_stage(skeletons.STAGE, real.work, recipe)
    rows = {
        row["sample_id"]: row
        for n in range(len(real.shard_ranges))
        for row in read_shard(shard_path(real.work, "skeletons", n)).to_pylist()
    }
    assert len(rows) == 567
    assert [s for s, row in rows.items() if row["status"] != "ok"] == ["a13_s09_e02"]
    empty, long = rows["a13_s09_e02"], rows["a13_s09_e03"]
    assert (empty["status"], empty["error"], empty["frames"]) == ("missing_skeleton", "no body in any frame", 0)
    assert (long["frames_in_file"], long["frames"]) == (936, 196)
    assert sum(row["frames_in_file"] for row in rows.values()) == 23_478
    assert sum(row["frames"] for row in rows.values()) == 22_365


def standing(clip: np.ndarray) -> dict[str, float]:
    """Medians over the frames of a clip, in metres: what says which way up and round it lies. (T, 20, 3)."""
    feet = (clip[:, JOINT("foot_left")] + clip[:, JOINT("foot_right")]) / 2
    across = clip[:, JOINT("shoulder_right")] - clip[:, JOINT("shoulder_left")]
    return {
        "head above feet": float(np.median(clip[:, JOINT("head"), 1] - feet[:, 1])),
        "right shoulder to the right": float(np.median(across[:, 0])),
        "toes towards the camera": float(np.median(clip[:, JOINT("ankle_left"), 2] - clip[:, JOINT("foot_left"), 2])),
        "upper arm": float(np.median(np.linalg.norm(clip[:, JOINT("elbow_left")] - clip[:, JOINT("shoulder_left")], axis=1))),
    }  # fmt: skip


def moved(clip: np.ndarray, joint: str) -> float:
    return float(np.linalg.norm(np.diff(clip[:, JOINT(joint)], axis=0), axis=1).sum())


def test_both_20_joint_sets_stand_upright_in_metres_and_face_the_camera(
    shared: Path, real: workspace.Workspace
) -> None:
    path = shared / "msr_action3d.npz"
    first = [msr.read_clip(path, *msr.clips(path)[f"a{a:02d}_s{s:02d}_e01"]) for a in (1, 2, 7) for s in (1, 2, 5)]
    second = [
        read_utd(shared / "utd_mhad" / "Skeleton" / f"a{a}_s{s}_t1_skeleton.mat").joints[:, 0]
        for a in (1, 3, 8)
        for s in (1, 2, 5)
    ]
    for clips in (first, second):
        for clip in clips:
            facts = standing(clip)
            assert 1.2 < facts["head above feet"] < 1.9, facts
            assert 0.2 < facts["right shoulder to the right"] < 0.5, facts
            assert facts["toes towards the camera"] > 0, facts
            assert 0.2 < facts["upper arm"] < 0.36, facts
            # waves, swipes and crosses are done with the right hand in both sets
            assert moved(clip, "hand_right") > 2 * moved(clip, "hand_left")


@pytest.mark.parametrize("name", ["._m.npz", "__MACOSX/m.npz", "m.npz.bak"])
def test_what_a_mac_left_beside_the_file_is_passed_over(tmp_path: Path, recipe: Recipe, name: str) -> None:
    root = tmp_path / "raw"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write(root / "m.npz")
    (root / name).write_bytes(b"\0\5\26\7")
    made, found = indexed(root, tmp_path / "w", recipe, only_present=True)
    assert made.table.num_rows == 3
    assert found.unexpected == []
    assert name.startswith(found.system[0])


@pytest.mark.parametrize("name", [".old/m.npz", "backup/m.npz", "#1/2/m.npz", "m/z.npz"])
def test_of_two_files_with_the_same_clips_the_visible_less_deep_one_is_read(
    tmp_path: Path, recipe: Recipe, name: str
) -> None:
    root = tmp_path / "raw"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    write(root / "m.npz")
    write(root / name, x=np.ones((9, 20, 3), np.float32))
    made, _ = indexed(root, tmp_path / "w", recipe, only_present=True)
    assert set(made.table["skeleton"].to_pylist()) == {"m.npz"}


def test_a_file_of_nul_bytes_is_called_so(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "m.npz").write_bytes(bytes(5000))
    with pytest.raises(DataError, match=r"m\.npz: begins with NUL bytes.*copy it again"):
        indexed(tmp_path / "raw", tmp_path / "w", recipe, only_present=True)


def test_a_pipe_in_place_of_the_file_is_named_and_not_waited_for(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / "m.npz")
    os.mkfifo(tmp_path / "raw" / "other.npz")
    _, findings = indexed(tmp_path / "raw", tmp_path / "work", recipe, only_present=True)
    assert any(note.startswith("other.npz: a pipe, socket, device or folder") for note in findings.unexpected)
