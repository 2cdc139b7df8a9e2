"""Classes left out of pre-training: their clips have no influence, and a run remembers which they were."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_training import checkpoint, knowledge, trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import EXCLUDED, Run
from c2vl_training.trainer import train
from support.cli import Cli, pretrain, refused, sets
from support.packed import COUNT, moving, sticks
from support.training import BASE, StoppedError, run, same, stop_after, tensors

LABELS = [n % 3 for n in range(COUNT)]
UNSEEN = [n for n in range(COUNT) if n % 4 and LABELS[n] == 1]
KEY = "training.pretrain.exclude_classes"
SIZES = ("training.pretrain.batch_size=4", f"{KEY}=class 1")


def without(data: Path, out: Path, *more: str, **kind: Any) -> Run:
    return run(data, out, *SIZES, *more, **kind)


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("training.pretrain.pairs=shuffled", "training.pretrain.standardise=true"),
        (
            "training.pretrain.pooling_weights=idf",
            "training.pretrain.negatives=all",
            "training.pretrain.teacher=memory",
        ),
    ],
    ids=["plain", "shuffled and standardised", "idf, all negatives, memory"],
)
def test_clips_of_excluded_classes_change_no_weight(tmp_path, more):
    rng = np.random.default_rng(5)
    vectors = {"vision": rng.normal(size=(COUNT, 4, 6)), "language": rng.normal(size=(COUNT, 4, 5))}
    others = {name: values.copy() for name, values in vectors.items()}
    joints = moving()
    for n in UNSEEN:
        joints[n] = joints[n] * 3 - 1
        for values in others.values():
            values[n] = np.nan
    one, other = (
        sticks(tmp_path / "one" / "packed", **vectors),
        sticks(tmp_path / "b" / "packed", joints=joints, **others),
    )
    for data, name in ((one, "one"), (other, "other")):
        result = train(without(data, tmp_path / "runs" / name, *more))
        assert (result.samples, result.left_out) == (12 - len(UNSEEN), len(UNSEEN))
    for file in (checkpoint.ENCODER, checkpoint.PROJECTORS):
        assert same(*(tensors(tmp_path / "runs" / name, file) for name in ("one", "other")))
    assert not same(tensors(tmp_path / "runs" / "one"), tensors(train(run(one, tmp_path / "all", *more)).out))


def test_no_row_of_an_excluded_class_is_ever_asked_for(data, tmp_path, monkeypatch):
    asked: set[int] = set()

    class Watched(Clips):
        def __init__(self, packed, rows, *rest):
            asked.update(rows.tolist())
            super().__init__(packed, rows, *rest)

    class WatchedKnowledge(knowledge.Knowledge):
        def __init__(self, packed, rows, *rest):
            asked.update(rows.tolist())
            super().__init__(packed, rows, *rest)

    monkeypatch.setattr(trainer, "Clips", Watched)
    monkeypatch.setattr("c2vl_training.pretraining.Knowledge", WatchedKnowledge)
    train(without(data, tmp_path / "run"))
    assert asked == {n for n in range(COUNT) if n % 4 and LABELS[n] != 1}


def test_a_run_remembers_the_classes_and_lists_their_clips(data, tmp_path):
    out = train(without(data, tmp_path / "run")).out
    assert checkpoint.load(out / checkpoint.ENCODER)[1][EXCLUDED] == ["class 1"]
    assert json.loads((out / "run.json").read_text())[EXCLUDED] == ["class 1"]
    rows = list(csv.reader((out / "left_out.csv").open()))
    assert rows == [["sample_id", "reason"], *([f"s{n:02d}", "excluded class 'class 1'"] for n in UNSEEN)]
    assert set(checkpoint.load(out / checkpoint.ENCODER)[1]["clips"]).isdisjoint(f"s{n:02d}" for n in UNSEEN)
    assert without(data, out).describe() == "partition(cosine), both, without 1 class"


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ("class 1", '["class 1",0]', "excluded_classes is ['class 1'] there and ['class 0', 'class 1'] here"),
        ("class 1", "[]", "excluded_classes is ['class 1'] there and [] here"),
        ("[]", "class 1", "excluded_classes is [] there and ['class 1'] here"),
    ],
)
def test_a_run_without_other_classes_is_another_run(data, tmp_path, finished, there, here, said):
    begun, other = (run(data, tmp_path / "run", *SIZES[:1], f"{KEY}={words}") for words in (there, here))
    if finished:
        train(begun)
    else:
        with pytest.raises(StoppedError):
            train(begun, stop_after(1))
    with pytest.raises(CheckpointError) as caught:
        train(other)
    assert f"is of another run: {said}; choose another --out" in str(caught.value)


def test_the_same_classes_in_other_words_are_the_same_run(data, tmp_path):
    first = train(without(data, tmp_path / "run"))
    assert train(run(data, tmp_path / "run", *SIZES[:1], f"{KEY}=1")) == first
    assert run(data, tmp_path, f"{KEY}=[]").facts() == run(data, tmp_path).facts()


def test_a_clip_whose_class_is_unknown_may_be_of_an_excluded_one(tmp_path):
    labels = [-1 if n == 2 else label for n, label in enumerate(LABELS)]
    selection = without(sticks(tmp_path / "packed", labels=labels), tmp_path / "run").select()
    assert 2 not in selection.rows
    assert ("s02", "no label, so it may be of an excluded class") in selection.left_out


def test_the_controls_with_and_without_labels_leave_no_class_out(data, tmp_path):
    for kind in ("supervised", "random"):
        assert without(data, tmp_path, kind=kind).facts() == run(data, tmp_path, SIZES[0], kind=kind).facts()


def test_classes_that_cannot_be_left_out_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="all 12 usable training samples are of the 3 excluded classes"):
        train(run(data, tmp_path / "run", f"{KEY}=[0,1,2]"))
    with pytest.raises(ConfigError, match=f"{KEY}: 'class 9' is no class of synthetic"):
        train(run(data, tmp_path / "run", f"{KEY}=class 9"))
    with pytest.raises(ConfigError, match="batch_size = 5 is larger than the 4 usable training samples"):
        train(run(data, tmp_path / "run", f"{KEY}=[0,1]"))
    assert not (tmp_path / "run").exists()


def test_the_command_takes_a_class_by_name_and_says_what_it_leaves_out(cli: Cli, data, tmp_path):
    words = [*pretrain(data, tmp_path / "run"), *sets(*SIZES)]
    said = cli(*words, "--dry-run")
    assert said.code == 0, said.err
    assert "without 1 class on xsub of Sticks: 8 training samples (4 left out)" in " ".join(said.out.split())
    refused(cli(*words, *sets(f"{KEY}=55/5")), "'55/5' is no class of synthetic", "NTU RGB+D 60", "it has no splits")
    refused(cli(*words, *sets(f"{KEY}=[true]")), f"{KEY}.0")
    assert PackedDataset(data).manifest.classes == ("class 0", "class 1", "class 2")
    assert "training.pretrain.batch_size=5" in BASE
