"""Cells of a table of samples as text, whichever program wrote it: pandas, R, spreadsheets of any country, Parquet.

What can mean one thing only is taken; anything else is a DataError with its place in the file.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa

from c2vl_manifests.errors import DataError
from c2vl_manifests.tables import open_table

COLUMNS = (
    "sample_id", "video", "start_frame", "end_frame", "skeleton", "label", "subject", "view", "camera",
)  # fmt: skip
Cells = dict[str, str]
"""Column -> text; empty where nothing is given."""

_LONGEST = csv.field_size_limit()
"""Letters of a cell, in Parquet as in CSV."""
_LONG, _HEAD = 1000, 1 << 20
"""Letters of a cell that is no formula or date, and those among which the header is looked for."""
MOST_BYTES = 1 << 30
_MOST_ROWS = 10_000_000
_MOST_COLUMNS = 1000
_MOST_ABOVE = 20
_NAMES = ("sample_id", "video", "skeleton", "camera")
_SAVE = "save it as CSV in UTF-8"
_FORMATS = {
    b"PK\x03\x04": "an Excel or OpenDocument workbook, or a zip",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed by gzip",
    b"<": "HTML or XML",
    b"{": "JSON",
    b"[{": "JSON",
}
_MISSING = re.compile(
    r"NA|<NA>|N/A|n/a|NULL|[Nn]ull|None|#N/A N/A|#(NA|NV|NO|[^\W\d_a-z]/[^\W\d_a-z]|SAKNAS|PUUTTUU|YOK|HIÁNYZIK|NENÍ_K_DISPOZICI)!?"
    r"|(?i:[+-]?nan|nat|[+-]?1\.#(ind|qnan))"
)
"""Words of pandas, R and spreadsheets of any country for "nothing"; those for "not a number" in every letter case."""
_SHEET_ERROR = re.compile(r"#[¡¿]?[^\Wa-z]+(/0)?\s?[!?]|#GETTING_DATA|#{3,}|(Err|Erreur|Fehler|Virhe) ?:\d{3}")
"""Errors of spreadsheets of any country, and what stands in a column that is too narrow."""
_INDEX = re.compile(r"unnamed:_\d+(\.\d+)?(_level_\d+)?|__index_level_\d+__|index|level_\d+")
"""Columns that pandas writes unasked: the index of the rows."""
_FORMULA = re.compile(r'="([^"]*)"')
_MIDNIGHT = re.compile(r"(\d{4}-\d\d-\d\d) 00:00:00")
_NOT_WESTERN = re.compile(r"[^\x00-\x7f]{3}|[^\x00-\x7f\xa0°·À-ÖØ-öø-ÿŠšŽžŒœŸ–—‘’“”…]")


def is_missing(text: str) -> bool:
    """True if the text of a cell means that nothing is given."""
    return not text or _MISSING.fullmatch(text) is not None


def read_cells(content: bytes, suffix: str, source: str, notes: list[str]) -> Iterator[tuple[int, Cells]]:
    """Yield line (Parquet: row from 1) and cells of each row that is not empty; the content tells the format.

    Args:
        content: of the file.
        suffix: of its name.
        source: its path, for messages.
        notes: what was guessed is appended.

    Raises:
        DataError: `file:line: reason` (Parquet: the row's number).
    """
    if content[:4] == b"PAR1":
        return _parquet(content, source)
    if suffix == ".parquet":
        raise DataError(f"{source}: not a table of samples (not Parquet); write it again, or name a CSV samples.csv")
    begin = content[:64].lstrip()
    if name := next((name for start, name in _FORMATS.items() if begin.startswith(start)), None):
        raise DataError(f"{source}: not a table of samples, but {name}; {_SAVE}")
    return _csv(_decoded(content, source, notes), source, notes)


def as_text(value: Any) -> str:
    """Return a cell as a CSV file would hold it."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    text = str(value).strip()
    whole = (_FORMULA.fullmatch(text) or _MIDNIGHT.fullmatch(text)) if len(text) < _LONG else None
    return whole[1].strip() if whole else text


# ------------------------------------------------------------------------------------------------- CSV


def _decoded(content: bytes, source: str, notes: list[str]) -> str:
    """Return the text of a file in UTF-8, UTF-16, UTF-32 or Windows-1252.

    A spreadsheet that writes no UTF-8 uses the code page of its country. Accented letters of Western Europe stand
    alone; words of other scripts, taken for Windows-1252, would be rows of them.
    """
    if content and not (content[:16].strip(b"\0") and content[-16:].strip(b"\0")):
        raise DataError(f"{source}: NUL bytes, as after a crash or on a full disk; copy the table again")
    encoding = "utf-8"
    if content[:4] in {b"\xff\xfe\0\0", b"\0\0\xfe\xff"}:
        encoding = "utf-32"
    elif content[:4].count(0) == 3:
        encoding = "utf-32-be" if content[:1] == b"\0" else "utf-32-le"
    elif content[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        encoding = "utf-16"
    elif (content[:1] == b"\0") != (content[1:2] == b"\0"):
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding).lstrip("\ufeff").removesuffix("\x1a")  # marks of spreadsheets and of DOS
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
    text = content.decode("cp1252", "replace")
    if encoding != "utf-8" or _NOT_WESTERN.search(text):
        raise DataError(f"{source}:{line}: byte 0x{byte:02x} is no text in {encoding.upper()}; {_SAVE}")
    if word := re.search(r"[^\s,;|]*[^\x00-\x7f][^\s,;|]*", text):
        notes.append(f"{source} is not UTF-8; read as Windows-1252 ({word[0][:40]!r}): {_SAVE} if that is wrong")
    return text


def _csv(text: str, source: str, notes: list[str]) -> Iterator[tuple[int, Cells]]:
    above = 0
    if hint := re.match(r'"?sep=(.)"?[,;\t]*(\r\n|\r|\n)', text, re.IGNORECASE):  # Excel's own first line
        text, above = text[hint.end() :], 1
    again: list[int] = []
    named: bool | None = None
    at = last = 0
    try:
        separator = hint[1] if hint else max(",;\t|", key=lambda one: _known(text[:_HEAD], one))
        begin, headers, title = _header(text, separator)
        _check_quotes(f"{source}:{begin + above}", [None] * len(headers), headers, separator)
        columns, names = _columns(headers, f"{source}:{begin + above}"), [_name(header) for header in headers]
        own = names.index("sample_id") if "sample_id" in names else 0
        if title:
            notes.append(f"{source}: what stands above line {begin + above} is passed over ({title[:40]!r})")
        for at, last, cells in _rows(text, separator):
            texts, place = [as_text(cell) for cell in cells], f"{source}:{last + above}"
            if at <= begin or not any(texts):
                continue
            if len(cells) > own and _name(cells[own]) == names[own] == "sample_id":
                if [_name(cell) for cell in cells] != names:
                    raise DataError(f"{place}: a second header, with other columns; write one table with one header")
                again.append(last + above)
                continue
            if at < last:
                _check_quotes(f"{source}:{at + above}", columns, texts, separator)
            if named is None:
                # a program that puts quotes around headers puts them around all text
                plain = texts[0].isdigit() or re.match(r'"[^\r\n]*[\r\n]+"', text) is not None
                named = len(texts) == len(columns) + 1 and plain and texts[-1] != ""
                if named:
                    columns = [None, *columns]
                    notes.append(f"{source}: its first column has no header and is passed over, as R's names of rows")
            if any(texts[len(columns) :]) or (named and len(texts) != len(columns)):
                others = "rows above have" if named else "header has"
                raise DataError(
                    f"{place}: {len(cells)} cells; the {others} {len(columns)} columns: put quotes around cells that "
                    f"contain {separator!r}"
                )
            yield last + above, _cells(columns, texts, place)
    except csv.Error as error:
        place = f"behind line {last + above}, perhaps by a quote that is not closed"
        raise DataError(f"{source}: not a table of samples ({error}) {place}; {_SAVE}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: not a table of samples ({error}); {_SAVE}") from error
    if again:
        more = f" and {len(again) - 1} more" if again[1:] else ""
        notes.append(f"{source}: the header stands again in line {again[0]}{more}, which is passed over")


def _rows(text: str, separator: str) -> Iterator[tuple[int, int, list[str]]]:
    """Yield the first and the last line of each row, and its cells; quotes count after blanks, too."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=separator != " ")
    at = 1
    for cells in reader:
        yield at, reader.line_num, cells
        at = reader.line_num + 1


def _header(text: str, separator: str) -> tuple[int, list[str], str]:
    """Return line and cells of the header, and what stands above it: rows without a column, as a spreadsheet's title."""
    first: tuple[int, list[str], str] | None = None
    rows = ((line, cells) for line, _, cells in _rows(text, separator) if any(cell.strip() for cell in cells))
    for line, cells in islice(rows, _MOST_ABOVE):
        names = [_name(cell) for cell in cells]
        if first is None:
            first = line, cells, ""
        elif "sample_id" in names:
            return line, cells, " ".join(filter(None, first[1]))
        if any(map(_is_column, names)):
            break
    return first or (1, [], "")


def _check_quotes(place: str, columns: list[str | None], texts: list[str], separator: str) -> None:
    """Raise DataError if a cell holds lines that are rows, or is a name of several lines."""
    for column, text in zip(columns, texts, strict=False):
        if ("\n" in text or "\r" in text) and (separator in text or column in _NAMES):
            raise DataError(
                f"{place}: {column or 'a cell'} = {text[:40]!r} goes on in the next line, as after a quote that is not "
                "closed; close it, and write each cell in one line"
            )


# -------------------------------------------------------------------------------------------- Parquet


def _parquet(content: bytes, source: str) -> Iterator[tuple[int, Cells]]:
    try:
        with open_table(content) as table:
            if (rows := table.metadata.num_rows) > _MOST_ROWS:
                raise DataError(f"{source}: {rows:,} rows; expected up to {_MOST_ROWS:,}")
            columns = _columns(table.schema.names, f"{source}:1")
            for column in table.schema:
                if pa.types.is_nested(column.type):
                    raise DataError(
                        f"{source}:1: column {column.name!r} holds {str(column.type)[:60]}; expected text or numbers"
                    )
            for number, row in enumerate((row for batch in table.batches(1024) for row in batch.to_pylist()), 1):
                texts = [as_text(value) for value in row.values()]
                if (longest := max(map(len, texts), default=0)) > _LONGEST:
                    raise DataError(f"{source}:{number}: a cell of {longest:,} letters; expected up to {_LONGEST:,}")
                if any(texts):
                    yield number, _cells(columns, texts, f"{source}:{number}")
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source}: not a table of samples ({reason})") from error


# -------------------------------------------------------------------------------------------- columns


def _name(header: str) -> str:
    """Return a column's name as this program writes it: `Sample ID` is sample_id; `split_My bench` stays."""
    text = header.strip().lstrip("\ufeff")  # of a file that was put behind another
    return text if text.startswith("split_") else re.sub(r"[\s-]+", "_", text.lower())


def _is_column(name: str) -> bool:
    return name in COLUMNS or (name.startswith("split_") and len(name) > 6 and name.isprintable())


def _known(text: str, separator: str) -> int:
    """Count the columns that this separator gives and this program knows."""
    try:
        return sum(_is_column(_name(header)) for header in _header(text, separator)[1])
    except csv.Error:
        return 0


def _columns(headers: list[str], place: str) -> list[str | None]:
    """Return the names of the columns; None for an index, which is passed over, and empty where there is no name."""
    if len(headers) > _MOST_COLUMNS:
        raise DataError(f"{place}: {len(headers):,} columns; expected up to {_MOST_COLUMNS}")
    names = [_name(header) for header in headers]
    for header, name in zip(headers, names, strict=True):
        if _is_column(name) and names.count(name) > 1:
            raise DataError(f"{place}: column {name[:60]!r} appears twice; name each column once")
        if name and not _is_column(name) and not _INDEX.fullmatch(name):
            near = difflib.get_close_matches(name[:60], COLUMNS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COLUMNS)}, split_<benchmark>"
            raise DataError(f"{place}: unknown column {header[:60]!r}; {hint}")
    return [None if _INDEX.fullmatch(n) or (not n and at == 0) else n for at, n in enumerate(names)]


def _cells(columns: list[str | None], texts: list[str], place: str) -> Cells:
    cells = {}
    for at, (column, text) in enumerate(zip(columns, texts, strict=False)):
        if column is None:
            continue
        if _SHEET_ERROR.fullmatch(text) and not is_missing(text):
            raise DataError(f"{place}: {column} = {text!r}, an error of the spreadsheet; correct the cell or empty it")
        if column:
            cells[column] = text
        elif text:
            raise DataError(f"{place}: {text[:40]!r} in column {at + 1}, which has no name; name it or empty it")
    return cells
