"""The original Grounding DINO against the `hf` engine: one set of random weights, written in both formats.

Weights are random, the architecture and every file format are true. `C2VL_FULL_SIZE=1` adds the comparison at full
size (SwinT, BERT base, 900 queries, 750 x 1333 pixels): minutes and 5 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image as Pil
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame, groundingdino, hf_checkpoint
from support import SHARED, checkpoints

WANTED = [name for name in ("torchvision", "groundingdino") if importlib.util.find_spec(name) is None]
needs_package = pytest.mark.skipif(
    bool(WANTED), reason=f"needs torchvision and groundingdino-py; not installed: {', '.join(WANTED)}"
)
full_size = pytest.mark.skipif(
    "C2VL_FULL_SIZE" not in os.environ, reason="needs minutes and 5 GB: set C2VL_FULL_SIZE=1"
)
VIDEOS = SHARED / "videos"
TINY = {"enc_layers": 2, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 40}
EVERY_QUERY = {"threshold": 0.0, "text_threshold": 0.0}


# --- weights in both formats --------------------

STEM = "model.backbone.conv_encoder.model"
BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
DEFORMABLE = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "linear1": "fc1", "linear2": "fc2"}
ENHANCER = {"norm1": "layer_norm_before", "norm2": "layer_norm_after", "linear1": "fc1", "linear2": "fc2"}
FUSION = {
    "gamma_v": "vision_param",
    "gamma_l": "text_param",
    "layer_norm_v": "layer_norm_vision",
    "layer_norm_l": "layer_norm_text",
    **{
        f"attn.{a}{old}_proj": f"attn.{a}{new}_proj"
        for a in ("", "values_", "out_")
        for old, new in (("v", "vision"), ("l", "text"))
    },
}
DECODER = {
    "cross_attn": "encoder_attn",
    "ca_text": "encoder_attn_text",
    "catext_norm": "encoder_attn_text_layer_norm",
    "norm1": "encoder_attn_layer_norm",
    "norm2": "self_attn_layer_norm",
    "norm3": "final_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
}
PREFIXES: list[tuple[str, str, dict[str, str]]] = [
    (r"backbone\.0\.patch_embed\.proj", f"{STEM}.embeddings.patch_embeddings.projection", {}),
    (r"backbone\.0\.patch_embed\.norm", f"{STEM}.embeddings.norm", {}),
    (r"backbone\.0\.(layers\.\d+\.blocks\.\d+)\.", STEM + r".encoder.\1.", BLOCK),
    (r"backbone\.0\.(layers\.\d+\.downsample)", STEM + r".encoder.\1", {}),
    (r"backbone\.0\.norm1", f"{STEM}.hidden_states_norms.stage2", {}),  # counted from 0 and from 1
    (r"backbone\.0\.norm2", f"{STEM}.hidden_states_norms.stage3", {}),
    (r"backbone\.0\.norm3", f"{STEM}.hidden_states_norms.stage4", {}),
    (r"bert\.", "model.text_backbone.", {}),
    (r"input_proj\.", "model.input_proj_vision.", {}),
    (r"feat_map\.", "model.text_projection.", {}),
    (r"transformer\.encoder\.layers\.(\d+)\.", r"model.encoder.layers.\1.deformable_layer.", DEFORMABLE),
    (r"transformer\.encoder\.text_layers\.(\d+)\.", r"model.encoder.layers.\1.text_enhancer_layer.", ENHANCER),
    (r"transformer\.encoder\.fusion_layers\.(\d+)\.", r"model.encoder.layers.\1.fusion_layer.", FUSION),
    (r"transformer\.decoder\.layers\.(\d+)\.", r"model.decoder.layers.\1.", DECODER),
    (r"transformer\.decoder\.norm\.", "model.decoder.layer_norm.", {}),
    (r"transformer\.decoder\.ref_point_head\.", "model.decoder.reference_points_head.", {}),
    (r"transformer\.enc_out_bbox_embed\.", "model.encoder_output_bbox_embed.", {}),
    (r"transformer\.tgt_embed\.", "model.query_position_embeddings.", {}),
    (r"transformer\.(level_embed|enc_output)", r"model.\1", {}),
    (r"bbox_embed\.0\.", "bbox_embed.0.", {}),
]
TIED_OR_UNUSED = re.compile(
    r"bbox_embed\.[1-9]|transformer\.decoder\.bbox_embed|bert\.pooler|.*relative_position_index"
)


def renamed(name: str) -> str:
    """Return the published transformers checkpoints' name of an original weight."""
    for pattern, prefix, inside in PREFIXES:
        found = re.match(pattern, name)
        if found:
            rest = name[found.end() :]
            new = next((n + rest[len(o) :] for o, n in inside.items() if re.match(rf"{o}(\.|$)", rest)), rest)
            return found.expand(prefix) + new
    raise AssertionError(f"no transformers name for {name}")


def converted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename every weight, and cut joint query, key and value matrices in three."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if TIED_OR_UNUSED.match(name):
            continue
        new = renamed(name)
        joint = re.sub(r"(\.attn\.qkv\.|\.in_proj_)(weight|bias)$", "", new)
        if joint == new:
            result[new] = tensor.clone()
            continue
        place = "attention.self." if ".attn.qkv." in name else ""
        for part, cut in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            result[f"{joint}.{place}{part}.{name.rpartition('_' if '_proj_' in name else '.')[2]}"] = cut.clone()
    return result


def stir(model: Any) -> None:
    """Move every weight that starts at zero, at one or near nothing, or whole branches would go unseen."""
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.add_(torch.randn_like(weight) * 0.1)
        if re.search(r"gamma_[vl]$", name):
            weight.add_(0.3)
        if re.search(r"sampling_offsets\.weight|attention_weights\.weight", name):
            weight.normal_(std=0.05)
        if re.search(r"bbox_embed\.(0\.)?layers\.2\.weight", name):
            weight.normal_(std=0.05)
    model.transformer.decoder.norm.weight.mul_(0.02)  # softer scores
    model.transformer.decoder.norm.bias.mul_(0.1)


@dataclass(frozen=True)
class Weights:
    pth: Path
    config: Path
    text: Path
    hf: Path


def package() -> tuple[Any, Any]:
    """The package's own way to build a model, and to use one."""
    from groundingdino.models import build_model
    from groundingdino.util import inference

    return build_model, inference


def write_weights(folder: Path, changes: dict[str, Any], text: transformers.BertConfig) -> Weights:
    """Write one random model as a .pth and as a transformers checkpoint."""
    import groundingdino as original
    from groundingdino.util.slconfig import SLConfig

    w = Weights(folder / "tiny.pth", folder / "tiny_cfg.py", folder / "bert", folder / "hf")
    shipped = Path(original.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"
    changes = {**changes, "text_encoder_type": str(w.text)}
    w.config.write_text(shipped.read_text() + "".join(f"{k} = {v!r}\n" for k, v in changes.items()))
    tokenizer = checkpoints._bert_tokenizer()
    tokenizer.save_pretrained(w.text)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(21)
        transformers.BertModel(text).save_pretrained(w.text)
        with groundingdino._bert_shim():
            model = package()[0](SLConfig.fromfile(str(w.config)))
        stir(model)
    state = model.state_dict()
    # what the published files hold beyond the model
    extra = {"label_enc.weight": torch.zeros(3, 2), "bert.embeddings.position_ids": torch.arange(4)[None]}
    torch.save({"model": {f"module.{k}": v for k, v in {**state, **extra}.items()}}, w.pth)

    sizes = dict(SLConfig.fromfile(str(w.config))._cfg_dict)
    transformers.GroundingDinoConfig(
        backbone_config=transformers.SwinConfig(out_features=["stage2", "stage3", "stage4"]),
        text_config=text,
        num_queries=sizes["num_queries"],
        encoder_layers=sizes["enc_layers"],
        decoder_layers=sizes["dec_layers"],
        encoder_ffn_dim=sizes["dim_feedforward"],
        decoder_ffn_dim=sizes["dim_feedforward"],
    ).save_pretrained(w.hf)
    images = transformers.GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(w.hf)
    save_file(converted(state), w.hf / "model.safetensors", {"format": "pt"})
    return w


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    text = transformers.BertConfig(
        vocab_size=2712,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.2,
    )
    return write_weights(tmp_path_factory.mktemp("dino"), TINY, text)


def pair(w: Weights, **fields: Any) -> tuple[Any, Any]:
    """Build the original engine and the `hf` engine on the same weights."""
    options = {"shortest_edge": 160, "longest_edge": 267, **EVERY_QUERY, **fields.pop("options", {})}
    fields = {"role": "detector", "device": "cpu", **fields}
    own = {"config": str(w.config), "text_encoder": str(w.text)}
    return (
        engines.load(EngineSpec(backend="groundingdino-py", model=str(w.pth), options=options | own, **fields)),
        engines.load(EngineSpec(backend="hf", model=str(w.hf), options=options, **fields)),
    )


@pytest.fixture(scope="module")
def both(weights: Weights) -> tuple[Any, Any]:
    return pair(weights, batch_size=4)


# --- frames and comparison --------------------


def drawn(height: int, width: int, seed: int) -> Frame:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = np.asarray(Pil.fromarray(colours).resize((width, height), Pil.Resampling.BILINEAR))
    return Frame(image, f"s{seed}", seed)


def filmed(count: int) -> list[Frame]:
    """Frames of each real video, spread over it."""
    frames = []
    for path in sorted(p for p in VIDEOS.iterdir() if p.suffix in {".mp4", ".mkv"}):
        video = cv2.VideoCapture(str(path))
        total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        for k in range(count):
            video.set(cv2.CAP_PROP_POS_FRAMES, (2 * k + 1) * total // (2 * count))
            ok, image = video.read()
            assert ok
            frames.append(Frame(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), path.stem, k))
    return frames


def table(boxes: list[Box], frame: Frame) -> np.ndarray:
    """Rows of x0, y0, x1, y1 as shares of the frame, and the score."""
    height, width = frame.image.shape[:2]
    rows = [(b.x0 / width, b.y0 / height, b.x1 / width, b.y1 / height, b.score) for b in boxes]
    return np.array(rows).reshape(-1, 5)


def differences(a: list[list[Box]], b: list[list[Box]], frames: list[Frame]) -> tuple[float, float]:
    """Return the largest difference of a box (share of the frame) and of a score, over boxes paired best."""
    worst = np.zeros(5)
    for one, two, frame in zip(a, b, frames, strict=True):
        assert len(one) == len(two) > 0
        x, y = table(one, frame), table(two, frame)
        distance = np.abs(x[:, None] - y[None])
        rows, columns = linear_sum_assignment(distance.max(2))
        worst = np.maximum(worst, distance[rows, columns].max(0))
    return float(worst[:4].max()), float(worst[4])


def spread(found: list[list[Box]], frames: list[Frame]) -> tuple[float, float]:
    """Return how far boxes and scores differ between frames: what parity would have to be compared with."""
    tables = [table(boxes, frame) for boxes, frame in zip(found, frames, strict=True)]
    n = min(map(len, tables))
    stacked = np.stack([t[:n] for t in tables])
    return float(np.ptp(stacked[..., :4], axis=0).max()), float(np.ptp(stacked[..., 4], axis=0).max())


# --- parity --------------------


@needs_package
def test_boxes_and_scores_equal_those_of_the_hf_engine(both: tuple[Any, Any]) -> None:
    frames = [drawn(240, 320, 0), drawn(320, 240, 1), drawn(108, 192, 2), drawn(201, 399, 3)]
    ours, theirs = (engine.detect(frames, "person") for engine in both)
    assert [len(boxes) for boxes in ours] == [TINY["num_queries"]] * 4
    assert min(spread(ours, frames)) > 0.05  # or parity would say nothing
    box, score = differences(ours, theirs, frames)
    print(f"largest difference of a box {box:.2e}, of a score {score:.2e}")
    assert box < 1e-3
    assert score < 1e-3


@needs_package
@pytest.mark.skipif(not VIDEOS.is_dir(), reason="needs the real data of ../shared/data (or C2VL_SHARED)")
def test_boxes_and_scores_equal_on_real_frames(both: tuple[Any, Any]) -> None:
    frames = filmed(3)
    ours, theirs = (engine.detect(frames, "person") for engine in both)
    box, score = differences(ours, theirs, frames)
    print(f"largest difference of a box {box:.2e}, of a score {score:.2e}, {len(frames)} frames")
    assert box < 1e-3
    assert score < 1e-3


@needs_package
def test_the_query_and_the_thresholds_choose_what_the_hf_engine_chooses(weights: Weights) -> None:
    frames = [drawn(240, 320, s) for s in range(4)]
    everything = pair(weights)[0].detect(frames, "person. cup.")
    scores = np.sort([box.score for boxes in everything for box in boxes])
    middle = slice(len(scores) // 3, -len(scores) // 3)
    gap = int(np.argmax(np.diff(scores[middle]))) + middle.start
    threshold = float(scores[gap : gap + 2].mean())
    for text_threshold in (0.0, threshold, 0.999):
        options = {"threshold": threshold, "text_threshold": text_threshold}
        ours, theirs = (engine.detect(frames, "Person. cup") for engine in pair(weights, options=options))
        assert [len(boxes) for boxes in ours] == [len(boxes) for boxes in theirs]
        if text_threshold == 0.0:
            assert 0 < sum(map(len, ours)) == len(scores) - gap - 1 < len(scores)
        if text_threshold == 0.999:
            assert ours == [[]] * 4


class Rankings:
    """Stands for `torch.topk`, by which both models rank their first guesses: notes each ranking, or repeats it."""

    def __init__(self) -> None:
        self.noted: list[Any] = []
        self.repeat: list[Any] = []
        self._topk = torch.topk

    def __call__(self, values: torch.Tensor, k: int, dim: int = -1) -> Any:
        if self.repeat:
            order = self.repeat.pop(0).indices
            return torch.return_types.topk((values.gather(dim, order), order))
        self.noted.append(self._topk(values, k, dim=dim))
        return self.noted[-1]


@needs_package
@full_size
def test_full_size_boxes_and_scores_equal_those_of_the_hf_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under one ranking: rank decides which learned query a guess gets, and 900 of 20,000 guesses hold ties.

    Rounding exchanges a few of them, between the engines as between batch sizes of one engine, and the weights
    being random, their boxes move. Both differences are printed.
    """
    frames = filmed(1) if VIDEOS.is_dir() else [drawn(1080, 1920, 0), drawn(720, 1280, 1)]
    w = write_weights(tmp_path, {}, transformers.BertConfig(vocab_size=2712))
    original, hf = pair(w, options={"shortest_edge": 800, "longest_edge": 1333}, batch_size=1)
    rankings = Rankings()
    monkeypatch.setattr(torch, "topk", rankings)

    def timed(engine: Any) -> tuple[list[list[Box]], list[Any], float]:
        rankings.noted, start = [], time.perf_counter()
        found = engine.detect(frames, "person")
        return found, rankings.noted, (time.perf_counter() - start) / len(frames)

    ours, ranked, seconds = timed(original)
    theirs, ranked_too, seconds_too = timed(hf)
    rankings.repeat = list(ranked)
    box, score = differences(ours, timed(hf)[0], frames)
    exchanged = [int((a.indices != b.indices).sum()) for a, b in zip(ranked, ranked_too, strict=True)]
    noise = max(float((a.values - b.values).abs().max()) for a, b in zip(ranked, ranked_too, strict=True))
    print(f"boxes {[len(boxes) for boxes in ours]}; s a frame {seconds:.1f} (original), {seconds_too:.1f} (hf)")
    print(f"one ranking: largest difference of a box {box:.2e}, of a score {score:.2e}")
    print(f"own rankings: {differences(ours, theirs, frames)}, ranks exchanged {exchanged}, logits {noise:.1e}")
    assert box < 1e-3
    assert score < 1e-3
    assert noise < 1e-3  # what was exchanged were ties
    assert max(exchanged) < 0.02 * ranked[0].indices.shape[1]


# --- the package, used rightly --------------------


@needs_package
def test_boxes_equal_those_of_the_packages_own_predict(weights: Weights, tmp_path: Path) -> None:
    """Its demonstration, from the image file to the boxes, at its own 800 x 1333 pixels."""
    inference = package()[1]
    frame = drawn(240, 320, 5)
    Pil.fromarray(frame.image).save(tmp_path / "frame.png")
    with groundingdino._bert_shim():
        model = inference.load_model(str(weights.config), str(weights.pth), device="cpu")
    _, pixels = inference.load_image(str(tmp_path / "frame.png"))
    centres, scores, _ = inference.predict(model, pixels, "person", 0.0, 0.0, device="cpu")
    corners = torch.cat([centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1)
    corners = corners.clamp(0, 1) * torch.tensor([320, 240, 320, 240])
    expected = [Box(*box, score) for box, score in zip(corners.tolist(), scores.tolist(), strict=True)]
    engine = pair(weights, options={"shortest_edge": None, "longest_edge": None})[0]
    assert engine.describe()["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    box, score = differences(engine.detect([frame], "person"), [expected], [frame])
    assert box < 1e-4
    assert score < 1e-4


@needs_package
@pytest.mark.parametrize(
    "size", [(1080, 1920), (1920, 1080), (720, 1280), (480, 640), (432, 768), (424, 512), (240, 320)]
)
def test_pixels_equal_those_of_the_packages_own_transforms(both: tuple[Any, Any], size: tuple[int, int]) -> None:
    from groundingdino.datasets import transforms

    frame = drawn(*size, 1)
    steps = [transforms.RandomResize([800], max_size=1333), transforms.ToTensor()]
    steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected, _ = transforms.Compose(steps)(Pil.fromarray(frame.image), None)
    process = both[0]._at.processor.image_processor
    pixels = process(
        [frame.image],
        size={"shortest_edge": 800, "longest_edge": 1333},
        input_data_format="channels_last",
        return_tensors="pt",
    )
    torch.testing.assert_close(pixels["pixel_values"][0], expected, rtol=0, atol=1e-6)


@needs_package
def test_frames_in_batches_equal_frames_alone(both: tuple[Any, Any], weights: Weights) -> None:
    frames = [drawn(*size, s) for s, size in enumerate([(240, 320), (320, 240), (240, 320), (240, 320)])]
    together = both[0].detect(frames, "person")
    alone = [both[0].detect([frame], "person")[0] for frame in frames]
    box, score = differences(together, alone, frames)
    assert box < 1e-4
    assert score < 1e-4


@needs_package
def test_the_config_is_read_as_the_package_reads_it(weights: Weights) -> None:
    from groundingdino.util.slconfig import SLConfig

    assert groundingdino._read_config(str(weights.config)) == dict(SLConfig.fromfile(str(weights.config))._cfg_dict)
    assert groundingdino._read_config(None)["backbone"] == "swin_T_224_1k"


@needs_package
def test_the_shim_leaves_nothing_on_bert_nor_on_the_package(both: tuple[Any, Any]) -> None:
    from groundingdino.util import get_tokenlizer

    names = ("get_extended_attention_mask", "invert_attention_mask", "get_head_mask")
    before = [hasattr(transformers.BertModel, name) for name in names]
    with groundingdino._bert_shim():
        assert all(hasattr(transformers.BertModel, name) for name in names)
    assert [hasattr(transformers.BertModel, name) for name in names] == before
    if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 17):
        assert before == [False] * 3
    assert get_tokenlizer.get_pretrained_language_model.__module__ == "groundingdino.util.get_tokenlizer"


@needs_package
def test_the_text_encoder_needs_no_weights_and_no_network(
    both: tuple[Any, Any], weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((weights.text / name).read_bytes())
    options = {**EVERY_QUERY, "shortest_edge": 160, "longest_edge": 267, "config": str(weights.config)}
    spec = EngineSpec(
        role="detector",
        backend="groundingdino-py",
        model=str(weights.pth),
        device="cpu",
        options=options | {"text_encoder": str(tmp_path)},
    )
    frames = [drawn(240, 320, 0)]
    engine = groundingdino.GroundingDinoPy(spec)
    assert engine.detect(frames, "person") == both[0].detect(frames, "person")


@needs_package
def test_the_package_prints_nothing(weights: Weights, capfd: pytest.CaptureFixture[str]) -> None:
    own = {"config": str(weights.config), "text_encoder": str(weights.text), "shortest_edge": 96}
    spec = EngineSpec(role="detector", backend="groundingdino-py", model=str(weights.pth), options=own)
    capfd.readouterr()
    groundingdino.GroundingDinoPy(spec).detect([drawn(96, 128, 0)], "person")
    assert capfd.readouterr() == ("", "")


@needs_package
def test_describe_names_the_file_the_packages_and_the_size(both: tuple[Any, Any], weights: Weights) -> None:
    said = both[0].describe()
    assert said["backend"] == "groundingdino-py"
    assert said["groundingdino-py"]
    assert said["torchvision"]
    assert said["options"]["text_encoder"] == str(weights.text)
    assert said["size"] == {"shortest_edge": 160, "longest_edge": 267}
    spec = EngineSpec(role="detector", backend="groundingdino-py", model=str(weights.pth))
    assert engines.weights_id(spec)["revision_resolved"] == said["revision_resolved"]


# --- one line for everything that is wrong --------------------


def message(model: Path | str | None, **fields: Any) -> str:
    spec = EngineSpec(
        role="detector",
        backend="groundingdino-py",
        model=None if model is None else str(model),
        **{"device": "cpu", **fields},
    )
    with pytest.raises(EngineError) as caught:
        engines.load(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_identity_is_the_digest_of_the_file_and_needs_no_package(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"abc")
    spec = EngineSpec(role="detector", backend="groundingdino-py", model=str(tmp_path / "a.pth"))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert engines.weights_id(spec) == {"revision_resolved": f"sha256:{digest}"}
    (tmp_path / "a.pth").write_bytes(b"other")
    assert engines.weights_id(spec) != {"revision_resolved": f"sha256:{digest}"}


@pytest.mark.parametrize("model", [None, "/nowhere/groundingdino_swint_ogc.pth"])
def test_a_missing_file_says_how_to_get_one(model: str | None) -> None:
    text = message(model)
    assert "hf download ShilongLiu/GroundingDINO groundingdino_swint_ogc.pth" in text
    assert "--set pipeline.crop.engine.model=" in text
    spec = EngineSpec(role="detector", backend="groundingdino-py", model=model)
    with pytest.raises(EngineError, match="hf download"):
        engines.weights_id(spec)


@pytest.mark.parametrize("absent", ["groundingdino", "torchvision"])
def test_a_missing_package_names_the_extra(absent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "groundingdino"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    (tmp_path / "a.pth").write_bytes(b"abc")
    text = message(tmp_path / "a.pth")
    assert "pip install -e '.[groundingdino]'" in text
    assert "pulls torchvision" in text
    assert "CUDA build of torch" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"options": {"treshold": 0.3}}, "pipeline.crop.engine.options.treshold is not an option"),
        ({"options": {"config": 3}}, "pipeline.crop.engine.options.config = 3"),
        ({"dtype": "bfloat16"}, "expected float32, or take the `hf` engine"),
        ({"device": "cuda:63"}, "pipeline.crop.engine.device = 'cuda:63': torch cannot use it ("),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(fields: dict[str, Any], words: str) -> None:
    assert words in message("/nowhere.pth", **fields)


@pytest.fixture
def own(weights: Weights) -> Callable[..., dict[str, str]]:
    return lambda **changes: {"config": str(weights.config), "text_encoder": str(weights.text), **changes}


@needs_package
def test_damaged_and_foreign_files_are_refused(weights: Weights, own: Any, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.pth.read_bytes()[: weights.pth.stat().st_size // 2])
    assert "cannot be loaded" in message(cut, options=own())

    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    assert "expected tensors alone" in message(tmp_path / "trap.pth", options=own())
    assert not (tmp_path / "sprung").exists()

    stored = torch.load(weights.pth, weights_only=True)["model"]
    for change, words in (
        ({"module.feat_map.bias": None}, "1 missing weights, expected none: feat_map.bias"),
        ({"module.more": torch.zeros(1)}, "1 unexpected weights, expected none (or set"),
        ({"module.feat_map.bias": torch.zeros(7)}, "cannot be loaded (RuntimeError"),
    ):
        changed = {name: t for name, t in {**stored, **change}.items() if t is not None}
        torch.save({"model": changed}, tmp_path / "changed.pth")
        text = message(tmp_path / "changed.pth", options=own())
        assert words in text
        assert "hf download ShilongLiu/GroundingDINO" in text


class Small(torch.nn.Module):
    """Stands for the package's model where it is not installed: two weights and a tokenizer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tokenizer = torch.nn.Linear(3, 2), checkpoints._bert_tokenizer()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Replace the model, and return weights that fill it, named and accompanied as in the published files."""
    monkeypatch.setattr(groundingdino._Package, "_build", lambda _: Small())
    extra = {"label_enc.weight": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(4)}
    own = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([7.0, 8.0])}
    return {f"module.{name}": tensor for name, tensor in (own | extra).items()}


def test_a_file_fills_its_model_exactly_and_is_described(
    small: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.pth"
    torch.save({"model": small}, file)
    spec = EngineSpec(role="detector", backend="groundingdino-py", model=str(file), device="cpu", batch_size=3)
    at = groundingdino._Package(spec)
    assert torch.equal(at.model.layer.weight, small["module.layer.weight"])
    assert torch.equal(at.model.layer.bias, small["module.layer.bias"])
    assert not at.model.training
    assert [list(range(7))[part] for part in at.parts(7)] == [[0, 1, 2], [3, 4, 5], [6]]
    monkeypatch.setattr(hf_checkpoint, "version", lambda package: f"version of {package}")
    assert at.describe() == {
        "backend": "groundingdino-py",
        "model": str(file),
        "revision_asked": None,
        "revision_resolved": f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}",
        "dtype": "float32",
        "device": "cpu",
        "options": {
            "allow_unexpected_weights": False,
            "threshold": 0.35,
            "text_threshold": 0.25,
            "shortest_edge": None,
            "longest_edge": None,
            "config": None,
            "text_encoder": "google-bert/bert-base-uncased",
        },
        **{name: f"version of {name}" for name in ("groundingdino-py", "torchvision", "transformers")},
    }


def test_a_checkpoint_of_more_than_tensors_names_what_it_holds(small: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"model": small, "args": argparse.Namespace(lr=1)}, tmp_path / "a.pth")
    text = message(tmp_path / "a.pth")
    assert (
        ": holds argparse.Namespace, expected tensors alone (nothing else is ever loaded); save it again without"
        in text
    )
    assert "hf download ShilongLiu/GroundingDINO" in text
    assert not any(word in text for word in ("weights_only", "safe_globals", "trust", "\033"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module.layer.bias": None}, "1 missing weights, expected none: layer.bias"),
        (
            {"module.old_label_enc.weight": torch.zeros(1), "module.b": torch.zeros(1)},
            "2 unexpected weights, expected none (or set options.allow_unexpected_weights = true): b",
        ),
        ({"module.layer.bias": torch.zeros(7)}, "cannot be loaded (RuntimeError"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(
    small: dict[str, torch.Tensor], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    weights = {name: tensor for name, tensor in (small | change).items() if tensor is not None}
    torch.save(weights, tmp_path / "a.pth")
    text = message(tmp_path / "a.pth")
    assert words in text
    assert "hf download ShilongLiu/GroundingDINO" in text
    if "unexpected" in words:
        options = {"allow_unexpected_weights": True}
        spec = EngineSpec(role="detector", backend="groundingdino-py", model=str(tmp_path / "a.pth"), options=options)
        assert groundingdino._Package(spec.model_copy(update={"device": "cpu"})).model.layer.bias[1] == 8


@needs_package
def test_unusable_configs_are_refused_and_never_run(weights: Weights, own: Any, tmp_path: Path) -> None:
    config = tmp_path / "bad_cfg.py"
    assert "expected a file of `name = value` lines" in message(weights.pth, options=own(config=str(config)))
    config.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    assert "expected a file of `name = value` lines" in message(weights.pth, options=own(config=str(config)))
    assert not (tmp_path / "ran").exists()
    config.write_text("modelname = 'groundingdino'\n")
    assert "the package cannot build a model" in message(weights.pth, options=own(config=str(config)))


@needs_package
def test_a_text_encoder_that_is_not_there_says_what_to_fetch(
    weights: Weights, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for asked in (str(tmp_path), "google-bert/bert-base-uncased", "/nowhere/bert"):
        text = message(weights.pth, options=own(text_encoder=asked))
        assert f"options.text_encoder = {asked!r}: no BERT configuration and tokenizer there" in text
        assert "hf download google-bert/bert-base-uncased" in text
