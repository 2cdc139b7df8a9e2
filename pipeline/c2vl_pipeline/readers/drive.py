"""Reader of Drive&Act: recordings of a driver, cut into chunks by label files, with one table of 3D joints each.

A label file is a CSV of participant_id, file_id, annotation_id, frame_start, frame_end, activity and chunk_id; its name
says split and part. A pose file is a CSV of frame_id, timestamp and x, y, z, p of each joint (`nose_x`, …). Both as public
loaders read them.
"""

from __future__ import annotations

import csv
import io
import re
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_manifests.datasets import Dataset, Split
from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.reading import read_text
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.base import (
    Array,
    Assembled,
    Expected,
    Match,
    Reader,
    Row,
    Scan,
    anchored,
    is_hidden,
    locate_by_name,
    new_row,
)
from c2vl_pipeline.readers.oddities import oddities, of_files

VIEW = "inner_mirror"
"""Camera whose frames the poses count."""
SPLITS, PARTS = (0, 1, 2), ("train", "val", "test")
_LABELS = re.compile(
    rf"(?:.*/)?{VIEW}/midlevel\.chunks_90\.split_(?P<split>[{SPLITS[0]}-{SPLITS[-1]}])\.(?P<part>{'|'.join(PARTS)})\.csv"
)
_COLUMNS = ("participant_id", "file_id", "annotation_id", "frame_start", "frame_end", "activity", "chunk_id")
_FILE_ID = re.compile(r"vp(?P<subject>\d{1,4})/(?P<run>[\w-]{1,100})\.ids_1")
_MOST_FRAMES, _MOST_POSE = 1 << 24, 1 << 30
_HEADS = 10
"""Lines within which the names of the columns stand."""
_SIDES = {"left": "l", "right": "r"}
_OPENPOSE = {"hip_centre": "midHip", "foot_index": "BigToe", "foot_little": "SmallToe"}
"""Joints that OpenPose names otherwise."""

# ---------------------------------------------------------------------------------------------- labels


def parse_labels(text: str, split: str, part: str, dataset: Dataset, source: str) -> list[Row]:
    """Return the rows of one label file: one sample per line, with the benchmarks that the file's part belongs to.

    The published validation part is the test side of `split<n>-val`, so that settings are chosen on it.

    *Reading:* frames are [frame_start, frame_end): the chunks of one annotation follow each other so.

    Raises:
        DataError: `file:line: reason`.
    """
    lines = csv.reader(io.StringIO(text))
    rows = []
    try:
        head = next(lines, [])
        if lacking := [name for name in _COLUMNS if name not in head]:
            raise DataError(f"{source}:1: no column {lacking[0]!r}; expected {','.join(_COLUMNS)}")
        for cells in lines:
            if cells:
                at = f"{source}:{lines.line_num}"
                if len(cells) != len(head):
                    raise DataError(f"{at}: {len(cells)} cells; the header has {len(head)} columns")
                rows.append(_row(dict(zip(head, cells, strict=True)), split, part, dataset, at))
    except csv.Error as error:
        raise DataError(f"{source}:{lines.line_num}: not a line of a table ({one_line(error)})") from error
    return rows


def _row(cells: dict[str, str], split: str, part: str, dataset: Dataset, at: str) -> Row:
    recording = _FILE_ID.fullmatch(cells["file_id"])
    if recording is None:
        raise DataError(
            f"{at}: file_id {cells['file_id'][:60]!r}; expected the form vp1/run1b_2018-05-29-14-02-47.ids_1"
        )
    start, end, annotation, chunk = (
        _whole(cells[name], name, at) for name in ("frame_start", "frame_end", "annotation_id", "chunk_id")
    )
    activity = cells["activity"].replace("_", " ")
    if activity not in dataset.classes:
        raise DataError(f"{at}: activity {activity[:60]!r} is not one of the {len(dataset.classes)} of the splits")
    sides: dict[str, tuple[Split | None, Split | None]] = {
        "train": ("train", "train"),
        "val": (None, "test"),
        "test": ("test", None),
    }
    return new_row(
        f"vp{recording['subject']}_{recording['run']}_a{annotation}_c{chunk}",
        label=dataset.classes.index(activity),
        subject=int(recording["subject"]),
        view=1,
        camera=VIEW,
        video=recording["run"],
        skeleton=recording["run"],
        start_frame=start,
        end_frame=end,
        problem=None if start < end else f"frame_start {start} is not before frame_end {end}",
        splits=[
            (name, side) for name, side in zip((f"split{split}", f"split{split}-val"), sides[part], strict=True) if side
        ],
    )


def _whole(text: str, name: str, at: str) -> int:
    if not re.fullmatch(r"[0-9]{1,8}", text) or int(text) >= _MOST_FRAMES:
        raise DataError(f"{at}: {name} = {text[:40]!r} is not a whole number below {_MOST_FRAMES:,}")
    return int(text)


def _expected_rows(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect one sample per chunk of the label files, and all nine of them.

    Raises:
        DataError: there is no label file, one is malformed, or two of them differ in a chunk.
    """
    files: dict[tuple[str, str], str] = {}
    for other in sorted(scan.others, key=is_hidden):
        if found := _LABELS.fullmatch(f"{root.name}/{other}"):
            files.setdefault((found["split"], found["part"]), other)
    if not files:
        raise DataError(
            f"{root} holds no label files; expected activities_3s/{VIEW}/midlevel.chunks_90.split_0.train.csv, …"
        )
    samples: dict[str, Row] = {}
    for (split, part), relative in sorted(files.items()):
        path = root / relative
        try:
            text = read_text(path)
        except ValueError as error:
            raise DataError(f"{path}: not a label file ({one_line(error)})") from error
        for row in parse_labels(text, split, part, dataset, str(path)):
            known = samples.setdefault(row["sample_id"], row)
            if known is not row:
                if {**known, "splits": 0} != {**row, "splits": 0} or {*dict(known["splits"])} & {*dict(row["splits"])}:
                    raise DataError(
                        f"{path}: {row['sample_id']} is another chunk or of another part in another file or line"
                    )
                known["splits"] += row["splits"]
    missing = [
        f"{VIEW}/midlevel.chunks_90.split_{split}.{part}.csv"
        for split in SPLITS
        for part in PARTS
        if (str(split), part) not in files
    ]
    rows = sorted(samples.values(), key=lambda row: (row["video"], row["start_frame"], row["sample_id"]))
    return Expected(dataset.classes, rows, missing)


def _locate(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    """Look up poses, and the videos of the one camera: those of others may have the same names."""
    poses = dataset.skeleton_suffixes
    files = [f for f in scan.files if f.suffix in poses or VIEW in (root / f.relative).parts]
    return locate_by_name(dataset, root, rows, replace(scan, files=files))


# ---------------------------------------------------------------------------------------------- joints


def _column(joint: str) -> str:
    """Return OpenPose's name of a joint: `lSmallToe` of foot_little_left, `midHip` of hip_centre."""
    name, _, side = joint.rpartition("_")
    if side not in _SIDES:
        return _OPENPOSE.get(joint, joint)
    return _SIDES[side] + _OPENPOSE.get(name, name.title())


@lru_cache(maxsize=2)
def _poses(path: Path, layout: Layout, _changed: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Return the frames of a pose file (T,), ascending, and its joints (T, V, 3), NaN where OpenPose saw none.

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    try:
        lines = read_text(path, _MOST_POSE).splitlines()
        start = next((n for n, line in enumerate(lines[:_HEADS]) if line.startswith("frame_id")), None)
        if start is None:
            raise ValueError("no line of column names that begins with frame_id")
        names = [name.strip() for name in lines[start].split(",")]
        wanted = ["frame_id", *(f"{_column(joint)}_{axis}" for joint in layout.names for axis in "xyz")]
        if lacking := [name for name in wanted if name not in names]:
            raise ValueError(f"no column {lacking[0]}")
        at = [names.index(name) for name in wanted]
        table = [line for line in lines[start + 1 :] if line.strip()]
        values = np.zeros((0, len(wanted)))
        if table:  # numpy warns of none
            values = np.loadtxt(table, np.float64, delimiter=",", usecols=at, ndmin=2)
        frames = values[:, 0]
        if not np.isfinite(frames).all() or (np.diff(frames) <= 0).any() or not (abs(frames) < _MOST_FRAMES).all():
            raise ValueError("frame_id does not ascend")
    except ValueError as error:
        raise DataError(f"{path}: not a pose file of Drive&Act ({one_line(error)}); copy it again") from error
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
        return frames.astype(np.int64), values[:, 1:].reshape(-1, layout.joints, 3).astype(np.float32)


def read_drive(path: Path, layout: Layout, start: int, end: int) -> Assembled:
    """Read frames [start, end) of a pose file; the hip centre of the first frame that has it becomes the origin.

    Raises:
        DataError: the file is in another format or damaged, or ends before `start`.
        OSError: the file cannot be opened.
    """
    frames, joints = _poses(path, layout, path.stat().st_mtime_ns)
    if reason := _cut_off(frames, start):
        raise DataError(f"{path}: {reason}")
    inside = slice(*np.searchsorted(frames, (start, end)))
    made = anchored(joints[inside][:, None], layout)
    return replace(made, frame_index=frames[inside][made.frame_index].astype(np.int32))


def _cut_off(frames: npt.NDArray[np.int64], start: int) -> str:
    """Return why a pose file of these frames is truncated for a label that begins at `start`; empty if it is not."""
    if len(frames) and frames[-1] >= start:
        return ""
    last = f"ends with frame {frames[-1]:,}" if len(frames) else "holds no frame"
    return f"truncated: it {last}, a label begins at {start:,}; download it again"


def _look(
    root: Path, rows: list[Row], layout: Layout, deep: bool, config: SkeletonsConfig
) -> tuple[list[str], list[str]]:
    """Read one pose file, all of them if `deep`; note what no person can be, and name those that end before their labels."""
    truncated: list[str] = []
    found: list[tuple[str, str]] = []
    starts: dict[str, int] = {}
    for row in rows:
        if row["skeleton"] and row["skeleton_bytes"] and not row["problem"]:
            starts[row["skeleton"]] = max(row["start_frame"], starts.get(row["skeleton"], 0))
    for relative, start in starts.items() if deep else list(starts.items())[:1]:
        path = root / relative
        with suppress(DataError, OSError):  # the check of the files and the skeletons stage say it
            frames, joints = _poses(path, layout, path.stat().st_mtime_ns)
            truncated += [f"{relative}: {reason}" for reason in [_cut_off(frames, start)] if reason]
            found += [(relative, note) for note in oddities(joints[:, None], layout)]
    return truncated, of_files(found)


READER = Reader(
    expected_rows=_expected_rows,
    locate=_locate,
    read_joints=lambda path, row, layout, bodies, config: read_drive(
        path, layout, row["start_frame"], row["end_frame"]
    ),
    check_file=lambda path: _poses(path, load_layout("body_25_3d"), path.stat().st_mtime_ns),
    look=_look,
)
