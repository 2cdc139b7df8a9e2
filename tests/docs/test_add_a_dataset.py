"""The page "Add a dataset", followed: its files, its registry entry and its test."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests import datasets
from c2vl_manifests.errors import ConfigError
from c2vl_pipeline import readers
from c2vl_pipeline.readers.base import Reader

PAGE = Path(__file__).parents[2] / "docs" / "contributing" / "add-a-dataset.md"


@pytest.fixture
def blocks() -> list[str]:
    """The TOML file, the reader module, the registry entry and the test."""
    return re.findall(r"^```(?:toml|python)\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def walks(blocks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Reader]]:
    """The registry after steps 1 to 3, with the new files in folders of the test's own."""
    toml, module, entry, _ = blocks
    with as_file(datasets._FOLDER) as folder:
        described = shutil.copytree(folder, tmp_path / "datasets")
    (described / "walks.toml").write_text(toml)
    monkeypatch.setattr(datasets, "_FOLDER", described)
    (tmp_path / "readers").mkdir()
    (tmp_path / "readers" / "walks.py").write_text(module)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "readers")])
    name, value = entry.strip().removesuffix(",").split(": ")
    assert value == "walks.READER"
    reader = import_module("c2vl_pipeline.readers.walks").READER
    monkeypatch.setitem(readers.READERS, ast.literal_eval(name), reader)
    yield readers.READERS
    datasets.load_dataset.cache_clear()


def test_the_page_leads_from_an_empty_file_to_a_passing_test(
    walks: dict[str, Reader], blocks: list[str], tmp_path: Path
) -> None:
    space: dict[str, Any] = {}
    exec(compile(blocks[3], str(PAGE), "exec"), space)  # the page is ours
    (test,) = [value for name, value in space.items() if name.startswith("test_")]
    (tmp_path / "raw").mkdir()
    test(tmp_path / "raw")


def test_a_reader_that_nobody_registered_is_named_in_the_error(
    walks: dict[str, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(walks, "walks")
    with pytest.raises(ConfigError, match="unknown reader 'walks'; use one of ntu, pku, utd"):
        readers.reader_of(datasets.load_dataset("walks"))
