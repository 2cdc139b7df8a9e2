"""Commands of `c2vl-eval`: refusals, tables, protocols by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint
from c2vl_training.trainer import train
from support.cli import Cli, pretrain, refused, sets
from support.packed import sticks
from support.training import StoppedError, run, stop_after


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "floor"
    train(run(data, out, kind="random"))
    return out


def test_an_unknown_benchmark_names_the_known_ones(cli, data, finished, tmp_path):
    said = "Sticks has no benchmark 'xset'; it has xsub (and each as <name>-val)"
    words = pretrain(data, tmp_path / "run")
    refused(cli(*["xset" if word == "xsub" else word for word in words]), said)
    refused(cli("c2vl-eval", "run", "knn", "--run", finished, "--data", data, "--benchmark", "xset"), said)


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_a_folder_that_holds_no_run_says_what_to_give(cli, data, tmp_path, protocol):
    refused(
        cli("c2vl-eval", "run", protocol, "--run", tmp_path, "--data", data),
        f"{tmp_path}/encoder.safetensors does not exist; give the folder of a finished run",
    )


def test_a_report_without_a_table_says_what_to_run(cli, data, tmp_path):
    refused(
        cli("c2vl-eval", "report", "--out", tmp_path, "--data", data),
        f"{tmp_path}/results.json does not exist; run `c2vl-eval benchmark` first",
    )


def test_an_unfinished_run_says_to_finish_it(cli, data, tmp_path):
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "run"), stop_after(1))
    refused(
        cli("c2vl-eval", "run", "knn", "--run", tmp_path / "run", "--data", data),
        f"{tmp_path / 'run'} is an unfinished run; run the same c2vl-train command again to finish it",
    )


def test_weights_that_are_none_are_one_line(cli, data, finished, tmp_path):
    broken = Path(shutil.copytree(finished, tmp_path / "broken"))
    (broken / checkpoint.ENCODER).write_bytes(b"\x80\x04pickle or something")
    refused(
        cli("c2vl-eval", "run", "knn", "--run", broken, "--data", data),
        "encoder.safetensors: not a checkpoint of this program",
        "delete it and train again",
    )


def test_protocols_use_the_runs_own_benchmark_unless_given(cli, data, finished):
    found = cli("c2vl-eval", "run", "knn", "--run", finished, "--data", data, "--recipe", "debug")
    assert found.code == 0, found.err
    assert "Sticks, xsub: knn, %, 12 train / 4 test" in found.out
    held = cli(
        "c2vl-eval", "run", "linear", "--run", finished, "--data", data, "--recipe", "debug", "--benchmark", "xsub-val",
    )  # fmt: skip
    assert held.code == 0, held.err
    assert "linear, %, 9 train / 3 test" in held.out


@pytest.mark.slow
def test_runs_and_their_controls_stand_in_one_table(cli: Cli, tmp_path):
    data = sticks(tmp_path / "packed")
    for seed in (0, 1):
        train(run(data, tmp_path / f"floor{seed}", kind="random", seed=seed))
    runs = [word for seed in (0, 1) for word in ("--run", tmp_path / f"floor{seed}")]
    words = (
        "--data",
        data,
        "--recipe",
        "debug",
        *sets("evaluation.semi.shares=[0.01,0.5]", "evaluation.finetune.epochs=1"),
    )
    for protocol in ("finetune", "semi"):
        found = cli("c2vl-eval", "run", protocol, *runs, *words)
        assert found.code == 0, found.err
        for text in ("floor0 (floor)", "floor1 (floor)", "majority class", "chance", "balanced"):
            assert text in found.out
        assert "Missing controls: supervised, shuffled pairs" in " ".join(found.out.split())
    assert "n/a" in found.out
    assert "less than half" in found.out
    refused(cli("c2vl-eval", "run", "transfer", *runs, *words), "was trained on clips of", "itself")
    refused(cli("c2vl-eval", "run", "ensemble", *runs, *words), "are both of the joint stream")
    linear_words = [("c2vl-eval", "run", "linear", "--run", tmp_path / f"floor{seed}", *words) for seed in (0, 1)]
    assert [cli(*one).code for one in linear_words] == [0, 0]
    compared = cli("c2vl-eval", "compare", tmp_path / "floor0", tmp_path / "floor1")
    assert compared.code == 0, compared.err
    assert "linear, 4 test samples" in compared.out
    assert "points (95 %: " in compared.out
    refused(
        cli("c2vl-eval", "compare", tmp_path / "floor0", tmp_path / "floor1", "--protocol", "ling"),
        "protocol 'ling' is unknown; expected one of knn, linear",
    )


def test_a_benchmark_takes_protocols_by_name(cli: Cli, tmp_path):
    data = sticks(tmp_path / "packed")
    words = ("--data", data, "--benchmark", "xsub", "--out", tmp_path / "out", "--recipe", "debug")
    refused(
        cli("c2vl-eval", "benchmark", *words, "--protocol", "transfer"),
        "--protocol 'transfer' is not one of finetune, semi, ensemble",
    )


@pytest.mark.slow
def test_a_benchmark_trains_by_the_recipe_and_overrides_of_the_work_folder(cli: Cli, raw, tmp_path):
    """`prompts --recipe …` and then `benchmark` without any: not the dataset's default recipe."""
    work, out = tmp_path / "work", tmp_path / "out"
    made = sets("training.pretrain.epochs=2", "training.pretrain.targets=hard", "evaluation.linear.epochs=3")
    words = ("--dataset", "synthetic", "--data", raw, "--work", work, "--recipe", "debug")
    assert cli("c2vl-pipeline", "prompts", *words, *made).code == 0
    # made again without either, as `make reproduce` does after `make prompts RECIPE=…`
    assert cli("c2vl-pipeline", "prompts", *words[:6]).code == 0
    words = ("--data", work, "--benchmark", "xsub", "--out", out, *sets("training.pretrain.epochs=1"))
    assert cli("c2vl-eval", "benchmark", *words).code == 0
    table = json.loads((out / "results.json").read_text())
    assert table["recipe"] == "debug"
    assert table["rows"][0]["name"] == "hard"
    training = json.loads((out / "runs" / "hard-seed0" / "run.json").read_text())["recipe"]["training"]
    debug = load_recipe("debug").training
    assert training["encoder"] == debug.encoder.model_dump(mode="json")
    assert training["pretrain"]["epochs"] == 1  # given here, after what the work folder was made with
    assert training["supervised"]["epochs"] == debug.supervised.epochs
    assert table["rows"][0]["results"][1]["epochs"] == 3
