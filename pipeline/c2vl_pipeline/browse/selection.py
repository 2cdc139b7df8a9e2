"""Which samples of a work folder a gallery shows: filters, a slice spread over all kinds, errors that say what there is.

Samples are selected on the index and, for statuses and texts, on one column of the shards whose manifests count any: so
1.8 million rows take seconds.
"""

from __future__ import annotations

import difflib
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse.caption_stats import words
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.workspace import Workspace

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]

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

    def given(self) -> list[tuple[str, str, tuple[object, ...]]]:
        """Return field, option of `inspect` and values of every filter that is given."""
        options = {"label": "class", "samples": "sample"}
        return [
            (name, options.get(name, name), value if isinstance(value, tuple) else (value,))
            for name, value in vars(self).items()
            if value not in (None, ())
        ]

    def each(self) -> dict[str, Filters]:
        """Return every given filter alone, by its words: option and value."""
        return {
            f"{option} {', '.join(map(str, values))}": Filters(**{name: getattr(self, name)})
            for name, option, values in self.given()
        }

    def options(self) -> list[str]:
        """Return the words of a command that give these filters to `inspect`."""
        return [word for _, option, values in self.given() for one in values for word in (f"--{option}", str(one))]

    def words(self) -> str:
        """Return the filters in one line; empty if there are none."""
        return ", ".join(self.each())


def _unknown(what: str, value: object, known: Iterable[object]) -> ConfigError:
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(value), names, n=3)
    hint = (
        f"did you mean {' or '.join(repr(n) for n in near)}?"
        if near
        else f"known: {', '.join(names[:20]) or 'none'}{', …' if len(names) > 20 else ''}"
    )
    return ConfigError(f"unknown {what} {str(value)!r}; {hint}")


def select(index: Workspace, filters: Filters, reader: RowReader | None = None) -> Numbers:
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


ALL = Filters()


def nothing(index: Workspace, filters: Filters, reader: RowReader) -> ConfigError:
    """Return the error for filters that no sample passes: what each gives alone, what captions say, what was not read."""
    alone = filters.each()
    text, captions = f"no sample matches {filters.words()}", []
    if len(alone) > 1:
        text += f"; alone, {', '.join(f'{name} gives {len(select(index, f, reader)):,}' for name, f in alone.items())}"
    near: list[str] = []
    if filters.text is not None and not len(select(index, Filters(text=filters.text), reader)):
        known = frequent(_captions(reader))
        near = [w for word in words(filters.text) for w in difflib.get_close_matches(word, known, n=2)]
        captions = [f"Captions say {', '.join(known[:12])}."] if known else []
    text += f"; did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?" if near else "."
    return ConfigError(" ".join([text, *captions, *reader.notes]))


def _captions(reader: RowReader, enough: int = 100_000) -> Iterator[str]:
    """Yield `enough` captions, or all."""
    for shard, _ in reader.shards("captions"):
        table = reader.columns("captions", shard, ["caption"])
        yield from table["caption"].drop_null().to_pylist() if table else ()
        enough -= table.num_rows if table else 0
        if enough <= 0:
            return


def frequent(captions: Iterable[str]) -> list[str]:
    """Return the words of four and more letters, those of most captions first."""
    counts = Counter[str]()
    for caption, times in Counter(captions).items():
        counts.update(dict.fromkeys((w for w in words(caption) if len(w) > 3), times))
    return [word for word, _ in counts.most_common()]


def spread(table: pa.Table, matched: Numbers, limit: int) -> Numbers:
    """Choose `limit` samples, classes in turn, each time the one whose subject and camera were chosen least."""
    if len(matched) <= limit:
        return matched
    rows = table.take(pa.array(matched))
    label, subject, camera = (
        pc.rank(rows[name], tiebreaker="dense").to_numpy() - 1 for name in ("label", "subject", "camera")
    )
    subjects, cameras = np.zeros(subject.max() + 1, int), np.zeros(camera.max() + 1, int)
    classes = np.linspace(0, label.max(), min(limit, label.max() + 1)).round()
    turns = deque(np.flatnonzero(label == c) for c in classes)
    chosen: list[int] = []
    while len(chosen) < limit and turns:
        own = turns.popleft()
        at = np.argmin(subjects[subject[own]] + cameras[camera[own]])
        chosen.append(one := own[at])
        subjects[subject[one]] += 1
        cameras[camera[one]] += 1
        if len(own) > 1:
            turns.append(np.delete(own, at))
    return np.sort(matched[chosen])


ORDERS = {"captions": "worst captions first", "score": "lowest score first"}
"""Orders in which a gallery may show samples, by name."""


def worst_first(index: Workspace, reader: RowReader, matched: Numbers, order: str) -> Numbers:
    """Return samples in one of `ORDERS`: by captions missing, cut or repeated, or by the lowest score of their crops.

    Raises:
        ConfigError: an unknown order.
    """
    if order not in ORDERS:
        raise _unknown("order", order, ORDERS)
    stage, columns = ("captions", ["status", "caption"]) if order == "captions" else ("crops", ["score"])
    fault = np.full(index.table.num_rows, -np.inf)
    shards = {reader.shard_of(int(n)) for n in matched}
    for shard, _ in reader.shards(stage):
        table = reader.columns(stage, shard, columns) if shard in shards else None
        if table is None:
            continue
        start, stop = index.shard_ranges[shard]
        if order == "score":
            scores = pc.fill_null(table["score"], np.inf).to_numpy().reshape(stop - start, -1)
            fault[start:stop] = -scores.min(axis=1)
            continue
        said = pc.if_else(pc.equal(table["status"], str(Status.OK)), table["caption"], None)
        codes = (
            pc.fill_null(said.combine_chunks().dictionary_encode().indices, -1).to_numpy(zero_copy_only=False).copy()
        )
        cut = reader.columns("embeddings", shard, ["truncated"]) if reader.path("embeddings", shard).is_file() else None
        if cut is not None and cut.num_rows == len(codes):
            codes[_bools(cut["truncated"])] = -1
        codes = np.sort(codes.reshape(stop - start, -1), axis=1)
        different = (codes >= 0) & (np.diff(codes, axis=1, prepend=-2) != 0)
        fault[start:stop] = (~different).sum(axis=1)
    return matched[np.argsort(-fault[matched], kind="stable")]


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
