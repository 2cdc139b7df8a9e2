"""The space in which clips and texts of a finished pre-training are compared.

Texts go through the text encoder that made the data's vectors and then through the run's projector.

*Reading:* a run that was trained toward crops alone has no projector for texts; where the encoder puts texts and images
into one space (CLIP), texts go through the projector of crops, and the finding says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_evaluation.cache import CacheKey
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, Labels, encoder_for, extract
from c2vl_evaluation.language import text_encoder
from c2vl_evaluation.results import Protocol
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.manifest import remembered_sha256
from c2vl_training import checkpoint
from c2vl_training.dataset import Clips
from c2vl_training.distributed import device_of
from c2vl_training.inference import JointEmbedding, encode, load_joint_embedding

_DIGITS = 12
"""Cosines that agree to so many digits are a tie."""


@dataclass(frozen=True)
class Shared:
    """The space of a finished pre-training, and the data that meet in it."""

    subject: EvalContext
    space: JointEmbedding
    through: Literal["language", "vision"]
    """Whose projector texts go through."""
    encoder: Path | None
    """Where the text encoder's checkpoint lies now, if it was moved."""

    def clips(self, split: str) -> tuple[Tensor, Labels]:
        """Embed the clips of a split, central window, not rotated.

        Returns:
            Unit vectors (N, D) on the CPU, and the rows of the packed data, (N,).

        Raises:
            CheckpointError: the encoder is of another joint layout.
            DataError: an embedding is NaN or infinite, or the split is empty.
        """
        of, packed = self.subject, self.subject.packed
        rows = packed.select(of.benchmark, split).rows
        device = of.recipe.training.device
        if (packed.labels()[rows] >= 0).all():
            features = torch.from_numpy(extract(of.run, packed, of.benchmark, split, device).values)
        else:  # the protocols' cache is of labelled clips
            encoder = encoder_for(of.run, packed, device_of(device))
            held = Clips(packed, rows, encoder.input, device_of(device))
            features = encode(encoder.module, held).float()
        with torch.inference_mode():
            vectors = F.normalize(self.space.model.skeleton(features), dim=1)
        if (broken := int((~vectors.isfinite()).any(dim=1).sum())) > 0:
            raise DataError(
                f"{broken} of {len(rows)} {split} clips have NaN or infinite embeddings: the encoder diverged; train it again with a lower learning rate"
            )
        return vectors, rows

    def texts(self, texts: Sequence[str]) -> tuple[Array, int]:
        """Encode texts by the engine that made the data's vectors.

        Returns:
            Unit vectors before the projector, (n, K), and how many texts were longer than the encoder reads.

        Raises:
            EngineError: the encoder cannot be loaded, or is not the one that made the vectors.
            DataError: a text in which the encoder finds no word.
        """
        found = text_encoder.load(self.subject.packed, self.encoder).encode_texts(list(texts))
        norms = np.linalg.norm(found.vectors, axis=1)
        for text, norm in zip(texts, norms, strict=True):
            if not (np.isfinite(norm) and norm > 0):
                raise DataError(f"the text encoder finds no word in {text!r}; say it in other words")
        return np.asarray(found.vectors / norms[:, None], np.float32), int(found.truncated.sum())

    def project(self, vectors: Array) -> Tensor:
        """Bring unit vectors of texts (n, K) into the shared space, (n, D), see `JointEmbedding.knowledge`."""
        return self.space.knowledge(self.through, vectors).cpu()

    @property
    def temperature(self) -> float:
        """Of the run's own similarities of skeletons and what texts go through."""
        return 1 / float(self.space.model.scales[self.through]())

    def notes(self) -> list[str]:
        """Say what a reader of any figure of this space must know."""
        packed, said = self.subject.packed, []
        if self.through == "vision":
            said.append(
                "This run listened to crops alone: texts go through the projector of crops, which never saw a text; "
                "what they find is owed to the encoder's common space of texts and images."
            )
        elif packed.manifest.derived_from_joints("language"):
            said.append("The captions of this data are derived from joints: no evidence for language.")
        if self.space.facts.get("data") != packed.manifest.fingerprint:
            said.append(
                "This run was trained on other data than these: their text encoders are taken to be the same."
            )
        return said

    def key(self, protocol: Protocol, **settings: Any) -> CacheKey:
        """Return the key of a result, the engine of the vectors among its settings."""
        of = self.subject
        engine = text_encoder.engine_of(of.packed)
        settings["engine"] = {k: v for k, v in engine.items() if k not in {"device", "libraries"}}
        projectors = {"projectors": remembered_sha256(of.run / checkpoint.PROJECTORS)}
        return CacheKey(of.run, of.packed, of.benchmark, protocol, settings, of.seed, projectors)


def enter(subject: EvalContext, encoder: Path | None = None) -> Shared:
    """Open the shared space of a run for texts.

    Args:
        subject: a finished pre-training, and what it is evaluated on.
        encoder: folder of the text encoder's checkpoint, if it is not where it was when the vectors were made.

    Raises:
        CheckpointError: the run is no finished pre-training.
        ConfigError: it listened to crops alone, and their encoder puts texts elsewhere.
    """
    space = load_joint_embedding(subject.run)
    engine = text_encoder.engine_of(subject.packed)
    if "language" not in space.centre and not engine.get("joint_space"):
        raise ConfigError(
            f"{subject.run} was trained toward crops alone, and the encoder {engine.get('backend')!r} puts texts and "
            "images into different spaces, so no text can be asked; pre-train with "
            "`--set training.pretrain.knowledge=both`"
        )
    return Shared(subject, space, "language" if "language" in space.centre else "vision", encoder)


def cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return dot products of unit vectors in float64, rounded so that what is equal is a tie. Shape: (Q, D), (N, D) -> (Q, N)."""
    return (queries.double() @ gallery.double().T).round(decimals=_DIGITS)
