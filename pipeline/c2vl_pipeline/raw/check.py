"""Compare a raw folder with the expected samples before work begins.

The check is cheap: names and sizes, the first bytes of each video, the directory of each archive. With `deep`, archives
and skeleton files are read whole. Errors stop `index` unless it is told to continue; notes do not.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError, StageError
from c2vl_pipeline.raw.hints import hints, is_lost
from c2vl_pipeline.raw.scan import ENDED, check_ends, is_archive, list_zip, unpack_command
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import Expected, Match, Row, Scan

_FAR_BELOW = 20
"""A file this many times smaller than the median of its camera is suspect, if the camera has `_ENOUGH` files."""
_ENOUGH = 8
_THREADS = 8


class IncompleteDataError(StageError):
    """The raw folder is incomplete or damaged, as `findings` states."""

    def __init__(self, message: str, findings: Findings) -> None:
        super().__init__(message)
        self.findings = findings


# ---------------------------------------------------------------------------------------------- findings


@dataclass
class Findings:
    """Result of the check: counts, and lists of sample ids or files per kind of error."""

    expected: int = 0
    with_video: int = 0
    with_skeleton: int = 0
    known_missing: int = 0
    labels: list[str] = field(default_factory=list)
    """Label files that do not exist."""
    too_few: str = ""
    """Count of label files or of their rows, if it differs from the published one."""
    missing_videos: list[str] = field(default_factory=list)
    missing_skeletons: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    truncated: list[str] = field(default_factory=list)
    """Files that are not whole by their first bytes or, with `deep`, by their content."""
    small: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """Archives that cannot be read."""
    packed: list[str] = field(default_factory=list)
    """Archives that hold missing files."""
    unfinished: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """Sample id -> what makes it impossible."""
    oddities: list[str] = field(default_factory=list)
    """What reading some joints, or all of them with `deep`, tells: notes as whole phrases."""
    doubles: list[str] = field(default_factory=list)
    """What `doubles` found, with `deep`."""
    absent: dict[str, str] = field(default_factory=dict)
    """`video` and `skeleton` -> the first path of a table that does not exist, and a near one that does."""
    system: list[str] = field(default_factory=list)
    """Files that a system or an editor left among the data."""
    around: list[str] = field(default_factory=list)
    """Links to folders that hold the raw folder."""
    no_names: list[str] = field(default_factory=list)
    """Cells of a table that hold a word for nothing where a file may be named."""
    remarks: list[str] = field(default_factory=list)
    """What was taken for granted, as sentences without a full stop."""
    hints: list[str] = field(default_factory=list)
    """Probable causes, as sentences without a full stop."""
    lacks: list[tuple[str, str, str]] = field(default_factory=list)
    """(videos | skeletons, grouped by, groups that lack most)."""

    def errors(self) -> list[str]:
        """Return one phrase per kind of error, with the first name: these stop `index`."""
        return [self.too_few][: bool(self.too_few)] + _phrases(
            {
                "label files missing": self.labels,
                "videos missing": self._missing("video", self.missing_videos),
                "skeletons missing": self._missing("skeleton", self.missing_skeletons),
                "empty files": self.empty,
                "damaged or truncated files": self.truncated,
                f"files under 1/{_FAR_BELOW} of the median of their camera": self.small,
                "damaged archives": self.damaged,
                "archives not unpacked": self.packed,
                "unfinished downloads": self.unfinished,
            }
        )

    def _missing(self, kind: str, samples: list[str]) -> list[str]:
        return [self.absent[kind], *samples[1:]] if samples and kind in self.absent else samples

    def keep(self, samples: set[str], files: set[str | None]) -> None:
        """Drop findings about other samples and files than these."""
        for names in (self.missing_videos, self.missing_skeletons):
            names[:] = [s for s in names if s in samples]
        self.problems = {s: why for s, why in self.problems.items() if s in samples}
        for names in (self.empty, self.truncated, self.small):
            names[:] = [f for f in names if f.split(": ", 1)[0] in files]
        self.labels, self.too_few, self.lacks = [], "", []
        self.absent = self.absent if self.missing_videos or self.missing_skeletons else {}

    def named(self) -> dict[str, list[str]]:
        """Return the faulty files by kind of error."""
        kinds = {
            "label": self.labels,
            "empty": self.empty,
            "truncated": self.truncated,
            "small": self.small,
            "damaged archive": self.damaged,
            "not unpacked": self.packed,
            "unfinished": self.unfinished,
        }
        return {kind: names for kind, names in kinds.items() if names}

    def notes(self) -> list[str]:
        """Return one phrase per kind of oddity that does not stop `index`."""
        kinds = {
            "unexpected files": self.unexpected,
            "system or backup files passed over": self.system,
            "links to folders that hold the data folder, not followed": self.around,
            "impossible samples": [f"{sample}: {why}" for sample, why in self.problems.items()],
            "cells that name no file": self.no_names,
        }
        return [*self.remarks, *_phrases(kinds), *self.oddities, *self.doubles]


def _phrases(kinds: dict[str, list[str]]) -> list[str]:
    return [f"{len(n):,} {what} ({n[0]}{', …' if len(n) > 1 else ''})" for what, n in kinds.items() if n]


def check(dataset: Dataset, root: Path, expected: Expected, match: Match, scan: Scan, deep: bool = False) -> Findings:
    """Compare the expected samples with the files that were matched to them.

    Args:
        dataset: what the folder should hold.
        root: the raw folder.
        expected: its samples; the rows name their files.
        match: what the reader could not find.
        scan: all files.
        deep: read archives and skeleton files whole.
    """
    rows = expected.rows
    findings = Findings(
        labels=expected.missing_labels,
        too_few=expected.too_few,
        missing_videos=match.missing_videos,
        missing_skeletons=match.missing_skeletons,
        unexpected=match.unexpected,
        unfinished=list(scan.unfinished),
        problems={r["sample_id"]: r["problem"] for r in rows if r["problem"]},
        absent=match.absent,
        system=scan.system,
        around=scan.around,
        no_names=match.notes,
        remarks=expected.notes,
    )
    _check_content(dataset, root, rows, findings, deep)
    _empty_and_small(rows, findings)
    lost = {
        suffix: match.missing_stems.get(kind, set())
        for kind, endings in (("video", dataset.video_suffixes), ("skeleton", dataset.skeleton_suffixes))
        for suffix in endings
    }
    _open_archives(root, lost, scan, findings, deep)
    findings.lacks = _lacks(dataset, rows, findings)
    if findings.missing_videos or findings.missing_skeletons:
        findings.hints = hints(
            dataset,
            root,
            scan,
            missing={"videos": findings.missing_videos, "skeletons": findings.missing_skeletons},
            present={kinds for kind, kinds in _KINDS if any(r[kind] for r in rows)},
            unexpected=findings.unexpected,
            lost=lost,
        )
    return findings


def _there(rows: list[Row], kind: str) -> Iterator[tuple[str, int, Row]]:
    """Yield every file of one kind once: (relative path, bytes, its first sample)."""
    seen = set()
    for row in rows:
        if row[kind] is not None and row[kind] not in seen:
            seen.add(row[kind])
            yield row[kind], row[f"{kind}_bytes"], row


def _empty_and_small(rows: list[Row], findings: Findings) -> None:
    """Note empty files, and files far smaller than the others of their camera, unless their end shows that they are whole."""
    broken = {line.split(": ", 1)[0] for line in findings.truncated}
    for kind in ("video", "skeleton"):
        sizes: dict[str, list[tuple[int, str]]] = {}
        for relative, size, row in _there(rows, kind):
            if size == 0:
                findings.empty.append(relative)
            elif Path(relative).suffix in ENDED or relative in broken:
                continue
            elif kind == "video" or not row["known_missing"]:
                sizes.setdefault(row["camera"], []).append((size, relative))
        for of_camera in sizes.values():
            if len(of_camera) >= _ENOUGH:
                middle = statistics.median(size for size, _ in of_camera)
                findings.small += [
                    f"{relative}: {size:,} bytes, median {middle:,.0f}"
                    for size, relative in of_camera
                    if size * _FAR_BELOW < middle
                ]


# ------------------------------------------------------------------------------------------- broken files


def _check_content(dataset: Dataset, root: Path, rows: list[Row], findings: Findings, deep: bool) -> None:
    """Note files damaged at their ends and, with `deep`, damaged skeleton files by reading them."""
    skeletons = [(path, size) for path, size, row in _there(rows, "skeleton") if size and not row["known_missing"]]
    files = [*((path, size) for path, size, _ in _there(rows, "video") if size), *skeletons]

    def look(part: list[tuple[str, int]]) -> list[str]:
        return [f"{path}: {why}" for path, size in part if (why := check_ends(f"{root}/{path}", size))]

    # threads help in folders across a network; each takes a slice, for a task per file would cost more than reading
    with ThreadPoolExecutor(_THREADS) as pool:
        for lines in pool.map(look, [files[n::_THREADS] for n in range(_THREADS)]):
            findings.truncated += lines
    findings.truncated.sort()
    check_file = reader_of(dataset).check_file
    if not deep or check_file is None:
        return
    broken = {line.split(": ", 1)[0] for line in findings.truncated}
    for relative, _ in skeletons:
        if relative not in broken:
            path = root / relative
            try:
                check_file(path)
            except (DataError, OSError) as error:
                reason = str(error).removeprefix(str(path)).lstrip(": ")
                findings.truncated.append(f"{relative}: {reason}")


def _open_archives(root: Path, lost: dict[str, set[str]], scan: Scan, findings: Findings, deep: bool) -> None:
    """Note zip archives that are damaged or that hold missing files."""
    for relative in scan.zips:
        names, problem = list_zip(root / relative, deep)
        if problem is not None:
            findings.damaged.append(f"{relative}: {problem}")
        held = sum(is_lost(name.rsplit("/", 1)[-1], lost) for name in names)
        if held:
            command = unpack_command(root / relative)
            findings.packed.append(f"{relative}: holds {held:,} missing files; unpack it: {command}")
        elif any(map(is_archive, names)):
            scan.archives.insert(0, relative)


# ------------------------------------------------------------------------------------ where most is missing

_KINDS = (("video", "videos"), ("skeleton", "skeletons"))
_GROUPS = (
    ("setup", "setup", "S{:03d}"),
    ("view", "camera", "C{:03d}"),
    ("subject", "subject", "P{:03d}"),
    ("label", "class", "class {}"),
)
_MOST_GROUPS = 6


def _lacks(dataset: Dataset, rows: list[Row], findings: Findings) -> list[tuple[str, str, str]]:
    """Count missing files by setup, camera, subject and class, the worst first."""
    lines = []
    for kind, kinds in _KINDS:
        lost = set(findings.missing_videos if kind == "video" else findings.missing_skeletons)
        if not lost:
            continue
        due = [r for r in rows if not (kind == "skeleton" and r["known_missing"])]
        for column, by, form in _GROUPS:
            unknown = -1 if column == "label" else None
            known = [r for r in due if r[column] != unknown]
            expected = Counter(r[column] for r in known)
            missing = Counter(r[column] for r in known if r["sample_id"] in lost)
            if missing and len(expected) > 1:
                names = {value: form.format(value) for value in expected}
                if column == "label":
                    names |= {n: f"A{n + 1:03d} {name}" for n, name in enumerate(dataset.classes)}
                lines.append((kinds, by, _worst(names, missing, expected)))
    return lines


def _worst(names: dict[int, str], missing: Counter[int], expected: Counter[int]) -> str:
    """Return the groups that lack the largest share, in words."""
    if missing == expected:
        return f"all {len(expected):,}"
    ordered = sorted(missing, key=lambda v: (-missing[v] / expected[v], -missing[v], v))
    whole = [v for v in ordered if missing[v] == expected[v]]
    first, last = (missing[v] / expected[v] for v in (ordered[0], ordered[-1]))
    if len(ordered) > _MOST_GROUPS and first <= 1.5 * last:
        return f"{len(ordered):,} of {len(expected):,} alike, as {names[ordered[0]]}: {missing[ordered[0]]:,} of {expected[ordered[0]]:,}"
    shown = [f"{names[v]}: {missing[v]:,} of {expected[v]:,}" for v in ordered[:_MOST_GROUPS]]
    rest = len(ordered) - len(shown)
    text = "; ".join(shown) + (f"; and {rest:,} more" if rest else "")
    return text + (f" ({len(whole):,} of {len(expected):,} lack all)" if len(whole) > _MOST_GROUPS else "")
