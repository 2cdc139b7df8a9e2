"""Crops in an audit: statuses and sizes of all, and for a random part whether they hold the person's joints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import DataError
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse.html import Histogram, Quantiles
from c2vl_pipeline.browse.reader import Row, RowReader, projection_of
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.workspace import Workspace

Points = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

INSIDE = 0.9
"""A crop passes if it holds this share of the joints within the frame."""

_WORST = 12


@dataclass(frozen=True)
class CropFigures:
    """Figures of all rows of the crops stage."""

    rows: int
    statuses: dict[str, int]
    scores: Histogram | None
    width: Quantiles | None
    """Of the boxes, pixels of the frame."""
    height: Quantiles | None
    sides: Histogram | None
    """Longer sides of the boxes, pixels."""
    area: Quantiles | None
    """Share of the frame."""
    people: dict[int, int]


@dataclass(frozen=True)
class Worst:
    """One of the worst crops, for a drawing."""

    sample_id: str
    slot: int
    share: float
    box: list[float]
    frame: tuple[int, int]
    joints: list[tuple[float, float, bool]]
    """(x, y, inside)."""

    @property
    def view(self) -> list[float]:
        """The part of the frame that a drawing shows, around box and joints: x, y, width, height."""
        points = np.array([self.box[:2], self.box[2:], *((x, y) for x, y, _ in self.joints)])
        low, high = points.min(axis=0), points.max(axis=0)
        margin = 0.1 * float((high - low).max())
        return [round(float(value), 1) for value in (*(low - margin), *(high - low + 2 * margin))]


@dataclass(frozen=True)
class JointFigures:
    """Crops compared with the joints projected into the frame."""

    samples: int
    of: int
    """Samples with video and skeleton."""
    seed: int
    frames: int
    mean: float
    passed: float
    """Share of crops with at least `INSIDE` of the joints."""
    histogram: Histogram | None
    outside_frame: float
    """Share of joints outside the frame, which no crop can hold; not counted."""
    unreadable: int
    derived: bool
    """The boxes were derived from these joints: the check proves the geometry, not the detector."""
    worst: list[Worst]


def crop_figures(reader: RowReader) -> CropFigures | None:
    """Summarise all rows of the crops stage; None if it was not run."""
    statuses: Counter[str] = Counter()
    people: Counter[int] = Counter()
    scores, boxes, frames = [], [], []
    for shard, _ in reader.shards("crops"):
        table = reader.columns("crops", shard, ["status", "score", "box", "people", "frame_width", "frame_height"])
        if table is None:
            continue
        statuses.update(count_values(table["status"]))
        ok = table.filter(pc.equal(table["status"], str(Status.OK)))
        people.update(count_values(ok["people"]))
        scores.append(ok["score"].to_numpy())
        boxes.append(ok["box"].combine_chunks().flatten().to_numpy().astype(np.float64).reshape(-1, 4))
        frames.append(np.stack([ok["frame_width"].to_numpy(), ok["frame_height"].to_numpy()], axis=1))
    if not statuses:
        return None
    box = np.concatenate(boxes)
    size = box[:, 2:] - box[:, :2]
    return CropFigures(
        rows=sum(statuses.values()),
        statuses=dict(statuses.most_common()),
        scores=Histogram.of(np.concatenate(scores), 20, (0, 1)),
        width=Quantiles.of(size[:, 0]),
        height=Quantiles.of(size[:, 1]),
        sides=Histogram.of(size.max(axis=1, initial=0), 24),
        area=Quantiles.of(size.prod(axis=1) / np.concatenate(frames).prod(axis=1)),
        people=dict(sorted(people.items())),
    )


def count_values(column: pa.ChunkedArray) -> dict[Any, int]:
    """Return how often each value of a column occurs, without a Python value for each of millions of rows."""
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def inside(
    joints: npt.NDArray[np.float32], box: list[float], frame: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], int]:
    """Find the joints that a crop holds.

    Args:
        joints: pixels of the frame, (bodies, V, 2); NaN where unseen.
        box: (x0, y0, x1, y1), x1 and y1 exclusive.
        frame: width and height; joints outside are left out, since no crop can hold them.

    Returns:
        The joints within the frame (n, 2), a mask of those within the box (n,), and the number outside the frame.
    """
    points = joints.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    seen = ((points >= 0) & (points < frame)).all(axis=1)
    points = points[seen]
    held = np.asarray((points >= box[:2]).all(axis=1) & (points < box[2:]).all(axis=1), np.bool_)
    return points, held, int((~seen).sum())


def _drawn(share: float, row: Row, points: Points, held: Mask) -> Worst:
    joints = [(float(x), float(y), bool(h)) for (x, y), h in zip(points.round(1), held, strict=True)]
    return Worst(row["sample_id"], row["slot"], share, row["box"], (row["frame_width"], row["frame_height"]), joints)


def joint_figures(
    index: Workspace, reader: RowReader, check: int, seed: int, why: dict[str, str]
) -> JointFigures | None:
    """Compare the crops of at most `check` samples with their joints in pixels; None, with a reason in `why`."""
    if not index.joints_from_videos and reader_of(index.dataset).project is None:
        why["joints"] = (
            f"{index.dataset.title} records no joints in pixels of its videos, so its crops cannot be checked against them."
        )
        return None
    source = "video" if index.joints_from_videos else "skeleton"
    complete = np.flatnonzero(np.asarray(pc.and_(pc.is_valid(index.table[source]), pc.is_valid(index.table["video"]))))
    chosen = complete
    if len(complete) > check:
        chosen = np.sort(np.random.default_rng(seed).choice(complete, check, replace=False))
    columns = ["slot", "status", "frame_index", "box", "frame_width", "frame_height"]
    rows = reader.rows("crops", [int(n) for n in chosen], columns)
    stored = reader.rows("skeletons", [int(n) for n in chosen]) if index.joints_from_videos else {}
    shares: list[float] = []
    worst: list[tuple[float, int, Worst]] = []
    unreadable = beyond = counted = looked = 0
    for number, crops in rows.items():
        try:
            sample = index.table.slice(number, 1).to_pylist()[0]
            joints_of = projection_of(index, sample, stored.get(number, []))
        except (DataError, OSError):
            unreadable += 1
            continue
        if joints_of is None:
            continue
        looked += 1
        compared: list[tuple[float, Row, Points, Mask]] = []
        for row in crops:
            joints = joints_of(row["frame_index"], row["frame_height"]) if row["status"] == Status.OK else None
            if joints is None:
                continue
            frame = (row["frame_width"], row["frame_height"])
            points, held, outside = inside(joints, row["box"], frame)
            beyond, counted = beyond + outside, counted + len(points)
            if not len(points):
                continue
            compared.append((float(held.mean()), row, points, held))
        shares += [share for share, *_ in compared]
        if compared and (lowest := min(compared, key=lambda one: one[0]))[0] < 1:
            worst = sorted([*worst, (lowest[0], number, _drawn(*lowest))], key=lambda w: w[:2])[:_WORST]
    if not shares:
        why["joints"] = "No crop has joints in pixels to be checked against."
        return None
    return JointFigures(
        samples=looked,
        of=len(complete),
        seed=seed,
        frames=len(shares),
        mean=float(np.mean(shares)),
        passed=float(np.mean(np.array(shares) >= INSIDE)),
        histogram=Histogram.of(shares, 20, (0, 1)),
        outside_frame=beyond / max(beyond + counted, 1),
        unreadable=unreadable,
        derived=any(
            manifest.extra.get("provenance", {}).get("derived_from") == "joints"
            for _, manifest in reader.shards("crops")
        ),
        worst=[entry for *_, entry in worst],
    )
