"""`c2vl-pipeline index`: compare what the dataset should hold with the raw folder; write one row per sample.

The expected samples come from the dataset's own rules (NTU's sessions, PKU-MMD's label files, a custom table), never
from the files found, so a damaged download is noticed before work begins. Labels are written here and read again
only by evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_manifests.manifest import commit_table, fingerprint, finished_shard
from c2vl_manifests.recipe import PipelineConfig
from c2vl_manifests.schema import SAMPLES, SCHEMA_VERSION
from c2vl_pipeline import engines
from c2vl_pipeline.raw.check import Findings, IncompleteDataError, check
from c2vl_pipeline.raw.doubles import doubles
from c2vl_pipeline.raw.hints import archive_hints, looks_like
from c2vl_pipeline.raw.scan import is_archive, scan_folder, unpack_command
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import Array, Expected, Match, Row, Scan, near_path
from c2vl_pipeline.workspace import Workspace, load


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
) -> tuple[Workspace, Findings]:
    """Write `samples.parquet` of a work folder and return the index and the result of the check.

    Args:
        dataset: what the raw folder should hold.
        root: the raw folder.
        work: the work folder.
        config: its `shard_samples` is the size of a shard.
        recipe: default recipe of the later stages.
        overrides: default `--set` assignments of the later stages.
        layout: joint layout of a custom dataset, by name or TOML file; None: the dataset's. With `config.pose` the joints,
            and so the layout, are those of the pose estimator, and no skeleton file is expected.
        allow_missing: continue if files are missing or damaged; the rows state what is missing.
        only_present: expect only samples with a file, for a part of a dataset.
        limit: keep the first `limit` samples.
        deep: read archives and skeleton files whole, and look for samples with the same content, which takes minutes.

    Raises:
        DataError: the folder does not exist, or a label file or table is malformed (file and line).
        IncompleteDataError: files are missing or damaged, without `allow_missing` or `only_present`.
    """
    if root.is_file():
        how = f"unpack it with {unpack_command(root)} and " if is_archive(root.name) else ""
        raise DataError(f"{root} is a file; {how}give the folder of {dataset.title} with --data")
    if not root.is_dir():
        beside = sorted(path.name for path in root.parent.iterdir()) if root.parent.is_dir() else []
        near = near_path(root.name, beside)
        hint = f" (is {root.parent / near} meant?)" if near else ""
        raise DataError(f"raw folder {root} does not exist{hint}; give the folder of {dataset.title} with --data")
    root = root.resolve()
    scan = scan_folder(root, (*dataset.video_suffixes, *dataset.skeleton_suffixes))
    expected = _expected(dataset, root, scan)
    reader, joints = reader_of(dataset), _layout(dataset, root, config, layout)
    match = reader.locate(dataset, root, expected.rows, scan)
    if config.pose is not None:
        _without_skeletons(match, expected.rows)
    findings = check(dataset, root, expected, match, scan, deep)
    rows = _chosen(expected.rows, findings, only_present, limit)
    if reader.look is not None and config.pose is None:
        truncated, findings.oddities = reader.look(root, rows, joints, deep, config.skeletons)
        findings.truncated += truncated
    if deep:

        def read(row: Row) -> Array:
            return reader.read_joints(root / row["skeleton"], row, joints, dataset.bodies, config.skeletons).joints

        findings.doubles = doubles(root, rows, read if config.pose is None else None)
    _check_usable(dataset, root, rows, findings, refuse=not (allow_missing or only_present))
    extra = {
        "dataset": dataset.name,
        "root": str(root),
        "recipe": recipe,
        "overrides": list(overrides),
        "layout": joints.as_dict(),
        "classes": expected.classes,
        "bodies": dataset.bodies,
        "plan": _cut(rows, config.shard_samples),
    }
    if config.pose is not None:
        extra |= {"joints_from_videos": True, "joints_in_image": True}
    elif reader.in_image is not None and reader.in_image(root, rows, joints):
        extra["joints_in_image"] = True
    _commit(work, rows, extra)
    return load(work), findings


def _layout(dataset: Dataset, root: Path, config: PipelineConfig, given: str | None) -> Layout:
    """Return the layout of the joints: the given one, the dataset's, or that of the pose estimator that makes them."""
    if config.pose is None:
        return load_layout(given or dataset.layout, root)
    made = engines.layout_of(config.pose.engine)
    if given is not None and (load_layout(given, root).names, load_layout(given, root).dims) != (made.names, made.dims):
        raise ConfigError(
            f"--layout {given}: the joints come from the videos, and {config.pose.engine.backend!r} gives {made.name}; leave "
            "the option out, or take a recipe without pipeline.pose to read skeleton files"
        )
    return made


def _without_skeletons(match: Match, rows: list[Row]) -> None:
    """Forget the skeleton files: the joints come from the videos."""
    for row in rows:
        row.update(skeleton=None, skeleton_bytes=None)
    match.missing_skeletons.clear()
    match.missing_stems.pop("skeleton", None)
    match.absent.pop("skeleton", None)


def _expected(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Return the expected samples; an error about them names the dataset that the files seem to belong to."""
    try:
        return reader_of(dataset).expected_rows(dataset, root, scan)
    except DataError as error:
        named = dataset.skeleton_suffixes  # a custom table names its files as it likes
        names = [*scan.others, *(f.relative for f in scan.files)]
        if named and (other := looks_like(names, dataset)):
            raise DataError(f"{error}; {other}") from error
        if str(error).startswith(f"{root} ") and (archives := archive_hints(root, [*scan.zips, *scan.archives])):
            raise DataError("; ".join([str(error), *archives])) from error
        raise


def _chosen(rows: list[Row], findings: Findings, only_present: bool, limit: int | None) -> list[Row]:
    """Return the rows to index, and drop findings about others."""
    if only_present:
        rows = [r for r in rows if r["video"] or r["skeleton"]]
        findings.missing_videos, findings.missing_skeletons, findings.lacks = [], [], []
        findings.labels, findings.too_few = [], ""
    if limit is not None:
        rows = rows[:limit]
        findings.keep({r["sample_id"] for r in rows}, {r[what] for r in rows for what in ("video", "skeleton")})
    findings.expected = len(rows)
    findings.with_video = sum(r["video"] is not None for r in rows)
    findings.with_skeleton = sum(r["skeleton"] is not None for r in rows)
    findings.known_missing = sum(r["known_missing"] for r in rows)
    return rows


def _check_usable(dataset: Dataset, root: Path, rows: list[Row], findings: Findings, refuse: bool) -> None:
    """Raise DataError if no sample is left, IncompleteDataError for errors if `refuse` is set."""
    if not rows:
        endings = ", ".join((*dataset.video_suffixes, *dataset.skeleton_suffixes))
        hints = "".join(f"; {hint}" for hint in [*findings.notes(), *findings.packed, *findings.hints])
        expected = f"files ending in {endings} somewhere below it" if endings else "rows in its table, with files"
        raise DataError(f"{root} holds no sample of {dataset.title}; expected {expected}{hints}")
    if refuse and (faults := findings.errors()):
        hints = "".join(f" {hint[0].upper()}{hint[1:]}." for hint in findings.hints)
        first = "Correct the table" if findings.absent else "Complete the download"
        raise IncompleteDataError(
            f"{root}: {'; '.join(faults)}; of {len(rows):,} expected samples of {dataset.title}.{hints} "
            f"{first}, or continue with --allow-missing (rows state what is missing) or --only-present (expect only what is there)",
            findings,
        )


def _cut(rows: list[Row], size: int) -> list[list[int]]:
    """Cut rows into shards of about `size` samples without splitting the samples of one video."""
    cuts = [0]
    for at in range(1, len(rows)):
        video = rows[at]["video"]
        if at - cuts[-1] >= size and (video is None or video != rows[at - 1]["video"]):
            cuts.append(at)
    return [list(bounds) for bounds in pairwise([*cuts, len(rows)])]


def _commit(work: Path, rows: list[Row], extra: dict[str, Any]) -> None:
    """Write `samples.parquet`, unless it holds the same already."""
    path = work / "samples.parquet"
    key = fingerprint({"schema": SCHEMA_VERSION, "rows": rows, "extra": extra})
    if finished_shard(path, key) is None:
        table = pa.Table.from_pylist(rows, schema=SAMPLES)
        commit_table(path, table, key=key, row_group=65536, extra=extra)
