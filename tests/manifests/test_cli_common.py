"""Behaviour common to all commands: one line per error, exit codes, events as lines of JSON."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer

from c2vl_manifests import cli_common
from c2vl_training import checkpoint
from c2vl_training.trainer import train
from support.cli import PARTS, pretrain, refused, sets
from support.packed import sticks
from support.training import StoppedError, run, stop_after


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")


# ------------------------------------------------------------------------------------- real processes


@pytest.mark.slow
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
    ("words", "said"), [(("frobnicate",), "No such command 'frobnicate'"), (("--frobnicate",), "No such option")]
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
        (("c2vl-eval", "run", "knn", "--data", "x"), "--run"),
        (("c2vl-pipeline", "index", "--data", "x", "--work", "y"), "--dataset"),
    ],
)
def test_a_missing_option_is_named(cli, words, option):
    found = cli(*words)
    assert found.code == 2
    assert f"Missing option '{option}'" in found.err


# ------------------------------------------------------------------------------------ what is printed


def test_progress_is_lines_of_json_where_no_terminal_is(cli, data, tmp_path):
    found = cli(*pretrain(data, tmp_path / "run"))
    assert found.code == 0, found.err
    *lines, result = found.out.splitlines()
    events = [json.loads(line) for line in lines]
    progress = [e for e in events if e["event"] == "progress"]
    assert [(e["task"], e["done"], e["total"], e["unit"]) for e in (progress[0], progress[-1])] == [
        ("run", 0, 4, "epochs"),
        ("run", 4, 4, "epochs"),
    ]
    assert progress[-1]["loss"] > 0
    assert "4 epochs over 12 samples (0 left out)" in result
    assert f"; next: c2vl-eval run knn --run {tmp_path / 'run'} --data {data}" in result
    assert "\x1b" not in found.out


def test_notes_are_lines_of_json_too(cli, data, tmp_path):
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "run"), stop_after(1))
    found = cli(*pretrain(data, tmp_path / "run"))
    first = json.loads(found.out.splitlines()[0])
    assert first == {"event": "info", "text": "run: resuming after epoch 1 of 4"}


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
    words = ("c2vl-eval", "run", "knn", "--run", out, "--data", data, "--recipe", "debug")
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


# --------------------------------------------------------------------------------------- home and systems


@pytest.fixture
def home(raw, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    (tmp_path / "my home").mkdir()
    (tmp_path / "my home" / "raw").symlink_to(raw)
    return tmp_path / "my home"


@pytest.mark.parametrize("sign", ["~", "$HOME", "${HOME}"])
@pytest.mark.parametrize("joined", [True, False])
def test_the_home_folder_is_found_however_a_path_is_given(cli, home, sign, joined):
    paths = {"--data": f"{sign}/raw", "--work": f"{sign}/work"}
    words = [f"{k}={v}" for k, v in paths.items()] if joined else [word for pair in paths.items() for word in pair]
    assert cli("c2vl-pipeline", "index", "--dataset", "synthetic", *words).code == 0
    assert (home / "work" / "samples.parquet").is_file()
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_a_setting_that_is_a_path_is_expanded_too(cli, home):
    (home / "mine.toml").write_text('extends = "debug"')
    words = ("c2vl-pipeline", "index", "--dataset", "synthetic", "--data=~/raw", "--work", "~/work")
    assert cli(*words, "--recipe", "~/mine.toml", "--set", "captioner.model=~/llava").code == 0
    stored = (home / "work" / "samples.json").read_text()
    assert f"captioner.model={home}/llava" in stored
    assert f"{home}/mine.toml" in stored


def test_words_that_only_contain_a_tilde_stay(cli, home, monkeypatch):
    monkeypatch.chdir(home)
    for name in ("a~", "~b", "x~/y"):
        found = cli("c2vl-pipeline", "status", "--work", name)
        refused(found, f"{name} holds no index")


def test_a_user_without_a_home_folder_is_told_so(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    refused(cli("c2vl-pipeline", "status", "--work=~/work"), "--work=~/work", "no home folder", "set HOME")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("command", PARTS)
def test_another_system_is_refused_in_one_line_by_every_command(cli, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    for words in (("--help",), ("status",)):
        refused(cli(command, *words), "Linux and macOS", "Windows", "WSL")


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.ESTALE, "stale"), (errno.EIO, "input/output")],
)
def test_a_disk_that_refuses_is_one_line_with_the_file(cli, data, tmp_path, monkeypatch, number, said):
    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    found = cli(*pretrain(data, tmp_path / "run"))
    refused(found, str(tmp_path / "run"), said)
    assert "permission" not in found.err
    assert "None" not in found.err


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "training.device=cpu"),
        (
            RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA"),
            "training.device=cpu",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "training.device=cpu"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "batch_size"),
    ],
)
def test_a_machine_that_fails_is_one_line_with_a_remedy(monkeypatch, capsys, error, remedy):
    app = typer.Typer()

    @app.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["c2vl"])
    with pytest.raises(SystemExit) as ended:
        cli_common.main(app)
    told = capsys.readouterr().err
    assert (ended.value.code, len(told.splitlines())) == (1, 1)
    assert str(error).splitlines()[0][:30] in told
    assert remedy in told


@pytest.mark.parametrize("command", PARTS)
def test_every_program_says_its_version_and_whole_summaries(cli, command):
    assert cli(command, "--version").out == f"c2vl {version('c2vl')}\n"
    page = cli(command, "--help").out
    assert "--version" in page
    assert "..." not in page.partition("Commands:")[2]
