"""numpy's `.npy` and `.npz`: joints (T, V, C) or (T, M, V, C); pickles are never loaded."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.errors import DataError
from c2vl_manifests.files import regular
from c2vl_manifests.reading import TooLargeError, read_arrays
from c2vl_pipeline.readers.files.base import DamagedError, Format, Numbers, Recording, Source, fitting


def read(source: Source) -> Recording:
    """Read the first array of a file that fits the layout."""
    return fitting(source.path, _numbers(source.path), source.layout)


def _numbers(path: Path) -> dict[str, Numbers]:
    """Return the arrays of numbers of a `.npy` or `.npz` file by name, at least one."""
    with open(path, "rb", opener=regular) as file:
        head = file.read(6)
    if head != b"\x93NUMPY" and head[:2] != b"PK":
        raise DamagedError(f"{path}: not a numpy array, it begins with {head!r}; save it again with np.save")
    try:
        held = read_arrays(path)
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # numpy, zip and zlib raise a dozen kinds on damaged files
        raise DamagedError(
            f"{path}: not a numpy array, or cut off ({path.stat().st_size:,} bytes); save it again with np.save"
        ) from error
    arrays = {name: array for name, array in held.items() if array is not None}
    if numbers := {name: array for name, array in arrays.items() if array.dtype.kind in "iuf"}:
        return numbers
    kinds = [str(array.dtype) for array in arrays.values()]
    kinds = kinds or ["Python objects, which are never loaded" if held else "no array"]
    raise DataError(f"{path}: holds {', '.join(kinds)}; expected numbers; save one array with np.save")


FORMAT = Format("numpy", read, (".npy", ".npz"))
