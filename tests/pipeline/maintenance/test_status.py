"""Status of a work folder: states of stages, reasons, engines that are absent."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.keys import changes
from c2vl_pipeline.maintenance.status import survey
from c2vl_pipeline.stages import caption, crop, embed, index, pack
from c2vl_pipeline.workspace import shard_path
from support import checkpoints
from support.cli import Cli, Said
from support.factory import STAGES, run_all, run_factory, start, states


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
        ("pipeline.embed.aspect=squash", "embeddings", ['config.aspect: "pad" -> "squash"', "config.padding: [122, 116, 104] -> null"]),
        ("pipeline.crop.engine.options.grow=0.2", "crops", ["engine.options.grow: null -> 0.2"]),
        ("pipeline.crop.engine=motion", "crops", ['engine.backend: "skeleton" -> "motion"']),
    ],
)  # fmt: skip
def test_the_changed_field_is_named_with_both_values(own: Path, changed: str, stage: str, reasons: list[str]) -> None:
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


@pytest.mark.slow
def test_files_of_other_sizes_and_rows_upstream_are_named(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    work = run_factory(folder, tmp_path / "w", recipe)
    video = folder / workspace.load(work).table.column("video")[9].as_py()
    other = folder / workspace.load(work).table.column("video")[25].as_py()
    video.write_bytes(other.read_bytes() + b"end")
    index.build(load_dataset("synthetic"), folder, work, recipe.pipeline, recipe="debug")
    assert {k: v for k, v in why(work).items() if k != "packed"} == {
        "crops": {"its samples, or the sizes of their files, changed": 1}
    }
    runner.run_stage(crop.STAGE, work, recipe)
    found = why(work)
    assert found["captions"] == {"the crops it was made from changed": 1}
    # captions are of joints here: the same as before, so nothing else follows from them
    runner.run_stage(caption.STAGE, work, recipe)
    assert why(work)["embeddings"] == {"the crops it was made from changed": 1}
    runner.run_stage(embed.STAGE, work, recipe)
    assert why(work) == {"packed": {"the rows it was packed from changed": 1}}
    shard_path(work, "crops", 1).with_suffix(".json").unlink()
    assert why(work)["captions"] == {"the crops it was made from are gone": 1}


def test_after_part_of_a_run_under_a_new_configuration_the_rest_says_why(own: Path) -> None:
    changed = "pipeline.crop.margin=0.2"
    runner.run_stage(crop.STAGE, own, load_recipe("debug", [changed]), limit=8)
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
    code, out, err = cli("c2vl-pipeline", *words).told
    assert (code, err) == (1, "")
    assert not any("margin" in line for line in out)
    code, out, _ = cli("c2vl-pipeline", *words, "--why").told
    assert code == 1
    assert out[-2:] == ["crops: 4 shards: config.margin: 0.1 -> 0.2", f"next: c2vl-pipeline crop --work {own}"]
    code, out, _ = cli("c2vl-pipeline", *words, "--json").told
    entries = {e["stage"]: e for e in json.loads("\n".join(out))}
    assert (code, entries["crops"]["why"]) == (1, {"config.margin: 0.1 -> 0.2": 4})
    assert entries["captions"]["why"] == {}
    shard_path(own, "captions", 2).unlink()
    assert "captions: 1 shard: the data file is gone" in cli("c2vl-pipeline", "status", "--work", own, "--why").told[1]


# ------------------------------------------------------------------------- engines that are not on this machine


@pytest.fixture(scope="module")
def encoded(work: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """Embeddings by a tiny CLIP that has since been moved away: work folder, its `--set`, where it is now."""
    folder = tmp_path_factory.mktemp("elsewhere")
    here = Path(shutil.copytree(work, folder / "w"))
    model = checkpoints.tiny_clip(folder / "clip", 56)
    spec = f'pipeline.embed.engine={{role="encoder", backend="hf", model="{model}"}}'
    runner.run_stage(embed.STAGE, here, load_recipe("debug", [spec]))
    away = model.rename(folder / "away")
    engines.clear()
    return here, spec, away


def test_rows_of_a_checkpoint_that_is_not_here_can_be_surveyed(encoded: tuple[Path, str, Path]) -> None:
    work, spec, _ = encoded
    with pytest.raises(EngineError):
        runner.run_stage(embed.STAGE, work, load_recipe("debug", [spec]))
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
    assert state(work, "embeddings", encoded[1]) == "to do"


def test_an_engine_that_does_not_exist_is_an_error_all_the_same(own: Path) -> None:
    with pytest.raises(EngineError, match="no encoder engine is called 'klip'"):
        state(own, "embeddings", "pipeline.embed.engine.backend=klip")


LINES = ["skeletons", "crops", "captions", "embeddings", "packed"]


def test_status_of_a_complete_folder_exits_with_0(cli, work):
    found = cli("c2vl-pipeline", "status", "--work", work)
    assert found.code == 0, found.err
    for stage in LINES:
        assert stage in found.out
    assert found.out.count("complete") == 5


def test_status_as_json_says_the_same_as_plain_values(cli, work):
    found = cli("c2vl-pipeline", "status", "--work", work, "--json")
    entries = json.loads(found.out)
    assert [(e["stage"], e["state"]) for e in entries] == [(stage, "complete") for stage in LINES]
    for entry in entries[:4]:
        assert entry["rows"] == entry["expected_rows"] == sum(entry["statuses"].values())


def state_of(found: Said, stage: str) -> str:
    return str(next(e["state"] for e in json.loads(found.out) if e["stage"] == stage))


def test_status_exits_with_1_while_something_is_to_do(cli, copied):
    next((copied / "crops").glob("shard-*.json")).unlink()
    found = cli("c2vl-pipeline", "status", "--work", copied, "--json")
    assert (found.code, state_of(found, "crops"), found.err) == (1, "unfinished", "")
    shutil.rmtree(copied / "crops")
    found = cli("c2vl-pipeline", "status", "--work", copied, "--json")
    assert (found.code, state_of(found, "crops")) == (1, "to do")


def test_status_under_another_recipe_calls_a_stage_stale(cli, copied):
    words = ("c2vl-pipeline", "status", "--work", copied, "--json", "--set", "pipeline.embed.aspect=squash")
    found = cli(*words)
    assert (found.code, state_of(found, "embeddings"), state_of(found, "captions")) == (1, "stale", "complete")


@pytest.fixture
def begun(raw: Path, tmp_path: Path) -> Path:
    """An index of 32 samples in 8 shards."""
    return start(raw, tmp_path / "w", 4)


# ---------------------------------------------------------------------------------------------- status


@pytest.mark.slow
def test_the_survey_tells_to_do_unfinished_complete_and_stale(begun: Path, recipe: Recipe) -> None:
    assert set(states(begun, recipe).values()) == {"to do"}
    run_all(begun, recipe, STAGES[:1])
    runner.run_stage(crop.STAGE, begun, recipe, limit=4)
    found = {s.stage: s for s in survey(begun, recipe)}
    assert [found[s].state for s in ("skeletons", "crops", "captions", "embeddings", "packed")] == [
        "complete", "unfinished", "to do", "to do", "to do",
    ]  # fmt: skip
    crops = found["crops"]
    assert (crops.shards_done, crops.shards, crops.rows, crops.expected_rows) == (1, 8, 16, 128)
    assert (crops.not_ok(), crops.bytes) == ("", (begun / "crops" / "shard-00000.parquet").stat().st_size)
    assert asdict(found["skeletons"])["statuses"] == {"ok": 32}
    run_all(begun, recipe)
    pack.run(begun, recipe)
    assert set(states(begun, recipe).values()) == {"complete"}
    other = load_recipe("debug", ["pipeline.embed.engine.options.seed=3"])
    assert states(begun, other)["embeddings"] == "stale"
    run_all(begun, other)
    assert states(begun, other) | {"packed": ""} == dict.fromkeys(
        ("skeletons", "crops", "captions", "embeddings"), "complete"
    ) | {"packed": ""}
    assert states(begun, other)["packed"] == "stale"
    pack.run(begun, other)
    assert states(begun, other)["packed"] == "complete"


def test_a_survey_without_an_index_names_the_command(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(StageError, match="holds no index; run `c2vl-pipeline index --dataset NAME"):
        survey(tmp_path, recipe)
