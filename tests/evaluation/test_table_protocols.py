"""Protocols within a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation import cache
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.entries import entries
from c2vl_evaluation.results import Table, load
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.recipe import FinetuneConfig
from c2vl_manifests.recipe_training import Optimiser
from c2vl_training.dataset import PackedDataset
from support.evaluation import MANIFEST, TUNED
from support.packed import COUNT, STICK, moving, sticks
from support.training import BASE


@pytest.fixture(scope="module")
def table(data: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table")
    lines = entries(MANIFEST, "debug", [*BASE, *TUNED], ["hard"])
    benchmark.run_table(data, "xsub", lines, [0], out, protocols=("finetune", "semi", "ensemble"))
    return out


def test_every_line_of_a_table_gets_every_protocol(table):
    results = load(table)
    *encoders_, baseline = results.rows
    assert [row.role for row in encoders_] == ["pretrained", "floor", "ceiling", "shuffled"]
    first = [(f.protocol, f.setting, f.draw) for f in encoders_[0].results]
    assert list(dict.fromkeys(protocol for protocol, *_ in first)) == ["knn", "linear", "finetune", "semi", "ensemble"]
    for row in encoders_:
        assert [(f.protocol, f.setting, f.draw) for f in row.results] == first
    assert [result.protocol for result in baseline.results] == ["knn", "linear"]
    assert sorted(path.name for path in (table / "runs").glob("hard*")) == [
        "hard-seed0",
        "hard-seed0-bone",
        "hard-seed0-motion",
    ]


def grown(table: Path, data: PackedDataset, packed: PackedDataset) -> Table:
    """The table with a transfer."""
    lines = entries(MANIFEST, "debug", [*BASE, *TUNED], ["hard"])
    return benchmark.run_table(data, "xsub", lines, [0], table, target=(packed, "xsub"))


def test_a_table_grows_by_a_protocol_and_by_another_dataset(table, elsewhere, data):
    before = load(table)
    found = grown(table, data, elsewhere)
    assert load(table) == found
    (target,) = found.targets
    assert (target.dataset, target.train, target.test) == ("elsewhere", 12, 4)
    for row, old in zip(found.rows, before.rows, strict=True):
        others = [r for r in row.results if r.protocol != "transfer"]
        assert others == list(old.results)
        assert len(row.results) == len(others) + (2 if row.run else 0)


def test_a_table_keeps_what_it_was_transferred_to_before(table, elsewhere, data, tmp_path):
    grown(table, data, elsewhere)
    folder = sticks(tmp_path / "third" / "packed", joints=moving(COUNT, 8))
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "c" * 32).replace("synthetic", "third"))
    found = grown(table, data, PackedDataset(folder))
    settings = [f.setting for f in found.rows[0].results if f.protocol == "transfer"]
    assert settings == [
        f"synthetic to {name}, xsub, {kind}" for name in ("elsewhere", "third") for kind in ("frozen", "tuned")
    ]
    assert [target.dataset for target in found.targets] == ["elsewhere", "third"]


def test_a_target_that_cannot_be_is_refused_before_anything_is_trained(data, elsewhere, tmp_path):
    lines = entries(MANIFEST, "debug", [*BASE, *TUNED], ["hard"])
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    kites = sticks(tmp_path / "other" / "packed", joints=[np.zeros((5, 1, 3, 3))] * COUNT, layout=layout)
    text = (kites / "packed.json").read_text()
    (kites / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    for target, text in (
        ((data, "xsub"), "is the data of the table itself"),
        ((elsewhere, "xview"), "no benchmark 'xview'"),
        ((PackedDataset(kites), "xsub"), r"pack --work .*other --layout"),
    ):
        with pytest.raises(ConfigError, match=text):
            benchmark.run_table(data, "xsub", lines, [0], tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()


def test_runs_are_known_as_the_controls_they_are(table, data):
    names = {"hard": "pretrained", "random-encoder": "floor", "supervised": "ceiling", "shuffled-pairs": "shuffled"}
    contexts = {n: EvalContext.open(table / "runs" / f"{n}-seed0", data, None, "debug") for n in names}
    assert {n: context.role() for n, context in contexts.items()} == names


def test_defaults_are_those_of_the_field():
    tune = FinetuneConfig()
    assert (tune.optimiser.lr, tune.optimiser.weight_decay, tune.batch_size, tune.epochs) == (0.1, 1e-4, 128, 80)
    assert tune.optimiser == Optimiser(weight_decay=1e-4, milestones=(50, 70))
    assert cache.FOLDER == "evaluations"
