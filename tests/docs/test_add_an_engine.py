"""The page "Add an engine", followed: its module, its registry entry, its test, and a run of the stage."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.manifest import read_stage_manifest
from c2vl_pipeline import engines
from support import ROOT
from support.cli import Cli

PAGE = ROOT / "docs" / "contributing" / "add-an-engine.md"


@pytest.fixture
def page_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Follow steps 1 and 2, with the new module in a folder of the test; return the tests of step 3 by name."""
    module, entry, tests = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "fixed_box.py").write_text(module)
    monkeypatch.setattr(engines, "__path__", [*engines.__path__, str(tmp_path / "engines")])
    monkeypatch.setitem(sys.modules, "c2vl_pipeline.engines.fixed_box", None)  # forget the module afterwards
    monkeypatch.delitem(sys.modules, "c2vl_pipeline.engines.fixed_box")
    expression = ast.parse(f"{{{entry}}}", mode="eval")
    ((key, backend),) = eval(compile(expression, str(PAGE), "eval"), {"Backend": engines.Backend}).items()
    monkeypatch.setitem(engines.BACKENDS, key, backend)
    space: dict[str, Any] = {}
    exec(compile(tests, str(PAGE), "exec"), space)  # the page is ours
    return {name: value for name, value in space.items() if name.startswith("test_")}


def test_the_page_leads_from_an_empty_file_to_passing_tests(page_test: dict[str, Any]) -> None:
    assert len(page_test) == 2
    for test in page_test.values():
        test()


@pytest.mark.usefixtures("page_test")
def test_the_stage_runs_with_the_new_engine(work: Path, tmp_path: Path, cli: Cli) -> None:
    here = Path(shutil.copytree(work, tmp_path / "work"))
    choice = ["--set", "pipeline.crop.engine.backend=fixed_box"]
    done = cli("c2vl-pipeline", "crop", "--work", here, "--workers", "0", "--overwrite", *choice)
    assert done.code == 0, done.err
    manifest = read_stage_manifest(here / "crops")
    assert manifest is not None
    assert manifest.statuses == {"ok": manifest.rows}
    assert manifest.provenance.items() >= {"backend": "fixed_box", "share": 0.5}.items()
    row = pq.read_table(here / "crops" / "shard-00000.parquet").to_pylist()[0]
    width, height = row["frame_width"], row["frame_height"]
    x0, _, x1, _ = row["box"]
    assert 0.5 * width <= x1 - x0 <= 0.75 * width
    assert height > 0
