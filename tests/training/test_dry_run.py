"""Dry runs: counts and memory before training."""

from __future__ import annotations

import json

import pytest
import torch

from c2vl_manifests.errors import ConfigError
from c2vl_training import dry_run
from c2vl_training.clips import Clips
from c2vl_training.trainer import train
from support.training import method_of, run


def test_a_dry_run_counts_what_the_run_then_has_and_writes_nothing(data, tmp_path):
    for kind in ("pretrain", "supervised", "random"):
        made = run(data, tmp_path / kind, kind=kind)
        found = dry_run.estimate(made)
        assert not made.out.exists()
        result = train(made)
        facts = json.loads((made.out / "run.json").read_text())
        assert found.parameters["encoder"] == facts["parameters"]
        assert (found.samples, found.epochs) == (result.samples, result.epochs)
        assert found.steps == {"pretrain": 8, "supervised": 8, "random": 0}[kind]
        if kind == "pretrain":
            method = method_of(made)
            assert sum(found.parameters.values()) == sum(p.numel() for p in method.model.parameters())
            assert found.memory["gradients"] == 4 * sum(found.parameters.values())


def test_a_teacher_is_counted_among_the_weights(data, tmp_path):
    alone, taught = (
        dry_run.estimate(run(data, tmp_path, f"training.pretrain.teacher={teacher}")).memory["weights"]
        for teacher in ("self", "ema")
    )
    assert taught == 2 * alone


def test_activations_of_a_batch_are_foretold_from_a_few_clips(data, tmp_path):
    made = run(data, tmp_path, "training.pretrain.batch_size=12", "training.encoder.empty_bodies=compute")
    selection = made.packed.select("xsub", "train")
    clips = Clips(made.packed, selection.rows, made.recipe.training.input, torch.device("cpu"))
    measured = dry_run._saved_bytes(made, method_of(made), clips, 12)
    assert dry_run.estimate(made).memory["activations"] == pytest.approx(measured, rel=0.1)


def test_a_dry_run_refuses_what_the_run_would_refuse(data, tmp_path):
    with pytest.raises(ConfigError, match="batch_size = 13 is larger than the 12 usable"):
        dry_run.estimate(run(data, tmp_path, "training.pretrain.batch_size=13"))
