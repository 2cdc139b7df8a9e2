"""The check before work: what is missing, own tables, label files, layouts of files, and how shards are cut."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.recipe import PipelineConfig, Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.raw.check import DoubtfulError, Findings
from c2vl_pipeline.raw.scan import scan, sign
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import Index, load, split_counts

AVI = b"RIFF\x04\0\0\0AVI "
MP4 = b"\0\0\0\x08ftyp\0\0\0\x08mdat\0\0\0\x08moov"
"""The smallest files whose first bytes say nothing of damage."""


@pytest.fixture
def config(recipe: Recipe) -> PipelineConfig:
    return recipe.pipeline


def indexed(
    dataset: str, root: Path, work: Path, config: PipelineConfig, **how: Any
) -> tuple[Index, Findings]:
    return build(load_dataset(dataset), root, work, config, recipe="debug", **how)


def refused(dataset: str, root: Path, config: PipelineConfig, **how: Any) -> str:
    """Return the message of an index that must fail; nothing may be written."""
    work = root.parent / "refused"
    with pytest.raises((DataError, StageError, ConfigError)) as caught:
        indexed(dataset, root, work, config, **how)
    assert not work.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(index: Index) -> dict[str, dict[str, Any]]:
    return {r["sample_id"]: r for r in index.table.to_pylist()}


# ---------------------------------------------------------------------------------------- completeness


@pytest.fixture
def part(raw: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic folder in which one video and two skeletons are gone and one video is empty."""
    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    next(root.rglob("S001C001P001R001A001_rgb.avi")).unlink()
    next(root.rglob("S001C001P001R001A002.skeleton")).unlink()
    next(root.rglob("S001C001P001R001A001.skeleton")).unlink()
    next(root.rglob("S001C002P001R001A003_rgb.avi")).write_bytes(b"")
    return root


def test_a_whole_folder_raises_no_doubt(raw: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("synthetic", raw, tmp_path / "w", config)
    assert found.doubts() == []
    assert (found.promised, found.with_video, found.with_skeleton, found.known_missing) == (32, 32, 32, 0)
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
    assert "S001C002P001R001A003_rgb.avi); of 32 promised samples of Synthetic (NTU format). " in text
    assert text.endswith(
        "Complete the download, or go on with --allow-missing (rows will say what is missing) or --only-present (promise only what is there)"
    )


def test_allow_missing_keeps_every_promised_sample(
    part: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, allow_missing=True)
    assert (found.promised, found.with_video, found.with_skeleton) == (32, 31, 30)
    gone, half = rows(index)["S001C001P001R001A001"], rows(index)["S001C001P001R001A002"]
    assert (gone["video"], gone["skeleton"], half["skeleton"]) == (None, None, None)
    assert half["video"] is not None
    assert len(found.doubts()) == 3


def test_only_present_promises_what_has_a_video_or_a_skeleton(
    part: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, only_present=True)
    assert found.promised == 31
    assert "S001C001P001R001A001" not in rows(index)
    assert rows(index)["S001C001P001R001A002"]["skeleton"] is None
    assert found.missing_videos == found.missing_skeletons == []


def test_a_limit_keeps_the_first_samples_and_asks_only_for_their_files(
    part: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    index, found = indexed("synthetic", part, tmp_path / "w", config, only_present=True, limit=5)
    assert (found.promised, index.table.num_rows) == (5, 5)
    next(part.rglob("S001C001P001R001A004_rgb.avi")).unlink()
    text = refused("synthetic", part, config, limit=3)
    assert text.startswith(
        f"{part}: 1 videos missing (S001C001P001R001A001); 2 skeletons missing (S001C001P001R001A001, …); of 3 promised"
    )
    shutil.copy(next(part.rglob("S001C001P002R001A001_rgb.avi")), part / "S001C001P001R001A001_rgb.avi")
    for name in ("S001C001P001R001A001", "S001C001P001R001A002"):
        shutil.copy(next(part.rglob("S001C001P002R001A001.skeleton")), part / f"{name}.skeleton")
    _, found = indexed("synthetic", part, tmp_path / "w2", config, limit=3)
    assert found.missing_videos == []
    assert "Synthetic" in refused("synthetic", part, config, limit=4)


def test_unexpected_files_are_named_and_do_not_stop(
    raw: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    (root / "deep").mkdir()
    (root / "deep" / "S009C001P001R001A001_rgb.avi").write_bytes(AVI)
    (root / "notes.txt").write_text("x")
    _, found = indexed("synthetic", root, tmp_path / "w", config)
    assert found.doubts() == []
    assert found.notes() == ["1 unexpected files (deep/S009C001P001R001A001_rgb.avi)"]


def test_a_folder_without_a_sample_or_no_folder_says_what_was_expected(
    tmp_path: Path, config: PipelineConfig
) -> None:
    (tmp_path / "raw").mkdir()
    text = refused("utd-mhad", tmp_path / "raw", config, only_present=True)
    assert text == (
        f"{tmp_path / 'raw'} holds no sample of UTD-MHAD; expected files ending in _color.avi, _depth.mp4, _skeleton.mat somewhere below it"
    )
    text = refused("ntu60", tmp_path / "none", config)
    assert (
        text == f"raw folder {tmp_path / 'none'} does not exist; give the folder of NTU RGB+D 60 with --data"
    )
    text = refused("ntu60", tmp_path / "raw", config)
    assert "56,880 videos missing (S001C001P001R001A001, …); 56,578 skeletons missing" in text


def test_a_part_of_ntu_keeps_known_missing_skeletons_apart(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("S001C002P005R002A008", "S001C001P001R001A001"):
        (root / f"{name}_rgb.avi").write_bytes(AVI)
    (root / "S001C001P001R001A001.skeleton").write_text("0\n")
    index, found = indexed("ntu60", root, tmp_path / "w", config, only_present=True)
    assert (found.promised, found.known_missing) == (2, 1)
    assert rows(index)["S001C002P005R002A008"]["known_missing"]
    assert split_counts(index)["xview"] == {"train": 0, "test": 1}


def test_a_work_folder_without_an_index_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        load(tmp_path)
    assert (
        str(caught.value)
        == f"{tmp_path} holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work {tmp_path}` first"
    )


def test_the_same_index_is_not_written_twice_and_another_is(
    raw: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    work = tmp_path / "w"
    first, _ = indexed("synthetic", raw, work, config)
    written = (work / "samples.parquet").stat().st_mtime_ns
    again, _ = indexed("synthetic", raw, work, config)
    assert (work / "samples.parquet").stat().st_mtime_ns == written
    assert again.manifest == first.manifest
    fewer, _ = indexed("synthetic", raw, work, config, limit=9)
    assert fewer.table.num_rows == load(work).table.num_rows == 9


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


# ------------------------------------------------------------------------------------------ own tables


def own(folder: Path, entries: list[dict[str, Any]], kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(entries), folder / "samples.parquet")
    else:
        with (folder / "samples.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    return folder


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


# ----------------------------------------------------------------------------------------------- PKU


@pytest.fixture
def pku(tmp_path: Path) -> Path:
    root = tmp_path / "pku"
    for folder in ("Train_Label_PKU_final", "PKU_Skeleton", "RGB"):
        (root / folder).mkdir(parents=True)
    labels = {"A01N02-L": "3,1,30,2\n5,40,20,1\n\n51,31.0,60,2\n", "A01N01-M": "1,0,9,2\n2,10,50,2\n"}
    for name, text in labels.items():
        (root / "Train_Label_PKU_final" / f"{name}.txt").write_text(text)
        (root / "PKU_Skeleton" / f"{name}.txt").write_text("0 " * 150 + "\n")
        (root / "RGB" / f"{name}.avi").write_bytes(AVI)
    return root


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


# ----------------------------------------------------------------------------------------------- UTD


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


def test_the_real_utd_folder_is_complete(shared: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("utd-mhad", shared / "utd_mhad", tmp_path / "w", config)
    assert found.doubts() == []
    assert split_counts(index) == {"xsub": {"train": 431, "test": 430}}
    assert index.layout.name == "kinect_v1"


# ---------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_shards_cover_all_samples_and_never_split_a_video(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(size)
    entries = [
        {"sample_id": f"s{n:02d}", "video": f"v{int(rng.integers(6))}.avi" if n % 5 else ""}
        for n in range(40)
    ]
    root = own(tmp_path / "own", entries, "csv")
    for n in range(6):
        (root / f"v{n}.avi").write_bytes(AVI)
    config = load_recipe("debug", [f"pipeline.shard_samples={size}"]).pipeline
    index, _ = indexed("generic", root, tmp_path / "w", config)
    assert index.plan[0][0] == 0
    assert index.plan[-1][1] == 40
    assert all(a[1] == b[0] for a, b in zip(index.plan, index.plan[1:], strict=False))
    owner: dict[str, int] = {}
    for number in range(len(index.plan)):
        shard = index.shard(number)
        assert len(shard) >= min(size, 40) or number == len(index.plan) - 1
        for sample in shard:
            if sample["video"]:
                assert owner.setdefault(sample["video"], number) == number
    assert len(owner) == 6


# ------------------------------------------------------------------------------------ damaged and misplaced


def doubtful(dataset: str, root: Path, config: PipelineConfig, **how: Any) -> Findings:
    """Return what an index that must stop has found."""
    with pytest.raises(DoubtfulError) as caught:
        indexed(dataset, root, root.parent / "refused", config, **how)
    assert not (root.parent / "refused").exists()
    assert "\n" not in str(caught.value)
    assert all(doubt in str(caught.value) for doubt in caught.value.findings.doubts())
    return caught.value.findings


@pytest.fixture
def whole(raw: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic folder, 4 classes x 4 subjects x 2 views, in which nothing is wrong."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


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
    lost = [n for n in dataset.promised_ids() if n.startswith("S007") and n not in dataset.known_missing()]
    for name in dataset.promised_ids():
        if not name.startswith("S007"):
            (root / f"{name}.skeleton").write_text("0\n")
    with pytest.raises(DoubtfulError) as caught:
        build(dataset, root, tmp_path / "w", config, recipe="debug")
    found = caught.value.findings
    assert found.missing_skeletons == lost
    lacks = {(kinds, by): text for kinds, by, text in found.lacks}
    assert lacks["skeletons", "setup"] == f"S007: {len(lost)} of {len(lost)}"
    assert lacks["videos", "setup"] == "all of all 17"
    assert lacks["skeletons", "subject"].startswith("P026: 12 of 12; P028: ")
    assert lacks["skeletons", "subject"].endswith("; and 6 more")
    assert lacks["skeletons", "class"].startswith("A00")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"RIFF\xe8\x03\0\0AVI LIST", "16 of 1,008 bytes"),
        (b"<html>404 Not Found</html>", "not a video; it begins with b'<html>404 No'"),
        (b"\0" * 64, "not a video; it begins with b'"),
        (b"RI", "not a video; it begins with b'RI'"),
    ],
)
def test_an_avi_that_is_cut_or_none_is_doubted(
    whole: Path, config: PipelineConfig, content: bytes, why: str
) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    path.write_bytes(content)
    found = doubtful("synthetic", whole, config)
    assert [line.startswith(f"{path.relative_to(whole)}: {why}") for line in found.truncated] == [True]
    assert (found.small, found.empty, found.missing_videos) == ([], [], [])


def test_every_cut_of_a_real_avi_is_doubted(whole: Path) -> None:
    path = next(whole.rglob("*_rgb.avi"))
    size = path.stat().st_size
    assert sign(str(path), size) is None
    data = path.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(data[: int(size * share)])
        assert sign(str(path), path.stat().st_size) == f"{int(size * share):,} of {size:,} bytes"


def test_every_cut_of_a_real_mp4_is_doubted(shared: Path, tmp_path: Path) -> None:
    for path in sorted((shared / "utd_mhad" / "Depth_video").iterdir())[:3]:
        data = path.read_bytes()
        assert sign(str(path), len(data)) is None
        for share in (0.01, 0.3, 0.6, 0.9, 0.999):
            cut = tmp_path / "cut.mp4"
            cut.write_bytes(data[: int(len(data) * share)])
            assert sign(str(cut), cut.stat().st_size) is not None


def test_a_file_far_below_its_cameras_median_is_doubted(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    text = path.read_text()
    path.write_text(text[:40])
    found = doubtful("synthetic", whole, config)
    assert [line.split(": ")[0] for line in found.small] == [str(path.relative_to(whole))]
    path.write_text(text[: len(text) // 4])  # clips differ in length
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.doubts() == []


def test_deep_reads_skeleton_files_to_their_end(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    text = path.read_text()
    path.write_text(text[: len(text) * 3 // 4])
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.doubts() == []
    found = doubtful("synthetic", whole, config, deep=True)
    assert [line.split(":")[0] for line in found.truncated] == [str(path.relative_to(whole))]
    path.write_text(text)
    assert indexed("synthetic", whole, whole.parent / "w", config, deep=True)[1].doubts() == []


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
    assert found.packed == [f"rgb.zip: holds {len(gone)} missing files; unpack it"]
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
        assert found.doubts()[0].startswith("1 truncated files (")


@pytest.mark.parametrize(
    ("asked", "names", "hint"),
    [
        ("ntu60", ("RGB/0002-L.avi", "RGB/0003-M.avi"), "This looks like PKU-MMD I, not NTU RGB+D 60: 2 files are named so; try --dataset pku-mmd-1."),
        ("utd-mhad", ("A01N01-L.avi",), "This looks like PKU-MMD II, not UTD-MHAD: 1 files are named so; try --dataset pku-mmd-2."),
        ("ntu120", ("v/a1_s1_t1_color.avi",), "This looks like UTD-MHAD, not NTU RGB+D 120: 1 files are named so; try --dataset utd-mhad."),
        ("ntu60", ("S001C001P001R001A001.avi", "S001C001P001R001A002.avi"), "2 files end with '.avi' after the id; videos must end with _rgb.avi."),
        ("ntu60", ("nturgbd.tar.gz",), "Nturgbd.tar.gz may hold what is missing: unpack it."),
    ],
)  # fmt: skip
def test_another_dataset_or_ending_is_recognised(
    tmp_path: Path, config: PipelineConfig, asked: str, names: tuple[str, ...], hint: str
) -> None:
    root = tmp_path / "raw"
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(AVI)
    assert hint in refused(asked, root, config)


def test_pku_of_the_other_phase_is_recognised(pku: Path, config: PipelineConfig) -> None:
    text = refused("pku-mmd-1", pku, config)
    assert text.endswith(
        "; this looks like PKU-MMD II, not PKU-MMD I: 6 files are named so; try --dataset pku-mmd-2"
    )


def test_a_folder_one_level_too_deep_names_its_neighbour(whole: Path, config: PipelineConfig) -> None:
    for kind, pattern in (("rgb", "*_rgb.avi"), ("skeletons", "*.skeleton")):
        (whole / "split" / kind).mkdir(parents=True)
        for path in list(whole.rglob(pattern)):
            path.rename(whole / "split" / kind / path.name)
    shutil.copy(whole / "synthetic.toml", whole / "split" / "skeletons")
    assert doubtful("synthetic", whole / "split" / "skeletons", config).hints == [
        f"the videos lie in rgb: give --data {whole / 'split'}"
    ]


def test_links_are_followed_once_and_links_to_nowhere_are_missing(
    whole: Path, config: PipelineConfig
) -> None:
    (whole / "again").symlink_to(whole)
    (whole / "S001C001P009R001A001_rgb.avi").symlink_to(whole / "nowhere")
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.doubts() == found.notes() == []


def test_a_second_copy_of_a_file_is_a_note(whole: Path, config: PipelineConfig) -> None:
    path = next(whole.rglob("S001C001P001R001A001_rgb.avi"))
    (whole / "zz").mkdir()
    shutil.copy(path, whole / "zz")
    _, found = indexed("synthetic", whole, whole.parent / "w", config)
    assert found.notes() == [f"1 unexpected files (zz/{path.name}: as {path.relative_to(whole)})"]


# --------------------------------------------------------------------------------- PKU-MMD, its real lists


def pku_labels(root: Path, samples: dict[str, list[int]]) -> None:
    """Label files of so many recordings; each class stands in the row that the sample's id names."""
    (root / "Label").mkdir(parents=True)
    for video, classes in samples.items():
        text = "".join(f"{c},{100 * n + 1},{100 * n + 50},2\n" for n, c in enumerate(classes))
        (root / "Label" / f"{video}.txt").write_text(text)


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


def test_a_pku_label_file_too_few_or_a_row_too_few_is_doubted(tmp_path: Path, config: PipelineConfig) -> None:
    names = list(load_dataset("pku-mmd-2").promised_recordings())
    root = tmp_path / "pku"
    pku_labels(root, dict.fromkeys(names, [1] * 6))
    assert doubtful("pku-mmd-2", root, config).too_few == (
        "6,054 rows in all label files, 6,952 were published"
    )
    (root / "Label" / f"{names[7]}.txt").unlink()
    assert doubtful("pku-mmd-2", root, config).labels == [f"{names[7]}.txt"]


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


def test_a_link_in_a_loop_is_no_file_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "S001C001P001R001A001_rgb.avi").symlink_to(tmp_path / "S001C001P001R001A001_rgb.avi")
    (tmp_path / "S001C001P001R001A002_rgb.avi").write_bytes(b"x")
    found = scan(tmp_path, ("_rgb.avi",))
    assert [file.relative for file in found.files] == ["S001C001P001R001A002_rgb.avi"]
