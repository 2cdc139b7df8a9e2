"""Guesses at why files are missing: another dataset, another ending, a neighbouring folder, an unopened archive."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from c2vl_manifests.datasets import Dataset, dataset_names, load_dataset
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import Scan


def looks_like(names: Iterable[str], asked: Dataset) -> str | None:
    """Say which other dataset most of some file names belong to, or None."""
    bases = [name.rsplit(os.sep, 1)[-1] for name in names]
    best: tuple[int, Dataset] | None = None
    for name in dataset_names():
        other = load_dataset(name)
        if not reader_of(other).named_by_id or other.id_pattern == asked.id_pattern:
            continue
        pattern = re.compile(other.id_pattern)
        endings = (*other.video_suffixes, *other.skeleton_suffixes)
        count = sum(any(b.endswith(s) and pattern.fullmatch(b[: -len(s)]) for s in endings) for b in bases)
        if count and (best is None or count > best[0]):
            best = count, other
    if best is None or 2 * best[0] < len(bases):
        return None
    return f"this looks like {best[1].title}, not {asked.title}: {best[0]:,} files are named so; try --dataset {best[1].name}"


def hints(
    dataset: Dataset,
    root: Path,
    found: Scan,
    missing: dict[str, list[str]],
    there: set[str],
    unexpected: list[str],
) -> list[str]:
    """Guess why files are missing, as sentences without a full stop.

    Args:
        dataset: what was promised.
        root: the raw folder.
        found: what lies in it.
        missing: ids without a file, of `videos` and of `skeletons`.
        there: which of the two has any file at all.
        unexpected: files whose names end as promised and that belong to no sample.
    """
    if not (dataset.video_suffixes or dataset.skeleton_suffixes):
        return []
    guessed = []
    if not there and (other := looks_like([*found.others, *unexpected], dataset)) is not None:
        guessed.append(other)
    if hint := _same_ids(dataset, missing["videos"], unexpected):
        guessed.append(hint)
    for kinds, endings in (("videos", dataset.video_suffixes), ("skeletons", dataset.skeleton_suffixes)):
        if not missing[kinds]:
            continue
        if hint := _other_endings(dataset, found, kinds, endings):
            guessed.append(hint)
        elif kinds not in there and (near := _neighbour(dataset, root, endings)):
            guessed.append(f"the {kinds} lie in {near}: give --data {root.parent}")
    return guessed + [f"{name} may hold what is missing: unpack it" for name in found.archives[:3]]


def _same_ids(dataset: Dataset, missing: list[str], unexpected: list[str]) -> str | None:
    """Name a smaller or bigger dataset with ids of the same form, if exactly its files are there."""
    pattern = re.compile(dataset.id_pattern)
    others = [load_dataset(name) for name in dataset_names() if name != dataset.name]
    for other in others:
        if dataset.expected is None or other.expected is None or other.id_pattern != dataset.id_pattern:
            continue
        if other.expected.samples < dataset.expected.samples:
            small, gone = set(other.expected_ids()), set(missing)
            total = sum(1 for _ in dataset.expected_ids())
            if gone and not gone & small and len(gone) + len(small) == total:
                return f"all of {other.title} is there and nothing else; try --dataset {other.name}"
        else:
            count = sum(bool(pattern.match(os.path.basename(name))) for name in unexpected)
            if count > 1000:
                return f"{count:,} files more are named as those of {other.title}; for all of them try --dataset {other.name}"
    return None


def _other_endings(dataset: Dataset, found: Scan, kinds: str, endings: tuple[str, ...]) -> str | None:
    """Files that have an id and then another ending than the promised ones."""
    pattern = re.compile(dataset.id_pattern)
    kinds_of = (
        (".avi", ".mp4", ".mkv", ".mov", ".webm")
        if kinds == "videos"
        else (".skeleton", ".txt", ".mat", ".npy")
    )
    rests: Counter[str] = Counter()
    for name in found.others:
        base = os.path.basename(name)
        match = pattern.match(base)
        if match and base.lower().endswith(kinds_of):
            rests[base[match.end() :]] += 1
    if not rests:
        return None
    rest, count = rests.most_common(1)[0]
    return f"{count:,} files end with {rest!r} after the id; {kinds} must end with {' or '.join(endings)}"


def _neighbour(dataset: Dataset, root: Path, endings: tuple[str, ...]) -> str | None:
    """Name a folder beside `root` whose first entries are what is looked for."""
    pattern = re.compile(dataset.id_pattern)
    try:
        beside = sorted(p for p in root.parent.iterdir() if p.is_dir() and p != root)[:50]
        for folder in beside:
            with os.scandir(folder) as entries:
                for _, entry in zip(range(500), entries, strict=False):
                    ending = next((s for s in endings if entry.name.endswith(s)), None)
                    if ending and pattern.fullmatch(entry.name[: -len(ending)]):
                        return folder.name
    except OSError:
        return None
    return None
