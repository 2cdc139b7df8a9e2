"""Reader of PKU-MMD: long recordings, cut into samples by label files, with one skeleton text file each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.files import regular
from c2vl_manifests.layouts import KINECT_V2, Layout
from c2vl_manifests.reading import TooLargeError, read_bytes
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.base import (
    NEARLY,
    Array,
    Assembled,
    Expected,
    Match,
    Reader,
    Row,
    Scan,
    is_hidden,
    joints_seen,
    locate_by_name,
    new_row,
    people_first,
    recording_frames,
    to_origin,
    without_gaps,
)

_INT16, _INT32 = 1 << 15, 1 << 31
_MOST_LABEL_BYTES = 1 << 20
_LONGEST_LINE = 1 << 16
"""Of a frame, whose 150 numbers take about 1500 letters; a longer line is none."""

# ---------------------------------------------------------------------------------------------- labels


def is_label(relative: str) -> bool:
    """True if a text file is in a folder whose name contains `label`."""
    return "label" in os.path.dirname(relative).lower()


def expected_rows(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect one sample per row of the label files, and a label file for each published recording."""
    texts = [f.relative for f in scan.files if f.suffix == ".txt" and is_label(f.relative)]
    # a readme is none; where no name is one of a recording, the error names the first
    labels = [path for path in texts if re.fullmatch(dataset.id_pattern, Path(path).stem)] or texts
    rows = list(label_rows(dataset, root, labels))
    names = {Path(relative).stem for relative in labels}
    missing = [f"{name}.txt" for name in dataset.expected_recordings() if name not in names]
    published = dataset.expected
    too_few = ""
    if not missing and published is not None and published.videos is not None:
        if len(names) != published.videos:
            too_few = f"{len(names):,} of {published.videos:,} label files"
        elif len(rows) != published.samples:
            too_few = f"{len(rows):,} rows in all label files, {published.samples:,} were published"
    strangers = sorted(set(texts) - set(labels))
    more = f" and {len(strangers) - 1} more" if strangers[1:] else ""
    notes = [f"{strangers[0]}{more}: no label file by its name, passed over"] if strangers else []
    return Expected(dataset.classes, rows, missing, too_few, notes)


def label_rows(dataset: Dataset, root: Path, labels: Iterable[str]) -> Iterator[Row]:
    """Yield one row per line of the label files, whose paths are relative to `root`.

    Raises:
        DataError: there is no file, one is malformed, or two of one recording differ.
    """
    files: dict[str, str] = {}
    for relative in sorted(labels, key=is_hidden):
        stem = Path(relative).stem
        other = files.setdefault(stem, relative)
        same = other == relative or is_hidden(relative) != is_hidden(other)
        if not same and _label_text(root / other) != _label_text(root / relative):
            raise DataError(
                f"{root / relative}: differs from {other}, which labels the same recording; keep one of them"
            )
    if not files:
        raise DataError(f"{root} holds no label files; expected *.txt below a folder whose name contains 'label'")
    for video in sorted(files):
        path = root / files[video]
        text = _label_text(path)
        if text and not text.strip("\0"):
            raise DataError(f"{path}: NUL bytes, as after a full disk or a crash; copy it again")
        yield from parse_labels(text, video, dataset, str(path))


def _label_text(path: Path) -> str:
    try:
        return read_bytes(path, _MOST_LABEL_BYTES).decode("utf-8-sig", "replace")
    except TooLargeError as error:
        raise DataError(f"{path}: {error}; a label file has a few hundred. Is it a skeleton file?") from error


def parse_labels(text: str, video: str, dataset: Dataset, source: str) -> list[Row]:
    """Return the rows of one recording: one sample per line `class,start,end,confidence`, frames 1-based, inclusive.

    Raises:
        DataError: `file:line: reason`.
    """
    try:
        fields = dataset.parse_id(video)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    head = f"A{fields['setup']:03d}N{fields['subject']:03d}" if "setup" in fields else f"A{fields['video']:04d}"
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = [float(v) for v in line.split(",")[:3]]
            label, start, end = (int(v) for v in values)
            if [label, start, end] != values or max(map(abs, values)) >= _INT32:
                raise ValueError
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{source}:{number}: expected `class,start,end,confidence`, found {line.rstrip()[:60]!r}"
            ) from error
        if not 1 <= label <= len(dataset.classes):
            raise DataError(f"{source}:{number}: class {label}; expected 1 to {len(dataset.classes)}")
        if number >= _INT16:
            raise DataError(f"{source}:{number}: more rows than any recording has; expected about twenty")
        problem = None
        if start > end:
            problem = f"label row {number}: start {start} is after end {end}"
        elif start < 1:
            problem = f"label row {number}: start {start} is before the first frame, 1"
        sample_id = f"{head}V{fields['view']:03d}C{label:03d}L{number:03d}"
        rows.append(
            new_row(
                sample_id,
                label=label - 1,
                subject=fields.get("subject"),
                view=fields["view"],
                setup=fields.get("setup"),
                repeat=number,
                camera=f"V{fields['view']:03d}",
                video=video,
                skeleton=video,
                start_frame=start - 1,
                end_frame=end,
                problem=problem,
                splits=list(dataset.splits(fields, sample_id).items()),
            )
        )
    return rows


# ---------------------------------------------------------------------------------------------- joints


def read_pku(path: Path, start: int, end: int, config: SkeletonsConfig, row: Row | None = None) -> Assembled:
    """Read frames [start, end) of a PKU-MMD file: one line of 150 numbers per frame, two bodies of 25 joints.

    Joints that are not finite become zero; a second body that is alone becomes the first. An `end` after the last line ends there, for labels that run on behind the
    recording exist; a file that is shorter than its recording is refused, see `_cut_off`.

    *Reading:* `aimclr` turns each frame here, before the resize to 64 frames; the authors' public code resizes first.
    A clip of more than `max_frames` keeps its centre; its origin is set before.

    Raises:
        DataError: `file:line: reason`.
        OSError: the file cannot be opened.
    """
    rows, lines = [], 0
    with open(path, encoding="ascii", errors="replace", opener=regular) as handle:
        for number, text in enumerate(iter(partial(handle.readline, _LONGEST_LINE), "")):
            if number >= end:
                break
            lines = number + 1
            if number >= start:
                try:
                    numbers = np.array(text.split(), dtype=np.float32)
                except ValueError as error:
                    raise DataError(f"{path}:{number + 1}: {text[:40].strip()!r}…; expected 150 numbers") from error
                if numbers.size != 150:
                    raise DataError(f"{path}:{number + 1}: {numbers.size} numbers; expected 150")
                rows.append(numbers)
    if lines < end and (reason := _cut_off(path, row or {}, lines, start, end)):
        raise DataError(f"{path}: {reason}")
    joints = people_first(without_gaps(np.array(rows, np.float32).reshape(-1, 2, 25, 3)))
    shown = np.asarray(joints.any(axis=(1, 2, 3)), np.bool_)
    index = np.flatnonzero(shown).astype(np.int32) + start
    joints = joints[shown]
    if len(joints) and config.pku_norm == "first_frame_joint2":
        joints = to_origin(joints, joints_seen(joints, KINECT_V2), 1)
    elif len(joints) and config.pku_norm == "aimclr":
        seen = np.asarray(joints.any(axis=3), np.bool_)
        joints = np.where(seen[..., None], _face_front(joints - joints[:, :, 20:21]), np.float32(0))
    if len(joints) > config.max_frames:
        cut = (len(joints) - config.max_frames) // 2
        joints, index = joints[cut : cut + config.max_frames], index[cut : cut + config.max_frames]
    return Assembled(np.ascontiguousarray(joints, np.float32), index, len(rows))


_LABEL_ERROR = 90
"""Frames by which a label may run on behind its recording: 3 s."""


def _cut_off(path: Path, row: Row, lines: int, start: int, end: int) -> str | None:
    """Return why a file of `lines` frames that ends before a label is truncated, or None if the label is too long.

    It is truncated if this or another label of the recording begins behind its end, or its video goes on.
    """
    last = max(start, row.get("latest_start") or 0)
    video = recording_frames(path, row, lines)
    if (last >= lines or end - lines > _LABEL_ERROR) if video is None else video > lines + NEARLY:
        goes_on = f"its video has {video:,}" if video else f"its labels go on to frame {max(end, last + 1):,}"
        return f"truncated: it ends after {lines:,} frames, {goes_on}; download it again"
    return None


def _face_front(joints: Array) -> Array:
    """Rotate each body of each frame about y so that the shoulders (9 - 5, 1-based) lie along x.

    As in the public code the sign of the angles is one per clip and body, that of the sum over all frames, and a tenth
    of a millimetre is added to the shoulders' distance.
    """
    shoulders = joints[:, :, 8] - joints[:, :, 4]
    across, depth = shoulders[..., 0], shoulders[..., 2]
    angle = np.arccos(across / (np.hypot(across, depth) + np.float32(1e-4)))
    angle *= np.where(depth.sum(axis=0) >= 0, 1, -1)
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    return np.stack([cos * x + sin * z, y, -sin * x + cos * z], axis=-1).astype(np.float32)


def _locate(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    files = [f for f in scan.files if not (f.suffix == ".txt" and is_label(f.relative))]
    return locate_by_name(dataset, root, rows, replace(scan, files=files))


def _check_file(path: Path) -> None:
    """Check the last line only: recordings have thousands."""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - 8192))
        tail = handle.read()
    if not tail.endswith(b"\n") or len(tail.rstrip().rsplit(b"\n", 1)[-1].split()) != 150:
        raise DataError(f"{path}: its last line is not 150 numbers")


def _look(
    root: Path, rows: list[Row], layout: Layout, deep: bool, config: SkeletonsConfig
) -> tuple[list[str], list[str]]:
    """If `deep`, name the files that end before their labels."""
    truncated = []
    of_file: dict[str, list[Row]] = {}
    for row in rows if deep else []:
        if row["skeleton"] and row["skeleton_bytes"] and not row["problem"]:
            of_file.setdefault(row["skeleton"], []).append(row)
    for relative, mine in of_file.items():
        with suppress(OSError), (root / relative).open("rb") as file:
            lines = sum(1 for _ in iter(partial(file.readline, _LONGEST_LINE), b""))
            start, end = max(r["start_frame"] for r in mine), max(r["end_frame"] for r in mine)
            if lines < end and (reason := _cut_off(root / relative, mine[0], lines, start, end)):
                truncated.append(f"{relative}: {reason}")
    return truncated, []


READER = Reader(
    expected_rows=expected_rows,
    locate=_locate,
    read_joints=lambda path, row, layout, bodies, config: read_pku(
        path, row["start_frame"], row["end_frame"], config, row
    ),
    check_file=_check_file,
    look=_look,
    is_label=is_label,
)
