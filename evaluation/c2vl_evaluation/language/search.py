"""Search the clips of a dataset by any text, and draw what was found as a page. Beyond the paper."""

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
from c2vl_evaluation.language.shared_space import cosines, enter
from c2vl_evaluation.metrics import class_name
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import render

KEYS = 24
"""Poses of an animation; between them joints move on straight lines."""
_SIDE = 4
"""Units of the drawing in one of `html.poses`, so that coordinates are whole numbers."""


@dataclass(frozen=True)
class Hit:
    """A clip that was found."""

    sample_id: str
    name: str
    """Of its class; empty where it has no label."""
    cosine: float
    row: int
    """Of the packed data."""


@dataclass(frozen=True)
class Found:
    """The nearest clips of a text, the nearest first."""

    text: str
    split: str
    hits: list[Hit]
    clips: int
    mean: float  # of the cosines of all clips of the split
    std: float
    notes: list[str]


def search(
    subject: EvalContext, text: str, top: int = 12, split: str = "test", encoder: Path | None = None
) -> Found:
    """Find the clips of a split that lie nearest to a text; of equally near ones the first in the data.

    Args:
        subject: a finished pre-training, and the data to search.
        text: what to look for.
        top: how many.
        split: `train` or `test`.
        encoder: folder of the text encoder's checkpoint, if it was moved.

    Raises:
        CheckpointError: the run is no finished pre-training.
        ConfigError: it cannot be asked by texts, or there is no such split.
        DataError: an empty text or split.
        EngineError: the text encoder is not to be had.
    """
    if split not in {"train", "test"}:
        raise ConfigError(f"--split {split!r} is none of train, test")
    if not text.strip():
        raise DataError("the text is empty; say what to look for, e.g. 'a person waving'")
    shared, packed = enter(subject, encoder), subject.packed
    vectors, cut = shared.texts([text])
    clips, rows = shared.clips(split)
    likeness = cosines(shared.project(vectors), clips)[0].numpy()
    classes, labels = packed.manifest.classes, packed.labels()[rows]
    order = np.argsort(-likeness, kind="stable")[:top]
    hits = [
        Hit(name, class_name(classes, int(labels[n])), float(likeness[n]), int(rows[n]))
        for name, n in zip(packed.sample_ids(rows[order]), order, strict=True)
    ]
    notes = shared.notes() + (
        ["The text is longer than the encoder reads; its end was left out."] if cut else []
    )
    return Found(text, split, hits, len(rows), float(likeness.mean()), float(likeness.std()), notes)


@dataclass(frozen=True)
class Body:
    """One person of a clip as SVG paths within a square of 400 units."""

    still: list[str]
    """Four poses, for readers who want no motion and for paper."""
    poses: str
    """All poses, as `animate` wants its values."""
    shown: str
    """1 or 0 a pose: absent bodies are hidden."""


def drawing(joints: npt.NDArray[Any], bones: tuple[tuple[int, int], ...]) -> list[Body]:
    """Draw a clip from the front at one scale. Shape: (T, M, V, C); bodies that are never seen are left out."""
    from c2vl_pipeline.browse.html import poses

    at = np.linspace(0, len(joints) - 1, min(len(joints), KEYS)).round().astype(int)
    laid, found = poses(joints[at], bones), []
    for body in range(joints.shape[1]):
        paths = [
            "".join(f"M{_SIDE * x0:.0f} {_SIDE * y0:.0f}L{_SIDE * x1:.0f} {_SIDE * y1:.0f}" for m, x0, y0, x1, y1 in pose.bones if m == body)
            for pose in laid
        ]  # fmt: skip
        there = [bool(path) for path in paths]
        if not any(there):
            continue
        held = paths[there.index(True)]
        for n, path in enumerate(paths):  # every pose needs as many lines as the others
            held = paths[n] = path or held
        still = [
            paths[n] for n in np.unique(np.linspace(0, len(paths) - 1, 4).round().astype(int)) if there[n]
        ]
        found.append(Body(still, ";".join(paths), ";".join("1" if seen else "0" for seen in there)))
    return found


def page(found: Found, subject: EvalContext, out: Path) -> Path:
    """Write what was found as one HTML file with small animations, which needs no network and no script.

    Captions stand below a clip where the work folder around the packed data still holds them.
    """
    packed = subject.packed
    try:
        fps = load_dataset(packed.manifest.dataset).fps or 30
    except C2VLError:  # a description of one's own that is not here
        fps = 30
    said = _captions(packed.folder.parent / "captions", [hit.sample_id for hit in found.hits])
    cards = []
    for hit in found.hits:
        planes = packed.joints[packed.offsets[hit.row] : packed.offsets[hit.row + 1]]
        joints = np.asarray(planes).transpose(0, 2, 3, 1)
        drawn = {"bodies": drawing(joints, packed.layout.bones), "seconds": max(len(joints) / fps, 0.5)}
        cards.append({"hit": hit, "captions": said.get(hit.sample_id, []), **drawn})
    told: dict[str, Any] = {"benchmark": subject.benchmark, "run": subject.run.resolve().name, "fps": fps}
    told |= {"found": found, "cards": cards, "manifest": packed.manifest}
    commit_text(out, render("c2vl_evaluation.language", "search.html.j2", **told))
    return out


def _captions(folder: Path, ids: list[str], count: int = 2) -> dict[str, list[str]]:
    """Return the most frequent captions of some samples, as far as they can be read."""
    said: dict[str, Counter[str]] = {}
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            rows = pq.read_table(path, columns=["sample_id", "caption"], filters=[("sample_id", "in", ids)])
        except (OSError, pa.ArrowException):
            continue
        for row in rows.to_pylist():
            if row["caption"]:
                said.setdefault(row["sample_id"], Counter())[row["caption"]] += 1
    return {key: [text for text, _ in counted.most_common(count)] for key, counted in said.items()}
