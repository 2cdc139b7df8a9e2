"""What a dataset promises: one row a sample, from its own rules, its label files or a table of own samples.

Nothing here looks at videos or skeletons. Each parser takes bytes or text and the name that messages give to their
source: a value or one DataError with file and line, for any input.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.datasets import SPLITS, Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.schema import SAMPLES

Row = dict[str, Any]

_INT16, _INT32 = 1 << 15, 1 << 31
_MOST_LABEL_BYTES = 1 << 20
_MOST_TABLE_BYTES = 1 << 30
_MOST_ROWS = 10_000_000
_MOST_COLUMNS = 1000
_MOST_CELL = 1 << 16


def _row(sample_id: str, **known: Any) -> Row:
    row: Row = dict.fromkeys(SAMPLES.names)
    row.update(sample_id=sample_id, label=-1, camera="", known_missing=False, splits=[])
    row.update(known)
    return row


def named_rows(dataset: Dataset, ids: Iterable[str]) -> Iterator[Row]:
    """Rows of a dataset whose ids say everything (NTU, UTD-MHAD, MSRAction3D, synthetic)."""
    missing = dataset.known_missing()
    for sample_id in ids:
        fields = dataset.parse_id(sample_id)
        yield _row(
            sample_id,
            label=fields["action"] - 1,
            subject=fields.get("subject"),
            view=fields.get("view"),
            setup=fields.get("setup"),
            repeat=fields.get("repeat"),
            camera=f"S{fields['setup']:03d}C{fields['view']:03d}" if "setup" in fields else "C001",
            known_missing=sample_id in missing,
            splits=list(dataset.splits(fields, sample_id).items()),
        )


def synthetic_ids(root: Path) -> tuple[tuple[str, ...], Iterator[str]]:
    """Classes and promised ids of a folder made by `synth`, from its own description."""
    path = root / "synthetic.toml"
    if not path.is_file():
        raise DataError(f"{path} does not exist; make the folder with `c2vl-pipeline synth --out {root}`")
    try:
        made = tomllib.loads(path.read_text("utf-8"))
        classes, subjects = tuple(map(str, made["classes"])), int(made["subjects"])
        views, repeats = int(made["views"]), int(made["repeats"])
    except (tomllib.TOMLDecodeError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a description by `synth` ({error}); make the folder again") from error
    ids = (
        f"S001C{c:03d}P{p:03d}R{r:03d}A{a:03d}"
        for c in range(1, views + 1)
        for p in range(1, subjects + 1)
        for r in range(1, repeats + 1)
        for a in range(1, len(classes) + 1)
    )
    return classes, ids


# ---------------------------------------------------------------------------------------- PKU-MMD labels


def pku_rows(dataset: Dataset, root: Path, labels: Iterable[str]) -> Iterator[Row]:
    """Rows of PKU-MMD from its label files, given relative to `root`: one a line of each recording's file.

    Raises:
        DataError: there is none, one is malformed, or two of one recording differ.
    """
    files: dict[str, str] = {}
    for relative in labels:
        stem = Path(relative).stem
        other = files.setdefault(stem, relative)
        if other != relative and (root / other).read_bytes() != (root / relative).read_bytes():
            raise DataError(
                f"{root / relative}: differs from {other}, which labels the same recording; keep one of them"
            )
    if not files:
        raise DataError(
            f"{root} holds no label files; expected *.txt below a folder whose name contains 'label'"
        )
    for video in sorted(files):
        path = root / files[video]
        if (size := path.stat().st_size) > _MOST_LABEL_BYTES:
            raise DataError(f"{path}: {size:,} bytes; a label file has some hundred. Is it a skeleton file?")
        yield from parse_labels(path.read_text("utf-8", "replace"), video, dataset, str(path))


def parse_labels(text: str, video: str, dataset: Dataset, source: str) -> list[Row]:
    """Rows of one recording: a sample a line `class,start,end,confidence`, 1-based frames, both included.

    Raises:
        DataError: `file:line: reason`.
    """
    fields = dataset.parse_id(video)
    head = (
        f"A{fields['setup']:03d}N{fields['subject']:03d}" if "setup" in fields else f"A{fields['video']:04d}"
    )
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = [float(v) for v in line.split(",")[:3]]
            label, start, end = (int(v) for v in values)
            if [label, start, end] != values or max(map(abs, values)) >= _INT32:
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{source}:{number}: expected `class,start,end,confidence`, found {line.rstrip()[:60]!r}"
            ) from error
        if not 1 <= label <= len(dataset.classes):
            raise DataError(f"{source}:{number}: class {label}; expected 1 to {len(dataset.classes)}")
        if number >= _INT16:
            raise DataError(f"{source}:{number}: more rows than any recording has; expected some twenty")
        problem = None
        if start > end:
            problem = f"label row {number}: start {start} is after end {end}"
        elif start < 1:
            problem = f"label row {number}: start {start} is before the first frame, 1"
        sample_id = f"{head}V{fields['view']:03d}C{label:03d}L{number:03d}"
        rows.append(
            _row(
                sample_id,
                label=label - 1,
                subject=fields.get("subject"),
                view=fields["view"],
                setup=fields.get("setup"),
                repeat=number,
                camera=f"V{fields['view']:03d}",
                video=video,
                skeleton=video,
                start_frame=start - 1,
                end_frame=end,
                problem=problem,
                splits=list(dataset.splits(fields, sample_id).items()),
            )
        )
    return rows


# -------------------------------------------------------------------------------------------- own tables

COLUMNS = (
    "sample_id", "video", "start_frame", "end_frame", "skeleton", "label", "subject", "view", "camera",
)  # fmt: skip


def generic_rows(root: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Classes and rows of a table of own samples: samples.csv or samples.parquet.

    Raises:
        DataError: there is none, or `file:line: reason` (of a Parquet table: its row).
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
    """Classes and rows of the bytes of a `.csv` or `.parquet` table, in the order of videos.

    Raises:
        DataError: `file:line: reason` (of a Parquet table: its row).
    """
    numbered = _parquet(content, source) if suffix == ".parquet" else _csv(content, source)
    labels = {label for _, entry in numbered if (label := _label(entry))}
    if len(labels) >= _INT16:
        raise DataError(f"{source}: {len(labels):,} different labels; expected less than {_INT16:,}")
    ordered = sorted(labels, key=_label_order)
    place = {label: at for at, label in enumerate(ordered)}
    rows = [_generic_row(source, number, entry, place) for number, entry in numbered]
    seen: dict[str, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        if (first := seen.setdefault(row["sample_id"], number)) != number:
            raise DataError(
                f"{source}:{number}: sample_id {row['sample_id'][:60]!r} stands in {first} already; ids must be unique"
            )
    order = sorted(rows, key=lambda r: (r["video"] or "", r["start_frame"] or 0, r["sample_id"]))
    return tuple(ordered), order


def _label_order(label: str) -> tuple[bool, int, str]:
    """Numbers first and by size, then words."""
    number = label.isascii() and label.isdigit() and len(label) < 20
    return not number, int(label) if number else 0, label


def _known_columns(columns: list[str], source: str) -> None:
    if len(columns) > _MOST_COLUMNS:
        raise DataError(f"{source}:1: {len(columns):,} columns; expected up to {_MOST_COLUMNS}")
    for at, column in enumerate(columns):
        if column in columns[:at]:
            raise DataError(f"{source}:1: column {column[:60]!r} stands twice; name each column once")
        if column not in COLUMNS and not (column.startswith("split_") and column.isprintable()):
            near = difflib.get_close_matches(column[:60], COLUMNS, n=1)
            hint = (
                f"; did you mean {near[0]!r}?"
                if near
                else f"; known: {', '.join(COLUMNS)}, split_<benchmark>"
            )
            raise DataError(f"{source}:1: unknown column {column[:60]!r}{hint}")


def _csv(content: bytes, source: str) -> list[tuple[int, Row]]:
    try:
        text = content.decode("utf-8-sig")  # spreadsheets write a byte order mark
        reader = csv.reader(io.StringIO(text, newline=""))
        columns = next((line for line in reader if line), [])
        _known_columns(columns, source)
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
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        facts = file.metadata
        size = sum(facts.row_group(g).total_byte_size for g in range(facts.num_row_groups))
        if facts.num_rows > _MOST_ROWS or size > _MOST_TABLE_BYTES:
            raise DataError(
                f"{source}: {facts.num_rows:,} rows of {size:,} bytes; expected up to {_MOST_ROWS:,} and {_MOST_TABLE_BYTES:,}"
            )
        _known_columns(file.schema_arrow.names, source)
        for column in file.schema_arrow:
            if pa.types.is_nested(column.type):
                raise DataError(
                    f"{source}:1: column {column.name!r} holds {str(column.type)[:60]}; expected text or numbers"
                )
        entries = [
            entry
            for batch in file.iter_batches(batch_size=1024, use_threads=False)
            for entry in batch.to_pylist()
        ]
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: not a table of samples ({reason})") from error
    return list(enumerate(entries, 1))


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _label(entry: Row) -> str:
    """Return a label as text, empty where there is none; pandas writes whole numbers beside gaps as 3.0."""
    value = entry.get("label")
    if _empty(value):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _generic_row(source: str, number: int, entry: Row, labels: dict[str, int]) -> Row:
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
            found = int(text)
        except ValueError as error:
            raise DataError(
                f"{source}:{number}: {column} = {str(value)[:40]!r} is not a whole number"
            ) from error
        most = _INT32 if column.endswith("_frame") else _INT16
        if not -most <= found < most:
            raise DataError(
                f"{source}:{number}: {column} = {str(found)[:40]} is out of range; expected less than {most}"
            )
        return found

    def words(column: str) -> str:
        value = entry.get(column)
        found = "" if _empty(value) else str(value).strip()
        if len(found) > _MOST_CELL or "\0" in found:
            raise DataError(
                f"{source}:{number}: {column} = {found[:40]!r}… is no name; expected a short text"
            )
        return found

    sample_id = words("sample_id")
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
    view, video = whole("view"), words("video")
    for column in ("video", "skeleton"):
        path = PurePath(words(column))
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{source}:{number}: {column} = {str(path)!r} leads out of the data folder; give a path below it (a link there may point elsewhere)"
            )
    return _row(
        sample_id,
        label=labels[label] if label else -1,
        subject=whole("subject"),
        view=view,
        camera=words("camera") or (f"view{view}" if view is not None else video),
        video=video or None,
        skeleton=words("skeleton") or None,
        start_frame=start,
        end_frame=end,
        problem=problem,
        splits=splits,
    )
