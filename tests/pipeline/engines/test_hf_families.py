"""The `hf` engines on many architectures: no code of ours knows one by name, so all must keep the same promises."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Pil

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe_loading import engine_preset
from c2vl_pipeline.engines import Crop, Frame, declared_facts, hf_checkpoint, load
from support import checkpoints, families
from support.hf import message

QUESTION = "Is he/she or are they holding anything in the hand?"
NEEDS_PACKAGE = {"smolvlm2": "num2words", "omdet_turbo": "torchvision", "rf_detr": "torchvision"}
IMAGES_IN_A_PROMPT = sorted(families.CAPTIONERS.keys() - {"blip2", "instructblip"})

_tf: Any = transformers


def picture(height: int, width: int, seed: int) -> np.ndarray:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Pil.fromarray(colours).resize((width, height), Pil.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}
    table = families.DETECTORS | families.CAPTIONERS | families.ENCODERS

    def folder(name: str) -> Path:
        package = NEEDS_PACKAGE.get(name)
        if package and find_spec(package) is None:
            pytest.skip(f"needs {package}")
        if name not in made:
            made[name] = table[name](tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def engine(role: Any, model: Path, **fields: Any) -> Any:
    return load(EngineSpec(role=role, backend="hf", model=str(model), **fields))


# --- detectors --------------------


def found(model: Path, frames: list[Frame], batch_size: int, **options: Any) -> list[Any]:
    options = {"threshold": 0.3, **options}
    return list(engine("detector", model, batch_size=batch_size, options=options).detect(frames, "person"))


@pytest.mark.parametrize("name", families.DETECTORS)
def test_detection_in_batches_equals_one_by_one_inside_the_frame_best_first(folder: Any, name: str) -> None:
    frames = [Frame(picture(240, 320, s), "a", s) for s in range(4)]
    many, one = (found(folder(name), frames, size) for size in (4, 1))
    assert sum(map(len, one)) >= 8
    for a, b in zip(many, one, strict=True):
        assert [x.score for x in a] == pytest.approx([x.score for x in b], abs=1e-4)
        assert [x.score for x in a] == sorted((x.score for x in a), reverse=True)
        for x, y in zip(a, b, strict=True):
            assert (x.x0, x.y0, x.x1, x.y1) == pytest.approx((y.x0, y.y0, y.x1, y.y1), abs=2e-2)
            assert 0 <= x.x0 < x.x1 <= 320
            assert 0 <= x.y0 < x.y1 <= 240
            assert x.score > 0.3


@pytest.mark.parametrize("name", ["rt_detr_v2", "d_fine", "rf_detr"])
def test_a_closed_set_detector_keeps_the_boxes_of_the_label_that_equals_the_query(folder: Any, name: str) -> None:
    image = picture(240, 320, 1)
    model = _tf.AutoModelForObjectDetection.from_pretrained(folder(name)).eval()
    processor = _tf.AutoImageProcessor.from_pretrained(folder(name), backend="pil")
    with torch.inference_mode():
        outputs = model(**processor([image], return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(240, 320)])
    person = [
        s for s, label in zip(expected["scores"].tolist(), expected["labels"].tolist(), strict=True) if label == 1
    ]
    assert 0 < len(person) < 20
    (boxes,) = found(folder(name), [Frame(image, "a", 0)], 1)
    assert [box.score for box in boxes] == pytest.approx(sorted(person, reverse=True), abs=1e-5)


def test_a_query_without_a_label_is_one_line(folder: Any) -> None:
    detector = engine("detector", folder("d_fine"))
    for query, told in (("horse", "they begin 'dog', 'Person', 'cup'"), ("persons", "near it are 'Person'")):
        with pytest.raises(EngineError) as caught:
            detector.detect([Frame(picture(50, 60, 0), "a", 0)], query)
        text = str(caught.value)
        assert text.startswith(f"pipeline.crop.query = {query!r} is none of the 3 labels of the detector ")
        assert f"; {told} (all: id2label in its config.json); set one of them, or choose" in text
        assert "hf download" not in text


def test_an_edge_where_the_checkpoint_resizes_by_height_and_width_is_one_line(folder: Any) -> None:
    text = message("detector", folder("d_fine"), options={"shortest_edge": 300})
    assert text.startswith(
        "pipeline.crop.engine.options.shortest_edge = 300: this checkpoint resizes by height and width"
    )


# --- captioners --------------------


def answers(model: Path, clips: list[list[np.ndarray]], batch_size: int, question: str = QUESTION) -> Any:
    captioner = engine("captioner", model, batch_size=batch_size, options={"max_new_tokens": 8})
    crops = [Crop(clip[0], "a", 0, later=tuple(clip[1:])) for clip in clips]
    return captioner.caption(crops, question)


@pytest.mark.parametrize("name", families.CAPTIONERS)
def test_captions_in_batches_equal_one_by_one(folder: Any, name: str) -> None:
    """Exactly, for images of several shapes, so for prompts of several lengths."""
    clips = [[picture(300 - 40 * s, 200 + 20 * s, s)] for s in range(5)]
    many, one = (answers(folder(name), clips, size) for size in (5, 1))
    assert many == one
    assert len({caption.text for caption in one}) > 1
    for caption in one:
        assert set(caption.text.split()) <= set(checkpoints.WORDS)  # no prompt, no stop token
        assert len(caption.text.split()) == caption.tokens <= 8


@pytest.mark.parametrize("name", families.CAPTIONERS)
def test_prompts_of_different_lengths_are_padded_on_the_left(folder: Any, name: str) -> None:
    many, one = (engine("captioner", folder(name), batch_size=size, options={"max_new_tokens": 6}) for size in (3, 1))
    clips, questions = [[picture(90, 90, s)] for s in range(3)], ["man", QUESTION, "Is she sitting in the picture?"]
    mask = many.encode(clips, questions)["attention_mask"]
    if name not in {"blip2", "instructblip"}:  # these begin with the image
        lengths = mask.sum(1).tolist()
        assert len(set(lengths)) > 1
        assert all(row[-length:].all() for row, length in zip(mask, lengths, strict=True))
    assert many.answer(clips, questions) == one.answer(clips, questions)


@pytest.mark.parametrize("name", IMAGES_IN_A_PROMPT)
def test_an_answer_equals_a_naive_greedy_loop(folder: Any, name: str) -> None:
    """Without cache, padding and `generate`: the whole prompt again for every token."""
    captioner = engine("captioner", folder(name), options={"max_new_tokens": 8})
    model, tokenizer = captioner._at.model, captioner._at.processor.tokenizer
    image = picture(100, 130, 7)
    inputs, tokens = captioner.encode([[image]], [QUESTION]), []
    with torch.inference_mode():
        while len(tokens) < 8:
            token = int(model(**inputs, use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
            for key, more in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                if key in inputs:
                    inputs[key] = torch.cat([inputs[key], torch.tensor([[more]], dtype=inputs[key].dtype)], 1)
    beside = [Crop(picture(260, 90, 8), "a", 1), Crop(image, "a", 0)]
    answer = captioner.caption(beside, QUESTION)[1]
    assert (answer.text, answer.tokens) == (tokenizer.decode(tokens).strip(), len(tokens))


@pytest.mark.parametrize("name", IMAGES_IN_A_PROMPT)
def test_a_clip_is_one_prompt_with_all_its_images(folder: Any, name: str) -> None:
    clips = [[picture(100, 120, 3 * s + i) for i in range(2 + s)] for s in range(3)]
    many, one = (answers(folder(name), clips, size) for size in (3, 1))
    assert many == one
    captioner = engine("captioner", folder(name))
    ids = [captioner.encode([clip], [QUESTION])["input_ids"].shape[1] for clip in clips]
    assert ids == sorted(set(ids))  # each image takes its tokens
    other = [*clips[2][:-1], picture(100, 120, 99)]
    pixels = [captioner.encode([clip], [QUESTION])["pixel_values"] for clip in (clips[2], other)]
    assert not torch.equal(*pixels)


@pytest.mark.parametrize("name", IMAGES_IN_A_PROMPT)
def test_a_prompt_without_an_image_is_answered(folder: Any, name: str) -> None:
    prompts = ["Is he sitting or standing?", "what", "She is holding a phone in both hands and trying to raise it"]
    many, one = (
        engine("captioner", folder(name), batch_size=size, options={"max_new_tokens": 6}).complete(prompts)
        for size in (3, 1)
    )
    assert many == one
    assert len({caption.text for caption in one}) > 1


def test_a_model_that_always_wants_an_image_rewrites_nothing_in_one_line(folder: Any) -> None:
    with pytest.raises(EngineError, match=r"answers about images only; empty pipeline\.caption\.rewrite"):
        engine("captioner", folder("blip2")).complete(["Shorten: he sits"])


@pytest.mark.parametrize("name", ["blip2", "instructblip"])
def test_several_images_for_a_model_that_takes_one_are_one_line(folder: Any, name: str) -> None:
    with pytest.raises(EngineError, match=r"takes one image in a prompt; .*pipeline\.caption\.view = \"frame\""):
        answers(folder(name), [[picture(60, 60, 0), picture(60, 60, 1)]], 1)


@pytest.mark.parametrize(
    ("name", "words", "new", "says"),
    [
        ("blip2", "hand " * 300, 8, "reads 256; shorten pipeline.caption.question"),
        ("llava_onevision", "hand " * 3000, 8, "reads 2,048; shorten pipeline.caption.question"),
        ("llava_onevision", "hand", 100_000, "; lower pipeline.caption.engine.options.max_new_tokens to "),
    ],
)
def test_a_prompt_longer_than_the_context_is_one_line(
    folder: Any, caplog: pytest.LogCaptureFixture, name: str, words: str, new: int, says: str
) -> None:
    captioner = engine("captioner", folder(name), options={"max_new_tokens": new})
    library = logging.getLogger("transformers")  # passes nothing on to the root
    library.addHandler(caplog.handler)
    try:
        with pytest.raises(EngineError) as caught:
            captioner.caption([Crop(picture(60, 60, 0), "a", 0)], words)
    finally:
        library.removeHandler(caplog.handler)
    text = str(caught.value)
    assert f"and the answer may have {new:,} (max_new_tokens), but " in text
    assert says in text
    assert not caplog.records
    if new > 8:  # with what is advised, the answer fits
        most = int(text.partition("max_new_tokens to ")[2].split()[0])
        captioner._at.options["max_new_tokens"] = most
        length = captioner.encode([[picture(60, 60, 0)]], [words])["input_ids"].shape[1]
        captioner._check_lengths(length)
        with pytest.raises(EngineError):
            captioner._check_lengths(length + 1)


def test_a_question_longer_than_a_qformer_reads_is_one_line(folder: Any) -> None:
    with pytest.raises(EngineError, match=r"the question has 102 tokens, but the Q-Former of .* reads 64; shorten"):
        answers(folder("instructblip"), [[picture(60, 60, 0)]], 1, "hand " * 100)


def test_a_pickle_of_another_protocol_is_one_line(
    folder: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    plain = shutil.copytree(folder("qwen3_vl"), tmp_path / "plain")
    (plain / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, plain / "pytorch_model.bin", pickle_protocol=4)
    recwarn.clear()
    text = message("captioner", plain)
    assert (
        ": damaged, or pickled otherwise than torch.save does by default; save it again as safetensors; get one" in text
    )
    assert "weights_only" not in text
    assert not recwarn.list


def test_a_pickle_of_more_than_tensors_names_what_it_holds(folder: Any, tmp_path: Path) -> None:
    """Torch's own message advises to load it all the same, which runs what it holds."""
    more = shutil.copytree(folder("qwen3_vl"), tmp_path / "more")
    (more / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1), "args": argparse.Namespace(lr=1)}, more / "pytorch_model.bin")
    text = message("captioner", more)
    assert (
        ": holds argparse.Namespace, expected tensors alone (nothing else is ever loaded); save it again without"
        in text
    )
    assert not any(word in text for word in ("weights_only", "safe_globals", "trust", "\033"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_clone_without_git_lfs_says_so(folder: Any, tmp_path: Path, name: str) -> None:
    clone = shutil.copytree(folder("qwen3_vl"), tmp_path / "clone")
    size = (clone / name).stat().st_size
    (clone / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n")
    text = message("captioner", clone)
    assert f": {name} is a pointer of Git LFS, expected the file itself; run `git lfs pull` in {clone}; get one" in text


def test_pointers_of_git_lfs_that_are_never_read_are_not_to_blame(folder: Any, tmp_path: Path) -> None:
    clone = shutil.copytree(folder("qwen3_vl"), tmp_path / "clone")
    (clone / "onnx").mkdir()
    for other in (clone / "model.onnx", clone / "onnx" / "model.json"):
        other.write_text("version https://git-lfs.github.com/spec/v1\n")
    (clone / "model.safetensors").write_bytes((clone / "model.safetensors").read_bytes()[:100])
    text = message("captioner", clone)
    assert "damaged or incomplete, cannot be loaded (SafetensorError" in text
    assert "LFS" not in text


def test_a_template_that_opens_the_prompt_is_not_opened_twice(folder: Any) -> None:
    captioner = engine("captioner", folder("smolvlm2"))
    ids = captioner.encode([[picture(60, 60, 0)]], [QUESTION])["input_ids"][0].tolist()
    opening = captioner._at.processor.tokenizer.bos_token_id
    assert ids[0] == opening
    assert ids[1] != opening


def test_thinking_that_the_template_opens_is_part_of_the_answer(folder: Any, tmp_path: Path) -> None:
    thinks = shutil.copytree(folder("qwen3_vl"), tmp_path / "thinks")
    with (thinks / "chat_template.jinja").open("a") as template:
        template.write("{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    (caption,) = answers(thinks, [[picture(60, 60, 0)]], 1)
    assert caption.text.startswith("<think>")


def test_no_video_processor_is_asked_for(folder: Any) -> None:
    """Its class needs torchvision, and no crop is a video: a processor is the same with torchvision and without."""
    module = __import__("transformers.models.auto.video_processing_auto", fromlist=["AutoVideoProcessor"])
    loader, check = module.AutoVideoProcessor, _tf.ProcessorMixin.check_argument_for_proper_class
    captioner = engine("captioner", folder("qwen2_5_vl"))
    assert isinstance(captioner._at.processor.video_processor, hf_checkpoint._NoVideo)
    assert type(captioner._at.processor.image_processor).__name__.endswith("Pil")
    assert module.AutoVideoProcessor is loader
    assert _tf.ProcessorMixin.check_argument_for_proper_class is check


# --- encoders --------------------


@pytest.mark.parametrize("name", families.ENCODERS)
def test_vectors_in_batches_equal_one_by_one(folder: Any, name: str) -> None:
    """To 1e-5, for texts of several lengths: none depends on its neighbours."""
    many, one = (engine("encoder", folder(name), batch_size=size) for size in (4, 1))
    texts = ["a person standing", "", "she is holding a phone in both hands", "jump " * 100, "what"]
    images = [picture(200 + 30 * s, 220, s) for s in range(4)]
    np.testing.assert_allclose(many.encode_texts(texts).vectors, one.encode_texts(texts).vectors, atol=1e-5)
    np.testing.assert_allclose(many.encode_images(images), one.encode_images(images), atol=1e-5)
    for vectors in (one.encode_texts(texts).vectors, one.encode_images(images)):
        assert vectors.shape[1] == one.text_dim == one.image_dim
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "padding"), [("metaclip2", None), ("siglip", "max_length"), ("siglip2", "max_length")]
)
def test_texts_have_a_fixed_length_only_where_padding_changes_a_vector(folder: Any, name: str, padding: Any) -> None:
    encoder = engine("encoder", folder(name))
    assert encoder.describe().get("padding") == padding
    model, tokenizer = encoder._at.model, encoder._at.processor.tokenizer
    with torch.inference_mode():
        batch = [
            torch.nn.functional.normalize(
                model.get_text_features(
                    **tokenizer(texts, padding=True, return_tensors="pt", max_length=16, truncation=True)
                ).pooler_output,
                dim=-1,
            )[0]
            for texts in (["jump"], ["jump", "a person " * 3])
        ]
    assert (float(batch[0] @ batch[1]) < 0.99) == (padding is not None)


@pytest.mark.parametrize("name", families.ENCODERS)
def test_texts_beyond_the_positions_are_cut_counted_and_reported(folder: Any, name: str) -> None:
    encoder = engine("encoder", folder(name))
    texts = encoder.encode_texts(["yes", "yes " * 200, "yes " * 300])
    assert texts.truncated.tolist() == [False, True, True]
    assert texts.tokens[1] < texts.tokens[2]
    np.testing.assert_allclose(texts.vectors[1], texts.vectors[2], atol=1e-5)


def test_a_model_whose_vectors_are_of_another_kind_is_one_line(folder: Any) -> None:
    assert "which gives no vectors of one text and one image (" in message("encoder", folder("blip2"))


# --- options of all --------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_implementation_of_attention_is_an_option(folder: Any, attention: str) -> None:
    encoder = engine("encoder", folder("siglip"), options={"attention": attention})
    assert encoder._at.model.config._attn_implementation == attention
    assert encoder.describe()["options"]["attention"] == attention
    image = [picture(90, 90, 0)]
    np.testing.assert_allclose(
        encoder.encode_images(image), engine("encoder", folder("siglip")).encode_images(image), atol=1e-5
    )


def test_an_attention_that_the_model_lacks_is_one_line(folder: Any) -> None:
    text = message("captioner", folder("qwen2_5_vl"), options={"attention": "flex_attention"})
    assert text.startswith(
        "pipeline.caption.engine.options.attention = 'flex_attention': this model cannot use it here ("
    )


def test_quantisation_without_its_package_is_one_line(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_checkpoint, "find_spec", lambda name: None)
    assert message("captioner", folder("qwen2_5_vl"), options={"quantisation": "8bit"}) == (
        "pipeline.caption.engine.options.quantisation = '8bit' needs the package bitsandbytes, which is not installed; "
        "`pip install bitsandbytes accelerate`, or leave the option out"
    )


def test_four_bits_on_a_cpu_are_refused_in_one_line(folder: Any) -> None:
    assert message("captioner", folder("qwen2_5_vl"), device="cpu", options={"quantisation": "4bit"}) == (
        "pipeline.caption.engine.options.quantisation = '4bit' needs a GPU, and this engine runs on cpu; "
        "use '8bit', leave the option out, or set pipeline.caption.engine.device = 'cuda'"
    )


@pytest.mark.parametrize("name", ["metaclip2", "siglip"])
def test_lengths_are_kept_where_they_are_asked_for(folder: Any, name: str) -> None:
    plain, kept = (engine("encoder", folder(name), options={"keep_lengths": keep}) for keep in (False, True))
    images, texts = [picture(60, 60, n) for n in range(3)], ["a man", "a woman with a cup " * 3]
    assert plain._padding == kept._padding
    for unit, long in (
        (plain.encode_images(images), kept.encode_images(images)),
        (plain.encode_texts(texts).vectors, kept.encode_texts(texts).vectors),
    ):
        lengths = np.linalg.norm(long, axis=1, keepdims=True)
        assert not np.allclose(lengths, 1, atol=0.01)
        np.testing.assert_allclose(long / lengths, unit, atol=1e-5)


def test_kept_lengths_are_in_the_key_of_the_stage() -> None:
    preset = EngineSpec.model_validate(engine_preset("hf-clip-vit-l-14-336"))
    asked = preset.model_copy(update={"options": {**preset.options, "keep_lengths": True}})
    assert declared_facts(asked) != declared_facts(preset)
    assert "keep_lengths" not in declared_facts(preset)["options"]


@pytest.mark.slow
def test_a_quantised_captioner_answers(folder: Any) -> None:
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        pytest.skip("needs bitsandbytes and accelerate")
    model = folder("qwen2_5_vl")
    captioner = engine("captioner", model, options={"quantisation": "8bit", "max_new_tokens": 4})
    assert captioner._at.model.is_quantized
    assert captioner.caption([Crop(picture(60, 60, 0), "a", 0)], QUESTION)[0].tokens > 0


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_vectors(folder: Any) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    image = [picture(90, 90, 0)]
    compiled = engine("encoder", folder("siglip"), options={"compile": True})
    np.testing.assert_allclose(
        compiled.encode_images(image), engine("encoder", folder("siglip")).encode_images(image), atol=1e-4
    )


def test_a_captioner_with_a_cache_of_fixed_size_gives_the_same_answers(folder: Any) -> None:
    crops = [Crop(picture(60, 60, s), "a", s) for s in range(2)]
    said = [
        engine("captioner", folder("qwen2_5_vl"), options={"max_new_tokens": 6, "compile": chosen}).caption(
            crops, QUESTION
        )
        for chosen in (False, True)
    ]
    assert said[0] == said[1]


# --- checkpoints that do not do --------------------


def bare(folder: Path, **config: Any) -> Path:
    """A folder whose configuration alone is read."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_language_model_has_no_image_input(tmp_path: Path) -> None:
    text = message("captioner", bare(tmp_path, model_type="llama"))
    assert "holds a 'llama' model, which has no image input (expected one for AutoModelForImageTextToText)" in text


def test_an_architecture_of_tomorrow_names_both_versions(tmp_path: Path) -> None:
    text = message("captioner", bare(tmp_path, model_type="qwen9_vl", transformers_version="7.1.0"))
    assert (
        f"transformers {_tf.__version__} does not know (its files are of 7.1.0; install that version or a newer" in text
    )


@pytest.mark.parametrize("saved", [{"transformers_version": _tf.__version__}, {"transformers_version": "4.9.2"}, {}])
def test_an_architecture_of_no_newer_version_is_no_reason_for_a_newer_one(
    tmp_path: Path, saved: dict[str, str]
) -> None:
    text = message("captioner", bare(tmp_path, model_type="lava", **saved))
    assert f"transformers {_tf.__version__} does not know (its code comes with the checkpoint" in text
    assert "misspelled" in text
    assert "newer" not in text


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    code = "raise SystemExit('ran')"
    (tmp_path / "code.py").write_text(code)
    auto = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model", "AutoProcessor": "code.Processor"}
    assert "does not know" in message("captioner", bare(tmp_path, model_type="mine", auto_map=auto))
    text = message("captioner", bare(tmp_path, model_type="llava", auto_map=auto))
    assert "cannot be loaded" in text


def test_a_checkpoint_without_a_chat_template_is_refused(folder: Any, tmp_path: Path) -> None:
    plain = shutil.copytree(folder("qwen3_vl"), tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    assert "but no chat template; expected chat_template.jinja next to config.json" in message("captioner", plain)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}", "whose chat template places no image; "),
        ("{{ raise_exception('text only') }}", "whose chat template cannot write a question about an image ("),
        ("{{ 'a' + messages }}", "whose chat template cannot write a question about an image ("),
    ],
)
def test_a_chat_template_for_text_only_is_refused(folder: Any, tmp_path: Path, template: str, says: str) -> None:
    plain = shutil.copytree(folder("qwen3_vl"), tmp_path / "plain")
    (plain / "chat_template.jinja").write_text(template)
    assert says in message("captioner", plain)


@pytest.mark.parametrize(
    ("package", "said", "remedy"),
    [
        ("sentencepiece", "SiglipTokenizer requires the SentencePiece library", "`pip install -e '.[models]'`"),
        ("num2words", "Package `num2words` is required to run SmolVLM processor.", "`pip install -e '.[models]'`"),
        (
            "torchvision",
            "OmDetTurboProcessor requires the Torchvision library",
            "the build that fits the installed torch",
        ),
    ],
)
def test_a_missing_package_is_named_with_what_installs_it(
    folder: Any, monkeypatch: pytest.MonkeyPatch, package: str, said: str, remedy: str
) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError(said)

    monkeypatch.setattr(_tf.AutoProcessor, "from_pretrained", absent)
    monkeypatch.setattr(hf_checkpoint, "find_spec", lambda name: None)
    text = message("captioner", folder("qwen3_vl"))
    assert f"needs the package {package}, which is not installed (ImportError: {said}" in text
    assert text.endswith(remedy)
    assert "damaged" not in text


def test_any_other_missing_package_is_not_called_damage(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise ImportError("Loading a GPTQ quantized model requires gptqmodel")

    monkeypatch.setattr(_tf.AutoModelForImageTextToText, "from_pretrained", absent)
    assert message("captioner", folder("qwen3_vl")).endswith(
        "needs a package that is not installed (ImportError: Loading a GPTQ quantized model requires gptqmodel); install it"
    )


def test_a_checkpoint_without_a_processor_of_both_is_refused(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _tf.AutoTokenizer.from_pretrained(folder("qwen3_vl"))
    monkeypatch.setattr(_tf.AutoProcessor, "from_pretrained", lambda *_, **__: tokenizer)
    assert "has no processor that reads both text and images" in message("captioner", folder("qwen3_vl"))


def test_a_sentencepiece_vocabulary_without_its_package_is_not_called_damaged(
    folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shutil.copytree(folder("llava_interleave"), tmp_path / "old")
    (old / "tokenizer.json").unlink()
    (old / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr(hf_checkpoint, "find_spec", lambda name: None)
    assert "needs the package sentencepiece, which is not installed (" in message("captioner", old)
