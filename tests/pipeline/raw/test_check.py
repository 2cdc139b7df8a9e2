"""Findings about a raw folder: missing, damaged and unexpected files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.raw.check import IncompleteDataError
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import split_counts
from support.indexing import AVI, doubtful, indexed, pku_labels, refused, rows


def test_a_whole_folder_raises_no_doubt(raw: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("synthetic", raw, tmp_path / "w", config)
    assert found.errors() == []
    assert (found.expected, found.with_video, found.with_skeleton, found.known_missing) == (32, 32, 32, 0)
    assert index.recipe == "debug"
    assert split_counts(index) == {"xsub": {"train": 16, "test": 16}, "xview": {"train": 16, "test": 16}}
    for sample, row in rows(index).items():
        assert (raw / row["video"]).name == f"{sample}_rgb.avi"
        assert (raw / row["skeleton"]).name == f"{sample}.skeleton"
        assert row["label"] == int(sample[-3:]) - 1
        assert row["camera"] == sample[:8]


def test_missing_and_empty_files_are_counted_with_the_ways_on(part: Path, config: PipelineConfig) -> None:
    text = refused("synthetic", part, config)
    assert text.startswith(
        f"{part}: 1 videos missing (S001C001P001R001A001); 2 skeletons missing (S001C001P001R001A001, …); 1 empty files ("
    )
    assert "S001C002P001R001A003_rgb.avi); of 32 expected samples of Synthetic (NTU format). " in text
    assert text.endswith(
        "Complete the download, or continue with --allow-missing (rows state what is missing) or --only-present (expect only what is there)"
    )


def test_unexpected_files_are_named_and_do_not_stop(raw: Path, tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    (root / "deep").mkdir()
    (root / "deep" / "S009C001P001R001A001_rgb.avi").write_bytes(AVI)
    (root / "notes.txt").write_text("x")
    _, found = indexed("synthetic", root, tmp_path / "w", config)
    assert found.errors() == []
    assert found.notes() == ["1 unexpected files (deep/S009C001P001R001A001_rgb.avi)"]


@pytest.mark.slow
def test_a_folder_without_a_sample_or_no_folder_says_what_was_expected(tmp_path: Path, config: PipelineConfig) -> None:
    (tmp_path / "raw").mkdir()
    text = refused("utd-mhad", tmp_path / "raw", config, only_present=True)
    assert text == (
        f"{tmp_path / 'raw'} holds no sample of UTD-MHAD; expected files ending in _color.avi, _depth.mp4, _skeleton.mat somewhere below it"
    )
    text = refused("ntu60", tmp_path / "none", config)
    assert text == f"raw folder {tmp_path / 'none'} does not exist; give the folder of NTU RGB+D 60 with --data"
    text = refused("ntu60", tmp_path / "raw", config)
    assert "56,880 videos missing (S001C001P001R001A001, …); 56,578 skeletons missing" in text


@pytest.mark.slow
def test_a_part_of_ntu_keeps_known_missing_skeletons_apart(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("S001C002P005R002A008", "S001C001P001R001A001"):
        (root / f"{name}_rgb.avi").write_bytes(AVI)
    (root / "S001C001P001R001A001.skeleton").write_text("0\n")
    index, found = indexed("ntu60", root, tmp_path / "w", config, only_present=True)
    assert (found.expected, found.known_missing) == (2, 1)
    assert rows(index)["S001C002P005R002A008"]["known_missing"]
    assert split_counts(index)["xview"] == {"train": 0, "test": 1}


def test_what_is_missing_is_counted_by_camera_subject_and_class(whole: Path, config: PipelineConfig) -> None:
    for path in whole.rglob("S001C002P00[12]R001A00[34]_rgb.avi"):
        path.unlink()
    found = doubtful("synthetic", whole, config)
    assert len(found.missing_videos) == 4
    assert found.lacks == [
        ("videos", "camera", "C002: 4 of 16"),
        ("videos", "subject", "P001: 2 of 8; P002: 2 of 8"),
        ("videos", "class", "class 2: 2 of 8; class 3: 2 of 8"),
    ]


def test_a_whole_missing_setup_is_said_and_long_lists_are_cut(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    dataset = load_dataset("ntu60")
    assert dataset.sessions is not None
    sessions = dataset.sessions.model_copy(update={"actions": (1, 2)})
    dataset = dataset.model_copy(update={"sessions": sessions})
    lost = [n for n in dataset.expected_ids() if n.startswith("S007") and n not in dataset.known_missing()]
    for name in dataset.expected_ids():
        if not name.startswith("S007"):
            (root / f"{name}.skeleton").write_text("0\n")
    with pytest.raises(IncompleteDataError) as caught:
        build(dataset, root, tmp_path / "w", config, recipe="debug")
    found = caught.value.findings
    assert found.missing_skeletons == lost
    lacks = {(kinds, by): text for kinds, by, text in found.lacks}
    assert lacks["skeletons", "setup"] == f"S007: {len(lost)} of {len(lost)}"
    assert lacks["videos", "setup"] == "all 17"
    assert lacks["skeletons", "subject"].startswith("P026: 12 of 12; P028: ")
    assert lacks["skeletons", "subject"].endswith("; and 6 more")
    assert lacks["skeletons", "class"].startswith("A00")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"RIFF\xe8\x03\0\0AVI LIST", "16 of 1,008 bytes"),
        (b"<html>404 Not Found</html>", "not a video; it begins with b'<html>404 No'"),
        (b"\0" * 64, "not a video; it begins with NUL bytes"),
        (b"RI", "not a video; it begins with b'RI'"),
    ],
)
def test_an_avi_that_is_cut_or_none_is_doubted(whole: Path, config: PipelineConfig, content: bytes, why: str) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    path.write_bytes(content)
    found = doubtful("synthetic", whole, config)
    assert [line.startswith(f"{path.relative_to(whole)}: {why}") for line in found.truncated] == [True]
    assert (found.small, found.empty, found.missing_videos) == ([], [], [])


def test_a_file_far_below_its_cameras_median_is_doubted(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    text = path.read_text()
    path.write_text(text[:40])
    found = doubtful("synthetic", whole, config)
    assert [line.split(": ")[0] for line in found.small] == [str(path.relative_to(whole))]
    path.write_text(text[: len(text) // 4])  # clips differ in length
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.errors() == []


def test_deep_reads_skeleton_files_to_their_end(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    text = path.read_text()
    path.write_text(text[: len(text) * 3 // 4])
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.errors() == []
    found = doubtful("synthetic", whole, config, deep=True)
    assert [line.split(":")[0] for line in found.truncated] == [str(path.relative_to(whole))]
    path.write_text(text)
    assert indexed("synthetic", whole, whole.parent / "w", config, deep=True)[1].errors() == []


def test_archives_are_looked_into(whole: Path, config: PipelineConfig) -> None:
    gone = sorted(whole.rglob("S001C001P00?R001A001_rgb.avi"))
    good, cut, foreign = (whole / name for name in ("rgb.zip", "cut.zip", "thesis.zip"))
    with zipfile.ZipFile(good, "w") as archive:
        for path in gone:
            archive.write(path, f"nturgb+d_rgb/{path.name}")
            path.unlink()
    cut.write_bytes(good.read_bytes()[: good.stat().st_size * 6 // 10])
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("chapter.txt", "x")
    (whole / "rest.zip.part").write_bytes(b"x")
    found = doubtful("synthetic", whole, config)
    command = f"unzip {good} -d {whole}"
    assert found.packed == [f"rgb.zip: holds {len(gone)} missing files; unpack it: `{command}`"]
    assert found.damaged == ["cut.zip: File is not a zip file"]
    assert found.unfinished == ["rest.zip.part"]
    data = bytearray(good.read_bytes())
    data[len(data) // 2] ^= 255
    good.write_bytes(data)
    assert len(doubtful("synthetic", whole, config).damaged) == 1
    assert any("does not match its checksum" in line or "rgb.zip" in line for line in doubtful("synthetic", whole, config, deep=True).damaged)  # fmt: skip
    assert len(doubtful("synthetic", whole, config, deep=True).damaged) == 2


def test_a_doubt_is_passed_by_both_permissions(whole: Path, config: PipelineConfig) -> None:
    next(whole.rglob("S001C001P001R001A001_rgb.avi")).write_bytes(b"RIFF\xe8\x03\0\0AVI LIST")
    for how in ("allow_missing", "only_present"):
        index, found = indexed("synthetic", whole, whole.parent / how, config, **{how: True})
        assert index.table.num_rows == 32
        assert found.errors()[0].startswith("1 damaged or truncated files (")


@pytest.mark.slow
def test_a_pku_label_file_too_few_or_a_row_too_few_is_doubted(tmp_path: Path, config: PipelineConfig) -> None:
    names = list(load_dataset("pku-mmd-2").expected_recordings())
    root = tmp_path / "pku"
    pku_labels(root, dict.fromkeys(names, [1] * 6))
    assert doubtful("pku-mmd-2", root, config).too_few == ("6,054 rows in all label files, 6,952 were published")
    (root / "Label" / f"{names[7]}.txt").unlink()
    assert doubtful("pku-mmd-2", root, config).labels == [f"{names[7]}.txt"]
