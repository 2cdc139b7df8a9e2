"""Ctrl-C and SIGTERM at a running factory: one line, nobody left behind, and the next run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance import status
from c2vl_pipeline.stages import crop, skeletons
from support.factory import start

# a suite that runs in the background has SIGINT ignored, and its children with it
CODE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from c2vl_pipeline.cli import main; main()"
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
    words = [sys.executable, "-c", CODE, "prompts"]
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


class Slow:
    """A server of models whose answers stop at `answers` pictures, or before its list if that is negative."""

    def __init__(self, answers: int) -> None:
        self.left, self.waiting, self.go_on = answers, threading.Event(), threading.Event()
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self.say({"object": "list", "data": [{"id": "llava"}]}, server.left < 0)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                with lock:
                    server.left -= 1
                self.say({"choices": [{"message": {"content": "He sits."}}]}, server.left < 0)

            def say(self, answer: Any, late: bool) -> None:
                if late and not server.go_on.is_set():
                    server.waiting.set()
                    server.go_on.wait(120)
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def slow() -> Iterator[Slow]:
    server = Slow(40)
    yield server
    server.go_on.set()
    server.http.shutdown()
    server.http.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "way"), [(0, "terminal"), (0, "kill"), (1, "terminal"), (1, "kill"), (0, "list")])
def test_a_command_that_waits_for_a_server_ends_and_keeps_its_shards(
    raw: Path, recipe: Recipe, tmp_path: Path, slow: Slow, workers: int, way: str
) -> None:
    folder = start(raw, tmp_path / "w")
    for stage in (skeletons.STAGE, crop.STAGE):
        runner.run_stage(stage, folder, recipe)
    slow.left = -1 if way == "list" else slow.left
    options = f"{{base_url='http://127.0.0.1:{slow.http.server_port}/v1', concurrency=4}}"
    words = [sys.executable, "-c", CODE, "caption", "--work", str(folder), "--workers", str(workers)]
    words += [
        "--set",
        f"pipeline.caption.engine={{role='captioner', backend='openai', batch_size=8, options={options}}}",
    ]
    out = subprocess.PIPE
    process = subprocess.Popen(words, stdout=out, stderr=out, text=True, start_new_session=True)
    assert slow.waiting.wait(60), process.communicate()
    family = psutil.Process(process.pid).children(recursive=True)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "captions").glob("shard-*.json")}
    assert bool(before) == (way != "list")
    if way == "terminal":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    _, err = process.communicate(timeout=60)  # an answer may take 120 s, and is asked for six times again
    assert process.returncode == 130, err
    assert err.splitlines() == ["interrupted; run the same command again to resume"]
    assert not psutil.wait_procs(family, timeout=10)[1]
    slow.go_on.set()
    again = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "captions").glob("shard-*.json")}
    assert before.items() <= after.items()
    assert len(after) > len(before)
