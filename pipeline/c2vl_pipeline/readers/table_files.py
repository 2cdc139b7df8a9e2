"""Files that a table of samples names: which exist, and which one a wrong path may mean."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import passing
from c2vl_pipeline.readers.base import Match, Row, Scan
from c2vl_pipeline.readers.table_cells import is_missing


def locate_named(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    """Look up the files that the table names; a name without a file is dropped from its row."""
    match = Match()
    sizes: dict[str, int] = {}
    for row in rows:
        for kind, missing in (("video", match.missing_videos), ("skeleton", match.missing_skeletons)):
            name = row[kind]
            if name is None:
                continue
            if name not in sizes:
                try:
                    path = root / name
                    sizes[name] = path.stat().st_size if path.is_file() else -1
                except (OSError, ValueError) as error:  # not a possible file name
                    if passing(error):
                        raise
                    sizes[name] = -1
            if sizes[name] >= 0:
                row[f"{kind}_bytes"] = sizes[name]
                continue
            row[kind] = None
            if is_missing(name):
                match.notes.append(f"{kind} of {row['sample_id']}: {name}")
                continue
            missing.append(row["sample_id"])
            if kind not in match.absent:
                near = near_path(name, [*scan.others, *(file.relative for file in scan.files)])
                hint = f"; is {near} meant?" if near else f" in {root}"
                match.absent[kind] = f"{row['sample_id']}: {name} does not exist{hint}"
    return match


def near_path(name: str, files: Iterable[str]) -> str | None:
    """Return the file that a wrong path most probably means, or None.

    Files are compared without regard to letter case, the form of accents, blanks at ends, and the kind of slash; first
    by the whole path, then by fewer of its last parts, at last by the name without its suffix.
    """
    wanted = _parts(name)
    best: tuple[int, str] | None = None
    for file in files:
        parts = _parts(file)
        alike = [a == b for a, b in zip(reversed(wanted), reversed(parts), strict=False)]
        score = 2 * (alike.index(False) if False in alike else len(alike))
        if not score and wanted and parts and _stem(wanted[-1]) == _stem(parts[-1]):
            score = 1
        if score and (best is None or score > best[0]):
            best = score, file
    return best[1] if best else None


def _parts(path: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", path).casefold().replace("\\", "/")
    return [part for one in plain.split("/") if (part := one.strip(" \t\"'")) not in {"", "."}]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
