"""The captioner's journal: no answer is asked for twice, none is believed that was torn, damaged or meant otherwise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.manifest import StageManifest, commit_table, read_shard, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.engines import Caption, Captioner
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from c2vl_pipeline.stages.journal import Journal
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
    whole = dict(Journal._read(line))
    assert whole == {("S001C001P001R001A001", 3): Caption("A person é waves.", 4)}
    for at in range(len(line) - 1):
        for bit in range(8):
            data = bytearray(line)
            data[at] ^= 1 << bit
            assert dict(Journal._read(bytes(data))) in ({}, whole)
    for end in range(len(line) - 1):
        assert dict(Journal._read(line[:end])) == {}


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


# --- beyond the paper: clips, further questions, thinking, a second pass --------------------


class Told(Captioner):
    """Says what it was asked; a thinking one thinks first."""

    asked: ClassVar[list[Any]] = []

    def __init__(self, spec: EngineSpec) -> None: ...

    def describe(self) -> dict[str, Any]:
        return {}

    def caption(self, crops: Sequence[Any], question: str) -> list[Caption | Exception]:
        self.asked.extend((c.sample_id, c.slot, 1 + len(c.later), question) for c in crops)
        return [Caption(f"<think>hm\n</think> {question} {c.sample_id} {c.slot}", 5) for c in crops]

    def complete(self, prompts: Sequence[str]) -> list[Caption | Exception]:
        self.asked.extend(prompts)
        return [Caption(f"one of {prompt.count(chr(10))}", 2) for prompt in prompts]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    entry = engines.Backend(f"{__name__}:Told", prompts=frozenset({"frame", "clip", "text"}))
    monkeypatch.setitem(engines.BACKENDS, ("captioner", "told"), entry)
    monkeypatch.setattr(Told, "asked", [])
    engines.clear()
    return Told.asked


def captions(work: Path, *settings: str) -> list[dict[str, Any]]:
    spec = 'pipeline.caption.engine={role="captioner", backend="told", batch_size=8}'
    recipe = load_recipe("debug", [spec, *(f"pipeline.caption.{setting}" for setting in settings)])
    runner.run_stage(caption.STAGE, work, recipe)
    return read_shard(shard_path(work, "captions", 0)).to_pylist()


def test_younger_settings_at_their_defaults_are_no_part_of_a_key(work: Path, recipe: Recipe) -> None:
    made = workspace.load(work)
    config = caption.STAGE.config(recipe, made)
    assert config.keys() == {"question", "aspect", "padding"}
    for setting, value in (("view", "clip"), ("also_ask", ["Why?"]), ("thinking", "remove"), ("rewrite", "Shorten:")):
        other = load_recipe("debug", [f"pipeline.caption.{setting}={json.dumps(value)}"])
        assert caption.STAGE.config(other, made) == config | {setting: value}


def test_a_clip_is_asked_about_once_and_its_answer_is_that_of_all_its_crops(work: Path, told: list[Any]) -> None:
    rows = captions(work, "view=clip", "question=What?", "thinking=remove")
    assert len(told) == 32
    assert {images for _, _, images, _ in told} == {4}
    assert [row["caption"] for row in rows] == [f"What? {row['sample_id']} 0" for row in rows]
    assert [row["slot"] for row in rows] == [0, 1, 2, 3] * 32
    vectors = runner.run_stage(embed.STAGE, work, load_recipe("debug"))
    assert vectors.statuses == {"ok": 128}


def test_a_clip_without_some_crops_is_asked_about_the_others(work: Path, told: list[Any]) -> None:
    path = shard_path(work, "crops", 0)
    table = read_shard(path)
    lost = [n % 4 == 0 for n in range(table.num_rows)]
    for name, value in (("status", "no_person"), ("jpeg", None)):
        at = table.schema.get_field_index(name)
        column = pa.array(
            [value if gone else kept for gone, kept in zip(lost, table[name].to_pylist(), strict=True)],
            table.schema.field(name).type,
        )
        table = table.set_column(at, table.schema.field(name), column)
    manifest = read_shard_manifest(path)
    assert manifest is not None
    commit_table(path, table, key=manifest.key, row_group=8, extra=manifest.extra)
    rows = captions(work, "view=clip", "question=What?")
    assert {(slot, images) for _, slot, images, _ in told} == {(1, 3)}
    assert [row["status"] for row in rows] == ["no_person", "ok", "ok", "ok"] * 32


def test_a_caption_is_the_answers_to_all_questions(work: Path, told: list[Any]) -> None:
    rows = captions(work, "question=A", "also_ask=['B', 'C']", "thinking=remove")
    for row in rows:
        assert row["caption"] == " ".join(f"{question} {row['sample_id']} {row['slot']}" for question in "ABC")
        assert row["tokens"] == 15
    assert len(told) == 3 * 128


def test_thinking_stays_unless_the_recipe_removes_it(work: Path, told: list[Any]) -> None:
    assert all(row["caption"].startswith("<think>hm") for row in captions(work, "question=A"))
    assert all(row["caption"].startswith("A ") for row in captions(work, "question=A", "thinking=remove"))


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("He sits.", "He sits."),
        ("<think>He may sit.</think>He sits.", "He sits."),
        ("<think>a</think> He <think>b\nc</think>sits.", "He sits."),
        ("He may sit.\n</think>\n\nHe sits.", "He sits."),
        ("<think>a</think>", ""),
        ("<think>He may", None),
        ("<think>a</think> He <think>sits", None),
        ("", ""),
    ],
)
def test_what_a_model_thinks_is_no_answer_and_unfinished_thinking_is_none(text: str, left: str | None) -> None:
    answer = caption.without_thinking(Caption(text, 7))
    if left is None:
        assert isinstance(answer, caption.UnfinishedThinkingError)
        assert str(answer) == "the captioner was still thinking after 7 tokens; raise max_new_tokens of its engine"
    else:
        assert answer == Caption(left, 7)


def test_a_second_pass_makes_one_sentence_of_a_sample_and_keeps_what_was_said(work: Path, told: list[Any]) -> None:
    rows = captions(work, "question=A", "rewrite=Say it in one sentence:", "thinking=remove")
    assert {row["caption"] for row in rows} == {"one of 4"}
    assert [row["answer"] for row in rows] == [f"A {row['sample_id']} {row['slot']}" for row in rows]
    prompts = [one for one in told if isinstance(one, str)]
    assert len(prompts) == 32
    first = [row["answer"] for row in rows[:4]]
    assert prompts[0] == "\n".join(["Say it in one sentence:", *(f"{n}. {text}" for n, text in enumerate(first, 1))])


def test_a_second_pass_that_stops_loses_neither_answers_nor_sentences(
    work: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, say, calls = Told.complete, Told.caption, [0]

    def one_fails(engine: Any, crops: Sequence[Any], question: str) -> Any:
        first = told == []
        answers = say(engine, crops, question)
        return [answers[0], ValueError("no"), *answers[2:]] if first else answers

    def stops(engine: Any, prompts: Sequence[str]) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise EngineError("stopped")
        return complete(engine, prompts)

    monkeypatch.setattr(Told, "complete", stops)
    monkeypatch.setattr(Told, "caption", one_fails)
    with pytest.raises(EngineError, match="stopped"):
        captions(work, "question=A", "rewrite=Shorten:")
    told[:] = ["again"]
    rows = captions(work, "question=A", "rewrite=Shorten:")
    # all answers but the one that failed and 8 sentences were in the journal; one of these lacked that answer
    assert len(told) == 1 + 1 + 24 + 1
    assert {row["caption"] for row in rows} == {"one of 8"}  # two lines each


@pytest.mark.parametrize(
    ("setting", "lacks"),
    [
        (
            "view=clip",
            "view is set, and the captioner engine 'posecode' does not take several images in one prompt; leave",
        ),
        ("also_ask=['Why?']", "also_ask is set, and the captioner engine 'posecode' does not take questions; leave"),
        (
            "rewrite=Shorten:",
            "rewrite is set, and the captioner engine 'posecode' does not take prompts without an image;",
        ),
    ],
)
def test_a_captioner_that_is_not_made_for_it_is_one_line(work: Path, setting: str, lacks: str) -> None:
    with pytest.raises(EngineError, match=f"pipeline.caption.{lacks}"):
        runner.run_stage(caption.STAGE, work, load_recipe("debug", [f"pipeline.caption.{setting}"]))
