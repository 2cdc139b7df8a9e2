"""NW-UCLA: its ids and splits, its files, and that the real clips are read as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.readers import read_skeleton
from c2vl_pipeline.readers.ucla import read_ucla
from c2vl_pipeline.workspace import split_counts
from support.indexing import doubtful, indexed, rows
from support.nw_ucla import clips, write_clips

NAME = "a08_s02_e04_v01"
FRAMES = np.random.default_rng(0).normal(size=(5, 20, 3)).astype(np.float32)


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({"file_name": path.stem, "skeletons": FRAMES.tolist(), "label": 7} | changes))
    return path


def test_joints_keep_their_order_and_are_centred_on_the_first_hip(tmp_path: Path) -> None:
    path = write(tmp_path / f"{NAME}.json")
    made, layout = read_skeleton(path, own="ucla")
    assert layout == KINECT_V1
    np.testing.assert_array_equal(made.joints[:, 0], FRAMES - FRAMES[0, 0])


def test_classes_have_the_authors_numbers_in_names_and_consecutive_ones_in_labels() -> None:
    dataset = load_dataset("nw-ucla")
    named = {n: dataset.label(dataset.parse_id(f"a{n:02d}_s01_e00_v01")) for n in dataset.actions}
    assert named == {1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 8: 6, 9: 7, 11: 8, 12: 9}
    assert len(dataset.classes) == 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"skeletons": FRAMES[:, :19].tolist()}, "skeletons has the shape (5, 19, 3) of float64; expected numbers, (frames, 20, 3)"),
        ({"skeletons": [[[1, 2, 3]] * 20, [[1, 2]] * 20]}, "skeletons has lists of different lengths; expected numbers"),
        ({"skeletons": [[["x"] * 3] * 20]}, "skeletons has the shape (1, 20, 3) of <U1; expected numbers"),
        ({"skeletons": []}, "skeletons has the shape (0,) of float64; expected numbers"),
        ({"skeletons": None}, "skeletons has lists of different lengths"),
        ({"skeletons": [[[True] * 3] * 20]}, "of bool; expected numbers"),
        ({"file_name": "a09_s02_e04_v01"}, "holds the clip 'a09_s02_e04_v01'; rename it or copy it again"),
    ],
)  # fmt: skip
def test_another_content_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / f"{NAME}.json", **changes)
    with pytest.raises(DataError) as caught:
        read_ucla(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe{", b"[" * 300, b'{"skeletons": [1e999]}', b"7"])
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{NAME}.json").write_bytes(content)
    with pytest.raises(DataError, match=r"not JSON|not a clip of NW-UCLA"):
        read_ucla(tmp_path / f"{NAME}.json")


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / f"{NAME}.json").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / f"{NAME}.json").write_bytes(whole[:size])
        with pytest.raises(C2VLError):
            read_ucla(tmp_path / f"{NAME}.json")


def test_a_missing_joint_stays_missing(tmp_path: Path) -> None:
    frames = FRAMES.astype(float).tolist()
    frames[2][7] = [float("nan")] * 3
    frames[3][7] = [1e300] * 3
    joints = read_ucla(write(tmp_path / f"{NAME}.json", skeletons=frames)).joints
    assert not joints[2:4, 0, 7].any()
    assert joints[1, 0, 7].all()


def test_absent_clips_are_missing_and_damaged_ones_are_found_by_deep(tmp_path: Path, config: PipelineConfig) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / f"{NAME}.json")
    write(tmp_path / "raw" / "a01_s01_e00_v01.json", file_name=NAME)
    found = doubtful("nw-ucla", tmp_path / "raw", config, deep=True)
    assert found.errors()[0].startswith("1,482 skeletons missing (a01_s01_e00_v02, …)")
    assert found.truncated == [f"a01_s01_e00_v01.json: holds the clip '{NAME}'; rename it or copy it again"]
    whole = (tmp_path / "raw" / f"{NAME}.json").read_bytes()
    (tmp_path / "raw" / "a01_s01_e00_v01.json").write_bytes(whole[:-9])
    found = doubtful("nw-ucla", tmp_path / "raw", config)
    assert found.truncated == ["a01_s01_e00_v01.json: cut off before its end; copy it again"]
    made, _ = indexed("nw-ucla", tmp_path / "raw", tmp_path / "work", config, only_present=True)
    row = rows(made)[NAME]
    assert (row["label"], row["subject"], row["view"], row["repeat"], row["camera"]) == (6, 2, 1, 4, "C001")
    assert dict(row["splits"]) == {"xsub": "train", "xview": "train"}


@pytest.mark.slow
def test_the_real_clips_are_the_expected_ones_also_those_of_one_frame(
    shared: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    real = clips(shared)
    made, found = indexed("nw-ucla", write_clips(tmp_path / "raw", real), tmp_path / "work", config)
    assert found.errors() == found.notes() == []
    assert made.table["sample_id"].to_pylist() == sorted(real)
    assert split_counts(made) == {"xsub": {"train": 754, "test": 730}, "xview": {"train": 1020, "test": 464}}
    for name in list(real)[::97]:
        read = read_ucla(tmp_path / "raw" / "all_sqe" / f"{name}.json")
        np.testing.assert_array_equal(read.joints[:, 0], real[name] - real[name][0, 0])
