"""The `openai` captioner against a real server: `transformers serve` with a tiny LLaVA."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, index, skeletons
from c2vl_pipeline.synthetic.dataset import generate

for package in ("fastapi", "uvicorn", "accelerate"):
    pytest.importorskip(package, reason=f"transformers serve needs {package}: pip install 'transformers[serving]'")
pytestmark = pytest.mark.slow

SERVE = "import sys; from transformers.cli.transformers import main; sys.argv = ['transformers', 'serve', *sys.argv[1:]]; main()"
COMMON = ["pipeline.frames=3", "pipeline.shard_samples=2"]


class Served:
    """`transformers serve` with one checkpoint, at one address however often it is started."""

    def __init__(self, checkpoint: Path, log: Path) -> None:
        self.checkpoint, self._log = checkpoint, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        words = [str(self.checkpoint), "--host", "127.0.0.1", "--port", str(self._port), "--device", "cpu"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE, *words],
                stdout=log, stderr=log, start_new_session=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        for _ in range(600):
            assert self._process.poll() is None, self._log.read_text()
            try:
                urlopen(f"http://127.0.0.1:{self._port}/health", timeout=1).close()
            except (URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        """End it as a lack of memory would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


LONGEST = 8
"""Most tokens of an answer."""


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(folders["captioner"], tmp_path_factory.mktemp("serve") / "log")
    served.start()
    yield served
    served.kill()


@pytest.fixture(scope="module")
def cropped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Make a work folder of four samples that are cropped and not yet captioned."""
    raw = tmp_path_factory.mktemp("raw")
    generate(raw, classes=2, subjects=2, views=1, repeats=1, size=(64, 48), frames=(8, 12))

    def make() -> Path:
        work, plain = tmp_path_factory.mktemp("work"), load_recipe("debug", COMMON)
        index.build(load_dataset("synthetic"), raw, work, plain.pipeline, recipe="debug")
        for stage in (skeletons.STAGE, crop.STAGE):
            runner.run_stage(stage, work, plain)
        return work

    return make


def recipe(engine: str, model: Path | str, **options: Any) -> Recipe:
    values = {"model": str(model), "max_new_tokens": LONGEST} | options
    return load_recipe(
        "debug",
        [
            *COMMON,
            f"pipeline.caption.engine={engine}",
            *(f"captioner.{name}={value!r}" for name, value in values.items()),
        ],
    )


def rows(work: Path) -> list[tuple[Any, ...]]:
    found = [
        row for path in sorted((work / "captions").glob("shard-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]
    return [(row["sample_id"], row["slot"], row["status"], row["caption"], row["tokens"]) for row in found]


def through(server: Served, model: Path | str | None = None) -> Recipe:
    options = {"base_url": server.url, "retries": 1, "concurrency": 1, "image_format": "png"}
    return recipe("openai-llava-1.5-7b", model or server.checkpoint, **options)


def test_a_server_killed_in_mid_stage_answers_what_hf_answers(server: Served, cropped: Callable[[], Path]) -> None:
    """Without a loss in the picture, both give the same tokens; answers given before the kill stay."""
    own, served = cropped(), cropped()
    runner.run_stage(caption.STAGE, own, recipe("hf-llava-1.5-7b", server.checkpoint, device="cpu", dtype="float32"))
    expected = rows(own)
    assert sum(row[2] == "ok" for row in expected) > 6
    assert len({row[3] for row in expected}) > 1

    def kill_after_a_shard() -> None:
        while not list((served / "captions").glob("shard-*.parquet")):
            time.sleep(0.01)
        server.kill()

    threading.Thread(target=kill_after_a_shard, daemon=True).start()
    with pytest.raises(EngineError, match=r"is unreachable .*run `c2vl-pipeline caption` again"):
        runner.run_stage(caption.STAGE, served, through(server))
    before = rows(served)
    assert 0 < len(before) < len(expected)
    server.start()
    runner.run_stage(caption.STAGE, served, through(server))
    assert rows(served)[: len(before)] == before
    # a server counts the token that ends an answer, too
    assert rows(served) == [(*row, tokens and min(tokens + 1, LONGEST)) for *row, tokens in expected]


def test_a_name_that_is_not_served_stops_the_stage_with_the_reason_of_the_server(
    server: Served, cropped: Callable[[], Path]
) -> None:
    with pytest.raises(EngineError) as caught:
        runner.run_stage(caption.STAGE, cropped(), through(server, "llava-hf/llava-1.5-7b-hf"))
    assert "pinned" in str(caught.value)
    assert "\n" not in str(caught.value)
