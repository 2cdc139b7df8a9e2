"""`c2vl-pipeline inspect`: any subset of a work folder as an offline gallery that can be searched, sorted and enlarged.

Pictures are read only for the samples shown, and some hundred at a time.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.motion import moving
from c2vl_manifests.pages import shorten_paths
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.reader import Row, RowReader
from c2vl_pipeline.browse.selection import ALL, Filters, Numbers, frequent, nothing, select, spread
from c2vl_pipeline.stages import STAGES, failures, stages_of
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
class Gallery:
    """A written gallery."""

    path: Path
    matched: int
    shown: int
    total: int
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why rows of the samples that match failed: the commonest of each stage."""


def gallery(
    work: Path,
    out: Path,
    filters: Filters = ALL,
    *,
    limit: int = 48,
    seed: int | None = None,
    tell: Callable[[Gallery], None] = lambda made: None,
) -> Gallery:
    """Write a gallery of the samples that pass the filters.

    Args:
        work: the work folder; stages that were not run are left out, with a note.
        out: the HTML file.
        filters: conditions on the samples.
        limit: show at most `limit` samples, spread over classes, subjects and cameras.
        seed: show random samples instead.
        tell: receives the result before the page is written.

    Raises:
        StageError: there is no index.
        ConfigError: no sample passes, or a filter names something that this work folder lacks.
    """
    index = load(work)
    reader = RowReader(index)
    matched = select(index, filters, reader)
    if not len(matched):
        raise nothing(index, filters, reader)
    if seed is not None and len(matched) > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(matched, limit, replace=False))
    else:
        chosen = spread(index.table, matched, limit)
    numbers = [int(n) for n in chosen]
    cards = _cards(index, reader, numbers)
    reasons = [
        f"{count:,} row{'s' if count > 1 else ''} of {name} {status}: {text}"
        for name, stage in stages_of(index).items()
        for status, text, count in failures.reasons(index, stage, matched)[:3]
    ]
    stages = _stages(reader)
    made = Gallery(out, len(matched), len(cards), index.table.num_rows, tuple(reader.notes), tuple(reasons))
    tell(made)
    html.render(
        "inspect.html.j2",
        out,
        index=index,
        selection=filters.words(),
        made=made,
        chosen=_chosen(index, chosen, seed) if len(matched) > limit else "",
        cards=cards,
        choices=_choices(cards),
        words=frequent(caption["text"] for card in cards for caption in card["captions"])[:40],
        plain=len(cards) > MOVING,
        every=_every(len(cards), cards[0]["slots"]),
        notes=reader.notes,
        stages=stages,
        spans=html.spans,
    )
    return made


def _chosen(index: Workspace, chosen: Numbers, seed: int | None) -> str:
    if seed is not None:
        return f"chosen at random, seed {seed}"
    shown = index.table.take(pa.array(chosen))
    kinds = ", ".join(
        f"{len(shown[column].unique().drop_null())} {plural}"
        for column, plural in (("label", "classes"), ("subject", "subjects"), ("camera", "cameras"))
    )
    return f"a slice spread over {kinds}; --limit shows more"


def _choices(cards: list[dict[str, Any]]) -> dict[str, list[tuple[Any, str, int]]]:
    """Return value, text and number of cards of each choice of the bar."""
    classes = Counter((card["sample"]["label"], card["name"] or "no class") for card in cards)
    choices: dict[str, list[tuple[Any, str, int]]] = {"class": [(*key, n) for key, n in sorted(classes.items())]}
    for what in ("status", "split"):
        counts = Counter(one for card in cards for one in card[what])
        choices[what] = [(one, one, n) for one, n in sorted(counts.items())]
    return choices


def _every(samples: int, slots: int) -> int:
    """Return n where each n-th crop is shown."""
    return max(1, -(-samples * slots // PICTURES))


def _cards(index: Workspace, reader: RowReader, numbers: list[int]) -> list[dict[str, Any]]:
    cards = []
    skeletons = ["status", "error", "frames", "frames_in_file", "bodies"]
    if len(numbers) <= MOVING:
        skeletons.append("joints")
    for start in range(0, len(numbers), BATCH):
        some = numbers[start : start + BATCH]
        stored = {
            "crops": reader.rows("crops", some),
            "captions": reader.rows("captions", some),
            "embeddings": reader.rows("embeddings", some, ["slot", "status", "tokens", "truncated"]),
            "skeletons": reader.rows("skeletons", some, skeletons),
        }
        samples = index.table.take(pa.array(some, pa.int64())).to_pylist()
        cards += [
            _card(index, reader, sample, {stage: rows.get(n, []) for stage, rows in stored.items()}, n, len(numbers))
            for n, sample in zip(some, samples, strict=True)
        ]
    return cards


def _stages(reader: RowReader) -> list[dict[str, Any]]:
    """Return the counts of statuses of every stage, from the manifests of its shards."""
    counted = {s: sum((Counter(m.statuses) for _, m in reader.shards(s)), Counter[str]()) for s in STAGES}
    return [{"name": s, "rows": n.total(), "statuses": n} for s, n in counted.items() if n]


def class_name(index: Workspace, label: int) -> str:
    """Return the name of a class, empty if unknown."""
    return index.classes[label] if 0 <= label < len(index.classes) else ""


def crop_cards(rows: list[Row], side: int = html.THUMBNAIL) -> list[dict[str, Any]]:
    """Return what a strip shows of the rows of the crops stage."""
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
                "error": shorten_paths(row["error"]),
            }
        )
    return crops


def command(index: Workspace, sample_id: str) -> str:
    """Return the command that explains a sample; pages travel, so an absolute work folder is named by its last part."""
    work = index.work.name if index.work.is_absolute() else index.work
    return f"c2vl-pipeline explain {shlex.quote(sample_id)} --work {shlex.quote(str(work))}"


def _card(
    index: Workspace, reader: RowReader, sample: Row, rows: dict[str, list[Row]], number: int, shown: int
) -> dict[str, Any]:
    kept = rows["crops"][:: _every(shown, len(rows["crops"]))]
    crops = crop_cards(kept, html.THUMBNAIL if shown <= LARGE else html.THUMBNAIL * 5 // 8)
    framed = [row for row in rows["crops"] if row["box"] and row["frame_width"] and shown <= MOVING]
    skeleton = rows["skeletons"][0] if rows["skeletons"] else None
    texts = [row["caption"] for row in rows["captions"] if row["caption"]]
    outcomes = [(stage, row["status"]) for stage in rows for row in rows[stage]]
    outcomes += [("crops", "unreadable") for crop in crops if crop["status"] == "unreadable"]
    bad = sorted({f"{stage}:{status}" for stage, status in outcomes if status != Status.OK})
    joints = stored_joints(skeleton, index.layout) if skeleton and skeleton.get("joints") else None
    return {
        "sample": sample,
        "name": class_name(index, sample["label"]),
        "command": command(index, sample["sample_id"]),
        "shard": reader.shard_of(number),
        "slots": len(rows["crops"]),
        "crops": crops,
        "failures": grouped(
            [(r["slot"], (r["status"], shorten_paths(r["error"]))) for r in rows["crops"] if r["status"] != Status.OK]
        ),
        "captions": caption_lines(rows["captions"], rows["embeddings"]),
        "skeleton": skeleton,
        "bodies": moving(joints, index.layout, 16) if joints is not None and len(joints) else [],
        "seconds": len(joints) / (index.dataset.fps or 30) if joints is not None else 0,
        "frame": (framed[0]["frame_width"], framed[0]["frame_height"]) if framed else None,
        "boxes": [row["box"] for row in framed],
        "status": bad or [str(Status.OK)],
        "split": [f"{benchmark}:{side}" for benchmark, side in sample["splits"]],
        "score": min((row["score"] for row in rows["crops"] if row["score"] is not None), default=None),
        "repeats": len(texts) - len(set(texts)),
    }


def grouped(slots: list[tuple[int, tuple[Any, ...]]]) -> list[tuple[list[int], tuple[Any, ...]]]:
    """Group slots with equal values, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for slot, what in slots:
        groups.setdefault(what, []).append(slot)
    return [(same, what) for what, same in groups.items()]


def caption_lines(rows: list[Row], embedded: list[Row]) -> list[dict[str, Any]]:
    """Return each different caption of a sample once, with its slots; that of the last slot stands last."""
    texts = {row["slot"]: row for row in embedded}
    captions = []
    for row in rows:
        text = texts.get(row["slot"], {})
        what = (row["caption"] or "", row["status"], shorten_paths(row["error"]))
        captions.append((row["slot"], (*what, text.get("tokens"), bool(text.get("truncated")))))
    names = ("text", "status", "error", "tokens", "truncated")
    lines = [
        {"slots": slots, "span": html.spans(slots), **dict(zip(names, what, strict=True))}
        for slots, what in grouped(captions)
    ]
    return [*lines[:1], *sorted(lines[1:], key=lambda line: rows[-1]["slot"] in line["slots"])]
