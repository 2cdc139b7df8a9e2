"""Estimate of time and disk before the work."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.manifest import file_sha256
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance import estimate
from c2vl_pipeline.maintenance.estimate import Estimate, StagePlan
from c2vl_pipeline.stages import index, skeletons
from c2vl_pipeline.workspace import shard_path
from support.cli import Cli


@pytest.fixture
def own(work: Path, tmp_path: Path) -> Path:
    """All stages of 32 samples in 4 shards, packed, to be changed."""
    return Path(shutil.copytree(work, tmp_path / "w"))


@pytest.fixture
def begun(raw: Path, recipe: Recipe, tmp_path: Path) -> Path:
    index.build(load_dataset("synthetic"), raw, tmp_path / "w", recipe.pipeline, recipe="debug")
    return tmp_path / "w"


def files(work: Path) -> dict[str, tuple[str, int]]:
    return {str(p.relative_to(work)): (file_sha256(p), p.stat().st_mtime_ns) for p in work.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_plan_adds_up_and_leaves_only_itself(begun: Path, recipe: Recipe) -> None:
    before = files(begun)
    made = estimate.estimate(begun, recipe, seconds=0.05, workers=2)
    after = files(begun)
    assert after.keys() - before.keys() == {"plan.json"}
    assert {k: after[k] for k in before} == before
    assert [p.name for p in begun.iterdir() if p.is_dir()] == []
    assert made.all_samples == 32
    assert [s.stage for s in made.stages] == ["skeletons", "crops", "captions", "embeddings"]
    for stage in made.stages:
        assert stage.samples == 32
        assert 1 <= stage.probed <= 32
        assert stage.sample_seconds > 0
        assert stage.sample_bytes > 100
        assert stage.workers == 2
        assert stage.seconds == pytest.approx(stage.load_seconds + 32 * stage.sample_seconds / 2)
        assert stage.bytes == 32 * stage.sample_bytes
        assert stage.gpu_hours == 0
    assert estimate.read(begun) == made
    assert made.problem() is None


@pytest.mark.slow
def test_a_plan_leaves_the_stages_of_the_folder_untouched_and_asks_for_nothing_done(own: Path, recipe: Recipe) -> None:
    before = files(own)
    made = estimate.estimate(own, recipe, seconds=0.05)
    after = files(own)
    assert {k: after[k] for k in before} == before
    assert after.keys() - before.keys() == {"plan.json"}
    assert [(s.samples, s.seconds, s.bytes) for s in made.stages] == [(0, 0, 0)] * 4


@pytest.mark.slow
def test_a_plan_counts_what_is_stale_and_what_follows_from_it(own: Path, recipe: Recipe) -> None:
    shard_path(own, "captions", 3).with_suffix(".json").unlink()
    made = estimate.estimate(own, recipe, seconds=0.05)
    assert [s.samples for s in made.stages] == [0, 0, 8, 8]
    other = load_recipe("debug", ["pipeline.crop.margin=0.2"])
    assert [s.samples for s in estimate.estimate(own, other, seconds=0.05).stages] == [0, 32, 32, 32]


def test_probed_samples_are_spread_over_the_whole_dataset(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def probe(index: Any, recipe: Any, folder: Path, stage: Any, chosen: list[int], seconds: float) -> Any:
        seen.append(list(chosen))
        return part(stage.name, probed=len(chosen))

    monkeypatch.setattr(estimate, "_probe", probe)
    real = workspace.load(begun)
    table = real.table.take([n % 32 for n in range(95)])
    many = workspace.Workspace(
        **{**{f: getattr(real, f) for f in real.__dataclass_fields__ if f != "_keys"}, "table": table}
    )
    monkeypatch.setattr(estimate, "load", lambda work: many)
    estimate.estimate(begun, recipe)
    assert len(seen[0]) == len(set(seen[0])) == 48
    assert seen[0][0] == 0
    assert seen[0][-1] >= 92
    assert max(b - a for a, b in zip(seen[0], seen[0][1:], strict=False)) <= 2


def part(stage: str, **known: Any) -> StagePlan:
    fields = {
        "stage": stage, "probed": 4, "load_seconds": 10.0, "sample_seconds": 0.5, "sample_bytes": 1000.0,
        "samples": 7200, "workers": 2, "on_gpu": False,
    }  # fmt: skip
    return StagePlan(**(fields | known))


def test_gpu_hours_are_those_of_all_workers_and_loading_counts() -> None:
    stage = part("captions", on_gpu=True)
    assert stage.seconds == 10 + 1800
    assert stage.gpu_hours == pytest.approx(2 * 1810 / 3600)
    assert part("captions").gpu_hours == 0
    assert part("captions", samples=0).seconds == 0


def test_the_disk_must_hold_the_stages_and_the_packed_arrays() -> None:
    stages = (part("skeletons"), part("crops"), part("embeddings"))
    needed = 3 * 7_200_000 + 2 * 2 * 7_200_000
    assert Estimate(stages=stages, free_bytes=needed, all_samples=7200).problem() is None
    problem = Estimate(stages=stages, free_bytes=needed - 200_000, all_samples=7200).problem()
    assert problem is not None
    expected = "the disk has 50.2 MB free, the stages will write about 50.4 MB, 200 kB too many; free some or lower"
    assert problem.startswith(expected)


@pytest.mark.slow
def test_the_command_plans_and_status_sets_it_beside_the_work_time(
    cli: Cli, begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = cli(
        "c2vl-pipeline", "prompts", "--dry-run", "--work", begun, "--seconds", "1", "--workers", "1"
    ).told
    assert (code, err) == (0, "")
    out = out[out.index("recipe debug: no weights to load") + 1 :]
    assert out[0].startswith("32 samples: about ")
    assert re.search(r", [\d.]+ [kM]B to write; [\d.]+ [GT]B free", out[0])
    assert out[1].strip() == f"{begun}: 32 samples"
    assert any("skeletons" in line and " 32 " in line for line in out)
    table = cli("c2vl-pipeline", "status", "--work", begun).told[1]
    assert any("left, as measured by `prompts --dry-run`" in line for line in table)
    made = estimate.read(begun)
    assert made is not None
    slow = made.stages[0].model_copy(update={"sample_seconds": 100.0})
    (begun / "plan.json").write_text(made.model_copy(update={"stages": (slow, *made.stages[1:])}).model_dump_json())
    runner.run_stage(skeletons.STAGE, begun, recipe, limit=8)
    (line,) = [line for line in cli("c2vl-pipeline", "status", "--work", begun).told[1] if "│ skeletons" in line]
    assert "800 s" in line, "what the eight samples that are done were foreseen to take"
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr("c2vl_pipeline.maintenance.estimate.shutil.disk_usage", lambda path: disk(10**6, 10**6, 1000))
    code, out, err = cli("c2vl-pipeline", "prompts", "--dry-run", "--work", begun, "--seconds", "1").told
    assert (code, err) == (1, "")
    assert out[-1].startswith("warning: the disk has 1 kB free, the stages will write about")
    code, out, _ = cli("c2vl-pipeline", "prompts", "--dry-run", "--work", begun, "--seconds", "1", "--json").told
    assert code == 1
    begun.joinpath("plan.json").write_text("{")
    assert "planned" not in cli("c2vl-pipeline", "status", "--work", begun).told[1][2]


def test_without_a_video_there_is_nothing_to_plan(cli: Cli, raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    for video in folder.rglob("*_rgb.avi"):
        video.unlink()
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), folder, work, recipe.pipeline, recipe="debug", allow_missing=True)
    with pytest.raises(StageError, match="has a video, so there is nothing to probe"):
        estimate.estimate(work, recipe)
    code, out, err = cli("c2vl-pipeline", "prompts", "--dry-run", "--work", work).told
    assert (code, out[-1], len(err.splitlines())) == (1, "recipe debug: no weights to load", 1)
    assert err.startswith(f"error: none of the 32 samples of {work} has a video")
    assert not list(work.glob("plan*"))


@pytest.mark.slow
def test_a_plan_that_fails_leaves_nothing(begun: Path) -> None:
    with pytest.raises(EngineError):
        estimate.estimate(begun, load_recipe("debug", ["pipeline.embed.engine.options.dim=3"]), seconds=0.05)
    assert {p.name for p in begun.iterdir()} == {"samples.json", "samples.parquet"}
