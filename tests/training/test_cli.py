"""Commands of `c2vl-train`: options, recipes and overrides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from c2vl_training import cli
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run
from support.cli import pretrain, refused
from support.packed import sticks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")


def test_options_out_of_range_are_refused_with_their_range(cli, data, tmp_path):
    found = cli(*pretrain(data, tmp_path / "run", "--seed", "-1"))
    assert found.code == 2
    assert "Invalid value for '--seed'" in found.err


def test_an_unknown_recipe_names_the_nearest(cli, data, tmp_path):
    words = ["c2vl-train", "random", "--data", data, "--benchmark", "xsub", "--out", tmp_path / "run"]
    refused(
        cli(*words, "--recipe", "papr"), "unknown recipe 'papr'; use one of c2vl-plus, debug, ", "did you mean 'paper'?"
    )
    refused(cli(*words, "--recipe", "mine.toml"), "recipe file mine.toml does not exist")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("training.pretrain.temprature=1", "unknown key 'training.pretrain.temprature'; did you mean 'temperature'?"),
        ("traning.pretrain.epochs=1", "unknown key 'traning'; did you mean 'training'?"),
        ("training.pretrain.epochs", "is not of the form section.key=value, e.g. training.pretrain.epochs=30"),
        ("=3", "--set '=3' is not of the form section.key=value"),
        ("training.pretrain.epochs=many", "training.pretrain.epochs = 'many': Input should be a valid integer"),
        ("training.pretrain.epochs=0", "training.pretrain.epochs = 0: Input should be greater than or equal to 1"),
        ("training.pretrain.targets=soft", "'soft' is not one of hard, intra, inter, blend(constant)"),
        ("training.encoder.name=stgnc", "unknown encoder 'stgnc'; did you mean 'stgcn'?"),
        ("training.device=gpu", "training.device = 'gpu' is not a device; use auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_a_malformed_override_is_one_line_with_what_would_do(cli, data, tmp_path, value, said):
    refused(cli(*pretrain(data, tmp_path / "run"), "--set", value), said)
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_the_command_line_takes_recipe_and_overrides_from_the_work_folder(work, tmp_path):
    def resolved(folder: Path, recipe: str | None, *overrides: str) -> Run:
        return cli._resolve("pretrain", folder, None, None, recipe, 3, list(overrides))

    found = resolved(work, None)
    assert found.recipe.name == PackedDataset(work).manifest.recipe == "debug"  # the dataset's default is another
    assert (found.benchmark, str(found.out)) == ("xsub", "runs/synthetic-xsub-pretrain-3")
    copy = tmp_path / "packed"
    shutil.copytree(work / "packed", copy)
    path = copy / "packed.json"
    told = json.loads(path.read_text()) | {"overrides": ["training.pretrain.epochs=7", "training.precision=bfloat16"]}
    path.write_text(json.dumps(told))
    training = resolved(copy, None, "training.pretrain.epochs=9").recipe.training
    assert (training.pretrain.epochs, training.precision) == (9, "bfloat16")
    assert resolved(copy, "paper").recipe.training.pretrain.epochs == 150
