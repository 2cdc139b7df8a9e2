"""Files that a table names: a path without a file is shown, with the near file that is there."""

from __future__ import annotations

import os
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.raw.scan import scan_folder
from c2vl_pipeline.readers.base import near_path
from support.indexing import doubtful, indexed, refused, rows

THERE = ("joints/Anna/wave_01.npy", "joints/bob/wave_01.npy", "joints/Zoë/gehen.npy", "clips/ Take 1.avi")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    for name in THERE:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / "x.npy", np.ones((3, 25, 3)))
        (root / "x.npy").rename(root / name)
    return root


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("joints\\bob\\wave_01.npy", THERE[1]),
        ("Joints/BOB/Wave_01.NPY", THERE[1]),
        (unicodedata.normalize("NFD", THERE[2]), THERE[2]),
        ("C:\\Users\\me\\data\\joints\\Anna\\wave_01.npy", THERE[0]),
        ("clips/Take 1.avi ", THERE[3]),
        ("'gehen.npy'", THERE[2]),
        ("joints/Zoë/gehen.npz", THERE[2]),
        ("elsewhere.npy", None),
    ],
)
def test_the_near_file_is_found(folder: Path, name: str, near: str | None) -> None:
    assert near_path(name, scan_folder(folder, ()).others) == near


def test_the_line_names_the_path_and_the_near_file_and_no_download(folder: Path, config: PipelineConfig) -> None:
    (folder / "samples.csv").write_text("sample_id,skeleton\na,joints/bob/wave_01.npy\nb,joints\\Anna\\wave_01.npy\n")
    found = doubtful("generic", folder, config)
    assert found.missing_skeletons == ["b"]
    assert found.absent == {"skeleton": f"b: joints\\Anna\\wave_01.npy does not exist; is {THERE[0]} meant?"}
    assert found.errors() == [f"1 skeletons missing ({found.absent['skeleton']})"]


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("skeleton", "joints/link.npy", "is a link to /gone/x.npy, which does not exist"),
        ("video", "disk/day 1/a.avi", "is below disk, a link to ../unmounted, which does not exist"),
        ("skeleton", "joints/bob", "is a folder; name a file, or a folder of OpenPose's JSON files"),
        ("video", "clips/", "is a folder; name a file"),
        ("video", "clips/pipe.avi", "is a pipe or a device; name a file"),
        ("video", "clips/wave_01.mp4", "does not exist in {root}"),
        ("skeleton", "joints/take 1.npy", "does not exist in {root}"),
        ("video", "clips/Take 1.mkv", "does not exist; is clips/ Take 1.avi meant?"),
        ("skeleton", "joints/sit.npy", "does not exist; is joints/sit (1).npy meant?"),
        ("skeleton", "joints/run.npy", "does not exist; is joints/Copy of run.npy meant?"),
        ("skeleton", "joints/hop.npy", "does not exist; is joints/hop - Kopie (2).npy meant?"),
        ("skeleton", "joints/jump.npy", "does not exist; is joints/.jump.npy.icloud meant?"),
        ("skeleton", "joints/bow.npy", "does not exist; is joints/bow.npy.part meant?"),
    ],
)
def test_why_a_path_names_no_file(folder: Path, config: PipelineConfig, kind: str, name: str, why: str) -> None:
    (folder / "joints" / "link.npy").symlink_to("/gone/x.npy")
    (folder / "disk").symlink_to("../unmounted")
    os.mkfifo(folder / "clips" / "pipe.avi")
    for other in ("sit (1).npy", "Copy of run.npy", "hop - Kopie (2).npy", ".jump.npy.icloud", "bow.npy.part"):
        (folder / "joints" / other).write_bytes(b"x")
    (folder / "samples.csv").write_text(f"sample_id,{kind}\na,{name}\n")
    assert doubtful("generic", folder, config).absent == {kind: f"a: {name} {why.format(root=folder)}"}


@pytest.mark.parametrize("archive", ["joints.zip", "bow.tgz", "wave_02.7z"])
def test_no_near_file_is_named_where_an_archive_is_the_cause(
    folder: Path, config: PipelineConfig, archive: str
) -> None:
    with zipfile.ZipFile(folder / archive, "w"):
        pass
    for name, near in (("joints/bow.npy", None), ("wave_02.npy", None), ("Joints/anna/Wave_01.npy", THERE[0])):
        (folder / "samples.csv").write_text(f"sample_id,skeleton\na,{name}\n")
        found = doubtful("generic", folder, config)
        assert found.absent["skeleton"].endswith(f"is {near} meant?" if near else f"not exist in {folder}")
        assert found.hints[0].startswith(f"unpack {archive}, ")


@pytest.mark.parametrize("word", ["nan", "NA", "None"])
def test_a_word_for_nothing_names_no_file_and_is_noted(folder: Path, config: PipelineConfig, word: str) -> None:
    (folder / "samples.csv").write_text(f"sample_id,skeleton,video\na,{THERE[0]},{word}\nb,{word},\n")
    index, found = indexed("generic", folder, folder.parent / "w", config)
    assert found.errors() == []
    assert found.notes()[0].startswith("2 cells that name no file (")
    assert f" of {'b' if 'skeleton of' in found.notes()[0] else 'a'}: {word}, …)" in found.notes()[0]
    assert (rows(index)["a"]["video"], rows(index)["a"]["camera"], rows(index)["b"]["skeleton"]) == (None, "", None)


def test_a_whole_path_that_leads_into_the_folder_is_taken(folder: Path, config: PipelineConfig) -> None:
    (folder / "samples.csv").write_text(f"sample_id,skeleton\na,{folder / THERE[0]}\n")
    index, found = indexed("generic", folder, folder.parent / "w", config)
    assert (found.errors(), rows(index)["a"]["skeleton"]) == ([], THERE[0])


@pytest.mark.parametrize("name", ["OWN", "own ", "Own\\"])
def test_a_raw_folder_that_nearly_exists_is_named(folder: Path, config: PipelineConfig, name: str) -> None:
    assert f"(is {folder} meant?)" in refused("generic", folder.parent / name, config)


def test_a_file_may_be_called_nan(folder: Path, config: PipelineConfig) -> None:
    np.save(folder / "nan.npy", np.ones((3, 25, 3)))
    (folder / "nan.npy").rename(folder / "nan")
    (folder / "samples.csv").write_text("sample_id,skeleton\na,nan\n")
    assert rows(indexed("generic", folder, folder.parent / "w", config)[0])["a"]["skeleton"] == "nan"


@pytest.mark.parametrize("name", ["samples.xlsx", "Samples.CSV", "samples.csv.txt", "sample.csv", "samples (1).csv", "Copy of samples.csv", "samples - Kopie.csv",
     "my_samples.xlsx", "Samples_final.ods", ".samples.csv.icloud", "samples.csv.crdownload"])  # fmt: skip
def test_a_table_under_another_name_is_named(folder: Path, config: PipelineConfig, name: str) -> None:
    (folder / name).write_text("sample_id\na\n")
    assert f"(but {name}: " in refused("generic", folder, config)


@pytest.mark.parametrize("name", ["samples.csv", "samples.parquet", "a b/samples.csv"])
def test_a_table_in_a_folder_below_is_named(folder: Path, config: PipelineConfig, name: str) -> None:
    path = folder / "my clips" / name
    path.parent.mkdir(parents=True)
    path.write_text("sample_id\na\n")
    assert f"(but my clips/{name}: give --data {path.parent})" in refused("generic", folder, config)


@pytest.mark.parametrize("name", ["~$samples.xlsx", ".~lock.samples.csv#", "sample.avi/x", "clips/samples.xlsx"])
def test_a_lock_of_a_table_is_no_table(folder: Path, config: PipelineConfig, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert "(but " not in refused("generic", folder, config)


def test_of_two_tables_the_one_that_is_read_is_named(folder: Path, config: PipelineConfig) -> None:
    pq.write_table(pa.table({"sample_id": ["a"], "skeleton": [THERE[0]]}), folder / "samples.parquet")
    note = "samples.parquet is read, and samples.csv beside it is not"
    assert note not in indexed("generic", folder, folder.parent / "w", config)[1].notes()
    (folder / "samples.csv").write_text(f"sample_id,skeleton\nb,{THERE[1]}\n")
    index, found = indexed("generic", folder, folder.parent / "w2", config)
    assert set(rows(index)) == {"a"}
    assert note in found.notes()


def test_a_table_that_is_a_link_to_nowhere_is_called_so(folder: Path, config: PipelineConfig) -> None:
    (folder / "samples.csv").symlink_to("../elsewhere.csv")
    assert "(but samples.csv, a link that leads nowhere)" in refused("generic", folder, config)
