from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from c2vl_manifests.config import InputConfig, SkeletonsConfig
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError, EngineError
from c2vl_pipeline.skeletons import assemble_ntu, read_ntu
from c2vl_training import checkpoint, export
from c2vl_training.data import Clips, Packed
from c2vl_training.space import clip_of, load_space
from c2vl_training.trainer import train
from test_data import STICK
from test_trainer import data, moving, recipe, run, sticks  # noqa: F401 - data is a fixture

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def two_bodies(folder: Path) -> Path:
    joints = [
        np.concatenate([j, j[:, :, ::-1] * (n % 3 == 0)], axis=1).astype(np.float32)
        for n, j in enumerate(moving())
    ]
    return sticks(folder, joints=joints)


# ------------------------------------------------------------------------------------------------ onnx


@pytest.mark.parametrize("empty", ["compute", "exact_skip", "leave_out"])
def test_onnx_gives_the_features_of_torch_for_any_batch(tmp_path, empty):
    packed = two_bodies(tmp_path / "packed")
    train(run(packed, tmp_path / "run", f"training.encoder.empty_bodies={empty}"))
    found = export.export(tmp_path / "run", tmp_path / "encoder.onnx")
    assert found.difference < 1e-5
    encoder = checkpoint.load_encoder(tmp_path / "run", CPU)
    held = Packed(packed)
    clips = Clips(held, np.arange(held.manifest.samples), encoder.input, CPU)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5, 16):
        batch = clips.test(torch.arange(count))
        batch[0] *= float(count != 1)  # a clip of nobody
        (values,) = session.run([export.OUTPUT], {export.INPUT: batch.numpy()})
        with torch.inference_mode():
            torch.testing.assert_close(torch.from_numpy(values), encoder.module(batch), rtol=1e-4, atol=1e-5)


def test_onnx_says_what_it_must_be_fed(data, tmp_path):  # noqa: F811
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


def test_a_missing_package_says_which_extra(data, tmp_path, monkeypatch):  # noqa: F811
    train(run(data, tmp_path / "run", kind="random"))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"export needs the package onnx; pip install 'c2vl\[onnx\]'"):
        export.export(tmp_path / "run", tmp_path / "encoder.onnx")


def test_an_unfinished_run_is_not_exported(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist; give the folder of a finished run"):
        export.export(tmp_path, tmp_path / "encoder.onnx")


def test_a_graph_that_differs_is_not_written(data, tmp_path, monkeypatch):  # noqa: F811
    train(run(data, tmp_path / "run", kind="random"))
    monkeypatch.setattr(export, "_difference", lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"differs from the encoder by 5\.0e-01"):
        export.export(tmp_path / "run", tmp_path / "encoder.onnx")
    assert not (tmp_path / "encoder.onnx").exists()


# ----------------------------------------------------------------------------------------------- space


@pytest.mark.parametrize("pooling", ["mean", "ordered", "random"])
def test_the_space_embeds_as_the_run_did(data, tmp_path, pooling):  # noqa: F811
    made = run(
        data, tmp_path / "run", f"training.pretrain.pooling={pooling}", "training.pretrain.standardise=true"
    )
    train(made)
    space = load_space(tmp_path / "run")
    kept = checkpoint.load(tmp_path / "run" / checkpoint.CHECKPOINT)[0]
    model = {n.removeprefix("model."): t for n, t in kept.items() if n.startswith("model.")}
    assert dict.fromkeys(model, True) == {
        n: torch.equal(model[n], t) for n, t in space.model.state_dict().items()
    }
    held = Packed(data)
    clips = Clips(held, np.arange(3), space.input, CPU).test(torch.arange(3))
    planes = held.joints[held.offsets[1] : held.offsets[2]].transpose(0, 2, 3, 1)
    torch.testing.assert_close(space.skeleton(planes), space.clips(clips)[1])
    assert torch.allclose(space.clips(clips).norm(dim=1), torch.ones(3))


def test_a_caption_lies_where_a_sample_that_says_nothing_else_lay(tmp_path):
    one = np.random.default_rng(5).normal(size=(16, 1, 5))
    folder = sticks(tmp_path / "packed", language=np.repeat(one, 4, axis=1))
    from c2vl_training.data import Knowledge

    for pooling in ("mean", "ordered"):
        made = run(
            folder,
            tmp_path / pooling,
            f"training.pretrain.pooling={pooling}",
            "training.pretrain.standardise=true",
        )
        train(made)
        space = load_space(tmp_path / pooling)
        rows = made.packed.select("xsub", "train", ("vision", "language")).rows
        pooled = Knowledge(made.packed, rows, "language", made.recipe.training.pretrain).epoch(
            torch.Generator()
        )
        with torch.inference_mode():
            wanted = space.model.knowledge("language", pooled)
        found = space.knowledge("language", one[rows, 0])
        torch.testing.assert_close(
            found, wanted, rtol=1e-2, atol=1e-3
        )  # vectors are stored in half precision


def test_what_does_not_belong_to_a_space_is_refused(data, tmp_path):  # noqa: F811
    train(run(data, tmp_path / "run", "training.pretrain.knowledge=vision"))
    train(run(data, tmp_path / "other", "training.pretrain.knowledge=vision", seed=1))
    train(run(data, tmp_path / "floor", kind="random"))
    space = load_space(tmp_path / "run")
    with pytest.raises(ConfigError, match="no language projector; it was trained with vision"):
        space.knowledge("language", np.ones((1, 5)))
    with pytest.raises(DataError, match="vision vectors of 7 numbers"):
        space.knowledge("vision", np.ones((1, 7)))
    with pytest.raises(DataError, match=r"shape \(4, 1, 9, 3\); expected \(T, M, 5, 3\)"):
        space.skeleton(np.ones((4, 1, 9, 3)))
    with pytest.raises(DataError, match="NaN or infinite"):
        space.skeleton(np.full((4, 1, 5, 3), np.nan))
    with pytest.raises(CheckpointError, match="is a random run and has no projectors"):
        load_space(tmp_path / "floor")
    shutil.copy(tmp_path / "other" / checkpoint.PROJECTORS, tmp_path / "run" / checkpoint.PROJECTORS)
    with pytest.raises(CheckpointError, match="is of another run than the encoder beside it"):
        load_space(tmp_path / "run")


def test_a_single_skeleton_becomes_the_clip_that_evaluation_sees(raw, work):
    held = Packed(work)
    config = recipe().training.input
    clips = Clips(held, np.arange(4), config, CPU).test(torch.arange(4))
    for n, name in enumerate(held.sample_ids(range(4))):
        (file,) = raw.rglob(f"{name}*.skeleton")
        joints = assemble_ntu(read_ntu(file, pixels=False), SkeletonsConfig()).joints
        torch.testing.assert_close(
            clip_of(joints, held.layout, held.manifest.bodies, config), clips[n : n + 1]
        )


def test_onnx_is_an_extra_and_not_needed_to_train():
    assert importlib.util.find_spec("onnx") is not None  # what this file tests with
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    core = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    assert "onnx" not in core
