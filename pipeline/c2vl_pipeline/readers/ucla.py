"""Reader of Northwestern-UCLA in its public form: one JSON file per clip.

Each file is an object of `file_name` (the sample's id), `skeletons` (frames, 20, 3) and `label` (1 to 10). Joints are
those of Kinect v1 in its own order, in metres of the camera, y up. The label is taken from the id.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import DataError, one_line
from c2vl_manifests.layouts import KINECT_V1
from c2vl_manifests.reading import read_json
from c2vl_pipeline.readers.base import Assembled, Reader, anchored, expect_ids, locate_by_name


def read_ucla(path: Path) -> Assembled:
    """Read `skeletons` (T, 20, 3) of a clip; the hip centre of the first frame becomes the origin.

    Raises:
        DataError: the file is in another format, damaged, or holds another clip than its name says.
        OSError: the file cannot be opened.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({one_line(error)}); copy it again") from error
    if not isinstance(content, dict) or "skeletons" not in content:
        raise DataError(f"{path}: not a clip of NW-UCLA; expected an object of file_name, skeletons and label")
    if (name := str(content.get("file_name", path.stem))) != path.stem:
        raise DataError(f"{path}: holds the clip {name[:60]!r}; rename it or copy it again")
    dataset, label = load_dataset("nw-ucla"), content.get("label")
    own = None
    with suppress(DataError):  # a clip under another name has no class to compare with
        own = dataset.label(dataset.parse_id(path.stem)) + 1
    if own is not None and isinstance(label, int) and label != own:
        raise DataError(f"{path}: label {label}; expected {own}, the class of its name; copy it again")
    try:
        joints = np.array(content["skeletons"])
    except ValueError:  # lists of different lengths
        joints = np.array(None)
    if joints.ndim != 3 or joints.shape[1:] != (KINECT_V1.joints, 3) or joints.dtype.kind not in "if":
        found = f"the shape {joints.shape} of {joints.dtype}" if joints.ndim else "lists of different lengths"
        raise DataError(f"{path}: skeletons has {found}; expected numbers, (frames, {KINECT_V1.joints}, 3)")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
        return anchored(joints.astype(np.float32)[:, None], KINECT_V1)


READER = Reader(
    expected_rows=expect_ids,
    locate=locate_by_name,
    read_joints=lambda path, row, layout, bodies, config: read_ucla(path),
    check_file=read_ucla,
    clip_files={".json": "NW-UCLA"},
    clip_layout="kinect_v1",
)
