"""The list of stages: what each says about itself fits the others and the index."""

from __future__ import annotations

from pathlib import Path

import pytest

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import SAMPLES
from c2vl_pipeline.stages import STAGES
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import load


@pytest.mark.parametrize("recipe", ["paper", "debug"])
def test_a_stage_comes_after_those_it_reads(recipe: str) -> None:
    resolved, earlier = load_recipe(recipe), set[str]()
    for name, stage in STAGES.items():
        assert stage.name == name
        assert set(stage.upstream(resolved)) <= earlier
        earlier.add(name)


@pytest.mark.parametrize("stage", STAGES.values(), ids=[*STAGES])
def test_no_stage_depends_on_labels_or_splits(stage: Stage) -> None:
    assert set(stage.columns) <= set(SAMPLES.names) - {"label", "splits"}
    assert stage.columns[0] == "sample_id"
    if stage.raw is not None:
        assert {stage.raw, f"{stage.raw}_bytes"} <= set(stage.columns)


@pytest.mark.parametrize("stage", STAGES.values(), ids=[*STAGES])
def test_the_configuration_of_a_stage_leaves_out_where_its_engine_runs(stage: Stage, work: Path) -> None:
    settings = [f"pipeline.{stage.command}.engine.device=cuda:3"] if stage.engine else []
    config = stage.config(load_recipe("debug", settings), load(work))
    assert "engine" not in config
    assert config == stage.config(load_recipe("debug"), load(work))
