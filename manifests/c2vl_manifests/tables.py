"""Parquet files that others may have made, read within bounds.

A dictionary of one long value makes gigabytes of a small file, and the footer's sizes are what its writer says. So the
headers of all pages are read first, which the decoder obeys; they bound what is unpacked and the length of any value.
Where values may be repeated, as few rows are decoded at once as memory allows. Pages whose values repeat the beginning
of the one before are refused: pyarrow decodes such a page at once, to any size.

Errors are those of damaged files: OSError and pyarrow's ArrowException.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests.files import check_regular

MOST_UNPACKED, _RATIO = 1 << 30, 16
"""A table may unpack to this many bytes, or to this many times the size of its file."""
_AT_ONCE = 128 << 20
"""Bytes of repeated values that are decoded at once."""
_MOST_ROWS = 1 << 16
_MOST_PAGES = 1 << 17
"""Pages whose headers are read, in some seconds. A shard of crops has a thousand."""

_MOST_FOOTER, _DEEPEST = 32 << 20, 8
_DICTIONARY_PAGE, _SECOND_FORM, _DELTA_BYTE_ARRAY = 2, 3, 7
_FACTS = {0: 5, 2: 7, 3: 8}
"""Types of pages -> the field of their header that holds the number of values and their encoding."""
_TRUTHS, _WHOLE = {1, 2}, {4, 5, 6}
"""Types of fields in Thrift's compact protocol."""


class Table:
    """An open Parquet file; `metadata` and `schema` are those of its footer."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self._file = self._opened()
        self.metadata, self.schema = self._file.metadata, self._file.schema_arrow
        self._most = max(MOST_UNPACKED, _RATIO * source.size())

    def _opened(self, dictionaries: Sequence[str] = ()) -> pq.ParquetFile:
        return pq.ParquetFile(self._source, page_checksum_verification=True, read_dictionary=list(dictionaries))

    def read(self, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None) -> pa.Table:
        """Return columns of row groups, all unless given."""
        groups = list(range(self.metadata.num_row_groups)) if groups is None else list(groups)
        names = self.schema.names if columns is None else list(columns)
        facts = [self.metadata.row_group(group) for group in groups]
        self._check(sum(group.total_byte_size for group in facts))
        longest = self._longest(names, groups)
        if sum(group.num_rows for group in facts) * max(longest.values(), default=0) <= _AT_ONCE:
            return self._file.read_row_groups(groups, names)
        return pa.Table.from_batches(self._batches(names, groups, longest, _MOST_ROWS)).combine_chunks()

    def batches(self, most_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, in batches of up to `most_rows`."""
        groups = list(range(self.metadata.num_row_groups))
        return self._batches(None, groups, self._longest(None, groups), most_rows)

    def _batches(
        self, columns: Sequence[str] | None, groups: list[int], longest: dict[str, int], most_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows whose repeated values are known before they are written out."""
        repeated, others = [name for name in longest if name], longest.get("", 1)
        size, names, total = min(most_rows, max(_AT_ONCE // others, 1)), None if columns is None else list(columns), 0
        for batch in self._opened(repeated).iter_batches(size, groups, names, use_threads=False):
            for part in self._written_out(batch):
                total += part.nbytes
                self._check(total)
                yield part

    def _written_out(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield rows in parts that take little memory without their dictionaries."""
        coded = [c for c in batch.columns if isinstance(c, pa.DictionaryArray)]
        sizes = [pc.sum(pc.binary_length(c.dictionary).take(c.indices)).as_py() or 0 for c in coded]
        if sum(sizes) > _AT_ONCE and (half := batch.num_rows // 2):
            yield from self._written_out(batch.slice(0, half))
            yield from self._written_out(batch.slice(half))
        else:
            fields = [self.schema.field(name) for name in batch.schema.names]
            arrays = [c.cast(field.type) for c, field in zip(batch.columns, fields, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields, self.schema.metadata))

    def _check(self, size: int) -> None:
        if size > self._most:
            raise pa.ArrowInvalid(f"unpacks to more than {self._most:,} bytes, from {self._source.size():,}")

    def _longest(self, columns: Sequence[str] | None, groups: Iterable[int]) -> dict[str, int]:
        """Return a bound of the length of values that may be repeated, by column, from the headers of all pages.

        Under "" is the one of columns that cannot be read as dictionaries.
        """
        total, pages, longest = 0, 0, dict[str, int]()
        leaves = [self.metadata.schema.column(number) for number in range(self.metadata.num_columns)]
        chosen = [
            (number, leaf.path, leaf.max_repetition_level > 0, leaf.physical_type.endswith("BYTE_ARRAY"))
            for number, leaf in enumerate(leaves)
            if columns is None or any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns)
        ]
        for group in groups:
            chunks = self._groups[group]
            if len(chunks) != len(leaves):
                raise pa.ArrowInvalid(f"a group of rows has {len(chunks)} columns, expected {len(leaves)}")
            for number, path, nested, text in chosen:
                try:
                    size, values, value, count = self._pages(chunks[number][3], _MOST_PAGES - pages)
                except (AttributeError, KeyError, TypeError) as error:  # numbers where tables should be
                    raise pa.ArrowInvalid("the footer or the header of a page is damaged") from error
                total, pages = total + size + 8 * values, pages + count
                self._check(total)
                if text and value:
                    if nested:  # a single row may hold them all
                        self._check(values * value)
                    place = "" if nested else path
                    longest[place] = max(longest.get(place, 0), value)
        return longest

    @cached_property
    def _groups(self) -> list[list[Any]]:
        """The columns of each group of rows by the footer; pyarrow's own objects may end the process if it is damaged."""
        tail = self._source.read_at(8, self._source.size() - 8)
        length = int.from_bytes(tail[:4], "little")
        if length > _MOST_FOOTER:
            raise pa.ArrowInvalid(f"a footer of {length:,} bytes, expected up to {_MOST_FOOTER:,}")
        footer = self._source.read_at(length, self._source.size() - 8 - length)
        try:
            return [group[1] for group in _table(footer)[0][4]]
        except (IndexError, KeyError, TypeError) as error:
            raise pa.ArrowInvalid("the footer is damaged") from error

    def _pages(self, chunk: dict[int, Any], left: int) -> tuple[int, int, int, int]:
        """Return the bytes of a column's pages, its number of values, a bound of those that may be repeated, and its pages.

        Fields are those of Parquet's ColumnMetaData and PageHeader.
        """
        most, packed, at, dictionary = (chunk.get(n, 0) for n in (5, 7, 9, 11))
        at = dictionary if 0 < dictionary < at else at
        end, size, values, longest, pages = at + packed, 0, 0, 0, 0
        while at < end and values < most:
            header, length = self._header(at)
            kind, unpacked, packed = (header.get(n, 0) for n in (1, 2, 3))
            facts = header.get(_FACTS.get(kind, 0), {})
            if min(unpacked, packed, facts.get(1, 0)) < 0:
                raise pa.ArrowInvalid("a page has a negative size")
            if facts.get(4 if kind == _SECOND_FORM else 2) == _DELTA_BYTE_ARRAY:
                raise pa.ArrowInvalid("a column is packed as DELTA_BYTE_ARRAY; expected plain values or dictionaries")
            if (pages := pages + 1) > left:
                raise pa.ArrowInvalid(f"more than {_MOST_PAGES:,} pages")
            at, size = at + length + packed, size + unpacked
            if kind == _DICTIONARY_PAGE:
                longest = max(longest, unpacked)
            else:
                values += facts.get(1, 0)
        return size, values, longest, pages

    def _header(self, at: int) -> tuple[dict[int, Any], int]:
        """Return the fields of a page's header and its length."""
        for most in (1 << 9, 1 << 14, 1 << 20):
            with suppress(IndexError):
                return _table(self._source.read_at(max(min(most, self._source.size() - at), 0), at))
        raise pa.ArrowInvalid("a page has no header")


@contextmanager
def open_table(source: Path | bytes) -> Iterator[Table]:
    """Open a Parquet file, or the content of one; checksums of pages are verified."""
    if isinstance(source, Path):
        check_regular(source)
    with pa.OSFile(str(source)) if isinstance(source, Path) else pa.BufferReader(source) as file:
        yield Table(file)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a Parquet file, or columns of it."""
    with open_table(path) as table:
        return table.read(columns)


def read_rows(path: Path, ids: Sequence[str], columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a Parquet file with these values of `sample_id`; only their row groups are read."""
    wanted = pa.array(ids, pa.string())
    with open_table(path) as table:
        hits = pc.is_in(table.read(["sample_id"]).column("sample_id"), wanted).to_pylist()
        groups, start = [], 0
        for group in range(table.metadata.num_row_groups):
            stop = start + table.metadata.row_group(group).num_rows
            groups += [group] if any(hits[start:stop]) else []
            start = stop
        found = table.read(columns, groups)
        return found.filter(pc.is_in(found.column("sample_id"), wanted))


# ----------------------------------------------------------------------------- Thrift's compact protocol


def _table(data: bytes, at: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return fields by number, and where they end.

    Raises:
        IndexError: the data ends before.
    """
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        number, at = (number + (head >> 4), at + 1) if head >> 4 else _whole(data, at + 1)
        if head & 15 in _TRUTHS:
            fields[number] = head & 15 == 1
        else:
            fields[number], at = _value(head & 15, data, at, depth)
    return fields, at + 1


def _value(kind: int, data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if kind in _WHOLE:
        return _whole(data, at)
    if kind == 8:  # text
        length, at = _varint(data, at)
        return None, at + length
    if kind == 12 and depth < _DEEPEST:
        return _table(data, at, depth + 1)
    if kind in {9, 10} and depth < _DEEPEST:  # lists
        size, inner, at = data[at] >> 4, data[at] & 15, at + 1
        if size == 15:
            size, at = _varint(data, at)
        values = []
        for _ in range(size):
            value, at = (data[at], at + 1) if inner in _TRUTHS else _value(inner, data, at, depth + 1)
            values.append(value)
        return values, at
    if kind in {3, 7}:
        return None, at + (1 if kind == 3 else 8)
    raise pa.ArrowInvalid("the footer or the header of a page is damaged")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if shift > 63:
            raise pa.ArrowInvalid("the footer or the header of a page is damaged")
    return value | byte << shift, at + 1


def _whole(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at
