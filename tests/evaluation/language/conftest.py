"""A run with a joint embedding space."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from c2vl_evaluation.context import EvalContext
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import spoken
from support.training import recipe, run


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken(tmp_path_factory.mktemp("spoken") / "packed")


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "main"
    train(run(data, out, "training.pretrain.standardise=true"))
    return out


@pytest.fixture
def subject(data: Path, trained: Path, tmp_path: Path) -> EvalContext:
    """A run without findings."""
    folder = Path(shutil.copytree(trained, tmp_path / "main"))
    return EvalContext(folder, PackedDataset(data), "xsub", recipe(), 0)
