"""A whole run under injected faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from c2vl_manifests.config import load_recipe
from c2vl_manifests.datasets import load_dataset
from c2vl_pipeline import index
from c2vl_pipeline.cli import app

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
    result = CliRunner().invoke(
        app,
        ["chaos", "--work", str(work), "--limit", "12", "--kills", "4", "--seed", "5", "--garbage", "2",
         "--scratch", str(tmp_path / "scratch"), "--out", str(out)],
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert result.exit_code == 0, (result.output, report)
    assert report["held"]
    assert report["violations"] == []
    assert report["kills"] == 4
    assert [s["expected"] for s in report["stages"]] == [12, 48, 48, 48]
    for stage in report["stages"]:
        assert stage["equal"] + sum(stage["differing_by_status"].values()) == stage["expected"]
    assert sum(s["differing_by_status"].get("decode_error", 0) for s in report["stages"]) > 0
    assert report["full_disk"].startswith(("held: ", "skipped: "))
    assert "everything held" in result.output
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == raw_before
    assert list((tmp_path / "scratch").iterdir()) == []
