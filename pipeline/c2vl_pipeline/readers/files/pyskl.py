"""pyskl's and MMAction2's annotations: one `.pkl` with the joints, labels and splits of a whole dataset.

Format: `{"split": {name: [frame_dir]}, "annotations": [annotation]}`, or a list of annotations. Each is a dictionary with
`frame_dir` (the sample's name), `label`, `keypoint` (M, T, V, C), in 2D also `keypoint_score` (M, T, V) and `img_shape`
(height, width). 2D joints are pixels, y down; 3D ones are taken as metres, y up.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.files import regular
from c2vl_manifests.reading import TooLargeError, is_storable
from c2vl_pipeline.readers.base import USUAL, Expected, Scan, new_row
from c2vl_pipeline.readers.files.base import DamagedError, Format, Recording, Source, in_heights, visible
from c2vl_pipeline.readers.files.pickles import PickledArray, load

TABLE = "samples.pkl"
"""Name of a file of annotations that is the table of samples, too."""
_SPLIT = re.compile(r"(?:(?P<name>.*?)_?)?(?P<part>train|val|valid|validation|test)(?P<number>\d*)", re.IGNORECASE)
"""Name of a list of samples: xsub_train, train1, val."""
_MOST_LABEL, _MOST_SPLITS, _MOST_NAMES = 1 << 15, 1000, 1 << 24


@dataclass(frozen=True)
class Annotations:
    """The content of a file: annotations by `frame_dir`, and lists of samples by the name of a split."""

    samples: Mapping[str, Mapping[str, Any]]
    splits: Mapping[str, list[str]]


def read_annotations(path: Path) -> Annotations:
    """Read a file of annotations; arrays stay in the file until they are read.

    Raises:
        DataError: it is damaged, would call something, or is of another form.
        OSError: it cannot be opened.
    """
    state = path.stat()
    return _annotations(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)
def _annotations(path: Path, _changed: int, size: int) -> Annotations:
    if size == 0:
        raise DamagedError(f"{path}: is empty")
    with open(path, "rb", opener=regular) as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        value = load(content)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except ValueError as error:
        raise DamagedError(
            f"{path}: not a pickle of annotations that can be read safely ({one_line(error)}); save it again with "
            "dictionaries, lists, texts, numbers and numpy arrays alone"
        ) from error
    table = value if isinstance(value, dict) else {"annotations": value}
    entries, splits = table.get("annotations"), table.get("split", {})
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: holds no list of annotations; expected those of pyskl or MMAction2")
    samples = {}
    for number, entry in enumerate(entries):
        name = entry.get("frame_dir", entry.get("filename")) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= 1000 or not _is_name(name):
            raise DataError(f"{path}: annotation {number:,} has no frame_dir; expected the name of its sample")
        if name in samples:
            raise DataError(f"{path}: frame_dir {name[:60]!r} stands in two annotations; each needs a name of its own")
        samples[name] = entry
    lists = splits if isinstance(splits, dict) else {}
    if (
        len(lists) > _MOST_SPLITS
        or sum(len(names) for names in lists.values() if isinstance(names, list)) > _MOST_NAMES
    ):
        raise DataError(
            f"{path}: {len(lists):,} splits; expected up to {_MOST_SPLITS:,}, of {_MOST_NAMES:,} names together"
        )
    for split, names in lists.items():
        if not isinstance(split, str) or len(split) > 100 or not _is_name(split):
            raise DataError(f"{path}: a split has no name that can be written; expected a text like xsub_train")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path}: split {split!r} is no list of frame_dirs")
    return Annotations(samples, lists)


def _is_name(text: str) -> bool:
    return "\0" not in text and is_storable(text)


def read(source: Source) -> Recording:
    """Read the joints of the sample that the row names, (M, T, V, C) in the file."""
    path, layout = source.path, source.layout
    held, name = read_annotations(path), str(source.row.get("sample_id", ""))
    if (entry := held.samples.get(name)) is None:
        first = next(iter(held.samples))
        raise DataError(f"{path}: no annotation has the frame_dir {name[:60]!r}; its first is {first[:60]!r}")
    where = f"{path}: {name[:60]}"
    joints = _array(where, "keypoint", entry)
    if joints is None or joints.ndim not in {3, 4} or joints.shape[-2:] != (layout.joints, layout.dims):
        shape = "no keypoint" if joints is None else f"keypoint {joints.shape}"
        raise DataError(f"{where}: {shape}; layout {layout.name!r} needs (M, T, {layout.joints}, {layout.dims})")
    joints = joints if joints.ndim == 4 else joints[None]
    if not joints.size:
        return Recording(np.zeros((0, 1, layout.joints, layout.dims), np.float32))
    if layout.dims == 3:
        with np.errstate(over="ignore"):
            return Recording(np.ascontiguousarray(joints.swapaxes(0, 1), np.float32))
    scores = _array(where, "keypoint_score", entry)
    if scores is not None:
        scores = scores if scores.ndim == 3 else scores[None]
        if scores.shape != joints.shape[:3]:
            raise DataError(
                f"{where}: keypoint_score {scores.shape} of keypoint {joints.shape}; expected one score each"
            )
    seen = visible(joints, scores)
    return Recording(np.ascontiguousarray(in_heights(joints, seen, _height(source, entry)).swapaxes(0, 1)))


def _array(where: str, key: str, entry: Mapping[str, Any]) -> Any:
    """Return an array of an annotation, None if it has none."""
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, PickledArray | int | float):
        raise DataError(f"{where}: its {key} is a {type(value).__name__}; expected an array of numbers")
    try:
        array = value.read() if isinstance(value, PickledArray) else np.asarray(value)
    except ValueError as error:
        raise DamagedError(f"{where}: its {key} is damaged ({one_line(error)})") from error
    if array.dtype.kind not in "iuf":
        raise DataError(f"{where}: its {key} holds no numbers ({array.dtype}); expected an array of numbers")
    return array


def _height(source: Source, entry: Mapping[str, Any]) -> float:
    """Return the height of the image that pixels are of: the annotation's, else that of the video."""
    size = entry.get("img_shape") or entry.get("original_shape")
    if isinstance(size, tuple | list) and size and isinstance(size[0], int) and 0 < size[0] < 1 << 20:
        return size[0]
    return source.image_size()[1]


# ----------------------------------------------------------------------------------------------- rows


def expected_rows(path: Path, scan: Scan) -> Expected:
    """Expect one sample per annotation of a file that is the table of samples; videos are looked up by `frame_dir`."""
    held = read_annotations(path)
    videos: dict[str, str] = {}
    for relative in scan.others:
        stem, dot, suffix = relative.rpartition("/")[2].rpartition(".")
        if f"{dot}{suffix}".lower() in USUAL["video"]:
            videos.setdefault(stem, relative)
    labels = {name: entry.get("label", -1) for name, entry in held.samples.items()}
    for name, label in labels.items():
        if type(label) is not int or not -1 <= label < _MOST_LABEL:
            shown = label if type(label) is int else f"a {type(label).__name__}"
            raise DataError(f"{path}: label {shown} of {name[:60]!r}; expected a whole number below {_MOST_LABEL}")
    splits: dict[str, dict[str, str]] = {}
    notes = [f"{path}: samples, labels and splits are those of its {len(labels):,} annotations"]
    for split, names in held.splits.items():
        benchmark, part = _benchmark(split, held.splits)
        if part is None:
            notes.append(f"split {split[:40]!r} is neither training nor test and is passed over")
            continue
        for name in names:
            if splits.setdefault(name, {}).setdefault(benchmark, part) != part:
                raise DataError(f"{path}: {name[:60]!r} is in training and in test of {benchmark!r}; leave it in one")
    if strange := splits.keys() - labels.keys():
        notes.append(f"names in splits without an annotation: {len(strange):,} ({min(strange)[:60]})")
    rows = [
        new_row(
            name,
            label=label,
            camera=videos.get(name, ""),
            video=videos.get(name),
            skeleton=path.name,
            splits=list(splits.get(name, {}).items()),
        )
        for name, label in labels.items()
    ]
    rows.sort(key=lambda row: (row["video"] or "", row["sample_id"]))
    return Expected(tuple(map(str, range(max(labels.values()) + 1))), rows, notes=notes)


def _benchmark(split: str, others: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return benchmark and side of a list: xsub_train is xsub's training split, val1 the test split of split1.

    *Reading:* published files call their test split `val`; where a benchmark has both, `val` is in neither.
    """
    if (match := _SPLIT.fullmatch(split)) is None:
        return split, None
    part, benchmark = match["part"].lower(), f"{match['name'] or 'split'}{match['number']}"
    if part == "train":
        return benchmark, "train"
    tests = {split[: match.start("part")] + word + match["number"] for word in ("test", "TEST", "Test")}
    return benchmark, "test" if part == "test" or not tests & others.keys() else None


FORMAT = Format("pyskl, MMAction2", read, (".pkl", ".pickle"), clip=False)
