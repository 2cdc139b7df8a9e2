"""Vectors made elsewhere: any form gives the same, in any order, and what is wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.vectors import read_vectors

HELD = {name: np.random.default_rng(n).normal(size=(3, 5)).astype(np.float32) for n, name in enumerate("bca")}


def parquet(path: Path, rows: list[dict[str, Any]], kind: pa.DataType | None = None) -> Path:
    table = pa.Table.from_pylist(rows)
    if kind is not None:
        at = table.schema.get_field_index("vector")
        table = table.set_column(at, "vector", table.column("vector").cast(kind))
    pq.write_table(table, path)
    return path


def rows(held: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    placed = [(name, slot, row.tolist()) for name, of in held.items() for slot, row in enumerate(of)]
    return [{"sample_id": name, "slot": slot, "vector": row} for name, slot, row in reversed(placed)]


def columns(path: Path) -> Path:
    names, slots = np.repeat([*HELD], 3), np.tile(np.arange(3), 3)
    order = np.random.default_rng(9).permutation(9)
    np.savez(path, sample_id=names[order], slot=slots[order], vector=np.concatenate([*HELD.values()])[order])
    return path


def by_name(path: Path) -> Path:
    np.savez(path, **HELD)
    return path


def stacked(path: Path) -> Path:
    np.savez(path, sample_id=np.array([*HELD]), vectors=np.stack([*HELD.values()]))
    return path


FORMS: dict[str, Callable[[Path], Path]] = {
    "npz by name": lambda folder: by_name(folder / "a.npz"),
    "npz of columns": lambda folder: columns(folder / "a.npz"),
    "npz of one array": lambda folder: stacked(folder / "a.npz"),
    "Parquet": lambda folder: parquet(folder / "a.parquet", rows(HELD), pa.list_(pa.float32())),
    "Parquet of one width": lambda folder: parquet(folder / "a.parquet", rows(HELD), pa.list_(pa.float32(), 5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same(tmp_path: Path, form: str) -> None:
    made = read_vectors(FORMS[form](tmp_path))
    assert (made.width, made.slots, made.by_name.keys()) == (5, 3, HELD.keys())
    for name, expected in HELD.items():
        np.testing.assert_array_equal(made.by_name[name], expected)


def test_one_vector_per_name_is_one_slot(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **{name: of[0] for name, of in HELD.items()})
    one = [{"class": name, "vector": of[0].tolist()} for name, of in HELD.items()]
    for made in (read_vectors(tmp_path / "a.npz"), read_vectors(parquet(tmp_path / "a.parquet", one), "class")):
        assert made.slots == 1
        np.testing.assert_allclose(made.by_name["a"], HELD["a"][:1])


V = [1.0, 2.0]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([{"name": "a", "vector": V}], "the columns are name, vector; expected sample_id, slot (if there is one per slot) and vector"),
        ([{"sample_id": "a", "x": 1.0}], "the columns are sample_id, x"),
        ([{"sample_id": "a", "vector": V}, {"sample_id": "a", "vector": V}], "sample_id 'a' is there twice"),
        ([{"sample_id": "a", "slot": 0, "vector": V}] * 2, "sample_id 'a' has slot 0 twice"),
        ([{"sample_id": "a", "slot": 1, "vector": V}], "sample_id 'a' lacks slot 0"),
        ([{"sample_id": "a", "slot": -1, "vector": V}], "sample_id 'a' has the slot -1"),
        ([{"sample_id": "a", "slot": 0.5, "vector": V}], "sample_id 'a' has the slot 0.5"),
        ([{"sample_id": "a", "vector": V}, {"sample_id": "b", "vector": [1.0]}], "vectors of width 1 and 2; expected one width"),
        ([{"sample_id": "a", "vector": [1.0, float("nan")]}], "sample_id 'a' has NaN or infinite values"),
        ([{"sample_id": "a", "vector": [0.0, 0.0]}], "sample_id 'a' has a vector of zeros, which has no direction"),
        ([{"sample_id": "a", "vector": None}, {"sample_id": "b", "vector": V}], "rows without a sample_id or a vector"),
        ([{"sample_id": "a", "vector": [1, 2]}], "vectors of int64"),
        ([{"sample_id": "a", "vector": [1.0, None]}], "or with gaps"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_one_line(tmp_path: Path, table: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_vectors(parquet(tmp_path / "a.parquet", table))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "a.parquet"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({}, "holds no vectors"),
        ({"a": np.ones(2), "b": np.ones(3)}, "sample_id 'b' has vectors of width 3, 'a' of 2; expected one width"),
        ({"a": np.ones((2, 2, 2))}, "sample_id 'a': float64 (2, 2, 2); expected floating-point numbers, (D,) or (slots, D)"),
        ({"a": np.array(["x"])}, "sample_id 'a': <U1"),
        ({"a": np.array([None])}, "sample_id 'a': no array of numbers"),
        ({"sample_id": np.array(["a", "b"]), "vector": np.ones((3, 2))}, "no arrays of equal length"),
        ({"sample_id": np.array(["a", "a"]), "vector": np.ones((2, 2))}, "sample_id 'a' is there twice"),
        ({"sample_id": np.array([1, 2]), "vector": np.ones((2, 2))}, "no arrays of equal length, of texts and of numbers"),
        ({"sample_id": np.array(["a"]), "slot": np.array([0.5]), "vector": np.ones((1, 2))}, "expected a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_archive_is_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError) as caught:
        read_vectors(tmp_path / "a.npz")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [("a.csv", ".csv; expected"), ("b.npz", "does not exist"), ("c.npz", "read"), ("c.parquet", "read")],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, name: str, says: str) -> None:
    for damaged in ("c.npz", "c.parquet"):
        (tmp_path / damaged).write_bytes(b"PAR1 PK no")
    with pytest.raises(DataError, match=f"{says}.*"):
        read_vectors(tmp_path / name)
