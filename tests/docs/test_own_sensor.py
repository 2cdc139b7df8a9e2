"""The own-sensor example of the documentation runs from raw recordings to packed joints."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from c2vl_pipeline.synthetic import dataset
from support import ROOT
from support.cli import Cli

EXAMPLE = ROOT / "docs" / "examples" / "own_sensor"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's table of samples, from four small synthetic clips."""
    folder = tmp_path_factory.mktemp("own_sensor")
    dataset.generate(folder / "raw", classes=2, subjects=2, views=1, repeats=1, size=(320, 240), frames=(16, 20))
    assert load("convert").convert(folder / "raw", folder / "mine") == 4
    return folder / "mine"


def test_joints_are_image_heights_with_y_up(converted: Path) -> None:
    poses = [np.load(file) for file in sorted((converted / "poses").glob("*.npy"))]
    assert {joints.shape[1:] for joints in poses} == {(2, 13, 2)}
    first = poses[0][:, 0]
    assert first.min() > 0
    assert first.max() < 320 / 240
    head, ankle = first[:, 0, 1], first[:, 11, 1]
    assert (head > ankle).all()


def test_people_who_are_not_seen_stay_zero(converted: Path) -> None:
    convert = load("convert")
    pixels = np.zeros((3, 2, 13, 2), np.float32)
    pixels[0, 0] = 120
    joints = convert.to_image_heights(pixels)
    assert joints[0, 0].all()
    assert not joints[1:].any()
    assert not joints[:, 1].any()


def test_paths_in_the_table_exist(converted: Path) -> None:
    with (converted / "samples.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4
    assert all((converted / row[column]).is_file() for row in rows for column in ("video", "skeleton"))
    assert {row["split_subjects"] for row in rows} == {"train", "test"}


@pytest.mark.slow
def test_the_pipeline_packs_the_converted_clips(converted: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli(
        *(
            "c2vl-pipeline",
            "prompts",
            "--dataset",
            "generic",
            "--data",
            converted,
            "--work",
            tmp_path,
            "--layout",
            "mine.toml",
        ),
        *("--recipe", "debug", "--workers", "0"),
    )
    assert said.code == 0, said.err
    packed = json.loads((tmp_path / "packed" / "packed.json").read_text())
    assert packed["samples"] == 4
    assert packed["layout"]["dims"] == 2
    assert packed["layout"]["names"][0] == "head"
