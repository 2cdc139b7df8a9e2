"""An untrained run to evaluate."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2vl_evaluation.context import EvalContext
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import TUNED
from support.training import recipe, run


@pytest.fixture
def subject(data: PackedDataset, tmp_path: Path) -> EvalContext:
    train(run(data.folder, tmp_path / "floor", kind="random"))
    return EvalContext(tmp_path / "floor", data, "xsub", recipe(*TUNED), 0)
