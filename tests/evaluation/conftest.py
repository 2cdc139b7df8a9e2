"""Data and runs shared by evaluation's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.packed import COUNT, moving, sticks
from support.training import run


@pytest.fixture
def floor(data: PackedDataset, tmp_path: Path) -> Path:
    """A finished run."""
    train(run(data.folder, tmp_path / "floor", kind="random"))
    return tmp_path / "floor"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """12 training and 4 test sticks of 3 classes; tests must not write into it."""
    return PackedDataset(sticks(tmp_path_factory.mktemp("sticks") / "packed"))


@pytest.fixture
def elsewhere(tmp_path: Path) -> PackedDataset:
    """Another set of the same joints."""
    folder = sticks(tmp_path / "elsewhere" / "packed", joints=moving(COUNT, 7))
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32).replace("synthetic", "elsewhere"))
    return PackedDataset(folder)
