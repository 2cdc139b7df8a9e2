"""The example that embeds one skeleton file from Python runs as the documentation shows it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.recipe import Recipe
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train
from support import ROOT

EXAMPLE = ROOT / "docs" / "examples" / "nearest_caption.py"


def test_the_example_prints_captions_of_the_data_nearest_first(
    raw: Path,
    work: Path,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    train(Run("pretrain", PackedDataset(work), recipe, "xsub", 0, run))
    clip = min(raw.rglob("*.skeleton"))
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(clip), str(work), str(run)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    scores, texts = zip(*(line.split("  ", 1) for line in capsys.readouterr().out.splitlines()[-3:]), strict=True)
    written = {
        text
        for path in (work / "captions").glob("*.parquet")
        for text in pq.read_table(path, columns=["caption"])["caption"].to_pylist()
    }
    assert sorted(scores, reverse=True) == list(scores)
    assert len(set(texts)) == 3
    assert set(texts) <= written
