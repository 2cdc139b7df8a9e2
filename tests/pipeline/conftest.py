"""Fixtures of the pipeline's tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from c2vl_manifests.recipe import PipelineConfig, Recipe
from c2vl_pipeline import engines
from support.factory import Calls, road, start
from support.indexing import AVI


@pytest.fixture
def copied(work: Path, tmp_path: Path) -> Path:
    """A work folder of one's own, to break."""
    return Path(shutil.copytree(work, tmp_path / "work"))


@pytest.fixture
def config(recipe: Recipe) -> PipelineConfig:
    return recipe.pipeline


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


@pytest.fixture
def pku(tmp_path: Path) -> Path:
    """A raw folder of PKU-MMD II with two recordings."""
    root = tmp_path / "pku"
    for folder in ("Train_Label_PKU_final", "PKU_Skeleton", "RGB"):
        (root / folder).mkdir(parents=True)
    labels = {"A01N02-L": "3,1,30,2\n5,40,20,1\n\n51,31.0,60,2\n", "A01N01-M": "1,0,9,2\n2,10,50,2\n"}
    for name, text in labels.items():
        (root / "Train_Label_PKU_final" / f"{name}.txt").write_text(text)
        (root / "PKU_Skeleton" / f"{name}.txt").write_text("0 " * 150 + "\n")
        (root / "RGB" / f"{name}.avi").write_bytes(AVI)
    return root


@pytest.fixture(scope="session")
def whole(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages of 32 samples in 4 shards; not to be written into."""
    folder = start(raw, tmp_path_factory.mktemp("whole") / "w")
    road(folder, recipe)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    engines.clear()
    yield Calls(monkeypatch)
    engines.clear()
