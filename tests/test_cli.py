"""What users meet: one line for what they can mend, exit codes, and lines of JSON where no terminal is."""

from __future__ import annotations

import builtins
import errno
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.manifest import read_stage_manifest
from c2vl_training import checkpoint
from c2vl_training.trainer import train
from test_trainer import BASE, StoppedError, run, sticks, stop_after

PARTS = {"c2vl-pipeline": "c2vl_pipeline", "c2vl-train": "c2vl_training", "c2vl-eval": "c2vl_evaluation"}


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Cli = Callable[..., Said]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process through its entry point; what is printed is caught."""

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", [str(w) for w in words])
        main = importlib.import_module(f"{PARTS[str(words[0])]}.cli").main
        capfd.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return Said(int(code or 0), out, err)

    return call


def refused(said: Said, *texts: str) -> None:
    """One red line: exit code 1, nothing like a traceback, every text in it."""
    assert said.code == 1, said
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.out + said.err
    for text in texts:
        assert text in said.err


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "floor"
    train(run(data, out, kind="random"))
    return out


@pytest.fixture
def copied(work: Path, tmp_path: Path) -> Path:
    """A work folder of one's own, to break."""
    return Path(shutil.copytree(work, tmp_path / "work"))


def sets(*values: str) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def pretrain(data: Path, out: Path, *more: str | Path) -> list[str | Path]:
    recipe = ["--recipe", "debug", *sets(*BASE)]
    return ["c2vl-train", "pretrain", "--data", data, "--benchmark", "xsub", "--out", out, *recipe, *more]


# ------------------------------------------------------------------------------------- real processes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("c2vl-pipeline", "crop", "--work", "nowhere"),
            "error: nowhere holds no index; run `c2vl-pipeline index --dataset NAME --data DIR --work nowhere` first",
        ),
        (
            ("c2vl-train", "pretrain", "--data", "nowhere", "--benchmark", "xsub", "--out", "run"),
            "error: nowhere/packed holds no packed data; run `c2vl-pipeline pack --work nowhere` first",
        ),
    ],
    ids=["c2vl-pipeline", "c2vl-train"],
)
def test_a_missing_folder_is_one_red_line_of_a_real_process(tmp_path, words, said):
    done = subprocess.run(
        [str(Path(sys.executable).parent / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "60"},
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said + "\n")


# ---------------------------------------------------------------------------------------- usage errors


@pytest.mark.parametrize("command", PARTS)
@pytest.mark.parametrize(
    ("words", "said"),
    [(("frobnicate",), "No such command 'frobnicate'"), (("--frobnicate",), "No such option")],
)
def test_usage_errors_exit_with_2_and_say_what_is_wrong(cli, command, words, said):
    found = cli(command, *words)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("c2vl-train", "pretrain", "--benchmark", "xsub", "--out", "x"), "--data"),
        (("c2vl-eval", "knn", "--data", "x"), "--run"),
        (("c2vl-pipeline", "index", "--data", "x", "--work", "y"), "--dataset"),
    ],
)
def test_a_missing_option_is_named(cli, words, option):
    found = cli(*words)
    assert found.code == 2
    assert f"Missing option '{option}'" in found.err


def test_options_out_of_range_are_refused_with_their_range(cli, data, tmp_path):
    found = cli(*pretrain(data, tmp_path / "run", "--seed", "-1"))
    assert found.code == 2
    assert "Invalid value for '--seed'" in found.err


# ------------------------------------------------------------------------------------ recipes and --set


def test_an_unknown_recipe_names_the_nearest(cli, data, tmp_path):
    words = ["c2vl-train", "random", "--data", data, "--benchmark", "xsub", "--out", tmp_path / "run"]
    refused(
        cli(*words, "--recipe", "papr"),
        "unknown recipe 'papr'; use one of debug, embedded, paper, small",
        "did you mean 'paper'?",
    )
    refused(cli(*words, "--recipe", "mine.toml"), "recipe file mine.toml does not exist")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "training.pretrain.temprature=1",
            "unknown key 'training.pretrain.temprature'; did you mean 'temperature'?",
        ),
        ("traning.pretrain.epochs=1", "unknown key 'traning'; did you mean 'training'?"),
        (
            "training.pretrain.epochs",
            "is not of the form section.key=value, e.g. training.pretrain.epochs=30",
        ),
        ("=3", "--set '=3' is not of the form section.key=value"),
        (
            "training.pretrain.epochs=many",
            "training.pretrain.epochs = 'many': Input should be a valid integer",
        ),
        (
            "training.pretrain.epochs=0",
            "training.pretrain.epochs = 0: Input should be greater than or equal to 1",
        ),
        ("training.pretrain.targets=soft", "'soft' is none of hard, intra, inter, blend(constant)"),
        ("training.encoder.name=stgnc", "unknown encoder 'stgnc'; did you mean 'stgcn'?"),
        ("training.device=gpu", "training.device = 'gpu' is no device; use auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_a_malformed_override_is_one_line_with_what_would_do(cli, data, tmp_path, value, said):
    refused(cli(*pretrain(data, tmp_path / "run"), "--set", value), said)
    assert not list(tmp_path.glob("run/*.safetensors"))


# --------------------------------------------------------------------------------------- names and order


def test_an_unknown_dataset_names_the_nearest(cli, tmp_path):
    refused(
        cli("c2vl-pipeline", "index", "--dataset", "ntu06", "--data", tmp_path, "--work", tmp_path / "w"),
        "unknown dataset 'ntu06'; use one of generic, msr-action3d, ntu120, ntu60",
        "did you mean 'ntu60'?",
    )


def test_an_unknown_benchmark_names_the_known_ones(cli, data, finished, tmp_path):
    said = "Sticks has no benchmark 'xset'; it has xsub (and each as <name>-val)"
    words = pretrain(data, tmp_path / "run")
    refused(cli(*["xset" if word == "xsub" else word for word in words]), said)
    refused(cli("c2vl-eval", "knn", "--run", finished, "--data", data, "--benchmark", "xset"), said)


@pytest.mark.parametrize(
    ("command", "stage", "first"),
    [("caption", "captions", "crop"), ("embed", "embeddings", "caption"), ("embed", "embeddings", "crop")],
)
def test_a_stage_before_its_predecessor_says_what_to_run(cli, copied, command, stage, first):
    folders = {"crop": "crops", "caption": "captions"}
    for folder in (folders[first], stage):
        shutil.rmtree(copied / folder)
    refused(
        cli("c2vl-pipeline", command, "--work", copied),
        f"{command} needs the {folders[first]} of {copied}, which do not exist; "
        f"run `c2vl-pipeline {first} --work {copied}` first",
    )


def test_pack_before_its_stages_says_what_to_run(cli, copied):
    manifest = read_stage_manifest(copied / "embeddings")
    assert manifest is not None
    (copied / "embeddings" / "stage.json").write_text(
        manifest.model_copy(update={"complete": False, "rows": 5}).model_dump_json()
    )
    refused(
        cli("c2vl-pipeline", "pack", "--work", copied),
        f"pack needs the embeddings of {copied}, which are unfinished (5 of 128 rows); "
        f"run `c2vl-pipeline embed --work {copied}` first",
    )


# ----------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_a_folder_that_holds_no_run_says_what_to_give(cli, data, tmp_path, protocol):
    refused(
        cli("c2vl-eval", protocol, "--run", tmp_path, "--data", data),
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
        cli("c2vl-eval", "knn", "--run", tmp_path / "run", "--data", data),
        f"{tmp_path / 'run'} is an unfinished run; run the same c2vl-train command again to finish it",
    )


def test_weights_that_are_none_are_one_line(cli, data, finished, tmp_path):
    broken = Path(shutil.copytree(finished, tmp_path / "broken"))
    (broken / checkpoint.ENCODER).write_bytes(b"\x80\x04pickle or something")
    refused(
        cli("c2vl-eval", "knn", "--run", broken, "--data", data),
        "encoder.safetensors: not a checkpoint of this program",
        "delete it and train again",
    )


def test_protocols_use_the_runs_own_benchmark_unless_given(cli, data, finished):
    found = cli("c2vl-eval", "knn", "--run", finished, "--data", data, "--recipe", "debug")
    assert found.code == 0, found.err
    assert found.out.startswith("kNN (k = 1): ")
    assert "% top-1 over 12 training and 4 test samples" in found.out
    held = cli(
        "c2vl-eval",
        "linear",
        "--run",
        finished,
        "--data",
        data,
        "--recipe",
        "debug",
        "--benchmark",
        "xsub-val",
    )
    assert held.code == 0, held.err
    assert held.out.startswith("linear: ")
    assert "over 9 training and 3 test samples" in held.out


# ------------------------------------------------------------------------------------ what is printed


def test_progress_is_lines_of_json_where_no_terminal_is(cli, data, tmp_path):
    found = cli(*pretrain(data, tmp_path / "run"))
    assert found.code == 0, found.err
    *lines, last = found.out.splitlines()
    events = [json.loads(line) for line in lines]
    progress = [e for e in events if e["event"] == "progress"]
    assert [(e["task"], e["done"], e["total"], e["unit"]) for e in (progress[0], progress[-1])] == [
        ("run", 0, 4, "epochs"),
        ("run", 4, 4, "epochs"),
    ]
    assert progress[-1]["loss"] > 0
    assert "4 epochs over 12 samples (0 left out)" in last
    assert f"next: c2vl-eval knn --run {tmp_path / 'run'} --data {data}" in last
    assert "\x1b" not in found.out


def test_notes_are_lines_of_json_too(cli, data, tmp_path):
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "run"), stop_after(1))
    found = cli(*pretrain(data, tmp_path / "run"))
    first = json.loads(found.out.splitlines()[0])
    assert first == {"event": "info", "text": "run: going on after epoch 1 of 4"}


def test_stages_report_in_lines_of_json_and_one_sentence(cli, copied):
    shutil.rmtree(copied / "captions")
    found = cli("c2vl-pipeline", "caption", "--work", copied, "--workers", "1")
    assert found.code == 0, found.err
    *lines, last = found.out.splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["captions"] * len(lines)
    assert last.startswith("captions: 128 of 128 rows, all accounted for: ")


STAGES = ["skeletons", "crops", "captions", "embeddings", "packed"]


def test_status_of_a_complete_folder_exits_with_0(cli, work):
    found = cli("c2vl-pipeline", "status", "--work", work)
    assert found.code == 0, found.err
    for stage in STAGES:
        assert stage in found.out
    assert found.out.count("complete") == 5


def test_status_as_json_says_the_same_as_plain_values(cli, work):
    found = cli("c2vl-pipeline", "status", "--work", work, "--json")
    entries = json.loads(found.out)
    assert [(e["stage"], e["state"]) for e in entries] == [(stage, "complete") for stage in STAGES]
    for entry in entries[:4]:
        assert entry["rows"] == entry["expected_rows"] == sum(entry["statuses"].values())


def state_of(found: Said, stage: str) -> str:
    return str(next(e["state"] for e in json.loads(found.out) if e["stage"] == stage))


def test_status_exits_with_1_while_something_is_to_do(cli, copied):
    next((copied / "crops").glob("shard-*.json")).unlink()
    found = cli("c2vl-pipeline", "status", "--work", copied, "--json")
    assert (found.code, state_of(found, "crops"), found.err) == (1, "unfinished", "")
    shutil.rmtree(copied / "crops")
    found = cli("c2vl-pipeline", "status", "--work", copied, "--json")
    assert (found.code, state_of(found, "crops")) == (1, "missing")


def test_status_under_another_recipe_calls_a_stage_stale(cli, copied):
    words = ("c2vl-pipeline", "status", "--work", copied, "--json", "--set", "pipeline.embed.aspect=squash")
    found = cli(*words)
    assert (found.code, state_of(found, "embeddings"), state_of(found, "captions")) == (
        1,
        "stale",
        "complete",
    )


# ------------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("a small file system cannot be mounted here: no `mount`")
    command = ["mount", "-t", "tmpfs", "-o", "size=60k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_really_full_disk_is_one_line_and_leaves_no_half_file(cli, data, small):
    wide = sets("training.encoder.blocks=[[32,1],[32,1]]")
    found = cli(*pretrain(data, small / "run"), *wide)
    refused(found, "the disk is full", "free some space and run the same command again")
    assert not list(small.rglob("*.safetensors"))
    assert not list(small.rglob(".*.tmp"))


def test_a_full_disk_is_one_line_whichever_file_it_strikes(cli, data, tmp_path, monkeypatch):
    real = Path.write_bytes
    struck: list[str] = []

    def write(path: Path, content: bytes) -> int:
        if len(struck) < 1 and name in path.name:
            struck.append(path.name)
            real(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    out = tmp_path / "run"
    for name in (checkpoint.CHECKPOINT, checkpoint.ENCODER):
        struck.clear()
        refused(cli(*pretrain(data, out)), "the disk is full", name)
        assert not list(out.glob(".*.tmp"))
        assert not (out / checkpoint.ENCODER).exists()
    assert cli(*pretrain(data, out)).code == 0
    name = "xsub-train"
    struck.clear()
    words = ("c2vl-eval", "knn", "--run", out, "--data", data, "--recipe", "debug")
    refused(cli(*words), "the disk is full", name)
    assert cli(*words).code == 0


def test_a_folder_that_is_a_file_is_one_line(cli, data, tmp_path):
    (tmp_path / "run").write_text("taken")
    found = cli(*pretrain(data, tmp_path / "run"))
    refused(found, str(tmp_path / "run"))


def test_an_interrupt_exits_with_130(cli, data, tmp_path, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("c2vl_training.trainer.train", interrupt)
    found = cli(*pretrain(data, tmp_path / "run"))
    assert found.code == 130
    assert "Traceback" not in found.err


def test_a_bug_is_not_dressed_as_a_users_error(cli, data, tmp_path, monkeypatch):
    def broken(*_: Any) -> None:
        raise builtins.ZeroDivisionError("a bug")

    monkeypatch.setattr("c2vl_training.trainer.train", broken)
    with pytest.raises(ZeroDivisionError):
        cli(*pretrain(data, tmp_path / "run"))
