"""`c2vl-pipeline index`: what the dataset promises against what lies in the raw folder, one row a sample.

The promise comes from the dataset's own rules (NTU's sessions, PKU's label files, a table for own data), never
from the files found, so a damaged download is seen before work begins. Labels are written here and read again
only by evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.manifest import (
    commit_table,
    fingerprint,
    finished_shard,
)
from c2vl_manifests.recipe import PipelineConfig
from c2vl_manifests.schema import SAMPLES, SCHEMA_VERSION
from c2vl_pipeline.raw.check import DoubtfulError, Findings, check_labels, compare, is_label
from c2vl_pipeline.raw.expected import Row, generic_rows, named_rows, pku_rows, synthetic_ids
from c2vl_pipeline.raw.hints import looks_like
from c2vl_pipeline.raw.scan import Scan, scan
from c2vl_pipeline.workspace import Index, load


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
