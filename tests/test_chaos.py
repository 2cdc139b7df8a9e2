"""Chaos: what the comparison notices, what the damages do, what chaos found, and a small storm."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import chaos
import faults
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import commit_table, read_shard_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import CROPS, Status
from c2vl_pipeline import engines
from c2vl_pipeline.execution import runner, workers
from c2vl_pipeline.stages import index, skeletons
from c2vl_pipeline.stages.base import row_status
from c2vl_pipeline.workspace import shard_path
from chaos_report import Report
from compare_rows import Damaged, compare_stage, compare_tables

SLOTS = 2


def crops(*samples: str, **changes: Any) -> pa.Table:
    """Rows of some samples, SLOTS each; `changes` befall the first row."""
    rows = []
    for sample in samples:
        for slot in range(SLOTS):
            row = dict.fromkeys(CROPS.names) | {"sample_id": sample, "slot": slot, "people": 1}
            row |= row_status(Status.OK) | {"jpeg": f"{sample}-{slot}".encode(), "frames_decoded": 9}
            rows.append(row)
    rows[0].update(changes)
    return pa.Table.from_pylist(rows, schema=CROPS)


CLEAN = crops("a", "b", "c")


def test_equal_rows_hold_whatever_the_attempts() -> None:
    found = compare_tables("crops", CLEAN, crops("a", "b", "c", attempts=3), Damaged())
    assert found.held
    assert (found.expected, found.found, found.equal) == (6, 6, 6)


def test_a_lost_row_is_noticed() -> None:
    found = compare_tables("crops", CLEAN, CLEAN.take([0, 1, 2, 4, 5]), Damaged(frozenset({"b"})))
    assert not found.held
    assert found.lost == [("b", 1)]


def test_a_doubled_row_is_noticed() -> None:
    found = compare_tables("crops", CLEAN, CLEAN.take([0, 0, 1, 2, 3, 4, 5]), Damaged(frozenset({"a"})))
    assert not found.held
    assert (found.doubled, found.found) == ([("a", 0)], 7)


def test_a_row_of_nobody_and_another_order_are_noticed() -> None:
    assert not (found := compare_tables("crops", CLEAN, crops("a", "b", "c", "d"), Damaged())).held
    assert found.foreign == [("d", 0), ("d", 1)]
    assert not (found := compare_tables("crops", CLEAN, crops("b", "a", "c"), Damaged())).held
    assert found.unordered


def test_a_changed_row_is_noticed_unless_its_input_was_damaged_and_it_says_so() -> None:
    mute = crops("a", "b", "c", jpeg=b"other")
    assert compare_tables("crops", CLEAN, mute, Damaged()).changed == [("a", 0)]
    assert compare_tables("crops", CLEAN, mute, Damaged(frozenset({"b"}))).changed == [("a", 0)]
    told = crops("a", "b", "c", jpeg=None, status="decode_error")
    assert compare_tables("crops", CLEAN, told, Damaged()).changed == [("a", 0)]
    found = compare_tables("crops", CLEAN, told, Damaged(frozenset({"a"})))
    assert found.held
    assert (dict(found.excused), found.equal) == ({"decode_error": 1}, 5)
    assert compare_tables("crops", CLEAN, mute, Damaged(nearby=frozenset({"a"}))).held


def test_an_ok_row_from_a_damaged_input_is_noticed() -> None:
    mute = crops("a", "b", "c", jpeg=b"other")
    found = compare_tables("crops", CLEAN, mute, Damaged(frozenset({"a"})))
    assert not found.held
    assert found.unsaid == [("a", 0)]
    # the first frames of a cut video are what they were; only the count of its frames differs
    shorter = crops("a", "b", "c", frames_decoded=5)
    assert compare_tables("crops", CLEAN, shorter, Damaged(frozenset({"a"}))).held
    assert not compare_tables("crops", CLEAN, shorter, Damaged()).held
    # of a file that was rubbish from the start nothing can be ok, not even what looks right
    found = compare_tables("crops", CLEAN, CLEAN, Damaged(frozenset({"a"}), hopeless=frozenset({"a"})))
    assert not found.held
    assert found.unsaid == [("a", 0), ("a", 1)]


def test_rows_doubled_across_shards_are_noticed(raw: Path, work: Path, tmp_path: Path) -> None:
    other = tmp_path / "w"
    recipe = load_recipe("debug")
    index.build(load_dataset("synthetic"), raw, other, recipe.pipeline, recipe="debug")
    runner.run(skeletons.STAGE, other, recipe)
    assert compare_stage("skeletons", work, other, Damaged()).equal == 32
    first, second = (shard_path(other, "skeletons", n) for n in (0, 1))
    second.write_bytes(first.read_bytes())
    found = compare_stage("skeletons", work, other, Damaged())
    assert len(found.doubled) == len(found.lost) == 8


def test_the_report_holds_only_if_every_stage_was_compared_and_held() -> None:
    report = Report(0, 1, 1, 1)
    assert not report.held
    report.comparisons = [compare_tables("crops", CLEAN, CLEAN, Damaged())]
    assert report.held
    report.violations = ["a worker outlived its driver"]
    assert not report.held
    assert report.as_dict()["violations"] == report.violations
    report.violations = []
    report.comparisons.append(compare_tables("captions", CLEAN, CLEAN.slice(1), Damaged()))
    assert not report.held
    assert report.lines()[-1] == "it did NOT hold"


# ---------------------------------------------------------------------------------------------- damages


@pytest.mark.parametrize("how", faults.GARBAGE)
def test_garbage_replaces_the_link_and_never_what_it_points_to(how: str, tmp_path: Path) -> None:
    raw, link = tmp_path / "raw.avi", tmp_path / "link.avi"
    raw.write_bytes(bytes(range(100)))
    link.symlink_to(raw)
    faults.spoil(link, how, random.Random(0))
    assert raw.read_bytes() == bytes(range(100))
    assert not link.is_symlink()
    assert link.read_bytes() != raw.read_bytes()
    assert (link.stat().st_size == 100) == ("same size" in how)


def test_every_damage_is_found_by_verify_or_is_only_a_leftover(
    raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    from c2vl_pipeline.maintenance.verify import verify

    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
    runner.run(skeletons.STAGE, work, recipe)
    whole = {p.name: p.read_bytes() for p in (work / "skeletons").glob("shard-*")}
    assert verify(work) == []
    rng, seen = random.Random(0), set()
    for _ in range(60):
        what = faults.damage(work / "skeletons", rng)
        assert what is not None
        seen.add(what)
        assert bool(verify(work)) == (what != "an orphan left")
        for name, data in whole.items():
            (work / "skeletons" / name).write_bytes(data)
    assert len(seen) == 6
    assert faults.damage(tmp_path / "nothing", rng) is None


# ------------------------------------------------------------------------------------- what chaos found


def test_one_flipped_bit_of_a_manifest_is_never_believed(tmp_path: Path) -> None:
    path = tmp_path / "shard-00000.parquet"
    made = commit_table(path, CLEAN, key="k", row_group=8, seconds=1.5, extra={"samples": "0" * 8})
    data = path.with_suffix(".json").read_bytes()
    assert read_shard_manifest(path) == made
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.with_suffix(".json").write_bytes(flipped)
        assert read_shard_manifest(path) in (None, made)  # blanks may become other blanks


def test_what_a_kill_after_the_commit_leaves_behind_is_removed_by_the_next_run(
    raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
    runner.run(skeletons.STAGE, work, recipe)
    folder = work / "skeletons"
    manifest = read_shard_manifest(folder / "shard-00001.parquet")
    assert manifest is not None
    for name in ("00000-00004.piece", "123.journal"):
        (folder / f".shard-00001-{manifest.key[:12]}-{name}").write_bytes(b"left")
    runner.run(skeletons.STAGE, work, recipe)
    assert [p.name for p in folder.glob(".*")] == [".lock"]


def test_a_worker_killed_while_it_starts_costs_another_start_and_never_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, cluster = [], workers.LocalCluster

    def dies(*args: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) < 2:
            raise RuntimeError("Nanny failed to start.")
        return cluster(*args, **options)

    monkeypatch.setattr(workers, "LocalCluster", dies)
    with workers.Workers(1) as started:
        assert started.client(tmp_path).submit(abs, -3).result(timeout=60) == 3
    assert len(made) == 2
    monkeypatch.setattr(workers, "LocalCluster", _never)
    with workers.Workers(1) as started, pytest.raises(StageError, match=r"died 3 times while they started"):
        started.client(tmp_path)


def _never(**_: Any) -> Any:
    raise RuntimeError("Nanny failed to start.")


def test_a_vector_does_not_depend_on_its_batch() -> None:
    engine = engines.load(EngineSpec(role="encoder", backend="classical"))
    images = list(np.random.default_rng(0).integers(0, 256, (9, 70, 50, 3), np.uint8))
    whole = engine.encode_images(images)
    for part in (images[:1], images[:2], images[3:8]):
        at = next(i for i, image in enumerate(images) if image is part[0])
        assert (engine.encode_images(part) == whole[at : at + len(part)]).all()


# --------------------------------------------------------------------------------------------- the storm


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
    assert "everything held" in result.output
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before
    assert {p: p.stat().st_mtime_ns for p in raw.rglob("*")} == raw_before
    assert list((tmp_path / "scratch").iterdir()) == []
