"""The parts of a reader: what it is given, what it returns, and the steps that several readers share.

A `Reader` states everything the product must know about one kind of raw data. `c2vl_pipeline.readers` registers them.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_manifests.schema import SAMPLES

Array = npt.NDArray[np.float32]
Seen = npt.NDArray[np.bool_]
Row = dict[str, Any]
"""One sample of the index; keys are the columns of `c2vl_manifests.schema.SAMPLES`."""


@dataclass(frozen=True)
class File:
    """One file of the raw folder whose name ends with one of the dataset's suffixes."""

    stem: str
    suffix: str
    size: int
    relative: str


_SYSTEM = re.compile(
    r"(^|/)(\._[^/]*|\.ds_store|(eh)?thumbs\.db|desktop\.ini|[^/]*(~|\.bak|\.orig|\.swp))$"
    r"|(^|/)(__macosx|\.(appledouble|trash[^/]*|spotlight-v100|fseventsd|ipynb_checkpoints|@[^/]*|recycle[^/]*)"
    r"|[$#@]recycle(\.bin)?|recycler|[#~.]snap(shots?)?|\.(zfs|st(versions|folder)|sync|dropbox\.cache|git)"
    r"|@(eadir|tmp|sharebin|recently-snapshot)|\.tmp\.drive(down|up)load|system volume information|lost\+found)/",
    re.IGNORECASE,
)


def is_system_file(relative: str) -> bool:
    """True if a system, an archiver, a NAS or an editor made this: `._x`, `x.bak`, a folder (with `/`) like #recycle."""
    return _SYSTEM.search(relative) is not None


def is_hidden(relative: str) -> bool:
    """True if the name of a file, or of a folder above it, begins like one that is not for people."""
    return re.search(r"(^|/)[.#@~$]", relative) is not None


@dataclass
class Scan:
    """All files below a raw folder, sorted by what their names tell."""

    files: list[File] = field(default_factory=list)
    zips: list[str] = field(default_factory=list)
    archives: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    """Links to what does not exist."""
    around: list[str] = field(default_factory=list)
    """Links to a folder that holds the raw folder too, or the folder of the link: they are not followed."""
    system: list[str] = field(default_factory=list)
    """What a system or an editor left, see `is_system_file`."""


@dataclass(frozen=True)
class Expected:
    """The samples that a dataset consists of, before any file is looked up."""

    classes: tuple[str, ...]
    rows: list[Row]
    missing_labels: list[str] = field(default_factory=list)
    """Label files that do not exist."""
    too_few: str = ""
    """Count of label files or of their rows, if it differs from the published one."""
    notes: list[str] = field(default_factory=list)
    """What was taken for granted about label files or the table."""


@dataclass
class Match:
    """Result of looking up the files of expected samples, as sample ids or relative paths."""

    missing_videos: list[str] = field(default_factory=list)
    missing_skeletons: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing_stems: dict[str, set[str]] = field(default_factory=dict)
    """`video` and `skeleton` -> names, without suffix, for which no file exists."""
    absent: dict[str, str] = field(default_factory=dict)
    """`video` and `skeleton` -> the first path of a table that does not exist, and a near one that does."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Assembled:
    """Joints of one sample, (T, M, V, C) float32, and the file frame of each kept frame, (T,)."""

    joints: Array
    frame_index: npt.NDArray[np.int32]
    frames_in_file: int

    @property
    def bodies(self) -> int:
        """Slots of bodies up to the last one that is not all zero."""
        return int(np.flatnonzero(self.joints.any(axis=(0, 2, 3))).max(initial=-1)) + 1


Projection = Callable[[int, int], Array | None]
"""Frame number, height of the image -> joints in its pixels, (bodies, V, 2), not finite where missing; None: nobody."""


@dataclass(frozen=True)
class Reader:
    """One kind of raw data. Functions raise DataError for malformed content, OSError if a file cannot be opened."""

    expected_rows: Callable[[Dataset, Path, Scan], Expected]
    """(dataset, raw folder, its files) -> one row per sample that the dataset should hold."""
    locate: Callable[[Dataset, Path, list[Row], Scan], Match]
    """(dataset, raw folder, rows, files): set path and size of each row's files; return what is missing."""
    read_joints: Callable[[Path, Row, Layout, int, SkeletonsConfig], Assembled]
    """(skeleton file, row, layout, bodies, config) -> joints of one sample."""
    project: Callable[[Path, Row, Layout], Projection | None] | None = None
    """(skeleton file, row, layout) -> its joints in pixels of the video; None if they are not recorded."""
    check_file: Callable[[Path], object] | None = None
    """Raise DataError if a skeleton file is damaged (`index --deep`); None if only its size is checked."""
    look: Callable[[Path, list[Row], Layout, bool, SkeletonsConfig], tuple[list[str], list[str]]] | None = None
    """(raw folder, rows, layout, deep, config) -> truncated skeleton files with reasons, and notes, found by reading them."""
    in_image: Callable[[Path, list[Row], Layout], bool] | None = None
    """(raw folder, rows, layout) -> True if the joints of all videos are in their images, and so can place the crops."""
    is_label: Callable[[str], bool] | None = None
    """True for a path that is a label file, although it ends like a skeleton file."""
    clip_files: Mapping[str, str] = field(default_factory=dict)
    """Suffix -> format, for files that hold one clip and can be read without an index (see `read_skeleton`)."""
    clip_layout: str | None = None
    """Joint layout of `clip_files`; None if the caller states it."""
    named_by_id: bool = True
    """Files are named by the ids of samples or recordings, so names reveal which dataset a folder holds."""


USUAL = {
    "video": (".avi", ".mp4", ".m4v", ".mov", ".mkv", ".webm"),
    "skeleton": (".skeleton", ".txt", ".mat", ".npy", ".npz", ".json", ".csv", ".pkl", ".c3d"),
}
"""Usual suffixes of videos and of skeleton files, in any dataset."""

# ------------------------------------------------------------------------------------------------ rows


def new_row(sample_id: str, **columns: Any) -> Row:
    """Return a row of the index with these columns; the others hold their empty values."""
    row: Row = dict.fromkeys(SAMPLES.names)
    row.update(sample_id=sample_id, label=-1, camera="", known_missing=False, splits=[])
    row.update(columns)
    return row


def rows_of_ids(dataset: Dataset, ids: Iterable[str]) -> list[Row]:
    """Return the rows of samples whose ids state everything: class, subject, view, setup and repeat."""
    missing = dataset.known_missing()
    rows = []
    for sample_id in ids:
        fields = dataset.parse_id(sample_id)
        row = new_row(
            sample_id,
            label=dataset.label(fields),
            subject=fields.get("subject"),
            view=fields.get("view"),
            setup=fields.get("setup"),
            repeat=fields.get("repeat"),
            camera=f"S{fields['setup']:03d}C{fields['view']:03d}"
            if "setup" in fields
            else f"C{fields.get('view', 1):03d}",
            known_missing=sample_id in missing,
            splits=list(dataset.splits(fields, sample_id).items()),
        )
        rows.append(row)
    return rows


def expect_ids(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect the ids that the dataset's own rules give (`ids`, `sessions` or `trials`)."""
    return Expected(dataset.classes, rows_of_ids(dataset, dataset.expected_ids()))


def locate_by_name(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    """Look up files named by sample id, or by the name that a row already holds as its video or skeleton.

    Of several files, one below hidden folders is used last; of the others the one with the first suffix, then the less
    deep one.
    """
    match = Match()
    files: dict[str, dict[str, File]] = {"video": {}, "skeleton": {}}
    order = {s: i for i, s in enumerate((*dataset.video_suffixes, *dataset.skeleton_suffixes))}
    duplicates = []

    def rank(file: File) -> tuple[bool, int, int]:
        return is_hidden(file.relative), order[file.suffix], file.relative.count("/")

    for file in scan.files:
        kind = "video" if file.suffix in dataset.video_suffixes else "skeleton"
        other = files[kind].setdefault(file.stem, file)
        if other is not file:
            best, worse = sorted((other, file), key=rank)
            files[kind][file.stem] = best
            if worse.suffix == best.suffix:
                duplicates.append(f"{worse.relative}: as {best.relative}")
    wanted: dict[str, set[str]] = {"video": set(), "skeleton": set()}
    for row in rows:
        for kind, missing in (("video", match.missing_videos), ("skeleton", match.missing_skeletons)):
            stem = row[kind] or row["sample_id"]
            wanted[kind].add(stem)
            hit = files[kind].get(stem)
            row[kind] = hit.relative if hit else None
            row[f"{kind}_bytes"] = hit.size if hit else None
            needed = not row["known_missing"] if kind == "skeleton" else bool(dataset.video_suffixes)
            if hit is None and needed:
                missing.append(row["sample_id"])
    for kind, named in files.items():
        match.unexpected += [f.relative for s, f in named.items() if s not in wanted[kind]]
        match.missing_stems[kind] = wanted[kind] - set(named)
    match.unexpected += duplicates
    return match


def leads_nowhere(path: str | Path) -> bool:
    """True for a link to what does not exist; False if this cannot be known."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return os.path.islink(path)
    except OSError:
        pass
    return False


_COPY = re.compile(
    r"(\.|(copy of|kopie von|copie de|copia de) )?(?P<stem>.+?)"
    r"( ?\(\d+\)| - (copy|kopie|copie|copia)( ?\(\d+\))?| copy( \d+)?)?"
    r"(?P<suffix>\.[^.]+)(\.(icloud|gdownload|download|crdownload|part|partial|tmp))?",
    re.IGNORECASE,
)


def copied_from(name: str) -> str:
    """Return the name that a file had before it was copied or while it is loaded: `x (1).npy` was x.npy."""
    match = _COPY.fullmatch(name)
    return match["stem"] + match["suffix"] if match else name


def near_path(name: str, files: Iterable[str], by_stem: bool = True) -> str | None:
    """Return the file that a wrong path most probably means, or None.

    Files are compared without regard to letter case, the form of accents, blanks at ends, and the kind of slash; first
    by the whole path, then by fewer of its last parts, at last, `by_stem`, by the name without its suffix and without
    what marks a copy.
    """
    wanted = _parts(name)
    best: tuple[int, str] | None = None
    for file in files:
        parts = _parts(file)
        alike = [a == b for a, b in zip(reversed(wanted), reversed(parts), strict=False)]
        score = 2 * (alike.index(False) if False in alike else len(alike))
        if by_stem and not score and wanted and parts:
            score = int(_stem(wanted[-1]) in {_stem(parts[-1]), _stem(copied_from(parts[-1]))})
        if score and (best is None or score > best[0]):
            best = score, file
    return best[1] if best else None


def _parts(path: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", path).casefold().replace("\\", "/")
    return [part for one in plain.split("/") if (part := one.strip(" \t\"'")) not in {"", "."}]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


# ---------------------------------------------------------------------------------------------- joints


def without_gaps(joints: Array) -> Array:
    """Return joints in which those with NaN or infinite coordinates are zero, as missing ones are. Shape: (..., C)."""
    return np.where(np.isfinite(joints).all(axis=-1, keepdims=True), joints, np.float32(0))


def people_first(joints: Array) -> Array:
    """Return joints with the slots of bodies that are never seen behind the others, whose order stays. (T, M, V, C)."""
    return np.take(joints, np.argsort(~joints.any(axis=(0, 2, 3)), kind="stable"), axis=1)


def joints_seen(joints: Array, layout: Layout) -> Seen:
    """Mark the joints that are not missing, by the rule of `missing_joints`, before centring. (T, M, V, C) -> (T, M, V).

    *Reading:* zero is a place in clips that are centred already, in which the first frame's other joints lie around it:
    there the anchor was seen, and so was, in all frames, a single joint between three bones that is zero throughout.
    """
    seen = np.asarray(joints.any(axis=3), np.bool_)
    if seen[:, 0].any():
        first = int(np.argmax(seen[:, 0].any(axis=1)))
        others = joints[first, 0][seen[first, 0]]
        if (others.min(axis=0) <= 0).all() and (others.max(axis=0) >= 0).all():
            bones = np.bincount(np.ravel(layout.bones), minlength=layout.joints)
            roots = np.flatnonzero((bones > 2) & ~seen[:, 0].any(axis=0))
            if len(roots) == 1:
                seen[:, :, roots[0]] = seen.any(axis=2)
            seen[first, 0, layout.anchor] = True
    return seen


def to_origin(joints: Array, seen: Seen, anchor: int) -> Array:
    """Subtract the first body's anchor joint of the first frame that has it; what was not `seen` becomes zero.

    *Reading:* a clip whose anchor is missing in its first frame gets its origin from the first frame that has it, as
    published loaders do with whole bodies; one that never has it stays where it is.
    """
    place = joints[np.argmax(seen[:, 0, anchor]), 0, anchor] if seen[:, 0, anchor].any() else np.float32(0)
    return np.where(seen[..., None], joints - place, np.float32(0))


def anchored(joints: Array, layout: Layout, bodies: int | None = None) -> Assembled:
    """Keep the first `bodies` that are seen, drop empty frames and make the first body's anchor the origin.

    Absent bodies and missing joints stay zero. None keeps all bodies.
    """
    joints = people_first(without_gaps(joints))[:, :bodies]
    index = np.flatnonzero(joints.any(axis=(1, 2, 3))).astype(np.int32)
    kept = joints[index]
    kept = to_origin(kept, joints_seen(kept, layout), layout.anchor)
    return Assembled(np.ascontiguousarray(kept, np.float32), index, len(joints))


def video_of(path: Path, row: Row) -> Path | None:
    """Return the video of a row, None if it has none; the raw folder follows from the `path` of its skeleton file."""
    if not row.get("video") or not row.get("skeleton"):
        return None
    return path.parents[len(Path(row["skeleton"]).parts) - 1] / str(row["video"])


def recording_frames(path: Path, row: Row, like: int) -> int | None:
    """Return how many frames the video of a row has, None if it has none that can be read.

    Containers state the number wrongly at times: unless it is about `like`, the frames are decoded and counted.

    Args:
        path: the row's skeleton file, from which the raw folder follows.
        row: of the index.
        like: frames that are expected.
    """
    if (video := video_of(path, row)) is None:
        return None
    try:
        changed = video.stat().st_mtime_ns
        stated = _video_frames(video, changed, False)
        return stated if abs(stated - like) <= NEARLY else _video_frames(video, changed, True)
    except (DataError, OSError):
        return None


NEARLY = 2
"""Frames by which joints and video of one recording may differ: decoders and estimators lose the first or the last."""


def end_within(end: int, held: int) -> int | None:
    """Return where a range up to `end` ends in a video of `held` frames; None if more than `NEARLY` frames of it are missing."""
    return min(end, held) if end - held <= NEARLY else None


@lru_cache(maxsize=256)
def _video_frames(path: Path, _changed: int, decode: bool) -> int:
    from c2vl_pipeline.readers.video import Video

    with Video(path) as video:
        return video.drain() if decode else video.count()
