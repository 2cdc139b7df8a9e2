"""Read the rows of a few samples of a large work folder: only their shards, row groups and columns.

A stage's shards hold the samples in the order of the index, so a sample's position follows from its number; the id
found there is checked.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from c2vl_manifests.manifest import ShardManifest, read_shard_manifest
from c2vl_manifests.schema import COLUMNS, misfit
from c2vl_manifests.tables import open_table, read_table
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.base import Projection
from c2vl_pipeline.stages import stages_of
from c2vl_pipeline.workspace import Workspace, shard_path, stored_pixels

Row = dict[str, Any]


class RowReader:
    """Stored rows of samples by their number in the index; `notes` lists what could not be read."""

    def __init__(self, index: Workspace) -> None:
        self.index = index
        self.notes: list[str] = []
        self._starts = [start for start, _ in index.shard_ranges]

    def note(self, text: str) -> None:
        """Add a sentence to `notes`, once."""
        if text not in self.notes:
            self.notes.append(text)

    def shard_of(self, number: int) -> int:
        """Return the shard that holds a sample."""
        return bisect_right(self._starts, number) - 1

    def path(self, stage: str, shard: int) -> Path:
        """Return the path of a shard."""
        return shard_path(self.index.work, stage, shard)

    def _command(self, stage: str) -> str:
        return stages_of(self.index)[stage].command

    def shards(self, stage: str) -> Iterator[tuple[int, ShardManifest]]:
        """Yield (number, manifest) of every committed shard of a stage; reads manifests only."""
        any_made = False
        for shard in range(len(self.index.shard_ranges)):
            manifest = read_shard_manifest(self.path(stage, shard))
            if manifest is not None:
                any_made = True
                yield shard, manifest
        if not any_made:
            self._not_made(stage, none=True)

    def columns(self, stage: str, shard: int, columns: Sequence[str]) -> pa.Table | None:
        """Read columns of a whole shard; None, with a note, if it is unreadable or does not fit the index."""
        try:
            table = _fitting(read_table(self.path(stage, shard), columns), columns)
        except (OSError, pa.ArrowException) as error:
            self._unreadable(stage, shard, error)
            return None
        start, stop = self.index.shard_ranges[shard]
        if table.num_rows == 0 or table.num_rows % (stop - start):
            self._misfit(stage, shard)
            return None
        return table

    def by_sample(self, shard: int, mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Reduce a mask of a shard's rows to its samples: true if any row of the sample is marked."""
        start, stop = self.index.shard_ranges[shard]
        return np.asarray(mask.reshape(stop - start, -1).any(axis=1))

    def rows(self, stage: str, numbers: Sequence[int], columns: Sequence[str] | None = None) -> dict[int, list[Row]]:
        """Return the stored rows of samples by their number in the index.

        Only their row groups are read. Samples of shards that are absent, damaged or of another index are left out,
        with a note.
        """
        result: dict[int, list[Row]] = {}
        for shard, group in groupby(sorted(set(numbers)), key=self.shard_of):
            path = self.path(stage, shard)
            if not path.is_file():
                self._not_made(stage, none=next(path.parent.glob("*.parquet"), None) is None)
                continue
            try:
                result |= self._read(path, stage, shard, list(group), columns)
            except (OSError, pa.ArrowException) as error:
                self._unreadable(stage, shard, error)
        return result

    def _read(
        self, path: Path, stage: str, shard: int, numbers: list[int], columns: Sequence[str] | None
    ) -> dict[int, list[Row]]:
        start, stop = self.index.shard_ranges[shard]
        wanted = None if columns is None else ["sample_id", *(c for c in columns if c != "sample_id")]
        result: dict[int, list[Row]] = {}
        with open_table(path) as file:
            total = file.metadata.num_rows
            if total == 0 or total % (stop - start):
                self._misfit(stage, shard)
                return {}
            each = total // (stop - start)
            groups = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
            ends = np.cumsum(groups)
            held: dict[int, pa.Table] = {}  # row groups in use: few at a time, since samples are in order
            for number in numbers:
                first = (number - start) * each
                needed = range(
                    int(np.searchsorted(ends, first, "right")),
                    int(np.searchsorted(ends, first + each - 1, "right")) + 1,
                )
                held = {
                    g: held[g] if g in held else _fitting(file.read(wanted, [g]), wanted or COLUMNS[stage])
                    for g in needed
                }
                offset = first - int(ends[needed[0]] - groups[needed[0]])
                rows: list[Row] = pa.concat_tables(held.values()).slice(offset, each).to_pylist()
                if any(row["sample_id"] != self.index.table["sample_id"][number].as_py() for row in rows):
                    self._misfit(stage, shard)
                    return result
                result[number] = rows
        return result

    def _not_made(self, stage: str, *, none: bool) -> None:
        what, made = (f"There are no {stage} yet", "them") if none else (f"Some {stage} are not made yet", "the rest")
        self.note(f"{what}; `c2vl-pipeline {self._command(stage)}` makes {made}.")

    def _unreadable(self, stage: str, shard: int, error: Exception) -> None:
        reason = str(error).splitlines()[0].rstrip(".")
        self.note(
            f"{self.path(stage, shard).name} of {stage} cannot be read and is skipped ({reason}); "
            "`c2vl-pipeline verify --repair` makes it again."
        )

    def _misfit(self, stage: str, shard: int) -> None:
        self.note(
            f"{self.path(stage, shard).name} of {stage} holds other samples than the index names now and is skipped; "
            f"`c2vl-pipeline {self._command(stage)}` makes it again."
        )


def _fitting(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    if problem := misfit(table, columns):
        raise pa.ArrowInvalid(problem)
    return table


def projection_of(index: Workspace, sample: Row, skeletons: Sequence[Row]) -> Projection | None:
    """Return a sample's joints in pixels of its video, from its skeleton file or from its stored skeleton; None without.

    Raises:
        DataError: the skeleton file is malformed.
        OSError: it cannot be opened.
    """
    if index.joints_from_videos:
        return stored_pixels(skeletons[0], index.layout) if skeletons else None
    project = reader_of(index.dataset).project
    if project is None or not sample["skeleton"]:
        return None
    return project(index.root / sample["skeleton"], sample, index.layout)
