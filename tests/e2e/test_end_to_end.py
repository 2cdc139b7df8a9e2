"""The whole road, as users walk it: commands in subprocesses, from raw data to table and report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.cli_output import link
from c2vl_manifests.manifest import read_stage_manifest
from c2vl_manifests.packed import read_packed_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from support import checkpoints
from support.factory import run_factory

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def command(*words: str | Path, code: int = 0) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(BIN / words[0]), *map(str, words[1:])], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def statuses(work: Path, stage: str, column: str = "status") -> Counter[str]:
    found: Counter[str] = Counter()
    for path in sorted((work / stage).glob("shard-*.parquet")):
        found.update(pq.read_table(path, columns=[column]).column(column).to_pylist())
    return found


def test_synthetic_videos_become_a_table_with_controls_and_a_report(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    text = command("c2vl-eval", "benchmark", "--data", work, "--benchmark", "xsub", "--out", out, "--recipe", "debug")
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == [
        "partition(cosine)",
        "random encoder",
        "supervised",
        "shuffled pairs",
        "raw joints",
    ]
    for row in results["rows"]:
        assert [result["protocol"] for result in row["results"]] == ["knn", "linear"]
        assert all(0 <= result["last"]["top1"] <= 1 for result in row["results"])
    for row in results["rows"]:
        assert row["name"] in text
    assert "Derived from joints" in text
    report = out / "report.html"
    assert f"report: {link(report)}" in text
    assert report.stat().st_size > 20_000


def test_every_expected_row_of_every_stage_is_accounted_for(work: Path, recipe: Recipe) -> None:
    samples = pq.read_table(work / "samples.parquet").num_rows
    for stage in ("crops", "captions", "embeddings"):
        keys: list[tuple[str, int]] = []
        for path in sorted((work / stage).glob("shard-*.parquet")):
            table = pq.read_table(path, columns=["sample_id", "slot"])
            keys += zip(table.column("sample_id").to_pylist(), table.column("slot").to_pylist(), strict=True)
        assert len(keys) == len(set(keys)) == samples * recipe.pipeline.frames
        manifest = read_stage_manifest(work / stage)
        assert manifest is not None
        assert manifest.complete
        assert sum(manifest.statuses.values()) == len(keys)


def tiny_recipe(folder: Path) -> Recipe:
    """The hf engines of all three roles on tiny random checkpoints of the true architectures, two frames a sample."""
    checkpoints.tiny_grounding_dino(folder / "dino")
    checkpoints.tiny_llava(folder / "llava")
    checkpoints.tiny_clip(folder / "clip")
    return load_recipe(
        "debug",
        [
            "pipeline.frames=2",
            "pipeline.crop.engine=hf-groundingdino-tiny",
            f"pipeline.crop.engine.model={folder / 'dino'}",
            "pipeline.crop.engine.dtype=float32",
            "pipeline.crop.engine.options.threshold=0.2",
            "pipeline.crop.engine.options.text_threshold=0.1",
            "pipeline.caption.engine=hf-llava-1.5-7b",
            f"pipeline.caption.engine.model={folder / 'llava'}",
            "pipeline.caption.engine.dtype=float32",
            "pipeline.caption.engine.options.max_new_tokens=4",
            "pipeline.embed.engine=hf-clip-vit-l-14-336",
            f"pipeline.embed.engine.model={folder / 'clip'}",
            "pipeline.embed.engine.dtype=float32",
        ],
    )


def test_tiny_random_checkpoints_of_the_real_architectures_run_the_whole_factory(raw: Path, tmp_path: Path) -> None:
    work = run_factory(raw, tmp_path / "work", tiny_recipe(tmp_path))
    rows = statuses(work, "crops")
    assert sum(rows.values()) == 32 * 2
    assert rows["ok"] > 0
    packed = read_packed_manifest(work / "packed")
    assert packed.engines["captions"]["backend"] == "hf"
    assert str(packed.engines["captions"]["revision_resolved"]).startswith("sha256:")
    assert not packed.derived_from_joints("language")


def test_a_missing_checkpoint_says_which_how_to_get_it_and_where_to_point(work: Path, tmp_path: Path) -> None:
    text = command("c2vl-pipeline", "caption", "--work", work, "--engine", "hf-llava-1.5-7b", code=1)
    assert len(text.strip().splitlines()) == 1
    assert "llava-hf/llava-1.5-7b-hf" in text
    assert "hf download" in text
    assert "--set pipeline.caption.engine.model=" in text


def test_utd_mhad_is_read_whole_and_split_as_published(shared: Path, tmp_path: Path) -> None:
    text = command(
        "c2vl-pipeline", "index", "--dataset", "utd-mhad", "--data", shared / "utd_mhad", "--work", tmp_path / "w"
    )
    assert "431 / 430  as published" in text
    command("c2vl-pipeline", "skeletons", "--work", tmp_path / "w", "--workers", "1")
    assert statuses(tmp_path / "w", "skeletons") == {"ok": 861}


def test_utd_mhad_depth_videos_give_a_person_in_every_frame(shared: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    command(
        "c2vl-pipeline",
        "index",
        "--dataset",
        "utd-mhad",
        "--data",
        shared / "utd_mhad",
        "--work",
        work,
        "--limit",
        "24",
    )
    for stage in ("skeletons", "crop", "caption", "embed"):
        command("c2vl-pipeline", stage, "--work", work, "--workers", "1")
    command("c2vl-pipeline", "pack", "--work", work)
    assert statuses(work, "crops") == {"ok": 24 * 16}
    assert statuses(work, "captions") == {"ok": 24 * 16}
    assert "complete" in command("c2vl-pipeline", "status", "--work", work)


@pytest.fixture
def walk_by(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "walk.mp4").symlink_to(shared / "videos" / "one-by-one-person-detection.mp4")
    spans = [(start, min(start + 100, 1394)) for start in range(0, 1394, 100)]
    lines = [f"walk{n:02d},walk.mp4,{a},{b},0,train" for n, (a, b) in enumerate(spans)]
    (folder / "samples.csv").write_text(
        "\n".join(["sample_id,video,start_frame,end_frame,label,split_mine", *lines]) + "\n"
    )
    return folder


def test_a_video_without_skeletons_is_accounted_for_and_leaves_pretraining(walk_by: Path, tmp_path: Path) -> None:
    work = tmp_path / "w"
    command("c2vl-pipeline", "prompts", "--dataset", "generic", "--data", walk_by, "--work", work, "--workers", "1")
    crops = statuses(work, "crops")
    assert sum(crops.values()) == 14 * 16
    # nobody is there in 44 to 49 of the 224 frames, depending on whether a shadow is a person
    assert 38 <= crops["no_person"] <= 50
    assert set(crops) == {"ok", "no_person"}
    assert statuses(work, "captions") == {"missing_skeleton": 14 * 16}
    first = pq.read_table(work / "crops" / "shard-00000.parquet").to_pylist()
    assert [r["status"] for r in first if r["sample_id"] == "walk00"][:9] == ["no_person"] * 9
    text = command("c2vl-train", "pretrain", "--data", work, "--benchmark", "mine", "--out", tmp_path / "run", code=1)
    assert "no usable train samples in mine; the first was left out because of missing_skeleton" in text


def test_tiny_checkpoints_account_for_every_row_of_three_real_colour_videos(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    videos = sorted(p for p in (shared / "videos").iterdir() if p.suffix in {".mp4", ".mkv"})
    assert len(videos) == 3
    for video in videos:
        (folder / video.name).symlink_to(video)
    (folder / "samples.csv").write_text("sample_id,video\n" + "".join(f"{v.stem},{v.name}\n" for v in videos))
    work = run_factory(folder, tmp_path / "work", tiny_recipe(tmp_path), "generic")
    crops, captions, vectors = (statuses(work, stage) for stage in ("crops", "captions", "embeddings"))
    assert sum(crops.values()) == sum(captions.values()) == sum(vectors.values()) == 3 * 2
    assert set(crops) <= {"ok", "no_person"}
    assert captions["ok"] == crops["ok"] > 0
