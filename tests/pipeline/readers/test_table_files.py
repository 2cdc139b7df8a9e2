"""Files that a table names: a path without a file is shown, with the near file that is there."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize("name", ["samples.xlsx", "Samples.CSV", "samples.csv.txt", "sample.csv"])
def test_a_table_under_another_name_is_named(folder: Path, config: PipelineConfig, name: str) -> None:
    (folder / name).write_text("sample_id\na\n")
    assert f"(but {name}: " in refused("generic", folder, config)
