"""Hints about a misplaced folder: another dataset, another ending, another level."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest

from c2vl_manifests.recipe import PipelineConfig
from support.indexing import AVI, doubtful, own, refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "names", "hint"),
    [
        ("ntu60", ("RGB/0002-L.avi", "RGB/0003-M.avi"), "This looks like PKU-MMD I, not NTU RGB+D 60: 2 files have its names; try --dataset pku-mmd-1."),
        ("utd-mhad", ("A01N01-L.avi",), "This looks like PKU-MMD II, not UTD-MHAD: 1 files have its names; try --dataset pku-mmd-2."),
        ("ntu120", ("v/a1_s1_t1_color.avi",), "This looks like UTD-MHAD, not NTU RGB+D 120: 1 files have its names; try --dataset utd-mhad."),
        ("ntu60", ("S001C001P001R001A001.avi", "S001C001P001R001A002.avi"), "2 files end with '.avi' after the id; videos must end with _rgb.avi."),
        ("ntu60", ("nturgbd.tar.gz",), "Unpack nturgbd.tar.gz, which may hold the missing files: `tar -xf /"),
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
    assert text.endswith("; this looks like PKU-MMD II, not PKU-MMD I: 6 files have its names; try --dataset pku-mmd-2")


@pytest.mark.parametrize(("folder", "named"), [("Label", False), ("train_labels", False), ("Skeleton", True)])
def test_label_files_beside_the_folder_are_no_skeletons(
    pku: Path, config: PipelineConfig, folder: str, named: bool
) -> None:
    """The raw folder holds labels and videos; next to it lies another folder of files named alike."""
    (pku / "PKU_Skeleton").rename(pku.parent / folder)
    text = refused("pku-mmd-2", pku, config)
    assert ("he skeletons are in" in text) == named


def test_a_folder_one_level_too_deep_names_its_neighbour(whole: Path, config: PipelineConfig) -> None:
    for kind, pattern in (("rgb", "*_rgb.avi"), ("skeletons", "*.skeleton")):
        (whole / "split" / kind).mkdir(parents=True)
        for path in list(whole.rglob(pattern)):
            path.rename(whole / "split" / kind / path.name)
    shutil.copy(whole / "synthetic.toml", whole / "split" / "skeletons")
    assert doubtful("synthetic", whole / "split" / "skeletons", config).hints == [
        f"the videos are in rgb: give --data {whole / 'split'}"
    ]


def zipped(path: Path, *names: str, inside: Path | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "0\n")
        if inside is not None:
            archive.write(inside, inside.name)
    return path


@pytest.mark.parametrize("only_present", [False, True])
def test_archives_are_named_with_their_command_whether_all_or_some_is_asked_for(
    tmp_path: Path, config: PipelineConfig, only_present: bool
) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    inner = zipped(tmp_path / "s001.zip", "a1_s1_t1_skeleton.mat")
    cases = {
        "flat.zip": lambda path: zipped(path, "x/a1_s1_t1_skeleton.mat"),
        "outer.zip": lambda path: zipped(path, "readme.txt", inside=inner),
        "all.tar": lambda path: path.write_bytes(b"x"),
        "all.7z.001": lambda path: path.write_bytes(b"x"),
    }
    for name, make in cases.items():
        make(root / name)
        text = refused("utd-mhad", root, config, only_present=only_present)
        assert str(root / name) in text, name
        (root / name).unlink()


def test_the_last_part_of_a_split_zip_is_not_called_damaged(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for name in ("all.z01", "all.z02", "all.zip"):
        (root / name).write_bytes(b"x" * 100)
    found = doubtful("utd-mhad", root, config)
    assert found.damaged == []
    assert f"7z x -o{root} {root / 'all'}.zip" in found.hints[-1]
    assert f"7z x -o{root} {root / 'all'}.zip" in refused("utd-mhad", root / "all.zip", config)


def test_zips_of_an_own_folder_and_of_labels_are_named(tmp_path: Path, config: PipelineConfig) -> None:
    root = own(tmp_path / "own", [{"sample_id": "a", "skeleton": "j/a.npy"}], "csv")
    zipped(root / "j.zip", "j/a.npy")
    assert f"unzip {root / 'j.zip'}" in refused("generic", root, config)
    labels = tmp_path / "pku"
    labels.mkdir()
    zipped(labels / "Label_PKU_final.zip", "Label/A01N01-L.txt")
    assert f"unzip {labels / 'Label_PKU_final.zip'}" in refused("pku-mmd-2", labels, config)
    assert f"unzip {root / 'j.zip'} -d {root}" in refused("utd-mhad", root / "j.zip", config)


@pytest.mark.parametrize(
    "name", ["{stem} (1).skeleton", "Copy of {stem}.skeleton", "{stem} - Copie.skeleton", ".{stem}.skeleton.icloud"]
)
def test_a_copy_of_a_missing_file_is_named(whole: Path, config: PipelineConfig, name: str) -> None:
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    other = path.rename(path.with_name(name.format(stem=path.stem))).relative_to(whole)
    assert doubtful("synthetic", whole, config).hints == [
        f"rename, or download to its end, {other}, which may be the missing {path.name}"
    ]


@pytest.mark.parametrize("kind", ["skeleton", "folder"])
def test_a_link_to_nowhere_is_named(whole: Path, tmp_path: Path, config: PipelineConfig, kind: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = next(whole.rglob("S001C001P001R001A001.skeleton"))
    path = path if kind == "skeleton" else path.parent
    path.rename(tmp_path / "elsewhere" / path.name)
    path.symlink_to("/gone/with the disk")
    expected = f"the link {path.relative_to(whole)} leads to /gone/with the disk, which does not exist"
    assert doubtful("synthetic", whole, config).hints == [expected]
