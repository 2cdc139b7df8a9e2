"""Protocols within a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation import cache
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.protocols import common
from c2vl_evaluation.results import load
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_manifests.recipe import FinetuneConfig, Optimiser
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed
from support.evaluation import TUNED
from support.packed import COUNT, STICK, moving, sticks
from support.training import BASE, recipe


@pytest.fixture(scope="module")
def table(data: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table")
    lines = benchmark.entries("debug", [*BASE, *TUNED], ["hard"])
    benchmark.run_table(data, "xsub", lines, [0], out, protocols=("finetune", "semi", "ensemble"))
    return out


def test_every_line_of_a_table_gets_every_protocol(table):
    results = load(table)
    *encoders_, baseline = results.rows
    assert [row.role for row in encoders_] == ["pretrained", "floor", "ceiling", "shuffled"]
    first = [(f.protocol, f.setting, f.draw) for f in encoders_[0].findings]
    assert {protocol for protocol, *_ in first} == {"finetune", "semi", "ensemble"}
    for row in encoders_:
        assert [(f.protocol, f.setting, f.draw) for f in row.findings] == first
    assert baseline.findings == ()
    assert sorted(path.name for path in (table / "runs").glob("hard*")) == [
        "hard-seed0",
        "hard-seed0-bone",
        "hard-seed0-motion",
    ]


def test_a_table_grows_by_a_protocol_and_by_another_dataset(table, elsewhere, data):
    before = load(table)
    found = common.extend(table, elsewhere, "transfer", recipe(*TUNED))
    assert load(table) == found
    (target,) = found.targets
    assert (target.dataset, target.train, target.test) == ("elsewhere", 12, 4)
    for row, old in zip(found.rows, before.rows, strict=True):
        assert row.findings[: len(old.findings)] == old.findings
        assert len(row.findings) == len(old.findings) + (2 if row.run else 0)
    again = common.extend(table, data, "finetune", recipe(*TUNED))
    kept = [sorted((f.protocol, f.setting, f.draw) for f in row.findings) for row in again.rows]
    assert kept == [sorted((f.protocol, f.setting, f.draw) for f in row.findings) for row in found.rows]


def test_a_table_keeps_what_it_was_transferred_to_before(table, elsewhere, tmp_path):
    common.extend(table, elsewhere, "transfer", recipe(*TUNED))
    folder = sticks(tmp_path / "third" / "packed", joints=moving(COUNT, 8))
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "c" * 32).replace("synthetic", "third"))
    found = common.extend(table, Packed(folder), "transfer", recipe(*TUNED))
    settings = [f.setting for f in found.rows[0].findings if f.protocol == "transfer"]
    assert settings == [
        f"synthetic to {name}, xsub, {kind}"
        for name in ("elsewhere", "third")
        for kind in ("frozen", "tuned")
    ]
    assert [target.dataset for target in found.targets] == ["elsewhere", "third"]


def test_a_table_and_its_transfer_in_one_call(table, elsewhere, data, tmp_path):
    lines = benchmark.entries("debug", [*BASE, *TUNED], ["hard"])
    found = benchmark.run_table(data, "xsub", lines, [0], tmp_path, target=(elsewhere, "xsub"))
    assert load(tmp_path) == found
    grown = common.extend(table, elsewhere, "transfer", recipe(*TUNED))
    assert found.targets == tuple(target for target in grown.targets if target.dataset == "elsewhere")
    for one, other in zip(found.rows, grown.rows, strict=True):
        mine, theirs = (
            [f.model_copy(update={"seconds": 0}) for f in row.findings if "to elsewhere, " in f.setting]
            for row in (one, other)
        )
        assert mine == theirs
        assert len(mine) == (2 if one.run else 0)


def test_a_target_that_cannot_be_is_refused_before_anything_is_trained(data, elsewhere, tmp_path):
    lines = benchmark.entries("debug", [*BASE, *TUNED], ["hard"])
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    kites = sticks(tmp_path / "other" / "packed", joints=[np.zeros((5, 1, 3, 3))] * COUNT, layout=layout)
    text = (kites / "packed.json").read_text()
    (kites / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    for target, text in (
        ((data, "xsub"), "is the very data of the table"),
        ((elsewhere, "xview"), "no benchmark 'xview'"),
        ((Packed(kites), "xsub"), r"pack --work .*other --layout"),
    ):
        with pytest.raises(ConfigError, match=text):
            benchmark.run_table(data, "xsub", lines, [0], tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_data_does_not_grow(table, elsewhere):
    with pytest.raises(DataError, match="was made from other data than"):
        common.extend(table, elsewhere, "finetune", recipe(*TUNED))


def test_a_table_without_a_run_says_which(data, tmp_path):
    lines = benchmark.entries("debug", [*BASE, *TUNED], ["hard"])[1:2]
    benchmark.run_table(data, "xsub", lines, [0], tmp_path)
    (tmp_path / "runs" / "random-encoder-seed0" / checkpoint.ENCODER).unlink()
    with pytest.raises(CheckpointError, match=r"random-encoder-seed0/encoder\.safetensors does not exist"):
        common.extend(tmp_path, data, "finetune", recipe(*TUNED))


def test_runs_are_known_as_the_controls_they_are(table):
    names = {
        "hard": "pretrained",
        "random-encoder": "floor",
        "supervised": "ceiling",
        "shuffled-pairs": "shuffled",
    }
    assert {n: common.role_of(table / "runs" / f"{n}-seed0") for n in names} == names


def test_defaults_are_those_of_the_field():
    tune = FinetuneConfig()
    assert (tune.optimiser.lr, tune.optimiser.weight_decay, tune.batch_size, tune.epochs) == (
        0.1,
        1e-4,
        128,
        80,
    )
    assert tune.optimiser == Optimiser(weight_decay=1e-4, milestones=(50, 70))
    assert cache.FOLDER == "evaluations"
