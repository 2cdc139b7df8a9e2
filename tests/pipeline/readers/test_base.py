"""Files found by the ids of their samples."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.recipe import PipelineConfig
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
