"""The `hf` captioners: any model of transformers 5 that answers in text about images, by `from_pretrained`.

The question is written by the checkpoint's own chat template. Checkpoints are found by
`c2vl_pipeline.engines.hf_hub` and loaded by `hf_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError, one_line
from c2vl_pipeline.engines import THINK, Caption, Captioner, Crop, Image, setting
from c2vl_pipeline.engines.hf_checkpoint import Checkpoint, HfOptions
from c2vl_pipeline.engines.hf_hub import weights_id


class _Options(HfOptions):
    """`EngineSpec.options` of this engine."""

    max_new_tokens: int = Field(default=64, ge=1)


class HfCaptioner(Captioner):
    """Answers the question about each crop, greedily. Options: `max_new_tokens` (64) and those of `HfOptions`.

    Raises:
        EngineError: One line, from building it: see `Checkpoint`; a checkpoint without a chat template.
    """

    weights_id = staticmethod(weights_id)

    def __init__(self, spec: EngineSpec) -> None:
        self._at = Checkpoint(spec, _Options)
        model, processor, tokenizer = self._at.model, self._at.processor, self._at.processor.tokenizer
        self._text = model.config.get_text_config(decoder=True)
        # a Q-Former's processor puts the image before the text by itself, and models with one have no chat template
        self._placed = hasattr(processor, "num_query_tokens")
        llama = self._text.model_type == "llama"
        self._vicuna = not processor.chat_template and llama and hasattr(processor, "patch_size")
        if not (processor.chat_template or self._placed or self._vicuna):
            raise self._at.refusal("but no chat template; expected chat_template.jinja next to config.json")
        self._complete(processor, model.config)
        written = self._written()
        # a template that opens the thinking itself leaves that to be closed in the answer
        self._thinks = THINK[0] if written.rstrip().endswith(THINK[0]) else ""
        bos = tokenizer.bos_token_id
        if llama and bos is not None and bos not in tokenizer("")["input_ids"] and not self._opened(written):
            tokenizer.add_bos_token = True  # Vicuna was trained with one; not every tokenizer file states it
        for one in filter(None, (tokenizer, getattr(processor, "qformer_tokenizer", None))):
            # the library's warning about a long text, taken as given: `_check_lengths` says it
            one.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or tokenizer.eos_token
        stop = model.generation_config.eos_token_id
        stop = tokenizer.eos_token_id if stop is None else stop
        self._stops = [stop] if isinstance(stop, int) else list(stop)
        # greedy, also if the checkpoint suggests sampling; a Q-Former's language model has a configuration of its own
        for part in model.modules():
            if (own := getattr(part, "generation_config", None)) is not None:
                part.generation_config = transformers.GenerationConfig(
                    do_sample=False,
                    num_beams=1,
                    max_new_tokens=self._at.options["max_new_tokens"],
                    bos_token_id=bos,
                    eos_token_id=self._stops,
                    pad_token_id=tokenizer.pad_token_id,
                    decoder_start_token_id=own.decoder_start_token_id,
                    # the library compiles the steps of a cache of fixed size
                    cache_implementation="static" if self._at.options["compile"] else None,
                )

    @staticmethod
    def _complete(processor: Any, config: Any) -> None:
        """Fill in what old processor files do not state about the image, where the processor asks for it."""
        vision = getattr(config, "vision_config", None)
        for name, source in (("patch_size", vision), ("vision_feature_select_strategy", config)):
            if hasattr(processor, name) and not getattr(processor, name):
                setattr(processor, name, getattr(source, name, None))
        # it has a class token, which old processors do not state
        if (
            hasattr(processor, "num_additional_image_tokens")
            and getattr(vision, "model_type", "") == "clip_vision_model"
        ):
            processor.num_additional_image_tokens = 1

    def prompt(self, question: str, images: int = 1) -> str:
        """Write one user turn with its images: by the checkpoint's chat template, else in LLaVA-1.5's wording."""
        if self._placed:
            return question
        if self._vicuna:
            return "USER: " + "<image>\n" * images + f"{question} ASSISTANT:"
        turn = {"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}
        rendered: str = self._at.processor.apply_chat_template([turn], add_generation_prompt=True)
        return rendered

    def _written(self) -> str:
        """Return a prompt without a question; raise EngineError if the chat template cannot write one with an image."""
        try:
            written = self.prompt("")
            lacks = "places no image" if not self._placed and written == self.prompt("", 0) else ""
        except Exception as error:  # templates may raise any exception
            lacks = f"cannot write a question about an image ({one_line(error, named=True)})"
        if lacks:
            raise self._at.refusal(f"whose chat template {lacks}")
        return written

    def _opened(self, prompt: str) -> bool:
        """Return whether a prompt begins with the opening token, which a tokenizer would add again."""
        opening = self._at.processor.tokenizer.bos_token
        return opening is not None and prompt.startswith(opening)

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption]:
        """Answer `question` about each crop: the stripped text, and its new tokens but for the end token.

        Raises:
            EngineError: One line, for a prompt that is longer than what the model reads.
        """
        return self.answer([(crop.image, *crop.later) for crop in crops], [question] * len(crops))

    def complete(self, prompts: Sequence[str]) -> list[Caption]:
        """Answer each prompt without any image.

        Raises:
            EngineError: One line, for a prompt that is too long, or a model that always wants an image.
        """
        if self._placed:
            raise EngineError(
                f"{self._at.spec.model!r} answers about images only; empty pipeline.caption.rewrite, or choose another captioner"
            )
        return self.answer([()] * len(prompts), prompts)

    @torch.inference_mode()
    def answer(self, clips: Sequence[Sequence[Image]], questions: Sequence[str]) -> list[Caption]:
        """Answer one question about each clip, all with images or all without; shorter prompts are padded on the left."""
        captions: list[Caption] = []
        for part in self._at.parts(len(clips)):
            inputs = self.encode(clips[part], questions[part])
            length = inputs["input_ids"].shape[1]
            self._check_lengths(length, inputs.get("qformer_input_ids"))
            start = 1 if self._at.model.config.is_encoder_decoder or self._text.is_encoder_decoder else length
            tokens = self._at.model.generate(**inputs)[:, start:]
            captions.extend(map(self._decode, tokens.tolist()))
        return captions

    def encode(self, clips: Sequence[Sequence[Image]], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return a batch's input_ids and attention_mask (n, L), and the pixels as the model wants them."""
        if self._placed and any(len(clip) > 1 for clip in clips):
            raise EngineError(
                f"{self._at.spec.model!r} takes one image in a prompt; "
                "ask about each by `--set 'pipeline.caption.view = \"frame\"'`, or choose another captioner"
            )
        images = [clip[0] for clip in clips] if self._placed else [list(clip) for clip in clips]
        prompts = [self.prompt(question, len(clip)) for clip, question in zip(clips, questions, strict=True)]
        batch = self._at.processor(
            images=images if any(clips) else None,
            text=prompts,
            padding=True,
            input_data_format="channels_last",
            return_tensors="pt",
            **({"add_special_tokens": False} if self._opened(prompts[0]) else {}),
        )
        return self._at.inputs(batch)

    def _check_lengths(self, length: int, to_qformer: torch.Tensor | None = None) -> None:
        """Raise EngineError if a prompt and its answer do not fit the model's positions, or those of its Q-Former."""
        if to_qformer is not None:
            most, asked = self._at.model.config.qformer_config.max_position_embeddings, to_qformer.shape[1]
            if asked > most:
                raise EngineError(
                    f"the question has {asked:,} tokens, but the Q-Former of {self._at.spec.model!r} reads {most:,}; shorten "
                    "pipeline.caption.question"
                )
        most, new = getattr(self._text, "max_position_embeddings", None), self._at.options["max_new_tokens"]
        if most is not None and length + new > most:
            option = f"{setting(self._at.spec)}.options.max_new_tokens"
            lower = f"lower {option} to {most - length} or less, or " if length < most else ""
            raise EngineError(
                f"the prompt has {length:,} tokens with its images and the answer may have {new:,} (max_new_tokens), but "
                f"{self._at.spec.model!r} reads {most:,}; {lower}shorten pipeline.caption.question, or ask about fewer or "
                "smaller images (pipeline.caption.view, pipeline.frames, pipeline.crop.max_side)"
            )

    def _decode(self, tokens: list[int]) -> Caption:
        end = next((i for i, token in enumerate(tokens) if token in self._stops), len(tokens))
        text = self._at.processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Caption((self._thinks + text).strip(), end)

    def describe(self) -> Mapping[str, Any]:
        """Return checkpoint, revision and options, for the stage's manifest."""
        return self._at.describe()
