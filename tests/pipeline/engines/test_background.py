"""The empty scene of a camera and shape: made once, bound to its clips, and never in the way of others."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
from c2vl_pipeline.synthetic import dataset
from c2vl_pipeline.workspace import shard_path
from support.video import film, matroska, turned

SETTINGS = ["pipeline.crop.engine=motion", "pipeline.crop.timeout=2.0", "pipeline.shard_samples=2"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small clips of each of two cameras."""
    folder = tmp_path_factory.mktemp("raw")
    dataset.generate(folder, classes=2, subjects=2, views=2, repeats=1, seed=1, size=(64, 48), frames=(24, 32))
    return folder


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


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


def scene_of(work: Path, built: workspace.Workspace, *more: Any) -> tuple[Any, str] | None:
    return background.scene(work / "crops", built.root, *more, lambda sample: nullcontext(nullcontext))


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
    assert provenance.keys() == {f"{camera} 64x48" for camera in built.cameras}
    for camera in built.cameras:
        path = background.scene_path(tmp_path / "crops", camera, (48, 64))
        assert file_sha256(path) == provenance[f"{camera} 64x48"]
    camera, samples = next(iter(built.cameras.items()))
    scene = scene_of(tmp_path, built, camera, (48, 64), samples)
    assert scene is not None
    assert scene[1] == provenance[f"{camera} 64x48"]
    assert (scene[0].dtype, scene[0].shape) == (np.uint8, (48, 64, 3))
    assert scene_of(tmp_path, built, camera, (64, 48), samples) is None


@pytest.mark.slow
def test_processes_of_their_own_make_the_same_scenes(raw: Path, tmp_path: Path, motion: Recipe, two: Workers) -> None:
    build(raw, tmp_path / "a", motion)
    build(raw, tmp_path / "b", motion)
    one = runner.run_stage(crop.STAGE, tmp_path / "a", motion)
    other = runner.run_stage(crop.STAGE, tmp_path / "b", motion, workers=two)
    assert one.digest == other.digest
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


@pytest.mark.slow
def test_a_damaged_scene_is_made_again(raw: Path, tmp_path: Path, motion: Recipe) -> None:
    build(raw, tmp_path, motion)
    digest = runner.run_stage(crop.STAGE, tmp_path, motion).digest
    made = pictures(tmp_path)
    path = tmp_path / "crops" / "background" / next(iter(made))
    whole = path.read_bytes()
    for damage in (b"", whole[:200], None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
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
    runner.run_stage(crop.STAGE, tmp_path / "w", motion, max_failures=1.0)
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
    manifest = runner.run_stage(crop.STAGE, tmp_path, motion, max_failures=1.0)
    assert manifest.provenance["backgrounds"].keys() == {f"{c} 64x48" for c in built.cameras if c != camera}
    assert set(manifest.statuses) == {"ok", "decode_error"} | (set(manifest.statuses) & {"no_person"})


# ----------------------------------------------------------------------------------------------- shapes


def own(folder: Path, clips: dict[str, str]) -> Path:
    """Write a table of clips and their views."""
    lines = "".join(f"{name.split('.')[0]},{name},{view}\n" for name, view in clips.items())
    (folder / "samples.csv").write_text("sample_id,video,view\n" + lines)
    return folder


def crops_of(folder: Path, work: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Run the crop stage; return the statuses of each sample, and the hashes of the scenes."""
    recipe = load_recipe("debug", SETTINGS)
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug")
    manifest = runner.run_stage(crop.STAGE, work, recipe)
    statuses: dict[str, set[str]] = {}
    for row in pq.ParquetDataset(sorted((work / "crops").glob("*.parquet"))).read().to_pylist():
        statuses.setdefault(row["sample_id"], set()).add(row["status"])
    return statuses, manifest.provenance.get("backgrounds", {})


@pytest.mark.slow
def test_clips_of_two_sizes_in_one_view_have_a_scene_each(tmp_path: Path) -> None:
    (data := tmp_path / "own").mkdir()
    sizes = {"a": (64, 48), "b": (48, 64), "c": (64, 48), "d": (80, 48)}
    for name, size in sizes.items():
        film(data / f"{name}.avi", size=size)
    statuses, scenes = crops_of(own(data, {f"{name}.avi": "1" for name in sizes}), tmp_path / "w")
    assert statuses.keys() == sizes.keys()
    assert set.union(*statuses.values()) <= {"ok", "no_person"}
    assert {name.split()[1] for name in scenes} == {"64x48", "48x64", "80x48"}


@pytest.mark.slow
def test_upright_and_across_clips_of_a_phone_have_a_scene_each_whatever_their_stored_size(tmp_path: Path) -> None:
    (data := tmp_path / "own").mkdir()
    for quarters in range(4):
        turned(film(data / f"t{quarters}.mp4", codec="mp4v"), quarters)
    statuses, scenes = crops_of(own(data, {f"t{n}.mp4": "1" for n in range(4)}), tmp_path / "w")
    assert set.union(*statuses.values()) <= {"ok", "no_person"}
    assert {name.split()[1] for name in scenes} == {"64x48", "48x64"}


def test_a_shape_that_none_of_the_chosen_clips_has_is_looked_for_and_the_shapes_are_remembered(tmp_path: Path) -> None:
    (data := tmp_path / "own").mkdir()
    clips = {f"c{n:02d}.avi": "1" for n in range(34)}  # every second one is chosen
    for n, name in enumerate(clips):
        film(data / name, frames=4, size=(48, 64) if n in {1, 33} else (64, 48))
    recipe = load_recipe("debug", SETTINGS)
    built, _ = index.build(load_dataset("generic"), own(data, clips), tmp_path, recipe.pipeline, recipe="debug")
    ((camera, samples),) = built.cameras.items()
    opened: list[str] = []

    def reading(sample: dict[str, Any]) -> Any:
        opened.append(sample["sample_id"])
        return nullcontext(nullcontext)

    arguments = tmp_path / "crops", built.root, camera
    first = background.scene(*arguments, (48, 64), samples, reading)
    assert first is not None
    assert {int(name[1:]) % 2 for name in opened} == {0}
    upright = background.scene(*arguments, (64, 48), samples, reading)
    assert upright is not None
    assert upright[0].shape == (64, 48, 3)
    opened.clear()
    assert background.scene(*arguments, (64, 48), samples, reading) is not None
    assert background.scene(*arguments, (48, 64), samples, reading) is not None
    assert background.scene(*arguments, (10, 10), samples, reading) is None
    assert opened == []


def test_a_scene_is_made_of_frames_that_exist(tmp_path: Path) -> None:
    (data := tmp_path / "own").mkdir()
    matroska(data / "a.mkv", [*range(0, 400, 20), 60_000])  # 21 frames, 3,002 advertised
    recipe = load_recipe("debug", SETTINGS)
    own(data, {"a.mkv": "1"})
    built, _ = index.build(load_dataset("generic"), data, tmp_path, recipe.pipeline, recipe="debug")
    ((_, (sample,)),) = built.cameras.items()
    images = background._frames(built.root, sample, (48, 64), 21, nullcontext)
    assert [round((image.mean() - 2) / 4) for image in images] == list(range(21))


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
def test_a_hanging_clip_costs_its_own_row_only(copy: Path, tmp_path: Path, two: Workers) -> None:
    recipe = load_recipe("debug", SETTINGS)
    last = sorted(copy.rglob("*_rgb.avi"))[-1]
    last.unlink()
    os.mkfifo(last)
    work = tmp_path / "w"
    built = build(copy, work, recipe)
    manifest = runner.run_stage(crop.STAGE, work, recipe, workers=two)
    rows = [row for n in range(len(built.shard_ranges)) for row in crop_rows(work, n)]
    bad = {row["sample_id"] for row in rows if row["status"] in {"decode_error", "failed"}}
    assert bad == {last.name.removesuffix("_rgb.avi")}
    assert manifest.statuses["decode_error"] == recipe.pipeline.frames


def crop_rows(work: Path, number: int) -> list[dict[str, object]]:
    from c2vl_manifests.manifest import read_shard

    rows: list[dict[str, object]] = read_shard(shard_path(work, "crops", number), ["sample_id", "status"]).to_pylist()
    return rows


def test_a_scene_that_several_ask_for_at_once_is_made_by_one_and_awaited_by_the_others(
    raw: Path, tmp_path: Path, motion: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    built, make, made = build(raw, tmp_path / "w", motion), background._make, []

    def slowly(*arguments: Any) -> str | None:
        made.append(arguments[0].name)
        time.sleep(0.3)
        return make(*arguments)

    monkeypatch.setattr(background, "_make", slowly)
    camera, samples = next(iter(built.cameras.items()))

    def ask(_: int) -> str:
        answer = background.scene(
            tmp_path / "crops", raw, camera, (48, 64), samples, lambda _: nullcontext(nullcontext)
        )
        assert answer is not None
        return answer[1]

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(ask, range(3)))) == 1
    assert len(made) == 1
