"""Probable causes of missing files: another dataset, another suffix, a neighbouring folder, a packed archive."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sized
from pathlib import Path

from c2vl_manifests.datasets import Dataset, dataset_names, load_dataset
from c2vl_pipeline.raw.scan import unpack_command
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import USUAL, Scan, copied_from


def looks_like(names: Iterable[str], asked: Dataset) -> str | None:
    """Return a hint at the other dataset that most of these file names belong to, or None."""
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
    return f"this looks like {best[1].title}, not {asked.title}: {best[0]:,} files have its names; try --dataset {best[1].name}"


def hints(
    dataset: Dataset,
    root: Path,
    scan: Scan,
    missing: dict[str, list[str]],
    present: set[str],
    unexpected: list[str],
    lost: dict[str, set[str]],
) -> list[str]:
    """Return probable causes of missing files, as sentences without a full stop.

    Args:
        dataset: what the folder should hold.
        root: the raw folder.
        scan: its files.
        missing: ids without a file, of `videos` and of `skeletons`.
        present: the kinds, of these two, with at least one file.
        unexpected: files with a suffix of the dataset that belong to no sample.
        lost: suffix -> names, without it, of missing files.
    """
    if not (dataset.video_suffixes or dataset.skeleton_suffixes):
        return archive_hints(root, [*scan.zips, *scan.archives])
    causes = []
    if not present and (other := looks_like([*scan.others, *unexpected], dataset)) is not None:
        causes.append(other)
    if hint := _same_ids(dataset, missing["videos"], unexpected):
        causes.append(hint)
    for kinds, endings in (("videos", dataset.video_suffixes), ("skeletons", dataset.skeleton_suffixes)):
        if not missing[kinds]:
            continue
        if hint := _other_suffixes(dataset, scan, kinds, endings):
            causes.append(hint)
        elif kinds not in present and (near := _neighbour(dataset, root, kinds, endings)):
            causes.append(f"the {kinds} are in {near}: give --data {root.parent}")
    copies = {n: copied_from(os.path.basename(n)) for n in (*unexpected, *scan.others)}
    found = [(n, plain) for n, plain in copies.items() if is_lost(plain, lost) and plain != os.path.basename(n)]
    if found:
        what = f"{found[0][0]}, which may be the missing {found[0][1]}{_more(found)}"
        causes.append(f"rename, or download to its end, {what}")
    if scan.links:
        target = os.readlink(root / scan.links[0])
        causes.append(f"the link {scan.links[0]} leads to {target}, which does not exist{_more(scan.links)}")
    return causes + archive_hints(root, scan.archives)


def _more(names: Sized) -> str:
    return f", and {len(names) - 1:,} more alike" if len(names) > 1 else ""


def is_lost(name: str, lost: dict[str, set[str]]) -> bool:
    """True if a file of this name is missing; `lost` as for `hints`."""
    return any(name.endswith(suffix) and name[: -len(suffix)] in stems for suffix, stems in lost.items())


def archive_hints(root: Path, names: list[str]) -> list[str]:
    """Return hints at the first archives, with the commands that unpack them."""
    return [f"unpack {name}, which may hold the missing files: {unpack_command(root / name)}" for name in names[:3]]


def _same_ids(dataset: Dataset, missing: list[str], unexpected: list[str]) -> str | None:
    """Return a hint at a smaller or larger dataset with ids of the same form, if the files are its own."""
    pattern = re.compile(dataset.id_pattern)
    others = [load_dataset(name) for name in dataset_names() if name != dataset.name]
    for other in others:
        if dataset.expected is None or other.expected is None or other.id_pattern != dataset.id_pattern:
            continue
        if other.expected.samples < dataset.expected.samples:
            small, gone = set(other.expected_ids()), set(missing)
            total = sum(1 for _ in dataset.expected_ids())
            if gone and not gone & small and len(gone) + len(small) == total:
                return f"all of {other.title} is here and nothing else; try --dataset {other.name}"
        else:
            count = sum(bool(pattern.match(os.path.basename(name))) for name in unexpected)
            if count > 1000:
                return f"{count:,} more files are named like those of {other.title}; for all of them try --dataset {other.name}"
    return None


def _other_suffixes(dataset: Dataset, scan: Scan, kinds: str, endings: tuple[str, ...]) -> str | None:
    """Return a hint at files named by an id and another suffix than the dataset's."""
    pattern = re.compile(dataset.id_pattern)
    rests: Counter[str] = Counter()
    for name in scan.others:
        base = os.path.basename(name)
        match = pattern.match(base)
        if match and base.lower().endswith(USUAL[kinds.removesuffix("s")]):
            rests[base[match.end() :]] += 1
    if not rests:
        return None
    rest, count = rests.most_common(1)[0]
    return f"{count:,} files end with {rest!r} after the id; {kinds} must end with {' or '.join(endings)}"


def _neighbour(dataset: Dataset, root: Path, kinds: str, endings: tuple[str, ...]) -> str | None:
    """Return the name of a folder next to `root` whose first entries have the wanted names and are no label files."""
    pattern = re.compile(dataset.id_pattern)
    is_label = reader_of(dataset).is_label if kinds == "skeletons" else None
    try:
        siblings = sorted(p for p in root.parent.iterdir() if p.is_dir() and p != root)[:50]
        for folder in siblings:
            with os.scandir(folder) as entries:
                for _, entry in zip(range(500), entries, strict=False):
                    ending = next((s for s in endings if entry.name.endswith(s)), None)
                    if is_label is not None and is_label(f"{folder.name}/{entry.name}"):
                        continue
                    if ending and pattern.fullmatch(entry.name[: -len(ending)]):
                        return folder.name
    except OSError:
        return None
    return None
