"""The model card of a run: what it says is what the run's files say, and its example runs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard

from c2vl_manifests.errors import CheckpointError
from c2vl_pipeline import read_skeleton
from c2vl_training import card, checkpoint, encode_skeleton, load_encoder
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.training import run


@pytest.fixture
def made(data, tmp_path):
    train(run(data, tmp_path / "run", "training.pretrain.epochs=1"))
    return tmp_path / "run"


def test_a_finished_run_has_a_card_of_its_facts(made):
    text, facts = (made / "README.md").read_text(), checkpoint.load(made / checkpoint.ENCODER)[1]
    assert RepoCard.load(made / "README.md").data.to_dict()["library_name"] == "c2vl"
    described = json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])
    assert described["encoder"] == facts["encoder"]
    assert described["pretrain"] == facts["config"]
    assert f"| clips | {len(facts['clips'])} (0 left out) |" in text
    parameters = sum(p.numel() for p in load_encoder(made).module.parameters())
    assert f"| parameters | {parameters:,} |" in text
    for said in (
        "hip, chest, head, hand, foot",
        "| epochs | 1 |",
        "classical",
        "None here yet",
        "no evidence for language",
    ):
        assert said in text


@pytest.mark.parametrize(("dims", "unit"), [(2, "image heights"), (3, "metres")])
def test_the_card_names_the_unit_of_the_layout(made, dims, unit):
    facts = checkpoint.load(made / checkpoint.ENCODER)[1]
    said = card.text(facts | {"layout": facts["layout"] | {"dims": dims}}, json.loads((made / "run.json").read_text()))
    assert f"5 joints, {dims}D, in {unit}: hip" in said


def test_the_example_of_the_card_runs_and_gives_the_features_of_evaluation(made, data, tmp_path, monkeypatch):
    packed = PackedDataset(data)
    joints = np.ascontiguousarray(packed.joints[: packed.offsets[1]].transpose(0, 2, 3, 1))
    np.save(made / "clip.npy", joints)
    monkeypatch.chdir(made)
    names: dict[str, torch.Tensor] = {}
    exec(re.search(r"```python\n(.*?)```", (made / "README.md").read_text(), re.DOTALL)[1], names)
    encoder = load_encoder(str(made))
    clips = Clips(packed, np.array([0]), encoder.input, torch.device("cpu"))
    with torch.inference_mode():
        torch.testing.assert_close(encode_skeleton(encoder, joints), encoder.module(clips.test(torch.tensor([0])))[0])
    centred = read_skeleton(made / "clip.npy", encoder.layout)[0].joints
    assert torch.equal(encode_skeleton(encoder, centred), names["features"])


def test_weights_and_card_are_enough(made, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    (away / checkpoint.ENCODER).write_bytes((made / checkpoint.ENCODER).read_bytes())
    assert load_encoder(away).module.dim == load_encoder(made).module.dim


def test_an_encoder_that_was_not_trained_says_so_and_figures_are_shown(data, tmp_path):
    train(run(data, tmp_path / "run", kind="random"))
    facts = checkpoint.load(tmp_path / "run" / checkpoint.ENCODER)[1]
    assert card.write(tmp_path / "run", facts, [("linear", "xsub", "12.5 %", "8")])
    text = (tmp_path / "run" / "README.md").read_text()
    assert "- It was not trained." in text
    assert "| linear | xsub | 12.5 % | 8 |" in text
    assert "vectors by" not in text


def test_a_damaged_run_json_is_one_line(data, tmp_path):
    train(run(data, tmp_path / "run", kind="random"))
    facts = checkpoint.load(tmp_path / "run" / checkpoint.ENCODER)[1]
    for content in ("{", "{}", "[]"):
        (tmp_path / "run" / "run.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
            card.write(tmp_path / "run", facts)
