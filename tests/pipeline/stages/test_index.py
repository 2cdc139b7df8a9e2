"""The index stage: permissions, limits and shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import StageError
from c2vl_manifests.recipe import PipelineConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.workspace import load, split_counts
from support.indexing import AVI, indexed, own, refused, rows


def test_allow_missing_keeps_every_promised_sample(part: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, allow_missing=True)
    assert (found.expected, found.with_video, found.with_skeleton) == (32, 31, 30)
    gone, half = rows(index)["S001C001P001R001A001"], rows(index)["S001C001P001R001A002"]
    assert (gone["video"], gone["skeleton"], half["skeleton"]) == (None, None, None)
    assert half["video"] is not None
    assert len(found.errors()) == 3


def test_only_present_promises_what_has_a_video_or_a_skeleton(
    part: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, only_present=True)
    assert found.expected == 31
    assert "S001C001P001R001A001" not in rows(index)
    assert rows(index)["S001C001P001R001A002"]["skeleton"] is None
    assert found.missing_videos == found.missing_skeletons == []


def test_a_limit_keeps_the_first_samples_and_asks_only_for_their_files(
    part: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, only_present=True, limit=5)
    assert (found.expected, index.table.num_rows) == (5, 5)
    next(part.rglob("S001C001P001R001A004_rgb.avi")).unlink()
    text = refused("synthetic", part, config, limit=3)
    assert text.startswith(
        f"{part}: 1 videos missing (S001C001P001R001A001); 2 skeletons missing (S001C001P001R001A001, …); of 3 expected"
    )
    shutil.copy(next(part.rglob("S001C001P002R001A001_rgb.avi")), part / "S001C001P001R001A001_rgb.avi")
    for name in ("S001C001P001R001A001", "S001C001P001R001A002"):
        shutil.copy(next(part.rglob("S001C001P002R001A001.skeleton")), part / f"{name}.skeleton")
    _, found = indexed("synthetic", part, tmp_path / "w2", config, limit=3)
    assert found.missing_videos == []
    assert "Synthetic" in refused("synthetic", part, config, limit=4)


def test_a_work_folder_without_an_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        load(tmp_path)
    assert (
        str(caught.value)
        == f"{tmp_path} holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work {tmp_path}` first"
    )


def test_the_same_index_is_not_written_twice_and_another_is(raw: Path, tmp_path: Path, config: PipelineConfig) -> None:
    work = tmp_path / "w"
    first, _ = indexed("synthetic", raw, work, config)
    written = (work / "samples.parquet").stat().st_mtime_ns
    again, _ = indexed("synthetic", raw, work, config)
    assert (work / "samples.parquet").stat().st_mtime_ns == written
    assert again.manifest == first.manifest
    fewer, _ = indexed("synthetic", raw, work, config, limit=9)
    assert fewer.table.num_rows == load(work).table.num_rows == 9


def test_the_real_utd_folder_is_complete(shared: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("utd-mhad", shared / "utd_mhad", tmp_path / "w", config)
    assert found.errors() == []
    assert split_counts(index) == {"xsub": {"train": 431, "test": 430}}
    assert index.layout.name == "kinect_v1"


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_shards_cover_all_samples_and_never_split_a_video(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(size)
    entries = [{"sample_id": f"s{n:02d}", "video": f"v{int(rng.integers(6))}.avi" if n % 5 else ""} for n in range(40)]
    root = own(tmp_path / "own", entries, "csv")
    for n in range(6):
        (root / f"v{n}.avi").write_bytes(AVI)
    config = load_recipe("debug", [f"pipeline.shard_samples={size}"]).pipeline
    index, _ = indexed("generic", root, tmp_path / "w", config)
    assert index.shard_ranges[0][0] == 0
    assert index.shard_ranges[-1][1] == 40
    assert all(a[1] == b[0] for a, b in zip(index.shard_ranges, index.shard_ranges[1:], strict=False))
    owner: dict[str, int] = {}
    for number in range(len(index.shard_ranges)):
        shard = index.shard(number)
        assert len(shard) >= min(size, 40) or number == len(index.shard_ranges) - 1
        for sample in shard:
            if sample["video"]:
                assert owner.setdefault(sample["video"], number) == number
    assert len(owner) == 6
