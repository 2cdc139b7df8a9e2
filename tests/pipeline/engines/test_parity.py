"""What the models see: the pixels of our engines against transformers' processors and against loops of one's own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pil
from transformers import CLIPImageProcessorPil, CLIPProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.manifest import read_shard
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.engines import Crop
from c2vl_pipeline.engines.hf_captioner import HfCaptioner
from c2vl_pipeline.engines.hf_encoder import HfEncoder
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import Video, decode_jpeg, encode_jpeg, shape_image
from c2vl_pipeline.stages import embed
from c2vl_pipeline.workspace import shard_path
from support import checkpoints

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
SHAPES = [(336, 336), (200, 120), (97, 411), (500, 333), (672, 301), (40, 31), (7, 200), (337, 336)]
SIDE = 336


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge: a wrong channel order, crop or resampling changes all of it."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = np.array(Pil.fromarray(colours).resize((width, height), Pil.Resampling.BILINEAR))
    image[height // 3 :, : width // 2] //= 3
    return image


def normalised(image: Pil.Image) -> np.ndarray:
    """(H, W, 3) pixels -> (3, H, W) as CLIP wants them."""
    return ((np.asarray(image, np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def expand2square(image: Pil.Image, mean: Sequence[float]) -> Pil.Image:
    """LLaVA's padding, written from its description: mean colour rounded down, image in the middle."""
    width, height = image.size
    side = max(width, height)
    colour = tuple(int(channel * 255) for channel in mean)
    square = Pil.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def padded_reference(image: np.ndarray) -> np.ndarray:
    square = expand2square(Pil.fromarray(image), MEAN.tolist())
    return normalised(square.resize((SIDE, SIDE), Pil.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("checkpoints")
    return {"clip": checkpoints.tiny_clip(out / "clip"), "llava": checkpoints.tiny_llava(out / "llava")}


@pytest.fixture(scope="module")
def clip(folders: dict[str, Path]) -> HfEncoder:
    return HfEncoder(EngineSpec(role="encoder", backend="hf", model=str(folders["clip"]), batch_size=4))


@pytest.fixture(scope="module")
def llava(folders: dict[str, Path]) -> HfCaptioner:
    return HfCaptioner(EngineSpec(role="captioner", backend="hf", model=str(folders["llava"]), batch_size=4))


def seen_by(engine: Any, call: str, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Return the pixel_values that reach the model, (n, 3, side, side)."""
    seen: list[torch.Tensor] = []
    model = engine._at.model
    method = getattr(model, call)

    def watched(*args: Any, **inputs: Any) -> Any:
        seen.append(inputs["pixel_values"].clone())
        return method(*args, **inputs)

    with monkeypatch.context() as patch:
        patch.setattr(model, call, watched)
        if call == "generate":
            engine.caption([Crop(image, "s", n) for n, image in enumerate(images)], "what?")
        else:
            engine.encode_images(images)
    return torch.cat(seen).numpy()


ENGINES = [("clip", "get_image_features"), ("llava", "generate")]


@pytest.fixture(params=ENGINES, ids=["clip", "llava"])
def look(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function from images to the pixel_values that a model is given."""
    name, call = request.param
    engine = request.getfixturevalue(name)
    return lambda images: seen_by(engine, call, images, monkeypatch)


# ---------------------------------------------------------------------------------------------- policies


def test_center_crop_is_exactly_what_transformers_does(look: Any, folders: dict[str, Path]) -> None:
    images = [picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    pixels = look([shape_image(image, "center_crop") for image in images])
    assert pixels.shape == (len(SHAPES), 3, SIDE, SIDE)
    assert pixels.dtype == np.float32
    for processor in (
        CLIPProcessor.from_pretrained(folders["clip"], use_fast=False).image_processor,
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        LlavaProcessor.from_pretrained(folders["llava"], use_fast=False).image_processor,
    ):
        wanted = processor([Pil.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(pixels, wanted)


def test_center_crop_is_the_middle_of_the_short_edge_at_336(look: Any) -> None:
    for shape in ((200, 120), (500, 333)):
        image = picture(*shape)
        scale = SIDE / min(shape)
        size = (round(shape[1] * scale - 1e-9), int(shape[0] * scale))
        big = Pil.fromarray(image).resize(size, Pil.Resampling.BICUBIC)
        top, left = (big.height - SIDE) // 2, (big.width - SIDE) // 2
        wanted = normalised(big.crop((left, top, left + SIDE, top + SIDE)))
        np.testing.assert_allclose(look([shape_image(image, "center_crop")])[0], wanted, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_pad_is_llavas_expand2square(look: Any, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    (pixels,) = look([shape_image(image, "pad")])
    np.testing.assert_allclose(pixels, padded_reference(image), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_pad_is_what_transformers_own_llava_processor_pads(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    own = LlavaImageProcessorPil(
        do_pad=True, do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False,
        image_mean=MEAN.tolist(),
    )  # fmt: skip
    (square,) = own(Pil.fromarray(image), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(shape_image(image, "pad"), square.transpose(1, 2, 0))


def test_the_padding_is_nothing_to_the_model_within_a_grey_level() -> None:
    grey = np.asarray(shape_image(np.zeros((2, 8, 3), np.uint8), "pad")[0, 0], np.float64)
    assert (np.abs(grey / 255 - MEAN) < 1 / 255).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_squash_stretches_the_whole_crop(look: Any, shape: tuple[int, int]) -> None:
    image = picture(*shape)
    (pixels,) = look([shape_image(image, "squash")])
    wanted = normalised(Pil.fromarray(image).resize((SIDE, SIDE), Pil.Resampling.BICUBIC))
    assert np.abs(pixels - wanted).mean() < 0.12, "all of the crop is there, at its place"
    stretched = cv2.resize(image, (max(shape), max(shape)), interpolation=cv2.INTER_AREA)
    exact = normalised(Pil.fromarray(stretched).resize((SIDE, SIDE), Pil.Resampling.BICUBIC))
    np.testing.assert_allclose(pixels, exact, atol=1e-5)


def test_policies_differ_on_what_is_no_square_and_agree_on_squares(look: Any) -> None:
    tall, square = picture(500, 250), picture(400, 400)
    policies = ("pad", "center_crop", "squash")
    pixels = look([shape_image(tall, policy) for policy in policies])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(pixels[a] - pixels[b]).mean() > 0.05
    pixels = look([shape_image(square, policy) for policy in policies])
    np.testing.assert_array_equal(pixels[0], pixels[1])
    np.testing.assert_array_equal(pixels[0], pixels[2])


def test_channels_are_red_green_blue_all_the_way(look: Any) -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[..., 0] = 250
    (pixels,) = look([decode_jpeg(encode_jpeg(image, 95))])
    wanted = (np.array([250, 0, 0]) / 255 - MEAN) / STD
    np.testing.assert_allclose(pixels.mean(axis=(1, 2)), wanted, atol=0.06)


# ------------------------------------------------------------------------------------------ stored bytes


@pytest.fixture(scope="module", params=["pad", "center_crop", "squash"])
def embedded(
    request: pytest.FixtureRequest, work: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Embeddings of a few samples by the tiny CLIP, under each policy."""
    here = Path(shutil.copytree(work, tmp_path_factory.mktemp("embedded") / "w"))
    shutil.rmtree(here / "embeddings")
    spec = f'pipeline.embed.engine={{role="encoder", backend="hf", model="{folders["clip"]}"}}'
    recipe = load_recipe("debug", [spec, f"pipeline.embed.aspect={request.param}"])
    runner.run_stage(embed.STAGE, here, recipe, limit=8)
    engines.clear()
    return here, str(request.param)


def test_what_is_embedded_is_the_stored_jpeg(embedded: tuple[Path, str], clip: HfEncoder, recipe: Recipe) -> None:
    work, aspect = embedded
    crops = read_shard(shard_path(work, "crops", 0)).to_pylist()
    stored = read_shard(shard_path(work, "embeddings", 0)).to_pylist()
    images = [shape_image(decode_jpeg(row["jpeg"]), aspect) for row in crops]
    vectors = clip.encode_images(images)
    np.testing.assert_array_equal(np.array([row["vision"] for row in stored]), vectors.astype(np.float16))
    # and not the frame that the bytes were made of
    found = workspace.load(work)
    frames = []
    for row, sample in zip(crops, [s for s in found.shard(0) for _ in range(4)], strict=True):
        with Video(found.root / sample["video"]) as video:
            ((_, frame),) = video.frames([row["frame_index"]])
        left, top, right, bottom = (int(edge) for edge in row["box"])
        frames.append(frame[top:bottom, left:right].copy())
        assert frames[-1].shape == decode_jpeg(row["jpeg"]).shape
        assert not np.array_equal(frames[-1], decode_jpeg(row["jpeg"]))
        assert encode_jpeg(frames[-1], recipe.pipeline.crop.jpeg_quality) == row["jpeg"]
    before = clip.encode_images([shape_image(frame, aspect) for frame in frames])
    assert (np.abs(before - vectors).max(axis=1) > 0).all()
    assert (before.astype(np.float16) != vectors.astype(np.float16)).any()


def test_stored_bytes_decode_alike_in_other_libraries(work: Path) -> None:
    import io

    for row in read_shard(shard_path(work, "crops", 0)).to_pylist()[:8]:
        other = np.asarray(Pil.open(io.BytesIO(row["jpeg"])).convert("RGB"), np.int16)
        ours = decode_jpeg(row["jpeg"]).astype(np.int16)
        assert np.abs(other - ours).max() <= 2
