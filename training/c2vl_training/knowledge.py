"""Text and image vectors of a split, pooled to one vector per sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import PretrainConfig
from c2vl_training.dataset import PackedDataset, Rows


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore"):  # infinite values become NaN, which `Knowledge.broken` finds
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def idf_weights(vectors: npt.NDArray[Any], usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Return log((N + 1) / n) of each vector, where n of the N samples have it; 0 where it is not usable.

    Captions are not packed, so vectors stand for them: two are the same if they lie on the same side of 256 random
    planes. Vectors of equal captions differ, if at all, in the last digit of a few numbers, since other batches round
    otherwise; fewer than one such pair in a hundred is torn apart. Vectors at an angle of 0.1 are taken for the same
    in 3 cases of 10,000.

    Args:
        vectors: unit vectors. Shape (N, slots, D).
        usable: Shape (N, slots).

    Returns:
        Shape (N, slots).
    """
    planes = np.random.default_rng(0).standard_normal((vectors.shape[-1], 256), np.float32)
    sides = np.packbits(vectors[usable] @ planes > 0, axis=1)
    _, which = np.unique(sides.view(np.dtype((np.void, sides.shape[1]))).ravel(), return_inverse=True)
    pairs = np.unique(np.stack([which, np.nonzero(usable)[0]]), axis=1)  # a sample counts once, however often it has it
    weights = np.zeros(usable.shape, np.float32)
    weights[usable] = np.log((len(vectors) + 1) / np.bincount(pairs[0])[which])
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

    def __init__(self, packed: PackedDataset, rows: Rows, kind: str, config: PretrainConfig) -> None:
        vectors, usable = packed.knowledge(kind)
        self._ok = np.asarray(usable[rows])
        self._vectors = np.where(self._ok[..., None], vectors[rows], 0).astype(np.float32)
        if config.normalise == "before_pooling":
            self._vectors = _unit(self._vectors)
        elif np.allclose(np.linalg.norm(self._vectors[self._ok], axis=-1), 1, atol=0.01):
            raise DataError(
                f"normalise = 'after_pooling' needs the lengths of the {kind} vectors, and all in {packed.folder} have "
                "length 1: the encoder that made them normalises; use 'before_pooling', or embed again with "
                "--set pipeline.embed.engine.options.keep_lengths=true, where it has this option"
            )
        self._pooling = config.pooling
        self._weights = None if config.pooling_weights == "equal" else idf_weights(self._vectors, self._ok)
        self._fixed = None if config.pooling == "random" else self._pool()
        self.centre, self.scale = np.float32(0), np.float32(1)
        if config.standardise:
            sample = self._fixed if self._fixed is not None else self._vectors[self._ok]
            self.centre = sample.mean(axis=0)
            self.scale = np.maximum(sample.std(axis=0), 1e-6)
        self.dim = int(self._vectors.shape[2]) * (self.QUARTERS if config.pooling == "ordered" else 1)

    def broken(self) -> int | None:
        """Return the place of the first sample with a vector that is not finite, or None."""
        finite = np.isfinite(self._vectors).all(axis=(1, 2))
        return None if finite.all() else int(np.argmin(finite))

    def _pool(self) -> npt.NDArray[Any]:
        vectors = self._vectors if self._weights is None else self._vectors * self._weights[..., None]
        mean = _unit(vectors.sum(axis=1))
        if self._pooling == "mean":
            return mean
        quarters = []
        for slots in np.array_split(np.arange(vectors.shape[1]), self.QUARTERS):
            empty = np.asarray(~self._ok[:, slots].any(axis=1))
            # a quarter without a person takes the mean of the whole clip
            quarters.append(np.where(empty[:, None], mean, _unit(vectors[:, slots].sum(axis=1))))
        return np.asarray(np.concatenate(quarters, axis=1) / np.sqrt(self.QUARTERS))

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Return the vectors of one epoch, (N, D)."""
        pooled = self._fixed
        if pooled is None:
            scores = torch.rand(self._ok.shape, generator=generator).numpy() * self._ok
            if (
                self._weights is not None
            ):  # the largest of u^(1 / w) is a draw by the weights w (Efraimidis, Spirakis 2006)
                scores = np.log(np.maximum(scores, 1e-30)) / np.where(self._ok, self._weights, 1e-12)
            pooled = self._vectors[np.arange(len(scores)), scores.argmax(axis=1)]
        return torch.from_numpy(np.asarray((pooled - self.centre) / self.scale, np.float32))
