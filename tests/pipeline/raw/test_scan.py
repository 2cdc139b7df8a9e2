"""Scan of a raw folder: links, copies and cut files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.raw.scan import check_ends, is_archive, list_zip, missing_bytes, scan_folder, unpack_command
from support.indexing import doubtful, indexed, rows
from support.video import cut, faststart, film, matroska

KINDS = [("x.avi", "XVID"), ("x.mkv", "FFV1"), ("x.webm", "VP80"), ("x.flv", "FLV1")]


def test_every_cut_of_a_real_avi_is_doubted(whole: Path) -> None:
    path = next(whole.rglob("*_rgb.avi"))
    size = path.stat().st_size
    assert check_ends(str(path), size) is None
    data = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: int(size * share)])
        assert check_ends(str(path), path.stat().st_size) == f"{int(size * share):,} of {size:,} bytes"


def test_every_cut_of_a_real_mp4_is_doubted(shared: Path, tmp_path: Path) -> None:
    for path in sorted((shared / "utd_mhad" / "Depth_video").iterdir())[:3]:
        data = path.read_bytes()
        assert check_ends(str(path), len(data)) is None
        for share in (0.01, 0.3, 0.6, 0.9, 0.999):
            cut = tmp_path / "cut.mp4"
            cut.write_bytes(data[: int(len(data) * share)])
            assert check_ends(str(cut), cut.stat().st_size) is not None


@pytest.mark.parametrize(("name", "codec"), KINDS)
def test_bytes_are_missing_from_a_cut_video_of_any_kind_and_from_no_whole_one(
    tmp_path: Path, name: str, codec: str
) -> None:
    path = film(tmp_path / name, codec=codec)
    assert missing_bytes(path) is None
    assert missing_bytes(cut(path)) is not None


def test_a_matroska_file_without_a_stated_length_is_whole(tmp_path: Path) -> None:
    path = matroska(tmp_path / "x.mkv", range(0, 900, 30))
    data = path.read_bytes()
    at = data.index(b"\x18\x53\x80\x67") + 4
    path.write_bytes(data[:at] + b"\x1f\xff\xff\xff" + data[at + 4 :])  # as a browser records
    assert check_ends(str(path), len(data)) is None
    assert missing_bytes(path) is None


def test_the_second_part_of_a_large_avi_counts(tmp_path: Path) -> None:
    path = film(tmp_path / "x.avi")
    part = b"RIFF" + (1000).to_bytes(4, "little") + b"AVIX" + b"x" * 996
    path.write_bytes(path.read_bytes() + part)
    assert missing_bytes(path) is None
    size = path.stat().st_size
    assert missing_bytes(cut(path, (size - 400) / size)) == f"{size - 400:,} of {size:,} bytes"


@pytest.mark.parametrize(("start", "stop"), [(20_000, None), (60_000, 80_000), (100_000, 140_000)])
def test_a_download_whose_parts_were_never_filled_lacks_bytes(tmp_path: Path, start: int, stop: int | None) -> None:
    path = film(tmp_path / "x.mkv", codec="FFV1")
    data = path.read_bytes()
    stop = stop or len(data)
    path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])
    assert missing_bytes(path) == "space was reserved for a part of it, and never filled"


def test_an_mp4_is_cut_but_not_by_what_a_camera_appends(tmp_path: Path) -> None:
    path = faststart(film(tmp_path / "x.mp4", codec="mp4v"))
    data = path.read_bytes()
    path.write_bytes(data + b"\xde\xad\xbe\xef\x01\x02\x03\x04" * 40)
    assert missing_bytes(path) is None
    path.write_bytes(data[:2800])
    assert missing_bytes(path) == f"2,800 of {len(data):,} bytes"


@pytest.mark.parametrize(
    ("name", "wrong", "codec"),
    [("x.ts", "x.mp4", "mp2v"), ("x.flv", "x.mp4", "FLV1"), ("x.wmv", "x.avi", "WMV2"), ("x.mpg", "x.mov", "mp1v")],
)
def test_a_video_under_the_name_of_another_kind_is_one(tmp_path: Path, name: str, wrong: str, codec: str) -> None:
    path = film(tmp_path / name, codec=codec).rename(tmp_path / wrong)
    assert check_ends(str(path), path.stat().st_size) is None


def test_a_picture_under_the_name_of_a_video_is_none(tmp_path: Path) -> None:
    for kind in (".png", ".jpg", ".bmp"):
        data = cv2.imencode(kind, np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
        (tmp_path / "x.mp4").write_bytes(data)
        damage = check_ends(str(tmp_path / "x.mp4"), len(data))
        assert damage is not None
        assert damage.startswith("not a video; it begins with")


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


@pytest.mark.parametrize("folder", [".old", "#1", "a/b/c", "@home"])
def test_of_two_files_of_one_name_the_visible_less_deep_one_is_read(
    whole: Path, config: PipelineConfig, folder: str
) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    wanted = str(path.relative_to(whole))
    other = whole / folder / "more" / path.name
    other.parent.mkdir(parents=True)
    other.write_bytes(b"an older version")
    index, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert rows(index)["S001C001P001R001A001"]["video"] == wanted
    assert found.notes() == [f"1 unexpected files ({other.relative_to(whole)}: as {wanted})"]


def test_a_file_that_lies_in_a_hidden_folder_alone_is_read(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    (whole / ".mine").mkdir()
    path.rename(whole / ".mine" / path.name)
    index, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert (rows(index)["S001C001P001R001A001"]["video"], found.notes()) == (f".mine/{path.name}", [])


def test_a_link_in_a_loop_is_no_file_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "S001C001P001R001A001_rgb.avi").symlink_to(tmp_path / "S001C001P001R001A001_rgb.avi")
    (tmp_path / "S001C001P001R001A002_rgb.avi").write_bytes(b"x")
    found = scan_folder(tmp_path, ("_rgb.avi",))
    assert [file.relative for file in found.files] == ["S001C001P001R001A002_rgb.avi"]


@pytest.mark.parametrize(
    "name",
    [
        "._A.skeleton", "a/.DS_Store", "a/Thumbs.db", "Desktop.ini", "labels/A01.txt~", "A.skeleton.bak", "x.orig",
        "__MACOSX/a/A.skeleton", "a/.ipynb_checkpoints/A.skeleton", "$RECYCLE.BIN/A.skeleton", ".Trash-1000/A.skeleton",
        "System Volume Information/x", "lost+found/1", "@eaDir/A.skeleton", "#recycle/A.skeleton", "@Recycle/a/A.skeleton",
        "#snapshot/daily/A.skeleton", ".snapshot/A.skeleton", ".snapshots/1/A.skeleton", ".zfs/snapshot/x/A.skeleton",
        ".@__thumb/A.skeleton", ".stversions/A~2024.skeleton", ".dropbox.cache/A.skeleton", ".Trashes/501/A.skeleton",
        ".Recycle_bin/A.skeleton", "RECYCLER/S-1-5/A.skeleton", ".sync/Archive/A.skeleton", ".@upload_cache/A.skeleton",
    ],
)  # fmt: skip
def test_what_systems_and_editors_leave_is_no_data(tmp_path: Path, name: str) -> None:
    for path in (tmp_path / name, tmp_path / "copy.bak" / "B.skeleton"):  # people name folders so
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    scan = scan_folder(tmp_path, (".skeleton", ".txt"))
    assert [file.relative for file in scan.files] == ["copy.bak/B.skeleton"]
    assert scan.others == []
    assert len(scan.system) == 1
    assert name.startswith(scan.system[0])


NUL = "NUL bytes, as after a full disk, a crash or an unfinished copy; copy it again"


@pytest.mark.parametrize("name", ["a.skeleton", "a.txt", "a.mat", "a.npy", "a.npz", "a.mp4", "a.mkv"])
def test_a_file_that_begins_with_nul_bytes_is_doubted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes(3000) + b"x")
    assert str(check_ends(str(path), 3001)).endswith(f"begins with {NUL}")


def test_a_file_whose_rest_is_nul_bytes_is_doubted_unless_it_may_be(whole: Path) -> None:
    skeleton, video = next(whole.rglob("*.skeleton")), next(whole.rglob("*.avi"))
    for path, kept in ((skeleton, 0.9), (video, 0.5), (video, 0.9)):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * kept)].ljust(len(data), b"\0"))
        assert check_ends(str(path), len(data)) == f"ends with {NUL}"
        path.write_bytes(data)
        assert check_ends(str(path), len(data)) is None
    joints = np.zeros((40, 25, 3))
    joints[:3] = 1
    np.save(whole / "a.npy", joints)
    assert check_ends(str(whole / "a.npy"), (whole / "a.npy").stat().st_size) is None


def test_nul_bytes_are_found_without_deep_and_named(whole: Path, config: PipelineConfig) -> None:
    skeleton, video = (next(whole.rglob(f"S001C001P001R001A001{end}")) for end in (".skeleton", "_rgb.avi"))
    for path in (skeleton, video):
        path.write_bytes(bytes(path.stat().st_size))
    found = doubtful("synthetic", whole, config)
    assert {line.split(": ")[0] for line in found.truncated} == {str(p.relative_to(whole)) for p in (skeleton, video)}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("a.zip", "unzip '/my data/a.zip' -d '/my data'"),
        ("a.tar.gz", "tar -xf '/my data/a.tar.gz' -C '/my data'"),
        ("A.TGZ", "tar -xf '/my data/A.TGZ' -C '/my data'"),
        ("a.7z", "7z x -o'/my data' '/my data/a.7z'"),
        ("a.z01", "7z x -o'/my data' '/my data/a'.zip"),
        ("a.zip.001", "7z x -o'/my data' '/my data/a.zip.001'"),
        ("a.part1.rar", "7z x -o'/my data' '/my data/a.part1.rar'"),
        ("a.tar.gz.partaa", "cat '/my data/a.tar.gz'.* > '/my data/a.tar.gz'"),
        ("a.skeleton.gz", "gunzip -k '/my data/a.skeleton.gz'"),
    ],
)
def test_an_archive_comes_with_the_command_that_unpacks_it(name: str, command: str) -> None:
    assert is_archive(name)
    assert unpack_command(Path("/my data") / name) == f"`{command}`"


@pytest.mark.parametrize("name", ["a.part2.rar", "a.002", "a.z02", "a.tar.gz.ab", "a.avi", "a.aa", "001"])
def test_later_parts_and_other_files_are_no_archives(name: str) -> None:
    assert not is_archive(name)


@pytest.mark.parametrize("place", ["", "nturgb+d_rgb", "disk"])
@pytest.mark.parametrize("above", ["/", "..", "../.."])
def test_a_link_to_a_folder_around_the_data_is_named_and_not_walked(
    whole: Path, tmp_path: Path, config: PipelineConfig, place: str, above: str
) -> None:
    disk = tmp_path / "elsewhere" / "mounted" / "disk"
    disk.mkdir(parents=True)
    (disk.parent / "S001C001P001R001A001.skeleton").write_text("of somebody else")
    (whole / "disk").symlink_to(disk)
    target = Path("/") if above == "/" else ((whole / place).resolve() / above).resolve()
    if target.is_relative_to(whole.resolve()):
        target = whole.resolve().parent
    (whole / place / "up").symlink_to(target)
    _, found = indexed("synthetic", whole, tmp_path / "w", config)
    name = str(Path(place, "up"))
    assert found.notes() == [f"1 links to folders that hold the data folder, not followed ({name})"]


def test_a_folder_on_another_disk_is_read_through_its_link(whole: Path, tmp_path: Path, config: PipelineConfig) -> None:
    expected = {row["sample_id"] for row in rows(indexed("synthetic", whole, tmp_path / "w", config)[0]).values()}
    moved = (whole / "nturgb+d_rgb").rename(tmp_path / "disk2")
    (whole / "nturgb+d_rgb").symlink_to(moved)
    (moved / "back").symlink_to(moved)  # a link to itself is walked once, as before
    index, found = indexed("synthetic", whole, tmp_path / "w2", config)
    assert found.errors() == []
    assert {s for s, row in rows(index).items() if row["video"]} == expected


def test_a_pipe_with_the_name_of_an_archive_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.zip")
    names, damage = list_zip(tmp_path / "a.zip", deep=True)
    assert not names
    assert damage is not None
    assert "a pipe, socket, device or folder" in damage
