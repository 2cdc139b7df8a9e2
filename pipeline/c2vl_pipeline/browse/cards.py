"""Samples as cards: the clip as a moving skeleton, its crops, its captions, and the command that explains it.

All pages show samples by `shared/card.html.j2`, which draws a `Card`. Pictures are read only for the samples asked for,
and some hundred at a time.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import C2VLError
from c2vl_manifests.motion import Body, moving
from c2vl_manifests.pages import shorten_paths
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.reader import Row, RowReader
from c2vl_pipeline.browse.selection import NOT_OK, Filters, select, spread
from c2vl_pipeline.workspace import Workspace, load, stored_joints

PICTURES = 8_000
"""Crops on a page. Of more samples than this holds whole, every second, third ... crop is shown."""
LARGE = 100
"""Samples up to which crops are kept large enough to be worth enlarging."""
MOVING = 1_000
"""Samples up to which skeletons and boxes are drawn."""
BATCH = 100
"""Samples whose rows are in memory at a time."""


@dataclass(frozen=True)
class Card:
    """What a page shows of one sample; a clip whose work folder is elsewhere has little more than its motion."""

    sample_id: str
    name: str
    """Of its class; empty if unknown."""
    bodies: Sequence[Body] = ()
    """The clip as a moving skeleton."""
    seconds: float = 0.0
    sample: Row = field(default_factory=dict)
    """Its row of the index."""
    command: str = ""
    """Command that explains it."""
    shard: int = 0
    slots: int = 0
    """Crops of the sample; `crops` may show fewer."""
    crops: Sequence[Row] = ()
    captions: Sequence[Row] = ()
    skeleton: Row | None = None
    frame: tuple[int, int] | None = None
    """Width and height of the video, pixels."""
    boxes: Sequence[Sequence[float]] = ()
    status: Sequence[str] = (str(Status.OK),)
    score: float | None = None
    """Lowest score of its crops."""
    failures: Sequence[tuple[str, str, str]] = ()
    """Slots, status and error of crops that are not ok."""
    poor: int = 0
    """Captions that are missing, cut by the encoder, or equal to another one of the sample."""

    @property
    def split(self) -> list[str]:
        """Sides of the benchmarks that hold it, as `xsub:test`."""
        return [f"{benchmark}:{side}" for benchmark, side in self.sample.get("splits", ())]


def command(work: Path, *words: str, page: bool = True) -> str:
    """Return a command over a work folder; pages travel, so on one an absolute folder is named by its last part."""
    return shlex.join(["c2vl-pipeline", *words, "--work", work.name if page and work.is_absolute() else str(work)])


def class_name(index: Workspace, label: int) -> str:
    """Return the name of a class, empty if unknown."""
    return index.classes[label] if 0 <= label < len(index.classes) else ""


def cards(index: Workspace, reader: RowReader, numbers: Sequence[int]) -> list[Card]:
    """Return the cards of samples by their numbers in the index; what cannot be read is left out, with a note."""
    made = []
    skeletons = ["status", "error", "frames", "frames_in_file", "bodies"]
    if len(numbers) <= MOVING:
        skeletons.append("joints")
    for start in range(0, len(numbers), BATCH):
        some = [int(n) for n in numbers[start : start + BATCH]]
        stored = {
            "crops": reader.rows("crops", some),
            "captions": reader.rows("captions", some),
            "embeddings": reader.rows("embeddings", some, ["slot", "status", "tokens", "truncated"]),
            "skeletons": reader.rows("skeletons", some, skeletons),
        }
        samples = index.table.take(pa.array(some, pa.int64())).to_pylist()
        made += [
            card(
                index,
                sample,
                {stage: rows.get(n, []) for stage, rows in stored.items()},
                reader.shard_of(n),
                len(numbers),
            )
            for n, sample in zip(some, samples, strict=True)
        ]
    return made


def of_ids(work: Path, ids: Sequence[str]) -> dict[str, Card]:
    """Return the cards of samples by id; of none if the folder holds no index, without those that it does not name."""
    try:
        index = load(work)
    except C2VLError:
        return {}
    numbers = pc.index_in(pa.array(ids, pa.string()), index.table["sample_id"].combine_chunks()).drop_null()
    return {one.sample_id: one for one in cards(index, RowReader(index), numbers.to_pylist())}


def few(work: Path, limit: int) -> tuple[list[Card], list[str]]:
    """Return the cards of `limit` samples of all kinds, one with a row that is not ok among them, and notes on damage.

    Raises:
        StageError: there is no index.
    """
    index = load(work)
    reader = RowReader(index)
    chosen = spread(index.table, np.arange(index.table.num_rows), limit)
    bad = select(index, Filters(status=NOT_OK), reader)
    if len(bad) and not np.isin(bad, chosen).any():
        chosen = np.sort([*chosen[: limit - 1], bad[0]])
    return cards(index, reader, chosen.tolist()), reader.notes


def every(samples: int, slots: int) -> int:
    """Return the step between the crops that a page shows: 1 shows all, 2 every second one."""
    return max(1, -(-samples * slots // PICTURES))


def card(index: Workspace, sample: Row, rows: dict[str, list[Row]], shard: int, shown: int = 1) -> Card:
    """Return the card of a sample.

    Args:
        index: the work folder.
        sample: row of the index.
        rows: stored rows of the sample by stage.
        shard: number of its shard.
        shown: cards on the page: of many, each is smaller.
    """
    kept = rows["crops"][:: every(shown, len(rows["crops"]))]
    crops = _crops(kept, html.THUMBNAIL if shown <= LARGE else html.THUMBNAIL * 5 // 8)
    framed = [row for row in rows["crops"] if row["box"] and row["frame_width"] and shown <= MOVING]
    skeleton = rows["skeletons"][0] if rows["skeletons"] else None
    lost = [(r["slot"], (r["status"], shorten_paths(r["error"]))) for r in rows["crops"] if r["status"] != Status.OK]
    outcomes = [(stage, row["status"]) for stage in rows for row in rows[stage]]
    outcomes += [("crops", "unreadable") for crop in crops if crop["status"] == "unreadable"]
    bad = sorted({f"{stage}:{status}" for stage, status in outcomes if status != Status.OK})
    joints = stored_joints(skeleton, index.layout) if skeleton and skeleton.get("joints") else None
    captions = _captions(rows["captions"], rows["embeddings"])
    return Card(
        sample_id=sample["sample_id"],
        name=class_name(index, sample["label"]),
        bodies=moving(joints, index.layout, 16) if joints is not None and len(joints) else (),
        seconds=len(joints) / (index.dataset.fps or 30) if joints is not None else 0,
        sample=sample,
        command=command(index.work, "explain", sample["sample_id"]),
        shard=shard,
        slots=len(rows["crops"]),
        crops=crops,
        captions=captions,
        skeleton=skeleton,
        frame=(framed[0]["frame_width"], framed[0]["frame_height"]) if framed else None,
        boxes=[row["box"] for row in framed],
        status=bad or [str(Status.OK)],
        score=min((row["score"] for row in rows["crops"] if row["score"] is not None), default=None),
        failures=[(html.spans(slots), *what) for slots, what in _grouped(lost)],
        poor=len(rows["captions"])
        - len({c["text"] for c in captions if c["status"] == Status.OK and not c["truncated"]}),
    )


def _crops(rows: list[Row], side: int) -> list[Row]:
    crops = []
    for row in rows:
        image = html.thumbnail(row["jpeg"], side)
        status = row["status"] if image or row["status"] != Status.OK else "unreadable"
        crops.append(
            {
                **{k: row[k] for k in ("slot", "score", "people")},
                "frame": row["frame_index"],
                "image": image,
                "status": status,
                "ok": status == Status.OK,
            }
        )
    return crops


def _grouped(slots: list[tuple[int, tuple[Any, ...]]]) -> list[tuple[list[int], tuple[Any, ...]]]:
    """Group slots with equal values, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for slot, what in slots:
        groups.setdefault(what, []).append(slot)
    return [(same, what) for what, same in groups.items()]


def _captions(rows: list[Row], embedded: list[Row]) -> list[Row]:
    """Return each different caption of a sample once, with its slots; that of the last slot stands last."""
    texts = {row["slot"]: row for row in embedded}
    captions = []
    for row in rows:
        text = texts.get(row["slot"], {})
        what = (row["caption"] or "", row["status"], shorten_paths(row["error"]))
        captions.append((row["slot"], (*what, text.get("tokens"), bool(text.get("truncated")))))
    names = ("text", "status", "error", "tokens", "truncated")
    lines = [
        {"slots": slots, "times": len(slots), "span": html.spans(slots), **dict(zip(names, what, strict=True))}
        for slots, what in _grouped(captions)
    ]
    return [*lines[:1], *sorted(lines[1:], key=lambda line: rows[-1]["slot"] in line["slots"])]
