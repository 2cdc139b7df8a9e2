"""The camera's empty scene: made once, bound to its clips, and never in the way of other cameras."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.manifest import file_sha256
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.engines import background
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.workers import Workers
from c2vl_pipeline.maintenance import status, verify
from c2vl_pipeline.maintenance.repair import failed_samples
from c2vl_pipeline.stages import crop, index
from c2vl_pipeline.workspace import shard_path

SETTINGS = ["pipeline.crop.engine=motion", "pipeline.crop.timeout=2.0", "pipeline.shard_samples=4"]


@pytest.fixture
def copy(raw: Path, tmp_path: Path) -> Path:
    """A raw folder that a test may change."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))


@pytest.fixture(scope="module")
def motion() -> Recipe:
    return load_recipe("debug", SETTINGS)


def build(raw: Path, work: Path, recipe: Recipe) -> workspace.Workspace:
    built, _ = index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug", allow_missing=True)
    return built


def pictures(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((work / "crops" / "background").glob("*.png"))}


def stamps(work: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (work / "crops").glob("shard-*.json")}


def state(work: Path, recipe: Recipe) -> status.StageStatus:
    return next(s for s in status.survey(work, recipe) if s.stage == "crops")


@pytest.mark.slow
def test_a_scene_a_camera_is_made_and_found_again(raw: Path, tmp_path: Path, motion: Recipe) -> None:
    built = build(raw, tmp_path, motion)
    first = runner.run_stage(crop.STAGE, tmp_path, motion)
    assert first.complete
    made, before = pictures(tmp_path), stamps(tmp_path)
    assert len(made) == len(built.cameras) > 1
    assert state(tmp_path, motion).state == "complete"
    assert verify.verify(tmp_path) == []
    assert runner.run_stage(crop.STAGE, tmp_path, motion).digest == first.digest
    assert (pictures(tmp_path), stamps(tmp_path)) == (made, before)
    provenance = first.provenance["backgrounds"]
    assert provenance.keys() == built.cameras.keys()
    for camera, sha256 in provenance.items():
        assert file_sha256(background.scene_path(tmp_path / "crops", camera)) == sha256
    camera, samples = next(iter(built.cameras.items()))
    scene = background.scene(tmp_path / "crops", built.root, camera, samples, lambda sample: nullcontext)
    assert scene is not None
    assert scene[1] == provenance[camera]
    assert (scene[0].dtype, scene[0].shape) == (np.uint8, (96, 128, 3))


@pytest.mark.slow
def test_processes_of_their_own_make_the_same_scenes(raw: Path, tmp_path: Path, motion: Recipe) -> None:
    build(raw, tmp_path / "a", motion)
    build(raw, tmp_path / "b", motion)
    one = runner.run_stage(crop.STAGE, tmp_path / "a", motion)
    with Workers(2) as two:
        other = runner.run_stage(crop.STAGE, tmp_path / "b", motion, workers=two)
    assert one.digest == other.digest
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["empty", "cut", "gone"])
def test_a_damaged_scene_is_made_again(raw: Path, tmp_path: Path, motion: Recipe, how: str) -> None:
    build(raw, tmp_path, motion)
    digest = runner.run_stage(crop.STAGE, tmp_path, motion).digest
    made = pictures(tmp_path)
    path = tmp_path / "crops" / "background" / next(iter(made))
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if how == "empty" else path.read_bytes()[:200])
    shard_path(tmp_path, "crops", 0).unlink()
    assert runner.run_stage(crop.STAGE, tmp_path, motion).digest == digest
    assert pictures(tmp_path) == made


@pytest.mark.slow
def test_a_scene_of_too_few_clips_is_made_again_when_they_are_back(copy: Path, tmp_path: Path, motion: Recipe) -> None:
    build(copy, tmp_path / "clean", motion)
    wanted = runner.run_stage(crop.STAGE, tmp_path / "clean", motion)
    build(copy, tmp_path / "w", motion)
    videos = sorted(copy.rglob("*_rgb.avi"))
    away = tmp_path / "away"
    away.mkdir()
    for video in videos[: len(videos) - 3]:
        video.rename(away / video.name)
    runner.run_stage(crop.STAGE, tmp_path / "w", motion)
    for video in videos[: len(videos) - 3]:
        (away / video.name).rename(video)
    assert pictures(tmp_path / "w") != pictures(tmp_path / "clean")
    redo = failed_samples(tmp_path / "w", crop.STAGE)
    found = runner.run_stage(crop.STAGE, tmp_path / "w", motion, redo=redo)
    assert pictures(tmp_path / "w") == pictures(tmp_path / "clean")
    assert found.statuses == wanted.statuses


@pytest.mark.slow
def test_a_camera_without_a_readable_clip_has_failed_rows_and_no_invented_boxes(
    copy: Path, tmp_path: Path, motion: Recipe
) -> None:
    built = build(copy, tmp_path, motion)
    camera = sorted(built.cameras)[0]
    for sample in built.cameras[camera]:
        path = copy / sample["video"]
        path.write_bytes(b"x" * path.stat().st_size)
    manifest = runner.run_stage(crop.STAGE, tmp_path, motion)
    assert manifest.provenance["backgrounds"].keys() == built.cameras.keys() - {camera}
    assert set(manifest.statuses) == {"ok", "decode_error"} | (set(manifest.statuses) & {"no_person"})


@pytest.mark.slow
def test_a_clip_of_another_size_than_its_scene_has_failed_rows(copy: Path, tmp_path: Path, motion: Recipe) -> None:
    built = build(copy, tmp_path / "w", motion)
    camera = sorted(built.cameras)[0]
    odd = built.cameras[camera][-1]  # the scene has the size of the first
    writer = cv2.VideoWriter(str(copy / odd["video"]), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    for _ in range(40):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    built = build(copy, tmp_path / "w", motion)
    runner.run_stage(crop.STAGE, tmp_path / "w", motion)
    rows = pq.ParquetDataset(sorted((tmp_path / "w" / "crops").glob("*.parquet"))).read().to_pylist()
    failed = [row for row in rows if row["status"] == "failed"]
    assert {row["sample_id"] for row in failed} == {odd["sample_id"]}
    assert {row["jpeg"] for row in failed} == {None}
    assert {row["error"] for row in failed} == {
        f"camera {camera!r} has no empty scene of 64 x 48 pixels to compare with"
    }


@pytest.mark.slow
def test_another_scene_leaves_the_rows_of_other_samples(copy: Path, tmp_path: Path, motion: Recipe) -> None:
    work = tmp_path / "w"
    built = build(copy, work, motion)
    runner.run_stage(crop.STAGE, work, motion)
    first, scenes = stamps(work), pictures(work)
    sample = built.shard(0)[0]
    other = next(s for s in built.cameras[sample["camera"]] if s["sample_id"] != sample["sample_id"])
    shutil.copy(copy / other["video"], copy / sample["video"])  # another recording under its name
    build(copy, work, motion)
    assert runner.run_stage(crop.STAGE, work, motion, overwrite=False).complete
    assert {name for name, at in stamps(work).items() if at != first[name]} == {"shard-00000.json"}
    assert pictures(work) != scenes


@pytest.mark.slow
def test_a_hanging_clip_costs_its_own_row_only(copy: Path, tmp_path: Path) -> None:
    recipe = load_recipe("debug", [*SETTINGS, "pipeline.shard_samples=1"])
    last = sorted(copy.rglob("*_rgb.avi"))[-1]
    last.unlink()
    os.mkfifo(last)
    work = tmp_path / "w"
    built = build(copy, work, recipe)
    with Workers(1) as one:
        manifest = runner.run_stage(crop.STAGE, work, recipe, workers=one)
    rows = [row for n in range(len(built.shard_ranges)) for row in crop_rows(work, n)]
    bad = {row["sample_id"] for row in rows if row["status"] in {"decode_error", "failed"}}
    assert bad == {last.name.removesuffix("_rgb.avi")}
    assert manifest.statuses["decode_error"] == recipe.pipeline.frames


def crop_rows(work: Path, number: int) -> list[dict[str, object]]:
    from c2vl_manifests.manifest import read_shard

    rows: list[dict[str, object]] = read_shard(shard_path(work, "crops", number), ["sample_id", "status"]).to_pylist()
    return rows
