"""The `hf` back-ends: Grounding DINO, LLaVA and CLIP, by `from_pretrained` of transformers 5.

Checkpoints are found, checked and loaded by `c2vl_pipeline.engines.hf_checkpoint`. Images always go through
transformers' PIL processors, so that vectors do not depend on whether torchvision happens to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import transformers

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline.engines import (
    Array,
    Box,
    Caption,
    Captioner,
    Crop,
    Detector,
    Encoder,
    Frame,
    Image,
    TextVectors,
    grounding,
)
from c2vl_pipeline.engines.hf_checkpoint import Checkpoint, weights_id


class GroundingDino(Detector):
    """Finds people with Grounding DINO.

    Options: `threshold` (0.35, smallest score of a box), `text_threshold` (0.25, smallest score at which a
    word names a box), `shortest_edge` and `longest_edge` (pixels a frame is resized to; default: the
    checkpoint's own).

    Reading: the paper names the query, "person"; the model was trained on lower-case phrases that end with a
    dot. A box is kept if its score passes `threshold` and a word of the query passes `text_threshold`: a box that
    matches only punctuation or special tokens is dropped.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec)
        own, options = self._at.processor.image_processor.size, self._at.options
        self._size = {edge: options[edge] or own[edge] for edge in ("shortest_edge", "longest_edge")}

    @torch.inference_mode()
    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the boxes of each frame, best first, in pixels of that frame and clipped to it."""
        return grounding.detect(frames, self._at.parts, lambda images: self._run(images, query))

    def _run(self, images: list[Image], query: str) -> list[Mapping[str, Any]]:
        processor, options = self._at.processor, self._at.options
        batch = processor(
            images=images,
            text=[grounding.phrase(query)] * len(images),
            size=self._size,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        inputs = self._at.inputs(batch)
        outputs = self._at.model(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        results: list[Mapping[str, Any]] = processor.post_process_grounded_object_detection(
            outputs,
            inputs["input_ids"],
            threshold=options["threshold"],
            text_threshold=options["text_threshold"],
            target_sizes=[image.shape[:2] for image in images],
        )
        return results

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision, options and input size, for the stage's manifest."""
        return self._at.describe() | {"size": dict(self._size)}


class Llava(Captioner):
    """Answers the question about each crop with LLaVA, greedily. Option: `max_new_tokens` (64).

    Raises:
        EngineError: One line, from building it: see `Checkpoint`.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec)
        model, processor, tokenizer = self._at.model, self._at.processor, self._at.processor.tokenizer
        vision, strategy = model.config.vision_config, model.config.vision_feature_select_strategy
        processor.patch_size = processor.patch_size or vision.patch_size
        processor.vision_feature_select_strategy = processor.vision_feature_select_strategy or strategy
        # it has a class token, which old processors do not state
        if vision.model_type == "clip_vision_model":
            processor.num_additional_image_tokens = 1
        bos, llama = tokenizer.bos_token_id, model.config.text_config.model_type == "llama"
        if llama and bos is not None and bos not in tokenizer("")["input_ids"]:
            tokenizer.add_bos_token = True  # Vicuna was trained with one; not every tokenizer file states it
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
        stop = model.generation_config.eos_token_id
        stop = tokenizer.eos_token_id if stop is None else stop
        self._stops = [stop] if isinstance(stop, int) else list(stop)
        # greedy, also if the checkpoint suggests sampling
        model.generation_config = transformers.GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self._at.options["max_new_tokens"],
            bos_token_id=bos,
            eos_token_id=self._stops,
            pad_token_id=tokenizer.pad_token_id,
        )

    def prompt(self, question: str) -> str:
        """Write one user turn with one image: the checkpoint's chat template, else LLaVA-1.5's wording."""
        if not self._at.processor.chat_template:
            return f"USER: <image>\n{question} ASSISTANT:"
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        rendered: str = self._at.processor.apply_chat_template([turn], add_generation_prompt=True)
        return rendered

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption]:
        """Answer `question` about each crop: the stripped text, and its new tokens but for the end token."""
        return self.answer([crop.image for crop in crops], [question] * len(crops))

    @torch.inference_mode()
    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> list[Caption]:
        """Answer one question about each image; prompts of different lengths are padded on the left."""
        captions: list[Caption] = []
        for part in self._at.parts(len(images)):
            inputs = self.encode(images[part], questions[part])
            tokens = self._at.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            captions.extend(self._decode(row) for row in tokens.tolist())
        return captions

    def encode(self, images: Sequence[Image], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return a batch's input_ids and attention_mask (n, L) and pixel_values (n, 3, side, side)."""
        batch = self._at.processor(
            images=list(images),
            text=[self.prompt(question) for question in questions],
            padding=True,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return self._at.inputs(batch)

    def _decode(self, tokens: list[int]) -> Caption:
        end = next((i for i, token in enumerate(tokens) if token in self._stops), len(tokens))
        text = self._at.processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Caption(text.strip(), end)

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision and options, for the stage's manifest."""
        return self._at.describe()


class Clip(Encoder):
    """Encodes crops and captions with CLIP; images and texts share the projection's dimension.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec)
        config, self._tokenizer = self._at.model.config, self._at.processor.tokenizer
        self.image_dim = self.text_dim = int(config.projection_dim)
        self._limit = min(self._tokenizer.model_max_length, config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return L2-normalised float32 vectors, (n, image_dim)."""
        vectors = np.zeros((len(images), self.image_dim), np.float32)
        for part in self._at.parts(len(images)):
            process = self._at.processor.image_processor
            batch = process(list(images[part]), input_data_format="channels_last", return_tensors="pt")
            vectors[part] = self._unit(self._at.model.get_image_features(**self._at.inputs(batch)))
        return vectors

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return L2-normalised float32 vectors, (n, text_dim), and how many tokens the texts have.

        Token counts include the opening and the closing token: a text is truncated exactly when it counts
        more than the model's positions (77 in CLIP). A truncated text keeps its closing token.
        """
        vectors, tokens = np.zeros((len(texts), self.text_dim), np.float32), np.zeros(len(texts), np.int32)
        for part in self._at.parts(len(texts)):
            some = list(texts[part])
            tokens[part] = [len(ids) for ids in self._tokenizer(some, verbose=False)["input_ids"]]
            batch = self._tokenizer(some, padding=True, truncation=True, max_length=self._limit, return_tensors="pt")
            vectors[part] = self._unit(self._at.model.get_text_features(**self._at.inputs(batch)))
        return TextVectors(vectors, tokens, tokens > self._limit)

    @staticmethod
    def _unit(features: Any) -> Array:
        """Normalise in float32; transformers 5 returns an object, the vector is its `pooler_output`."""
        pooled: torch.Tensor = getattr(features, "pooler_output", features)
        unit: Array = torch.nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        return unit

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision and options, for the stage's manifest."""
        return self._at.describe()
