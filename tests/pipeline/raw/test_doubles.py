"""Samples of the same joints or of the same video, and the splits that they leak across."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.recipe import PipelineConfig
from support.indexing import AVI, indexed, own
from support.nw_ucla import clips, write_clips

FRAMES = np.random.default_rng(0).normal(size=(4, 5, 20, 3)).astype(np.float32)


def test_the_same_joints_under_other_names_are_counted_across_splits(tmp_path: Path, config: PipelineConfig) -> None:
    ids = ["a02_s01_e00_v01", "a02_s01_e00_v02", "a02_s01_e00_v03", "a02_s02_e00_v03"]
    root = write_clips(tmp_path / "raw", dict(zip(ids, [FRAMES[0], FRAMES[1], FRAMES[0], FRAMES[3]], strict=True)))
    _, found = indexed("nw-ucla", root, tmp_path / "work", config, only_present=True, deep=True)
    assert found.doubles == [
        "1 skeletons are another sample's, byte by byte (a02_s01_e00_v01 and a02_s01_e00_v03); 1 test samples of xview "
        "have their double in training"
    ]
    assert found.errors() == []
    _, found = indexed("nw-ucla", root, tmp_path / "work", config, only_present=True)
    assert found.doubles == []


def test_the_same_video_is_found_but_not_other_frames_of_it(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    spans = {
        "a": ("1.avi", 0, 9),
        "b": ("1.avi", 9, 18),
        "c": ("2.avi", 0, 9),
        "d": ("3.avi", 0, 9),
        "e": ("1.avi", 9, 18),
    }
    entries = [
        {"sample_id": name, "video": video, "start_frame": start, "end_frame": end, "split_x": "test" if name in "ae" else "train"}
        for name, (video, start, end) in spans.items()
    ]  # fmt: skip
    own(root, entries, "csv")
    for name, content in (("1", b"one"), ("2", b"one"), ("3", b"two")):
        (root / f"{name}.avi").write_bytes(AVI + content)
    _, found = indexed("generic", root, tmp_path / "work", config, allow_missing=True, deep=True)
    assert found.doubles == [
        "2 videos are another sample's, byte by byte (a and c, …); 2 test samples of x have their double in training"
    ]


def test_of_many_benchmarks_one_is_named(tmp_path: Path, config: PipelineConfig) -> None:
    splits = {f"split_x{n}": ("train", "test", "test" if n == 4 else "") for n in range(60)}
    entries = [
        {"sample_id": name, "video": f"{name}.avi", **{column: sides[at] for column, sides in splits.items()}}
        for at, name in enumerate("abc")
    ]
    root = own(tmp_path / "raw", entries, "csv")
    for name in "abc":
        (root / f"{name}.avi").write_bytes(AVI)
    _, found = indexed("generic", root, tmp_path / "work", config, allow_missing=True, deep=True)
    assert found.doubles == [
        "2 videos are another sample's, byte by byte (a and b); up to 2 test samples of 60 benchmarks (x4, …) have their "
        "double in training"
    ]


@pytest.mark.slow
def test_nw_ucla_has_its_95_pairs(shared: Path, tmp_path: Path, config: PipelineConfig) -> None:
    root = write_clips(tmp_path / "raw", clips(shared))
    _, found = indexed("nw-ucla", root, tmp_path / "work", config, deep=True)
    assert found.doubles == [
        "95 skeletons are another sample's, byte by byte (a02_s01_e00_v02 and a02_s01_e00_v03, …); 95 test samples of "
        "xview have their double in training"
    ]
