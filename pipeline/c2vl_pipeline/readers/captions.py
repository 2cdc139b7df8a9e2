"""Caption files in the authors' form: {sample id: [caption of each frame, in order]}, as JSON or a .zip of one.

Tables hold the same: CSV or Parquet with the columns sample_id and caption, and slot where a sample has several.
"""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

from c2vl_manifests.errors import EngineError, one_line
from c2vl_manifests.reading import MOST_UNPACKED, MOST_VALUES, from_json, is_storable, read_bytes, unzip
from c2vl_manifests.tables import open_table
from c2vl_pipeline.readers.base import is_system_file


def caption_json(path: Path) -> bytes:
    """Return the JSON of a caption file, unpacked if it is a .zip, and made if it is a table."""
    try:
        if path.suffix.lower() in {".csv", ".parquet"}:
            return json.dumps(_by_sample(path, _table(path))).encode()
        if path.suffix.lower() != ".zip":
            return read_bytes(path, MOST_UNPACKED)
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith(".json") and not is_system_file(n)]
            if len(names) != 1:
                raise EngineError(
                    f"caption file {path} holds {len(names)} JSON files, expected one; unpack it and name the right "
                    "one in pipeline.caption.engine.options.path"
                )
            return unzip(archive, names[0])
    except EngineError:
        raise
    except Exception as error:  # zip, zlib and lzma raise a dozen kinds on damaged files
        raise EngineError(
            f"caption file {path} cannot be read ({one_line(error)}); give the path of a .json, .zip, .csv or "
            ".parquet file in pipeline.caption.engine.options.path"
        ) from error


def _table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of captions."""
    content = read_bytes(path, MOST_UNPACKED)
    if path.suffix.lower() == ".parquet":
        with open_table(content) as table:
            wanted = [name for name in ("sample_id", "slot", "caption") if name in table.schema.names]
            if table.metadata.num_rows > MOST_VALUES:
                raise ValueError(f"{table.metadata.num_rows:,} rows; expected up to {MOST_VALUES:,}")
            return list(table.read(wanted).to_pylist())
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True))


def _by_sample(path: Path, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the captions of each sample in order of their slots; a slot without one has an empty text.

    Raises:
        EngineError: a column is absent, a slot is no number, or a sample has one twice.
    """
    if not rows or not {"sample_id", "caption"} <= rows[0].keys():
        columns = ", ".join(map(str, rows[0])) if rows else "none"
        raise EngineError(
            f"caption file {path}: the columns are {columns[:80]}; expected sample_id, caption and perhaps slot"
        )
    found: dict[str, dict[int, str]] = {}
    for number, row in enumerate(rows, 1):
        where = f"caption file {path}: row {number:,}"
        sample, given = str(row["sample_id"] or "").strip(), row.get("slot")
        slot = str(given).strip().removesuffix(".0").replace("nan", "") if given is not None else ""
        if not sample or (slot and not (slot.isascii() and slot.isdigit() and len(slot) < 6)):
            raise EngineError(
                f"{where} has the sample_id {sample[:40]!r} and the slot {slot[:20]!r}; expected a name, a number"
            )
        captions = found.setdefault(sample, {})
        place = int(slot) if slot else -1
        if place in captions or (captions and (-1 in captions or place < 0)):
            raise EngineError(
                f"{where}: sample {sample[:60]!r} has slot {slot or 'all'!s} twice; expected each slot once"
            )
        captions[place] = str(row["caption"] or "").strip()
    slots = range(max(map(max, found.values())) + 1)  # of all samples: a slot that is stated is meant
    return {
        name: [captions[-1]] if -1 in captions else [captions.get(slot, "") for slot in slots]
        for name, captions in found.items()
    }


def read_captions(path: Path) -> dict[str, list[str]]:
    """Return the captions of each sample, in order of time; samples may have different numbers of them, or none.

    Raises:
        EngineError: One line, for a file that cannot be read or has another form.
    """
    expected = "expected {sample id: [caption of each frame]}, as the authors released"
    try:
        table = from_json(caption_json(path))
    except ValueError as error:
        raise EngineError(f"caption file {path} is not JSON ({error}); {expected}") from error
    if not isinstance(table, dict) or not table:
        raise EngineError(f"caption file {path} holds no table of samples; {expected}")
    table = {name: [held] if isinstance(held, str) else held for name, held in table.items()}
    for sample_id, captions in table.items():
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise EngineError(f"caption file {path}: {sample_id!r} has no list of texts; {expected}")
        if not all(map(is_storable, captions)):
            raise EngineError(
                f"caption file {path}: {sample_id!r} has half a character (a cut emoji?); mend the caption"
            )
    if not any(any(captions) for captions in table.values()):
        raise EngineError(f"caption file {path} has no caption of any of its {len(table):,} samples; {expected}")
    return table
