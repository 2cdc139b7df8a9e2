"""Arbitrary tables, label files, files of other tools, layouts and rules give a value or one error."""

from __future__ import annotations

import csv
import io
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import DataError
from c2vl_pipeline.readers.pku import parse_labels
from c2vl_pipeline.readers.sample_table import parse_table
from c2vl_pipeline.readers.table_cells import COLUMNS
from support.fuzz_tables import FILES, SEEDS, TARGETS, outcome, run

FEW = settings(max_examples=150, deadline=None)
number = st.one_of(st.integers(-(10**12), 10**12), st.floats(), st.sampled_from(["", " 7 ", "1_0", "٣", "1e3", "-0"]))
words = st.text(max_size=12)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_unchanged_seeds_give_values(target: str) -> None:
    became = [outcome(target, seed) for seed in SEEDS[target]]
    assert became == ["value"] * len(became)


@pytest.mark.parametrize("target", sorted({*TARGETS} - {*FILES}))
def test_mutations_give_a_value_or_one_error(target: str) -> None:
    counts = run(target, 1500, seed=1)
    assert counts["value"] > 20
    assert counts["refused"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("target", sorted(FILES))
def test_mutations_of_files_of_other_tools_give_a_value_or_one_error(target: str) -> None:
    counts = run(target, 400, seed=1)
    assert counts["value"] > 5
    assert counts["refused"] > 20


@FEW
@given(st.sampled_from(sorted(TARGETS)), st.binary(max_size=400))
def test_any_bytes_give_a_value_or_one_error(target: str, content: bytes) -> None:
    outcome(target, content)


@FEW
@given(st.lists(st.tuples(number, number, number, number), max_size=5))
def test_any_label_rows_give_a_value_or_one_error(rows: list[tuple[Any, ...]]) -> None:
    outcome("labels", "\n".join(",".join(map(str, row)) for row in rows).encode("utf-8", "replace"))


@pytest.mark.slow
@FEW
@given(
    st.lists(
        st.fixed_dictionaries({c: st.one_of(words, number) for c in (*COLUMNS, "split_x")}), min_size=1, max_size=4
    )
)
def test_any_cells_of_a_csv_give_a_value_or_one_error(entries: list[dict[str, Any]]) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, entries[0])
    writer.writeheader()
    writer.writerows(entries)
    outcome("csv", out.getvalue().encode("utf-8", "replace"))


cells = st.one_of(
    st.lists(st.integers(-(2**60), 2**60), min_size=2, max_size=2),
    st.lists(st.floats(), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.lists(st.text(max_size=6), min_size=2, max_size=2),
    st.lists(st.binary(max_size=6), min_size=2, max_size=2),
    st.sampled_from(
        [
            [None, None],
            [date(2024, 1, 2), None],
            [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)],
            [Decimal("1.5"), Decimal(3)],
            [[1], [2, 3]],
            [{"a": 1}, {"a": 2}],
        ]
    ),
)


@FEW
@given(
    st.dictionaries(st.sampled_from([*COLUMNS, "split_x", "split_\n", "extra\nname"]), cells, min_size=1, max_size=6)
)
def test_any_types_of_a_parquet_give_a_value_or_one_error(columns: dict[str, list[Any]]) -> None:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    outcome("parquet", out.getvalue())


@FEW
@given(st.dictionaries(words, st.one_of(words, st.integers(), st.floats(), st.lists(words)), max_size=6), st.integers())
def test_any_joint_table_gives_a_value_or_one_error(joints: dict[str, Any], dims: int) -> None:
    def quoted(value: Any) -> str:
        if isinstance(value, str):
            return "'" + value.translate({39: None, 10: None, 13: None}) + "'"
        return "[" + ", ".join(map(quoted, value)) + "]" if isinstance(value, list) else str(value)

    text = f"dims = {dims % 5}\n[joints]\n" + "\n".join(f"{quoted(k)} = {quoted(v)}" for k, v in joints.items())
    outcome("layout", text.encode("utf-8", "replace"))


# what mutations and reading found, kept


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,9e300,9e300,2", ":1: expected `class,start,end,confidence`, found '1,9e300,9e300,2'"),
        ("1,1.5,9,2", ":1: expected `class,start,end,confidence`, found '1,1.5,9,2'"),
        ("1,nan,9,2", ":1: expected `class,start,end,confidence`"),
        ("\n" * 40_000 + "1,1,9,2", ":40001: more rows than any recording has"),
    ],
)
def test_numbers_that_no_column_can_hold_are_refused(text: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_labels(text, "0043-L", load_dataset("pku-mmd-1"), "f.txt")
    assert str(caught.value).startswith(f"f.txt{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sample_id,view\na,1,2\n", "f.csv:2: 3 cells; the header has 2 columns"),
        ("sample_id,view,view\na,1,2\n", "f.csv:1: column 'view' appears twice; name each column once"),
        ("sample_id,view\na,1_0\n", "f.csv:2: view = '1_0' is not a whole number"),
        ("sample_id,view\na,٣\n", "f.csv:2: view = '٣' is not a whole number"),
        ('sample_id,view\na,"\n99999"\n', "f.csv:3: view = 99999 is out of range; expected less than 32768"),
        (",".join(f"split_{n}" for n in range(60_000)), "f.csv:1: 60,000 columns; expected up to 1000"),
        ('sample_id,"split_\n"\na,b\n', "f.csv:1: unknown column 'split_\\n'; known:"),
        ("sample_id,video\na,x\0y\n", "f.csv:2: video = 'x\\x00y'… is not a name; expected a short text"),
        ('sample_id\n"' + "x" * 200_000 + '"\n', "f.csv: not a table of samples (field larger than field limit (131072))"),
        ("sample_id,split_x\na,\"tr\nain\"\n", "f.csv:3: split_x = 'tr\\nain'; use train, test or leave it empty"),
    ],
)  # fmt: skip
def test_odd_tables_are_refused_in_one_line(text: str, expected: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_table(text.encode(), ".csv", "f.csv")
    assert str(caught.value).startswith(expected)


def test_a_parquet_of_lists_is_refused_before_it_is_read() -> None:
    out = io.BytesIO()
    pq.write_table(pa.table({"sample_id": [["a"]]}), out)
    with pytest.raises(DataError, match=r"f\.parquet:1: column 'sample_id' holds list<.*>; expected text or numbers"):
        parse_table(out.getvalue(), ".parquet", "f.parquet")
