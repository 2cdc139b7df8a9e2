"""Vectors that were made elsewhere, by the name of a sample or a class: a Parquet file or an `.npz`.

    Parquet   columns sample_id (or class), vector (a list of numbers), and optionally slot: a whole number from 0
    .npz      one array per name, (D,) or (slots, D); or the arrays sample_id (or class), (N,), vector, (N, D) or
              (N, slots, D), and optionally slot, (N,)

The order of the rows has no meaning. Every name has one vector for all of its slots, or one for each.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.reading import TooLargeError, read_arrays
from c2vl_manifests.tables import read_table

Array = npt.NDArray[np.floating[Any]]
_MOST_SLOTS = 1 << 15
_FORMS = "expected .parquet with {key}, vector and perhaps slot, or .npz with an array per {key}"


@dataclass(frozen=True)
class Vectors:
    """Vectors by name, each (slots, D), in order of their slots."""

    by_name: dict[str, Array]
    width: int

    @property
    def slots(self) -> int:
        """The largest number of vectors of a name."""
        return max(map(len, self.by_name.values()))


def read_vectors(path: Path, key: str = "sample_id") -> Vectors:
    """Read vectors by name; they are finite, none is zero, and all are of one width.

    Args:
        path: the file.
        key: what the names are of: `sample_id` or `class`.

    Raises:
        DataError: one line: it is of another form, or a name is there twice, or a vector is no direction.
    """
    suffix = path.suffix.lower()
    if suffix not in {".npz", ".parquet"}:
        raise DataError(f"{path}: {suffix or 'no suffix'}; {_FORMS.format(key=key)}")
    try:
        held = _of_parquet(path, key) if suffix == ".parquet" else _of_npz(path, key)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {_FORMS.format(key=key)}") from error
    except TooLargeError as error:
        raise DataError(f"{path}: {error}; write it as .parquet") from error
    except (DataError, MemoryError):
        raise
    except Exception as error:  # numpy, zip and pyarrow raise a dozen kinds on damaged files
        raise DataError(f"{path}: cannot be read ({one_line(error)}); {_FORMS.format(key=key)}") from error
    if not held:
        raise DataError(f"{path}: holds no vectors; {_FORMS.format(key=key)}")
    first, width = next((name, rows.shape[1]) for name, rows in held.items())
    for name, rows in held.items():
        where = f"{path}: {key} {name[:60]!r}"
        if rows.shape[1] != width or not width:
            raise DataError(
                f"{where} has vectors of width {rows.shape[1]}, {first[:60]!r} of {width}; expected one width"
            )
        if not np.isfinite(rows).all():
            raise DataError(f"{where} has NaN or infinite values; make its vectors again, or leave it out")
        if not rows.any(axis=1).all():
            raise DataError(f"{where} has a vector of zeros, which has no direction; leave it out")
    return Vectors(held, width)


def _of_npz(path: Path, key: str) -> dict[str, Array]:
    arrays = read_arrays(path)
    if key not in arrays:
        return {name: _rows(path, f"{key} {name[:60]!r}", array) for name, array in arrays.items()}
    names, given, slots = arrays[key], arrays.get("vector", arrays.get("vectors")), arrays.get("slot")
    if names is None or names.dtype.kind != "U" or names.ndim != 1 or given is None or len(given) != len(names):
        raise DataError(f"{path}: {key} and vector are no arrays of equal length, of texts and of numbers")
    if slots is None:
        return _placed(path, key, names.tolist(), None, [_rows(path, key, one) for one in given])
    if slots.dtype.kind not in "iu" or slots.shape != names.shape or given.ndim != 2:
        raise DataError(f"{path}: slot and vector; expected a whole number and a vector for each {key}")
    return _placed(path, key, names.tolist(), slots.tolist(), [_rows(path, key, one) for one in given])


def _rows(path: Path, what: str, array: Any) -> Array:
    if array is None or array.dtype.kind != "f" or array.ndim not in {1, 2} or not array.shape[0]:
        found = "no array of numbers" if array is None else f"{array.dtype} {array.shape}"
        raise DataError(f"{path}: {what}: {found}; expected floating-point numbers, (D,) or (slots, D)")
    rows: Array = np.atleast_2d(array)
    return rows


def _of_parquet(path: Path, key: str) -> dict[str, Array]:
    table = read_table(path).combine_chunks()
    lists = [name for name in table.column_names if _is_list(table.schema.field(name).type)]
    if key not in table.column_names or len(lists) != 1:
        columns = ", ".join(name[:40] for name in table.column_names[:8])
        raise DataError(
            f"{path}: the columns are {columns}; expected {key}, slot (if there is one per slot) and vector"
        )
    column = table.column(lists[0])
    if column.null_count or table.column(key).null_count:
        raise DataError(f"{path}: rows without a {key} or a vector; leave them out")
    lengths = set(pc.list_value_length(column).unique().to_pylist())
    if len(lengths) > 1:
        raise DataError(f"{path}: vectors of width {' and '.join(map(str, sorted(lengths)[:2]))}; expected one width")
    flat = pc.list_flatten(column).combine_chunks()
    if flat.null_count or not pa.types.is_floating(flat.type):
        raise DataError(f"{path}: vectors of {flat.type}, or with gaps; expected floating-point numbers")
    rows = flat.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    slots = table.column("slot").to_pylist() if "slot" in table.column_names else None
    return _placed(path, key, list(map(str, table.column(key).to_pylist())), slots, [row[None] for row in rows])


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _placed(path: Path, key: str, names: list[str], slots: list[Any] | None, rows: list[Array]) -> dict[str, Array]:
    """Return the rows of each name in order of their slots."""
    if slots is None:
        if len(made := dict(zip(names, rows, strict=True))) < len(names):
            twice = Counter(names).most_common(1)[0][0]
            raise DataError(f"{path}: {key} {twice[:60]!r} is there twice; expected it once, or a column slot")
        return made
    of: dict[str, dict[int, Array]] = {}
    for name, slot, row in zip(names, slots, rows, strict=True):
        if type(slot) is not int or not 0 <= slot < _MOST_SLOTS:
            raise DataError(
                f"{path}: {key} {name[:60]!r} has the slot {str(slot)[:20]}; expected a whole number from 0"
            )
        if of.setdefault(name, {}).setdefault(slot, row) is not row:
            raise DataError(f"{path}: {key} {name[:60]!r} has slot {slot} twice; expected it once")
    for name, placed in of.items():
        if lacking := sorted({*range(max(placed) + 1)} - placed.keys()):
            raise DataError(
                f"{path}: {key} {name[:60]!r} lacks slot {lacking[0]}; give all of its slots, or leave it out"
            )
    return {name: np.concatenate([placed[slot] for slot in range(len(placed))]) for name, placed in of.items()}
