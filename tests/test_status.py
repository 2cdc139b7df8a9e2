"""`status --why` names what is in the way of every shard; `plan` foresees cost and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.manifest import file_sha256
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance import estimate
from c2vl_pipeline.maintenance.estimate import Estimate, StagePlan
from c2vl_pipeline.maintenance.status import changes, survey
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from c2vl_pipeline.workspace import shard_path
from conftest import Cli, run_factory

STAGES = (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE)


@pytest.fixture
def own(work: Path, tmp_path: Path) -> Path:
    """All stages of 32 samples in 4 shards, packed, to be changed."""
    return Path(shutil.copytree(work, tmp_path / "w"))


def why(work: Path, *changed: str) -> dict[str, dict[str, int]]:
    """Stage -> reason -> shards, of the stages with any."""
    return {s.stage: s.why for s in survey(work, load_recipe("debug", list(changed))) if s.why}


def state(work: Path, stage: str, *changed: str) -> str:
    return next(s.state for s in survey(work, load_recipe("debug", list(changed))) if s.stage == stage)


# -------------------------------------------------------------------------------------------------- why


@pytest.mark.parametrize(
    ("changed", "stage", "reasons"),
    [
        ("pipeline.crop.margin=0.2", "crops", ["config.margin: 0.1 -> 0.2"]),
        ("pipeline.skeletons.max_frames=10", "skeletons", ["config.max_frames: 300 -> 10"]),
        ("pipeline.caption.question=Why?", "captions", ['config.question: "Is he/she or are they holding anything in the hand? Is h… -> "Why?"']),
        ("pipeline.embed.engine.options.seed=7", "embeddings", ["engine.options.seed: null -> 7"]),
        ("pipeline.embed.aspect=squash", "embeddings", ['config.aspect: "pad" -> "squash"', "padding: [122, 116, 104] -> null"]),
        ("pipeline.crop.engine.options.grow=0.2", "crops", ["engine.options.grow: null -> 0.2"]),
        ("pipeline.crop.engine=motion", "crops", ['engine.backend: "skeleton" -> "motion"']),
    ],
)  # fmt: skip
def test_the_changed_field_is_named_with_both_values(
    own: Path, changed: str, stage: str, reasons: list[str]
) -> None:
    assert why(own, changed) == {stage: dict.fromkeys(reasons, 4)}
    assert state(own, stage, changed) == "stale"


def test_another_number_of_frames_is_a_reason_of_every_stage_that_has_frames(own: Path) -> None:
    found = why(own, "pipeline.frames=5")
    assert found == {s: {"frames: 4 -> 5": 4} for s in ("crops", "captions", "embeddings")}


def test_a_complete_folder_has_no_reasons(own: Path) -> None:
    assert why(own) == {}


def test_each_damage_is_told_from_the_next(own: Path) -> None:
    one, two, three, four = (shard_path(own, "embeddings", n) for n in range(4))
    one.unlink()
    two.write_bytes(two.read_bytes()[:-5])
    three.with_suffix(".json").unlink()
    four.unlink()
    four.with_suffix(".json").unlink()
    assert why(own) == {
        "embeddings": {
            "the data file is gone": 1,
            "the data file has another size than was committed": 1,
            "written but not committed": 1,
            "not made yet": 1,
        }
    }
    path = shard_path(own, "crops", 0)
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF
    path.write_bytes(content)
    (reason,) = why(own)["crops"]
    assert reason.startswith("the data file is damaged (")
    assert state(own, "embeddings") == state(own, "crops") == "unfinished"


def test_files_of_other_sizes_and_rows_upstream_are_named(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    work = run_factory(folder, tmp_path / "w", recipe)
    video = folder / workspace.load(work).table.column("video")[9].as_py()
    other = folder / workspace.load(work).table.column("video")[25].as_py()
    video.write_bytes(other.read_bytes() + b"end")
    index.build(load_dataset("synthetic"), folder, work, recipe.pipeline, recipe="debug")
    assert {k: v for k, v in why(work).items() if k != "packed"} == {
        "crops": {"its samples, or the sizes of their files, are others": 1}
    }
    runner.run(crop.STAGE, work, recipe)
    found = why(work)
    assert found["captions"] == {"the crops it was made from changed": 1}
    # captions are of joints here: the same as before, so nothing else follows from them
    runner.run(caption.STAGE, work, recipe)
    assert why(work)["embeddings"] == {"the crops it was made from changed": 1}
    runner.run(embed.STAGE, work, recipe)
    assert why(work) == {"packed": {"the rows it was packed from changed": 1}}
    shard_path(work, "crops", 1).with_suffix(".json").unlink()
    assert why(work)["captions"] == {"the crops it was made from are gone": 1}


def test_after_part_of_a_run_under_a_new_configuration_the_rest_says_why(own: Path) -> None:
    changed = "pipeline.crop.margin=0.2"
    runner.run(crop.STAGE, own, load_recipe("debug", [changed]), limit=8)
    found = why(own, changed)
    assert found["crops"] == {"config.margin: 0.1 -> 0.2": 3}
    assert state(own, "crops", changed) == "unfinished"
    assert why(own)["crops"] == {"config.margin: 0.2 -> 0.1": 1}
    assert state(own, "crops") == "stale"
    for record in (own / "crops" / "inputs").iterdir():
        record.unlink()
    assert why(own)["crops"] == {"the configuration changed (the former one is not on record)": 1}


def test_changes_are_told_by_their_full_name() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "same"}
    new = {"a": {"b": 2, "c": [1, 3]}, "d": {"f": 1}, "e": "same", "g": "x" * 80}
    assert list(changes(old, new)) == [
        "a.b: 1 -> 2", "a.c: [1, 2] -> [1, 3]", 'd: null -> {"f": 1}', f'g: null -> "{"x" * 56}…',
    ]  # fmt: skip
    assert list(changes(old, old)) == []


def test_the_command_says_reasons_and_json_has_them(cli: Cli, own: Path) -> None:
    words = ("status", "--work", own, "--set", "pipeline.crop.margin=0.2")
    code, out, err = cli(*words)
    assert (code, err) == (1, "")
    assert not any("margin" in line for line in out)
    code, out, _ = cli(*words, "--why")
    assert code == 1
    assert out[-1] == "crops: 4 shards: config.margin: 0.1 -> 0.2"
    code, out, _ = cli(*words, "--json")
    entries = {e["stage"]: e for e in json.loads("\n".join(out))}
    assert (code, entries["crops"]["why"]) == (1, {"config.margin: 0.1 -> 0.2": 4})
    assert entries["captions"]["why"] == {}
    shard_path(own, "captions", 2).unlink()
    assert "captions: 1 shard: the data file is gone" in cli("status", "--work", own, "--why")[1]


# ------------------------------------------------------------------------- engines that are not on this machine


@pytest.fixture(scope="module")
def encoded(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """Embeddings by a tiny CLIP that has since been moved away: work folder, its `--set`, where it is now."""
    folder = tmp_path_factory.mktemp("elsewhere")
    here = Path(shutil.copytree(work, folder / "w"))
    model = checkpoints.tiny_clip(folder / "clip", 56)
    spec = f'pipeline.embed.engine={{role="encoder", backend="hf", model="{model}"}}'
    runner.run(embed.STAGE, here, load_recipe("debug", [spec]))
    away = model.rename(folder / "away")
    engines._load.cache_clear()
    return here, spec, away


def test_rows_of_a_checkpoint_that_is_not_here_can_be_surveyed(encoded: tuple[Path, str, Path]) -> None:
    work, spec, _ = encoded
    with pytest.raises(EngineError):
        runner.run(embed.STAGE, work, load_recipe("debug", [spec]))
    assert state(work, "embeddings", spec) == "complete"
    assert "embeddings" not in why(work, spec)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('pipeline.embed.engine.dtype="bfloat16"', 'engine.dtype: "float32" -> "bfloat16"'),
        ("pipeline.embed.engine.options.allow_unexpected_weights=true", "engine.options.allow_unexpected_weights: null -> true"),
        ('pipeline.embed.engine.revision="main"', 'engine.revision: null -> "main"'),
    ],
)  # fmt: skip
def test_an_absent_checkpoint_asked_for_otherwise_is_stale_and_says_so(
    encoded: tuple[Path, str, Path], change: str, reason: str
) -> None:
    work, spec, _ = encoded
    assert state(work, "embeddings", spec, change) == "stale"
    assert why(work, spec, change)["embeddings"][reason] == 4


def test_a_stage_that_was_never_made_is_missing_whether_or_not_its_checkpoint_is_here(
    encoded: tuple[Path, str, Path], tmp_path: Path
) -> None:
    work = Path(shutil.copytree(encoded[0], tmp_path / "w"))
    shutil.rmtree(work / "embeddings")
    assert state(work, "embeddings", encoded[1]) == "missing"


def test_an_engine_that_does_not_exist_is_an_error_all_the_same(own: Path) -> None:
    with pytest.raises(EngineError, match="no encoder engine is called 'klip'"):
        state(own, "embeddings", "pipeline.embed.engine.backend=klip")


# ------------------------------------------------------------------------------------------------- plan


@pytest.fixture
def begun(raw: Path, recipe: Recipe, tmp_path: Path) -> Path:
    index.build(load_dataset("synthetic"), raw, tmp_path / "w", recipe.pipeline, recipe="debug")
    return tmp_path / "w"


def files(work: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(work)): (file_sha256(p), p.stat().st_mtime_ns)
        for p in work.rglob("*")
        if p.is_file()
    }


def test_a_plan_adds_up_and_leaves_only_itself(begun: Path, recipe: Recipe) -> None:
    before = files(begun)
    made = estimate.estimate(begun, recipe, seconds=1, workers=2)
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


def test_a_plan_leaves_the_stages_of_the_folder_untouched_and_asks_for_nothing_done(
    own: Path, recipe: Recipe
) -> None:
    before = files(own)
    made = estimate.estimate(own, recipe, seconds=1)
    after = files(own)
    assert {k: after[k] for k in before} == before
    assert after.keys() - before.keys() == {"plan.json"}
    assert [(s.samples, s.seconds, s.bytes) for s in made.stages] == [(0, 0, 0)] * 4


def test_a_plan_counts_what_is_stale_and_what_follows_from_it(own: Path, recipe: Recipe) -> None:
    shard_path(own, "captions", 3).with_suffix(".json").unlink()
    made = estimate.estimate(own, recipe, seconds=1)
    assert [s.samples for s in made.stages] == [0, 0, 8, 8]
    other = load_recipe("debug", ["pipeline.crop.margin=0.2"])
    assert [s.samples for s in estimate.estimate(own, other, seconds=1).stages] == [0, 32, 32, 32]


def test_probed_samples_are_spread_over_the_whole_dataset(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def probe(probe: Any, stage: Any, chosen: list[int], seconds: float, workers: int | None) -> Any:
        seen.append(list(chosen))
        return part(stage.name), chosen

    monkeypatch.setattr(estimate, "_probe", probe)
    real = workspace.load(begun)
    table = real.table.take([n % 32 for n in range(95)])
    many = workspace.Index(
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
    problem = Estimate(stages=stages, free_bytes=needed - 1, all_samples=7200).problem()
    assert problem is not None
    assert problem.startswith(
        "the disk has 0.1 GB free, the stages will write about 0.1 GB; free some or lower"
    )


def test_the_command_plans_and_status_sets_it_beside_the_work_time(
    cli: Cli, begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = cli("plan", "--work", begun, "--seconds", "1", "--workers", "1")
    assert (code, err) == (0, "")
    assert out[0].strip() == f"{begun}: 32 samples"
    assert any("skeletons" in line and " 32 " in line for line in out)
    table = cli("status", "--work", begun)[1]
    assert "planned" in table[2]
    made = estimate.read(begun)
    assert made is not None
    slow = made.stages[0].model_copy(update={"sample_seconds": 100.0})
    (begun / "plan.json").write_text(
        made.model_copy(update={"stages": (slow, *made.stages[1:])}).model_dump_json()
    )
    runner.run(skeletons.STAGE, begun, recipe, limit=8)
    (line,) = [line for line in cli("status", "--work", begun)[1] if "skeletons" in line]
    assert "800 s" in line, "what the eight samples that are done were foreseen to take"
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(estimate.shutil, "disk_usage", lambda path: disk(10**6, 10**6, 1000))
    code, out, err = cli("plan", "--work", begun, "--seconds", "1")
    assert (code, err) == (1, "")
    assert out[-1].startswith("warning: the disk has 0.0 GB free, the stages will write about")
    code, out, _ = cli("plan", "--work", begun, "--seconds", "1", "--json")
    assert code == 1
    begun.joinpath("plan.json").write_text("{")
    assert "planned" not in cli("status", "--work", begun)[1][2]


def test_without_a_video_there_is_nothing_to_plan(
    cli: Cli, raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    for video in folder.rglob("*_rgb.avi"):
        video.unlink()
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), folder, work, recipe.pipeline, recipe="debug", allow_missing=True)
    with pytest.raises(StageError, match="has a video, so there is nothing to probe"):
        estimate.estimate(work, recipe)
    code, out, err = cli("plan", "--work", work)
    assert (code, out, len(err.splitlines())) == (1, [], 1)
    assert err.startswith(f"error: none of the 32 samples of {work} has a video")
    assert not list(work.glob("plan*"))


def test_a_plan_that_fails_leaves_nothing(begun: Path) -> None:
    with pytest.raises(EngineError):
        estimate.estimate(begun, load_recipe("debug", ["pipeline.embed.engine.options.dim=3"]), seconds=1)
    assert {p.name for p in begun.iterdir()} == {"samples.json", "samples.parquet"}
