"""Checkpoints of the Hugging Face engines: where they are found and when they are refused."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline.engines import hf_hub
from c2vl_pipeline.engines.hf_encoder import HfEncoder
from c2vl_pipeline.engines.requirements import HUB_TIMEOUT
from support.hf import ROLES, message


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty hub cache, and a hub whose port is closed."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def test_a_hub_id_in_the_cache_is_loaded_without_network_and_recorded_by_commit(
    no_network: Path, folders: dict[str, Path]
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = no_network / "models--someone--tiny-clip"
    shutil.copytree(folders["encoder"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    engine = HfEncoder(EngineSpec(role="encoder", backend="hf", model="someone/tiny-clip"))
    assert engine.describe()["revision_resolved"] == commit
    assert engine.describe()["model"] == "someone/tiny-clip"


# --- what users read --------------------


@pytest.mark.parametrize("role", ROLES)
def test_missing_checkpoint_says_which_and_how_to_get_it_at_once(no_network: Path, role: str) -> None:
    _, _, setting, example = ROLES[role]
    start = time.monotonic()
    text = message(role, example)
    assert time.monotonic() - start < 3
    assert text.startswith(f"{role} checkpoint '{example}': ")
    assert "neither a folder nor complete in the hub cache, and the hub does not answer (ConnectError" in text
    assert f"`hf download {example} --local-dir /path/to/folder` on a machine with network" in text
    assert text.endswith(f"`--set {setting}.model=/path/to/folder`")


def test_a_hub_that_accepts_and_never_answers_costs_seconds(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HUB_TIMEOUT <= 5
    monkeypatch.setattr(hf_hub, "HUB_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "the hub does not answer (ReadTimeout" in message("encoder", "someone/clip")
        assert time.monotonic() - start < 4


def test_offline_mode_asks_nobody_and_names_the_revision(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    text = message("captioner", "someone/llava", revision="v2")
    assert "HF_HUB_OFFLINE forbids asking the hub" in text
    assert "`hf download someone/llava --revision v2 " in text


def test_no_model_at_all_is_one_line() -> None:
    assert "detector checkpoint None: expected a hub id or a local folder" in message("detector", None)


@pytest.mark.parametrize("path", ["/nowhere/llava", "./nowhere", "a/b/c"])
def test_a_wrong_local_path_never_reaches_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked the hub"))
    text = message("captioner", path)
    assert text.startswith(f"captioner checkpoint '{path}': no such folder; get one with `hf download llava-hf")


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    assert "not a checkpoint, its config.json cannot be read (FileNotFoundError" in message("encoder", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert "1 weight files missing, expected model.safetensors next to config.json" in message("encoder", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ["clip"]}')
    assert "holds a ['clip'] model, which transformers" in message("encoder", tmp_path)


@pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_list_of_weight_files_of_another_form_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json lists no weight files (" in message("encoder", tmp_path)


@pytest.mark.parametrize(
    ("role", "given", "words"),
    [
        (
            "captioner",
            "encoder",
            "holds a 'clip' model, which writes no text about images (expected one for AutoModelForI",
        ),
        ("captioner", "detector", "holds a 'grounding-dino' model, which writes no text about images"),
        ("encoder", "captioner", "holds a 'llava' model, which has no get_text_features; "),
        ("encoder", "detector", "which has no get_image_features and no get_text_features"),
        (
            "detector",
            "encoder",
            "holds a 'clip' model, which detects no objects (expected one for AutoModelForZeroShot",
        ),
    ],
)
def test_a_checkpoint_of_another_role_is_refused(folders: dict[str, Path], role: str, given: str, words: str) -> None:
    text = message(role, folders[given])
    assert words in text
    assert ROLES[role][3] in text


@pytest.mark.parametrize("role", ROLES)
def test_a_damaged_weight_file_is_refused(folders: dict[str, Path], tmp_path: Path, role: str) -> None:
    folder = shutil.copytree(folders[role], tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size * 6 // 10])
    text = message(role, folder)
    assert "damaged or incomplete, cannot be loaded (SafetensorError" in text
    assert f"--set {ROLES[role][2]}.model=" in text


@pytest.mark.parametrize("role", ROLES)
def test_weights_that_do_not_fill_the_model_exactly_are_refused(
    folders: dict[str, Path], tmp_path: Path, role: str, build: Callable[..., Any]
) -> None:
    folder = shutil.copytree(folders[role], tmp_path / "other")
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in sorted(weights) if n.endswith("layer_norm1.weight") or n.endswith("reduction.weight"))
    save_file({n: w for n, w in weights.items() if n != name}, path, {"format": "pt"})
    assert "1 missing weights, expected none: " in message(role, folder)
    save_file(weights | {name: weights[name][:-1].contiguous()}, path, {"format": "pt"})
    assert "1 mismatched weights, expected none: " in message(role, folder)
    save_file(weights | {"extra.weight": weights[name].clone()}, path, {"format": "pt"})
    text = message(role, folder)
    assert "1 unexpected weights, expected none (or set options.allow_unexpected_weights = true): extra.weight" in text
    assert build(role, model=str(folder), options={"allow_unexpected_weights": True})


def test_a_shard_that_did_not_arrive_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["encoder"], tmp_path / "sharded")
    names = sorted(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "1 weight files missing, expected model-00001-of-00002.safetensors" in message("encoder", folder)
