"""Columns of stages' tables: absent, of other types, with nulls."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_table, read_shard
from c2vl_manifests.schema import CAPTIONS, CROPS, PACKED_INDEX, SAMPLES, SKELETONS, embeddings, misfit

SCHEMAS = (SAMPLES, SKELETONS, CROPS, CAPTIONS, embeddings(5, 7), PACKED_INDEX)


@pytest.mark.parametrize("schema", SCHEMAS, ids=["samples", "skeletons", "crops", "captions", "embeddings", "packed"])
def test_tables_of_every_stage_fit_as_written_and_no_column_may_change_its_type(schema, tmp_path: Path) -> None:
    commit_table(tmp_path / "shard.parquet", schema.empty_table(), key="k", row_group=8)
    table = read_shard(tmp_path / "shard.parquet")
    assert misfit(table, schema.names) is None
    for at, name in enumerate(schema.names):
        other = table.set_column(at, name, pa.array([], pa.float64()))
        assert misfit(other) == f"the column {name!r} is of another type (double) or lacks values"
        assert misfit(table.drop_columns([name]), schema.names) == f"lacks the column {name!r}"


def test_nulls_are_refused_where_no_value_may_be_absent() -> None:
    assert misfit(pa.table({"error": pa.array([None, "x"])})) is None
    assert misfit(pa.table({"status": pa.array([None, "x"])})) is not None


@pytest.mark.parametrize(("dtype", "fits"), [(pa.float16(), True), (pa.float64(), False)])
def test_vectors_are_halves_of_any_width(dtype: pa.DataType, fits: bool) -> None:
    kind = pa.list_(pa.field("element", dtype, nullable=False), 3)
    assert (misfit(pa.table({"vision": pa.array([[0, 1, 2]], kind)})) is None) is fits


def test_columns_of_no_stage_are_of_any_type() -> None:
    assert misfit(pa.table({"own": [1.5, None]}), ["own"]) is None


def test_a_shard_with_a_column_of_another_type_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    commit_table(path, pa.table({"caption": [1, 2]}), key="k", row_group=8)
    with pytest.raises(
        DataError, match=r"shard.parquet: the column 'caption' is of another type \(int64\) .*; delete it"
    ):
        read_shard(path)
    with pytest.raises(DataError, match="lacks the column 'error'"):
        read_shard(path, ["caption", "error"])
