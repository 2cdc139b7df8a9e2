"""Fixtures: a small synthetic dataset run through the factory once, and the real data where it lies beside the project."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe

Cli = Callable[..., tuple[int, list[str], str]]


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads() -> None:
    """One thread: tiny models run far slower with two, and results do not depend on it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (`C2VL_SHARED`, or ../shared/data); tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("C2VL_SHARED", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data of ../shared/data (or C2VL_SHARED); {folder} does not exist")
    return folder


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw synthetic dataset in NTU's format: 4 classes x 4 subjects x 2 views x 1 repeat, tiny frames."""
    from c2vl_pipeline.synthetic import dataset as synth

    folder = tmp_path_factory.mktemp("raw")
    synth.generate(folder, classes=4, subjects=4, views=2, repeats=1, seed=1, size=(128, 96), frames=(24, 32))
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The debug recipe: everything in seconds."""
    return load_recipe("debug")


def run_factory(raw: Path, work: Path, recipe: Recipe, dataset: str = "synthetic") -> Path:
    """Run every stage of the factory in this process; returns the work folder."""
    from c2vl_pipeline.execution import runner
    from c2vl_pipeline.stages import caption, crop, embed, index, pack, skeletons

    index.build(load_dataset(dataset), raw, work, recipe.pipeline, recipe=recipe.name)
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run(stage, work, recipe)
    pack.run(work, recipe)
    return work


@pytest.fixture(scope="session")
def work(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with every stage complete; tests must not write into it."""
    return run_factory(raw, tmp_path_factory.mktemp("work"), recipe)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run `c2vl-pipeline` in this process: exit code, lines on stdout that are no events, stderr."""

    def call(*words: str | Path) -> tuple[int, list[str], str]:
        monkeypatch.setattr(sys, "argv", ["c2vl-pipeline", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            importlib.import_module("c2vl_pipeline.cli").main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return int(code or 0), [line for line in out.splitlines() if not line.startswith('{"event"')], err

    return call
