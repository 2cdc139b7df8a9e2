"""Ctrl-C and SIGTERM at a running factory: one line, nobody left behind, and the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.maintenance import status

SETTINGS = ["pipeline.crop.engine=motion", "pipeline.shard_samples=2"]


def _until_there(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Wait for a file to appear while the process lives."""
    end = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {pattern} in {folder}"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "moment"), [("terminal", "background/*.png"), ("kill", "shard-*.json")])
def test_an_interrupted_factory_leaves_one_line_nobody_and_its_shards(
    raw: Path, tmp_path: Path, way: str, moment: str
) -> None:
    work = tmp_path / "w"
    # a suite that runs in the background has SIGINT ignored, and its children with it
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from c2vl_pipeline.cli import main; main()"
    words = [sys.executable, "-c", code, "prompts"]
    words += ["--dataset", "synthetic", "--data", str(raw), "--work", str(work), "--recipe", "debug"]
    words += ["--workers", "2", *(word for value in SETTINGS for word in ("--set", value))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _until_there(process, work / "crops", moment)
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    if way == "terminal":  # a terminal's Ctrl-C reaches every process of the command
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines() == ["interrupted; run the same command again to resume"]
    assert not psutil.wait_procs(family, timeout=10)[1]
    before = {path.name: path.stat().st_mtime_ns for path in (work / "crops").glob("shard-*.json")}
    again = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (work / "crops").glob("shard-*.json")}
    assert before.items() <= after.items()  # what was done is not made again
    assert {s.state for s in status.survey(work, load_recipe("debug", SETTINGS))} == {"complete"}
