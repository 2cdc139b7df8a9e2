"""The work folder: the index of its samples, and the paths of the stages' shards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.datasets import SPLITS, Dataset, load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError, naming, one_line, passing
from c2vl_manifests.files import OUTSIDE
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import ShardManifest, digest, read_shard_manifest
from c2vl_manifests.schema import SAMPLES
from c2vl_manifests.tables import read_table
from c2vl_pipeline.readers.base import Array, Projection

_MOST_BODIES = 100
"""Of a sample; datasets have one or two."""


@dataclass(frozen=True)
class Workspace:
    """Samples of one work folder, and what all stages need to know about them."""

    work: Path
    table: pa.Table
    manifest: ShardManifest
    dataset: Dataset
    root: Path
    layout: Layout
    classes: tuple[str, ...]
    bodies: int
    shard_ranges: tuple[tuple[int, int], ...]
    """Rows [start, stop) of each shard; samples of one video are never split."""
    _keys: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def recipe(self) -> str:
        """Recipe given to `index`, the default of the later stages."""
        return str(self.manifest.extra["recipe"])

    @property
    def joints_from_videos(self) -> bool:
        """True if a pose estimator makes the joints; False if they are read from skeleton files."""
        return bool(self.manifest.extra.get("joints_from_videos"))

    @property
    def overrides(self) -> list[str]:
        """The `--set` assignments given to `index`."""
        return [str(assignment) for assignment in self.manifest.extra["overrides"]]

    def shard_keys(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Return a fingerprint of these columns for each shard."""
        if columns not in self._keys:
            rows = self.table.select(list(columns))
            self._keys[columns] = tuple(digest(rows.slice(start, stop - start)) for start, stop in self.shard_ranges)
        return self._keys[columns]

    @cached_property
    def cameras(self) -> dict[str, list[dict[str, Any]]]:
        """Samples with a video by camera: what each camera's empty scene is made from."""
        cameras: dict[str, list[dict[str, Any]]] = {}
        columns = ["sample_id", "video", "video_bytes", "start_frame", "end_frame", "camera", "problem"]
        for sample in self.table.select(columns).to_pylist():
            if sample["video"] is not None and not sample["problem"]:
                cameras.setdefault(sample["camera"], []).append(sample)
        return cameras

    @cached_property
    def ranges(self) -> dict[str, dict[str, int]]:
        """Skeleton files from which rows cut frames: how many different `ranges`, and the `latest_start` of them."""
        spans: dict[str, set[tuple[int, int]]] = {}
        cut = pc.or_(pc.is_valid(self.table["start_frame"]), pc.is_valid(self.table["end_frame"]))
        for row in self.table.select(["skeleton", "start_frame", "end_frame"]).filter(cut).to_pylist():
            if row["skeleton"] is not None:
                spans.setdefault(row["skeleton"], set()).add((row["start_frame"] or 0, row["end_frame"] or -1))
        return {file: {"ranges": len(mine), "latest_start": max(mine)[0]} for file, mine in spans.items()}

    def shard(self, number: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return the samples of one shard as dictionaries; `columns` restricts what of them."""
        start, stop = self.shard_ranges[number]
        table = self.table if columns is None else self.table.select(list(columns))
        rows: list[dict[str, Any]] = table.slice(start, stop - start).to_pylist()
        return rows


def load(work: Path) -> Workspace:
    """Read the index of a work folder, once per process while its files stay the same.

    Raises:
        StageError: there is no index, or it is damaged.
        ConfigError: its manifest is incomplete, or its dataset does not exist any more.
    """
    path, states = work / "samples.parquet", []
    for file in (path, path.with_suffix(".json")):
        with suppress(OSError):
            state = file.stat()
            states.append((state.st_ino, state.st_size, state.st_mtime_ns))
    return _load(work, tuple(states))


@lru_cache(maxsize=2)
def _load(work: Path, states: tuple[tuple[int, ...], ...]) -> Workspace:
    path = work / "samples.parquet"
    manifest = read_shard_manifest(path)
    if manifest is None or not path.is_file():
        raise StageError(
            f"{work} holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work {work}` first"
        )
    extra = manifest.extra
    try:
        with naming(path):
            table = read_table(path)
    except (OSError, pa.ArrowException) as error:
        if passing(error):
            raise
        raise StageError(f"{path} is damaged ({one_line(error)}); run `c2vl-pipeline index` again") from error
    _check_index(path, table)
    try:
        str(extra["recipe"]), list(extra["overrides"])
        layout = Layout.from_dict(extra["layout"])
        shard_ranges = tuple((int(a), int(b)) for a, b in extra["plan"])
        bounds = [0, *(b for _, b in shard_ranges)]
        if [a for a, _ in shard_ranges] != bounds[:-1] or bounds != sorted({*bounds}) or bounds[-1] != table.num_rows:
            raise ValueError(f"a plan of {table.num_rows:,} rows")
        if not 1 <= (bodies := int(extra["bodies"])) <= _MOST_BODIES:
            raise ValueError(f"1 to {_MOST_BODIES} bodies")
        return Workspace(
            work=work,
            table=table,
            manifest=manifest,
            dataset=load_dataset(extra["dataset"]),
            root=Path(extra["root"]),
            layout=layout,
            classes=tuple(map(str, extra["classes"])),
            bodies=bodies,
            shard_ranges=shard_ranges,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{path}: its manifest lacks {error}; run `c2vl-pipeline index` again") from error


def _check_index(path: Path, table: pa.Table) -> None:
    """Raise StageError if a table has not the columns of an index, or names files outside the raw folder."""
    if not table.schema.remove_metadata().equals(SAMPLES):
        raise StageError(f"{path} is not an index; run `c2vl-pipeline index` again")
    for column in ("video", "skeleton"):
        letters = b"".join(text.to_pybytes() for chunk in table[column].chunks if (text := chunk.buffers()[2]))
        if not (b".." in letters or b"\0" in letters or pc.any(pc.starts_with(table[column], "/")).as_py()):
            continue  # a tenth of the time that the expression takes
        outside = table.filter(pc.match_substring_regex(table[column], OUTSIDE))
        for row in outside.slice(0, 1).select(["sample_id", column]).to_pylist():
            raise StageError(
                f"{path}: the {column} of {row['sample_id']!r} is {row[column][:80]!r}, which is not below the raw folder; "
                "run `c2vl-pipeline index` again"
            )


def split_counts(index: Workspace) -> dict[str, dict[str, int]]:
    """Count usable samples per split: benchmark -> {train, test}."""
    counts: dict[str, dict[str, int]] = {}
    usable = index.table.filter(pc.invert(index.table.column("known_missing")))
    for pairs in usable.column("splits").to_pylist():
        for benchmark, split in pairs:
            counts.setdefault(benchmark, dict.fromkeys(SPLITS, 0))[split] += 1
    return counts


def shard_path(work: Path, stage: str, number: int) -> Path:
    """Return the path of a shard; its manifest is stored next to it, as `.json`."""
    return work / stage / f"shard-{number:05d}.parquet"


def stored_joints(row: dict[str, Any], layout: Layout) -> Array:
    """Return the joints of a row of the skeletons stage, (T, M, V, C).

    Raises:
        DataError: the row holds another number of bytes.
    """
    return _stored(row, "joints", (layout.joints, layout.dims))


def stored_pixels(row: dict[str, Any], layout: Layout) -> Projection:
    """Return where the joints of a row of skeletons from videos are in its frames: (M, V, 2) pixels, NaN where missing."""
    pixels = _stored(row, "pixels", (layout.joints, 3))
    places = np.where(pixels[..., 2:] > 0, pixels[..., :2], np.float32(np.nan))
    at = {number: n for n, number in enumerate(row["frame_index"])}
    return lambda frame, height: places[at[frame]] if frame in at else None


def _stored(row: dict[str, Any], column: str, joints: tuple[int, int]) -> Array:
    shape = (row["frames"], -1 if row["frames"] else 1, *joints)
    try:
        return np.frombuffer(row[column], np.float32).reshape(shape)
    except ValueError as error:
        raise DataError(
            f"the {column} of {row['sample_id']} have {len(row[column]):,} bytes, which are no {row['frames']:,} frames of "
            f"{joints[0]} joints; delete that shard of skeletons/ and run `c2vl-pipeline prompts` again"
        ) from error
