"""Tiny, randomly initialised checkpoints of the true architectures: they prove the `hf` engines offline.

    python tests/support/checkpoints.py OUTDIR    # writes OUTDIR/groundingdino, OUTDIR/llava and OUTDIR/clip

Each folder is what `from_pretrained` expects: weights, configuration, processor, tokenizer. Geometry is real
(336 pixels in 14-pixel patches, 77 text positions, BERT's ids for `[CLS]`, `[SEP]`, `.` and `?`, on which
Grounding DINO's text mask relies); widths, depths and vocabularies are tiny. What the models say is noise,
but noise that depends on the image, and the same in every process: seeds are fixed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SwinConfig,
)

WORDS = re.findall(
    r"\w+",
    """a and answer are both concisely cup do doing drink hand hands he her his holding in is jump man nothing
    or person phone picture questions raise she sitting standing the their they to trying wave what with woman
    yes""",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""What LLaVA-1.5's own template renders for one user turn."""


@contextmanager
def _seed(value: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(value)
        yield


def _chain(symbols: list[str], vocab: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Add the merges that build `symbols` from the left, and the tokens they make."""
    left = symbols[0]
    for right in symbols[1:]:
        if (left, right) not in merges:
            merges.append((left, right))
        left += right
        vocab.setdefault(left, len(vocab))


def _bert_tokenizer() -> BertTokenizer:
    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029, "person": 2711}
    names = {i: f"[unused{i}]" for i in range(2712)} | {i: token for token, i in ids.items()}
    free = (i for i in range(1100, 2700))
    letters = "abcdefghijklmnopqrstuvwxyz"
    for token in sorted({*letters, *(f"##{c}" for c in letters), *WORDS} - ids.keys()):
        names[next(free)] = token
    return BertTokenizer(vocab={names[i]: i for i in range(2712)}, model_max_length=512)


def _llama_tokenizer() -> LlamaTokenizer:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    for symbol in ["▁", *map(chr, range(33, 127))]:
        vocab.setdefault(symbol, len(vocab))
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        _chain(["▁", *word], vocab, merges)
    tokenizer = LlamaTokenizer(vocab=vocab, merges=merges, model_max_length=4096, add_bos_token=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": [AddedToken("<image>")]})
    return tokenizer


def _clip_tokenizer() -> CLIPTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([*alphabet, *(f"{c}</w>" for c in alphabet)])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        if len(word) > 1:
            _chain([*word[:-1], f"{word[-1]}</w>"], vocab, merges)
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _image_processor(size: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def grounding_dino_processor(shortest_edge: int, longest_edge: int) -> GroundingDinoProcessor:
    """Resize by edges, BERT's special tokens."""
    size = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    return GroundingDinoProcessor(GroundingDinoImageProcessorPil(size=size), _bert_tokenizer())


def llava_processor(chat_template: bool = True) -> LlavaProcessor:
    """576 tokens for an image of 336 pixels."""
    return LlavaProcessor(
        _image_processor(336),
        _llama_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE if chat_template else None,
    )


def clip_processor(image_size: int) -> CLIPProcessor:
    """A square in the middle of the image, 77 tokens."""
    return CLIPProcessor(_image_processor(image_size), _clip_tokenizer())


def _vision(size: int, **more: Any) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=size,
        patch_size=14,
        **more,
    )


def _save(folder: Path | str, model: Any, processor: Any) -> Path:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_grounding_dino(folder: Path | str, shortest_edge: int = 200, num_queries: int = 20) -> Path:
    """Swin + BERT + two-stage deformable encoder and decoder; boxes score 0.2 to 0.5. Returns the folder."""
    backbone = SwinConfig(
        embed_dim=12,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=7,
        out_features=["stage2", "stage3", "stage4"],
        initializer_range=0.2,
    )
    text = BertConfig(
        vocab_size=len(_bert_tokenizer()),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    config = GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        num_queries=num_queries,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.2,
    )
    with _seed(11):
        model = GroundingDinoForObjectDetection(config)
        with torch.no_grad():  # box heads start at zero: move them, or all boxes would be the anchors
            for head in (model.bbox_embed[0], model.model.encoder_output_bbox_embed):
                head.layers[-1].weight.normal_(std=0.15)
                head.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.5]))
            model.model.decoder.layer_norm.weight.mul_(0.15)  # softer scores
    return _save(folder, model, grounding_dino_processor(shortest_edge, 2 * shortest_edge))


def tiny_llava(folder: Path | str, chat_template: bool = True) -> Path:
    """Vision tower at 336 / 14 pixels (576 image tokens), projector, two-layer Llama. Returns the folder.

    It answers in whole words of its small vocabulary and stops by itself now and then.
    """
    tokenizer = _llama_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.3,
    )
    config = LlavaConfig(
        vision_config=_vision(336, initializer_factor=4.0),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    with _seed(12):
        model = LlavaForConditionalGeneration(config)
        with torch.no_grad():
            words = tokenizer.convert_tokens_to_ids([f"▁{word}" for word in WORDS])
            mute = torch.ones(len(tokenizer), dtype=torch.bool)
            mute[[*words, tokenizer.eos_token_id]] = False
            model.lm_head.weight[mute] = 0.0
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return _save(folder, model, llava_processor(chat_template))


def tiny_clip(folder: Path | str, image_size: int = 336) -> Path:
    """CLIP with 14-pixel patches, 77 text positions and 24-d vectors. Returns the folder."""
    tokenizer = _clip_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=_vision(image_size).to_dict(),
        projection_dim=24,
        initializer_factor=4.0,
    )
    with _seed(13):
        model = CLIPModel(config)
    return _save(folder, model, clip_processor(image_size))


def main() -> None:
    """Write all three below the folder named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/support/checkpoints.py OUTDIR")
    out = Path(sys.argv[1])
    print(tiny_grounding_dino(out / "groundingdino"))
    print(tiny_llava(out / "llava"))
    print(tiny_clip(out / "clip"))


if __name__ == "__main__":
    main()
