"""Reader of UTD-MHAD's skeleton files (`d_skel` in MATLAB files)."""

from __future__ import annotations

from pathlib import Path

from c2vl_manifests.layouts import KINECT_V1
from c2vl_pipeline.readers.base import Assembled, Reader, anchored, expect_ids, locate_by_name
from c2vl_pipeline.readers.matlab import read_joints

_UTD_TO_KINECT_V1 = [3, 2, 1, 0, *range(4, 20)]


def read_utd(path: Path) -> Assembled:
    """Read `d_skel` (20, 3, T) of a UTD-MHAD `.mat` file; the hip centre of the first frame becomes the origin.

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    return anchored(read_joints(path, "d_skel", "UTD-MHAD")[:, None, _UTD_TO_KINECT_V1], KINECT_V1)


READER = Reader(
    expected_rows=expect_ids,
    locate=locate_by_name,
    read_joints=lambda path, row, layout, bodies, config: read_utd(path),
    check_file=read_utd,
    clip_files={".mat": "UTD-MHAD"},
    clip_layout="kinect_v1",
)
