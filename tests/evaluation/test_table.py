"""Tables: lines, controls, growth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from c2vl_evaluation import metrics
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.cache import holds, predictions_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.entries import entries
from c2vl_evaluation.features import extract, raw_joints
from c2vl_evaluation.protocols import knn, linear
from c2vl_evaluation.results import Score, Table, load, save
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.recipe_loading import load_variants
from c2vl_training import trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.methods import Supervised
from c2vl_training.run_folder import read_result, settings
from support import ROOT
from support.evaluation import LINEAR, MANIFEST, evaluated, table_lines
from support.packed import COUNT, sticks
from support.training import BASE


def test_every_table_has_its_three_controls():
    found = table_lines()
    assert [(line.name, line.role, line.kind) for line in found] == [
        ("partition(cosine)", "pretrained", "pretrain"),
        ("random encoder", "floor", "random"),
        ("supervised", "ceiling", "supervised"),
        ("shuffled pairs", "shuffled", "pretrain"),
    ]
    pairs = [line.recipe.training.pretrain.pairs for line in found]
    assert pairs == ["true", "true", "true", "shuffled"]


def test_shuffled_pairs_differ_from_the_first_line_in_the_pairs_alone():
    first, *_, control = table_lines("hard", "intra")
    assert first.recipe.training.pretrain.targets.kind == "hard"
    dumps = [line.recipe.model_dump(mode="json") for line in (first, control)]
    dumps[1]["training"]["pretrain"]["pairs"] = "true"
    assert dumps[0] == dumps[1]


def test_lines_have_a_name_and_a_folder_each(tmp_path):
    found = table_lines("hard", "partition(0.3)", "partition(0.7)", "partition(cosine)", "blend(constant)")
    names = [line.name for line in found if line.role == "pretrained"]
    assert names == ["hard", "partition(0.3)", "partition(0.7)", "partition(cosine)", "blend(constant)"]
    folders = {line.folder(tmp_path, seed) for line in found for seed in (0, 1)}
    assert len(folders) == 2 * len(found)
    assert found[3].folder(tmp_path, 1) == tmp_path / "partition-cosine-seed1"


def test_a_value_named_twice_is_one_line():
    found = table_lines("partition", "hard", "partition(cosine)", "hard", "partition(constant)", "partition(0.5)")
    assert [line.name for line in found if line.role == "pretrained"] == [
        "partition(cosine)",
        "hard",
        "partition(constant)",
    ]


def test_a_value_named_as_the_recipes_own_keeps_the_recipes_numbers():
    own = ("training.pretrain.targets.beta=0.4", "training.pretrain.targets.average=true")
    same, other, *_ = table_lines("partition(cosine)", "partition(constant)", more=own)
    targets = same.recipe.training.pretrain.targets
    assert (targets.beta, targets.average) == (0.4, True)
    assert other.recipe.training.pretrain.targets.beta == 0.2


def variants_of(tmp_path, text, *targets):
    path = tmp_path / "study.toml"
    path.write_text(text, "utf-8")
    return entries(MANIFEST, "debug", [*BASE, *LINEAR], targets, load_variants(path))


def test_variants_are_lines_that_differ_from_the_recipe_by_their_own_settings(tmp_path):
    text = """
"InfoNCE" = ["training.pretrain.targets=hard"]
"two views, ü" = ["training.pretrain.targets=hard", "training.pretrain.views=2"]
"""
    found = variants_of(tmp_path, text)
    assert [line.name for line in found if line.role == "pretrained"] == ["InfoNCE", "two views, ü"]
    plain, two, *_, shuffled = found
    dumps = [line.recipe.model_dump(mode="json") for line in (plain, two)]
    assert dumps[1]["training"]["pretrain"].pop("views") == 2
    assert dumps[0] == dumps[1]
    assert shuffled.control_of == "InfoNCE"
    names = [line.name for line in variants_of(tmp_path, text, "intra") if line.role == "pretrained"]
    assert names == ["intra", "InfoNCE", "two views, ü"]


def test_the_control_of_another_line_with_the_same_targets_has_a_folder_of_its_own(tmp_path, monkeypatch):
    views = '"two views" = ["training.pretrain.views=2"]'
    plain, variant = (found[-1] for found in (table_lines("hard"), variants_of(tmp_path, views)))
    saved = (tmp_path, settings(plain.kind, plain.recipe))
    monkeypatch.setattr("c2vl_evaluation.entries.saved_run", lambda folder: saved)
    assert plain.folder(tmp_path, 0) == tmp_path / "shuffled-pairs-seed0"
    assert variant.folder(tmp_path, 0) == tmp_path / "shuffled-pairs-two-views-seed0"


def test_variants_in_a_folder_are_refused_by_what_it_is(tmp_path):
    with pytest.raises(ConfigError, match="is no file"):
        load_variants(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"a" = []\n"b" = ["training.pretrain.views=1"]', r"the variant 'b' has the settings of 'a'"),
        ('"a b" = []\n"a-b" = ["training.pretrain.views=2"]', r"'a b' and 'a-b' would share a folder of runs"),
        ('"Supervised" = []', r"'Supervised' and 'supervised' would share a folder"),
        ('"a" = ["training.pretrain.view=2"]', r"unknown key 'training.pretrain.view'; did you mean 'views'\?"),
        ('"a" = "training.pretrain.views=2"', r"study.toml: 'a' is not of the form \"name\" = \["),
        ("", r"study.toml: no variant"),
        ('"a" = [', r"study.toml: not TOML"),
        ('".." = []', r"'..' names no folder of runs; give the variant a name with letters"),
        ('"a" = ["training.pretrain.views=2", "training.pretrain.view_weight=inf"]', r"view_weight.*finite"),
    ],
)
def test_variants_that_cannot_be_lines_are_refused_in_one_line(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        variants_of(tmp_path, text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("recipe", "file", "variants"), [("paper", "study.toml", 13), ("c2vl-plus", "plus.toml", 7)])
def test_the_variants_in_this_repository_can_be_run(recipe, file, variants):
    lines = entries(
        MANIFEST, recipe, ["training.pretrain.knowledge=vision"], (), load_variants(ROOT / "benchmarks" / file)
    )
    assert len(lines) == variants + 3


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(ConfigError, match="'soft' is not one of hard, intra, inter, blend"):
        table_lines("soft")


@pytest.fixture(scope="module")
def table(data: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Table]:
    out = tmp_path_factory.mktemp("table")
    return out, benchmark.run_table(data, "xsub", table_lines("hard"), range(2), out)


def test_raw_joints_are_the_flattened_input_and_need_no_run(table, data, tmp_path):
    _, results = table
    row = results.rows[-1]
    assert (row.name, row.run, row.epochs) == ("raw joints", "", 0)
    config = table_lines("hard")[0].recipe.training.input
    gallery, query = (raw_joints(data, "xsub", split, config) for split in ("train", "test"))
    clip = Clips(data, gallery.rows, config.model_copy(update={"frames": min(16, config.frames)}), torch.device("cpu"))
    assert np.allclose(gallery.values[0], clip.test(torch.tensor([0]))[0].reshape(-1).numpy())
    assert row.top1("knn") == knn.score(gallery, query, 3)[0].top1


def test_a_table_holds_every_line_and_seed_with_its_controls(table, data):
    out, results = table
    roles = [(row.role, row.seed) for row in results.rows]
    assert roles == [
        *((role, seed) for role in ("pretrained", "floor", "ceiling", "shuffled") for seed in (0, 1)),
        ("baseline", 0),
    ]
    assert (results.train, results.test, results.chance.top1) == (12, 4, pytest.approx(1 / 3))
    train_labels, test_labels = (data.labels()[data.select("xsub", split).rows] for split in ("train", "test"))
    assert results.majority == metrics.majority(train_labels, test_labels, 3)
    assert load(out) == results
    pretrained, floor, ceiling, shuffled, _ = (results.of(name)[0] for name in results.names())
    assert [row.epochs for row in (pretrained, floor, ceiling, shuffled)] == [4, 0, 4, 4]
    assert [row.knowledge for row in (pretrained, floor, ceiling, shuffled)] == ["both", "", "", "both"]
    assert [row.derived_from_joints for row in (pretrained, floor)] == [True, False]
    for row in results.rows:
        assert row.samples == 12
        assert 0 <= row.top1("linear") <= row.result("linear").best.top1 <= 1
        assert all(result.key.startswith("raw-joints-") == (not row.run) for result in row.results)
    assert results.main_row() == pretrained


def test_a_tables_numbers_are_those_of_its_protocols(table, data):
    row = table[1].rows[1]
    config = table_lines()[0].recipe.evaluation.linear
    gallery, query = (extract(table[0] / row.run, data, "xsub", split) for split in ("train", "test"))
    assert row.top1("knn") == knn.score(gallery, query, 3)[0].top1
    found = linear.probe(gallery, query, 3, config, seed=1)
    result, wanted = row.result("linear"), found.result()
    assert (result.last, result.best, result.lr) == (wanted.last, wanted.best, wanted.lr)
    assert holds(table[0] / row.run, result.key)
    answers = predictions_of(table[0] / row.run, result.key)
    np.testing.assert_array_equal(answers.scores, found.logits)


def test_a_table_made_again_trains_nothing_and_grows_by_lines(table, data):
    out, results = table
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.safetensors")}
    assert len(stamps) == 8 + 6 + 4  # every encoder; a checkpoint for all but the floors; projectors
    again = benchmark.run_table(data, "xsub", table_lines("hard", "intra"), range(2), out)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.names() == ["hard", "intra", "random encoder", "supervised", "shuffled pairs", "raw joints"]
    assert again.of("hard") == results.of("hard")


def test_a_result_is_not_found_twice(table, data, monkeypatch):
    out, results = table

    def never(*_, **__):
        raise AssertionError("computed again")

    for name in ("knn.search", "linear.fit"):
        part, function = name.split(".")
        monkeypatch.setattr({"knn": knn, "linear": linear}[part], function, never)
    row = results.rows[0]
    subject = EvalContext(out / row.run, data, "xsub", table_lines("hard")[0].recipe, row.seed)
    assert evaluated(knn, subject).result.last.top1 == row.top1("knn")
    again = evaluated(linear, subject)
    assert again.result.last.top1 == row.top1("linear")
    assert again.predictions is not None
    assert again.predictions.sample_ids == ["s00", "s04", "s08", "s12"]
    other = replace(subject, recipe=table_lines("hard", more=("evaluation.linear.epochs=6",))[0].recipe)
    with pytest.raises(AssertionError, match="computed again"):
        evaluated(linear, other)


def test_raw_joints_are_scored_again_for_other_settings_alone(table, data, monkeypatch):
    out, results = table
    read = []

    def noted(packed, name, split, config):
        read.append(split)
        return raw_joints(packed, name, split, config)

    monkeypatch.setattr(benchmark, "raw_joints", noted)
    again = benchmark.run_table(data, "xsub", table_lines("hard"), range(2), out)
    assert (again.rows[-1], read) == (results.rows[-1], [])
    old = again.model_copy(update={"rows": (*again.rows[:-1], again.rows[-1].model_copy(update={"left_out": 7}))})
    save(out, old)
    assert benchmark.run_table(data, "xsub", table_lines("hard"), range(2), out).rows[-1].left_out == 0
    other = benchmark.run_table(data, "xsub", table_lines("hard", more=("evaluation.linear.epochs=6",)), range(2), out)
    assert read == ["train", "test"]
    assert other.rows[-1].result("linear").epochs == 6
    benchmark.run_table(data, "xsub", table_lines("hard"), range(2), out)  # the fixture's table as it was
    assert len(read) == 4


def test_the_floors_of_a_table_are_scored_in_full(table, data):
    results = table[1]
    assert results.chance == Score(top1=1 / 3, top5=None, balanced=1 / 3)


def test_a_class_without_training_samples_is_refused_by_name(tmp_path):
    labels = [3 if n % 4 == 0 else n % 3 for n in range(COUNT)]
    packed = PackedDataset(sticks(tmp_path / "packed", labels=labels))
    with pytest.raises(
        DataError, match=r"1 of 1 classes of the test split have no training sample \(first: 'class 3'\)"
    ):
        benchmark.run_table(packed, "xsub", table_lines("hard")[1:2], [0], tmp_path / "out")


def test_val_never_looks_at_test_subjects(data, tmp_path):
    results = benchmark.run_table(data, "xsub-val", table_lines("hard"), [0], tmp_path)
    assert (results.train, results.test) == (9, 3)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("rows", 1, "results", 0, "last", "top1"), "rows.1.results.0.last.top1: Input should be a finite number"),
        (("majority", "balanced"), "majority.balanced: Input should be a finite number"),
        (("rows", 0, "seconds"), "rows.0.seconds: Input should be a finite number"),
    ],
)
def test_a_number_that_is_none_is_damage_and_said_where(table, tmp_path, place, said):
    whole = json.loads((table[0] / "results.json").read_text())
    held = whole
    for step in place[:-1]:
        held = held[step]
    held[place[-1]] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(whole))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert f"results.json: damaged ({said}); run `c2vl-eval benchmark` again" in str(caught.value)


def test_a_row_without_a_score_of_both_protocols_is_damage(table, tmp_path):
    whole = json.loads((table[0] / "results.json").read_text())
    del whole["rows"][0]["results"][0]
    (tmp_path / "results.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match="hard, seed 0 has no knn score"):
        load(tmp_path)


# ------------------------------------------------------------------------- before the first training, and memory


def test_every_batch_is_checked_before_the_first_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "train", lambda *_: pytest.fail("trained"))
    more = ("training.pretrain.batch_size=13", "training.supervised.batch_size=64")
    with pytest.raises(ConfigError) as caught:
        benchmark.run_table(data, "xsub", table_lines(more=more), [0], tmp_path)
    for setting in ("training.pretrain.batch_size=3", "training.supervised.batch_size=3"):
        assert str(caught.value).count(f"--set {setting}") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretrain", "supervised"])
def test_a_row_for_which_memory_runs_out_does_not_cost_the_others(data, tmp_path, monkeypatch, kind):
    real = trainer.fit

    def fit(method, clips, session):
        if (kind == "supervised") == isinstance(method, Supervised):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(method, clips, session)

    monkeypatch.setattr(trainer, "fit", fit)
    table = benchmark.run_table(data, "xsub", table_lines(), [0], tmp_path)
    names = {"supervised": ["supervised"], "pretrain": ["partition(cosine)", "shuffled pairs"]}[kind]
    assert [*table.failed] == [f"{name}, seed 0" for name in names]
    assert not {*names} & {*table.names()}
    assert {"random encoder", "raw joints"} <= {*table.names()}
    assert f"--set training.{kind}.batch_size=2" in table.failure_summary()
    assert load(tmp_path) == table
    monkeypatch.setattr(trainer, "fit", real)
    assert not benchmark.run_table(data, "xsub", table_lines(), [0], tmp_path).failed


def test_a_table_stays_although_a_split_column_was_added(data, tmp_path, monkeypatch):
    before = benchmark.run_table(data, "xsub", table_lines(), [0], tmp_path / "table")
    splits = [{"xsub": "train" if n % 4 else "test", "other": "train"} for n in range(COUNT)]
    monkeypatch.setattr(benchmark, "train", lambda run, emit: read_result(run.out))
    more = PackedDataset(sticks(tmp_path / "more" / "packed", splits=splits))
    assert benchmark.run_table(more, "xsub", table_lines(), [0], tmp_path / "table") == before
