"""Expected samples of a raw folder: own tables, PKU-MMD's label files, descriptions."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import DataError, StageError
from c2vl_manifests.recipe import PipelineConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import split_counts
from support.indexing import AVI, indexed, own, pku_labels, refused, rows

MP4 = b"\0\0\0\x08ftyp\0\0\0\x08mdat\0\0\0\x08moov"
"""The smallest files whose first bytes say nothing of damage."""


def test_a_synthetic_folder_without_its_description_names_the_command(
    raw: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    path = root / "synthetic.toml"
    assert (
        refused("synthetic", root, config)
        == f"{path} does not exist; make the folder with `c2vl-pipeline synth --out {root}`"
    )
    path.write_text("subjects = 3\n")
    assert (
        refused("synthetic", root, config)
        == f"{path}: not a description by `synth` ('classes'); make the folder again"
    )


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
    assert found.doubts() == []
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
        ("sample_id,view\na,1\n\nb,x\n", "samples.csv:4: view = 'x' is not a whole number"),
        ("sample_id,start_frame\na,1.5\n", "samples.csv:2: start_frame = '1.5' is not a whole number"),
        ("sample_id,label\na,1\n,2\n", "samples.csv:3: no sample_id; every row needs one"),
        ("foo,label\na,1\n", "samples.csv:1: unknown column 'foo'; known: sample_id, video, start_frame, end_frame, skeleton, label, subject, view, camera, split_<benchmark>"),
        ("sample_id,vido\na,v\n", "samples.csv:1: unknown column 'vido'; did you mean 'video'?"),
        ("sample_id,subject\na,100000\n", "samples.csv:2: subject = 100000 is out of range; expected less than 32768"),
        ("sample_id,end_frame\na,99999999999\n", "samples.csv:2: end_frame = 99999999999 is out of range; expected less than 2147483648"),
        ("sample_id,split_x\na,train\nb,val\n", "samples.csv:3: split_x = 'val'; use train, test or leave it empty"),
        ("sample_id\na\nb\na\n", "samples.csv:4: sample_id 'a' stands in 2 already; ids must be unique"),
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
    root = own(
        tmp_path / "own", [{"sample_id": "a", "view": "1"}, {"sample_id": "b", "view": "x"}], "parquet"
    )
    assert refused("generic", root, config) == f"{root}/samples.parquet:2: view = 'x' is not a whole number"
    (root / "samples.parquet").write_bytes(b"PAR1 no")
    assert refused("generic", root, config).startswith(f"{root}/samples.parquet: not a table of samples (")


def test_a_folder_without_a_table_says_which_columns_to_write(tmp_path: Path, config: PipelineConfig) -> None:
    (tmp_path / "own").mkdir()
    text = refused("generic", tmp_path / "own", config)
    assert text.startswith(
        f"{tmp_path / 'own'} holds neither samples.csv nor samples.parquet; write a table with"
    )
    assert "only sample_id is required" in text


def test_missing_own_files_are_noted_and_impossible_spans_become_problem_rows(
    tmp_path: Path, config: PipelineConfig
) -> None:
    entries = [
        {
            "sample_id": "gone",
            "video": "none.avi",
            "start_frame": "",
            "end_frame": "",
            "skeleton": "none.npy",
        },
        {"sample_id": "back", "video": "v.avi", "start_frame": 5, "end_frame": 5, "skeleton": ""},
        {"sample_id": "early", "video": "v.avi", "start_frame": -3, "end_frame": 5, "skeleton": "e.npy"},
    ]
    root = own(tmp_path / "own", entries, "csv")
    (root / "v.avi").write_bytes(AVI)
    (root / "e.npy").write_bytes(b"")
    with pytest.raises(
        StageError, match=r"1 videos missing \(gone\); 1 skeletons missing .* go on with --allow-missing"
    ):
        indexed("generic", root, tmp_path / "w", config)
    index, found = indexed("generic", root, tmp_path / "w", config, allow_missing=True)
    assert found.missing_videos == found.missing_skeletons == ["gone"]
    assert found.empty == ["e.npy"]
    assert found.notes()[-1] == "2 impossible samples (early, …)"
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


def test_pku_rows_are_cut_from_label_files(pku: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)
    assert found.doubts() == ["1,007 label files missing (A01N01-L.txt, …)"]
    made = rows(index)
    assert list(made) == [
        "A001N001V002C001L001", "A001N001V002C002L002",
        "A001N002V001C003L001", "A001N002V001C005L002", "A001N002V001C051L004",
    ]  # fmt: skip
    first = made["A001N002V001C003L001"]
    assert (first["start_frame"], first["end_frame"], first["label"]) == (0, 30, 2)
    assert (first["video"], first["skeleton"]) == ("RGB/A01N02-L.avi", "PKU_Skeleton/A01N02-L.txt")
    assert (first["subject"], first["view"], first["repeat"]) == (2, 1, 1)
    assert dict(first["splits"]) == {"xsub": "test", "xsub-published": "test", "xview": "test"}
    assert dict(made["A001N001V002C002L002"]["splits"]) == {
        "xsub": "train",
        "xsub-published": "train",
        "xview": "train",
    }
    assert found.problems == ["A001N001V002C001L001", "A001N002V001C005L002"]
    assert made["A001N002V001C005L002"]["problem"] == "label row 2: start 40 is after end 20"
    assert made["A001N001V002C001L001"]["problem"] == "label row 1: start 0 is before the first frame, 1"
    assert made["A001N002V001C051L004"]["problem"] is None


def test_pku_1_promises_what_its_label_files_say_and_names_the_impossible_row(
    tmp_path: Path, config: PipelineConfig
) -> None:
    root = tmp_path / "pku"
    for folder in ("Label_PKU", "Skeleton", "RGB"):
        (root / folder).mkdir(parents=True)
    for name in ("0043-L", "0043-M", "0060-M", "0291-R"):  # of recording 60 there is no left view
        last = "7,3100,3000,2\n" if name == "0043-L" else "7,3000,3100,2\n"
        (root / "Label_PKU" / f"{name}.txt").write_text(
            "".join(f"{n},{100 * n},{100 * n + 60},2\n" for n in range(1, 21)) + last
        )
        (root / "Skeleton" / f"{name}.txt").write_text("0 " * 150 + "\n")
        (root / "RGB" / f"{name}.avi").write_bytes(AVI)
    index, found = indexed("pku-mmd-1", root, tmp_path / "w", config, allow_missing=True)
    assert found.doubts() == ["4 of 1,076 label files"]
    made = rows(index)
    assert len(made) == 4 * 21
    assert found.problems == ["A0043V001C007L021"]
    assert made["A0043V001C007L021"]["problem"] == "label row 21: start 3100 is after end 3000"
    assert not [name for name in made if name.startswith("A0060V001")]
    assert made["A0043V002C007L021"]["problem"] is None
    assert dict(made["A0291V003C001L001"]["splits"]) == {"xsub": "test", "xview": "train"}
    assert dict(made["A0043V001C001L001"]["splits"]) == {"xsub": "train", "xview": "test"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,1,9\n2,a,9\n", ":2: expected `class,start,end,confidence`, found '2,a,9'"),
        ("1,1\n", ":1: expected `class,start,end,confidence`, found '1,1'"),
        ("1,inf,9,2\n", ":1: expected `class,start,end,confidence`, found '1,inf,9,2'"),
        ("0,1,9,2\n", ":1: class 0; expected 1 to 51"),
        ("52,1,9,2\n", ":1: class 52; expected 1 to 51"),
    ],
)
def test_mistakes_in_a_label_file_are_shown_with_file_and_line(
    pku: Path, config: PipelineConfig, text: str, expected: str
) -> None:
    path = pku / "Train_Label_PKU_final" / "A01N01-M.txt"
    path.write_text(text)
    assert refused("pku-mmd-2", pku, config) == f"{path}{expected}"


def test_pku_without_labels_or_with_a_foreign_one_is_refused(pku: Path, config: PipelineConfig) -> None:
    (pku / "Train_Label_PKU_final" / "readme.txt").write_text("1,1,9,2\n")
    assert "'readme' is not an id of PKU-MMD II; expected the form" in refused("pku-mmd-2", pku, config)
    shutil.rmtree(pku / "Train_Label_PKU_final")
    assert (
        refused("pku-mmd-2", pku, config)
        == f"{pku} holds no label files; expected *.txt below a folder whose name contains 'label'"
    )


def test_a_missing_pku_video_is_missing_for_all_its_samples(
    pku: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    (pku / "RGB" / "A01N02-L.avi").unlink()
    assert "3 videos missing (A001N002V001C003L001, …)" in refused("pku-mmd-2", pku, config)
    index, _ = indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)
    assert [r["video"] for r in index.table.to_pylist()] == ["RGB/A01N01-M.avi"] * 2 + [None] * 3


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


def test_pku_2_of_the_real_lists_has_the_published_counts(
    shared: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    with zipfile.ZipFile(shared / "captions" / "pkuv2_language.zip") as archive:
        keys = sorted(json.loads(archive.read(archive.namelist()[0])))
    videos: dict[str, dict[int, int]] = {}
    for key in keys:
        fields = [int(key[at : at + 3]) for at in (1, 5, 9, 13, 17)]
        name = f"A{fields[0]:02d}N{fields[1]:02d}-{'LMR'[fields[2] - 1]}"
        videos.setdefault(name, {})[fields[4]] = fields[3]
    root = tmp_path / "pku"
    pku_labels(root, {v: [rows.get(n, 1) for n in range(1, max(rows) + 1)] for v, rows in videos.items()})
    dataset = load_dataset("pku-mmd-2")
    assert sorted(dataset.promised_recordings()) == sorted(videos)
    index, found = indexed("pku-mmd-2", root, tmp_path / "w", config, allow_missing=True)
    assert (found.labels, found.too_few) == ([], "")
    made = index.table.column("sample_id").to_pylist()
    assert sorted(made) == keys
    assert dataset.expected is not None
    assert split_counts(index) == {
        name: {"train": train, "test": test} for name, (train, test) in dataset.expected.splits.items()
    }
    assert split_counts(index)["xsub"] == {"train": 5_339, "test": 1_613}
    labels = {label + 1 for label in index.table.column("label").to_pylist()}
    assert set(range(1, 52)) - labels == {12, 14, 16, 18, 21, 24, 26, 27, 29, 38}
    drops = set((shared / "pku" / "part2_published_drops.txt").read_text().split())
    kept = [s for s in index.table.select(["sample_id", "splits"]).to_pylist() if s["sample_id"] not in drops]
    counts = Counter(dict(s["splits"])["xsub"] for s in kept)
    assert (len(drops), counts) == (47, {"train": 5_295, "test": 1_610})


def test_two_label_files_of_one_recording_must_agree(
    pku: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    first = pku / "Train_Label_PKU_final" / "A01N01-M.txt"
    other = pku / "old_labels" / "A01N01-M.txt"
    other.parent.mkdir()
    shutil.copy(first, other)
    indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)
    other.write_text("1,2,9,2\n")
    text = refused("pku-mmd-2", pku, config)
    assert "labels the same recording; keep one of them" in text
    other.write_bytes(b"1,2,9,2\n" * 200_000)
    shutil.rmtree(first.parent)
    assert "1,600,000 bytes; a label file has some hundred" in refused("pku-mmd-2", pku, config)


@pytest.mark.parametrize("path", ["../outside.avi", "/tmp/outside.avi", "a/../../b.avi"])
@pytest.mark.parametrize("column", ["video", "skeleton"])
def test_a_path_that_leads_out_of_the_data_folder_is_refused(tmp_path, path, column):
    (tmp_path / "samples.csv").write_text(f"sample_id,{column}\na,{path}\n")
    with pytest.raises(DataError, match=rf"samples.csv:2: {column} = .* leads out of the data folder"):
        build(
            load_dataset("generic"),
            tmp_path,
            tmp_path / "w",
            load_recipe("debug").pipeline,
            recipe="debug",
            layout="kinect_v2",
        )
