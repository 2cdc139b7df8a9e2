"""A packed folder: its arrays, which rows of a split are usable, and hashes of what a run has read.

Array order on disk (T, C, M, V). Labels have their own file, opened by `PackedDataset.labels`: pre-training calls it only
to leave classes out.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import NO_SUCH_CALL, ConfigError, DataError, naming, passing
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import fingerprint
from c2vl_manifests.packed import PackedManifest, read_packed_manifest
from c2vl_manifests.reading import map_array, read_array
from c2vl_manifests.schema import misfit
from c2vl_manifests.tables import read_table

Rows = npt.NDArray[np.int64]
_COLUMNS = (
    *("sample_id", "frames", "skeleton_status", "vision_rows", "language_rows"),
    *("reason", "subject", "splits", "joints_hash", "vision_hash", "language_hash"),
)

CLASS_NUMBERS = "class_numbers"
"""Among the hashes of what was read: only a classifier that is still to be trained depends on the numbers."""


def _on_disk(path: Path) -> npt.NDArray[Any]:
    """Return an array that stays on disk until it is used; in memory where the file system maps no files."""
    try:
        return map_array(path)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL | {errno.ENODEV}:
            raise
        return read_array(path)


@dataclass(frozen=True)
class Selection:
    """Usable rows of a split, and (sample_id, reason) of the others."""

    rows: Rows
    left_out: tuple[tuple[str, str], ...]


class PackedDataset:
    """One packed folder; arrays stay on disk until they are used.

    Raises:
        StageError: the folder holds no packed data.
        DataError: an array is damaged or of another shape than `packed.json` says.
    """

    def __init__(self, folder: Path) -> None:
        if folder.name != "packed" and not (folder / "packed.json").is_file():
            folder = folder / "packed"
        self.folder = folder
        self.manifest: PackedManifest = read_packed_manifest(folder)
        self.layout: Layout = self.manifest.joint_layout()
        self.gaps = self.manifest.gaps
        self._index = self._read_index()
        # many runs of a table, and many cells of a run, read the same splits
        self._selections: dict[tuple[str, str, tuple[str, ...]], Selection] = {}
        self._digests: dict[tuple[bytes, tuple[str, ...], bool], dict[str, str]] = {}
        m = self.manifest
        self.offsets = self._array("offsets.npy", np.int64, (m.samples + 1,))
        if self.offsets[0] or not np.array_equal(np.diff(self.offsets), self._index.column("frames")):
            raise DataError(
                f"{folder / 'offsets.npy'}: differs from the frames of index.parquet; run `c2vl-pipeline pack` again"
            )
        shape = (m.frames, self.layout.dims, m.bodies, self.layout.joints)
        self.joints = self._array("joints.npy", np.float32, shape)

    def _read_index(self) -> pa.Table:
        path = self.folder / "index.parquet"
        try:
            with naming(path):
                table = read_table(path).combine_chunks()
        except (OSError, pa.ArrowException) as error:
            if passing(error):
                raise
            raise DataError(f"{path}: cannot be read ({error}); run `c2vl-pipeline pack` again") from error
        if table.num_rows != self.manifest.samples:
            raise DataError(
                f"{path}: {table.num_rows} rows, expected {self.manifest.samples}; run `c2vl-pipeline pack` again"
            )
        if problem := misfit(table, _COLUMNS):
            raise DataError(f"{path}: {problem}; run `c2vl-pipeline pack` again")
        return table

    def sample_ids(self, rows: Iterable[int]) -> list[str]:
        """Return the ids of some rows."""
        ids: list[str] = self._index.column("sample_id").take(pa.array(rows, pa.int64())).to_pylist()
        return ids

    def _array(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.folder / name
        try:
            array = _on_disk(path) if 0 not in shape else read_array(path)
        except (OSError, ValueError) as error:
            if passing(error):
                raise
            raise DataError(f"{path}: cannot be read ({error}); run `c2vl-pipeline pack` again") from error
        if array.shape != shape or array.dtype != dtype:
            raise DataError(
                f"{path}: shape {array.shape} of {array.dtype}, expected {shape} of {np.dtype(dtype)}; "
                "run `c2vl-pipeline pack` again"
            )
        return array

    def knowledge(self, kind: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return vectors (N, slots, D) float16 and which of them are usable (N, slots) of `vision` or `language`."""
        m = self.manifest
        dim = m.vision_dim if kind == "vision" else m.language_dim
        vectors = self._array(f"{kind}.npy", np.float16, (m.samples, m.slots, dim))
        return vectors, self._array(f"{kind}_ok.npy", np.bool_, (m.samples, m.slots))

    def labels(self) -> npt.NDArray[np.int64]:
        """Return 0-based classes (N,), -1 where unknown: for the supervised control, evaluation and excluded classes only."""
        return self._array("labels.npy", np.int16, (self.manifest.samples,)).astype(np.int64)

    def digests(self, rows: Rows, kinds: Sequence[str] = (), labels: bool = False) -> dict[str, str]:
        """Return hashes of what a reader of some rows reads, by name: samples and joints, `kinds` of knowledge, labels."""
        key = (np.asarray(rows, np.int64).tobytes(), tuple(kinds), labels)
        if key not in self._digests:
            self._digests[key] = self._hashed(rows, kinds, labels)
        return dict(self._digests[key])

    def _hashed(self, rows: Rows, kinds: Sequence[str], labels: bool) -> dict[str, str]:
        some = self._index.select(["sample_id", *(f"{kind}_hash" for kind in ("joints", *kinds))]).take(rows)
        columns = dict(zip(("samples", "joints", *kinds), some.columns, strict=True))
        hashes = {name: fingerprint(column.to_pylist()) for name, column in columns.items()}
        if (
            labels
        ):  # which samples are of one class, and what number it has: names may be corrected, and then sort otherwise
            _, first, own = np.unique(self.labels()[rows], return_index=True, return_inverse=True)
            hashes["labels"] = fingerprint(first[own].tolist())
            hashes[CLASS_NUMBERS] = fingerprint(self.labels()[rows].tolist())
        return hashes

    def clips(self, rows: Rows) -> dict[str, str]:
        """Return what tells the clips of some rows from others: id -> hash of the joints."""
        some = self._index.select(["sample_id", "joints_hash"]).take(rows)
        return dict(zip(*(column.to_pylist() for column in some.columns), strict=True))

    def kinds(self, rows: Rows | None = None) -> tuple[str, ...]:
        """Return the kinds of knowledge of which some sample with joints, among `rows`, has a usable vector."""
        some = self._index if rows is None else self._index.take(rows)
        joints = some.column("frames").to_numpy() > 0
        return tuple(k for k in ("vision", "language") if (joints & (some.column(f"{k}_rows").to_numpy() > 0)).any())

    def _splits(self) -> pa.MapArray:
        return self._index.column("splits").chunk(0)

    def benchmarks(self) -> list[str]:
        """Return the names of the benchmarks of all samples."""
        return sorted(self._splits().keys.unique().to_pylist())

    def main_benchmark(self) -> str:
        """Return xsub, or else the first benchmark.

        Raises:
            ConfigError: none exists.
        """
        names = self.benchmarks()
        if not names:
            raise ConfigError(f"{self.folder} has no benchmark; give split_<benchmark> columns in the table of samples")
        return "xsub" if "xsub" in names else names[0]

    def _members(self, benchmark: str, split: str) -> Rows:
        """Return all rows of a split.

        `<benchmark>-val` divides the *training* split alone: a quarter of its subjects, the last ones, replace
        the test subjects, so that settings can be chosen without looking at the test split.
        """
        base = benchmark if benchmark in self.benchmarks() else benchmark.removesuffix("-val")
        if base not in self.benchmarks():
            have = ", ".join(self.benchmarks()) or "none; give split_<benchmark> columns in the table of samples"
            raise ConfigError(
                f"{self.manifest.title} has no benchmark {benchmark!r}; it has {have} (and each as <name>-val)"
            )
        if base == benchmark:
            return self._rows_of(base, split)
        training = self._rows_of(base, "train")
        subject = self._index.column("subject").fill_null(-1).to_numpy()[training]
        subjects = np.unique(subject[subject >= 0])
        if len(subjects) < 2:
            raise ConfigError(
                f"{benchmark!r} holds out subjects of the training split, "
                f"which names {len(subjects)}; at least 2 are needed"
            )
        held = np.isin(subject, subjects[-max(1, len(subjects) // 4) :])
        return training[held if split == "test" else ~held]

    def _rows_of(self, benchmark: str, split: str) -> Rows:
        pairs = self._splits()
        rows = np.repeat(np.arange(len(pairs)), np.diff(pairs.offsets.to_numpy()))
        wanted = pc.and_(pc.equal(pairs.keys, benchmark), pc.equal(pairs.items, split))
        members: Rows = rows[wanted.to_numpy(zero_copy_only=False)]
        return members

    def select(self, benchmark: str, split: str, knowledge: Sequence[str] = ()) -> Selection:
        """Return the usable rows of a split: with a skeleton, and a usable vector of each required kind of knowledge.

        Raises:
            ConfigError: no such benchmark.
            DataError: no row is usable.
        """
        key = (benchmark, split, tuple(knowledge))
        if key not in self._selections:
            self._selections[key] = self._selected(*key)
        return self._selections[key]

    def _selected(self, benchmark: str, split: str, knowledge: Sequence[str]) -> Selection:
        rows = self._members(benchmark, split)
        needed = ("frames", *(f"{kind}_rows" for kind in knowledge))
        usable = np.all([self._index.column(name).to_numpy()[rows] > 0 for name in needed], axis=0)
        left_out = tuple(
            (row["sample_id"], _missing(row, knowledge)) for row in self._index.take(rows[~usable]).to_pylist()
        )
        if not usable.any():
            why = f"; the first was left out because of {left_out[0][1]}" if left_out else ""
            raise DataError(
                f"{self.folder}: no usable {split} samples in {benchmark}{why}. `c2vl-pipeline status --why` shows more"
                + self._what_works(rows, knowledge)
            )
        return Selection(rows[usable], left_out)

    def _what_works(self, rows: Rows, knowledge: Sequence[str]) -> str:
        """Return what can be trained although no sample has all required knowledge; empty where nothing can."""
        if not knowledge or not (self._index.column("frames").to_numpy()[rows] > 0).any():
            return ""
        if other := self.kinds(rows):
            return f"; {other[0]} alone is there: --set training.pretrain.knowledge={other[0]}"
        return (
            "; joints alone are enough for `c2vl-train supervised` and `c2vl-train random`, and for a pre-training with "
            "captions by rule (`c2vl-pipeline prompts --recipe heuristic`, then --set training.pretrain.knowledge=language)"
        )


def _missing(row: dict[str, Any], knowledge: Sequence[str]) -> str:
    if row["frames"] == 0:
        return f"{row['skeleton_status']}: {row['reason'] or 'no skeleton'}"
    missing = " and ".join(kind for kind in knowledge if row[f"{kind}_rows"] == 0)
    return f"no usable {missing} rows: {row['reason'] or 'nobody found in any frame'}"
