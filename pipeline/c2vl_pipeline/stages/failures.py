"""What a stage could not make, and why: rows that failed in this very stage, counted over its committed shards.

No failure of a stage is a row that passes on what an earlier stage lost, or whose file the index never had. A stage fails
as a whole if (nearly) all rows that it tried failed, or all of one kind: one file format, camera, class or side of a split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import read_shard, read_shard_manifest
from c2vl_manifests.schema import Status
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import Workspace, shard_path

NEARLY_ALL = 0.9
"""Share of the tried rows from which on a stage has failed as a whole."""

Mask = npt.NDArray[np.bool_]
Reason = tuple[str, str, int]
"""Status, text and number of rows."""


@dataclass(frozen=True)
class _Outcome:
    """One status column of one shard."""

    samples: npt.NDArray[np.int64]
    """Number of each row's sample in the index."""
    status: npt.NDArray[Any]
    tried: Mask
    classes: list[str | None]
    errors: list[str | None]

    @property
    def good(self) -> Mask:
        return np.asarray(self.status == Status.OK)

    @property
    def failed(self) -> Mask:
        return np.asarray(self.tried & ~self.good & (self.status != Status.NO_PERSON))


def _outcomes(index: Workspace, stage: Stage) -> Iterator[_Outcome]:
    absent = f"missing_{stage.raw}" if stage.raw else None
    for number, (start, stop) in enumerate(index.shard_ranges):
        path = shard_path(index.work, stage.name, number)
        if (manifest := read_shard_manifest(path)) is None or manifest.rows % (stop - start):
            continue
        columns = stage.status_columns[1:] or stage.status_columns
        samples = np.repeat(np.arange(start, stop), manifest.rows // (stop - start))
        if columns == ("status",) and not manifest.statuses.keys() - {Status.OK}:
            fine = np.full(manifest.rows, str(Status.OK), object)
            yield _Outcome(samples, fine, np.ones(manifest.rows, bool), [], [])
            continue
        try:
            table = read_shard(path, [*columns, "error_class", "error"])
            names = manifest.extra.get("upstream", {})
            earlier = [
                _column(read_shard(shard_path(index.work, name, number), ["status"]), "status") for name in names
            ]
        except (DataError, OSError):
            continue  # damaged: `verify` says so
        if table.num_rows != manifest.rows or not all(map(len, earlier)):
            continue
        classes, errors = table.column("error_class").to_pylist(), table.column("error").to_pylist()
        for column in columns:
            status = _column(table, column)
            lost = np.zeros(len(status), bool)
            for above in earlier:
                if len(status) % len(above) == 0:
                    lost |= (status != Status.OK) & (np.repeat(above, len(status) // len(above)) == status)
            lost |= (status == absent) & (np.array(classes, object) == "missing")
            yield _Outcome(samples, status, ~lost, classes, errors)


def _column(table: Any, name: str) -> npt.NDArray[Any]:
    return np.array(table.column(name).to_pylist(), object)


def counted(rows: Iterable[tuple[str, str | None, str | None]]) -> list[Reason]:
    """Count (status, error class, error) of rows by their reason, most frequent first; paths and numbers may differ."""
    counts: Counter[tuple[str, str]] = Counter()
    texts: dict[tuple[str, str], str] = {}
    for status, kind, error in rows:
        text = " ".join((error or "").split()) or ("nobody found in the frame" if status == Status.NO_PERSON else "")
        if kind and kind[0].isupper() and kind not in {"DataError", "FileNotFoundError"}:  # of an engine: say which
            text = f"{kind}: {text}".removesuffix(": ")
        key = status, re.sub(r"\S*[/\\]\S*|\d+", "#", text)
        counts[key] += 1
        texts.setdefault(key, text)
    return [(key[0], texts[key], count) for key, count in counts.most_common()]


def reasons(index: Workspace, stage: Stage, samples: Iterable[int] | None = None) -> list[Reason]:
    """Return why rows failed in this stage (of some samples of the index, or all), most frequent first."""
    wanted = None if samples is None else np.fromiter(samples, np.int64)
    rows: list[tuple[str, str | None, str | None]] = []
    for one in _outcomes(index, stage):
        bad = one.tried & (one.status != Status.OK)
        if wanted is not None:
            bad &= np.isin(one.samples, wanted)
        rows += [(one.status[n], one.classes[n], one.errors[n]) for n in np.flatnonzero(bad)]
    return counted(rows)


def remedy_of(index: Workspace) -> str:
    """Return what to do about rows that failed; a table that was mended is read by the index alone."""
    command = f"c2vl-pipeline prompts --work {index.work}"
    remedy = f"mend the cause and run `{command} --retry-failed`"
    if index.dataset.skeleton_suffixes:  # not of one's own table
        return remedy
    source = f"--dataset {index.dataset.name} --data {index.root}"
    return f"{remedy} (if it was in the table: `{command} {source}` and the options of before)"


def may_have_failed(statuses: Mapping[str, int]) -> bool:
    """Return False where the rows of each status alone, without reading any shard, rule a total failure out."""
    return not statuses.get(Status.OK) or bool(statuses.keys() - {Status.OK, Status.NO_PERSON})


def too_many_failures(index: Workspace, stage: Stage, statuses: Mapping[str, int], share: float) -> str:
    """Return that more than a share of the rows has the status `failed`, the commonest reason and what helps."""
    _, text, count = next(one for one in reasons(index, stage) if one[0] == Status.FAILED)
    return (
        f"{stage.command} failed on {statuses[Status.FAILED]:,} of {sum(statuses.values()):,} rows, more than "
        f"{share:.0%}; the commonest reason ({count:,} rows): {text.rstrip('.')}; look at them with "
        f"`c2vl-pipeline inspect --work {index.work} --status failed`; {remedy_of(index)}, or allow more with --max-failures"
    )


def total_failure(index: Workspace, stage: Stage, kinds: bool = True) -> str | None:
    """Return what has failed as a whole, its commonest reason and what shows more; None where nothing has.

    Args:
        index: of the work folder.
        stage: with all or some shards committed.
        kinds: also look for kinds that failed as a whole: at least two files, none of whose rows is of use.
    """
    by_column: dict[int, list[_Outcome]] = {}
    width = len(stage.status_columns[1:] or stage.status_columns)
    for place, one in enumerate(_outcomes(index, stage)):
        by_column.setdefault(place % width, []).append(one)
    for parts in by_column.values():
        samples = np.concatenate([one.samples for one in parts])
        tried, failed, good = (
            np.bincount(samples, np.concatenate(masks), index.table.num_rows)
            for masks in zip(*((one.tried, one.failed, one.good) for one in parts), strict=True)
        )
        if not tried.sum():
            continue
        if not good.sum() or failed.sum() >= NEARLY_ALL * tried.sum():
            lost = int((tried - good).sum()) if not good.sum() else int(failed.sum())
            what, among = f"{lost:,} of {int(tried.sum()):,} rows", np.flatnonzero(tried)
        elif kinds and failed.any() and (found := _kinds(index, stage, tried, failed)):
            first, among = next(iter(found.items()))
            more = f" (and all of {', '.join([*found][1:4])})" if len(found) > 1 else ""
            what = f"all {int(tried[among].sum()):,} rows of {first}{more}"
        else:
            continue
        status, text, count = reasons(index, stage, among)[0]
        show = f"`c2vl-pipeline inspect --work {index.work} --status {stage.name}:{status}`"
        remedy = "choose another detector or a lower threshold"
        if status != Status.NO_PERSON:
            remedy = remedy_of(index)
        return (
            f"{stage.command} failed on {what}; the commonest reason ({count:,} rows {status}): {text.rstrip('.')}; "
            f"{show} shows more; {remedy}, or go on without them by --max-failures 1"
        )
    return None


def _kinds(
    index: Workspace, stage: Stage, tried: npt.NDArray[Any], failed: npt.NDArray[Any]
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the kinds of samples, by name, of which everything that was tried failed: at least two files."""
    rows = index.table.select(["video", "skeleton", "camera", "label", "splits"]).to_pylist()
    raw = stage.raw or "video"
    members: dict[str, list[int]] = {}
    for n in np.flatnonzero(tried).tolist():
        row = rows[n]
        if name := row[raw]:
            members.setdefault(f"the {PurePath(name).suffix or 'nameless'} files", []).append(n)
        members.setdefault(f"camera {row['camera']!r}", []).append(n)
        if row["label"] >= 0:
            label = row["label"]
            name = index.classes[label] if label < len(index.classes) else str(label)
            members.setdefault(f"class {name!r}", []).append(n)
        for benchmark, side in row["splits"]:
            members.setdefault(f"the {side} samples of {benchmark}", []).append(n)
    found = {}
    for name, numbers in members.items():
        files = {rows[n][raw] or n for n in numbers}
        at = np.array(numbers)
        if len(files) > 1 and (failed[at] == tried[at]).all():
            found[name] = at
    return found
