"""Table of a custom dataset's samples: `samples.csv` or `samples.parquet`, parsed into rows of the index.

A table of any content gives rows or one DataError with file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path, PurePath

from c2vl_manifests.datasets import SPLITS, Dataset
from c2vl_manifests.errors import DataError, disk_error
from c2vl_manifests.files import leads_outside
from c2vl_manifests.reading import TooLargeError, read_bytes
from c2vl_pipeline.readers.base import Expected, Row, Scan, copied_from, new_row
from c2vl_pipeline.readers.files import pyskl
from c2vl_pipeline.readers.table_cells import MOST_BYTES, Cells, is_missing, read_cells

_INT16, _INT32 = 1 << 15, 1 << 31
_MOST_CELL = 1 << 16

_LIKE_A_TABLE = re.compile(r"samples?\.[^/]*$|(?![.~])[^/]*samples?[^/]*\.(csv|tsv|xlsx?|ods|parquet)$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d{1,20}([.,]\d{0,20})?([eE][+-]?\d{1,2})?", re.ASCII)
_AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
"""One and a bit for one program, a thousand and more for another."""
_GROUPED = re.compile(
    r"(?P<digits>[+-]?[1-9]\d{0,2}(?P<group>[.,'’ \xa0\u202f])\d{3}((?P=group)\d{3})*)(?P<rest>(?!(?P=group))[.,]\d*)?"
)
"""A number whose thousands are set apart."""


def expected_rows(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect one sample per row of the table in a folder, samples.parquet or samples.csv, or per annotation of samples.pkl.

    Raises:
        DataError: there is no table, or `file:line: reason` (Parquet: the row's number).
    """
    path = next((root / n for n in ("samples.parquet", "samples.csv") if (root / n).is_file()), None)
    if path is None and (root / pyskl.TABLE).is_file():
        return pyskl.expected_rows(root / pyskl.TABLE, scan)
    if path is None:
        like = [f" (but {name}, a link that leads nowhere)" for name in scan.links if _LIKE_A_TABLE.match(name)]
        like += [
            f" (but {name}: save it as samples.csv)" for name in scan.others if _LIKE_A_TABLE.match(copied_from(name))
        ]
        deeper = [name for name in scan.others if name.endswith(("/samples.csv", "/samples.parquet"))]
        like += [f" (but {name}: give --data {root / os.path.dirname(name)})" for name in deeper]
        raise DataError(
            f"{root} holds neither samples.csv nor samples.parquet{(*like, '')[0]}; write a table with the columns "
            "sample_id, video, start_frame, end_frame, skeleton, label, subject, view and split_<benchmark> (only "
            "sample_id is required)"
        )
    try:
        content = read_bytes(path, MOST_BYTES)
    except TooLargeError as error:
        raise DataError(f"{path}: {error} for a table of samples") from error
    except OSError as error:
        raise DataError(disk_error(error, path)) from error
    notes: list[str] = []
    if path.suffix == ".parquet" and (root / "samples.csv").is_file():
        notes.append("samples.parquet is read, and samples.csv beside it is not")
    classes, rows = parse_table(content, path.suffix, str(path), notes)
    return Expected(classes, rows, notes=notes)


def parse_table(
    content: bytes, suffix: str, source: str, notes: list[str] | None = None
) -> tuple[tuple[str, ...], list[Row]]:
    """Return the classes and rows of a `.csv` or `.parquet` table, ordered by video.

    Raises:
        DataError: `file:line: reason` (Parquet: the row's number).
    """
    numbered = list(read_cells(content, suffix, source, [] if notes is None else notes))
    names = class_names(cells["label"] for _, cells in numbered if "label" in cells)
    classes = sorted(set(names.values()), key=_label_order)
    if len(classes) >= _INT16:
        raise DataError(f"{source}: {len(classes):,} different labels; expected less than {_INT16:,}")
    place = {name: at for at, name in enumerate(classes)}
    labels = {text: place[name] for text, name in names.items()}
    folder = PurePath(source).parent
    rows = [_table_row(f"{source}:{number}", folder, cells, labels) for number, cells in numbered]
    seen: dict[str, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        if (first := seen.setdefault(row["sample_id"], number)) != number:
            raise DataError(
                f"{source}:{number}: sample_id {row['sample_id'][:60]!r} was used in {first} already; ids must be unique"
            )
    rows.sort(key=lambda r: (r["video"] or "", r["start_frame"] or 0, r["sample_id"]))
    return tuple(classes), rows


def class_names(texts: Iterable[str]) -> dict[str, str]:
    """Return the class that each label means: of numbers 2.0 is 2, of truth values TRUE is True, others themselves."""
    given = {text for text in texts if not is_missing(text)}
    if all(_NUMBER.fullmatch(text) for text in given):
        return {text: _plain(text) for text in given}
    if all(text.lower() in {"true", "false"} for text in given):
        return {text: text.capitalize() for text in given}
    return {text: text for text in given}


def _value(text: str) -> Decimal | None:
    return Decimal(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None


def _plain(number: str) -> str:
    """Return a number as it is written without need: `2.0`, `2,0` and `2e0` are 2; `07` stays."""
    if number.lstrip("+-").isdigit() or (value := _value(number)) is None:
        return number
    return str(int(value)) if value == value.to_integral_value() else f"{value.normalize():f}"


def _label_order(label: str) -> tuple[bool, Decimal, str]:
    """Sort key: numbers first and by value, then words."""
    value = _value(label)
    return value is None, value or Decimal(0), label


def whole_number(text: str) -> int | None:
    """Return the whole number that a cell holds, as any program or country writes it; None if it holds none."""
    if _AMBIGUOUS.fullmatch(text):
        return None
    if match := _GROUPED.fullmatch(text):
        text = match["digits"].replace(match["group"], "") + (match["rest"] or "")
    value = _value(text)
    return int(value) if value is not None and value == value.to_integral_value() else None


def _table_row(place: str, folder: PurePath, cells: Cells, labels: dict[str, int]) -> Row:
    def text_of(column: str) -> str:
        text = cells.get(column, "")
        if len(text) > _MOST_CELL or "\0" in text:
            raise DataError(f"{place}: {column} = {text[:40]!r}… is not a name; expected a short text")
        return text

    def given(column: str) -> str:
        return "" if is_missing(text := text_of(column)) else text

    def whole(column: str) -> int | None:
        if not (text := given(column)):
            return None
        if (parsed := whole_number(text)) is None:
            why = "can be read in two ways" if _AMBIGUOUS.fullmatch(text) else "is not a whole number"
            raise DataError(f"{place}: {column} = {text[:40]!r} {why}; write its digits, or leave the cell empty")
        most = _INT32 if column.endswith("_frame") else _INT16
        if not -most <= parsed < most:
            raise DataError(f"{place}: {column} = {str(parsed)[:40]} is out of range; expected less than {most}")
        return parsed

    sample_id = given("sample_id")
    if not sample_id:
        word = f" (but {text!r})" if (text := cells.get("sample_id")) else ""
        raise DataError(f"{place}: no sample_id{word}; every row needs one")
    splits = []
    for column in cells:
        if column.startswith("split_") and (value := given(column)):
            if value.lower() not in SPLITS:
                raise DataError(f"{place}: {column[:60]} = {value[:40]!r}; use train, test or leave it empty")
            splits.append((column.removeprefix("split_"), value.lower()))
    start, end = whole("start_frame"), whole("end_frame")
    problem = None
    if end is not None and (start or 0) >= end:
        problem = f"start_frame {start or 0} is not before end_frame {end}"
    elif start is not None and start < 0:
        problem = f"start_frame {start} is negative; the first frame is 0"

    view, video = whole("view"), _path_below(folder, text_of("video"), f"{place}: video")
    return new_row(
        sample_id,
        label=labels.get(cells.get("label", ""), -1),
        subject=whole("subject"),
        view=view,
        camera=given("camera") or (f"view{view}" if view is not None else given("video") and (video or "")),
        video=video,
        skeleton=_path_below(folder, text_of("skeleton"), f"{place}: skeleton"),
        start_frame=start,
        end_frame=end,
        problem=problem,
        splits=splits,
    )


def _path_below(folder: PurePath, text: str, place: str) -> str | None:
    """Return a path relative to the data folder, None for an empty cell; `place` names the cell in errors."""
    path = PurePath(text)
    if ".." not in path.parts and path.is_absolute() and path.is_relative_to(folder):
        return str(path.relative_to(folder))
    if leads_outside(str(path)):
        raise DataError(
            f"{place} = {str(path)!r} is outside the data folder; give a path below it (a link there may point elsewhere)"
        )
    return text or None
