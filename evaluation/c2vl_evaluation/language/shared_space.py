"""The space in which clips and texts of a finished pre-training are compared.

Texts go through the text encoder that made the data's vectors and then through the run's projector.

*Reading:* a run that was trained toward crops only has no projector for texts. If the encoder puts texts and images into
one space (CLIP), texts go through the projector of crops, and a note of the result says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from c2vl_evaluation.cache import CacheKey
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, encoder_for, extract
from c2vl_evaluation.language import text_encoder
from c2vl_evaluation.results import Protocol
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.pages import portable
from c2vl_training import checkpoint
from c2vl_training.clips import Clips
from c2vl_training.distributed import device_of
from c2vl_training.inference import JointEmbedding, encode, load_joint_embedding

_DIGITS = 12
"""Cosines are a tie if they agree to this number of digits."""


@dataclass(frozen=True)
class SharedSpace:
    """The embedding space of a finished pre-training, and the data that are compared in it."""

    context: EvalContext
    space: JointEmbedding
    through: Literal["language", "vision"]
    """Projector that texts go through."""
    encoder: Path | None
    """Folder of the text encoder's checkpoint, if it was moved."""

    def clips(self, split: str) -> tuple[Tensor, Labels]:
        """Embed the clips of a split (central window, not rotated).

        Returns:
            Unit vectors (N, D) on the CPU, and the rows of the packed data, (N,).

        Raises:
            CheckpointError: the encoder is of another joint layout.
            DataError: an embedding is NaN or infinite, or the split is empty.
        """
        context, packed = self.context, self.context.packed
        rows = packed.select(context.benchmark, split).rows
        device = context.recipe.training.device
        if (packed.labels()[rows] >= 0).all():
            features = torch.from_numpy(extract(context.run, packed, context.benchmark, split, device).values)
        else:  # stored features are of labelled clips
            encoder = encoder_for(context.run, packed, device_of(device))
            clips = Clips(packed, rows, encoder.input, device_of(device))
            features = encode(encoder.module, clips).float()
        vectors = self.space.features(features)
        if (broken := int((~vectors.isfinite()).any(dim=1).sum())) > 0:
            raise DataError(
                f"{broken} of {len(rows)} {split} clips have NaN or infinite embeddings: the encoder diverged; "
                "train it again with a lower learning rate"
            )
        return vectors, rows

    def texts(self, texts: Sequence[str]) -> tuple[Array, int]:
        """Encode texts with the engine that made the data's vectors.

        Returns:
            Unit vectors before the projector, (n, K), and the number of texts that were truncated.

        Raises:
            EngineError: the encoder cannot be loaded, or is not the one that made the vectors.
            DataError: the encoder finds no word in a text.
        """
        encoded = text_encoder.load(self.context.packed, self.encoder).encode_texts(list(texts))
        norms = np.linalg.norm(encoded.vectors, axis=1)
        for text, norm in zip(texts, norms, strict=True):
            if not (np.isfinite(norm) and norm > 0):
                raise DataError(f"the text encoder finds no word in {text!r}; write it in other words")
        return np.asarray(encoded.vectors / norms[:, None], np.float32), int(encoded.truncated.sum())

    def project(self, vectors: Array) -> Tensor:
        """Project unit vectors of texts (n, K) into the shared space (n, D), see `JointEmbedding.knowledge`."""
        return self.space.knowledge(self.through, vectors).cpu()

    @property
    def temperature(self) -> float:
        """Temperature that the run was trained with for the projector that texts go through."""
        return 1 / float(self.space.model.scales[self.through]())

    def notes(self) -> list[str]:
        """Return what a reader of results in this space must know."""
        packed, notes = self.context.packed, []
        if self.through == "vision":
            notes.append(
                "This run was trained toward crops only: texts go through the projector of crops, which never saw a "
                "text; the results rest on the encoder's common space of texts and images."
            )
        elif packed.manifest.derived_from_joints("language"):
            notes.append(
                "The captions of this data are derived from joints, which the encoder itself sees: no evidence for language."
            )
        trained, here = self.space.facts.get("embeddings", {}), text_encoder.engine_of(packed)
        if portable(_identity(trained)) != portable(_identity(here)):
            notes.append(
                "This run was trained on vectors of another engine than these: both are assumed to have the same text "
                "encoder."
            )
        return notes

    def key(self, protocol: Protocol, **settings: Any) -> CacheKey:
        """Return the key of a result, with the engine of the vectors among its settings."""
        context = self.context
        settings["engine"] = _identity(text_encoder.engine_of(context.packed))
        projectors = {"projectors": remembered_sha256(context.run / checkpoint.PROJECTORS)}
        return CacheKey(
            context.run, context.packed, context.benchmark, protocol, settings, context.seed, projectors, ("language",)
        )


def _identity(engine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: fact for name, fact in engine.items() if name not in {"device", "libraries"}}


def open_space(context: EvalContext, encoder: Path | None = None, *, made_elsewhere: bool = False) -> SharedSpace:
    """Open the shared space of a run.

    Args:
        context: a finished pre-training, and the data that it is evaluated on.
        encoder: folder of the text encoder's checkpoint, if it was moved since the vectors were made.
        made_elsewhere: the vectors of texts are given, and are taken to be of the space of the data's vectors.

    Raises:
        CheckpointError: the run is not a finished pre-training.
        ConfigError: the run was trained toward crops only, and their encoder puts texts into another space.
    """
    space = load_joint_embedding(context.run)
    engine = text_encoder.engine_of(context.packed)
    if "language" not in space.centre and not engine.get("joint_space") and not made_elsewhere:
        raise ConfigError(
            f"{context.run} was trained toward crops only, and the encoder {engine.get('backend')!r} puts texts and "
            "images into different spaces, so texts cannot be compared with clips; pre-train with "
            "`--set training.pretrain.knowledge=both` (zeroshot also takes --class-vectors of the space of the crops)"
        )
    return SharedSpace(context, space, space.texts_through, encoder)


def cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return dot products of unit vectors in float64, rounded so that equal ones tie.

    Shape: (Q, D), (N, D) -> (Q, N)
    """
    return (queries.double() @ gallery.double().T).round(decimals=_DIGITS)
