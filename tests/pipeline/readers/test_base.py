"""Files found by the ids of their samples, and the slots of their bodies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.readers.base import Assembled, people_first
from c2vl_pipeline.workspace import split_counts
from support.indexing import AVI, indexed, rows

MP4 = b"\0\0\0\x08ftyp\0\0\0\x08mdat\0\0\0\x08moov"
"""The smallest files whose first bytes say nothing of damage."""


def test_the_colour_video_is_preferred_to_the_depth_video(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "utd"
    for folder in ("Depth_video", "RGB", "Skeleton"):
        (root / folder).mkdir(parents=True)
    for name in ("a1_s1_t1", "a1_s2_t1"):
        (root / "Depth_video" / f"{name}_depth.mp4").write_bytes(MP4)
        (root / "Skeleton" / f"{name}_skeleton.mat").write_bytes(b"x")
    (root / "RGB" / "a1_s1_t1_color.avi").write_bytes(AVI)
    index, found = indexed("utd-mhad", root, tmp_path / "w", config, only_present=True)
    assert rows(index)["a1_s1_t1"]["video"] == "RGB/a1_s1_t1_color.avi"
    assert rows(index)["a1_s2_t1"]["video"] == "Depth_video/a1_s2_t1_depth.mp4"
    assert found.unexpected == []
    assert split_counts(index) == {"xsub": {"train": 1, "test": 1}}


@pytest.mark.parametrize(("used", "bodies"), [([], 0), ([0], 1), ([1], 2), ([0, 2], 3)])
def test_bodies_are_slots_up_to_the_last_that_is_used(used: list[int], bodies: int) -> None:
    joints = np.zeros((4, 3, 25, 3), np.float32)
    joints[1:, used] = 1
    assert Assembled(joints, np.arange(4, dtype=np.int32), 4).bodies == bodies
    order = [*used, *(slot for slot in range(3) if slot not in used)]
    np.testing.assert_array_equal(people_first(joints), joints[:, order])
