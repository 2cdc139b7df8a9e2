"""Reader of UTD-MHAD's skeleton files (`d_skel` in MATLAB files)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.reading import TooLargeError
from c2vl_pipeline.readers.base import Assembled, Reader, anchored, expect_ids, locate_by_name
from c2vl_pipeline.readers.files.matlab import read_matlab

_UTD_TO_KINECT_V1 = [3, 2, 1, 0, *range(4, 20)]


def read_utd(path: Path) -> Assembled:
    """Read `d_skel` (20, 3, T) of a UTD-MHAD `.mat` file; the hip centre of the first frame becomes the origin.

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    try:
        array = read_matlab(path, ["d_skel"])["d_skel"]
    except TooLargeError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises a dozen kinds on damaged files
        raise DataError(
            f"{path}: not a MATLAB file with d_skel (20, 3, frames), as UTD-MHAD has; save other joints as .npy"
        ) from error
    if array.ndim != 3 or array.shape[:2] != (20, 3):
        raise DataError(f"{path}: d_skel has the shape {array.shape}; expected (20, 3, frames)")
    joints = array.transpose(2, 0, 1)[:, None, _UTD_TO_KINECT_V1].astype(np.float32)
    return anchored(joints, KINECT_V1)


READER = Reader(
    expected_rows=expect_ids,
    locate=locate_by_name,
    read_joints=lambda path, row, layout, bodies, config: read_utd(path),
    check_file=read_utd,
    clip_files={".mat": "UTD-MHAD"},
    clip_layout="kinect_v1",
)
