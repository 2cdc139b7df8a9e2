"""`c2vl-pipeline index`: what the dataset promises against what lies in the raw folder, one row a sample.

The promise comes from the dataset's own rules (NTU's sessions, PKU's label files, a table for own data), never
from the files found, so a damaged download is seen before work begins. Labels are written here and read again
only by evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests.config import PipelineConfig
from c2vl_manifests.datasets import SPLITS, Dataset, load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.manifest import (
    ShardManifest,
    commit_table,
    digest,
    fingerprint,
    finished_shard,
    read_shard_manifest,
)
from c2vl_manifests.schema import SAMPLES, SCHEMA_VERSION
from c2vl_pipeline.findings import (
    DoubtfulError,
    Findings,
    check_labels,
    compare,
    is_label,
)
from c2vl_pipeline.guesses import looks_like
from c2vl_pipeline.promise import Row, generic_rows, named_rows, pku_rows, synthetic_ids
from c2vl_pipeline.rawfiles import Scan, scan

__all__ = ["READS", "DoubtfulError", "Findings", "Index", "build", "load", "split_counts"]

_SKELETON = ("skeleton", "skeleton_bytes", "start_frame", "end_frame", "known_missing", "problem")
READS: dict[str, tuple[str, ...]] = {
    "skeletons": ("sample_id", *_SKELETON),
    "crops": ("sample_id", "camera", "video", "video_bytes", *_SKELETON),
    "captions": ("sample_id",),
    "embeddings": ("sample_id",),
}
"""What of a sample each stage's rows depend on; never labels or splits. Later stages read the rows of earlier ones."""


@dataclass(frozen=True)
class Index:
    """The samples of one work folder and what all stages need to know of them."""

    work: Path
    table: pa.Table
    manifest: ShardManifest
    dataset: Dataset
    root: Path
    layout: Layout
    classes: tuple[str, ...]
    bodies: int
    plan: tuple[tuple[int, int], ...]
    """Rows [start, stop) of each shard; samples of one video are never split."""
    _keys: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def recipe(self) -> str:
        """Recipe that `index` was called with: the default of the later stages."""
        return str(self.manifest.extra["recipe"])

    @property
    def overrides(self) -> list[str]:
        """The `--set` assignments of that call."""
        return [str(assignment) for assignment in self.manifest.extra.get("overrides", ())]

    def shard_keys(self, stage: str) -> tuple[str, ...]:
        """For each shard, a fingerprint of what a stage reads of its samples (see `READS`)."""
        if stage not in self._keys:
            rows = self.table.select(list(READS[stage]))
            self._keys[stage] = tuple(digest(rows.slice(start, stop - start)) for start, stop in self.plan)
        return self._keys[stage]

    def reads(self, stage: str, number: int) -> list[dict[str, Any]]:
        """Return of each sample of a shard what a stage reads of it."""
        start, stop = self.plan[number]
        table = self.table.select(list(READS[stage])).slice(start, stop - start)
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    @cached_property
    def cameras(self) -> dict[str, list[dict[str, Any]]]:
        """Samples with a video by camera: what each camera's empty scene is made from."""
        found: dict[str, list[dict[str, Any]]] = {}
        columns = ["sample_id", "video", "video_bytes", "start_frame", "end_frame", "camera", "problem"]
        for sample in self.table.select(columns).to_pylist():
            if sample["video"] is not None and not sample["problem"]:
                found.setdefault(sample["camera"], []).append(sample)
        return found

    def shard(self, number: int) -> list[dict[str, Any]]:
        """Return the samples of one shard as dictionaries."""
        start, stop = self.plan[number]
        rows: list[dict[str, Any]] = self.table.slice(start, stop - start).to_pylist()
        return rows


def _plan(rows: list[dict[str, Any]], size: int) -> list[list[int]]:
    """Cut rows into shards of about `size` samples without splitting the samples of one video."""
    plan: list[list[int]] = []
    start = 0
    for at in range(1, len(rows) + 1):
        full = at - start >= size
        same_video = (
            at < len(rows) and rows[at]["video"] is not None and rows[at]["video"] == rows[at - 1]["video"]
        )
        if at == len(rows) or (full and not same_video):
            plan.append([start, at])
            start = at
    return plan


def _promised(dataset: Dataset, root: Path, found: Scan) -> tuple[tuple[str, ...], list[Row], list[str]]:
    """Return the classes, a row a promised sample, and the label files that say so."""
    if dataset.reader == "synthetic":
        classes, ids = synthetic_ids(root)
        return classes, list(named_rows(dataset, ids)), []
    if dataset.reader == "generic":
        classes, rows = generic_rows(root)
        return classes, rows, []
    if dataset.reader != "pku":
        return dataset.classes, list(named_rows(dataset, dataset.promised_ids())), []
    files = [f.relative for f in found.files if f.suffix == ".txt" and is_label(f.relative)]
    try:
        rows = list(pku_rows(dataset, root, files))
    except DataError as error:
        if other := looks_like([*found.others, *(f.relative for f in found.files)], dataset):
            raise DataError(f"{error}; {other}") from error
        raise
    return dataset.classes, rows, files


def build(
    dataset: Dataset,
    root: Path,
    work: Path,
    config: PipelineConfig,
    *,
    recipe: str,
    overrides: Sequence[str] = (),
    layout: str | None = None,
    allow_missing: bool = False,
    only_present: bool = False,
    limit: int | None = None,
    deep: bool = False,
) -> tuple[Index, Findings]:
    """Write `samples.parquet` of a work folder.

    Args:
        dataset: what was promised.
        root: the raw folder.
        work: where the stages write.
        config: for the size of a shard.
        recipe: name that later stages default to.
        overrides: `--set` assignments that later stages default to.
        layout: joint layout of own data, by name or TOML file; the dataset's where not given.
        allow_missing: go on in spite of doubts; rows will say what is missing.
        only_present: promise only what is there, for a part of a dataset.
        limit: keep the first so many samples.
        deep: read archives and skeleton files whole, which takes minutes.

    Raises:
        DataError: no such folder, or a malformed label file or table (file and line).
        DoubtfulError: something is missing or looks damaged and neither permission was given.
    """
    if not root.is_dir():
        raise DataError(f"raw folder {root} does not exist; give the folder of {dataset.title} with --data")
    root = root.resolve()
    found = scan(root, (*dataset.video_suffixes, *dataset.skeleton_suffixes))
    classes, rows, labels = _promised(dataset, root, found)
    findings = compare(dataset, root, rows, found, deep)
    if dataset.reader == "pku" and not only_present:
        check_labels(dataset, labels, len(rows), findings)
    if only_present:
        rows = [r for r in rows if r["video"] or r["skeleton"]]
        findings.missing_videos, findings.missing_skeletons, findings.lacks = [], [], []
    if limit is not None:
        rows = rows[:limit]
        findings.keep(
            {r["sample_id"] for r in rows}, {r[what] for r in rows for what in ("video", "skeleton")}
        )
    if not rows:
        endings = ", ".join((*dataset.video_suffixes, *dataset.skeleton_suffixes))
        hints = "".join(f"; {hint}" for hint in findings.hints)
        raise DataError(
            f"{root} holds no sample of {dataset.title}; expected files ending in {endings} somewhere below it{hints}"
        )
    findings.promised = len(rows)
    findings.with_video = sum(r["video"] is not None for r in rows)
    findings.with_skeleton = sum(r["skeleton"] is not None for r in rows)
    findings.known_missing = sum(r["known_missing"] for r in rows)
    if (doubts := findings.doubts()) and not (allow_missing or only_present):
        hints = "".join(f" {hint[0].upper()}{hint[1:]}." for hint in findings.hints)
        raise DoubtfulError(
            f"{root}: {'; '.join(doubts)}; of {len(rows):,} promised samples of {dataset.title}.{hints} Complete the download, "
            "or go on with --allow-missing (rows will say what is missing) or --only-present (promise only what is there)",
            findings,
        )
    table = pa.Table.from_pylist(rows, schema=SAMPLES)
    found_layout = load_layout(layout or dataset.layout, root)
    extra = {
        "dataset": dataset.name,
        "root": str(root),
        "recipe": recipe,
        "overrides": list(overrides),
        "layout": found_layout.as_dict(),
        "classes": classes,
        "bodies": dataset.bodies,
        "plan": _plan(rows, config.shard_samples),
    }
    key = fingerprint({"schema": SCHEMA_VERSION, "rows": rows, "extra": extra})
    work.mkdir(parents=True, exist_ok=True)
    if finished_shard(work / "samples.parquet", key) is None:
        commit_table(work / "samples.parquet", table, key=key, row_group=65536, extra=extra)
    return load(work), findings


def load(work: Path) -> Index:
    """Read the index of a work folder.

    Raises:
        StageError: there is none yet.
        ConfigError: it names a dataset or layout that does not exist any more.
    """
    path = work / "samples.parquet"
    manifest = read_shard_manifest(path)
    if manifest is None or not path.is_file():
        raise StageError(
            f"{work} holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work {work}` first"
        )
    extra = manifest.extra
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0]
        raise StageError(f"{path} is damaged ({first}); run `c2vl-pipeline index` again") from error
    try:
        if table.column_names != SAMPLES.names:
            raise StageError(f"{path} is not an index; run `c2vl-pipeline index` again")
        str(extra["recipe"])
        layout = Layout.from_dict(extra["layout"])
        plan = tuple((int(a), int(b)) for a, b in extra["plan"])
        return Index(
            work=work,
            table=table,
            manifest=manifest,
            dataset=load_dataset(extra["dataset"]),
            root=Path(extra["root"]),
            layout=layout,
            classes=tuple(extra["classes"]),
            bodies=int(extra["bodies"]),
            plan=plan,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: its manifest lacks {error}; run `c2vl-pipeline index` again") from error


def split_counts(index: Index) -> dict[str, dict[str, int]]:
    """Count usable samples a split: benchmark -> {train, test}."""
    counts: dict[str, dict[str, int]] = {}
    usable = index.table.filter(pc.invert(index.table.column("known_missing")))
    for pairs in usable.column("splits").to_pylist():
        for benchmark, split in pairs:
            counts.setdefault(benchmark, dict.fromkeys(SPLITS, 0))[split] += 1
    return counts
