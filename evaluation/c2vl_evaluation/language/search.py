"""Search the clips of a dataset by any text, and write the nearest as a page. Beyond the paper."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import caption_words
from c2vl_evaluation.language.shared_space import cosines, open_space
from c2vl_evaluation.metrics import class_name
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import render

KEYS = 24
"""Poses of an animation; joints move on straight lines between them."""
_SIDE = 4
"""Units of the drawing per unit of `html.poses`, so that coordinates are whole numbers."""


@dataclass(frozen=True)
class Hit:
    """A clip near to the text."""

    sample_id: str
    name: str
    """Name of its class; empty if it has no label."""
    cosine: float
    row: int
    """Row of the packed data."""


@dataclass(frozen=True)
class SearchResult:
    """The clips nearest to a text, the nearest first."""

    text: str
    split: str
    hits: list[Hit]
    clips: int
    """Number of clips in the split."""
    mean: float
    """Mean cosine of all clips of the split."""
    std: float
    notes: list[str]


def search(
    context: EvalContext, text: str, top: int = 12, split: str = "test", encoder: Path | None = None
) -> SearchResult:
    """Find the clips of a split nearest to a text; of equally near clips, the first in the data.

    Args:
        context: a finished pre-training, and the data to search.
        text: text to search for.
        top: number of clips.
        split: `train` or `test`.
        encoder: folder of the text encoder's checkpoint, if it was moved.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: texts cannot be compared with its clips, or the split is unknown.
        DataError: an empty text or split.
        EngineError: the text encoder cannot be loaded.
    """
    if split not in {"train", "test"}:
        raise ConfigError(f"--split {split!r} is unknown; expected train or test")
    if not text.strip():
        raise DataError("the text is empty; give a text to search for, e.g. 'a person waving'")
    shared, packed = open_space(context, encoder), context.packed
    vectors, truncated = shared.texts([text])
    clips, rows = shared.clips(split)
    similarity = cosines(shared.project(vectors), clips)[0].numpy()
    classes, labels = packed.manifest.classes, packed.labels()[rows]
    order = np.argsort(-similarity, kind="stable")[:top]
    hits = [
        Hit(name, class_name(classes, int(labels[n])), float(similarity[n]), int(rows[n]))
        for name, n in zip(packed.sample_ids(rows[order]), order, strict=True)
    ]
    known = caption_words.vocabulary(packed.folder.parent / "captions", [text])
    words = caption_words.hint(caption_words.unknown_words([text], known), known)
    notes = [*([words] if words else []), *shared.notes()]
    if truncated:
        notes.append("The text is longer than the encoder reads; its end was ignored.")
    return SearchResult(text, split, hits, len(rows), float(similarity.mean()), float(similarity.std()), notes)


@dataclass(frozen=True)
class Body:
    """One person of a clip as SVG paths within a square of 400 units."""

    still: list[str]
    """Four poses, for print and for readers who prefer no motion."""
    poses: str
    """All poses, as the `values` of `animate`."""
    shown: str
    """1 or 0 per pose: absent bodies are hidden."""


def draw(joints: npt.NDArray[Any], layout: Layout) -> list[Body]:
    """Draw the bodies of a clip from the front at one scale, without those that are never seen. Shape: (T, M, V, C)."""
    from c2vl_pipeline.browse.html import poses

    frames = np.linspace(0, len(joints) - 1, min(len(joints), KEYS)).round().astype(int)
    drawn, bodies = poses(joints[frames], layout), []
    for body in range(joints.shape[1]):
        paths = [
            "".join(
                f"M{_SIDE * x0:.0f} {_SIDE * y0:.0f}L{_SIDE * x1:.0f} {_SIDE * y1:.0f}"
                for m, x0, y0, x1, y1 in pose.bones if m == body
            )
            for pose in drawn
        ]  # fmt: skip
        seen = [bool(path) for path in paths]
        if not any(seen):
            continue
        last = paths[seen.index(True)]
        for n, path in enumerate(paths):  # all values of an animation need the same number of lines
            last = paths[n] = path or last
        four = np.unique(np.linspace(0, len(paths) - 1, 4).round().astype(int))
        still = [paths[n] for n in four if seen[n]]
        bodies.append(Body(still, ";".join(paths), ";".join("1" if one else "0" for one in seen)))
    return bodies


def write_page(result: SearchResult, context: EvalContext, out: Path) -> Path:
    """Write a search result as one HTML file with small animations, which needs no network and no script.

    The page shows the captions of each clip if the work folder around the packed data still has them.
    """
    packed = context.packed
    try:
        fps = load_dataset(packed.manifest.dataset).fps or 30
    except C2VLError:  # a custom description that is not available here
        fps = 30
    captions = _captions(packed.folder.parent / "captions", [hit.sample_id for hit in result.hits])
    cards = []
    for hit in result.hits:
        planes = packed.joints[packed.offsets[hit.row] : packed.offsets[hit.row + 1]]
        joints = np.asarray(planes).transpose(0, 2, 3, 1)
        bodies, seconds = draw(joints, packed.layout), max(len(joints) / fps, 0.5)
        own = captions.get(hit.sample_id, [])
        cards.append({"hit": hit, "captions": own, "bodies": bodies, "seconds": seconds})
    page = render(
        "c2vl_evaluation.language", "search.html.j2", result=result, cards=cards, manifest=packed.manifest,
        benchmark=context.benchmark, run=context.run.resolve().name, fps=fps,
    )  # fmt: skip
    commit_text(out, page)
    return out


def _captions(folder: Path, ids: list[str], count: int = 2) -> dict[str, list[str]]:
    """Return the most frequent captions of some samples; unreadable shards are skipped."""
    captions: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            rows = pq.read_table(path, columns=["sample_id", "caption"], filters=[("sample_id", "in", ids)])
        except (OSError, pa.ArrowException):
            continue
        for row in rows.to_pylist():
            if row["caption"]:
                captions.setdefault(row["sample_id"], Counter())[row["caption"]] += 1
    return {key: [text for text, _ in counts.most_common(count)] for key, counts in captions.items()}
