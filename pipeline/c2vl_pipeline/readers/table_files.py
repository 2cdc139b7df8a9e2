"""Files that a table of samples names: which exist, and which one a wrong path may mean."""

from __future__ import annotations

import os
from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import passing
from c2vl_pipeline.readers.base import USUAL, Match, Row, Scan, copied_from, leads_nowhere, near_path
from c2vl_pipeline.readers.files import is_folder_of_frames
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
                    sizes[name] = path.stat().st_size if path.is_file() else _folder_size(path, kind)
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
                match.absent[kind] = f"{row['sample_id']}: {name} {_absence(root, name, kind, scan)}"
    return match


def _folder_size(path: Path, kind: str) -> int:
    """Return the bytes of a folder that holds the joints of each frame in a file; -1 for any other."""
    if kind == "video" or not is_folder_of_frames(path):
        return -1
    with os.scandir(path) as entries:
        return sum(entry.stat().st_size for entry in entries if entry.is_file())


def _absence(root: Path, name: str, kind: str, scan: Scan) -> str:
    """Return why there is no file of this name: it is a folder, a link leads nowhere, or it has another name."""
    path = root / name
    try:
        if path.is_dir():
            return "is a folder; name a file" + (", or a folder of OpenPose's JSON files" if kind == "skeleton" else "")
        if path.exists() and not path.is_file():
            return "is a pipe or a device; name a file"
        while path != root and not path.exists():
            if leads_nowhere(path):
                what = "is" if path == root / name else f"is below {path.relative_to(root)},"
                return f"{what} a link to {os.readlink(path)}, which does not exist"
            path = path.parent
    except (OSError, ValueError):  # not a possible file name
        pass
    strange = USUAL["skeleton" if kind == "video" else "video"]
    packed = {*scan.zips, *scan.archives}
    files = [*scan.others, *(file.relative for file in scan.files)]
    alike = (f for f in files if f not in packed and not copied_from(f).lower().endswith(strange))
    near = near_path(name, alike, by_stem=not packed)
    return f"does not exist; is {near} meant?" if near else f"does not exist in {root}"
