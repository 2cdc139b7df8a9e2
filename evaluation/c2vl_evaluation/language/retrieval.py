"""Text-to-motion retrieval: each test clip is searched by its own captions among all test clips. Beyond the paper.

The query of a clip is the vector of its own captions after the projector; the gallery is all test clips.

Ranks are exact and never optimistic: a clip ranks behind all other clips of equal cosine (within 1.5e-12), so an encoder
with the same output for all clips finds nothing. Another clip with the same caption is a wrong answer; of m clips with
one caption only k can be among the first k, and this ceiling is reported next to the recall. `same_class` accepts any
clip of the query's class, again behind all other clips of equal cosine.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import BaseModel
from torch import Tensor

from c2vl_evaluation.cache import cached
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Labels
from c2vl_evaluation.language.shared_space import SharedSpace, cosines, open_space
from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe_training import PretrainConfig
from c2vl_training.knowledge import Knowledge

KS = (1, 5, 10)
PERMUTATIONS = 10
_CHUNK = 256
_TIE = 1.5e-12


class Recall(BaseModel, frozen=True, extra="forbid"):
    """Shares of queries answered among the first k; None if the gallery has no more than k clips."""

    r1: float | None
    r5: float | None
    r10: float | None
    median: float | None
    """Median rank, counted from 1."""


class RecallWithControls(BaseModel, frozen=True, extra="forbid"):
    """Recall of one question (the clip itself, or any clip of its class) with its controls."""

    last: Recall
    shuffled: Recall
    """Mean over permutations of the captions between clips."""
    shuffled_std: Recall
    chance: Recall
    """Exact expectation of a gallery in random order."""


class Retrieval(BaseModel, frozen=True, extra="forbid"):
    """Result on one run."""

    protocol: Literal["retrieval"] = "retrieval"
    through: Literal["language", "vision"]
    caption: Literal["mean", "one"]
    clip: RecallWithControls
    same_class: RecallWithControls | None
    """None if a clip has no label."""
    ceiling: Recall
    """Upper bound of `clip` for any encoder, because captions repeat."""
    queries: int
    distinct: int
    """Number of different queries."""
    gallery: int
    draws: int = PERMUTATIONS
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def evaluate(context: EvalContext, caption: Literal["mean", "one"] = "mean") -> Retrieval:
    """Evaluate a run on the test split, or return the stored result.

    Args:
        context: a finished pre-training, and the data that it is evaluated on.
        caption: `mean` of a clip's captions, pooled as the run pooled them (the mean for `random`), or `one`: the
            usable caption nearest to the middle of the clip.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: texts cannot be compared with its clips.
        DataError: no test clip has a caption.
    """
    shared = open_space(context)

    def compute() -> tuple[Retrieval, pa.Table]:
        clips, rows = shared.clips("test")
        own = np.flatnonzero(context.packed.knowledge("language")[1][rows].any(axis=1))
        if not len(own):
            raise DataError(
                f"none of the {len(rows)} test clips of {context.packed.folder} has a caption to search with"
            )
        queries, texts = _queries(shared, rows[own], caption)
        labels = context.packed.labels()[rows]
        rng = np.random.default_rng(0)
        owns = np.stack([own, *(rng.permutation(own) for _ in range(PERMUTATIONS))])
        known = labels if (labels >= 0).all() else None
        ranks, class_ranks, nearest, cosine = search_ranks(queries, clips, owns, known)
        _, repeats = np.unique(texts, axis=0, return_counts=True)
        members = np.ones(len(own), np.int64)
        recalls = [_with_controls(ranks, members, len(rows))]
        if class_ranks is not None:
            recalls.append(_with_controls(class_ranks, np.bincount(labels)[labels[own]], len(rows)))
        result = Retrieval(
            through=shared.through,
            caption=caption,
            clip=recalls[0],
            same_class=recalls[1] if len(recalls) > 1 else None,
            ceiling=ceiling(repeats, len(rows)),
            queries=len(own),
            distinct=len(repeats),
            gallery=len(rows),
            notes=tuple(shared.notes()),
        )
        ids = np.array(context.packed.sample_ids(rows), object)
        columns = {
            "sample_id": pa.array(ids[own], pa.string()),
            "label": labels[own].astype(np.int32),
            "rank": ranks[0].astype(np.int32),
            "cosine": cosine,
            "nearest": pa.array([list(ids[at]) for at in nearest], pa.list_(pa.string())),
        }
        if class_ranks is not None:
            columns["class_rank"] = class_ranks[0].astype(np.int32)
        return result, pa.table(columns)

    return cached(shared.key("retrieval", caption=caption), Retrieval, compute)


def _queries(shared: SharedSpace, rows: Labels, caption: str) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """Return the captions of rows in the shared space (n, D), and vectors (n, K) that are equal for equal captions."""
    packed, space, kind = shared.context.packed, shared.space, shared.through
    vectors, usable = packed.knowledge("language")
    values, ok = np.asarray(vectors[rows], np.float64), np.asarray(usable[rows])
    if caption == "one":
        off = np.abs(np.arange(ok.shape[1]) - (ok.shape[1] - 1) / 2)
        one = values[np.arange(len(rows)), np.where(ok, off, np.inf).argmin(axis=1)]
        return shared.project(np.asarray(one, np.float32)), one
    # the run's own centre and scale, not those of the test split, and no weights counted in it
    changes = {
        "standardise": False,
        "pooling_weights": "equal",
        "pooling": "mean" if space.pooling == "random" else space.pooling,
    }
    config = PretrainConfig.model_validate(space.facts["config"]).model_copy(update=changes)
    pooled = Knowledge(packed, rows, "language", config).epoch(torch.Generator())
    if pooled.shape[1] != space.model.projectors[kind].in_features:
        raise DataError(
            f"captions of {packed.folder} are vectors of {packed.manifest.language_dim} numbers; this run was trained on "
            "vectors of another encoder"
        )
    with torch.inference_mode():
        projected = space.model.knowledge(kind, (pooled - space.centre[kind]) / space.scale[kind])
    values = np.where(ok[..., None], values, 0)
    if space.pooling == "ordered":
        return projected, values.reshape(len(rows), -1)
    # sums of half precision are exact in double, in any order
    return projected, values.sum(axis=1) / ok.sum(axis=1, keepdims=True)


def search_ranks(
    queries: Tensor, gallery: Tensor, owns: Labels, labels: Labels | None
) -> tuple[Labels, Labels | None, Labels, npt.NDArray[np.float64]]:
    """Rank the clip that each query asks for among the gallery.

    Args:
        queries: unit vectors. Shape (Q, D).
        gallery: unit vectors. Shape (N, D).
        owns: index in the gallery of the clip that each query asks for, in P variants. Shape (P, Q).
        labels: classes of the gallery, for the ranks of the class. Shape (N,).

    Returns:
        Ranks of the clips counted from 1, and of the best clip of their classes, (P, Q) each; the ten nearest clips of
        each query, (Q, 10); and its cosine to the clip in the first row of `owns`, (Q,).

    Raises:
        DataError: a vector is NaN or infinite.
    """
    if not (queries.isfinite().all() and gallery.isfinite().all()):
        raise DataError(
            "embeddings are NaN or infinite: the encoder diverged; train it again with a lower learning rate"
        )
    asked, classes = torch.from_numpy(owns), None if labels is None else torch.from_numpy(labels)
    ranks, class_ranks = torch.zeros_like(asked), torch.zeros_like(asked)
    nearest, cosine = [], []
    for start in range(0, len(queries), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores = cosines(queries[part], gallery)
        for n, wanted in enumerate(asked[:, part]):
            truth = scores.gather(1, wanted[:, None])
            ranks[n, part] = (scores >= truth - _TIE).sum(dim=1)  # the clip itself counts as 1
            if classes is not None:
                same = classes == classes[wanted][:, None]
                best = scores.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
                class_ranks[n, part] = 1 + ((scores >= best - _TIE) & ~same).sum(dim=1)
        nearest.append(scores.argsort(dim=1, descending=True, stable=True)[:, : KS[-1]])
        cosine.append(scores.gather(1, asked[0, part, None])[:, 0])
    classed = None if classes is None else class_ranks.numpy()
    return ranks.numpy(), classed, torch.cat(nearest).numpy(), torch.cat(cosine).numpy()


def recall(ranks: Labels, gallery: int) -> Recall:
    """Return recalls and median of ranks that count from 1. Shape: (Q,)."""
    shares = [float((ranks <= k).mean()) if gallery > k else None for k in KS]
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=float(np.median(ranks)))


def chance(members: Labels, gallery: int) -> Recall:
    """Return the exact expectation for a gallery in random order; the median is of the mixed distribution.

    The best of m clips among N is among the first k unless all m are behind: 1 - C(N - m, k) / C(N, k).

    Args:
        members: number of clips that answer each query. Shape (Q,).
        gallery: number of clips, N.
    """
    kinds, counts = np.unique(members, return_counts=True)
    places, shares_within = np.arange(gallery), np.zeros(gallery)
    for m, count in zip(kinds, counts, strict=True):
        behind = np.cumprod(np.maximum(gallery - m - places, 0) / (gallery - places))
        shares_within += (1 - behind) * count / len(members)
    shares = [float(shares_within[k - 1]) if gallery > k else None for k in KS]
    median = float(1 + np.argmax(shares_within >= 0.5 - 1e-12))
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=median)


def ceiling(repeats: Labels, gallery: int) -> Recall:
    """Return the upper bound of recalls if query i occurs `repeats[i]` times, each time for a different clip."""
    total = int(repeats.sum())
    shares = [float(np.minimum(repeats, k).sum() / total) if gallery > k else None for k in KS]
    best = np.concatenate([np.arange(1, m + 1) for m in repeats])
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=float(np.median(best)))


def _with_controls(ranks: Labels, members: Labels, gallery: int) -> RecallWithControls:
    first, *drawn = (recall(of, gallery) for of in ranks)

    def reduced(reduce: Any) -> Recall:
        values = {key: [getattr(one, key) for one in drawn] for key in Recall.model_fields}
        return Recall(**{k: None if None in v else float(reduce(v)) for k, v in values.items()})

    return RecallWithControls(
        last=first, shuffled=reduced(np.mean), shuffled_std=reduced(lambda v: np.std(v, ddof=1)),
        chance=chance(members, gallery),
    )  # fmt: skip
