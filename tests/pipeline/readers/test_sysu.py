"""SYSU 3DHOI: the folders of its release, its random halves, and its files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.readers.sysu import read_sysu
from support.cli import Cli
from support.indexing import doubtful, indexed, refused, rows

ARRAY = np.random.default_rng(0).normal(size=(20, 3, 6))


def write(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"SW": ARRAY, **changes})
    return path


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 480 files in the folders of the release, beside joints in pixels and pictures."""
    root = tmp_path_factory.mktemp("sysu")
    one = write(root / "one.mat").read_bytes()
    (root / "one.mat").unlink()
    for person in range(40):
        for action in range(1, 13):
            folder = root / "3DvideoNorm" / f"person{chr(97 + person % 26)}{person:02d}" / f"video{action}"
            (folder / "rgb").mkdir(parents=True)
            (folder / "sklWorld.mat").write_bytes(one)
            (folder / "sklImage.mat").write_bytes(one)
    return root


def test_every_draw_is_a_half_of_the_subjects_and_of_each_activity(
    release: Path, tmp_path: Path, config: PipelineConfig
) -> None:
    made, found = indexed("sysu-3dhoi", release, tmp_path / "work", config)
    assert found.errors() == found.notes() == []
    table = rows(made)
    assert len(table) == 480
    for setting in ("xsub", "same"):
        draws = [setting if n == 1 else f"{setting}-{n}" for n in range(1, 31)]
        halves = {tuple(dict(row["splits"])[draw] for row in table.values()) for draw in draws}
        assert len(halves) == 30
        for half in halves:
            assert Counter(half) == {"train": 240, "test": 240}
            of = Counter((row["label"], side) for row, side in zip(table.values(), half, strict=True))
            assert set(of.values()) == {20}
            sides = {(row["subject"], side) for row, side in zip(table.values(), half, strict=True)}
            assert (len(sides) == 40) == (setting == "xsub")


def test_subjects_are_numbered_as_their_folders_sort(release: Path, tmp_path: Path, config: PipelineConfig) -> None:
    made, _ = indexed("sysu-3dhoi", release, tmp_path / "work", config)
    people = sorted(path.name for path in (release / "3DvideoNorm").iterdir())
    row = rows(made)["s07_a12"]
    assert row["skeleton"] == f"3DvideoNorm/{people[6]}/video12/sklWorld.mat"
    assert (row["subject"], row["label"]) == (7, 11)
    np.testing.assert_array_equal(
        read_sysu(release / row["skeleton"]).joints[:, 0],
        ARRAY.astype(np.float32).transpose(2, 0, 1) - ARRAY.astype(np.float32)[0, :, 0],
    )


def test_the_index_prints_its_sixty_benchmarks_in_two_lines(release: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("c2vl-pipeline", "index", "--dataset", "sysu-3dhoi", "--data", release, "--work", tmp_path / "work")
    lines = [line for line in said.out.splitlines() if "train / test" in line]
    assert [line.split("│")[1].strip() for line in lines] == [
        "xsub to xsub-30 train / test",
        "same to same-30 train / test",
    ]
    assert all("240 / 240" in line for line in lines)


def test_other_numbers_of_subjects_and_missing_files_are_named(tmp_path: Path, config: PipelineConfig) -> None:
    root = tmp_path / "raw"
    for person in range(39):
        write(root / f"p{person:02d}" / "video1" / "sklWorld.mat")
    assert "folders of 39 subjects (p00, …); expected 40" in refused("sysu-3dhoi", root, config)
    write(root / "p39" / "video1" / "sklWorld.mat")
    write(root / "p39" / "video13" / "sklWorld.mat")
    found = doubtful("sysu-3dhoi", root, config)
    assert found.errors() == ["440 skeletons missing (s01_a02, …)"]
    assert found.unexpected == ["p39/video13/sklWorld.mat"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SW": np.zeros((25, 3, 4))}, "SW has the shape (25, 3, 4); expected (20, 3, frames)"),
        ({"SW": "words"}, "not a MATLAB file with SW (20, 3, frames), as SYSU 3DHOI has"),
        ({"SW": np.ones((20, 3, 4)) * 1j}, "not a MATLAB file with SW (20, 3, frames)"),
    ],
)
def test_another_content_is_refused_in_one_line(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    path = write(tmp_path / "sklWorld.mat", **changes)
    with pytest.raises(DataError) as caught:
        read_sysu(path)
    assert expected in str(caught.value)


def test_every_cut_of_a_file_is_refused_or_read_whole(tmp_path: Path) -> None:
    whole = write(tmp_path / "sklWorld.mat").read_bytes()
    for size in range(0, len(whole) - 64, 61):
        (tmp_path / "sklWorld.mat").write_bytes(whole[:size])
        with pytest.raises(C2VLError):
            read_sysu(tmp_path / "sklWorld.mat")


def test_its_expected_numbers_are_those_of_its_rules() -> None:
    dataset = load_dataset("sysu-3dhoi")
    assert dataset.expected is not None
    assert len(list(dataset.expected_ids())) == dataset.expected.samples == 480
    assert all(len(set(rule.train or ())) == 20 for rule in dataset.benchmarks.values())
