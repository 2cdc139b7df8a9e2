"""Text and image vectors of a split, pooled to one vector per sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe_training import PretrainConfig
from c2vl_training.dataset import PackedDataset, Rows


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore"):  # infinite values become NaN, which `Knowledge.broken` finds
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def sides(vectors: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return on which side of 256 random planes vectors lie, as packed bits: (..., D) -> (..., 32).

    Captions are not packed, so vectors stand for them: two are the same if they lie on the same side of all planes.
    Vectors of equal captions differ, if at all, in the last digit of a few numbers, since other batches round
    otherwise; fewer than one such pair in a hundred is torn apart. Vectors at an angle of 0.1 are taken for the same
    in 3 cases of 10,000.
    """
    planes = np.random.default_rng(0).standard_normal((vectors.shape[-1], 256), np.float32)
    return np.packbits(vectors @ planes > 0, axis=-1)


def idf_weights(things: npt.NDArray[np.uint8], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return log((N + 1) / n) of each vector, where n of the N samples have it; 0 where it is not usable.

    Args:
        things: what tells vectors apart, see `sides`. Shape (N, slots, bytes).
        usable: Shape (N, slots).

    Returns:
        Shape (N, slots).
    """
    own = np.ascontiguousarray(things[usable])
    _, which = np.unique(own.view(np.dtype((np.void, own.shape[1]))).ravel(), return_inverse=True)
    pairs = np.unique(np.stack([which, np.nonzero(usable)[0]]), axis=1)  # a sample counts once, however often it has it
    weights = np.zeros(usable.shape, np.float32)
    weights[usable] = np.log((len(things) + 1) / np.bincount(pairs[0])[which])
    return weights


class Knowledge:
    """Vectors of one kind for the rows of a split, pooled by the recipe; `epoch(g)` returns (N, D) float32.

    *Reading:* the paper has one vision and one language vector per sample and does not say how 16 crops become
    one. `mean` averages unit vectors; `random` takes one per sample and epoch; `ordered` concatenates the means of
    four consecutive quarters, which keeps the order in time. All vectors of a sample weigh the same; `idf` weighs them
    by `idf_weights`, and `random` draws by these weights.

    *Reading:* "averaged" may mean the vectors as CLIP gives them (`normalise = after_pooling`), of which long ones, up to
    1.8 times as long as others, weigh more. It needs data that hold the lengths.

    Raises:
        DataError: lengths are asked for, and all stored vectors have length 1.
    """

    QUARTERS = 4
    CHUNK = 4096
    """Samples that are read at once: all vectors of NTU 120 are 3 GB as float32."""

    def __init__(self, packed: PackedDataset, rows: Rows, kind: str, config: PretrainConfig) -> None:
        self._stored, usable = packed.knowledge(kind)
        self._rows, self._ok = rows, np.asarray(usable[rows])
        self._config = config
        if config.normalise == "after_pooling" and all(
            np.allclose(np.linalg.norm(vectors[self._ok[part]], axis=-1), 1, atol=0.01)
            for part, vectors in self._parts()
        ):
            raise DataError(
                f"normalise = 'after_pooling' needs the lengths of the {kind} vectors, and all in {packed.folder} have "
                "length 1: the encoder that made them normalises; use 'before_pooling', or embed again with "
                "--set pipeline.embed.engine.options.keep_lengths=true, where it has this option"
            )
        self._weights: npt.NDArray[np.float32] | None = None
        if config.pooling_weights == "idf":
            self._weights = idf_weights(np.concatenate([sides(vectors) for _, vectors in self._parts()]), self._ok)
        self._finite = np.ones(len(rows), bool)
        pooled = []
        for part, vectors in self._parts():
            self._finite[part] = np.isfinite(vectors).all(axis=(1, 2))
            if config.pooling != "random":
                pooled.append(self._pool(part, vectors))
        self._fixed = np.concatenate(pooled) if pooled else None
        self.centre, self.scale = (
            self._spread() if config.standardise else (np.zeros((), np.float32), np.ones((), np.float32))
        )
        self.dim = int(self._stored.shape[2]) * (self.QUARTERS if config.pooling == "ordered" else 1)

    def _parts(self) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
        """Yield the vectors of consecutive samples, (n, slots, D) float32, 0 where they are not usable."""
        for start in range(0, len(self._rows), self.CHUNK):
            part = slice(start, start + self.CHUNK)
            yield part, self._usable(self._stored[self._rows[part]], self._ok[part])

    def _usable(self, stored: npt.NDArray[Any], ok: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        vectors = np.where(ok[..., None], stored, 0).astype(np.float32)
        return _unit(vectors) if self._config.normalise == "before_pooling" else vectors

    def _spread(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return mean and standard deviation, at least 1e-6, of each number of what `epoch` may return."""
        if self._fixed is not None:
            return np.asarray(self._fixed.mean(axis=0)), np.maximum(self._fixed.std(axis=0), 1e-6)
        count = self._ok.sum()
        mean = sum(vectors[self._ok[part]].sum(axis=0, dtype=np.float64) for part, vectors in self._parts()) / count
        squares = sum(((vectors[self._ok[part]] - mean) ** 2).sum(axis=0) for part, vectors in self._parts())
        deviation = np.maximum(np.sqrt(squares / count), 1e-6)
        return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)

    def broken(self) -> int | None:
        """Return the place of the first sample with a vector that is not finite, or None."""
        return None if self._finite.all() else int(np.argmin(self._finite))

    def _pool(self, part: slice, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._weights is not None:
            vectors = vectors * self._weights[part, :, None]
        mean = _unit(vectors.sum(axis=1))
        if self._config.pooling == "mean":
            return mean
        quarters = []
        for slots in np.array_split(np.arange(vectors.shape[1]), self.QUARTERS):
            empty = np.asarray(~self._ok[part, slots].any(axis=1))
            # a quarter without a person takes the mean of the whole clip
            quarters.append(np.where(empty[:, None], mean, _unit(vectors[:, slots].sum(axis=1))))
        return np.asarray(np.concatenate(quarters, axis=1) / np.sqrt(self.QUARTERS))

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Return the vectors of one epoch, (N, D)."""
        pooled = self._fixed
        if pooled is None:
            scores = torch.rand(self._ok.shape, generator=generator).numpy() * self._ok
            if self._weights is not None:
                # the largest of u^(1 / w) is a draw by the weights w (Efraimidis, Spirakis 2006)
                scores = np.log(np.maximum(scores, 1e-30)) / np.where(self._ok, self._weights, 1e-12)
            slots = scores.argmax(axis=1)
            pooled = self._usable(self._stored[self._rows, slots], self._ok[np.arange(len(slots)), slots])
        return torch.from_numpy(np.asarray((pooled - self.centre) / self.scale, np.float32))
