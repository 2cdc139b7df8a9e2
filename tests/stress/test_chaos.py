"""A whole run under injected faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import chaos
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.stages import index

pytestmark = pytest.mark.stress


def test_a_small_storm_leaves_the_rows_of_a_clean_run(raw: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "w", tmp_path / "report.json"
    config = load_recipe("debug", ["pipeline.shard_samples=2"])
    index.build(
        load_dataset("synthetic"), raw, work, config.pipeline, recipe="debug",
        overrides=["pipeline.shard_samples=2"],
    )  # fmt: skip
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    raw_before = {p: p.stat().st_mtime_ns for p in raw.rglob("*")}
    (tmp_path / "scratch").mkdir()
    result = subprocess.run(
        [sys.executable, chaos.__file__, "--work", work, "--limit", "12", "--kills", "4", "--seed", "5",
         "--garbage", "2", "--scratch", tmp_path / "scratch", "--json", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert result.returncode == 0, (result.stdout, result.stderr, report)
    assert report["held"]
    assert report["violations"] == []
    assert report["kills"] == 4
    assert [s["expected"] for s in report["stages"]] == [12, 48, 48, 48]
    for stage in report["stages"]:
        assert stage["equal"] + sum(stage["differing_by_status"].values()) == stage["expected"]
    assert sum(s["differing_by_status"].get("decode_error", 0) for s in report["stages"]) > 0
    assert report["full_disk"].startswith(("held: ", "skipped: "))
    assert "everything held" in result.stdout
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == raw_before
    assert list((tmp_path / "scratch").iterdir()) == []
