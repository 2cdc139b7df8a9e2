"""Full-size models through our engines, beside the bare loop that feeds the same model, and the model alone.

Weights are random, in the preset's type and batch size, and made on the device: only configuration and processors are
written, and `from_pretrained` gets the model handed over (stored, LLaVA-1.5-7B alone would take 14 GB). The bare loop is
what one writes by hand: processor, model, post-processing, batch by batch; the model alone gets its inputs ready on the
device. A captioner writes 30 new tokens about every crop. Sizes are those of the published checkpoints; vocabularies of
the tokenizers are small ones, so that a question has somewhat more tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from torch.nn import functional as F

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.recipe import QUESTION
from c2vl_manifests.recipe_loading import engine_preset
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Crop, Frame, grounding
from c2vl_pipeline.engines.hf_hub import loader_of
from gpu.session import Session, flops_of
from support import checkpoints, families

_tf: Any = transformers  # its annotations are partial
NEW_TOKENS = 30
Images = Sequence[np.ndarray]
Loops = tuple[Callable[[], object], Callable[[], object], Callable[[], object]]
"""Ours, the bare loop, the model alone."""


@dataclass(frozen=True)
class Model:
    """One model: which preset loads it, how large its images are, and what writes its folder and returns its configuration."""

    preset: str
    size: tuple[int, int]
    """Height and width of an image."""
    write: Callable[[Path, bool], Any]
    """(folder, whether tiny) -> configuration; writes the processor."""


# -------------------------------------------------------------------------------------------- configurations


def _grounding_dino(folder: Path, tiny: bool) -> Any:
    edges = (96, 192) if tiny else (800, 1333)
    checkpoints.grounding_dino_processor(*edges).save_pretrained(folder)
    if not tiny:  # the library's defaults are those of grounding-dino-tiny
        return _tf.GroundingDinoConfig()
    swin = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": 7}
    return _tf.GroundingDinoConfig(
        backbone_config=_tf.SwinConfig(**swin, out_features=["stage2", "stage3", "stage4"]),
        text_config={"model_type": "bert", **families.VISION},
        num_queries=20, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
    )  # fmt: skip


def _d_fine(folder: Path, tiny: bool) -> Any:
    side = 96 if tiny else 640
    _tf.RTDetrImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    labels = {0: "person"} | {n: f"thing {n}" for n in range(1, 80)}
    more: dict[str, Any] = {"num_denoising": 0, "id2label": labels, "label2id": {v: k for k, v in labels.items()}}
    if tiny:  # else the library's defaults, which are those of D-FINE-L
        more |= {"num_queries": 20, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    return _tf.DFineConfig(**more)


def _llava(folder: Path, tiny: bool) -> Any:
    processor = checkpoints.llava_processor()
    processor.save_pretrained(folder)
    tokenizer = processor.tokenizer
    vision = families.VISION if tiny else {}  # the library's defaults: CLIP ViT-L/14@336px and Llama-2-7B
    return _tf.LlavaConfig(
        text_config={"model_type": "llama", **(families.TEXT if tiny else {}), "vocab_size": 1000 if tiny else 32064}
        | {"max_position_embeddings": 4096},
        **(
            {"vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **vision}}
            if tiny
            else {}
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )


def _qwen3_vl(folder: Path, tiny: bool) -> Any:
    tokenizer = families.qwen_tokenizer()
    most = 128 * 128 if tiny else 1024 * 1024
    images = _tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": most}, patch_size=16, merge_size=2, temporal_patch_size=2,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    families.save_processor(folder, tokenizer, images, "Qwen3VLProcessor", families.QWEN_TEMPLATE)
    # as Qwen/Qwen3-VL-4B-Instruct states
    text: dict[str, Any] = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 262144}  # fmt: skip
    vision: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560,
              "deepstack_visual_indexes": [5, 11, 17]}  # fmt: skip
    section = [24, 20, 20]
    if tiny:
        text = {**families.TEXT, "head_dim": 16, "vocab_size": 1000}
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
                  "deepstack_visual_indexes": [0]}  # fmt: skip
        section = [2, 3, 3]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section, "mrope_interleaved": True}
    return _tf.Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope, "tie_word_embeddings": True},
        vision_config={**vision, "patch_size": 16, "num_position_embeddings": 2304},
        tie_word_embeddings=True,
        **families.qwen_ids(tokenizer),
    )


def _clip(folder: Path, tiny: bool) -> Any:
    processor = checkpoints.clip_processor(336)
    processor.save_pretrained(folder)
    ids = {f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # as openai/clip-vit-large-patch14-336 states
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    if tiny:
        text = vision = families.VISION
    return _tf.CLIPConfig(
        text_config={**text, **ids, "vocab_size": 49408, "projection_dim": 768},
        vision_config={**vision, "image_size": 336, "patch_size": 14, "projection_dim": 768},
        projection_dim=768,
    )


MODELS = {
    "Grounding DINO tiny": Model("hf-groundingdino-tiny", (1080, 1920), _grounding_dino),
    "D-FINE-L": Model("hf-dfine-large", (1080, 1920), _d_fine),
    "LLaVA-1.5-7B": Model("hf-llava-1.5-7b", (480, 256), _llava),
    "Qwen3-VL-4B": Model("hf-qwen3-vl-8b", (480, 256), _qwen3_vl),
    "CLIP ViT-L/14@336px": Model("hf-clip-vit-l-14-336", (480, 256), _clip),
}
SECONDS = {"Grounding DINO tiny": 45, "D-FINE-L": 40, "LLaVA-1.5-7B": 60, "Qwen3-VL-4B": 55, "CLIP ViT-L/14@336px": 30}
"""Model -> most seconds."""


# ----------------------------------------------------------------------------------------------------- engines


def written(name: str, folder: Path, tiny: bool) -> tuple[EngineSpec, Any]:
    """Write the folder of a model, with an empty file of weights; return its spec and its configuration."""
    model = MODELS[name]
    folder.mkdir(parents=True)
    config = model.write(folder, tiny)
    config.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    preset = engine_preset(model.preset) | {"model": str(folder)}
    if preset["role"] == "captioner":
        preset["options"] = {**preset["options"], "max_new_tokens": 4 if tiny else NEW_TOKENS}
    if tiny:
        preset["batch_size"] = 2
    return EngineSpec.model_validate(preset), config


@contextmanager
def _random_weights(spec: EngineSpec, config: Any, device: torch.device) -> Iterator[None]:
    """Let `from_pretrained` return a model of random weights, made on the device."""
    loader = getattr(_tf, loader_of(spec, config.to_dict()))

    def made(folder: Path, *, dtype: torch.dtype, **options: Any) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(0)
        with torch.device(device):
            model = loader.from_config(config, dtype=dtype)
        if spec.role == "captioner":
            # nobody stops early: a logit of zero is never the largest
            tokenizer = _tf.AutoTokenizer.from_pretrained(folder)
            model.get_output_embeddings().weight.data[tokenizer.eos_token_id] = 0
            model.generation_config = _tf.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        return model, {}

    with mock.patch.object(loader, "from_pretrained", made):
        yield


def item(name: str) -> Callable[[Session], None]:
    """Return what measures a model."""

    def run(session: Session) -> None:
        spec, config = written(name, session.folder / name.replace("/", " "), session.tiny)
        try:
            with _random_weights(spec, config, session.device):
                engine = engines.load(spec)
            _measure(session, name, spec, engine)
        finally:
            engines.clear()

    return run


def _measure(session: Session, name: str, spec: EngineSpec, engine: Any) -> None:
    at = engine._at
    height, width = (64, 48) if session.tiny else MODELS[name].size
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(spec.batch_size)]
    ours, bare, alone = _LOOPS[spec.role](engine, images)
    memory, flops = session.memory(ours), flops_of(alone)
    times = session.timed({"ours": ours, "bare": bare, "alone": alone})
    session.row(
        name,
        times["ours"],
        ("bare loop", times["bare"]),
        (len(images), "images"),
        flops,
        at.dtype,
        memory_gib=memory,
        parameters=sum(p.numel() for p in at.model.parameters()),
        batch=spec.batch_size,
        alone_rate=len(images) / median(times["alone"]),
        share_of_model=median(times["alone"]) / median(times["ours"]),
        **({"new_tokens": at.options["max_new_tokens"]} if spec.role == "captioner" else {}),
    )


def _detector(engine: Any, images: Images) -> Loops:
    at = engine._at
    model, processor = at.model, at.processor or at.image_processor
    text = {"text": [grounding.phrase("person")] * len(images)} if at.processor else {}
    sizes = [image.shape[:2] for image in images]
    frames = [Frame(image, "clip", n) for n, image in enumerate(images)]

    @torch.inference_mode()
    def bare() -> object:
        inputs = processor(images=images, **text, return_tensors="pt").to(at.device, at.dtype)
        outputs = model(**inputs)
        if at.processor:
            names = {name: at.options[name] for name in ("threshold", "text_threshold")}
            found = processor.post_process_grounded_object_detection(
                outputs, inputs["input_ids"], target_sizes=sizes, **names
            )
        else:
            found = processor.post_process_object_detection(outputs, threshold=0.35, target_sizes=sizes)
        return [one["boxes"].cpu() for one in found]

    inputs = processor(images=images, **text, return_tensors="pt").to(at.device, at.dtype)
    return lambda: engine.detect(frames, "person"), bare, torch.inference_mode()(lambda: model(**inputs))


def _captioner(engine: Any, images: Images) -> Loops:
    at = engine._at
    model, processor = at.model, at.processor
    crops = [Crop(image, "clip", n) for n, image in enumerate(images)]
    prompts = [engine.prompt(QUESTION)] * len(images)

    def inputs_of() -> Any:
        return processor(images=images, text=prompts, padding=True, return_tensors="pt").to(at.device, at.dtype)

    @torch.inference_mode()
    def bare() -> object:
        inputs = inputs_of()
        tokens = model.generate(**inputs)
        return processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def ours() -> None:
        captions = engine.caption(crops, QUESTION)
        if early := {caption.tokens for caption in captions} - {at.options["max_new_tokens"]}:
            raise RuntimeError(f"captions of {sorted(early)} tokens; expected {at.options['max_new_tokens']}")

    inputs = inputs_of()
    return ours, bare, torch.inference_mode()(lambda: model.generate(**inputs))


def _encoder(engine: Any, images: Images) -> Loops:
    at = engine._at

    def inputs_of() -> Any:
        return at.image_processor(images, return_tensors="pt").to(at.device, at.dtype)

    def vectors(inputs: Any) -> torch.Tensor:
        features = at.model.get_image_features(**inputs)
        return F.normalize(getattr(features, "pooler_output", features).float(), dim=-1)

    inputs = inputs_of()
    return (
        lambda: engine.encode_images(images),
        torch.inference_mode()(lambda: vectors(inputs_of()).cpu().numpy()),
        torch.inference_mode()(lambda: vectors(inputs)),
    )


_LOOPS: dict[str, Callable[[Any, Images], Loops]] = {
    "detector": _detector,
    "captioner": _captioner,
    "encoder": _encoder,
}
