"""The camera's empty scene: made once, bound to its clips, and never in the way of other cameras."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.config import Recipe, load_recipe
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_pipeline import background, crop, engines, index, runner, status, verify
from c2vl_pipeline.stage import shard_path
from c2vl_pipeline.workers import Workers

SETTINGS = ["pipeline.crop.engine=motion", "pipeline.crop.timeout=2.0", "pipeline.shard_samples=4"]


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    """A raw folder that a test may change."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


@pytest.fixture(scope="module")
def motion() -> Recipe:
    return load_recipe("debug", SETTINGS)


def build(raw: Path, work: Path, recipe: Recipe) -> index.Index:
    built, _ = index.build(
        load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug", allow_missing=True
    )
    return built


def test_a_scene_a_camera_is_made_and_found_again(raw: Path, tmp_path: Path, motion: Recipe) -> None:
    built = build(raw, tmp_path, motion)
    assert runner.run(crop.STAGE, tmp_path, motion).complete
    made = {path.name for path in (tmp_path / "crops" / "background").iterdir()}
    assert made == set(background.names(built).values())
    assert len(made) == len(built.cameras) > 1
    (found,) = [s for s in status.survey(tmp_path, motion) if s.stage == "crops"]
    assert found.state == "complete"
    assert verify.verify(tmp_path) == []
    camera = next(iter(built.cameras))
    scene = background.scene(built, tmp_path / "crops", camera)
    assert scene is not None
    assert scene.dtype == np.uint8
    assert scene.shape[2] == 3


def test_another_download_of_a_clip_makes_its_cameras_crops_again_without_being_asked(
    copy: Path, tmp_path: Path, motion: Recipe
) -> None:
    work = tmp_path / "w"
    built = build(copy, work, motion)
    runner.run(crop.STAGE, work, motion)
    first = {
        n: shard_path(work, "crops", n).with_suffix(".json").stat().st_mtime_ns
        for n in range(len(built.plan))
    }
    sample = built.shard(0)[0]
    with (copy / sample["video"]).open("ab") as handle:
        handle.write(b"\0" * 64)  # another size, the same frames
    again = build(copy, work, motion)
    old, new = background.names(built), background.names(again)
    assert {c for c in old if old[c] != new[c]} == {sample["camera"]}
    (found,) = [s for s in status.survey(work, motion) if s.stage == "crops"]
    assert found.state == "stale"
    assert "its camera's empty scene is made of other files" in found.why
    # not another configuration: nothing to refuse
    assert runner.run(crop.STAGE, work, motion, overwrite=False).complete
    changed = {
        n for n in first if shard_path(work, "crops", n).with_suffix(".json").stat().st_mtime_ns != first[n]
    }
    assert changed == {n for n in first if sample["camera"] in {s["camera"] for s in again.shard(n)}}


def test_a_hanging_clip_is_left_out_of_the_scene(copy: Path, tmp_path: Path, motion: Recipe) -> None:
    work = tmp_path / "w"
    last = sorted(copy.rglob("*_rgb.avi"))[-1]
    size = last.stat().st_size
    last.unlink()
    os.mkfifo(last)
    built = build(copy, work, motion)
    assert size > 0
    with Workers(1) as one:
        manifest = runner.run(crop.STAGE, work, motion, workers=one)
    own = last.name.removesuffix("_rgb.avi")
    bad = {
        row["sample_id"]
        for n in range(len(built.plan))
        for row in crop_rows(work, n)
        if row["status"] == "decode_error"
    }
    assert bad == {own}
    assert manifest.complete
    assert manifest.statuses["decode_error"] == motion.pipeline.frames


def crop_rows(work: Path, number: int) -> list[dict[str, object]]:
    from c2vl_manifests.manifest import read_shard

    rows: list[dict[str, object]] = read_shard(
        shard_path(work, "crops", number), ["sample_id", "status"]
    ).to_pylist()
    return rows


def test_engines_with_weights_are_not_loaded_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: EngineSpec) -> object:
        raise AssertionError(spec)

    monkeypatch.setattr(engines, "load", load)
    assert not background.needed(EngineSpec(role="detector", backend="hf", model="somewhere"))
