"""The `hf` engines on real code: tiny random checkpoints of the true architectures, by `from_pretrained`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from safetensors.torch import load_file, save_file

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline.engines import Crop, Frame, grounding, load
from c2vl_pipeline.engines.hf_captioner import HfCaptioner
from c2vl_pipeline.engines.hf_detector import HfDetector
from c2vl_pipeline.engines.hf_encoder import HfEncoder
from support import checkpoints
from support.hf import ROLES, message

QUESTION = (
    "Is he/she or are they holding anything in the hand? Is he/she or are they standing or sitting? "
    "What is he/she or are they trying to do? Answer the questions concisely"
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours: noise would look alike to every model."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Pil.fromarray(colours).resize((width, height), Pil.Resampling.BILINEAR))


def crop(seed: int) -> Crop:
    return Crop(picture(300, 300, seed), f"s{seed}", seed)


def frame(height: int, width: int, seed: int) -> Frame:
    return Frame(picture(height, width, seed), f"s{seed}", seed)


@pytest.fixture(scope="module")
def detectors(build: Callable[..., Any]) -> tuple[HfDetector, HfDetector]:
    return build("detector", batch_size=4), build("detector", batch_size=1)


@pytest.fixture(scope="module")
def captioners(build: Callable[..., Any]) -> tuple[HfCaptioner, HfCaptioner]:
    short = {"max_new_tokens": 16}
    return build("captioner", batch_size=4, options=short), build("captioner", batch_size=1, options=short)


@pytest.fixture(scope="module")
def encoders(build: Callable[..., Any]) -> tuple[HfEncoder, HfEncoder]:
    return build("encoder", batch_size=4), build("encoder", batch_size=1)


# --- the detector --------------------


def test_detection_in_batches_equals_one_by_one(detectors: Any) -> None:
    frames = [frame(240, 320, s) for s in range(5)]
    many, one = (engine.detect(frames, "person") for engine in detectors)
    assert sum(map(len, one)) >= 5
    for a, b in zip(many, one, strict=True):
        assert_same_boxes(a, b)


@pytest.mark.slow
def test_frames_of_other_sizes_in_the_call_do_not_change_a_frame(detectors: Any) -> None:
    frames = [frame(*size, s) for s, size in enumerate([(240, 320), (320, 240), (240, 320), (108, 192), (320, 240)])]
    together = detectors[0].detect(frames, "person")
    assert sum(map(len, together)) >= 3
    for boxes, alone in zip(together, frames, strict=True):
        assert_same_boxes(boxes, detectors[1].detect([alone], "person")[0])


def assert_same_boxes(a: list[Any], b: list[Any]) -> None:
    """Equal to 1e-2 pixels and 1e-4 in score: float32 sums in another order."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.x0, x.y0, x.x1, x.y1) == pytest.approx((y.x0, y.y0, y.x1, y.y1), abs=1e-2)
        assert x.score == pytest.approx(y.score, abs=1e-4)


def test_boxes_lie_inside_the_image_best_first(detectors: Any) -> None:
    frames = [frame(240, 320, s) for s in range(6)] + [frame(320, 200, 9)]
    for boxes, shown in zip(detectors[0].detect(frames, "person"), frames, strict=True):
        height, width = shown.image.shape[:2]
        assert [b.score for b in boxes] == sorted((b.score for b in boxes), reverse=True)
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height
            assert 0.35 < box.score <= 1


@pytest.mark.parametrize("query", ["person", "Person", "person.", " person . "])
def test_the_detector_reads_lower_case_with_a_final_dot(query: str) -> None:
    assert grounding.phrase(query) == "person."


def test_the_model_is_given_the_query_and_a_full_pixel_mask(detectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, seen = detectors[0], []
    forward = engine._at.model.forward
    monkeypatch.setattr(engine._at.model, "forward", lambda **kwargs: seen.append(kwargs) or forward(**kwargs))
    engine.detect([frame(240, 320, 0), frame(108, 192, 1), frame(240, 320, 2)], "Person")
    assert [len(kwargs["input_ids"]) for kwargs in seen] == [2, 1]
    for kwargs in seen:
        assert kwargs["input_ids"][0].tolist() == [101, 2711, 1012, 102]  # [CLS] person . [SEP], as in BERT
        assert bool(kwargs["pixel_mask"].all())


@pytest.mark.slow
def test_a_higher_threshold_keeps_the_best_boxes(build: Callable[..., Any]) -> None:
    frames = [frame(240, 320, s) for s in range(4)]
    loose = build("detector", options={"threshold": 0.3}).detect(frames, "person")
    strict = build("detector", options={"threshold": 0.42}).detect(frames, "person")
    assert 0 < sum(map(len, strict)) < sum(map(len, loose))
    assert strict == [[b for b in boxes if b.score > 0.42] for boxes in loose]


def test_a_frame_without_anyone_has_no_boxes(build: Callable[..., Any]) -> None:
    engine = build("detector", options={"threshold": 0.99})
    assert engine.detect([frame(240, 320, 0), frame(240, 320, 1)], "person") == [[], []]


def test_boxes_without_a_word_of_the_query_are_dropped(build: Callable[..., Any]) -> None:
    frames = [frame(240, 320, s) for s in range(4)]
    assert build("detector", options={"threshold": 0.3, "text_threshold": 0.9}).detect(frames, "person") == [[]] * 4


def test_input_size_is_an_option(build: Callable[..., Any]) -> None:
    engine = build("detector", options={"shortest_edge": 96})
    assert engine.describe()["size"] == {"shortest_edge": 96, "longest_edge": 400}
    assert len(engine.detect([frame(240, 320, 0)], "person")) == 1


# --- the captioner --------------------


@pytest.mark.slow
def test_captions_in_batches_equal_one_by_one(captioners: Any) -> None:
    """Exactly: float32, greedy, and the tiny model has no ties."""
    crops = [crop(s) for s in range(6)]
    many, one = (engine.caption(crops, QUESTION) for engine in captioners)
    assert many == one
    assert len({caption.text for caption in one}) > 3


def test_prompts_of_different_lengths_are_padded_on_the_left(captioners: Any) -> None:
    images = [crop(s).image for s in range(4)]
    questions = ["Is she standing?", QUESTION, "What is he holding in his hand?", "man"]
    mask = captioners[0].encode([[one] for one in images], questions)["attention_mask"]
    lengths = mask.sum(1).tolist()
    assert len(set(lengths)) == 4
    assert all(row[-length:].all() and not row[:-length].any() for row, length in zip(mask, lengths, strict=True))
    assert captioners[0].answer([[one] for one in images], questions) == captioners[1].answer(
        [[one] for one in images], questions
    )


def test_llama_always_gets_its_opening_token(
    build: Callable[..., Any], folders: dict[str, Path], captioners: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["captioner"], tmp_path / "no-bos")
    stored = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(stored | {"post_processor": None}))
    engine = build("captioner", model=str(folder))
    one = [[crop(0).image]], [QUESTION]
    assert engine.encode(*one)["input_ids"].tolist() == captioners[0].encode(*one)["input_ids"].tolist()


@pytest.mark.parametrize("chat_template", [True, False])
def test_prompt_holds_the_question_verbatim_and_576_image_tokens(
    build: Callable[..., Any], tmp_path: Path, chat_template: bool
) -> None:
    engine = build("captioner", model=str(checkpoints.tiny_llava(tmp_path, chat_template)))
    assert engine.prompt(QUESTION) == f"USER: <image>\n{QUESTION} ASSISTANT:"
    ids = engine.encode([[crop(0).image]], [QUESTION])["input_ids"][0].tolist()
    tokenizer = engine._at.processor.tokenizer
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(engine._at.model.config.image_token_id) == 576
    assert QUESTION in tokenizer.decode(ids)


def test_an_old_processor_file_without_image_geometry_still_gives_576_tokens(
    build: Callable[..., Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["captioner"], tmp_path / "old")
    stored = json.loads((folder / "processor_config.json").read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del stored[name]
    (folder / "processor_config.json").write_text(json.dumps(stored))
    old = build("captioner", model=str(folder), options={"max_new_tokens": 4})
    new = build("captioner", options={"max_new_tokens": 4})
    assert old.caption([crop(3)], QUESTION) == new.caption([crop(3)], QUESTION)


def test_pixels_equal_a_hand_written_336_pixel_reference(captioners: Any, encoders: Any) -> None:
    """Bicubic to 336 on the short side, centre crop, [0, 1], CLIP's mean and deviation."""
    image = picture(400, 700, 5)
    wide = np.asarray(Pil.fromarray(image).resize((588, 336), Pil.Resampling.BICUBIC))
    expected = ((wide[:, 126 : 126 + 336] / 255 - MEAN) / STD).transpose(2, 0, 1)
    llava = captioners[0].encode([[image]], [QUESTION])["pixel_values"][0].numpy()
    process = encoders[0]._at.processor.image_processor
    clip = process([image], input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    for pixels in (llava, clip):
        assert pixels.shape == (3, 336, 336)
        np.testing.assert_allclose(pixels, expected, atol=1e-5)
    assert type(process).__name__ == "CLIPImageProcessorPil"


def test_only_new_tokens_are_decoded_and_counted(captioners: Any) -> None:
    engine = captioners[0]
    vocabulary = {f"{word}" for word in checkpoints.WORDS}
    captions = engine.caption([crop(s) for s in range(16)], QUESTION)
    for caption in captions:
        assert set(caption.text.split()) <= vocabulary  # no USER, no ASSISTANT, no </s>
        assert len(caption.text.split()) == caption.tokens <= 16  # the tiny model answers a word a token
    assert len({caption.tokens for caption in captions}) > 1  # some stop by themselves, some are cut


def test_a_suggested_sampling_does_not_survive(
    build: Callable[..., Any], folders: dict[str, Path], captioners: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["captioner"], tmp_path / "sampling")
    stored = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps(stored | {"do_sample": True, "temperature": 5.0, "top_p": 0.9})
    )
    sampling = build("captioner", model=str(folder), options={"max_new_tokens": 16})
    assert sampling.caption([crop(1)], QUESTION) == captioners[1].caption([crop(1)], QUESTION)


# --- the encoder --------------------


def test_vectors_in_batches_equal_one_by_one(encoders: Any) -> None:
    """To 1e-5: float32 sums in another order."""
    images = [picture(300 + 10 * s, 300, s) for s in range(5)]
    texts = ["a person standing", "", "she is holding a phone in both hands", "yes " * 100, "jump"]
    many, one = encoders
    np.testing.assert_allclose(many.encode_images(images), one.encode_images(images), atol=1e-5)
    np.testing.assert_allclose(many.encode_texts(texts).vectors, one.encode_texts(texts).vectors, atol=1e-5)


def test_vectors_are_float32_of_unit_length_and_differ(encoders: Any) -> None:
    engine = encoders[0]
    images = engine.encode_images([picture(300, 300, s) for s in range(3)])
    texts = engine.encode_texts(["sitting", "standing", "he raise the hand"]).vectors
    for vectors, dim in ((images, engine.image_dim), (texts, engine.text_dim)):
        assert vectors.shape == (3, dim) == (3, 24)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_texts_beyond_77_tokens_are_cut_counted_and_reported(encoders: Any) -> None:
    fits, beyond = "yes " * 75, "yes " * 76  # with the opening and the closing token: 77 and 78
    texts = encoders[0].encode_texts([fits, beyond, "yes " * 200])
    assert texts.tokens.tolist() == [77, 78, 202]
    assert texts.tokens.dtype == np.int32
    assert texts.truncated.tolist() == [False, True, True]
    np.testing.assert_allclose(texts.vectors[1], texts.vectors[0], atol=1e-5)  # cut, and still closed


# --- all roles --------------------


def test_nothing_in_gives_nothing_out(detectors: Any, captioners: Any, encoders: Any) -> None:
    assert detectors[0].detect([], "person") == []
    assert captioners[0].caption([], QUESTION) == []
    assert encoders[0].encode_images([]).shape == (0, 24)
    texts = encoders[0].encode_texts([])
    assert texts.vectors.shape == (0, 24)
    assert (texts.tokens.shape, texts.truncated.shape) == ((0,), (0,))


@pytest.mark.parametrize("role", ROLES)
def test_half_precision_runs_and_stays_near(build: Callable[..., Any], role: str) -> None:
    engine = build(role, dtype="bfloat16", options={"max_new_tokens": 3} if role == "captioner" else {})
    if role == "detector":
        assert all(0 <= b.x0 < b.x1 <= 320 for b in engine.detect([frame(240, 320, 1)], "person")[0])
    elif role == "captioner":
        assert 0 <= engine.caption([crop(1)], QUESTION)[0].tokens <= 3
    else:
        image = [picture(300, 300, 1)]
        assert float(engine.encode_images(image)[0] @ build(role).encode_images(image)[0]) > 0.99


def test_load_finds_the_hf_engines(folders: dict[str, Path]) -> None:
    spec = EngineSpec(role="encoder", backend="hf", model=str(folders["encoder"]))
    assert isinstance(load(spec), HfEncoder)
    assert load(spec) is load(spec)


@pytest.mark.parametrize("role", ROLES)
def test_describe_records_what_was_asked_and_what_was_loaded(
    build: Callable[..., Any], folders: dict[str, Path], tmp_path: Path, role: str
) -> None:
    said = build(role, revision="main").describe()
    assert {
        "backend": "hf",
        "model": str(folders[role]),
        "revision_asked": "main",
        "dtype": "float32",
    }.items() <= said.items()
    assert said["revision_resolved"].startswith("sha256:")
    assert {"device", "options", "transformers"} <= said.keys()
    assert build(role).describe()["revision_resolved"] == said["revision_resolved"]

    folder = shutil.copytree(folders[role], tmp_path / "changed")
    assert build(role, model=str(folder)).describe()["revision_resolved"] == said["revision_resolved"]
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    assert build(role, model=str(folder)).describe()["revision_resolved"] != said["revision_resolved"]


@pytest.mark.parametrize(
    ("role", "options", "words"),
    [
        ("detector", {"treshold": 0.4}, "pipeline.crop.engine.options.treshold is not an option"),
        ("detector", {"threshold": 1.5}, "options.threshold = 1.5: Input should be less than or equal to 1"),
        ("captioner", {"max_new_tokens": 0}, "options.max_new_tokens = 0: Input should be greater than or equal to 1"),
        ("encoder", {"threshold": 0.4}, "pipeline.embed.engine.options.threshold is not an option"),
    ],
)
def test_options_are_checked_before_anything_is_loaded(role: str, options: dict[str, Any], words: str) -> None:
    text = message(role, "/nowhere", options=options)
    assert words in text
    assert "the options are allow_unexpected_weights" in text


def test_a_device_that_is_not_there_is_one_line(folders: dict[str, Path]) -> None:
    text = message("encoder", folders["encoder"], device="cuda:63")
    assert text.startswith("pipeline.embed.engine.device = 'cuda:63': torch cannot use it (")
    assert "expected auto, cpu or one of the" in text
