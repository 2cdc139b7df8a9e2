"""The `llava` captioner against a stand-in for the original package: same modules and names, and it notes its calls."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe import QUESTION
from c2vl_manifests.recipe_loading import engine_preset
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Caption, Crop

PACKAGE = {
    "__init__.py": "CALLS = []\n",
    "constants.py": """
        IMAGE_TOKEN_INDEX = -200
        DEFAULT_IMAGE_TOKEN = "<image>"
        DEFAULT_IM_START_TOKEN = "<im_start>"
        DEFAULT_IM_END_TOKEN = "<im_end>"
    """,
    "conversation.py": """
        class Talk:
            roles = ("USER", "ASSISTANT")

            def __init__(self, turns=()):
                self.turns = list(turns)

            def copy(self):
                return Talk(self.turns)

            def append_message(self, role, text):
                self.turns.append((role, text))

            def get_prompt(self):
                said = [f"{role}: {text}" if text else f"{role}:" for role, text in self.turns]
                return "A chat between a curious user and an assistant. " + " ".join(said)

        conv_templates = {"vicuna_v1": Talk(), "plain": Talk()}
    """,
    "mm_utils.py": """
        import numpy as np
        import torch
        from PIL import Image

        import llava

        def process_images(images, processor, config):
            assert config.image_aspect_ratio == "pad"
            assert all(image.mode == "RGB" for image in images)
            colour = tuple(int(x * 255) for x in processor.image_mean)
            done = []
            for image in images:
                side = max(image.size)
                square = Image.new("RGB", (side, side), colour)
                square.paste(image, ((side - image.size[0]) // 2, (side - image.size[1]) // 2))
                done.append(torch.tensor(np.asarray(square.resize((16, 16), Image.NEAREST))).permute(2, 0, 1))
            llava.CALLS.append(("process_images", len(images)))
            return torch.stack(done).float()

        def tokenizer_image_token(prompt, tokenizer, index, return_tensors=None):
            assert return_tensors == "pt"
            llava.CALLS.append(("prompt", prompt))
            before, after = prompt.split("<image>")
            ids = [1, *map(ord, before), index, *map(ord, after)]
            return torch.tensor(ids)
    """,
    "model/__init__.py": "",
    "model/builder.py": """
        from types import SimpleNamespace

        import torch

        import llava

        class Tokenizer:
            eos_token_id, pad_token_id = 2, 0

            def decode(self, tokens, skip_special_tokens=False):
                assert skip_special_tokens
                return " " + "".join(chr(token) for token in tokens)

        class Model(torch.nn.Module):
            config = SimpleNamespace(mm_use_im_start_end=False)
            repeats_prompt = False

            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float16))

            def generate(self, inputs, images, **how):
                assert torch.is_inference_mode_enabled() and not self.training
                assert images.dtype == self.weight.dtype
                llava.CALLS.append(("generate", inputs.clone(), images.clone(), how))
                texts = [f"shade {int(image[0, 8, 8])}" for image in images]
                longest = max(map(len, texts)) + 1
                rows = [[*map(ord, text), 2] + [0] * (longest - len(text) - 1) for text in texts]
                tokens = torch.tensor(rows)[:, : how["max_new_tokens"]]
                return torch.cat([inputs, tokens], 1) if self.repeats_prompt else tokens

        def load_pretrained_model(model_path, model_base, model_name, device_map="auto", device="cuda"):
            llava.CALLS.append(("load", model_path, model_base, model_name, device_map, device))
            processor = SimpleNamespace(image_mean=[0.48145466, 0.4578275, 0.40821073])
            return Tokenizer(), Model(), processor, 2048
    """,
}


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "llava"]:
        del sys.modules[name]


def install(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        path = folder / "llava" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder))
    forget()


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in, installed; its `CALLS` are what it was called with."""
    install(tmp_path / "site", PACKAGE, monkeypatch)
    import llava  # type: ignore[import-not-found, unused-ignore]

    return llava


def checkpoint(folder: Path, architecture: str | None = "LlavaLlamaForCausalLM", weights: bytes = b"w") -> Path:
    folder.mkdir()
    config = {"model_type": "llava_llama"} | ({"architectures": [architecture]} if architecture else {})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(weights)
    return folder


def spec(model: Path | None, **more: Any) -> EngineSpec:
    return EngineSpec(
        role="captioner", backend="llava", model=str(model) if model else None, **{"device": "cpu"} | more
    )


def crops(*shades: int, size: tuple[int, int] = (8, 16)) -> list[Crop]:
    return [Crop(np.full((*size, 3), value, np.uint8), "a", slot) for slot, value in enumerate(shades)]


def calls(package: Any, name: str) -> list[tuple[Any, ...]]:
    return [call[1:] for call in package.CALLS if call[0] == name]


def line(error: Exception, *parts: str) -> None:
    assert "\n" not in str(error)
    for part in parts:
        assert part in str(error)


# ------------------------------------------------------------------------------------------- what it is asked


def test_the_prompt_is_the_packages_template_with_picture_before_question(package: Any, tmp_path: Path) -> None:
    engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"))).caption(crops(10), QUESTION)
    ((prompt,),) = calls(package, "prompt")
    assert prompt == f"A chat between a curious user and an assistant. USER: <image>\n{QUESTION} ASSISTANT:"


def test_templates_are_not_written_into(package: Any, tmp_path: Path) -> None:
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    assert engine.prompt("?") == engine.prompt("?")


def test_start_and_end_marks_are_used_where_the_model_was_trained_with_them(package: Any, tmp_path: Path) -> None:
    from llava.model.builder import Model  # type: ignore[import-not-found, unused-ignore]

    Model.config.mm_use_im_start_end = True
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    assert "<im_start><image><im_end>\nwhat?" in engine.prompt("what?")


def test_the_image_token_stands_once_where_the_template_puts_it(package: Any, tmp_path: Path) -> None:
    engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"))).caption(crops(10, 20), "what?")
    ((inputs, _, _),) = calls(package, "generate")
    before = "A chat between a curious user and an assistant. USER: "
    assert inputs.shape[0] == 2
    for row in inputs.tolist():
        assert row.count(-200) == 1
        assert row.index(-200) == 1 + len(before)


@pytest.mark.parametrize("size", [(8, 16), (16, 8), (16, 16)])
def test_the_model_sees_squares_padded_with_the_processors_mean(
    package: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"))).caption(crops(200, size=size), "?")
    ((_, images, _),) = calls(package, "generate")
    assert images.shape == (1, 3, 16, 16)
    bands = {(8, 16): images[0, :, :4], (16, 8): images[0, :, :, :4], (16, 16): images[0, :, :0]}[size]
    assert all(pixel == [122, 116, 104] for pixel in bands.flatten(1).T.tolist())
    assert images[0, :, 8, 8].tolist() == [200, 200, 200]


def test_generation_is_greedy_and_bounded(package: Any, tmp_path: Path) -> None:
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"), options={"max_new_tokens": 5}))
    assert engine.caption(crops(10), "?") == [Caption("shade", 5)]
    ((_, _, how),) = calls(package, "generate")
    assert (how["do_sample"], how["num_beams"], how["max_new_tokens"]) == (False, 1, 5)


# ------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("repeats", [False, True])
def test_answers_end_at_the_end_token_whether_or_not_the_prompt_is_repeated(
    package: Any, tmp_path: Path, repeats: bool
) -> None:
    from llava.model.builder import Model

    Model.repeats_prompt = repeats
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    assert engine.caption(crops(7, 200), "?") == [Caption("shade 7", 7), Caption("shade 200", 9)]


def test_batches_are_as_large_as_asked_and_answers_in_order(package: Any, tmp_path: Path) -> None:
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"), batch_size=2))
    answers = engine.caption(crops(10, 20, 30, 40, 50), "?")
    assert [a.text for a in answers] == [f"shade {n}" for n in (10, 20, 30, 40, 50)]
    assert [n for (n,) in calls(package, "process_images")] == [2, 2, 1]


# ------------------------------------------------------------------------------------------------ loading


@pytest.mark.parametrize(("folder", "name"), [("LLaVA-v1.5-7b", "LLaVA-v1.5-7b"), ("mine", "llava-mine")])
def test_the_package_is_told_one_device_and_a_name_it_takes_for_llava(
    package: Any, tmp_path: Path, folder: str, name: str
) -> None:
    path = checkpoint(tmp_path / folder)
    engines.load(spec(path))
    assert calls(package, "load") == [(str(path), None, name, "cpu", "cpu")]


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_the_model_computes_in_the_type_asked_for(package: Any, tmp_path: Path, dtype: str) -> None:
    engine = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"), dtype=dtype))
    engine.caption(crops(10), "?")
    ((_, images, _),) = calls(package, "generate")
    assert str(images.dtype) == f"torch.{dtype}"


def test_absent_it_says_how_to_install_it_and_what_does_the_same(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    line(caught.value, "is not installed", "pip install git+https://", "LLaVA", "separate environment", "hf-llava")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"__init__.py": ""}, "No module named 'llava.constants'"),
        (PACKAGE | {"constants.py": ""}, "IMAGE_TOKEN_INDEX"),
        (PACKAGE | {"model/builder.py": "raise ImportError('transformers is\\ntoo new')"}, "transformers is too new"),
        (PACKAGE | {"model/__init__.py": "raise ValueError('already used')"}, "already used"),
    ],
    ids=["placeholder", "another", "other transformers", "clash"],
)
def test_what_is_not_the_original_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], says: str
) -> None:
    install(tmp_path / "site", files, monkeypatch)
    with pytest.raises(EngineError) as caught:
        engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    line(caught.value, "is not what is installed here as 'llava'", says, "pip install git+https://")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"options": {"conversation": "v9"}}, "the installed llava knows plain, vicuna_v1"),
        ({"options": {"temperature": 1}}, "the options are max_new_tokens, conversation"),
    ],
)
def test_options_that_do_not_hold_are_refused(package: Any, tmp_path: Path, more: Any, says: str) -> None:
    with pytest.raises(EngineError) as caught:
        engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"), **more))
    line(caught.value, says)


def test_a_checkpoint_that_does_not_load_is_one_line(
    package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llava.model import builder

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("no file named\nmm_projector")

    monkeypatch.setattr(builder, "load_pretrained_model", fails)
    with pytest.raises(EngineError) as caught:
        engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b")))
    line(caught.value, "cannot be loaded on cpu", "no file named mm_projector", "vision tower")


# ----------------------------------------------------------------------------------------------- identity


def test_identity_needs_no_package_and_follows_the_weights(tmp_path: Path) -> None:
    first = engines.key_facts(spec(checkpoint(tmp_path / "a"), options={"max_new_tokens": 64}))
    assert first["revision_resolved"].startswith("sha256:")
    second = engines.weights_id(spec(checkpoint(tmp_path / "b")))
    assert second["revision_resolved"] == first["revision_resolved"]
    third = engines.weights_id(spec(checkpoint(tmp_path / "c", weights=b"x")))
    assert third["revision_resolved"] != first["revision_resolved"]


@pytest.mark.parametrize("architecture", ["LlavaForConditionalGeneration", "LlamaForCausalLM", None])
def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path, architecture: str | None) -> None:
    with pytest.raises(EngineError) as caught:
        engines.weights_id(spec(checkpoint(tmp_path / "llava-1.5-7b-hf", architecture)))
    line(caught.value, "expected the original's LlavaLlamaForCausalLM", "`hf` back-end", "liuhaotian/llava-v1.5-7b")


@pytest.mark.parametrize("model", [None, "no/where/at-all"])
def test_a_checkpoint_that_is_nowhere_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str | None
) -> None:
    with pytest.raises(EngineError) as caught:
        engines.weights_id(spec(Path(model) if model else None))
    line(caught.value, "hf download liuhaotian/llava-v1.5-7b", "pipeline.caption.engine.model")


def test_describe_names_checkpoint_template_and_libraries(package: Any, tmp_path: Path) -> None:
    said = engines.load(spec(checkpoint(tmp_path / "llava-v1.5-7b"))).describe()
    assert said["options"] == {"max_new_tokens": 64, "conversation": "vicuna_v1"}
    assert said["revision_resolved"].startswith("sha256:")
    assert said["device"] == "cpu"
    json.dumps(said)


def test_the_preset_is_the_original_checkpoint() -> None:
    preset = EngineSpec.model_validate(engine_preset("llava-1.5-7b"))
    assert (preset.backend, preset.model, preset.dtype) == ("llava", "liuhaotian/llava-v1.5-7b", "float16")
