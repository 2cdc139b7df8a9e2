"""Frozen networks applied to data: features of clips, and the joint embedding of a finished pre-training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_manifests.errors import CheckpointError, ConfigError, DataError, memory_ran_out
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe_training import InputConfig, PretrainConfig
from c2vl_training import checkpoint
from c2vl_training.clips import Clips, UnpackedSkeletons
from c2vl_training.knowledge import Knowledge
from c2vl_training.memory import release
from c2vl_training.model import CrossModal


@torch.inference_mode()
def encode(network: Callable[[Tensor], Tensor], clips: Clips, batch_size: int = 128) -> Tensor:
    """Apply a network to all clips of a set: central windows, not rotated.

    Args:
        network: (B, C, T, V, M) -> (B, D); a module in eval mode.
        clips: N clips, on the device of the network.
        batch_size: clips at a time; half as many if their memory runs out.

    Returns:
        Shape (N, D), on the CPU.
    """
    places = torch.arange(len(clips), device=clips.device)
    while True:
        try:
            return torch.cat([network(clips.test(at)).cpu() for at in places.split(batch_size)])
        except RuntimeError as error:
            if batch_size == 1 or not memory_ran_out(error):
                raise
        batch_size //= 2
        release()


def clip_of(joints: npt.NDArray[Any], layout: Layout, bodies: int, config: InputConfig) -> Tensor:
    """Return one skeleton as input of an encoder in evaluation: the central window, resized, not rotated.

    Args:
        joints: valid frames in the layout's unit, as the skeletons stage makes them. Shape (T, M, V, C).
        layout: the encoder's.
        bodies: number that the encoder was trained on; missing ones are filled with zeros, surplus ones dropped.
        config: the encoder's.

    Returns:
        Shape (1, C, frames, V, bodies).

    Raises:
        DataError: no frames, another layout, or NaN or infinite joints.
    """
    if joints.ndim != 4 or joints.shape[2:] != (layout.joints, layout.dims) or not len(joints):
        raise DataError(
            f"joints of the shape {joints.shape}; expected (T, M, {layout.joints}, {layout.dims}) with T of at least 1, "
            f"the layout {layout.name!r}"
        )
    if not np.isfinite(joints).all():
        raise DataError(f"the joints hold NaN or infinite values; expected {layout.unit}")
    skeleton = UnpackedSkeletons.of([joints], layout, bodies)
    return Clips(skeleton, np.array([0]), config, torch.device("cpu")).test(torch.tensor([0]))


@torch.inference_mode()
def encode_skeleton(encoder: checkpoint.TrainedEncoder, joints: npt.NDArray[Any]) -> Tensor:
    """Return the features of one skeleton, see `clip_of`. Shape: (T, M, V, C) -> (D,)."""
    clip = clip_of(joints, encoder.layout, encoder.bodies, encoder.input)
    features: Tensor = encoder.module(clip.to(next(encoder.module.parameters()).device))
    return features[0]


@dataclass(frozen=True)
class JointEmbedding:
    """A finished pre-training, frozen; embeddings are L2-normalised and compared by dot product."""

    model: CrossModal
    layout: Layout
    bodies: int
    input: InputConfig
    pooling: str
    centre: dict[str, Tensor]
    scale: dict[str, Tensor]
    facts: dict[str, Any]

    @property
    def texts_through(self) -> Literal["language", "vision"]:
        """Kind of knowledge whose projectors texts and clips are compared through."""
        return "language" if "language" in self.centre else "vision"

    @torch.inference_mode()
    def features(self, features: Tensor) -> Tensor:
        """Embed features of the encoder toward texts. Shape: (N, F) -> (N, D)."""
        return F.normalize(self.model.head(self.texts_through)(features), dim=1)

    def clips(self, clips: Tensor) -> Tensor:
        """Embed clips toward texts. Shape: (N, C, T, V, M) -> (N, D)."""
        with torch.inference_mode():
            return self.features(self.model.encoder(clips))

    def skeleton(self, joints: npt.NDArray[Any]) -> Tensor:
        """Embed one skeleton, see `clip_of`. Shape: (T, M, V, C) -> (D,)."""
        return self.clips(clip_of(joints, self.layout, self.bodies, self.input).to(self._device))[0]

    @property
    def _device(self) -> torch.device:
        return self.model.head(self.texts_through).weight.device

    @torch.inference_mode()
    def knowledge(self, kind: str, vectors: npt.NDArray[Any] | Tensor) -> Tensor:
        """Embed vectors of single crops (`vision`) or captions (`language`), as the embed stage makes them.

        Each is used as the pooled vector of a sample whose vectors are all equal.

        Shape: (N, K) -> (N, D)

        Raises:
            ConfigError: the run was trained without that kind.
            DataError: vectors of another width.
        """
        if kind not in self.centre:
            raise ConfigError(f"this run has no {kind} projector; it was trained with {', '.join(self.centre)}")
        x = F.normalize(torch.as_tensor(np.asarray(vectors, np.float32)), dim=-1)
        if self.pooling == "ordered":
            x = x.repeat(1, Knowledge.QUARTERS) / Knowledge.QUARTERS**0.5
        projector = self.model.projectors[kind]
        if x.shape[-1] != projector.in_features:
            raise DataError(f"{kind} vectors of {vectors.shape[-1]} numbers; this run was trained on another encoder's")
        x = x.to(self._device)
        return self.model.knowledge(kind, (x - self.centre[kind]) / self.scale[kind])


def load_joint_embedding(folder: Path, device: torch.device | None = None) -> JointEmbedding:
    """Read the encoder and the projectors of a finished pre-training.

    Raises:
        CheckpointError: the run is unfinished, damaged, or not a pre-training.
    """
    device = device or torch.device("cpu")
    trained = checkpoint.load_encoder(folder, device)
    if trained.facts.get("kind") != "pretrain":
        raise CheckpointError(
            f"{folder} is a {trained.facts.get('kind')} run and has no projectors; give the folder of a pre-training"
        )
    path = folder / checkpoint.PROJECTORS
    tensors, facts = checkpoint.load(path)
    if facts != trained.facts:
        raise CheckpointError(f"{path} belongs to another run than the encoder in the same folder; train again")
    config = PretrainConfig.model_validate(facts["config"])
    centre = {n.removeprefix("centre."): t.to(device) for n, t in tensors.items() if n.startswith("centre.")}
    scale = {n.removeprefix("scale."): t.to(device) for n, t in tensors.items() if n.startswith("scale.")}
    widths = {kind: tensors[f"projectors.{kind}.weight"].shape[1] for kind in centre}
    model = CrossModal(trained.module, widths, config)
    rest = {n: t for n, t in tensors.items() if not n.startswith(("centre.", "scale."))}
    whole = {f"encoder.{n}": t for n, t in trained.module.state_dict().items()} | rest
    checkpoint.restore(model, whole, "", path)
    model.eval().requires_grad_(False).to(device)
    return JointEmbedding(
        model, trained.layout, int(facts["bodies"]), trained.input, config.pooling, centre, scale, facts
    )
