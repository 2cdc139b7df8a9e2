"""The recipes `modern` and `light` run whole on tiny checkpoints of their families."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.packed import read_packed_manifest
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import STAGES, index, pack
from c2vl_pipeline.synthetic.dataset import generate
from support import families

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "captioner"),
    [
        ("modern", families.qwen3_vl),
        pytest.param(
            "light", families.smolvlm2,
            marks=pytest.mark.skipif(find_spec("num2words") is None, reason="SmolVLM2 needs num2words"),
        ),
    ],
)  # fmt: skip
def test_a_recipe_makes_prompts_by_its_own_engines(
    tmp_path: Path, name: str, captioner: Callable[[Path], Path]
) -> None:
    made = {
        "crop": families.d_fine(tmp_path / "detector"),
        "caption": captioner(tmp_path / "captioner"),
        "embed": families.siglip2(tmp_path / "encoder"),
    }
    values = [f"pipeline.{stage}.engine.model={folder}" for stage, folder in made.items()]
    values += [f"pipeline.{stage}.engine.{fact}" for stage in made for fact in ("device=cpu", "dtype=float32")]
    small = ["pipeline.frames=2", "pipeline.caption.engine.options.max_new_tokens=4"]
    small += ["pipeline.crop.engine.options.threshold=0"]  # boxes of random weights are unsure
    recipe = load_recipe(name, [*values, *small])
    generate(tmp_path / "raw", classes=2, subjects=2, views=1, repeats=1, size=(64, 48), frames=(8, 12))
    work = tmp_path / "work"
    index.build(load_dataset("synthetic"), tmp_path / "raw", work, recipe.pipeline, recipe=name)
    for stage in STAGES.values():
        runner.run_stage(stage, work, recipe)
    pack.run(work, recipe)
    packed = read_packed_manifest(work / "packed")
    assert packed.samples == 4
    assert [packed.engines[stage]["architecture"] for stage in ("crops", "captions", "embeddings")] == [
        "DFineForObjectDetection",
        {"modern": "Qwen3VLForConditionalGeneration", "light": "SmolVLMForConditionalGeneration"}[name],
        "Siglip2Model",
    ]
