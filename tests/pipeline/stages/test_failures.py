"""A stage that loses everything, or everything of one kind, is no success, and the reason is given everywhere."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import read_shard, read_shard_manifest
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import CAPTIONS, CROPS, SKELETONS
from c2vl_pipeline.execution.runner import run_stage
from c2vl_pipeline.stages import STAGES, index, pack
from c2vl_pipeline.stages.failures import counted, may_have_failed, reasons, remedy_of, total_failure
from c2vl_pipeline.workspace import load, shard_path
from support.pages import rewrite

SCHEMAS = {"skeletons": SKELETONS, "crops": CROPS, "captions": CAPTIONS}


@pytest.fixture
def mine(work: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(work, tmp_path / "work"))


def lose(
    folder: Path, stage: str, which: Callable[[dict[str, Any]], bool], status: str = "failed", error: str = "broke"
) -> None:
    """Make rows of a stage fail; `which` sees the row with its sample."""
    samples = {row["sample_id"]: row for row in load(folder).table.to_pylist()}

    def change(rows):
        for row in rows:
            if which(samples[row["sample_id"]] | row):
                row.update(status=status, error_class="ValueError", error=error)

    for shard in range(len(load(folder).shard_ranges)):
        rewrite(folder, stage, SCHEMAS[stage], change, shard)


def counts(folder: Path, stage: str) -> Counter[str]:
    """Return the statuses of a stage, as its shards' manifests count them."""
    found: Counter[str] = Counter()
    for shard in range(len(load(folder).shard_ranges)):
        manifest = read_shard_manifest(shard_path(folder, stage, shard))
        assert manifest is not None
        found.update(manifest.statuses)
    return found


@pytest.mark.parametrize(
    ("stage", "status", "which", "what"),
    [
        ("captions", "failed", lambda row: True, "128 of 128 rows"),
        ("skeletons", "decode_error", lambda row: not row["sample_id"].endswith("P001R001A001"), "30 of 32 rows"),
        ("crops", "decode_error", lambda row: row["view"] == 2, "all 64 rows of camera"),
        ("captions", "failed", lambda row: row["label"] == 3, "all 32 rows of class"),
        ("skeletons", "decode_error", lambda row: dict(row["splits"])["xsub"] == "test", "samples of xsub"),
    ],
)
def test_what_is_lost_as_a_whole_is_named_with_its_reason(mine, stage, status, which, what):
    lose(mine, stage, which, status, "/data/a-7.bin:3: no such token")
    said = total_failure(load(mine), STAGES[stage])
    assert may_have_failed(counts(mine, stage))
    assert what in said
    assert "no such token" in said
    assert f"--status {stage}:{status}" in said
    assert "--max-failures 1" in said


@pytest.mark.parametrize(
    ("stage", "which", "status"),
    [
        ("captions", lambda row: row["slot"] > 0, "failed"),  # each sample keeps a caption
        ("skeletons", lambda row: row["sample_id"].endswith("C001P001R001A001"), "decode_error"),  # one clip is no kind
        ("crops", lambda row: row["label"] == 0, "no_person"),  # of a class in which nobody moves
    ],
)
def test_what_leaves_something_is_no_total_failure(mine, stage, which, status):
    lose(mine, stage, which, status)
    assert total_failure(load(mine), STAGES[stage]) is None


def test_nobody_in_any_frame_is_a_failure_of_the_detector(mine):
    lose(mine, "crops", lambda row: True, "no_person", "")
    assert may_have_failed(counts(mine, "crops"))
    assert "another detector or a lower threshold" in total_failure(load(mine), STAGES["crops"])


def test_counts_of_statuses_rule_out_a_total_failure_without_reading_a_shard(mine):
    assert not may_have_failed(counts(mine, "crops"))
    lose(mine, "crops", lambda row: row["label"] == 0, "no_person")
    assert counts(mine, "crops").keys() == {"ok", "no_person"}
    assert not may_have_failed(counts(mine, "crops"))
    assert total_failure(load(mine), STAGES["crops"]) is None


def test_rows_that_pass_on_a_loss_are_no_failures_of_their_stage(mine):
    lose(mine, "crops", lambda row: True, "decode_error")
    lose(mine, "captions", lambda row: True, "decode_error")
    assert total_failure(load(mine), STAGES["captions"]) is None
    assert reasons(load(mine), STAGES["captions"]) == []
    assert reasons(load(mine), STAGES["crops"]) == [("decode_error", "ValueError: broke", 128)]


@pytest.mark.parametrize("stage", ["captions", "embeddings"])
def test_shards_with_other_rows_than_their_manifest_are_left_to_verify(mine, stage):
    path = shard_path(mine, stage, 0)
    pq.write_table(pq.read_table(path)[:0], path)
    reasons(load(mine), STAGES["embeddings"])
    assert total_failure(load(mine), STAGES["embeddings"]) is None


def test_reasons_are_counted_whatever_paths_and_numbers_they_hold():
    rows = [("failed", "DataError", f"/raw/{n}.skeleton:{n}: text") for n in range(3)] + [("failed", None, "other")]
    assert counted(rows) == [("failed", "/raw/0.skeleton:0: text", 3), ("failed", "other", 1)]


@pytest.fixture
def broken(raw: Path, tmp_path: Path) -> Path:
    """An indexed work folder of which no skeleton file can be read."""
    copy = Path(shutil.copytree(raw, tmp_path / "raw"))
    for path in copy.rglob("*.skeleton"):
        path.write_bytes(b"\0" * 400)
    config = load_recipe("debug").pipeline
    index.build(load_dataset("synthetic"), copy, tmp_path / "work", config, recipe="debug", allow_missing=True)
    return tmp_path / "work"


def test_a_stage_ends_with_1_and_every_command_gives_the_reason(broken, cli):
    said = cli("c2vl-pipeline", "skeletons", "--work", broken, "--workers", "0")
    assert said.code == 1
    assert "failed on 32 of 32 rows" in said.err
    assert cli("c2vl-pipeline", "skeletons", "--work", broken, "--workers", "0").code == 1  # all shards are done now
    text = read_shard(broken / "skeletons" / "shard-00000.parquet", ["error"]).column("error")[0].as_py()
    reason = text.rpartition(": ")[2][:20]
    why = cli("c2vl-pipeline", "status", "--work", broken, "--why")
    assert "skeletons: 32 rows decode_error" in why.out
    assert reason in why.out
    found = cli("c2vl-pipeline", "inspect", "--work", broken, "--status", "skeletons:decode_error")
    assert (found.code, "32 rows of skeletons decode_error" in found.out, reason in found.out) == (0, True, True)
    one = load(broken).table.column("sample_id")[0].as_py()
    told = cli("c2vl-pipeline", "explain", one, "--work", broken)
    assert "1 row decode_error" in told.out
    assert reason in told.out


def test_who_accepts_the_loss_goes_on(broken):
    recipe = load_recipe("debug")
    with pytest.raises(StageError, match="skeletons failed on 32 of 32 rows"):
        run_stage(STAGES["skeletons"], broken, recipe)
    accepted = run_stage(STAGES["skeletons"], broken, recipe, max_failures=1.0)
    assert (accepted.complete, accepted.seal) == (True, "")
    with pytest.raises(StageError, match="skeletons failed on 32 of 32 rows"):  # accepted once, not for ever
        run_stage(STAGES["skeletons"], broken, recipe)


def test_a_retry_in_which_all_fails_again_ends_with_1(broken, cli):
    cli("c2vl-pipeline", "skeletons", "--work", broken, "--workers", "0")
    said = cli("c2vl-pipeline", "prompts", "--work", broken, "--retry-failed", "--workers", "0")
    assert said.code == 1
    assert "32 of 32 rows" in said.err


# --------------------------------------------------------------------------------------- joints without videos


@pytest.fixture(scope="module")
def joints_alone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed work folder of a dataset without any video."""
    folder = tmp_path_factory.mktemp("alone")
    copy = Path(shutil.copytree(raw, folder / "raw", ignore=shutil.ignore_patterns("*.avi")))
    recipe = load_recipe("debug")
    index.build(load_dataset("synthetic"), copy, folder / "work", recipe.pipeline, recipe="debug", allow_missing=True)
    for stage in STAGES.values():
        run_stage(stage, folder / "work", recipe)
    pack.run(folder / "work", recipe)
    return folder / "work"


def test_captions_by_rule_need_joints_alone(joints_alone):
    rows = read_shard(joints_alone / "captions" / "shard-00000.parquet").to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert len({row["caption"] for row in rows}) > 8  # of different frames, not of the first one alone


def test_a_refused_pretraining_names_what_works(joints_alone, tmp_path, cli):
    words = ["--data", joints_alone, "--out", tmp_path / "run"]
    said = cli("c2vl-train", "pretrain", *words)
    assert said.code == 1
    assert "no video file" in said.err
    assert "language alone is there: --set training.pretrain.knowledge=language" in said.err
    assert cli("c2vl-train", "pretrain", *words, "--set", "training.pretrain.knowledge=language").code == 0


def test_training_gives_the_reason_of_the_captions(mine, tmp_path, cli):
    lose(mine, "captions", lambda row: True, "failed", "image tokens do not match")
    recipe = load_recipe("debug")
    shutil.rmtree(mine / "embeddings")  # rows of unchanged keys would be kept
    run_stage(STAGES["embeddings"], mine, recipe, max_failures=1.0)
    pack.run(mine, recipe)
    said = cli("c2vl-train", "pretrain", "--data", mine, "--out", tmp_path / "run")
    assert said.code == 1
    assert "image tokens do not match" in said.err
    assert "nobody" not in said.err
    assert "knowledge=vision" in said.err


# ------------------------------------------------------------------------------------------------ remedies


@pytest.mark.parametrize(("dataset", "again"), [("generic", True), ("synthetic", False), ("ntu60", False)])
def test_a_mended_table_has_a_command_of_its_own(work, dataset, again):
    index = replace(load(work), dataset=load_dataset(dataset))
    said = remedy_of(index)
    assert f"prompts --work {work} --retry-failed`" in said
    assert (f"prompts --work {work} --dataset {dataset} --data {index.root}`" in said) is again
