"""`c2vl-pipeline audit`: do the crops hold the person, what do the captions say, and how do they compare.

Three sections on one offline page, and as figures (`Audit`, JSON): crops, checked against the joints that the
dataset projects into its colour frames; captions; and the authors' released captions beside or against ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import caption_stats as wording
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.caption_stats import Agreement, ClassWording, Corpus, Wording
from c2vl_pipeline.browse.gallery import class_name
from c2vl_pipeline.browse.html import Histogram, Quantiles
from c2vl_pipeline.browse.reader import Lookup
from c2vl_pipeline.engines.precomputed import read_captions
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.workspace import Index, load

INSIDE = 0.9
"""A crop passes when it holds this share of the joints that lie in the frame."""

_WORST = 12


@dataclass(frozen=True)
class CropFigures:
    """All rows of the crops stage."""

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
    """One of the worst crops, to be drawn."""

    sample_id: str
    slot: int
    share: float
    box: list[float]
    frame: tuple[int, int]
    joints: list[tuple[float, float, bool]]
    """(x, y, inside)."""
    image: str | None


@dataclass(frozen=True)
class JointFigures:
    """Crops against the joints projected into the frame."""

    samples: int
    of: int
    """Samples that could have been looked at."""
    seed: int
    frames: int
    mean: float
    passed: float
    """Share of crops with at least `INSIDE` of the joints."""
    histogram: Histogram | None
    outside_frame: float
    """Share of joints beyond the edge of the frame, which no crop can hold: not counted."""
    unreadable: int
    derived: bool
    """The boxes were made from these joints: the check then proves the geometry, not the detector."""
    worst: list[Worst]


@dataclass(frozen=True)
class CaptionFigures:
    """All rows of the captions stage."""

    statuses: dict[str, int]
    empty: int
    wording: Wording | None
    tokens: Quantiles | None
    """As the encoder counts them, before truncation."""
    truncated: int | None
    classes: list[ClassWording]


@dataclass(frozen=True)
class ReleasedFigures:
    """The authors' captions, and how ours agree with them where both describe the same samples."""

    file: str
    wording: Wording
    common: int
    """Samples of the work folder that the file describes."""
    agreement: Agreement | None = None
    control: Agreement | None = None
    """With the samples of the released captions shuffled."""
    slots: list[Agreement] = field(default_factory=list)


@dataclass(frozen=True)
class Audit:
    """Everything the audit found; a part that could not be measured is None, `why` says why."""

    dataset: str
    samples: int
    crops: CropFigures | None
    joints: JointFigures | None
    captions: CaptionFigures | None
    released: ReleasedFigures | None
    why: dict[str, str]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without pictures."""
        found = asdict(self)
        for worst in (found["joints"] or {}).get("worst", ()):
            del worst["image"], worst["joints"]
        return found

    def summary(self) -> list[str]:
        """Say the main figures in a line each."""
        lines = []
        if self.crops:
            share = self.crops.statuses.get("ok", 0) / self.crops.rows
            checked = (
                f"; {html.percent(self.joints.passed)} % of {self.joints.frames:,} checked crops hold {100 * INSIDE:.0f} % of the joints"
                if self.joints
                else ""
            )
            lines.append(f"crops: {html.percent(share)} % of {self.crops.rows:,} rows ok{checked}")
        if self.captions and self.captions.wording:
            w = self.captions.wording
            lines.append(
                f"captions: {w.captions:,}, {html.percent(w.repeats)} % repeats, {w.vocabulary:,} different words"
            )
        if self.released:
            w, both = self.released.wording, self.released.agreement
            against = f"; F1 with ours {both.f1:.3f}" if both else ""
            lines.append(f"released: {w.captions:,}, {html.percent(w.repeats)} % repeats{against}")
        return lines


def audit(work: Path, out: Path, released: Path | None = None, *, check: int = 2000, seed: int = 0) -> Path:
    """Measure, write the page and, beside it, the figures as JSON; returns the page's path.

    Raises as `measure` does.
    """
    return write(measure(work, released, check=check, seed=seed), out)


def write(found: Audit, out: Path) -> Path:
    """Write the page and its figures (`.json` beside it)."""
    html.render("audit.html.j2", out, audit=found, inside=INSIDE)
    commit_text(out.with_suffix(".json"), json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return out


def measure(work: Path, released: Path | None = None, *, check: int = 2000, seed: int = 0) -> Audit:
    """Audit a work folder.

    Args:
        work: folder of the index and the stages; what was not run is left out, and said.
        released: a caption file as the authors released it (.json or .zip).
        check: look at the joints of at most so many samples, chosen with `seed`.
        seed: of the choice, and of the shuffled control.

    Raises:
        StageError: there is no index.
        EngineError: `released` is not a caption file.
    """
    theirs = read_captions(released) if released is not None else None
    index = load(work)
    lookup = Lookup(index)
    why: dict[str, str] = {}
    crops = _crops(lookup)
    joints = _joints(index, lookup, check, seed, why) if crops else None
    corpus, captions = _captions(index, lookup, seed)
    found = (
        _released(index, corpus, theirs, released.name, seed)
        if released is not None and theirs is not None
        else None
    )
    return Audit(
        dataset=index.dataset.title,
        samples=index.table.num_rows,
        crops=crops,
        joints=joints,
        captions=captions,
        released=found,
        why=why,
        notes=list(lookup.notes),
    )


# ---------------------------------------------------------------------------------------------- crops


def _crops(lookup: Lookup) -> CropFigures | None:
    statuses: Counter[str] = Counter()
    people: Counter[int] = Counter()
    scores, boxes, frames = [], [], []
    for shard, _ in lookup.shards("crops"):
        table = lookup.columns(
            "crops", shard, ["status", "score", "box", "people", "frame_width", "frame_height"]
        )
        if table is None:
            continue
        statuses.update(table["status"].to_pylist())
        ok = table.filter(pc.equal(table["status"], str(Status.OK)))
        people.update(ok["people"].to_pylist())
        scores.append(ok["score"].to_numpy())
        boxes.append(np.array(ok["box"].to_pylist(), np.float64).reshape(-1, 4))
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


def inside(
    joints: npt.NDArray[np.float32], box: list[float], frame: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], int]:
    """Say which joints a crop holds.

    Args:
        joints: pixels of the frame, (bodies, V, 2); NaN where unseen.
        box: (x0, y0, x1, y1), x1 and y1 exclusive.
        frame: width and height; joints beyond its edges are left out, since no crop can hold them.

    Returns:
        The joints within the frame (n, 2), which of them lie in the box (n,), and how many lay outside the frame.
    """
    points = joints.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    seen = ((points >= 0) & (points < frame)).all(axis=1)
    kept = points[seen]
    held = np.asarray((kept >= box[:2]).all(axis=1) & (kept < box[2:]).all(axis=1), np.bool_)
    return kept, held, int((~seen).sum())


def _joints(index: Index, lookup: Lookup, check: int, seed: int, why: dict[str, str]) -> JointFigures | None:
    """Compare crops with the joints the raw skeleton files project into the colour frames."""
    project = reader_of(index.dataset).project
    if project is None:
        why["joints"] = (
            f"{index.dataset.title} records no joints in pixels of its videos, so its crops cannot be checked against them."
        )
        return None
    there = np.flatnonzero(
        np.asarray(pc.and_(pc.is_valid(index.table["skeleton"]), pc.is_valid(index.table["video"])))
    )
    chosen = there
    if len(there) > check:
        chosen = np.sort(np.random.default_rng(seed).choice(there, check, replace=False))
    columns = ["slot", "status", "frame_index", "box", "frame_width", "frame_height"]
    rows = lookup.rows("crops", [int(n) for n in chosen], columns)
    shares: list[float] = []
    worst: list[tuple[float, int, Worst]] = []
    unreadable = beyond = counted = looked = 0
    for number, crops in rows.items():
        try:
            joints_of = project(index.root / index.table["skeleton"][number].as_py())
        except (DataError, OSError):
            unreadable += 1
            continue
        looked += 1
        found: list[Worst] = []
        for row in crops:
            joints = joints_of(row["frame_index"]) if row["status"] == Status.OK else None
            if joints is None:
                continue
            frame = (row["frame_width"], row["frame_height"])
            points, held, outside = inside(joints, row["box"], frame)
            beyond, counted = beyond + outside, counted + len(points)
            if not len(points):
                continue
            drawn = [(float(x), float(y), bool(h)) for (x, y), h in zip(points.round(1), held, strict=True)]
            found.append(
                Worst(row["sample_id"], row["slot"], float(held.mean()), row["box"], frame, drawn, None)
            )
        shares += [w.share for w in found]
        if found and (lowest := min(found, key=lambda w: w.share)).share < 1:
            worst = sorted([*worst, (lowest.share, number, lowest)], key=lambda w: w[:2])[:_WORST]
    if not shares:
        why["joints"] = "No crop has joints in pixels to be checked against."
        return None
    return JointFigures(
        samples=looked,
        of=len(there),
        seed=seed,
        frames=len(shares),
        mean=float(np.mean(shares)),
        passed=float(np.mean(np.array(shares) >= INSIDE)),
        histogram=Histogram.of(shares, 20, (0, 1)),
        outside_frame=beyond / max(beyond + counted, 1),
        unreadable=unreadable,
        derived=_from_joints(lookup),
        worst=list(_pictures(lookup, worst)),
    )


def _from_joints(lookup: Lookup) -> bool:
    return any(
        manifest.extra.get("provenance", {}).get("derived_from") == "joints"
        for _, manifest in lookup.shards("crops")
    )


def _pictures(lookup: Lookup, worst: list[tuple[float, int, Worst]]) -> Iterator[Worst]:
    rows = lookup.rows("crops", [number for _, number, _ in worst], ["slot", "jpeg"])
    for _, number, entry in worst:
        jpeg = next((r["jpeg"] for r in rows.get(number, []) if r["slot"] == entry.slot), None)
        yield Worst(**{**vars(entry), "image": html.thumbnail(jpeg)})


# ------------------------------------------------------------------------------------------- captions


def _captions(index: Index, lookup: Lookup, seed: int) -> tuple[Corpus | None, CaptionFigures | None]:
    statuses: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    blocks: dict[int, wording.Codes] = {}
    empty = 0
    for shard, manifest in lookup.shards("captions"):
        table = lookup.columns("captions", shard, ["status", "caption"], read_dictionary=["caption"])
        if table is None:
            continue
        statuses.update(table["status"].to_pylist())
        if set(manifest.statuses) - {str(Status.OK)}:
            classes = lookup.columns("captions", shard, ["error_class"])
            empty += classes["error_class"].to_pylist().count("empty") if classes is not None else 0
        column = table["caption"].unify_dictionaries().combine_chunks()
        own = [numbers.setdefault(t, len(numbers)) for t in column.dictionary.to_pylist()]
        indices = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        start, stop = index.plan[shard]
        blocks[shard] = np.array([*own, -1], np.int32)[indices].reshape(stop - start, -1)
    if not blocks:
        return None, None
    slots = max(b.shape[1] for b in blocks.values())
    codes = np.full((index.table.num_rows, slots), -1, np.int32)
    for shard, block in blocks.items():
        start, stop = index.plan[shard]
        codes[start:stop, : block.shape[1]] = block
    corpus = Corpus(list(numbers), codes)
    tokens, truncated = _tokens(lookup)
    labels = index.table["label"].to_numpy()
    names = {i: class_name(index, i) for i in range(len(index.classes))}
    return corpus, CaptionFigures(
        statuses=dict(statuses.most_common()),
        empty=empty,
        wording=wording.describe(corpus, seed=seed),
        tokens=tokens,
        truncated=truncated,
        classes=wording.by_class(corpus, labels, names),
    )


def _tokens(lookup: Lookup) -> tuple[Quantiles | None, int | None]:
    """Token counts of the encoded captions, and how many it cut."""
    tokens, truncated = [], 0
    for shard, _ in lookup.shards("embeddings"):
        table = lookup.columns("embeddings", shard, ["tokens", "truncated"])
        if table is not None:
            tokens.append(table["tokens"].drop_null().to_numpy())
            truncated += int(pc.sum(table["truncated"]).as_py() or 0)
    return (Quantiles.of(np.concatenate(tokens)), truncated) if tokens else (None, None)


# ------------------------------------------------------------------------------------------- released


def _released(
    index: Index, corpus: Corpus | None, theirs: dict[str, list[str]], name: str, seed: int
) -> ReleasedFigures | None:
    whole = wording.describe(Corpus.of(list(theirs.values())), seed=seed)
    assert whole is not None  # the reader refuses an empty file
    ids = index.table["sample_id"].to_pylist()
    common = [n for n, sample_id in enumerate(ids) if sample_id in theirs]
    if corpus is None or not common:
        return ReleasedFigures(name, whole, len(common))
    ours = Corpus(corpus.texts, corpus.codes[common])
    other = Corpus.of([theirs[ids[n]] for n in common])
    slots = min(ours.codes.shape[1], other.codes.shape[1])
    each = [
        wording.agreement(Corpus(ours.texts, ours.codes[:, [s]]), Corpus(other.texts, other.codes[:, [s]]))
        for s in range(slots)
    ]
    return ReleasedFigures(
        name,
        whole,
        len(common),
        agreement=wording.agreement(ours, other),
        control=wording.agreement(ours, wording.shuffled(other, seed)) if len(common) > 1 else None,
        slots=[a for a in each if a is not None],
    )
