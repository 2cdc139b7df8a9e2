"""Table of a custom dataset's samples: `samples.csv` or `samples.parquet`, parsed into rows of the index.

A table of any content gives rows or one DataError with file and line.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.datasets import SPLITS
from c2vl_manifests.errors import DataError
from c2vl_pipeline.readers.base import Row, new_row

_INT16, _INT32 = 1 << 15, 1 << 31
_MOST_TABLE_BYTES = 1 << 30
_MOST_ROWS = 10_000_000
_MOST_COLUMNS = 1000
_MOST_CELL = 1 << 16

COLUMNS = (
    "sample_id", "video", "start_frame", "end_frame", "skeleton", "label", "subject", "view", "camera",
)  # fmt: skip


def table_rows(root: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Return the classes and rows of the table in a folder, samples.parquet or samples.csv.

    Raises:
        DataError: there is no table, or `file:line: reason` (Parquet: the row's number).
    """
    path = next((root / n for n in ("samples.parquet", "samples.csv") if (root / n).is_file()), None)
    if path is None:
        raise DataError(
            f"{root} holds neither samples.csv nor samples.parquet; write a table with the columns sample_id, video, "
            "start_frame, end_frame, skeleton, label, subject, view and split_<benchmark> (only sample_id is required)"
        )
    try:
        if (size := path.stat().st_size) > _MOST_TABLE_BYTES:
            raise DataError(f"{path}: {size:,} bytes; a table of samples has up to {_MOST_TABLE_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not a table of samples ({error})") from error
    return parse_table(content, path.suffix, str(path))


def parse_table(content: bytes, suffix: str, source: str) -> tuple[tuple[str, ...], list[Row]]:
    """Return the classes and rows of a `.csv` or `.parquet` table, ordered by video.

    Raises:
        DataError: `file:line: reason` (Parquet: the row's number).
    """
    numbered = _parquet(content, source) if suffix == ".parquet" else _csv(content, source)
    labels = {label for _, entry in numbered if (label := _label(entry))}
    if len(labels) >= _INT16:
        raise DataError(f"{source}: {len(labels):,} different labels; expected less than {_INT16:,}")
    classes = sorted(labels, key=_label_order)
    place = {label: at for at, label in enumerate(classes)}
    rows = [_table_row(source, number, entry, place) for number, entry in numbered]
    seen: dict[str, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        if (first := seen.setdefault(row["sample_id"], number)) != number:
            raise DataError(
                f"{source}:{number}: sample_id {row['sample_id'][:60]!r} was used in {first} already; ids must be unique"
            )
    rows.sort(key=lambda r: (r["video"] or "", r["start_frame"] or 0, r["sample_id"]))
    return tuple(classes), rows


def _label_order(label: str) -> tuple[bool, int, str]:
    """Sort key: numbers first and by value, then words."""
    number = label.isascii() and label.isdigit() and len(label) < 20
    return not number, int(label) if number else 0, label


def _check_columns(columns: list[str], source: str) -> None:
    """Raise DataError for unknown, repeated or too many columns."""
    if len(columns) > _MOST_COLUMNS:
        raise DataError(f"{source}:1: {len(columns):,} columns; expected up to {_MOST_COLUMNS}")
    for at, column in enumerate(columns):
        if column in columns[:at]:
            raise DataError(f"{source}:1: column {column[:60]!r} appears twice; name each column once")
        if column not in COLUMNS and not (column.startswith("split_") and column.isprintable()):
            near = difflib.get_close_matches(column[:60], COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COLUMNS)}, split_<benchmark>"
            raise DataError(f"{source}:1: unknown column {column[:60]!r}; {hint}")


def _csv(content: bytes, source: str) -> list[tuple[int, Row]]:
    """Return (line, cells by column) of each row."""
    try:
        text = content.decode("utf-8-sig")  # spreadsheets write a byte order mark
        reader = csv.reader(io.StringIO(text, newline=""))
        columns = next((line for line in reader if line), [])
        _check_columns(columns, source)
        numbered = []
        for cells in reader:
            if not cells:
                continue
            if len(cells) > len(columns):
                raise DataError(
                    f"{source}:{reader.line_num}: {len(cells)} cells; the header has {len(columns)} columns"
                )
            numbered.append((reader.line_num, dict(zip(columns, cells, strict=False))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a table of samples ({error}); write CSV in UTF-8") from error
    return numbered


def _parquet(content: bytes, source: str) -> list[tuple[int, Row]]:
    """Return (row from 1, cells by column) of each row."""
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        facts = file.metadata
        size = sum(facts.row_group(g).total_byte_size for g in range(facts.num_row_groups))
        if facts.num_rows > _MOST_ROWS or size > _MOST_TABLE_BYTES:
            raise DataError(
                f"{source}: {facts.num_rows:,} rows of {size:,} bytes; expected up to {_MOST_ROWS:,} and {_MOST_TABLE_BYTES:,}"
            )
        _check_columns(file.schema_arrow.names, source)
        for column in file.schema_arrow:
            if pa.types.is_nested(column.type):
                raise DataError(
                    f"{source}:1: column {column.name!r} holds {str(column.type)[:60]}; expected text or numbers"
                )
        entries = [
            entry for batch in file.iter_batches(batch_size=1024, use_threads=False) for entry in batch.to_pylist()
        ]
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: not a table of samples ({reason})") from error
    return list(enumerate(entries, 1))


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _label(entry: Row) -> str:
    """Return a label as text, empty if missing; pandas writes whole numbers in columns with gaps as 3.0."""
    value = entry.get("label")
    if _empty(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _table_row(source: str, number: int, entry: Row, labels: dict[str, int]) -> Row:
    def whole(column: str) -> int | None:
        value = entry.get(column)
        if _empty(value):
            return None
        try:
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            text = str(value).strip()
            if not (text.isascii() and text.lstrip("+-").isdigit()):  # int() takes 1_0 and Arabic digits
                raise ValueError
            parsed = int(text)
        except ValueError as error:
            raise DataError(f"{source}:{number}: {column} = {str(value)[:40]!r} is not a whole number") from error
        most = _INT32 if column.endswith("_frame") else _INT16
        if not -most <= parsed < most:
            raise DataError(
                f"{source}:{number}: {column} = {str(parsed)[:40]} is out of range; expected less than {most}"
            )
        return parsed

    def text_of(column: str) -> str:
        value = entry.get(column)
        text = "" if _empty(value) else str(value).strip()
        if len(text) > _MOST_CELL or "\0" in text:
            raise DataError(f"{source}:{number}: {column} = {text[:40]!r}… is not a name; expected a short text")
        return text

    sample_id = text_of("sample_id")
    if not sample_id:
        raise DataError(f"{source}:{number}: no sample_id; every row needs one")
    splits = []
    for column, value in entry.items():
        if column.startswith("split_") and not _empty(value):
            if value not in SPLITS:
                raise DataError(
                    f"{source}:{number}: {column[:60]} = {str(value)[:40]!r}; use train, test or leave it empty"
                )
            splits.append((column.removeprefix("split_"), str(value)))
    start, end = whole("start_frame"), whole("end_frame")
    problem = None
    if end is not None and (start or 0) >= end:
        problem = f"start_frame {start or 0} is not before end_frame {end}"
    elif start is not None and start < 0:
        problem = f"start_frame {start} is negative; the first frame is 0"
    label = _label(entry)
    view, video = whole("view"), text_of("video")
    for column in ("video", "skeleton"):
        path = PurePath(text_of(column))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{source}:{number}: {column} = {str(path)!r} is outside the data folder; give a path below it (a link there may point elsewhere)"
            )
    return new_row(
        sample_id,
        label=labels[label] if label else -1,
        subject=whole("subject"),
        view=view,
        camera=text_of("camera") or (f"view{view}" if view is not None else video),
        video=video or None,
        skeleton=text_of("skeleton") or None,
        start_frame=start,
        end_frame=end,
        problem=problem,
        splits=splits,
    )
