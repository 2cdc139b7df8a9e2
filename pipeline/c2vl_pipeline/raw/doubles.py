"""Find samples with the same joints or the same video, byte by byte, and the splits that they leak across."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import file_sha256
from c2vl_pipeline.readers.base import Array, Row

_NAMED = 3
"""Benchmarks that a note names; SYSU 3DHOI has 60."""


def doubles(root: Path, rows: Sequence[Row], read: Callable[[Row], Array] | None) -> list[str]:
    """Return a note for skeletons and one for videos if samples hold the same.

    Joints are compared as they are read, for two files of the same joints may differ in the clip's name. A video is read
    only if another one has its size, or if two samples name the same frames of it. Files that cannot be read are passed
    over: other checks report them.

    Args:
        root: the raw folder.
        rows: of the index.
        read: returns the joints of a row; None if there are no skeleton files.
    """
    same = {
        "skeleton": [] if read is None else _alike(rows, lambda row: _joints(row, read)),
        "video": _alike(rows, _videos(root, rows)),
    }
    return [_note(kind, groups) for kind, groups in same.items() if groups]


def _alike(rows: Sequence[Row], content: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Return the groups of two or more rows of the same content; None is nothing to compare."""
    groups: dict[Hashable, list[Row]] = defaultdict(list)
    for row in rows:
        if (key := content(row)) is not None:
            groups[key].append(row)
    return [group for group in groups.values() if len(group) > 1]


def _joints(row: Row, read: Callable[[Row], Array]) -> Hashable:
    """Return what identifies the joints of a row; None if it has none."""
    if row["skeleton"] is None or row["problem"]:
        return None
    try:
        joints = read(row)
    except (DataError, OSError):
        return None
    return (joints.shape, hashlib.sha256(joints.tobytes()).digest()) if len(joints) else None


def _videos(root: Path, rows: Sequence[Row]) -> Callable[[Row], Hashable]:
    """Return a function that identifies the video of a row and its frames."""
    sizes: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        if row["video"] is not None and row["video_bytes"]:
            sizes[row["video_bytes"]].add(row["video"])
    known = {path: _digest(root / path) or path for paths in sizes.values() if len(paths) > 1 for path in paths}

    def content(row: Row) -> Hashable:
        if row["video"] is None or not row["video_bytes"]:
            return None
        return known.get(row["video"], row["video"]), row["start_frame"], row["end_frame"]

    return content


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except (DataError, OSError):
        return None


def _note(kind: str, groups: Sequence[Sequence[Row]]) -> str:
    """Say how many samples are doubles, which the first are, and how many test samples are in training too."""
    leaks: Counter[str] = Counter()
    for group in groups:
        splits = [dict(row["splits"]) for row in group]
        for benchmark in {name for one in splits for name in one}:
            sides = [one.get(benchmark) for one in splits]
            leaks[benchmark] += sides.count("test") if "train" in sides else 0
    first = " and ".join(row["sample_id"] for row in groups[0][:2])
    found = {name: count for name, count in sorted(leaks.items()) if count}
    named = " and ".join(f"{count:,} test samples of {name}" for name, count in found.items())
    if len(found) > _NAMED:
        worst = max(found, key=lambda name: found[name])
        named = f"up to {found[worst]:,} test samples of {len(found)} benchmarks ({worst}, …)"
    across = f"; {named} have their double in training" if found else ""
    count = sum(map(len, groups)) - len(groups)
    return f"{count:,} {kind}s are another sample's, byte by byte ({first}{', …' if len(groups) > 1 else ''}){across}"
