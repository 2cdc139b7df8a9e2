"""Tiny random checkpoints of further architectures, one builder for each family and role.

Folders are laid out as on the hub: weights, configuration, tokenizer, `preprocessor_config.json` that names the
processor's class, chat template. Of these, only `rf_detr` needs torchvision to be made.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, pre_tokenizers
from transformers import GenerationConfig

from support.checkpoints import (
    WORDS,
    _bert_tokenizer,
    _chain,
    _clip_tokenizer,
    _image_processor,
    _llama_tokenizer,
    _seed,
)

_tf: Any = transformers  # its annotations are partial
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def _byte_tokenizer(*special: str, **named: str) -> Any:
    """Byte-level BPE with whole words; `special` tokens, and those that the tokenizer knows by a name."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        _chain(["Ġ", *word], vocab, merges)
    tokenizer = _tf.Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=named,
        model_max_length=2048,
    )
    tokens = ["<|im_start|>", *special]
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens], special_tokens=True)
    return tokenizer


def _talkative(model: Any, tokenizer: Any, bos: int | None = None) -> Any:
    """Let a model answer in words and stop by itself now and then."""
    words = tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in WORDS])
    head = model.get_output_embeddings()
    with torch.no_grad():
        mute = torch.ones(head.weight.shape[0], dtype=torch.bool)
        mute[[*words, tokenizer.eos_token_id]] = False
        head.weight[mute] = 0.0
    model.generation_config = GenerationConfig(
        bos_token_id=bos, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model


def _save(
    folder: Path, model: Any, tokenizer: Any, images: Any, processor: str, template: str = "", **more: Any
) -> Path:
    model.eval().save_pretrained(folder)
    return save_processor(folder, tokenizer, images, processor, template, **more)


def save_processor(folder: Path, tokenizer: Any, images: Any, processor: str, template: str = "", **more: Any) -> Path:
    """Write tokenizer and image processor so that they are read as a processor of that class."""
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    stored = folder / "preprocessor_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"processor_class": processor}))
    if more:
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor, **more}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


# ------------------------------------------------------------------------------------------------ captioners


def qwen_tokenizer() -> Any:
    """The special tokens of Qwen's captioners."""
    return _byte_tokenizer("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    """Return the settings of a configuration that name its special tokens."""
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


QWEN_TEMPLATE = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen(folder: Path, name: str, vision: dict[str, Any], patch: int, mrope: dict[str, Any]) -> Path:
    tokenizer = qwen_tokenizer()
    config = getattr(_tf, f"{name}Config")(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": mrope}
        | ({"head_dim": 16} if patch == 16 else {}),
        vision_config=vision,
        **qwen_ids(tokenizer),
    )
    with _seed(21):
        model = getattr(_tf, f"{name}ForConditionalGeneration")(config)
    images = _tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112},
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
    )
    processor = "Qwen2_5_VLProcessor" if name.startswith("Qwen2_5") else f"{name}Processor"
    return _save(folder, _talkative(model, tokenizer), tokenizer, images, processor, QWEN_TEMPLATE)


def qwen2_5_vl(folder: Path) -> Path:
    """Window attention, rotary positions in time, height and width."""
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "fullatt_block_indexes": [1], "patch_size": 14, "initializer_range": 0.3}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    return _qwen(folder, "Qwen2_5_VL", vision, 14, rope)


def qwen3_vl(folder: Path) -> Path:
    """Features of several vision layers go into several text layers."""
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 64, "patch_size": 16, "initializer_range": 0.3}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    return _qwen(folder, "Qwen3VL", vision, 16, rope)


def internvl3(folder: Path) -> Path:
    """Pixel shuffle; a picture of one tile here."""
    tokenizer = _byte_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    config = _tf.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": [56, 56], "patch_size": [14, 14], "initializer_range": 0.3},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    with _seed(22):
        model = _tf.InternVLForConditionalGeneration(config)
    images = _tf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, min_patches=1, max_patches=2)
    template = CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    return _save(
        folder, _talkative(model, tokenizer), tokenizer, images, "InternVLProcessor", template, image_seq_length=4
    )


def llava_onevision(folder: Path) -> Path:
    """Tiles of any aspect ratio, SigLIP's vision tower."""
    tokenizer = _byte_tokenizer("<image>", "<video>")
    ids = tokenizer.convert_tokens_to_ids
    grid = [[56, 56], [56, 112], [112, 56]]
    config = _tf.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14,
                       "vision_use_head": False},
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=grid,
    )  # fmt: skip
    with _seed(23):
        model = _tf.LlavaOnevisionForConditionalGeneration(config)
    images = _tf.LlavaOnevisionImageProcessorPil(size={"height": 56, "width": 56}, image_grid_pinpoints=grid)
    template = CHATML.replace("IMAGE", "<image>")
    return _save(
        folder, _talkative(model, tokenizer), tokenizer, images, "LlavaOnevisionProcessor", template,
        num_image_tokens=16, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip


def llava_interleave(folder: Path) -> Path:
    """LLaVA with SigLIP's vision tower and Qwen2, for several images."""
    tokenizer = _byte_tokenizer("<image>")
    config = _tf.LlavaConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14,
                       "vision_use_head": False},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    with _seed(24):
        model = _tf.LlavaForConditionalGeneration(config)
    images = _tf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    template = CHATML.replace("IMAGE", "<image>\n")
    return _save(
        folder, _talkative(model, tokenizer), tokenizer, images, "LlavaProcessor", template,
        patch_size=14, vision_feature_select_strategy="full", num_additional_image_tokens=0,
    )  # fmt: skip


def smolvlm2(folder: Path) -> Path:
    """Images nested by prompt, split into tiles; Llama, whose prompts open with its first token."""
    tokenizer = _byte_tokenizer(
        "<global-img>",
        *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)),
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        end_of_utterance_token="<end_of_utterance>",
    )
    tokenizer.bos_token = "<|im_start|>"
    config = _tf.SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": 56, "patch_size": 14, "initializer_range": 0.3},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _seed(25):
        model = _tf.SmolVLMForConditionalGeneration(config)
    images = _tf.SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    template = CHATML.replace("IMAGE", "<image>")
    return _save(folder, _talkative(model, tokenizer), tokenizer, images, "SmolVLMProcessor", template, image_seq_len=4)


def _blip(folder: Path, name: str, text: dict[str, Any], seed: int) -> Path:
    tokenizer = _byte_tokenizer("<image>")
    qformer = {**VISION, "vocab_size": 2712, "max_position_embeddings": 64}
    config = getattr(_tf, f"{name}Config")(
        text_config=text | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        vision_config={**VISION, "image_size": 56, "initializer_range": 0.3},
        qformer_config=qformer | {"initializer_range": 0.3},
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    with _seed(seed):
        model = getattr(_tf, f"{name}ForConditionalGeneration")(config)
        with torch.no_grad():
            model.query_tokens.normal_()
    images = _tf.BlipImageProcessorPil(size={"height": 56, "width": 56})
    _save(folder, _talkative(model, tokenizer), tokenizer, images, f"{name}Processor", num_query_tokens=4)
    if name == "InstructBlip":
        _bert_tokenizer().save_pretrained(folder / "qformer_tokenizer")
    return folder


def blip2(folder: Path) -> Path:
    """A Q-Former's queries before the text of an OPT; its processor places the image."""
    text = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 256, "word_embed_proj_dim": 32, "init_std": 0.3}  # fmt: skip
    return _blip(folder, "Blip2", text, 26)


def instructblip(folder: Path) -> Path:
    """A Q-Former that reads the question, and a T5, whose answers do not begin with the prompt."""
    text = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
            "initializer_factor": 2.0, "decoder_start_token_id": 256}  # fmt: skip
    return _blip(folder, "InstructBlip", text, 27)


CAPTIONERS: dict[str, Callable[[Path], Path]] = {
    one.__name__: one
    for one in (qwen2_5_vl, qwen3_vl, internvl3, llava_onevision, llava_interleave, smolvlm2, blip2, instructblip)
}


# ------------------------------------------------------------------------------------------------- detectors


def mm_grounding_dino(folder: Path) -> Path:
    """Grounding DINO with other heads."""
    tokenizer = _bert_tokenizer()
    config = _tf.MMGroundingDinoConfig(
        backbone_config=_tf.SwinConfig(
            embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=7, initializer_range=0.2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config={"model_type": "bert", "vocab_size": len(tokenizer), **VISION, "initializer_range": 0.2},
        num_queries=20, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, init_std=0.2,
    )  # fmt: skip
    with _seed(31):
        model = _tf.MMGroundingDinoForObjectDetection(config)
        _move_boxes(model, (0.0, 0.0, 1.0, 1.5))
        with torch.no_grad():
            for head in {id(h): h for h in model.class_embed}.values():
                if isinstance(getattr(head, "bias", None), torch.nn.Parameter):
                    head.bias.fill_(0.0)
    images = _tf.GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192})
    return _save(folder, model, tokenizer, images, "GroundingDinoProcessor")


def _move_boxes(model: Any, offsets: tuple[float, ...]) -> None:
    """Move the heads of boxes, which start at zero: all boxes would be the anchors."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "bbox" in name and weight.dim() == 2 and weight.shape[0] == 4:
                weight.normal_(std=0.15)
            if "bbox" in name and weight.shape == (4,):
                weight.copy_(torch.tensor(offsets))


def _spread_labels(model: Any, bias: list[float]) -> None:
    """Let the heads of classes favour different labels, with scores that pass a threshold."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_embed" in name or "score_head" in name:
                weight.normal_(std=0.5)
                if weight.dim() == 1:
                    weight.copy_(torch.tensor(bias))


def owlv2(folder: Path) -> Path:
    """Labels against CLIP features of patches."""
    tokenizer = _clip_tokenizer()
    config = _tf.Owlv2Config(
        text_config={"vocab_size": len(tokenizer), **VISION, "max_position_embeddings": 77, "pad_token_id": 0,
                     "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**VISION, "image_size": 64, "patch_size": 16},
        projection_dim=32,
        initializer_factor=4.0,
    )  # fmt: skip
    with _seed(32):
        model = _tf.Owlv2ForObjectDetection(config)
        with torch.no_grad():
            model.layer_norm.weight.mul_(0.005)  # softer scores
    images = _tf.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    tokenizer.model_max_length = 77
    return _save(folder, model, tokenizer, images, "Owlv2Processor")


LABELS = {0: "dog", 1: "Person", 2: "cup"}


def _closed(folder: Path, name: str, **more: Any) -> Path:
    backbone = _tf.HGNetV2Config(
        stem_channels=[3, 8, 8], stage_in_channels=[8, 16, 16, 32], stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 16, 32, 32], stage_num_blocks=[1, 1, 1, 1], stage_numb_of_layers=[1, 1, 1, 1],
        embedding_size=8, hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"],
    ) if name == "DFine" else _tf.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = getattr(_tf, f"{name}Config")(
        backbone_config=backbone, encoder_in_channels=[16, 32, 32] if name == "DFine" else [16, 16, 32],
        encoder_hidden_dim=32, encoder_ffn_dim=64, encoder_attention_heads=2, d_model=32, num_queries=20,
        decoder_in_channels=[32, 32, 32], decoder_ffn_dim=64, decoder_layers=2, decoder_attention_heads=2,
        num_denoising=0, id2label=LABELS, label2id={name: n for n, name in LABELS.items()}, **more,
    )  # fmt: skip
    with _seed(33):
        model = getattr(_tf, f"{name}ForObjectDetection")(config)
        _move_boxes(model, (0.0, 0.0, 0.5, 0.5))
        _spread_labels(model, [-0.8, 0.8, 0.0] if name == "DFine" else [0.5, 0.0, 0.0])
    images = _tf.RTDetrImageProcessorPil(size={"height": 96, "width": 96})
    images.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


def rt_detr_v2(folder: Path) -> Path:
    """Three labels of its own."""
    return _closed(folder, "RTDetrV2")


def d_fine(folder: Path) -> Path:
    """Three labels of its own, boxes as distributions."""
    return _closed(folder, "DFine")


def omdet_turbo(folder: Path) -> Path:
    """Labels against CLIP features, boxes without NMS inside the model; its processor needs torchvision."""
    tokenizer = _clip_tokenizer()
    tokenizer.model_max_length = 77
    text = {**VISION, "hidden_size": 48, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "pad_token_id": 0,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}  # fmt: skip
    config = _tf.OmDetTurboConfig(
        text_config=_tf.CLIPTextConfig(**text, projection_dim=32),
        backbone_config=_tf.SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        use_timm_backbone=False, backbone=None, apply_layernorm_after_vision_backbone=False, image_size=64,
        num_queries=20, text_projection_in_dim=48, text_projection_out_dim=48, class_embed_dim=48,
        task_encoder_hidden_dim=64, encoder_in_channels=[32, 64, 128], encoder_hidden_dim=32, encoder_attention_heads=2,
        encoder_dim_feedforward=64, vision_features_channels=[32, 32, 32], decoder_hidden_dim=32, decoder_num_heads=2,
        decoder_dim_feedforward=64, decoder_num_layers=2,
    )  # fmt: skip
    with _seed(36):
        model = _tf.OmDetTurboForObjectDetection(config)
    images = _tf.DetrImageProcessorPil(size={"height": 64, "width": 64})
    return _save(folder, model, tokenizer, images, "OmDetTurboProcessor")


def rf_detr(folder: Path) -> Path:
    """Three labels of its own behind a DINOv2 in windows; its image processor needs torchvision."""
    config = _tf.RfDetrConfig(
        backbone_config=_tf.RfDetrDinov2Config(
            **VISION | {"num_hidden_layers": 4}, image_size=112, patch_size=14, num_windows=2, out_indices=[2, 4]
        ),
        d_model=32, num_queries=20, decoder_layers=2, decoder_self_attention_heads=2, decoder_cross_attention_heads=4,
        decoder_ffn_dim=64, group_detr=2, id2label=LABELS, label2id={name: n for n, name in LABELS.items()},
    )  # fmt: skip
    with _seed(35):
        model = _tf.RfDetrForObjectDetection(config)
        _spread_labels(model, [0.5, 0.0, 0.0])
    _tf.RfDetrImageProcessor(size={"height": 112, "width": 112}).save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


DETECTORS: dict[str, Callable[[Path], Path]] = {
    one.__name__: one for one in (mm_grounding_dino, owlv2, rt_detr_v2, d_fine, omdet_turbo, rf_detr)
}


# -------------------------------------------------------------------------------------------------- encoders


def metaclip2(folder: Path) -> Path:
    """CLIP with a text tower of many languages."""
    tokenizer = _clip_tokenizer()
    config = _tf.MetaClip2Config(
        text_config={"vocab_size": len(tokenizer), **VISION, "max_position_embeddings": 77, "pad_token_id": 0,
                     "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id},
        vision_config={**VISION, "image_size": 56, "patch_size": 14},
        projection_dim=24,
        initializer_factor=4.0,
    )  # fmt: skip
    with _seed(36):
        model = _tf.MetaClip2Model(config)
    return _save(folder, model, tokenizer, _image_processor(56), "CLIPProcessor")


def _siglip(folder: Path, name: str, tokenizer: Any, vision: dict[str, Any], images: Any) -> Path:
    config = getattr(_tf, f"{name}Config")(
        text_config={"vocab_size": len(tokenizer), **VISION, "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**VISION, **vision},
    )
    with _seed(36):
        model = getattr(_tf, f"{name}Model")(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(3.0)
    return _save(folder, model, tokenizer, images, f"{name}Processor")


def siglip(folder: Path) -> Path:
    """Vectors of no projection; the text's is that of its last position, padding included."""
    images = _tf.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    tokenizer = _byte_tokenizer()
    tokenizer.model_max_length = 16
    return _siglip(folder, "Siglip", tokenizer, {"image_size": 56, "patch_size": 14}, images)


def siglip2(folder: Path) -> Path:
    """SigLIP for images of any aspect ratio, as patches."""
    images = _tf.Siglip2ImageProcessorPil(patch_size=14, max_num_patches=16)
    llama = json.loads(_llama_tokenizer().backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in llama["merges"]]
    vocab = llama["vocab"] | {
        name: len(llama["vocab"]) + n for n, name in enumerate(("<bos>", "<eos>", "<pad>", "<mask>"))
    }
    tokenizer = _tf.Siglip2Tokenizer(vocab=vocab, merges=merges, model_max_length=16)
    return _siglip(folder, "Siglip2", tokenizer, {"num_patches": 16, "patch_size": 14}, images)


ENCODERS: dict[str, Callable[[Path], Path]] = {one.__name__: one for one in (metaclip2, siglip, siglip2)}
