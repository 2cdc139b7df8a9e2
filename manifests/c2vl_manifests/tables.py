"""Parquet files that others may have made, read within bounds.

A dictionary of one long value makes gigabytes of a small file, and the footer's sizes are what its writer says. So the
headers of all pages are read first, which the decoder obeys; they bound what is unpacked and the length of any value.
They are read in the bytes that the decoder asks for, so that both read the same pages. Where values may be repeated, as
few rows are decoded at once as memory allows. Pages whose values repeat the beginning of the one before are refused:
pyarrow decodes such a page at once, to any size.

Errors are those of damaged files: OSError and pyarrow's ArrowException.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests import thrift
from c2vl_manifests.files import check_regular
from c2vl_manifests.thrift import I32, I64

MOST_UNPACKED, _RATIO = 1 << 30, 16
"""A table may unpack to this many bytes, or to this many times the size of its file."""
_AT_ONCE = 128 << 20
"""Bytes of repeated values that are decoded at once."""
_MOST_ROWS = 1 << 16
_MOST_PAGES = 1 << 17
"""Pages whose headers are read, in some seconds. A shard of crops has a thousand."""
_MOST_FOOTER = 32 << 20

_DICTIONARY_PAGE, _DELTA_BYTE_ARRAY = 2, 7
_FACTS = {0: 5, 2: 7, 3: 8}
"""Types of pages -> the field of their header that holds the number of values and their encoding."""
_HEADER = {1: I32, 2: I32, 3: I32, 5: {1: I32, 2: I32}, 7: {1: I32, 2: I32}, 8: {1: I32, 4: I32}}
"""Type, size unpacked and packed, and facts by type: Parquet's PageHeader."""
_FOOTER = {4: [{1: [{3: {7: I64, 9: I64, 11: I64}}]}]}
"""Groups of rows -> columns -> ColumnMetaData: packed size, place of the first page of values, and of the dictionary."""


class _Repeated(pa.ArrowInvalid):  # type: ignore[misc]  # untyped
    """Values may be repeated to more bytes than are decoded at once."""


class _Pages(NamedTuple):
    """What the headers of some pages of one column say."""

    number: int
    unpacked: int
    """Bytes, and eight more for each value."""
    values: int
    longest: int
    """Bytes of the largest dictionary, which may be one value."""


def _pages(data: bytes, left: int) -> _Pages:
    """Read the headers of a column's pages, of which `left` may still be read."""
    at = number = unpacked = values = longest = 0
    while at < len(data):
        try:
            header, at = thrift.struct(data, at, _HEADER)
        except IndexError:  # no page, at which the decoder ends too
            break
        kind, size, packed = header.get(1, 0), header.get(2, 0), header.get(3, 0)
        facts = header.get(_FACTS.get(kind, 0), {})
        if kind in _FACTS and len(facts) < 2:  # the decoder would take those of the page before
            raise thrift.damaged()
        if min(size, packed, facts.get(1, 0)) < 0:
            raise pa.ArrowInvalid("a page has a negative size")
        if facts.get(4, facts.get(2)) == _DELTA_BYTE_ARRAY:
            raise pa.ArrowInvalid("a column is packed as DELTA_BYTE_ARRAY; expected plain values or dictionaries")
        if (number := number + 1) > left:
            raise pa.ArrowInvalid(f"more than {_MOST_PAGES:,} pages")
        at, unpacked = at + packed, unpacked + size
        if kind == _DICTIONARY_PAGE:
            longest = max(longest, size)
        else:
            values += facts.get(1, 0)
    return _Pages(number, unpacked + 8 * values, values, longest)


class _Watched:
    """A file as the decoder reads it: once it is open, all pages of one column of one group of rows at a time."""

    closed = False

    def __init__(self, source: pa.NativeFile) -> None:
        self._source, self._at = source, 0
        self.most = max(MOST_UNPACKED, _RATIO * source.size())
        self._watching, self._pages, self._unpacked, self._repeated = False, 0, 0, 0

    def watch(self, repeated: int) -> None:
        """From now on read the headers of all pages; `repeated` bytes may be written out from dictionaries."""
        self._watching, self._pages, self._unpacked, self._repeated = True, 0, 0, repeated

    def check(self, size: int) -> None:
        """Raise ArrowInvalid if a table unpacks to too many bytes."""
        if size > self.most:
            raise pa.ArrowInvalid(f"unpacks to more than {self.most:,} bytes, from {self._source.size():,}")

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, as files do."""
        self._at = offset + (0, self._at, self._source.size())[whence]
        return self._at

    def tell(self) -> int:
        """Return the place, as files do."""
        return self._at

    def read(self, size: int) -> bytes:
        """Return the next bytes if what they unpack to is within bounds."""
        data: bytes = self._source.read_at(size, self._at)
        self._at += len(data)
        if self._watching:
            pages = _pages(data, _MOST_PAGES - self._pages)
            self._pages += pages.number
            self._unpacked += pages.unpacked
            self.check(self._unpacked)
            self._repeated -= pages.values * pages.longest
            if self._repeated < 0:
                raise _Repeated("values are repeated to more bytes than the footer says")
        return data


class Table:
    """An open Parquet file; `metadata` and `schema` are those of its footer."""

    def __init__(self, source: pa.NativeFile) -> None:
        self._source = source
        self._watched, self._file = self._opened()
        self.metadata, self.schema = self._file.metadata, self._file.schema_arrow

    def _opened(self, dictionaries: Sequence[str] = ()) -> tuple[_Watched, pq.ParquetFile]:
        watched = _Watched(self._source)
        file = pa.PythonFile(watched, "r")
        # buffered ahead, columns would be read together
        options = {"page_checksum_verification": True, "pre_buffer": False, "read_dictionary": list(dictionaries)}
        return watched, pq.ParquetFile(file, **options)

    def read(self, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None) -> pa.Table:
        """Return columns of row groups, all unless given."""
        groups = self._filled(range(self.metadata.num_row_groups) if groups is None else groups)
        names = self.schema.names if columns is None else list(columns)
        facts = [self.metadata.row_group(group) for group in groups]
        self._watched.check(sum(group.total_byte_size for group in facts))
        self._watched.watch(_AT_ONCE)
        try:
            return self._file.read_row_groups(groups, names, use_threads=False)
        except _Repeated:
            longest, repeated = self._longest(names, groups)
        if sum(group.num_rows for group in facts) * max(longest.values(), default=0) <= _AT_ONCE:
            self._watched.watch(repeated)
            return self._file.read_row_groups(groups, names, use_threads=False)
        return pa.Table.from_batches(self._batches(names, groups, longest, repeated, _MOST_ROWS)).combine_chunks()

    def _filled(self, groups: Iterable[int]) -> list[int]:
        """Return the groups that hold rows: in others the decoder reads bytes that are no pages, and leaves them."""
        return [group for group in groups if self.metadata.row_group(group).num_rows]

    def batches(self, most_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, in batches of up to `most_rows`."""
        groups = self._filled(range(self.metadata.num_row_groups))
        return self._batches(None, groups, *self._longest(None, groups), most_rows)

    def _batches(
        self, columns: Sequence[str] | None, groups: list[int], longest: dict[str, int], written: int, most_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows whose repeated values are known before they are written out."""
        repeated, others = [name for name in longest if name], longest.get("", 1)
        size, names, total = min(most_rows, max(_AT_ONCE // others, 1)), None if columns is None else list(columns), 0
        watched, file = self._opened(repeated)
        watched.watch(written)
        for batch in file.iter_batches(size, groups, names, use_threads=False):
            for part in self._written_out(batch):
                total += part.nbytes
                watched.check(total)
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

    def _longest(self, columns: Sequence[str] | None, groups: Iterable[int]) -> tuple[dict[str, int], int]:
        """Return a bound of the length of values that may be repeated, by column, and of the bytes of them all.

        Under "" is the one of columns that cannot be read as dictionaries.
        """
        total, pages, repeated, longest = 0, 0, 0, dict[str, int]()
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
                packed, at, dictionary = (chunks[number].get(n, 0) for n in (7, 9, 11))
                at = dictionary if 0 < dictionary < at else at
                if min(packed, at) < 0:
                    raise thrift.damaged()
                held = _pages(self._source.read_at(packed, at), _MOST_PAGES - pages)
                total, pages, repeated = (
                    total + held.unpacked,
                    pages + held.number,
                    repeated + held.values * held.longest,
                )
                self._watched.check(total)
                if text and held.longest:
                    if nested:  # a single row may hold them all
                        self._watched.check(held.values * held.longest)
                    place = "" if nested else path
                    longest[place] = max(longest.get(place, 0), held.longest)
        return longest, repeated

    @cached_property
    def _groups(self) -> list[list[dict[int, int]]]:
        """The columns of each group of rows by the footer; pyarrow's own objects may end the process if it is damaged."""
        tail = self._source.read_at(8, self._source.size() - 8)
        length = int.from_bytes(tail[:4], "little")
        if length > _MOST_FOOTER:
            raise pa.ArrowInvalid(f"a footer of {length:,} bytes, expected up to {_MOST_FOOTER:,}")
        footer = self._source.read_at(length, self._source.size() - 8 - length)
        try:
            return [[column[3] for column in group[1]] for group in thrift.struct(footer, 0, _FOOTER)[0][4]]
        except (IndexError, KeyError) as error:
            raise pa.ArrowInvalid("the footer is damaged") from error


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
