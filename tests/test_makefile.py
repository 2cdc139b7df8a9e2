"""The Makefile: a path with blanks or quotes stays one word, and `make bench` continues after a script that failed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from support import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def commands(target: str, venv: Path, **variables: str) -> list[list[str]]:
    """Return the words of each command of ours that `make TARGET` would run, as a shell splits them."""
    (venv / ".core").parent.mkdir(exist_ok=True)
    (venv / ".core").touch()
    named = [f"{name}={value}" for name, value in {"VENV": str(venv), **variables}.items()]
    done = subprocess.run(["make", "-n", target, *named], cwd=ROOT, capture_output=True, text=True, check=True)
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines() if "/c2vl-" in line]


ODD = ["my work", "it's here", 'say "so"', "two  blanks & a; b", "(1) [2] *"]


@pytest.mark.parametrize("odd", ODD)
def test_every_path_of_the_demo_is_one_word(tmp_path: Path, odd: str) -> None:
    venv = tmp_path / odd.replace(";", "")  # ends the head of a rule
    synth, prompts, benchmark = commands("demo", venv, WORKROOT=odd, RUNROOT=f"{odd}/runs")
    assert synth[:4] == [f"{venv}/bin/c2vl-pipeline", "synth", "--out", f"{odd}/demo-raw"]
    assert prompts[4:8] == ["--data", f"{odd}/demo-raw", "--work", f"{odd}/demo"]
    assert benchmark[2:8] == ["--data", f"{odd}/demo", "--benchmark", "xsub", "--out", f"{odd}/runs/demo"]


@pytest.mark.parametrize("odd", ODD)
def test_every_variable_of_the_longest_target_is_one_word(tmp_path: Path, odd: str) -> None:
    paths = {name: f"{odd}/{name}" for name in ("DATA", "WORK", "OUT", "WORKROOT", "TARGET_DATA", "RECIPE")}
    first, target, last = commands(
        "protocols", tmp_path / "venv", DATASET="generic", BENCHMARK="by room", TARGET="utd-mhad", **paths
    )
    assert first[3:9] == ["generic", "--data", paths["DATA"], "--work", paths["WORK"], "--recipe"]
    assert first[9] == paths["RECIPE"]
    assert target[-6:] == [
        "--data",
        paths["TARGET_DATA"],
        "--work",
        f"{odd}/WORKROOT/utd-mhad",
        "--recipe",
        "heuristic",
    ]
    assert last[3:8] == [paths["WORK"], "--benchmark", "by room", "--out", f"{paths['OUT']}-protocols"]
    assert last[-2:] == ["--target", f"{odd}/WORKROOT/utd-mhad"]


def test_benchmarks_go_on_after_a_script_that_failed_and_name_it_at_the_end(tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "venv" / ".core").touch()
    python.write_text('#!/bin/sh\necho "$@"\ncase $1 in *knn.py|*crop.py) exit 2;; esac\n')
    python.chmod(0o755)

    # `make test` is a make of its own: this one would tell which folder it enters and leaves
    call = [
        "make",
        "--no-print-directory",
        "bench",
        f"VENV={tmp_path / 'venv'}",
        f"RUNROOT={tmp_path}",
        "ARGS=--pairs 1",
    ]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    ran = [line for line in lines if line.endswith(" --pairs 1")]
    scripts = {path.name for path in (ROOT / "benchmarks").glob("bench_*.py")} - {"bench_gpu.py"}
    assert {Path(line.split()[0]).name for line in ran} == scripts
    assert lines[-1] == "failed: benchmarks/bench_crop.py benchmarks/bench_knn.py"
    assert done.returncode != 0
    python.write_text("#!/bin/sh\n")
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "failed" in done.stdout) == (0, False)
