"""Text-to-motion retrieval as a protocol: every test clip searched by its own captions among all test clips.

Beyond the paper. The query of a clip is its own captions' vector through the projector, the gallery all test clips.

Ranks are exact and never optimistic: a clip stands behind every other clip of equal cosine (within 1.5e-12), so that an
encoder that says the same of all clips finds nothing. A clip whose caption equals the query's is a wrong answer unless
it is the clip itself; of m clips with one caption only k can be among its first k, and that ceiling stands beside the
recall. `same class` asks for any clip of the query's class, the best of which stands behind all others as near.
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
from c2vl_evaluation.language.shared_space import Shared, cosines, enter
from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import PretrainConfig
from c2vl_training.knowledge import Knowledge

KS = (1, 5, 10)
PERMUTATIONS = 10
_CHUNK = 256
_TIE = 1.5e-12


class Recall(BaseModel, frozen=True, extra="forbid"):
    """Shares of queries that found what they asked for among the first k; None where the gallery has no more than k."""

    r1: float | None
    r5: float | None
    r10: float | None
    median: float | None
    """Median rank, from 1."""


class Side(BaseModel, frozen=True, extra="forbid"):
    """One question (the clip itself, or any clip of its class) with what it is worth."""

    last: Recall
    shuffled: Recall
    """Mean over permutations of the captions between clips."""
    shuffled_std: Recall
    chance: Recall
    """Of galleries in random order, exactly."""


class Retrieval(BaseModel, frozen=True, extra="forbid"):
    """What was found on one run."""

    protocol: Literal["retrieval"] = "retrieval"
    through: Literal["language", "vision"]
    caption: Literal["mean", "one"]
    clip: Side
    same_class: Side | None
    """None where a clip has no label."""
    ceiling: Recall
    """What no encoder can exceed in `clip`, as captions repeat."""
    queries: int
    distinct: int
    """Different queries among them."""
    gallery: int
    draws: int = PERMUTATIONS
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def outcome(subject: EvalContext, caption: Literal["mean", "one"] = "mean") -> Retrieval:
    """Run the protocol on the test split, or read what it found before.

    Args:
        subject: a finished pre-training, and what it is evaluated on.
        caption: `mean` of a clip's captions, pooled as the run pooled them (`random` asks with the mean), or `one`, the
            usable caption nearest to the middle of the clip.

    Raises:
        CheckpointError: the run is no finished pre-training.
        ConfigError: it cannot be asked by texts.
        DataError: no test clip has a caption.
    """
    shared = enter(subject)

    def compute() -> tuple[Retrieval, pa.Table]:
        clips, rows = shared.clips("test")
        own = np.flatnonzero(subject.packed.knowledge("language")[1][rows].any(axis=1))
        if not len(own):
            raise DataError(
                f"none of the {len(rows)} test clips of {subject.packed.folder} has a caption to search with"
            )
        asked, said = _queries(shared, rows[own], caption)
        labels = subject.packed.labels()[rows]
        rng = np.random.default_rng(0)
        owns = np.stack([own, *(rng.permutation(own) for _ in range(PERMUTATIONS))])
        known = labels if (labels >= 0).all() else None
        ranks, class_ranks, nearest, cosine = search_ranks(asked, clips, owns, known)
        _, repeats = np.unique(said, axis=0, return_counts=True)
        members = np.ones(len(own), np.int64)
        sides = [_side(ranks, members, len(rows))]
        if class_ranks is not None:
            sides.append(_side(class_ranks, np.bincount(labels)[labels[own]], len(rows)))
        finding = Retrieval(
            through=shared.through,
            caption=caption,
            clip=sides[0],
            same_class=sides[1] if len(sides) > 1 else None,
            ceiling=ceiling(repeats, len(rows)),
            queries=len(own),
            distinct=len(repeats),
            gallery=len(rows),
            notes=tuple(shared.notes()),
        )
        ids = np.array(subject.packed.sample_ids(rows), object)
        columns = {
            "sample_id": pa.array(ids[own], pa.string()),
            "label": labels[own].astype(np.int32),
            "rank": ranks[0].astype(np.int32),
            "cosine": cosine,
            "nearest": pa.array([list(ids[at]) for at in nearest], pa.list_(pa.string())),
        }
        if class_ranks is not None:
            columns["class_rank"] = class_ranks[0].astype(np.int32)
        return finding, pa.table(columns)

    return cached(shared.key("retrieval", caption=caption), Retrieval, compute)


def _queries(shared: Shared, rows: Labels, caption: str) -> tuple[Tensor, npt.NDArray[np.float64]]:
    """Return the captions of rows in the shared space (n, D), and vectors (n, K) that are equal where captions are."""
    packed, space, kind = shared.subject.packed, shared.space, shared.through
    vectors, usable = packed.knowledge("language")
    held, ok = np.asarray(vectors[rows], np.float64), np.asarray(usable[rows])
    if caption == "one":
        off = np.abs(np.arange(ok.shape[1]) - (ok.shape[1] - 1) / 2)
        one = held[np.arange(len(rows)), np.where(ok, off, np.inf).argmin(axis=1)]
        return shared.project(np.asarray(one, np.float32)), one
    # the run's own centre and scale, not those of the test split
    told = {"standardise": False, "pooling": "mean" if space.pooling == "random" else space.pooling}
    config = PretrainConfig.model_validate(space.facts["config"]).model_copy(update=told)
    pooled = Knowledge(packed, rows, "language", config).epoch(torch.Generator())
    if pooled.shape[1] != space.model.projectors[kind].in_features:
        raise DataError(
            f"captions of {packed.folder} are vectors of {packed.manifest.language_dim} numbers; this run was trained on another encoder's"
        )
    with torch.inference_mode():
        projected = space.model.knowledge(kind, (pooled - space.centre[kind]) / space.scale[kind])
    held = np.where(ok[..., None], held, 0)
    if space.pooling == "ordered":
        return projected, held.reshape(len(rows), -1)
    # sums of half precision are exact in double: the order in time leaves no trace
    return projected, held.sum(axis=1) / ok.sum(axis=1, keepdims=True)


def search_ranks(
    queries: Tensor, gallery: Tensor, owns: Labels, labels: Labels | None
) -> tuple[Labels, Labels | None, Labels, npt.NDArray[np.float64]]:
    """Rank what each query asks for among the gallery.

    Args:
        queries: unit vectors. Shape (Q, D).
        gallery: unit vectors. Shape (N, D).
        owns: places in the gallery that the queries ask for; several rows ask several times. Shape (P, Q).
        labels: classes of the gallery, for the second answer. Shape (N,).

    Returns:
        Ranks from 1 of the clips, and of the best clip of their classes, (P, Q) each; the ten nearest clips of each
        query, (Q, 10), and its cosine to its own clip in the first row of `owns`, (Q,).

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
            ranks[n, part] = (scores >= truth - _TIE).sum(dim=1)  # the clip itself makes it count from 1
            if classes is not None:
                same = classes == classes[wanted][:, None]
                best = scores.masked_fill(~same, -torch.inf).amax(dim=1, keepdim=True)
                class_ranks[n, part] = 1 + ((scores >= best - _TIE) & ~same).sum(dim=1)
        nearest.append(scores.argsort(dim=1, descending=True, stable=True)[:, : KS[-1]])
        cosine.append(scores.gather(1, asked[0, part, None])[:, 0])
    classed = None if classes is None else class_ranks.numpy()
    return ranks.numpy(), classed, torch.cat(nearest).numpy(), torch.cat(cosine).numpy()


def recall(ranks: Labels, gallery: int) -> Recall:
    """Return the recalls and the median of ranks from 1. Shape: (Q,)."""
    shares = [float((ranks <= k).mean()) if gallery > k else None for k in KS]
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=float(np.median(ranks)))


def chance(members: Labels, gallery: int) -> Recall:
    """Return the exact expectation of a gallery in random order; the median is that of the mixed distribution.

    The best of m clips among N is among the first k unless all m are behind: 1 - C(N - m, k) / C(N, k).

    Args:
        members: how many clips answer each query. Shape (Q,).
        gallery: how many clips there are, N.
    """
    kinds, counts = np.unique(members, return_counts=True)
    places, found = np.arange(gallery), np.zeros(gallery)
    for m, count in zip(kinds, counts, strict=True):
        behind = np.cumprod(np.maximum(gallery - m - places, 0) / (gallery - places))
        found += (1 - behind) * count / len(members)
    shares = [float(found[k - 1]) if gallery > k else None for k in KS]
    median = float(1 + np.argmax(found >= 0.5 - 1e-12))
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=median)


def ceiling(repeats: Labels, gallery: int) -> Recall:
    """Return what no encoder exceeds if queries, of which each distinct one `repeats`, ask for different clips."""
    total = int(repeats.sum())
    shares = [float(np.minimum(repeats, k).sum() / total) if gallery > k else None for k in KS]
    best = np.concatenate([np.arange(1, m + 1) for m in repeats])
    return Recall(r1=shares[0], r5=shares[1], r10=shares[2], median=float(np.median(best)))


def _side(ranks: Labels, members: Labels, gallery: int) -> Side:
    first, *drawn = (recall(of, gallery) for of in ranks)

    def over(reduce: Any) -> Recall:
        values = {key: [getattr(one, key) for one in drawn] for key in Recall.model_fields}
        return Recall(**{k: None if None in v else float(reduce(v)) for k, v in values.items()})

    return Side(
        last=first, shuffled=over(np.mean), shuffled_std=over(lambda v: np.std(v, ddof=1)),
        chance=chance(members, gallery),
    )  # fmt: skip
