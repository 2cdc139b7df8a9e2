"""The `hf` encoders: any model of transformers 5 that maps images and texts into one space, by `from_pretrained`.

Checkpoints are found by `c2vl_pipeline.engines.hf_hub` and loaded by `hf_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import one_line
from c2vl_pipeline.engines import Array, Encoder, Image, TextVectors
from c2vl_pipeline.engines.hf_checkpoint import Checkpoint, HfOptions
from c2vl_pipeline.engines.hf_hub import weights_id

_ALIKE = 0.999
"""Cosine above which two vectors of one text are equal but for rounding, in any dtype."""


class _Options(HfOptions):
    """`EngineSpec.options` of this engine."""

    keep_lengths: bool = False


class HfEncoder(Encoder):
    """Encodes crops and captions with a dual encoder, such as CLIP or SigLIP.

    Options: `keep_lengths` (false: vectors are L2-normalised; true: they are as the model gives them, for
    `training.pretrain.normalise = after_pooling`) and those of `HfOptions`.

    Texts are padded to the longest of their batch. Some models, such as SigLIP, read the padding too: a text's vector
    would depend on its neighbours. This is tried when the engine is built; their texts are padded to the model's length.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`; vectors of images and texts of different widths.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec, _Options)
        self._at.compile()
        self._tokenizer = self._at.processor.tokenizer
        self._padding: bool | str = True
        try:
            text = self._at.model.config.get_text_config()
            self._limit = min(self._tokenizer.model_max_length, text.max_position_embeddings)
            alone, beside = self._text_vectors(["a"])[0], self._text_vectors(["a", "a man " * 8])[0]
            self.image_dim = self._image_vectors([np.full((64, 64, 3), 127, np.uint8)]).shape[1]
        except Exception as error:  # models whose methods take or return something else
            raise self._at.refusal(
                f"which gives no vectors of one text and one image ({one_line(error, named=True)})"
            ) from error
        self.text_dim = len(alone)
        if alone @ beside < _ALIKE * np.linalg.norm(alone) * np.linalg.norm(beside):
            self._padding = "max_length"
        if self.image_dim != self.text_dim:
            raise self._at.refusal(
                f"whose images have {self.image_dim} dimensions and texts {self.text_dim}; expected one space"
            )

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return float32 vectors, L2-normalised but for `keep_lengths`, (n, image_dim)."""
        vectors = np.zeros((len(images), self.image_dim), np.float32)
        for part in self._at.parts(len(images)):
            vectors[part] = self._image_vectors(images[part])
        return vectors

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return vectors as `encode_images` does, (n, text_dim), and how many tokens the texts have.

        Token counts include the opening and the closing token: a text is truncated exactly when it counts
        more than the model's positions (77 in CLIP). A truncated text keeps its closing token.
        """
        vectors, tokens = np.zeros((len(texts), self.text_dim), np.float32), np.zeros(len(texts), np.int32)
        for part in self._at.parts(len(texts)):
            tokens[part] = [len(ids) for ids in self._tokenizer(list(texts[part]), verbose=False)["input_ids"]]
            vectors[part] = self._text_vectors(texts[part])
        return TextVectors(vectors, tokens, tokens > self._limit)

    @torch.inference_mode()
    def _image_vectors(self, images: Sequence[Image]) -> Array:
        batch = self._at.image_processor(list(images), input_data_format="channels_last", return_tensors="pt")
        return self._pooled(self._at.model.get_image_features(**self._at.inputs(batch)))

    @torch.inference_mode()
    def _text_vectors(self, texts: Sequence[str]) -> Array:
        batch = self._tokenizer(
            list(texts), padding=self._padding, truncation=True, max_length=self._limit, return_tensors="pt"
        )
        return self._pooled(self._at.model.get_text_features(**self._at.inputs(batch)))

    def _pooled(self, features: Any) -> Array:
        """Normalise in float32; transformers 5 returns an object, the vector is its `pooler_output`."""
        pooled: torch.Tensor = getattr(features, "pooler_output", features).float()
        if not self._at.options["keep_lengths"]:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        vectors: Array = pooled.cpu().numpy()
        return vectors

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision, options and padding of texts, for the stage's manifest."""
        return self._at.describe() | ({"padding": self._padding} if isinstance(self._padding, str) else {})
