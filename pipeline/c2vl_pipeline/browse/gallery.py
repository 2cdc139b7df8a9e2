"""`c2vl-pipeline inspect`: any subset of a work folder as an offline gallery of crops, captions and statuses.

Samples are selected on the index and, for statuses and texts, on one column of the shards whose manifests count any;
pictures are read only for the samples shown. So 1.8 million rows take seconds.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.reader import Row, RowReader
from c2vl_pipeline.stages import STAGES, failures
from c2vl_pipeline.workspace import Workspace, load

Mask = npt.NDArray[np.bool_]

NOT_OK = "not-ok"
"""Filter: every status but ok."""


@dataclass(frozen=True)
class Filters:
    """Conditions on the samples to show; all given ones must hold."""

    status: str | None = None
    """Status of any row of the sample; `captions:failed` looks at one stage; `not-ok` is every status but ok."""
    samples: tuple[str, ...] = ()
    """Ids, or patterns with * and ?."""
    label: str | None = None
    """Name of a class (any case), or its 0-based number."""
    split: str | None = None
    """`benchmark:train` or `benchmark:test`."""
    subject: int | None = None
    camera: str | None = None
    """Name of a camera in the index, or the number of a view."""
    shard: int | None = None
    text: str | None = None
    """Text that a caption contains (any case)."""

    def words(self) -> str:
        """Return the filters in one line."""
        phrases = [
            f"{name} {value if isinstance(value, str | int) else ', '.join(value)}"
            for name, value in vars(self).items()
            if value not in (None, ())
        ]
        return ", ".join(phrases) or "all samples"


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


def _unknown(what: str, value: object, known: Iterable[object]) -> ConfigError:
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(value), names, n=3)
    hint = (
        f"did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"known: {', '.join(names[:20])}{', …' if len(names) > 20 else ''}"
    )
    return ConfigError(f"unknown {what} {str(value)!r}; {hint}")


def select(index: Workspace, filters: Filters, reader: RowReader | None = None) -> npt.NDArray[np.int64]:
    """Return the numbers of the samples that pass all filters, in the order of the index.

    Raises:
        ConfigError: a filter names something that this work folder lacks; similar names are given.
    """
    reader = reader or RowReader(index)
    table = index.table
    mask = np.ones(table.num_rows, bool)
    if filters.samples:
        mask &= _ids(table["sample_id"].to_pylist(), filters.samples)
    if filters.label is not None:
        mask &= _bools(pc.equal(table["label"], _label(index, filters.label)))
    if filters.subject is not None:
        mask &= _bools(pc.equal(table["subject"], filters.subject))
    if filters.camera is not None:
        mask &= _camera(table, filters.camera)
    if filters.split is not None:
        mask &= _split(table, filters.split)
    if filters.shard is not None:
        if not 0 <= filters.shard < len(index.shard_ranges):
            raise _unknown("shard", filters.shard, [f"0 to {len(index.shard_ranges) - 1}"])
        start, stop = index.shard_ranges[filters.shard]
        mask[:start] = mask[stop:] = False
    if filters.status is not None:
        mask &= _status(index, reader, filters.status, mask)
    if filters.text is not None:
        mask &= _text(index, reader, filters.text, mask)
    return np.flatnonzero(mask)


def _bools(values: Any) -> Mask:
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False), bool)


def _ids(ids: list[str], wanted: tuple[str, ...]) -> Mask:
    patterns = [w for w in wanted if any(c in w for c in "*?[")]
    exact = set(wanted) - set(patterns)
    if strangers := exact - set(ids):
        raise unknown_sample(min(strangers), ids)
    return np.array([i in exact or any(fnmatchcase(i, p) for p in patterns) for i in ids], bool)


def unknown_sample(sample_id: str, ids: list[str]) -> ConfigError:
    """Return the error for an id that is not in the index, with similar ids."""
    # difflib compares every pair of letters: give it only the ids that share most positions
    letters = np.array(ids, dtype=np.str_)
    width = max(letters.dtype.itemsize // 4, len(sample_id), 1)
    grid = letters.astype(f"U{width}").view(np.uint32).reshape(len(ids), width)
    own = np.array([sample_id], f"U{width}").view(np.uint32)
    likely = np.argsort(-((grid == own) & (own != 0)).sum(axis=1), kind="stable")[:300]
    near = difflib.get_close_matches(sample_id, [ids[i] for i in likely], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"ids look like {ids[0]}"
    return ConfigError(f"no sample {sample_id!r} in this work folder; {hint}")


def _label(index: Workspace, label: str) -> int:
    if label.isdigit() and int(label) < len(index.classes):
        return int(label)
    names = [name.casefold() for name in index.classes]
    if label.casefold() not in names:
        raise _unknown("class", label, index.classes)
    return names.index(label.casefold())


def _camera(table: pa.Table, camera: str) -> Mask:
    mask = _bools(pc.equal(table["camera"], camera))
    if camera.isdigit():
        mask |= _bools(pc.equal(table["view"], int(camera)))
    if not mask.any():
        raise _unknown("camera", camera, pc.unique(table["camera"]).to_pylist())
    return mask


def _split(table: pa.Table, split: str) -> Mask:
    benchmark, _, side = split.partition(":")
    known = sorted({f"{b}:{s}" for pairs in table["splits"].to_pylist() for b, s in pairs})
    if split not in known:
        raise _unknown("split", split, known)
    return _bools(pc.equal(pc.map_lookup(table["splits"], benchmark, "first"), side))


def _status(index: Workspace, reader: RowReader, status: str, among: Mask) -> Mask:
    stage, _, name = status.rpartition(":")
    known = [*map(str, Status), NOT_OK]
    if name not in known:
        raise _unknown("status", name, known)
    if stage and stage not in STAGES:
        raise _unknown("stage", stage, STAGES)
    wanted = [s for s in map(str, Status) if s == name or (name == NOT_OK and s != Status.OK)]
    mask = np.zeros(len(among), bool)
    for each in [stage] if stage else STAGES:
        for shard, manifest in reader.shards(each):
            start, stop = index.shard_ranges[shard]
            if not any(manifest.statuses.get(s) for s in wanted) or not among[start:stop].any():
                continue
            table = reader.columns(each, shard, ["status"])
            if table is not None:
                rows = _bools(pc.is_in(table["status"], pa.array(wanted)))
                mask[start:stop] |= reader.by_sample(shard, rows)
    return mask


def _text(index: Workspace, reader: RowReader, text: str, among: Mask) -> Mask:
    mask = np.zeros(len(among), bool)
    for shard, _ in reader.shards("captions"):
        start, stop = index.shard_ranges[shard]
        if not among[start:stop].any():
            continue
        table = reader.columns("captions", shard, ["caption"])
        if table is not None:
            column = table["caption"].combine_chunks().dictionary_encode()
            held = _bools(pc.match_substring(column.dictionary, text, ignore_case=True))
            rows = _bools(pc.take(pa.array(held), column.indices))
            mask[start:stop] |= reader.by_sample(shard, rows)
    return mask


# --------------------------------------------------------------------------------------------- gallery


def gallery(
    work: Path,
    out: Path,
    filters: Filters = Filters(),
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
        limit: show at most `limit` samples, the first ones.
        seed: show random samples instead.
        tell: receives the result before the page is written.

    Raises:
        StageError: there is no index.
        ConfigError: a filter names something that this work folder lacks.
    """
    index = load(work)
    reader = RowReader(index)
    matched = select(index, filters, reader)
    chosen = matched[:limit]
    if seed is not None and len(matched) > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(matched, limit, replace=False))
    numbers = [int(n) for n in chosen]
    stored = {
        "crops": reader.rows("crops", numbers),
        "captions": reader.rows("captions", numbers),
        "embeddings": reader.rows("embeddings", numbers, ["slot", "tokens", "truncated", "language_status"]),
        "skeletons": reader.rows("skeletons", numbers, ["status", "error", "frames", "frames_in_file", "bodies"]),
    }
    samples = index.table.take(pa.array(numbers, pa.int64())).to_pylist()
    cards = [
        _card(index, reader, sample, {stage: rows.get(n, []) for stage, rows in stored.items()}, n)
        for n, sample in zip(numbers, samples, strict=True)
    ]
    reasons = [
        f"{count:,} rows of {name} {status}: {text}"
        for name, stage in STAGES.items()
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
        matched=len(matched),
        seed=seed if len(matched) > limit else None,
        cards=cards,
        notes=reader.notes,
        stages=stages,
        slot_spans=html.spans,
    )
    return made


def _stages(reader: RowReader) -> list[dict[str, Any]]:
    """Return the counts of statuses of every stage, from the manifests of its shards."""
    counted = {s: sum((Counter(m.statuses) for _, m in reader.shards(s)), Counter[str]()) for s in STAGES}
    return [{"name": s, "rows": n.total(), "statuses": n} for s, n in counted.items() if n]


def class_name(index: Workspace, label: int) -> str:
    """Return the name of a class, empty if unknown."""
    return index.classes[label] if 0 <= label < len(index.classes) else ""


def _card(index: Workspace, reader: RowReader, sample: Row, rows: dict[str, list[Row]], number: int) -> dict[str, Any]:
    crops = []
    for row in rows["crops"]:
        image = html.thumbnail(row["jpeg"])
        shown = {k: row[k] for k in ("slot", "frame_index", "score", "people", "error")}
        status = row["status"] if image or row["status"] != Status.OK else "unreadable"
        crops.append({**shown, "image": image, "status": status, "ok": status == Status.OK})
    framed = [row for row in rows["crops"] if row["box"] and row["frame_width"]]
    skeleton = rows["skeletons"][0] if rows["skeletons"] else None
    return {
        "sample": sample,
        "name": class_name(index, sample["label"]),
        "shard": reader.shard_of(number),
        "crops": crops,
        "failures": _grouped([(c["slot"], (c["status"], c["error"] or "")) for c in crops if not c["ok"]]),
        "captions": _captions(rows["captions"], rows["embeddings"]),
        "skeleton": skeleton,
        "frame": (framed[0]["frame_width"], framed[0]["frame_height"]) if framed else None,
        "boxes": [row["box"] for row in framed],
    }


def _grouped(slots: list[tuple[int, tuple[Any, ...]]]) -> list[tuple[list[int], tuple[Any, ...]]]:
    """Group slots with equal values, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for slot, what in slots:
        groups.setdefault(what, []).append(slot)
    return [(same, what) for what, same in groups.items()]


def _captions(rows: list[Row], embedded: list[Row]) -> list[dict[str, Any]]:
    """Return each different caption of a sample once, with its slots."""
    texts = {row["slot"]: row for row in embedded}
    captions = []
    for row in rows:
        text = texts.get(row["slot"], {})
        what = (row["caption"] or "", row["status"], row["error"] or "")
        captions.append((row["slot"], (*what, text.get("tokens"), bool(text.get("truncated")))))
    names = ("text", "status", "error", "tokens", "truncated")
    return [{"slots": slots, **dict(zip(names, what, strict=True))} for slots, what in _grouped(captions)]
