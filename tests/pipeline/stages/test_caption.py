"""The captioner's journal: no answer is asked for twice, none is believed that was torn, damaged or meant otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError
from c2vl_manifests.manifest import StageManifest, read_shard, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.engines import Caption
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, index, skeletons
from c2vl_pipeline.workspace import shard_path

DESCRIBE = PoseCode.caption
Pair = tuple[str, int]


@pytest.fixture(scope="module")
def cropped(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of 32 samples in one shard: 128 rows, sixteen batches of eight. Not to be written into."""
    recipe = load_recipe("debug", ["pipeline.shard_samples=32"])
    work = tmp_path_factory.mktemp("cropped") / "w"
    index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
    for stage in (skeletons.STAGE, crop.STAGE):
        runner.run_stage(stage, work, recipe)
    return work


@pytest.fixture(scope="module")
def reference(cropped: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> StageManifest:
    work = Path(shutil.copytree(cropped, tmp_path_factory.mktemp("reference") / "w"))
    return runner.run_stage(caption.STAGE, work, recipe)


@pytest.fixture
def work(cropped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cropped, tmp_path / "w"))


def captioner(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda calls: None) -> Counter[Pair]:
    """Count what is asked; `before(n)` runs before the n-th batch."""
    asked: Counter[Pair] = Counter()
    calls = [0]

    def counting(engine: Any, crops: Sequence[Any], question: str) -> Any:
        calls[0] += 1
        before(calls[0])
        asked.update((c.sample_id, c.slot) for c in crops)
        return DESCRIBE(engine, crops, question)

    monkeypatch.setattr(PoseCode, "caption", counting)
    return asked


def stop_at(number: int) -> Callable[[int], None]:
    def stop(calls: int) -> None:
        if calls == number:
            raise EngineError("stopped")

    return stop


def interrupted(work: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, batches: int = 5) -> Counter[Pair]:
    """Caption so many batches and stop; returns what was asked."""
    asked = captioner(monkeypatch, stop_at(batches + 1))
    with pytest.raises(EngineError, match="stopped"):
        runner.run_stage(caption.STAGE, work, recipe)
    assert asked.total() == 8 * batches
    return asked


def journals(work: Path) -> list[Path]:
    return sorted((work / "captions").glob(".*.journal"))


def lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line]


def test_answers_in_the_journal_are_not_asked_for_again(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = interrupted(work, recipe, monkeypatch)
    (path,) = journals(work)
    assert len(lines(path)) == 40
    second = captioner(monkeypatch)
    manifest = runner.run_stage(caption.STAGE, work, recipe)
    assert first.keys().isdisjoint(second)
    assert len(first + second) == (first + second).total() == 128
    assert (manifest.digest, manifest.statuses) == (reference.digest, reference.statuses)
    assert journals(work) == []


@pytest.mark.parametrize(
    ("harm", "lost"),
    [
        (lambda data: data[:-11], 1),
        (lambda data: data + b"1234abcd [\"S001", 0),
        (lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:], 1),
        (lambda data: data.replace(b"person", b"persan", 1), 1),
        (lambda data: data + b"00000000 \n00000000\n", 0),
        (lambda data: b"\x00" * 50 + data, 1),
        (lambda data: b"", 40),
    ],
    ids=["torn", "half a line more", "a bit", "a letter", "empty lines that fit", "zeros before", "all gone"],
)  # fmt: skip
def test_a_torn_or_damaged_line_is_as_if_never_written(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[bytes], bytes], lost: int,
) -> None:  # fmt: skip
    interrupted(work, recipe, monkeypatch)
    (path,) = journals(work)
    path.write_bytes(harm(path.read_bytes()))
    asked = captioner(monkeypatch)
    manifest = runner.run_stage(caption.STAGE, work, recipe)
    assert asked.total() == 128 - 40 + lost
    assert manifest.digest == reference.digest


def test_no_flipped_bit_changes_an_answer() -> None:
    import json
    import zlib

    text = json.dumps(["S001C001P001R001A001", 3, "A person é waves.", 4]).encode()
    line = b"%08x %s\n" % (zlib.crc32(text), text)
    whole = dict(caption.Journal._read(line))
    assert whole == {("S001C001P001R001A001", 3): Caption("A person é waves.", 4)}
    for at in range(len(line) - 1):
        for bit in range(8):
            data = bytearray(line)
            data[at] ^= 1 << bit
            assert dict(caption.Journal._read(bytes(data))) in ({}, whole)
    for end in range(len(line) - 1):
        assert dict(caption.Journal._read(line[:end])) == {}


def test_the_journal_of_another_key_is_not_used_and_goes(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_recipe("debug", ["pipeline.caption.question=Why?"])
    interrupted(work, other, monkeypatch)
    (old,) = journals(work)
    asked = captioner(monkeypatch, stop_at(2))
    with pytest.raises(EngineError, match="stopped"):
        runner.run_stage(caption.STAGE, work, recipe)
    assert asked.total() == 8
    (new,) = journals(work)
    assert new != old
    assert not old.exists()


def test_journals_of_several_processes_are_read_together(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(work, recipe, monkeypatch)
    (path,) = journals(work)
    data = path.read_bytes().split(b"\n")
    one, two = path.with_name(f"{path.stem}1.journal"), path.with_name(f"{path.stem}2.journal")
    one.write_bytes(b"\n".join(data[:20]))
    two.write_bytes(b"\n".join(data[18:]))
    path.unlink()
    asked = captioner(monkeypatch)
    assert runner.run_stage(caption.STAGE, work, recipe).digest == reference.digest
    assert asked.total() == 88
    assert journals(work) == []


def test_failures_and_empty_answers_are_not_noted(work: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = workspace.load(work).table.column("sample_id").to_pylist()
    calls = [0]

    def failing(engine: Any, crops: Sequence[Any], question: str) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise EngineError("stopped")
        answers: list[Any] = list(DESCRIBE(engine, crops, question))
        for n, c in enumerate(crops):
            if (c.sample_id, c.slot) == (samples[0], 1):
                answers[n] = TimeoutError("too slow")
            if (c.sample_id, c.slot) == (samples[1], 2):
                answers[n] = Caption("  ", 1)
        return answers

    monkeypatch.setattr(PoseCode, "caption", failing)
    with pytest.raises(EngineError, match="stopped"):
        runner.run_stage(caption.STAGE, work, recipe)
    (path,) = journals(work)
    assert len(lines(path)) == 22
    asked = captioner(monkeypatch)
    assert runner.run_stage(caption.STAGE, work, recipe).statuses == {"ok": 128}
    assert {(samples[0], 1), (samples[1], 2)} <= asked.keys()
    assert asked.total() == 106


def test_an_answer_too_few_puts_no_answer_beside_the_wrong_crop(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def short(engine: Any, crops: Sequence[Any], question: str) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise EngineError("stopped")
        return DESCRIBE(engine, crops, question)[1:]

    monkeypatch.setattr(PoseCode, "caption", short)
    with pytest.raises(EngineError, match="stopped"):
        runner.run_stage(caption.STAGE, work, recipe)
    asked = captioner(monkeypatch)
    assert runner.run_stage(caption.STAGE, work, recipe).digest == reference.digest
    assert asked.total() == 128


def test_a_retry_that_is_stopped_goes_on_from_its_journal(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.run_stage(caption.STAGE, work, recipe)
    again = {0: frozenset(workspace.load(work).table.column("sample_id").to_pylist())}
    first = captioner(monkeypatch, stop_at(7))
    with pytest.raises(EngineError, match="stopped"):
        runner.run_stage(caption.STAGE, work, recipe, redo=again)
    second = captioner(monkeypatch)
    assert runner.run_stage(caption.STAGE, work, recipe, redo=again).digest == reference.digest
    assert (first.total(), second.total()) == (48, 80)
    assert journals(work) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption
from c2vl_pipeline.engines.posecode import PoseCode

describe, calls = PoseCode.caption, [0]

def dying(engine, crops, question):
    calls[0] += 1
    answers = describe(engine, crops, question)
    if calls[0] == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return answers

PoseCode.caption = dying
runner.run_stage(caption.STAGE, Path(sys.argv[1]), load_recipe("debug"))
"""


@pytest.mark.slow
def test_a_killed_captioner_loses_one_batch(
    work: Path, recipe: Recipe, reference: StageManifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = 0
    for batch in (1, 4, 6):  # the batch that a process dies over is lost each time
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(work), str(batch)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL
        done += 8 * (batch - 1)
    assert not shard_path(work, "captions", 0).exists()
    assert sum(len(lines(path)) for path in journals(work)) == done == 64
    asked = captioner(monkeypatch)
    manifest = runner.run_stage(caption.STAGE, work, recipe)
    assert asked.total() == 128 - done
    assert manifest.digest == reference.digest
    assert journals(work) == []
    assert read_stage_manifest(work / "captions") == manifest
    assert read_shard(shard_path(work, "captions", 0)).num_rows == 128
