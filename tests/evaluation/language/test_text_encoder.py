"""Which text encoder is asked: told by its revision, and by the vector of a caption where that is still at hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from c2vl_evaluation import cache
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import search, shared_space, text_encoder, zeroshot
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Caption
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, embed, pack
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train
from support import checkpoints
from support.cli import Cli, refused
from support.evaluation import TwoEars, another, manifest

# ---------------------------------------------------------------------------------------------- revisions


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"backend": "hf", "model": "/nowhere/clip"}, r"cannot be loaded \(encoder checkpoint '/nowhere/clip'"),
        ({"backend": "gone"}, "no encoder engine is called 'gone'"),
        ({"backend": "classical"}, "is of width 256, the vectors of .* are of width 5"),
        (
            {"backend": "classical", "options": {"text_dim": 5}, "revision_of_code": 99},
            "is of code revision 1, .* were made by one of 99",
        ),
    ],
)
def test_an_encoder_that_did_not_make_the_vectors_is_refused_in_one_line(subject, tmp_path, engine, said):
    other = another(subject, tmp_path, lambda folder: manifest(folder, embeddings=engine))
    with pytest.raises(EngineError, match=said) as caught:
        zeroshot.evaluate(other)
    assert "\n" not in str(caught.value)
    assert "--encoder" in str(caught.value)


@pytest.mark.parametrize(
    "files", [{"texts": "own.npz"}, {"images": "own.npz"}, {"images": "own.npz", "texts": "own.npz"}]
)
def test_vectors_of_files_know_no_text_and_the_line_names_what_helps(subject, tmp_path, files):
    engine = {"backend": "precomputed-vectors", "files": files}
    other = another(subject, tmp_path, lambda folder: manifest(folder, embeddings=engine))
    with pytest.raises(EngineError, match=r"are of files \(own\.npz\), .* by --class-vectors$") as caught:
        zeroshot.evaluate(other)
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize(
    ("was", "now", "fits"),
    [
        ("sha256:aa", "sha256:aa", True),
        ("sha256:aa", "sha256:bb", False),
        ("a" * 40, "b" * 40, False),
        ("a" * 40, "sha256:bb", False),  # a hub's commit and a folder's hash, and no caption to compare
    ],
)
def test_another_checkpoint_is_told_by_its_revision(subject, tmp_path, monkeypatch, was, now, fits):
    engine = {"backend": "hf", "model": "clip", "revision": "main", "revision_resolved": was}
    other = another(subject, tmp_path, lambda folder: manifest(folder, embeddings=engine))
    asked = []

    def load(spec: Any) -> TwoEars:
        asked.append((spec.model, spec.revision))
        encoder = TwoEars()
        encoder.text_dim = 5
        return encoder

    monkeypatch.setattr(engines, "load", load)
    monkeypatch.setattr(engines, "key_facts", lambda spec: {"revision_resolved": now})
    for folder, wanted in (
        (None, ("clip", was if len(was) == 40 else "main")),
        (tmp_path / "moved", (str(tmp_path / "moved"), "main")),
    ):
        if fits:
            text_encoder.load(other.packed, folder)
        else:
            with pytest.raises(EngineError, match=f"is of revision {now[:19]}"):
                text_encoder.load(other.packed, folder)
        assert asked[-1] == wanted


# ------------------------------------------------------------------------------------ captions' vectors


@dataclass(frozen=True)
class Moved:
    """A run on vectors of a tiny CLIP that came from the hub, a download of it, and another CLIP of its width."""

    subject: EvalContext
    recipe: Recipe
    right: Path
    wrong: Path


@pytest.fixture(scope="module")
def made(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Moved:
    folder = tmp_path_factory.mktemp("moved")
    here = Path(shutil.copytree(work, folder / "work"))
    right = checkpoints.tiny_clip(folder / "here", 56)
    spec = f'pipeline.embed.engine={{role="encoder", backend="hf", model="{right}"}}'
    recipe = load_recipe("debug", [spec])
    runner.run_stage(embed.STAGE, here, recipe)
    pack.run(here, recipe)
    right = right.rename(folder / "download")
    wrong = Path(shutil.copytree(right, folder / "wrong"))
    weights = load_file(wrong / "model.safetensors")
    (name,) = (name for name in weights if name.startswith("text_projection"))
    weights[name] = weights[name].flip(0).contiguous()
    save_file(weights, wrong / "model.safetensors", {"format": "pt"})
    path = here / "packed" / "packed.json"
    held = json.loads(path.read_text())
    assert held["engines"]["embeddings"]["revision_resolved"].startswith("sha256:")
    told = {"model": "somebody/clip", "revision_resolved": "a" * 40}
    held["engines"]["embeddings"] |= told
    path.write_text(json.dumps(held))
    packed = PackedDataset(here)
    train(Run("pretrain", packed, recipe, "xsub", 0, folder / "main"))
    engines.clear()
    return Moved(EvalContext(folder / "main", packed, "xsub", recipe, 0), recipe, right, wrong)


@pytest.fixture
def moved(made: Moved, tmp_path: Path) -> Iterator[Moved]:
    """The same without findings, on a work folder that a test may change."""
    run = Path(shutil.copytree(made.subject.run, tmp_path / "main"))
    here = Path(shutil.copytree(made.subject.packed.folder.parent, tmp_path / "work"))
    yield Moved(EvalContext(run, PackedDataset(here), "xsub", made.recipe, 0), made.recipe, made.right, made.wrong)
    engines.clear()


def test_a_checkpoint_that_was_moved_is_taken_if_it_says_the_same_of_a_caption(moved):
    found = zeroshot.evaluate(moved.subject, encoder=moved.right)
    assert not any("--encoder" in note for note in found.notes)
    wanted = text_encoder.load(moved.subject.packed, moved.right).encode_texts(["jumping"]).vectors
    vectors, cut = shared_space.open_space(moved.subject, moved.right).texts(["jumping"])
    np.testing.assert_allclose(vectors, wanted, atol=1e-6)
    assert cut == 0
    assert search.search(moved.subject, "jumping", 3, encoder=moved.right).hits


@pytest.mark.parametrize("ask", ["zeroshot", "search"])
def test_another_checkpoint_of_the_same_width_is_refused_in_one_line(moved, cli: Cli, ask, tmp_path):
    words = ["--data", moved.subject.packed.folder, "--run", moved.subject.run, "--encoder", moved.wrong]
    words += ["a person waving", "--out", tmp_path / "found.html"] if ask == "search" else []
    found = cli("c2vl-eval", ask, *words)
    refused(found, "expected more than 0.99 of the one that made it; name the folder of that checkpoint by")
    assert "at cosine " in found.err
    assert not list((moved.subject.run / cache.FOLDER).glob("*"))


def test_a_moved_checkpoint_is_rejected_where_no_caption_is_left_to_compare(moved):
    shutil.rmtree(moved.subject.packed.folder.parent / "captions")
    with pytest.raises(EngineError, match="no caption next to them is left to compare; name the folder"):
        zeroshot.evaluate(moved.subject, encoder=moved.right)
    with pytest.raises(EngineError, match=r"cannot be loaded \(encoder checkpoint .* no such folder"):
        zeroshot.evaluate(moved.subject, encoder=moved.right / "gone")


def test_one_finding_wherever_the_checkpoint_lies(moved, tmp_path, monkeypatch):
    found = zeroshot.evaluate(moved.subject, encoder=moved.right)
    elsewhere = Path(shutil.copytree(moved.right, tmp_path / "elsewhere"))
    monkeypatch.setattr(shared_space.SharedSpace, "texts", lambda *_: pytest.fail("encoded again"))
    assert zeroshot.evaluate(moved.subject, encoder=elsewhere) == found


def test_weights_that_the_data_name_are_the_same_finding_wherever_they_lie(moved, monkeypatch):
    now = engines.key_facts(moved.recipe.pipeline.embed.engine.model_copy(update={"model": str(moved.right)}))
    packed = moved.subject.packed
    held = {**text_encoder.engine_of(packed), "model": str(moved.right), **now}
    manifest(packed.folder, embeddings=held)
    subject = EvalContext(moved.subject.run, PackedDataset(packed.folder), "xsub", moved.recipe, 0)
    found = zeroshot.evaluate(subject)
    monkeypatch.setattr(shared_space.SharedSpace, "texts", lambda *_: pytest.fail("encoded again"))
    assert zeroshot.evaluate(subject, encoder=moved.right) == found


# ------------------------------------------------------------------------------ what cannot be compared


def test_a_caption_stands_beside_its_own_vector(work):
    packed = PackedDataset(work)
    text, vector = text_encoder.witness(packed) or pytest.fail("nothing is left")
    encoder = text_encoder.load(packed)
    np.testing.assert_allclose(encoder.encode_texts([text]).vectors[0], vector, atol=1e-3)
    held = packed.knowledge("language")[0]
    assert (held == vector).all(axis=-1).any()


def test_vectors_that_were_not_packed_tell_nothing(work, tmp_path):
    here = Path(shutil.copytree(work, tmp_path / "work"))
    path = here / "packed" / "language.npy"
    np.save(path, np.roll(np.load(path), 1, axis=-1))
    assert text_encoder.witness(PackedDataset(here)) is None
    text_encoder.load(PackedDataset(here))


def test_captions_that_were_made_again_since_they_were_embedded_tell_nothing(work, tmp_path, monkeypatch):
    here = Path(shutil.copytree(work, tmp_path / "work"))
    assert text_encoder.witness(PackedDataset(here))
    shutil.rmtree(here / "captions")
    with monkeypatch.context() as patch:
        patch.setattr(PoseCode, "caption", lambda _, crops, question: [Caption("a tree", 2)] * len(crops))
        runner.run_stage(caption.STAGE, here, load_recipe("debug"))
    assert text_encoder.witness(PackedDataset(here)) is None
    text_encoder.load(PackedDataset(here))


def test_shards_that_are_damaged_or_gone_are_passed_over(work, tmp_path):
    here = Path(shutil.copytree(work, tmp_path / "work"))
    first, *others = sorted((here / "embeddings").glob("shard-*.parquet"))
    assert others
    first.write_bytes(first.read_bytes()[:-9])
    assert text_encoder.witness(PackedDataset(here))
    shutil.rmtree(here / "embeddings")
    assert text_encoder.witness(PackedDataset(here)) is None
