"""Search the clips of a dataset by any text, and write the nearest as a page. Beyond the paper."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import caption_words
from c2vl_evaluation.language.shared_space import cosines, open_space
from c2vl_evaluation.metrics import class_name
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.motion import Body, moving
from c2vl_manifests.pages import render
from c2vl_manifests.schema import misfit
from c2vl_manifests.tables import read_rows
from c2vl_training.dataset import PackedDataset


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


def frame_rate(packed: PackedDataset) -> float:
    """Return the frames per second of the recordings; 30 where the dataset's description is not here or has none."""
    try:
        return load_dataset(packed.manifest.dataset).fps or 30
    except C2VLError:
        return 30


def moving_clip(packed: PackedDataset, row: int) -> tuple[list[Body], float]:
    """Return the people of a packed clip as moving drawings, and the seconds that it takes."""
    joints = np.asarray(packed.joints[packed.offsets[row] : packed.offsets[row + 1]]).transpose(0, 2, 3, 1)
    return moving(joints, packed.layout), max(len(joints) / frame_rate(packed), 0.5)


def write_page(result: SearchResult, context: EvalContext, out: Path) -> Path:
    """Write a search result as one HTML file with small animations, which needs no network and no script.

    The page shows the captions of each clip if the work folder around the packed data still has them.
    """
    packed = context.packed
    captions = _captions(packed.folder.parent / "captions", [hit.sample_id for hit in result.hits])
    cards = []
    for hit in result.hits:
        bodies, seconds = moving_clip(packed, hit.row)
        own = captions.get(hit.sample_id, [])
        cards.append({"hit": hit, "captions": own, "bodies": bodies, "seconds": seconds})
    page = render(
        "c2vl_evaluation.language", "search.html.j2", result=result, cards=cards, manifest=packed.manifest,
        benchmark=context.benchmark, run=context.run.resolve().name, fps=frame_rate(packed),
    )  # fmt: skip
    commit_text(out, page)
    return out


def _captions(folder: Path, ids: list[str], count: int = 2) -> dict[str, list[str]]:
    """Return the most frequent captions of some samples; unreadable shards are skipped."""
    captions: dict[str, Counter[str]] = {}
    columns = ["sample_id", "caption"]
    for path in sorted(folder.glob("shard-*.parquet")):
        try:
            rows = read_rows(path, ids, columns)
        except (OSError, pa.ArrowException, KeyError):
            continue
        if misfit(rows, columns):
            continue
        for row in rows.to_pylist():
            if row["caption"]:
                captions.setdefault(row["sample_id"], Counter())[row["caption"]] += 1
    return {key: [text for text, _ in counts.most_common(count)] for key, counts in captions.items()}
