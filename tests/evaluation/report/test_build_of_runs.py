"""The report of a real table and its run folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from c2vl_evaluation import cache, cli, evaluate, table
from c2vl_evaluation.entries import entries
from c2vl_evaluation.language import retrieval, zeroshot
from c2vl_evaluation.report import build, figures, sections
from c2vl_evaluation.results import Score, Table, load, save
from c2vl_manifests.errors import DataError
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.encoders import count
from support.evaluation import LINEAR, MANIFEST
from support.packed import sticks
from support.report import Page, read
from support.training import BASE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Table]:
    """Packed data, the folder of a table of two seeds, and the table; tests must not write into them."""
    root = tmp_path_factory.mktemp("folder")
    packed = PackedDataset(sticks(root / "work" / "packed"))
    lines = entries(MANIFEST, "debug", (*BASE[1:], *LINEAR), ("hard",))  # the recipe's own blocks
    results = table.run_table(packed, "xsub", lines, range(2), root / "table")
    return packed.folder, root / "table", results


@pytest.fixture
def copy(made: tuple[Path, Path, Table], tmp_path: Path) -> Path:
    """A copy of the table's folder that a test may damage."""
    shutil.copytree(made[1], tmp_path / "table")
    return tmp_path / "table"


def built(packed: Path, folder: Path) -> Page:
    results = load(folder)
    return read(build.build(results, folder / "report.html", main=build.main_run(results, packed, folder)))


def test_answers_are_those_that_gave_the_numbers_of_the_table(made):
    packed, folder, results = made
    main = build.main_run(results, packed, folder)
    assert isinstance(main, build.MainRun)
    assert set(main.answers) == {name for name in results.names() if name != "raw joints"}
    for name, runs in main.answers.items():
        shares = [float((answers == main.labels).mean()) for answers in runs]
        assert shares == pytest.approx([row.top1("linear") for row in results.of(name)])
    assert np.array_equal(main.predictions, main.answers[results.main_row().name][0])


def test_cost_and_configuration_are_what_the_runs_recorded(made):
    packed, folder, results = made
    page = built(packed, folder)
    row = results.main_row()
    facts = json.loads((folder / row.run / "run.json").read_text())
    trained = {line["name"]: line for line in sections.training(results, folder)}
    assert trained[row.name]["parameters"] == facts["parameters"]
    loaded = checkpoint.load_encoder(folder / row.run, torch.device("cpu"))
    frames, joints = loaded.input.frames, len(loaded.layout.names)
    assert trained[row.name]["macs"] == count(loaded.module, 3, frames, joints, facts["bodies"]).macs > 0
    paces = [np.median(sections.epoch_seconds(folder / r.run)) * r.epochs for r in results.of(row.name)]
    assert trained[row.name]["seconds"] == pytest.approx(np.mean(paces))
    assert trained[row.name]["measured"] == pytest.approx(np.mean([r.seconds for r in results.of(row.name)]))
    for said in (
        f"{facts['parameters']:,}",
        facts["fingerprint"][:12],
        results.recipe_fingerprint,
        results.data_fingerprint,
        f"torch {facts['versions']['torch']}",
        "training.pretrain.projector_dim = 8 (recipe: 16)",
        'training.pretrain.targets.kind = "hard"',
    ):
        assert said in page.text
    spent = sections.evaluation(results, folder)
    recorded = [
        json.loads(path.read_text())["result"]["seconds"] for path in folder.glob("runs/*/evaluations/linear-*.json")
    ]
    assert len(recorded) == 8
    assert spent.get("linear", 0) == pytest.approx(sum(recorded))


def test_protocols_with_findings_of_their_own_cost_too(made, copy):
    results = load(copy)
    runs = [copy / row.run / cache.FOLDER for row in results.rows if row.run][:2]
    score = Score(top1=0.5, top5=None, balanced=0.5)
    shuffled = zeroshot.Control(draws=1, mean=score, std=score, p=1.0)
    named = zeroshot.ZeroShot(
        through="language", texts=3, described=False, temperature=0.1, last=score, shuffled=shuffled,
        chance=score, majority=None, classes=3, answered=1, test=4, seconds=61,
    )  # fmt: skip
    found = retrieval.recall(np.array([1, 2]), 4)
    side = retrieval.RecallWithControls(last=found, shuffled=found, shuffled_std=found, chance=found)
    retrieved = retrieval.Retrieval(
        through="language", caption="mean", clip=side, same_class=None, ceiling=found, queries=2, distinct=2,
        gallery=4, seconds=2.5,
    )  # fmt: skip
    before = sections.evaluation(results, copy)
    for folder in runs:
        for finding in (named, retrieved):
            told = {"key": "k", "encoder": "e", "sha256": "s", "result": finding.model_dump(mode="json")}
            (folder / f"{finding.protocol}-0.json").write_text(json.dumps(told))
    for n, seconds in enumerate((-1, float("inf"), "much", None, [1])):
        told = {"result": {"protocol": "linear", "seconds": seconds}}
        (runs[0] / f"linear-{n}.json").write_text(json.dumps(told))
    (runs[0] / "list.json").write_text("[1]")
    (runs[0] / "unknown.json").write_text('{"result": {"protocol": "unheard", "seconds": 1}}')
    spent = sections.evaluation(results, copy)
    assert spent == before | {"zeroshot": 122, "retrieval": 5}
    text = built(made[0], copy).text
    assert "zeroshot 2 min" in text
    assert "retrieval 5.0 s" in text


def test_settings_keep_no_folder_and_no_password():
    told = {"a": {"model": "/home/someone/weights", "url": "http://me:secret@host/v1"}, "b": [], "c": {}}
    assert sections.flat(told) == {"a.model": '"…/weights"', "a.url": '"http://…/v1"', "b": "[]", "c": "{}"}


def files_of(folder: Path) -> list[Path]:
    """Every file of the main run, and what a control answered."""
    runs = folder / "runs" / "hard-seed0", folder / "runs" / "shuffled-pairs-seed0" / "evaluations"
    return [p for run in runs for p in sorted(run.rglob("*")) if p.is_file() and "tensorboard" not in p.parts]


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_file_of_a_run_is_passed_over_or_said_in_one_line(made, copy, keep, monkeypatch):
    """One file after the other; drawing is what takes time, and is the same in all of them."""
    for name in ("accuracy_bars", "training_curves", "similarity_curves", "similarity_histograms", "scatter"):
        monkeypatch.setattr(figures, name, lambda *_: '<svg viewBox="0 0 9 9"></svg>')
    results, said = load(copy), {}
    for path in files_of(copy):
        before = path.read_bytes()
        path.write_bytes(before[: int(keep * len(before))])
        main = build.main_run(results, made[0], copy)
        if isinstance(main, str):
            said[path.relative_to(copy / "runs").as_posix()] = main
            assert len(main.splitlines()) == 1
        text = read(build.build(results, copy / "report.html", main=main)).text
        assert str(copy) not in text
        path.write_bytes(before)
    # the answers behind the number, and the weights that they are of; all else is made again, or only drawn
    assert "not a checkpoint of this program" in said.pop("hard-seed0/encoder.safetensors")
    assert [Path(path).suffix for path in said] == [".json", ".parquet"]
    assert all("run `c2vl-eval benchmark` again" in text or "evaluate the run again" in text for text in said.values())


def test_a_folder_truncated_everywhere_is_a_page_that_says_so(made, copy):
    for path in files_of(copy):
        path.write_bytes(path.read_bytes()[:40])
    page = built(made[0], copy)
    assert page.text.count("Not drawn: …/encoder.safetensors") == 3
    assert "Not drawn, no readable metrics.jsonl: hard-seed0." in page.text
    assert str(copy) not in page.text


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("encoder.safetensors", "…/hard-seed0 is an unfinished run; run the same c2vl-train command again"),
        ("", "…/encoder.safetensors does not exist; give the folder of a finished run"),
    ],
)
def test_a_main_run_that_is_gone_is_said_where_its_figures_would_stand(made, copy, name, why):
    gone = copy / made[2].main_row().run / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert built(made[0], copy).text.count(f"Not drawn: {why}") == 3


def test_answers_that_are_gone_or_of_other_weights_are_said_to_be(made, copy):
    run = copy / made[2].main_row().run
    weights = (run / checkpoint.ENCODER).read_bytes()
    tensors, facts = checkpoint.load(run / checkpoint.ENCODER)
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}
    checkpoint.save(run / checkpoint.ENCODER, changed, facts)
    said = f"{run} no longer holds the answers behind this number; run `c2vl-eval benchmark` again"
    assert build.main_run(made[2], made[0], copy) == said
    (run / checkpoint.ENCODER).write_bytes(weights)
    assert isinstance(build.main_run(made[2], made[0], copy), build.MainRun)
    shutil.rmtree(run / "evaluations")
    assert build.main_run(made[2], made[0], copy) == said


def test_answers_to_other_samples_are_said_to_be(made, copy, monkeypatch):
    whole = cache.predictions_of

    def shorter(run, key):
        found = whole(run, key)
        return cache.Predictions(found.sample_ids[1:], found.labels[1:], found.answers[1:], found.scores[1:])

    monkeypatch.setattr(cache, "predictions_of", shorter)
    assert "stored answers are to other samples" in build.main_run(made[2], made[0], copy)


def test_answers_of_other_settings_and_benchmarks_are_not_taken_for_the_tables(made, copy):
    whole = build.main_run(made[2], made[0], copy)
    for benchmark, more in (("xsub-val", []), ("xsub", ["evaluation.linear.epochs=2"])):
        for row in made[2].rows:
            if row.run:
                evaluate(copy / row.run, made[0], "linear", benchmark=benchmark, recipe="debug", overrides=more)
    found = build.main_run(made[2], made[0], copy)
    assert isinstance(found, build.MainRun)
    assert list(found.sample_ids) == list(whole.sample_ids) == ["s00", "s04", "s08", "s12"]
    assert found.answers.keys() == whole.answers.keys()
    for name, runs in whole.answers.items():
        assert np.array_equal(found.answers[name], runs)


def test_a_control_that_is_gone_leaves_the_others(made, copy):
    for row in made[2].of("shuffled pairs"):
        shutil.rmtree(copy / row.run)
    page = built(made[0], copy)
    assert "Confusions that changed most against random encoder" in page.text
    assert "Confusions that changed most against shuffled pairs" not in page.text


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, -3])
def test_the_command_says_one_line_of_a_truncated_table(made, copy, cut):
    path = copy / "results.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
    found = CliRunner().invoke(cli.app, ["report", "--out", str(copy), "--data", str(made[0])])
    assert isinstance(found.exception, DataError)
    said = str(found.exception)
    assert said.startswith(f"{path}: damaged (")
    assert said.endswith("run `c2vl-eval benchmark` again, finished runs are kept")
    assert "\n" not in said


def test_a_table_without_rows_is_one_line(made, copy):
    save(copy, made[2].model_copy(update={"rows": ()}))
    with pytest.raises(DataError, match=r"results\.json holds no row, expected at least one; run `c2vl-eval"):
        built(made[0], copy)


def test_other_data_draw_no_figures_of_the_main_run(made, copy):
    save(copy, made[2].model_copy(update={"data_fingerprint": "0" * 32}))
    text = built(made[0], copy).text
    assert text.count("Not drawn: the packed data have changed since the table was made.") == 3
