"""Search the clips of a dataset by any text, and write the nearest as a page. Beyond the paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2vl_evaluation.clips import clip_cards, frame_rate
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import caption_words
from c2vl_evaluation.language.shared_space import cosines, open_space
from c2vl_evaluation.metrics import class_name
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.pages import render


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


def write_page(result: SearchResult, context: EvalContext, out: Path) -> Path:
    """Write a search result as one HTML file that needs no network: a card for each clip."""
    packed = context.packed
    page = render(
        "c2vl_evaluation.language", "search.html.j2", result=result, manifest=packed.manifest,
        cards=clip_cards(packed, [hit.row for hit in result.hits]), benchmark=context.benchmark,
        run=context.run.resolve().name, fps=frame_rate(packed),
    )  # fmt: skip
    commit_text(out, page)
    return out
