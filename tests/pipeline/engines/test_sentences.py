"""The `sentences` encoder on a tiny network in ONNX, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline import engines

WORDS = ["[CLS]", "[SEP]", "[UNK]", "a", "person", "drinks", "from", "cup"]
STATES = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)


def network(
    path: Path, inputs: tuple[str, ...] = ("input_ids", "attention_mask"), pooled: bool = False, shift: float = 0
) -> Path:
    """A lookup of each token's state, which is all a reference needs to be exact."""
    nodes = [helper.make_node("Gather", ["states", inputs[0]], ["hidden" if pooled else "out"])]
    nodes += [helper.make_node("ReduceMean", ["hidden", "axes"], ["out"], keepdims=0)] if pooled else []
    shape = ["n", 6] if pooled else ["n", "l", 6]
    graph = helper.make_graph(
        nodes,
        "sentences",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "l"]) for name in inputs],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(STATES + np.float32(shift), "states"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network(tmp_path / "tiny.onnx")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 0), ("[SEP]", 1)])
    tokenizer.enable_padding(length=128)  # as the published file has it
    tokenizer.save(str(tmp_path / "tiny.json"))
    return tmp_path


def spec(folder: Path, name: str = "tiny.onnx", **options: Any) -> EngineSpec:
    return EngineSpec(role="encoder", backend="sentences", model=str(folder / name), options=options)


def test_a_vector_is_the_mean_of_the_states_of_its_tokens(folder: Path) -> None:
    texts = ["a person drinks", "cup", "", "a person drinks from a strange cup"]
    found = engines.load(spec(folder)).encode_texts(texts)
    for text, vector, tokens in zip(texts, found.vectors, found.tokens, strict=True):
        ids = [0, *(WORDS.index(w) if w in WORDS else 2 for w in text.split()), 1]
        mean = STATES[ids].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
        assert tokens == len(ids)
    assert not found.truncated.any()


def test_a_long_text_keeps_its_marks_and_is_counted_whole(folder: Path) -> None:
    encoder = engines.load(spec(folder, max_tokens=5))
    found = encoder.encode_texts(["a person drinks from a cup", "a person drinks"])
    assert found.tokens.tolist() == [8, 5]
    assert found.truncated.tolist() == [True, False]
    assert np.array_equal(found.vectors[0], found.vectors[1])


def test_crops_are_encoded_as_classical_does(folder: Path) -> None:
    crop = np.random.default_rng(1).integers(0, 256, (40, 30, 3), np.uint8)
    classical = engines.load(EngineSpec(role="encoder", backend="classical", options={"image_dim": 32, "seed": 3}))
    wanted = classical.encode_images([crop])
    encoder = engines.load(spec(folder, image_dim=32, seed=3))
    assert np.array_equal(encoder.encode_images([crop]), wanted)
    assert (encoder.image_dim, encoder.text_dim) == (32, 6)


def test_other_weights_are_another_engine(folder: Path) -> None:
    before = engines.key_facts(spec(folder))
    network(folder / "tiny.onnx", shift=1)
    assert engines.key_facts(spec(folder)) != before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone.onnx", "gone.onnx does not exist"),
        ("alone.onnx", "alone.json does not exist"),
        ("tiny.json", "no ONNX file is named"),
        ("broken.onnx", "cannot be read"),
        ("other.onnx", "takes pixels, not input_ids"),
        ("pooled.onnx", r"gives an array of shape \(1, 6\), not the states of 3 tokens"),
    ],
)
def test_files_of_another_form_are_one_line(folder: Path, name: str, said: str) -> None:
    network(folder / "alone.onnx")
    network(folder / "other.onnx", ("pixels",))
    network(folder / "pooled.onnx", pooled=True)
    (folder / "broken.onnx").write_bytes((folder / "tiny.onnx").read_bytes()[:50])
    for other in ("other", "broken", "pooled"):
        (folder / f"{other}.json").write_bytes((folder / "tiny.json").read_bytes())
    with pytest.raises(EngineError, match=said) as caught:
        engines.load(spec(folder, name))
    assert "\n" not in str(caught.value)
    assert "`make weights`" in str(caught.value)
