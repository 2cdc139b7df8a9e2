"""Scan of a raw folder: links, copies and cut files."""

from __future__ import annotations

import shutil
from pathlib import Path

from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.raw.scan import check_video_header, scan_folder
from support.indexing import indexed


def test_every_cut_of_a_real_avi_is_doubted(whole: Path) -> None:
    path = next(whole.rglob("*_rgb.avi"))
    size = path.stat().st_size
    assert check_video_header(str(path), size) is None
    data = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: int(size * share)])
        assert check_video_header(str(path), path.stat().st_size) == f"{int(size * share):,} of {size:,} bytes"


def test_every_cut_of_a_real_mp4_is_doubted(shared: Path, tmp_path: Path) -> None:
    for path in sorted((shared / "utd_mhad" / "Depth_video").iterdir())[:3]:
        data = path.read_bytes()
        assert check_video_header(str(path), len(data)) is None
        for share in (0.01, 0.3, 0.6, 0.9, 0.999):
            cut = tmp_path / "cut.mp4"
            cut.write_bytes(data[: int(len(data) * share)])
            assert check_video_header(str(cut), cut.stat().st_size) is not None


def test_links_are_followed_once_and_links_to_nowhere_are_missing(whole: Path, config: PipelineConfig) -> None:
    (whole / "again").symlink_to(whole)
    (whole / "S001C001P009R001A001_rgb.avi").symlink_to(whole / "nowhere")
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.errors() == found.notes() == []


def test_a_second_copy_of_a_file_is_a_note(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    (whole / "zz").mkdir()
    shutil.copy(path, whole / "zz")
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.notes() == [f"1 unexpected files (zz/{path.name}: as {path.relative_to(whole)})"]


def test_a_link_in_a_loop_is_no_file_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "S001C001P001R001A001_rgb.avi").symlink_to(tmp_path / "S001C001P001R001A001_rgb.avi")
    (tmp_path / "S001C001P001R001A002_rgb.avi").write_bytes(b"x")
    found = scan_folder(tmp_path, ("_rgb.avi",))
    assert [file.relative for file in found.files] == ["S001C001P001R001A002_rgb.avi"]
