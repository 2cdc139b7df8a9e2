"""Files that a table of samples names: which exist, and which one a wrong path may mean."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import passing
from c2vl_pipeline.readers.base import Match, Row, Scan, near_path
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
