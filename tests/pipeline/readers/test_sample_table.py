"""Tables of custom samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.recipe import PipelineConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import split_counts
from support.indexing import AVI, indexed, own, refused, rows


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_own_table_becomes_rows(tmp_path: Path, config: PipelineConfig, kind: str) -> None:
    entries = [
        {"sample_id": "b", "video": "v.avi", "start_frame": 10, "end_frame": 20, "skeleton": "b.npy", "label": 10, "subject": 3, "view": 2, "split_mine": "test"},
        {"sample_id": "a", "video": "v.avi", "start_frame": 0, "end_frame": 10, "skeleton": None, "label": 9, "subject": None, "view": 2, "split_mine": "train"},
        {"sample_id": "c", "video": None, "start_frame": None, "end_frame": None, "skeleton": "b.npy", "label": None, "subject": 1, "view": None, "split_mine": None},
    ]  # fmt: skip
    root = own(tmp_path / "own", entries, kind)
    (root / "v.avi").write_bytes(AVI)
    np.save(root / "b.npy", np.zeros((3, 25, 3)))
    index, found = indexed("generic", root, tmp_path / "w", config)
    assert found.errors() == []
    assert index.classes == ("9", "10")
    made = rows(index)
    assert [(made[s]["label"], made[s]["subject"], made[s]["start_frame"]) for s in "abc"] == [(0, None, 0), (1, 3, 10), (-1, 1, None)]  # fmt: skip
    assert made["a"]["camera"] == "view2"
    assert [dict(made[s]["splits"]) for s in "abc"] == [{"mine": "train"}, {"mine": "test"}, {}]
    assert split_counts(index) == {"mine": {"train": 1, "test": 1}}


def test_whole_numbers_that_a_table_holds_as_floats_are_taken(tmp_path: Path, config: PipelineConfig) -> None:
    entries = [{"sample_id": "a", "view": 1.0, "label": 10.0}, {"sample_id": "b", "view": None, "label": 9.0}]
    index, _ = indexed("generic", own(tmp_path / "own", entries, "parquet"), tmp_path / "w", config)
    assert index.classes == ("9", "10")
    assert rows(index)["a"]["view"] == 1


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "own"
    root.mkdir()
    (root / "samples.csv").write_bytes(b"\xef\xbb\xbfsample_id,label\na,x\n")
    assert set(rows(indexed("generic", root, tmp_path / "w", config)[0])) == {"a"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sample_id,view\na,1\n\nb,x\n", "samples.csv:4: view = 'x' is not a whole number; write its digits, or leave the cell empty"),
        ("sample_id,start_frame\na,1.5\n", "samples.csv:2: start_frame = '1.5' is not a whole number; write its digits, or leave the cell empty"),
        ("sample_id,label\na,1\n,2\n", "samples.csv:3: no sample_id; every row needs one"),
        ("foo,label\na,1\n", "samples.csv:1: unknown column 'foo'; known: sample_id, video, start_frame, end_frame, skeleton, label, subject, view, camera, split_<benchmark>"),
        ("sample_id,vido\na,v\n", "samples.csv:1: unknown column 'vido'; did you mean 'video'?"),
        ("sample_id,subject\na,100000\n", "samples.csv:2: subject = 100000 is out of range; expected less than 32768"),
        ("sample_id,end_frame\na,99999999999\n", "samples.csv:2: end_frame = 99999999999 is out of range; expected less than 2147483648"),
        ("sample_id,split_x\na,train\nb,val\n", "samples.csv:3: split_x = 'val'; use train, test or leave it empty"),
        ("sample_id\na\nb\na\n", "samples.csv:4: sample_id 'a' was used in 2 already; ids must be unique"),
    ],
)  # fmt: skip
def test_mistakes_in_an_own_table_are_shown_with_file_and_line(
    tmp_path: Path, config: PipelineConfig, text: str, expected: str
) -> None:
    root = tmp_path / "own"
    root.mkdir()
    (root / "samples.csv").write_text(text)
    assert refused("generic", root, config) == f"{root}/{expected}"


def test_a_mistake_in_an_own_parquet_is_shown_with_its_row(tmp_path: Path, config: PipelineConfig) -> None:
    root = own(tmp_path / "own", [{"sample_id": "a", "view": "1"}, {"sample_id": "b", "view": "x"}], "parquet")
    assert (
        refused("generic", root, config)
        == f"{root}/samples.parquet:2: view = 'x' is not a whole number; write its digits, or leave the cell empty"
    )
    (root / "samples.parquet").write_bytes(b"PAR1 no")
    assert refused("generic", root, config).startswith(f"{root}/samples.parquet: not a table of samples (")


def test_a_folder_without_a_table_says_which_columns_to_write(tmp_path: Path, config: PipelineConfig) -> None:
    (tmp_path / "own").mkdir()
    text = refused("generic", tmp_path / "own", config)
    assert text.startswith(f"{tmp_path / 'own'} holds neither samples.csv nor samples.parquet; write a table with")
    assert "only sample_id is required" in text


def test_missing_own_files_are_noted_and_impossible_spans_become_problem_rows(
    tmp_path: Path, config: PipelineConfig
) -> None:
    entries = [
        {"sample_id": "gone", "video": "none.avi", "start_frame": "", "end_frame": "", "skeleton": "none.npy"},
        {"sample_id": "back", "video": "v.avi", "start_frame": 5, "end_frame": 5, "skeleton": ""},
        {"sample_id": "early", "video": "v.avi", "start_frame": -3, "end_frame": 5, "skeleton": "e.npy"},
    ]
    root = own(tmp_path / "own", entries, "csv")
    (root / "v.avi").write_bytes(AVI)
    (root / "e.npy").write_bytes(b"")
    with pytest.raises(
        StageError,
        match=r"1 videos missing \(gone: none.avi does not exist in .*; 1 skeletons missing .*none.npy.* Correct the table, "
        "or continue with --allow-missing",
    ):
        indexed("generic", root, tmp_path / "w", config)
    index, found = indexed("generic", root, tmp_path / "w", config, allow_missing=True)
    assert found.missing_videos == found.missing_skeletons == ["gone"]
    assert found.empty == ["e.npy"]
    assert found.notes()[-1] == "2 impossible samples (early: start_frame -3 is negative; the first frame is 0, …)"
    made = rows(index)
    assert (made["gone"]["video"], made["gone"]["skeleton"]) == (None, None)
    assert made["back"]["problem"] == "start_frame 5 is not before end_frame 5"
    assert made["early"]["problem"] == "start_frame -3 is negative; the first frame is 0"


def test_an_own_layout_lies_in_the_data_folder(tmp_path: Path, config: PipelineConfig) -> None:
    root = own(tmp_path / "own", [{"sample_id": "a"}], "csv")
    (root / "stick.toml").write_text('names = ["a", "b"]\nparents = ["a", "a"]\ndims = 2\n')
    index, _ = indexed("generic", root, tmp_path / "w", config, layout="stick.toml")
    assert (index.layout.names, index.layout.dims) == (("a", "b"), 2)
    assert "unknown joint layout 'none'" in refused("generic", root, config, layout="none")


@pytest.mark.parametrize("path", ["../outside.avi", "/tmp/outside.avi", "a/../../b.avi"])
@pytest.mark.parametrize("column", ["video", "skeleton"])
def test_a_path_that_leads_out_of_the_data_folder_is_refused(tmp_path, path, column):
    (tmp_path / "samples.csv").write_text(f"sample_id,{column}\na,{path}\n")
    with pytest.raises(DataError, match=rf"samples.csv:2: {column} = .* is outside the data folder"):
        build(
            load_dataset("generic"),
            tmp_path,
            tmp_path / "w",
            load_recipe("debug").pipeline,
            recipe="debug",
            layout="kinect_v2",
        )
