"""Fixtures: a small synthetic dataset run through the factory once, and the real data where it lies beside the project."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.machine import THREADS
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import CAPTIONS, CROPS
from support import SHARED
from support.cli import PARTS, Cli, Said
from support.factory import run_factory
from support.pages import HOSTILE, rewrite

for _name in THREADS:  # of this process before torch is loaded, and of every process that a test starts
    os.environ.setdefault(_name, "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no processor waits for another's last file."""
    long = {item.path for item in items for name in ("slow", "stress") if item.get_closest_marker(name)}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def _quiet_threads() -> None:
    """One thread: tiny models run far slower with two, and results do not depend on it."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Commit without `fsync` in this process: tests kill processes, not machines, and wait for the disk otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data (`C2VL_SHARED`, or ../shared/data); tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data of ../shared/data (or C2VL_SHARED); {SHARED} does not exist")
    return SHARED


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw synthetic dataset in NTU's format: 4 classes x 4 subjects x 2 views x 1 repeat, tiny frames."""
    from c2vl_pipeline.synthetic import dataset

    folder = tmp_path_factory.mktemp("raw")
    dataset.generate(folder, classes=4, subjects=4, views=2, repeats=1, seed=1, size=(128, 96), frames=(24, 32))
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The debug recipe: everything in seconds."""
    return load_recipe("debug")


@pytest.fixture(scope="session")
def work(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with every stage complete; tests must not write into it."""
    return run_factory(raw, tmp_path_factory.mktemp("work"), recipe)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process through its entry point; what is printed is caught."""

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", [str(w) for w in words])
        monkeypatch.setenv("COLUMNS", "200")
        main = importlib.import_module(f"{PARTS[str(words[0])]}.cli").main
        capfd.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return Said(int(code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def odd(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the work folder with a hostile caption, a lost person and a failed caption."""
    folder = tmp_path_factory.mktemp("odd") / "work"
    shutil.copytree(work, folder)

    def captions(rows):
        for row in (rows[0], *rows[8:16]):  # often enough for the most frequent ones
            row["caption"] = HOSTILE
        rows[1]["caption"] = "A" * 400
        rows[29].update(status="failed", error_class="ValueError", error="broke <b>here</b>", caption=None)

    def crops(rows):
        rows[17].update(status="no_person", box=None, score=None, jpeg=None, people=0)

    rewrite(folder, "captions", CAPTIONS, captions)
    rewrite(folder, "crops", CROPS, crops)
    return folder
