"""Reader of SYSU 3DHOI: `<subject>/video<activity>/sklWorld.mat` holds `SW` (20, 3, frames), metres, Kinect v1's order.

Folders of subjects have names; ids number them in the order in which they sort.
"""

from __future__ import annotations

import re
from pathlib import Path

from c2vl_manifests.datasets import Dataset
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1
from c2vl_pipeline.readers.base import (
    Assembled,
    Expected,
    File,
    Match,
    Reader,
    Row,
    Scan,
    anchored,
    expect_ids,
    is_hidden,
)
from c2vl_pipeline.readers.matlab import read_joints

_PLACE = re.compile(r"(?:.*/)?(?P<person>[^/]+)/video0*(?P<action>\d+)/sklWorld\.mat")
_SETTING = "xsub", "same"
"""Names of the benchmarks of halves of the subjects, and of those of halves of each activity's samples."""


def read_sysu(path: Path) -> Assembled:
    """Read `SW` (20, 3, T) of a `sklWorld.mat`; the hip centre of the first frame becomes the origin.

    Raises:
        DataError: the file is in another format or damaged.
        OSError: the file cannot be opened.
    """
    return anchored(read_joints(path, "SW", "SYSU 3DHOI")[:, None], KINECT_V1)


def _expected_rows(dataset: Dataset, root: Path, scan: Scan) -> Expected:
    """Expect every activity of every subject; rows get the benchmarks of halves of each activity's samples too.

    Draw n of the latter takes for activity a the subjects of draw n + a of the former.

    Raises:
        DataError: there are folders of more or fewer subjects, so that their numbers are not known.
    """
    people = {found["person"] for file in scan.files if (found := _PLACE.fullmatch(file.relative))}
    known = dataset.trials.subjects if dataset.trials else 0
    if people and len(people) != known:
        raise DataError(
            f"{root}: folders of {len(people):,} subjects ({min(people)}, …); expected {known}, whose order numbers the "
            "subjects of the splits: complete the download, or leave other folders out"
        )
    expected = expect_ids(dataset, root, scan)
    halves = list(dataset.benchmarks)
    for row in expected.rows:
        fields = {"subject": row["subject"]}
        row["splits"] += [
            (name.replace(*_SETTING), dataset.benchmarks[halves[(n + row["label"] + 1) % len(halves)]].split(fields))
            for n, name in enumerate(halves)
        ]
    return expected


def _locate(dataset: Dataset, root: Path, rows: list[Row], scan: Scan) -> Match:
    places: dict[tuple[str, int], File] = {}
    match = Match()
    for file in sorted(scan.files, key=lambda f: (is_hidden(f.relative), f.relative.count("/"))):
        found = _PLACE.fullmatch(file.relative)
        key = (found["person"], int(found["action"])) if found else None
        if key is None or key in places or not 1 <= key[1] <= len(dataset.classes):
            match.unexpected.append(file.relative)
        else:
            places[key] = file
    people = sorted({person for person, _ in places})
    for row in rows:
        person = people[row["subject"] - 1] if people else ""
        hit = places.get((person, row["label"] + 1))
        row.update(skeleton=hit.relative if hit else None, skeleton_bytes=hit.size if hit else None)
        if hit is None:
            match.missing_skeletons.append(row["sample_id"])
    return match


READER = Reader(
    expected_rows=_expected_rows,
    locate=_locate,
    read_joints=lambda path, row, layout, bodies, config: read_sysu(path),
    check_file=read_sysu,
    named_by_id=False,
)
