"""Arrays of joints in MATLAB files, as several datasets of the first Kinect have them: (20, 3, frames), metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.reading import TooLargeError
from c2vl_pipeline.readers.base import Array
from c2vl_pipeline.readers.files.matlab import read_matlab


def read_joints(path: Path, name: str, dataset: str) -> Array:
    """Read the array `name`, (20, 3, T), of a MATLAB file of a dataset. Shape: -> (T, 20, 3).

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    try:
        array = np.asarray(read_matlab(path, [name])[name])
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{name} holds {array.dtype}")
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # scipy raises a dozen kinds on damaged files, OSError without a number too
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"{path}: not a MATLAB file with {name} (20, 3, frames), as {dataset} has; save other joints as .npy"
        ) from error
    if array.ndim != 3 or array.shape[:2] != (KINECT_V1.joints, 3):
        raise DataError(f"{path}: {name} has the shape {array.shape}; expected (20, 3, frames)")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
        return array.transpose(2, 0, 1).astype(np.float32)
