"""Rows of single samples, read from their shards."""

from __future__ import annotations

import shutil
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import gallery, trace
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.workspace import load, shard_path


def test_lookup_returns_the_rows_a_whole_read_returns(odd):
    index = load(odd)
    whole: dict[str, list[Any]] = {}
    for shard in range(len(index.shard_ranges)):
        for row in read_shard(shard_path(odd, "captions", shard)).to_pylist():
            whole.setdefault(row["sample_id"], []).append(row)
    lookup = RowReader(index)
    found = lookup.rows("captions", [0, 3, index.table.num_rows - 1])
    assert lookup.notes == []
    for number, rows in found.items():
        assert rows == whole[index.table["sample_id"][number].as_py()]
    assert sorted(found) == [0, 3, index.table.num_rows - 1]


@pytest.mark.parametrize("change", ["status", "slot"])
def test_a_shard_with_columns_of_another_type_is_passed_over_with_a_note(work, tmp_path, change):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)
    path = shard_path(folder, "crops", 0)
    table = pq.read_table(path)
    values = pa.array([[1.5]] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index(change), change, values), path)
    made = gallery.gallery(folder, tmp_path / "g.html", limit=2)
    assert any(
        "crops cannot be read" in note and f"the column '{change}' is of another type" in note for note in made.notes
    )


def test_a_damaged_shard_is_passed_over_with_a_note(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)
    path = shard_path(folder, "crops", 0)
    path.write_bytes(path.read_bytes()[:1000])
    made = gallery.gallery(folder, tmp_path / "g.html", limit=2)
    assert any("crops cannot be read" in note for note in made.notes)
    assert made.shown == 2
    stages = trace.trace(folder, load(folder).table["sample_id"][0].as_py()).facts["stages"]
    assert {s["stage"]: s["agrees"] for s in stages}["crops"] == "no"
