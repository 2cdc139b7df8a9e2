"""Comparison of rows between a clean and a disturbed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.manifest import commit_table, read_shard_manifest
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import CROPS, Status
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import index, skeletons
from c2vl_pipeline.stages.base import row_status
from c2vl_pipeline.workspace import shard_path
from chaos_report import Report
from compare_rows import Damaged, compare_stage, compare_tables

pytestmark = pytest.mark.stress
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
    runner.run_stage(skeletons.STAGE, other, recipe)
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
