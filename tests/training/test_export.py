"""Export of encoders to ONNX, and the README's example."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from c2vl_manifests.errors import CheckpointError, ConfigError, EngineError
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training import checkpoint, export
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support import ROOT
from support.packed import STICK, moving, sticks
from support.training import run

CPU = torch.device("cpu")


def two_bodies(folder: Path) -> Path:
    joints = [
        np.concatenate([j, j[:, :, ::-1] * (n % 3 == 0)], axis=1).astype(np.float32) for n, j in enumerate(moving())
    ]
    return sticks(folder, joints=joints)


# ------------------------------------------------------------------------------------------------ onnx


@pytest.mark.slow
@pytest.mark.parametrize("empty", ["compute", "exact_skip", "leave_out"])
def test_onnx_gives_the_features_of_torch_for_any_batch(tmp_path, empty):
    packed = two_bodies(tmp_path / "packed")
    train(run(packed, tmp_path / "run", f"training.encoder.empty_bodies={empty}"))
    found = export.export(tmp_path / "run", tmp_path / "encoder.onnx")
    assert found.difference < 1e-5
    encoder = checkpoint.load_encoder(tmp_path / "run", CPU)
    held = PackedDataset(packed)
    clips = Clips(held, np.arange(held.manifest.samples), encoder.input, CPU)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5, 16):
        batch = clips.test(torch.arange(count))
        batch[0] *= float(count != 1)  # a clip of nobody
        (values,) = session.run([export.OUTPUT], {export.INPUT: batch.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(values), encoder.module(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_onnx_says_what_it_must_be_fed(data, tmp_path):
    train(run(data, tmp_path / "run", kind="random"))
    export.export(tmp_path / "run", tmp_path / "encoder.onnx")
    model = onnx.load(tmp_path / "encoder.onnx")
    facts = json.loads({p.key: p.value for p in model.metadata_props}["c2vl"])
    assert facts["layout"]["names"] == list(STICK.names)
    assert InputConfig.model_validate(facts["input"]).frames == 8
    shape = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape[1:] == [3, 8, 5, 1]
    assert isinstance(shape[0], str)
    assert not list(tmp_path.glob("*.data"))


def test_a_missing_package_says_which_extra(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "run", kind="random"))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"export needs the package onnx; `pip install -e '\.\[onnx\]'`"):
        export.export(tmp_path / "run", tmp_path / "encoder.onnx")


def test_an_unfinished_run_is_not_exported(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; give the folder of a finished run"):
        export.export(tmp_path, tmp_path / "encoder.onnx")


@pytest.mark.slow
def test_a_graph_that_differs_is_not_written(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "run", kind="random"))
    monkeypatch.setattr(export, "difference_of", lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"differs from the encoder by 5\.0e-01"):
        export.export(tmp_path / "run", tmp_path / "encoder.onnx")
    assert not (tmp_path / "encoder.onnx").exists()


def test_onnx_is_an_extra_and_not_needed_to_train():
    assert importlib.util.find_spec("onnx") is not None  # what this file tests with
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    core = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    assert "onnx" not in core


def test_a_check_by_onnxruntime_leaves_nothing_in_the_home_folder(tmp_path):
    program = "from c2vl_training.export import session_of; import sys\n"
    program += "try: session_of(b'')\nexcept Exception: pass\nassert 'onnxruntime' in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0
    assert not [path for path in tmp_path.rglob("*") if "onnxruntime" in path.name]
