"""Reader of joints in numpy files, for custom datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import Layout
from c2vl_pipeline.readers.assembly import Assembled, _anchored


def read_array(path: Path, layout: Layout, bodies: int) -> Assembled:
    """Read own joints: `.npy` or the first array of an `.npz`, (T, V, C) or (T, M, V, C), metres.

    The layout's origin (its centre, unless it says otherwise) in the first frame becomes zero.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded
        else:
            with loaded:
                array = loaded[loaded.files[0]]
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy, zip and zlib raise a dozen kinds on damaged files
        raise DataError(f"{path}: not a numpy array ({str(error)[:100]})") from error
    if array.dtype.kind not in "iuf":
        raise DataError(f"{path}: holds {array.dtype}; expected numbers, in metres")
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[2:] != (layout.joints, layout.dims) or array.shape[1] < 1:
        raise DataError(
            f"{path}: shape {array.shape}; layout {layout.name!r} needs (T, {layout.joints}, {layout.dims}) or "
            f"(T, M, {layout.joints}, {layout.dims})"
        )
    return _anchored(array[:, :bodies].astype(np.float32), path, anchor=layout.anchor)
