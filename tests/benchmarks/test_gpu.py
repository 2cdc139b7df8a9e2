"""The benchmark of the GPU, run with tiny sizes on a CPU: every item gives a row, and the JSON holds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

import bench_gpu
from c2vl_pipeline.engines.hf_hub import loader_of
from gpu import models, ranks, training
from gpu import session as session_module
from gpu.session import Session, flops_of, table
from gpu.training import KINDS, USUAL, group_of, recipe_of, steps_of_the_paper
from support import ROOT

PUBLISHED = {
    "Grounding DINO tiny": 172,
    "D-FINE-L": 31,
    "LLaVA-1.5-7B": 7063,
    "Qwen3-VL-4B": 4438,
    "CLIP ViT-L/14@336px": 428,
}
"""Millions of parameters that the pages of the checkpoints state."""


def session(folder: Path, seconds: float = 60.0) -> Session:
    return Session(torch.device("cpu"), True, folder, seconds, pairs=1)


@pytest.mark.slow
def test_every_item_gives_a_row(tmp_path):
    kept = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py"), "--tiny", "--pairs", "1", "--minutes", "60"]
    subprocess.run(
        command, env=os.environ | {"C2VL_BENCH": str(kept)}, check=True, stdout=(tmp_path / "said").open("w")
    )
    said = (tmp_path / "said").read_text()
    found = json.loads(kept.read_text())
    assert {"processor", "cores", "gpu", "torch", "commit", "load"} <= set(found["machine"])
    rows = {row["name"]: row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert [name for name, row in rows.items() if "reason" in row] == []
    wanted = {f"pre-training, {name}" for name in (*KINDS, "ours, bf16, profiled", "two processes by gloo")}
    assert set(rows) == wanted | set(models.MODELS)
    for name, row in rows.items():
        assert row["rate"] > 0, name
        assert row["utilisation"] > 0, name
        assert row["unit"] in {"samples/s", "images/s"}
        assert name in said
        assert ("ratio" in row) == (
            name not in {"pre-training, plain, bf16 autocast", "pre-training, ours, bf16, profiled"}
        )
    assert {name for name, row in rows.items() if "usual_ratio" in row} == {f"pre-training, {name}" for name in KINDS}
    compiled = rows["pre-training, ours, bf16, compiled"]
    assert (compiled["graphs"], compiled["breaks"]) == (compiled["blocks"], {})
    assert sum(rows["pre-training, ours, bf16, profiled"]["shares"].values()) == pytest.approx(1, abs=0.01)
    two = rows["pre-training, two processes by gloo"]
    assert two["loss_of_two"] == pytest.approx(two["loss_of_one"], rel=1e-2)
    assert rows["LLaVA-1.5-7B"]["new_tokens"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_models_have_the_published_numbers_of_parameters(tmp_path, name):
    spec, config = models.written(name, tmp_path / "model", tiny=False)
    with torch.device("meta"):
        model = getattr(transformers, loader_of(spec, config.to_dict())).from_config(config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.5)


def test_steps_of_the_paper_are_those_of_its_recipe():
    assert steps_of_the_paper(recipe_of(False)) == 15_000


def test_an_item_that_fails_or_takes_too_long_is_a_row_with_its_reason(tmp_path):
    one = session(tmp_path)

    def fails(_: Session) -> None:
        raise ValueError("no\nway")

    def hangs(_: Session) -> None:
        while True:
            try:
                while True:
                    pass
            except Exception:  # as in libraries that retry
                pass

    one.item("a", 5, fails)
    one.item("b", 0.1, hangs)
    one.began -= 60
    one.item("c", 5, fails)
    reasons = [row["reason"] for row in one.rows]
    assert reasons[0] == "ValueError: no way"
    assert "longer than its 0 s" in reasons[1]
    assert "used up" in reasons[2]
    assert [line.split()[0] for line in table(one.rows).splitlines()[1:]] == ["a", "b", "c"]


def test_an_item_that_drops_an_interrupt_is_interrupted_again(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "AGAIN", 0.1)
    one, dropped = session(tmp_path), []

    def stubborn(_: Session) -> None:
        try:
            time.sleep(60)
        except BaseException as error:
            dropped.append(error)
        time.sleep(60)

    one.item("a", 0.1, stubborn)
    assert len(dropped) == 1
    assert "longer than its 0 s" in one.rows[0]["reason"]


STUCK = """
import ctypes, signal, sys, time
from pathlib import Path
import torch
from gpu import session
session.GRACE = 1.0
one = session.Session(torch.device("cpu"), True, Path(), 60.0, pairs=1)

def works(_):
    one.row("before", [1.0], None, (1, "images"), 1.0, torch.float32)

def sleeps(_):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # as a call that returns to Python no more
    if "alone" in sys.argv:
        ctypes.PyDLL(None).sleep(60)  # and lets no other thread run
    time.sleep(60)

one.item("before", 5, works)
one.item("stuck", 0.1, sleeps)
"""


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_a_call_that_cannot_be_interrupted_ends_the_process_and_what_was_measured_is_kept(tmp_path, alone):
    kept = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, "-c", STUCK, *(["alone"] if alone else [])],
        env=os.environ | {"C2VL_BENCH": str(kept), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=False,
        text=True,
        timeout=50,
    )
    reasons = {row["name"]: row.get("reason", "") for row in json.loads(kept.read_text())["rows"]}
    assert "time.sleep(60)" in done.stderr or "in sleeps" in done.stderr
    assert reasons["before"] == ""
    if alone:  # no thread of Python could write anything
        assert (done.returncode, set(reasons)) == (1, {"before"})
    else:
        assert done.returncode == 3
        assert "could not be interrupted" in reasons["stuck"]
        assert "stuck" in done.stdout


def test_the_limits_of_all_items_are_a_run():
    assert sum(seconds for items in bench_gpu.ITEMS.values() for _, seconds, _ in items) == 60 * 9


@pytest.fixture
def trainings(monkeypatch):
    """Let variants of a training be functions by their names instead; each returns the seconds of an epoch, or raises."""
    found = {}

    def warm(_: Session, kind: training.Kind) -> training._Measured:
        name = next(name for name, one in KINDS.items() if one is kind)
        method = SimpleNamespace(batch_size=4)
        variant = SimpleNamespace(
            epoch=found[name], steps=2, method=method, dtype=torch.float32, recipe=recipe_of(False), blocks=1
        )
        return training._Measured(variant, 100, None, 0.0)

    monkeypatch.setattr(training, "_warm", warm)
    monkeypatch.setattr(Session, "seconds_of", lambda _, epoch: epoch())
    monkeypatch.setattr(Session, "peak", lambda *_: 100.0)
    return found


def test_a_variant_without_memory_is_a_row_with_its_reason_beside_the_rows_of_the_others(tmp_path, trainings):
    def full() -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainings |= {"ours, bf16": lambda: 1.0, "plain, bf16 autocast": full, USUAL: lambda: 8.0}
    one = Session(torch.device("cpu"), False, tmp_path, 60.0, pairs=3)
    one.item("pre-training", 60, training.beside(*trainings))
    ours, plain, usual = one.rows
    assert plain["reason"] == "OutOfMemoryError: CUDA out of memory"
    assert (ours["usual_ratio"], usual["usual_ratio"]) == (8, 1)
    assert "ratio" not in ours
    assert ours["minutes"] == 15_000 * 1.0 / 2 / 60
    assert table(one.rows).splitlines()[1].split()[-2:] == ["8.00", "125.0"]


def test_a_variant_is_kept_as_far_as_it_was_timed(tmp_path, trainings):
    seconds = iter([2.0, 4.0])
    trainings |= {"ours, bf16": lambda: 1.0, "plain, bf16 autocast": lambda: next(seconds), USUAL: lambda: 8.0}
    one = Session(torch.device("cpu"), False, tmp_path, 60.0, pairs=5)
    one.item("pre-training", 60, training.beside(*trainings))
    assert [row.get("ratio") for row in one.rows] == [3, None, 0.375]
    assert "left out after 2 turns: StopIteration" in one.notes[0]


def test_rows_stand_before_the_time_is_over(tmp_path, trainings, monkeypatch):
    monkeypatch.setenv("C2VL_BENCH", str(tmp_path / "kept.json"))

    def hangs() -> float:
        time.sleep(60)
        return 60.0

    trainings |= {"ours, bf16": lambda: 1.0, "plain, bf16 autocast": lambda: 2.0, USUAL: hangs}
    one = session(tmp_path)
    one.item("pre-training", 0.2, training.beside(*trainings))
    assert [row["name"] for row in one.rows] == [
        "pre-training, ours, bf16", "pre-training, plain, bf16 autocast", "pre-training",
    ]  # fmt: skip
    assert one.rows[0]["ratio"] == 2
    kept = json.loads((tmp_path / "kept.json").read_text())["rows"]
    assert sorted(row["name"] for row in kept) == sorted(row["name"] for row in one.rows)
    assert "longer" in one.rows[2]["reason"]


def test_a_later_item_leaves_the_rows_of_an_earlier_one(tmp_path, trainings):
    trainings |= {"ours, bf16": lambda: 1.0, USUAL: lambda: 8.0, "ours, bf16, no skip": lambda: 2.0}
    one = session(tmp_path)
    one.item("a", 60, training.beside("ours, bf16", USUAL))
    trainings["ours, bf16"] = lambda: 5.0
    one.item("b", 60, training.beside("ours, bf16", USUAL, "ours, bf16, no skip"))
    assert [(row["seconds"], row["usual_ratio"]) for row in one.rows] == [(1, 8), (8, 1), (2, 4)]


@pytest.mark.parametrize("ends", ["exit 1", "exec sleep 60"])
def test_two_processes_that_a_gpu_refuses_end_with_what_they_said(tmp_path, monkeypatch, ends):
    said = "init.cc:738 NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho NCCL version 2.22.3\necho '{said}'\n{ends}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="Duplicate GPU detected : rank 0 and rank 1"):
        ranks._started([], 1.0, tmp_path)


def test_utilisation_is_operations_a_second_by_the_peak(tmp_path):
    one = session(tmp_path)
    one.peaks[torch.float32] = 100.0
    one.row("x", [1.0, 2.0, 4.0], ("y", [2.0, 2.0, 2.0]), (10, "images"), 50.0, torch.float32)
    (row,) = one.rows
    assert (row["rate"], row["utilisation"], row["ratio"]) == (5.0, 0.25, 1.0)


def test_operations_are_counted():
    a = torch.zeros(3, 4, requires_grad=True)
    assert flops_of(lambda: (a @ torch.zeros(4, 5)).sum().backward()) == 2 * 2 * 3 * 4 * 5


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::cudnn_convolution", "convolution"),
        ("aten::bmm", "product of matrices"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::_embedding_bag", "gathering (augmentation, skip)"),
        ("aten::add_", "element by element"),
        ("aten::unheard_of", "other"),
    ],
)
def test_operators_have_a_group(operator, group):
    assert group_of(operator) == group
