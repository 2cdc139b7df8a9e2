"""Embedding of single skeletons and texts with a finished run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.ntu import assemble_ntu, read_ntu
from c2vl_training import checkpoint
from c2vl_training.clips import Clips, UnpackedSkeletons
from c2vl_training.dataset import PackedDataset
from c2vl_training.inference import clip_of, encode, load_joint_embedding
from c2vl_training.trainer import train
from support.packed import STICK, sticks
from support.training import recipe, run

CPU = torch.device("cpu")


@pytest.mark.parametrize("pooling", ["mean", "ordered", "random"])
def test_the_space_embeds_as_the_run_did(data, tmp_path, pooling):
    made = run(data, tmp_path / "run", f"training.pretrain.pooling={pooling}", "training.pretrain.standardise=true")
    train(made)
    space = load_joint_embedding(tmp_path / "run")
    kept = checkpoint.load(tmp_path / "run" / checkpoint.CHECKPOINT)[0]
    model = {n.removeprefix("model."): t for n, t in kept.items() if n.startswith("model.")}
    assert dict.fromkeys(model, True) == {n: torch.equal(model[n], t) for n, t in space.model.state_dict().items()}
    held = PackedDataset(data)
    clips = Clips(held, np.arange(3), space.input, CPU).test(torch.arange(3))
    planes = held.joints[held.offsets[1] : held.offsets[2]].transpose(0, 2, 3, 1)
    torch.testing.assert_close(space.skeleton(planes), space.clips(clips)[1])
    assert torch.allclose(space.clips(clips).norm(dim=1), torch.ones(3))


def test_clips_meet_texts_through_the_head_of_language(data, tmp_path):
    made = run(data, tmp_path / "run", "training.pretrain.skeleton_heads=per_kind")
    train(made)
    space = load_joint_embedding(tmp_path / "run")
    clips = Clips(PackedDataset(data), np.arange(3), space.input, CPU).test(torch.arange(3))
    kept = checkpoint.load(tmp_path / "run" / checkpoint.CHECKPOINT)[0]
    features = checkpoint.load_encoder(tmp_path / "run").module(clips)
    for kind in ("vision", "language"):
        wanted = features @ kept[f"model.skeleton.{kind}.weight"].T + kept[f"model.skeleton.{kind}.bias"]
        wanted /= wanted.norm(dim=1, keepdim=True)
        assert torch.allclose(space.clips(clips), wanted, atol=1e-5) == (kind == "language")


def test_a_caption_lies_where_a_sample_that_says_nothing_else_lay(tmp_path):
    one = np.random.default_rng(5).normal(size=(16, 1, 5))
    folder = sticks(tmp_path / "packed", language=np.repeat(one, 4, axis=1))
    from c2vl_training.knowledge import Knowledge

    for pooling in ("mean", "ordered"):
        made = run(
            folder, tmp_path / pooling, f"training.pretrain.pooling={pooling}", "training.pretrain.standardise=true"
        )
        train(made)
        space = load_joint_embedding(tmp_path / pooling)
        rows = made.packed.select("xsub", "train", ("vision", "language")).rows
        pooled = Knowledge(made.packed, rows, "language", made.recipe.training.pretrain).epoch(torch.Generator())
        with torch.inference_mode():
            wanted = space.model.knowledge("language", pooled)
        found = space.knowledge("language", one[rows, 0])
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)  # vectors are stored in half precision


def test_what_does_not_belong_to_a_space_is_refused(data, tmp_path):
    train(run(data, tmp_path / "run", "training.pretrain.knowledge=vision"))
    train(run(data, tmp_path / "other", "training.pretrain.knowledge=vision", seed=1))
    train(run(data, tmp_path / "floor", kind="random"))
    space = load_joint_embedding(tmp_path / "run")
    with pytest.raises(ConfigError, match="no language projector; it was trained with vision"):
        space.knowledge("language", np.ones((1, 5)))
    with pytest.raises(DataError, match="vision vectors of 7 numbers"):
        space.knowledge("vision", np.ones((1, 7)))
    with pytest.raises(DataError, match=r"shape \(4, 1, 9, 3\); expected \(T, M, 5, 3\)"):
        space.skeleton(np.ones((4, 1, 9, 3)))
    with pytest.raises(DataError, match="NaN or infinite"):
        space.skeleton(np.full((4, 1, 5, 3), np.nan))
    with pytest.raises(CheckpointError, match="is a random run and has no projectors"):
        load_joint_embedding(tmp_path / "floor")
    shutil.copy(tmp_path / "other" / checkpoint.PROJECTORS, tmp_path / "run" / checkpoint.PROJECTORS)
    with pytest.raises(CheckpointError, match="belongs to another run than the encoder in the same folder"):
        load_joint_embedding(tmp_path / "run")


def test_a_single_skeleton_becomes_the_clip_that_evaluation_sees(raw, work):
    held = PackedDataset(work)
    config = recipe().training.input
    clips = Clips(held, np.arange(4), config, CPU).test(torch.arange(4))
    for n, name in enumerate(held.sample_ids(range(4))):
        (file,) = raw.rglob(f"{name}*.skeleton")
        joints = assemble_ntu(read_ntu(file, pixels=False), SkeletonsConfig()).joints
        torch.testing.assert_close(clip_of(joints, held.layout, held.manifest.bodies, config), clips[n : n + 1])


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_encoding_is_the_network_of_every_central_clip_in_order(data, batch_size):
    packed = PackedDataset(data)
    rows = packed.select("xsub", "train").rows
    clips = Clips(packed, rows, recipe().training.input, torch.device("cpu"))
    network = torch.nn.Flatten()
    encoded = encode(network, clips, batch_size)
    assert encoded.shape[0] == len(rows)
    for place in range(len(rows)):
        torch.testing.assert_close(encoded[place], network(clips.test(torch.tensor([place])))[0])


def test_unpacked_skeletons_are_filled_up_or_cut_to_the_number_of_bodies():
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=(frames, bodies, 5, 3)) for frames, bodies in ((4, 1), (6, 3)))
    skeletons = UnpackedSkeletons.of([one, two], STICK, 2)
    assert skeletons.offsets.tolist() == [0, 4, 10]
    assert skeletons.joints.shape == (10, 3, 2, 5)
    np.testing.assert_array_equal(skeletons.joints[:4, :, 0], np.float32(one[:, 0].transpose(0, 2, 1)))
    assert not skeletons.joints[:4, :, 1].any()
    np.testing.assert_array_equal(skeletons.joints[4:], np.float32(two[:, :2].transpose(0, 3, 1, 2)))
