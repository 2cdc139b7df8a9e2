"""Expected samples of PKU-MMD, from its label files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.workspace import split_counts
from support.indexing import AVI, indexed, pku_labels, refused, rows


def test_pku_rows_are_cut_from_label_files(pku: Path, tmp_path: Path, config: PipelineConfig) -> None:
    index, found = indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)
    assert found.errors() == ["1,007 label files missing (A01N01-L.txt, …)"]
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
    assert list(found.problems) == ["A001N001V002C001L001", "A001N002V001C005L002"]
    assert made["A001N002V001C005L002"]["problem"] == "label row 2: start 40 is after end 20"
    assert made["A001N001V002C001L001"]["problem"] == "label row 1: start 0 is before the first frame, 1"
    assert made["A001N002V001C051L004"]["problem"] is None


@pytest.mark.parametrize(
    "folder", ["#recycle/Label", ".snapshot/a/Labels", "@Recycle/Label", ".old/Label", "#mine/labels"]
)
def test_label_files_that_were_thrown_away_change_nothing(
    pku: Path, tmp_path: Path, config: PipelineConfig, folder: str
) -> None:
    expected = rows(indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)[0])
    path = next(path for path in pku.rglob("A01N02-L.txt") if "label" in str(path.parent).lower())
    (pku / folder).mkdir(parents=True)
    (pku / folder / path.name).write_text("1,5,9,2\n")
    assert rows(indexed("pku-mmd-2", pku, tmp_path / "w2", config, allow_missing=True)[0]) == expected


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
    assert found.errors() == ["4 of 1,076 label files"]
    made = rows(index)
    assert len(made) == 4 * 21
    assert list(found.problems) == ["A0043V001C007L021"]
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


def test_pku_without_labels_or_with_foreign_ones_only_is_refused(pku: Path, config: PipelineConfig) -> None:
    folder = pku / "Train_Label_PKU_final"
    for path in folder.iterdir():
        path.unlink()
    (folder / "readme.txt").write_text("1,1,9,2\n")
    text = refused("pku-mmd-2", pku, config)
    assert text.startswith(f"{folder / 'readme.txt'}: 'readme' is not an id of PKU-MMD II; expected the form")
    shutil.rmtree(folder)
    assert (
        refused("pku-mmd-2", pku, config)
        == f"{pku} holds no label files; expected *.txt below a folder whose name contains 'label'"
    )


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("terms of use.txt", True),
        ("A01N01-M (1).txt", True),
        ("._A01N01-M.txt", False),
        ("A01N01-M.txt.bak", False),
        ("A01N01-M.txt~", False),
        ("desktop.ini", False),
        ("__MACOSX/._A01N02-L.txt", False),
    ],
)
def test_strangers_among_the_labels_are_noted_with_their_path(
    pku: Path, tmp_path: Path, config: PipelineConfig, name: str, noted: bool
) -> None:
    path = pku / "Train_Label_PKU_final" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\0\5\26\7 not labels")
    index, found = indexed("pku-mmd-2", pku, tmp_path / "w", config, only_present=True)
    assert index.table.num_rows == 5
    note = found.notes()[0]
    place = path.relative_to(pku) if path.parent.name != "__MACOSX" else path.parent.relative_to(pku)
    assert str(place) in note
    assert ("no label file" in note) == noted


def test_a_label_file_may_have_a_byte_order_mark_but_no_nul_bytes(
    pku: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    path = pku / "Train_Label_PKU_final" / "A01N01-M.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert indexed("pku-mmd-2", pku, tmp_path / "w", config, only_present=True)[0].table.num_rows == 5
    path.write_bytes(bytes(300))
    assert refused("pku-mmd-2", pku, config).startswith(f"{path}: NUL bytes")


def test_a_missing_pku_video_is_missing_for_all_its_samples(pku: Path, tmp_path: Path, config: PipelineConfig) -> None:
    (pku / "RGB" / "A01N02-L.avi").unlink()
    assert "3 videos missing (A001N002V001C003L001, …)" in refused("pku-mmd-2", pku, config)
    index, _ = indexed("pku-mmd-2", pku, tmp_path / "w", config, allow_missing=True)
    assert [r["video"] for r in index.table.to_pylist()] == ["RGB/A01N01-M.avi"] * 2 + [None] * 3


def test_pku_2_of_the_real_lists_has_the_published_counts(shared: Path, tmp_path: Path, config: PipelineConfig) -> None:
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
    assert sorted(dataset.expected_recordings()) == sorted(videos)
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


def test_two_label_files_of_one_recording_must_agree(pku: Path, tmp_path: Path, config: PipelineConfig) -> None:
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
    assert "1,600,000 bytes; expected up to 1,048,576; a label file has a few hundred" in refused(
        "pku-mmd-2", pku, config
    )
