"""Checkpoints: damage is noticed and named, pickles are refused."""

from __future__ import annotations

import errno
import os
import pickle

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import CheckpointError
from c2vl_training import checkpoint
from c2vl_training.trainer import train
from support.packed import STICK
from support.training import StoppedError, recipe, run, same, stop_after, tensors


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_checkpoint_is_refused_in_one_line(data, tmp_path, damage):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out), stop_after(2))
    path = out / checkpoint.CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello" * 99}[damage])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: not a checkpoint of this program") as caught:
        train(run(data, out))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("delete it and train again")


@pytest.mark.parametrize("name", [checkpoint.CHECKPOINT, checkpoint.ENCODER, checkpoint.PROJECTORS])
def test_any_flipped_bit_is_noticed(data, tmp_path, name):
    train(run(data, tmp_path / "run"))
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in (9, *rng.integers(8, len(whole), 60).tolist(), len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r": (damaged|not a checkpoint of this program)") as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    checkpoint.load(path)


def test_a_tensor_damaged_on_disk_is_refused_by_its_hash(data, tmp_path):
    train(run(data, tmp_path / "run"))
    path = tmp_path / "run" / checkpoint.ENCODER
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"damaged: its content has the sha256 .*, expected .*; put a good"):
        checkpoint.load_encoder(path.parent, torch.device("cpu"))


def test_facts_are_read_without_the_weights(data, tmp_path):
    out = tmp_path / "run"
    train(run(data, out))
    facts = checkpoint.load_finished(out)[1]
    path = out / checkpoint.ENCODER
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert checkpoint.finished_facts(out) == facts
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_finished(out)
    path.write_bytes(whole[:40])
    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        checkpoint.finished_facts(out)
    path.unlink()
    with pytest.raises(CheckpointError, match="is an unfinished run"):
        checkpoint.finished_facts(out)


def test_a_pickle_in_the_place_of_weights_is_refused_and_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    for name, write in (("plain", pickle.dump), ("torch", torch.save)):
        out = tmp_path / name
        out.mkdir()
        with (out / checkpoint.ENCODER).open("wb") as handle:
            write(Evil(), handle)
        with pytest.raises(CheckpointError, match=r"encoder\.safetensors: not a checkpoint of this program"):
            checkpoint.load_encoder(out, torch.device("cpu"))
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_model_are_refused_naming_the_tensor(data, tmp_path):
    train(run(data, tmp_path / "run", kind="random"))
    path = tmp_path / "run" / checkpoint.ENCODER
    found, facts = checkpoint.load(path)
    name = "blocks.0.temporal.weight"
    for changed, said in (
        ({k: v for k, v in found.items() if k != name}, f"lacks the tensor '{name}' of this model"),
        (found | {"more": torch.ones(1)}, "holds the tensor 'more' that this model lacks"),
        (found | {name: torch.ones(1)}, rf"{name} has the shape \(1,\), expected \(4, 4, 9, 1\)"),
    ):
        checkpoint.save(path, changed, facts)
        with pytest.raises(CheckpointError, match=said):
            checkpoint.load_encoder(path.parent, torch.device("cpu"))


def test_a_loaded_encoder_is_the_saved_one_frozen_and_in_eval_mode(data, tmp_path):
    train(run(data, tmp_path / "run"))
    loaded = checkpoint.load_encoder(tmp_path / "run", torch.device("cpu"))
    assert same(dict(loaded.module.state_dict()), tensors(tmp_path / "run"))
    model = {k.removeprefix("model.encoder."): v for k, v in tensors(tmp_path / "run", checkpoint.CHECKPOINT).items()}
    assert all(torch.equal(model[name], t) for name, t in loaded.module.state_dict().items())
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert loaded.layout == STICK
    assert loaded.input == recipe().training.input


def test_weights_are_read_where_the_file_system_maps_no_files(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "run", kind="random"))
    path = tmp_path / "run" / checkpoint.ENCODER
    mapped, facts = checkpoint.load(path)

    def refuse(*_, **__):
        raise OSError("No such device (os error 19)")

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    read, same_facts = checkpoint.load(path)
    assert (same(read, mapped), same_facts) == (True, facts)


def test_weights_that_cannot_be_reached_are_not_called_damaged(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "run", kind="random"))

    def refuse(*_, **__):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "encoder.safetensors")

    monkeypatch.setattr(checkpoint, "safe_open", refuse)
    monkeypatch.setattr(checkpoint, "read_bytes", refuse)
    with pytest.raises(OSError, match="Stale"):
        checkpoint.load(tmp_path / "run" / checkpoint.ENCODER)
