"""The report's gallery: a dozen samples with some of their crops, as small data URIs, and their captions.

Reads only the output of the crops and captions stages. An unreadable shard is skipped with a note; a row that
is not ok is shown with its status.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.errors import one_line
from c2vl_manifests.pages import jpeg_data_uri, shorten_paths
from c2vl_manifests.schema import Status, misfit
from c2vl_manifests.tables import read_rows, read_table

SAMPLES, SLOTS, HEIGHT = 12, 4, 160
FRONT = 4
"""Samples that are shown at once; the others unfold."""


@dataclass
class SampleGallery:
    """Some samples with their crops and captions."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Reasons why something is missing."""

    def front(self) -> list[dict[str, Any]]:
        """Return the samples shown at once: the first ones, and one that is not ok if any exists."""
        first, others = self.samples[:FRONT], self.samples[FRONT:]
        if all(_whole(sample) for sample in first):
            first += next(([sample] for sample in others if not _whole(sample)), [])
        return first

    def rest(self) -> list[dict[str, Any]]:
        """Return the other samples."""
        front = [sample["id"] for sample in self.front()]
        return [sample for sample in self.samples if sample["id"] not in front]


def read(work: Path, classes: Sequence[str]) -> SampleGallery:
    """Return samples spread evenly over the crops of a work folder, with some slots of each.

    The choice depends only on the shards. If any row is not ok, one such row is included.

    Args:
        work: folder with `crops/`, `captions/` and, for the names of the actions, `samples.parquet`.
        classes: names of the classes.
    """
    gallery = SampleGallery()
    where: dict[str, Path] = {}
    slots: dict[str, list[int]] = defaultdict(list)
    bad: dict[str, int] = {}
    tables: dict[str, list[Path]] = {}
    for stage in ("crops", "captions"):
        tables[stage] = []
        for path in sorted((work / stage).glob("shard-*.parquet")):
            columns = _read(path, gallery, columns=["sample_id", "slot", "status"])
            if columns is None:
                continue
            tables[stage].append(path)
            for key, slot, status in zip(*(columns[c].to_pylist() for c in columns.column_names), strict=True):
                if stage == "crops":
                    where.setdefault(key, path)
                    slots[key].append(slot)
                if status != Status.OK:
                    bad.setdefault(key, slot)
        if not tables[stage]:
            gallery.notes.append(f"The work folder holds no readable {stage}.")
    ids = list(where)
    picked = sorted({round(i) for i in np.linspace(0, len(ids) - 1, min(SAMPLES, len(ids)))})
    shown = {ids[i]: _spread(slots[ids[i]]) for i in picked}
    first_bad = next((key for key in ids if key in bad), None)
    if first_bad is not None and not any(bad.get(key) in chosen for key, chosen in shown.items()):
        if first_bad not in shown:
            at = ids.index(first_bad)
            shown.pop(ids[min(picked, key=lambda i: abs(i - at))])
        others = [slot for slot in slots[first_bad] if slot != bad[first_bad]]
        shown[first_bad] = sorted([*_spread(others, SLOTS - 1), bad[first_bad]])
    rows = {stage: _rows(tables[stage], shown, gallery) for stage in tables}
    titles = _class_of(work, classes)
    gallery.samples = [
        {"id": key, "title": titles.get(key, ""), **_sample(key, shown[key], rows)} for key in ids if key in shown
    ]
    gallery.notes = list(dict.fromkeys(gallery.notes))
    return gallery


def _read(
    path: Path, gallery: SampleGallery, ids: Sequence[str] = (), columns: Sequence[str] | None = None
) -> pa.Table | None:
    try:
        table = read_rows(path, ids) if ids else read_table(path, columns)
        if problem := misfit(table, columns or ()):
            raise pa.ArrowInvalid(problem)
        return table
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = shorten_paths(one_line(error))
        gallery.notes.append(f"{path.parent.name}/{path.name} cannot be read and is skipped ({reason}).")
        return None


def _spread(slots: Sequence[int], count: int = SLOTS) -> list[int]:
    ordered = sorted(slots)
    return [ordered[round(i)] for i in np.linspace(0, len(ordered) - 1, min(count, len(ordered)))]


def _rows(
    paths: Sequence[Path], shown: dict[str, list[int]], gallery: SampleGallery
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the rows of the shown samples by (sample, slot)."""
    found = {}
    for path in paths if shown else ():
        table = _read(path, gallery, list(shown))
        for row in table.to_pylist() if table is not None else ():
            found[row["sample_id"], row["slot"]] = row
    return found


def _class_of(work: Path, classes: Sequence[str]) -> dict[str, str]:
    try:
        table = read_table(work / "samples.parquet", ["sample_id", "label"])
    except (OSError, pa.ArrowException):
        return {}
    pairs = zip(table["sample_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return {key: classes[label] for key, label in pairs if 0 <= label < len(classes)}


def _sample(key: str, slots: Sequence[int], rows: dict[str, dict[tuple[str, int], dict[str, Any]]]) -> dict[str, Any]:
    crops, texts = [], []
    for slot in slots:
        crop, caption = rows["crops"].get((key, slot), {}), rows["captions"].get((key, slot), {})
        image, text = jpeg_data_uri(crop.get("jpeg"), (2 * HEIGHT, HEIGHT)), caption.get("caption") or ""
        crops.append({"slot": slot, "image": image, "alt": text or "no caption", **_status(crop, image is not None)})
        texts.append((text, _status(caption, bool(text)), slot))
    captions = [
        {"slots": ", ".join(str(slot) for *_, slot in group), "text": text, **status}
        for (text, status), group in groupby(texts, key=lambda entry: entry[:2])
    ]
    return {"crops": crops, "captions": captions}


def _whole(sample: dict[str, Any]) -> bool:
    """Return True if all shown rows of a sample are ok."""
    return all(entry["ok"] for kind in ("crops", "captions") for entry in sample[kind])


def _status(row: dict[str, Any], usable: bool) -> dict[str, Any]:
    """Return the status of a row; ok only if its content can be shown."""
    status = row.get("status", "no row")
    if status == Status.OK and not usable:
        status = "unreadable"
    return {"status": status, "ok": status == Status.OK, "error": shorten_paths(row.get("error") or "")}
