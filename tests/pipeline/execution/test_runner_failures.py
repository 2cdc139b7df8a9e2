"""The limit on failures: when a stage stops."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.engines.heuristic import Classical
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from support.factory import times


@pytest.fixture
def begun(raw: Path, tmp_path: Path, recipe: Recipe) -> Path:
    """32 samples in 8 shards of 16 rows, cropped."""
    config = load_recipe("debug", ["pipeline.shard_samples=4"]).pipeline
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, config, recipe="debug")
    for stage in (skeletons.STAGE, crop.STAGE):
        runner.run_stage(stage, work, recipe)
    return work


def fail(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> None:
    describe = PoseCode.caption

    def failing(engine: Any, crops: Sequence[Any], question: str) -> Any:
        if any(when(c) for c in crops):
            raise RuntimeError("out of order")
        return describe(engine, crops, question)

    monkeypatch.setattr(PoseCode, "caption", failing)


def test_an_engine_that_fails_on_everything_stops_the_stage_and_keeps_finished_shards(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FEW_FAILURES", 40)
    fail(monkeypatch, lambda _: True)
    with pytest.raises(StageError) as caught:
        runner.run_stage(caption.STAGE, begun, recipe)
    assert str(caught.value) == (
        f"caption failed on 48 of 48 rows, more than 5%; the commonest reason (48 rows): RuntimeError: out of order; look at them with `c2vl-pipeline inspect --work {begun} --status failed`; "
        f"mend the cause and run `c2vl-pipeline prompts --work {begun} --retry-failed`, or allow more with --max-failures"
    )
    manifest = read_stage_manifest(begun / "captions")
    assert manifest is not None
    assert (manifest.complete, manifest.rows, manifest.statuses) == (False, 48, {"failed": 48})
    kept = times(begun)
    assert sum(name.startswith("captions") for name in kept) == 3
    assert not list((begun / "captions").glob(".*.journal"))
    assert runner.run_stage(caption.STAGE, begun, recipe, max_failures=1.0).statuses == {"failed": 128}
    assert {name: times(begun)[name] for name in kept} == kept


def test_few_failures_never_stop_a_stage(begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, lambda c: c.slot < 3)  # of each sample, and so of each camera and class, something is left
    manifest = runner.run_stage(caption.STAGE, begun, recipe, max_failures=0.0)
    assert manifest.complete
    assert manifest.statuses == {"failed": 96, "ok": 32}


def test_one_failure_more_than_few_is_judged_by_its_share(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = workspace.load(begun).table.column("sample_id").to_pylist()
    fail(monkeypatch, lambda c: c.sample_id in ids[:5] or c.slot < 3)
    with pytest.raises(StageError, match="caption failed on 101 of 128 rows, more than 70%"):
        runner.run_stage(caption.STAGE, begun, recipe, max_failures=0.7)
    shutil.rmtree(begun / "captions")
    assert runner.run_stage(caption.STAGE, begun, recipe, max_failures=0.95).statuses == {"failed": 101, "ok": 27}


def test_an_encoder_that_fails_on_all_images_stops_although_texts_are_well(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(engine: Any, images: Sequence[Any]) -> Any:
        raise RuntimeError("no image today")

    runner.run_stage(caption.STAGE, begun, recipe)
    monkeypatch.setattr(runner, "FEW_FAILURES", 40)
    monkeypatch.setattr(Classical, "encode_images", failing)
    with pytest.raises(StageError, match="embed failed on 48 of 48 rows, more than 5%"):
        runner.run_stage(embed.STAGE, begun, recipe)
