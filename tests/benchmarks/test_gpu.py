"""The benchmark of the GPU, run with tiny sizes on a CPU: every item gives a row, and the JSON holds them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from c2vl_pipeline.engines.hf_hub import loader_of
from gpu import models
from gpu.session import Session, flops_of, table
from gpu.training import group_of, recipe_of, steps_of_the_paper
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
    assert [name for name, row in rows.items() if "reason" in row] == []
    variants = ("ours, bf16", "ours, bf16, no skip", "plain, bf16 autocast", "plain, float32", "ours, bf16, compiled")
    wanted = {f"pre-training, {name}" for name in (*variants, "ours, bf16, profiled", "two processes by gloo")}
    assert set(rows) == wanted | set(models.MODELS)
    for name, row in rows.items():
        assert row["rate"] > 0, name
        assert row["utilisation"] > 0, name
        assert row["unit"] in {"samples/s", "images/s"}
        assert name in said
        assert ("ratio" in row) == (
            name not in {"pre-training, plain, bf16 autocast", "pre-training, ours, bf16, profiled"}
        )
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
