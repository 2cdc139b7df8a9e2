"""Hints about a misplaced folder: another dataset, another ending, another level."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from c2vl_manifests.recipe import PipelineConfig
from support.indexing import AVI, doubtful, refused


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "names", "hint"),
    [
        ("ntu60", ("RGB/0002-L.avi", "RGB/0003-M.avi"), "This looks like PKU-MMD I, not NTU RGB+D 60: 2 files have its names; try --dataset pku-mmd-1."),
        ("utd-mhad", ("A01N01-L.avi",), "This looks like PKU-MMD II, not UTD-MHAD: 1 files have its names; try --dataset pku-mmd-2."),
        ("ntu120", ("v/a1_s1_t1_color.avi",), "This looks like UTD-MHAD, not NTU RGB+D 120: 1 files have its names; try --dataset utd-mhad."),
        ("ntu60", ("S001C001P001R001A001.avi", "S001C001P001R001A002.avi"), "2 files end with '.avi' after the id; videos must end with _rgb.avi."),
        ("ntu60", ("nturgbd.tar.gz",), "Nturgbd.tar.gz may hold the missing files: unpack it."),
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
