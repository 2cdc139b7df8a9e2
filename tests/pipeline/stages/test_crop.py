"""The crop stage: frames of damaged, missing and short videos, and the size of crops."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.recipe import CropConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import decode_jpeg, plan_frames
from c2vl_pipeline.stages import crop, index
from support.video import FRAMES, cut, film


def crops_of(folder: Path, work: Path, *overrides: str) -> list[dict[str, Any]]:
    """Index a folder of own data and run the crop stage; returns its rows."""
    recipe = load_recipe(
        "debug",
        ["pipeline.frames=8", "pipeline.crop.engine=motion", "pipeline.crop.engine.options.background=black", *overrides],
    )  # fmt: skip
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug", allow_missing=True)
    manifest = runner.run_stage(crop.STAGE, work, recipe, max_failures=1.0)
    assert manifest.complete
    rows = []
    for path in sorted((work / "crops").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


def own(folder: Path, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "samples.csv").write_text("\n".join(["sample_id,video,start_frame,end_frame", *lines]) + "\n")
    return folder


def test_a_cut_video_costs_only_the_frames_that_are_gone(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,", "b,y.avi,,")
    cut(film(folder / "x.avi"))
    film(folder / "y.avi")
    rows = crops_of(folder, tmp_path / "w")
    damaged = [r for r in rows if r["sample_id"] == "a"]
    assert [r["frame_index"] for r in damaged] == plan_frames(0, FRAMES, 8)
    there = [r["status"] != "truncated_video" for r in damaged]
    assert there == sorted(there, reverse=True)
    decoded = damaged[0]["frames_decoded"]
    assert 20 < decoded < 50
    assert sum(there) == sum(n < decoded for n in plan_frames(0, FRAMES, 8))
    for row in damaged:
        assert (row["frames_advertised"], row["frames_decoded"]) == (FRAMES, decoded)
    lost = damaged[-1]
    assert (lost["status"], lost["error_class"], lost["jpeg"]) == ("truncated_video", "truncated", None)
    assert lost["error"] == f"planned frame 56 of 60 advertised, the video ends after {decoded}"
    whole = [r for r in rows if r["sample_id"] == "b"]
    assert {r["status"] for r in whole[1:]} == {"ok"}
    assert {(r["frames_advertised"], r["frames_decoded"]) for r in whole} == {(FRAMES, FRAMES)}


def test_unreadable_absent_and_impossible_samples_keep_all_their_rows(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "bad,bad.avi,,", "gone,gone.avi,,", "none,,,", "back,y.avi,9,4", "late,y.avi,70,80")
    (folder / "bad.avi").write_bytes(b"garbage" * 99)
    film(folder / "y.avi")
    rows = crops_of(folder, tmp_path / "w")
    assert Counter((r["sample_id"], r["status"]) for r in rows) == {
        ("bad", "decode_error"): 8,
        ("gone", "missing_video"): 8,
        ("none", "missing_video"): 8,
        ("back", "failed"): 8,
        ("late", "truncated_video"): 8,
    }
    said = {r["sample_id"]: r["error"] for r in rows}
    assert said["bad"].endswith("bad.avi: OpenCV cannot open it as a video (693 bytes); download it again")
    assert said["gone"] == "no video file"
    assert said["back"] == "start_frame 9 is not before end_frame 4"
    assert said["late"] == "planned frame 79 of 60 advertised, the video ends after 60"
    assert [r["slot"] for r in rows] == list(range(8)) * 5


def test_a_video_deleted_after_indexing_is_missing(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi")
    recipe = load_recipe("debug", ["pipeline.crop.engine=motion"])
    index.build(load_dataset("generic"), folder, tmp_path / "w", recipe.pipeline, recipe="debug")
    (folder / "x.avi").unlink()
    manifest = runner.run_stage(crop.STAGE, tmp_path / "w", recipe, max_failures=1.0)
    assert manifest.statuses == {"missing_video": 4}


def test_a_clip_shorter_than_its_slots_repeats_frames(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,30,33")
    film(folder / "x.avi")
    rows = crops_of(folder, tmp_path / "w")
    assert [r["frame_index"] for r in rows] == [30, 30, 30, 31, 31, 32, 32, 32]
    assert {r["status"] for r in rows} == {"ok"}
    assert len({r["jpeg"] for r in rows}) == 3
    assert rows[0]["jpeg"] == rows[2]["jpeg"]


def test_samples_of_one_video_get_their_own_frames(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,0,40", "b,x.avi,20,60")
    film(folder / "x.avi")
    rows = crops_of(folder, tmp_path / "w", "pipeline.crop.jpeg_quality=100")
    for row in rows:
        if row["status"] == "ok":
            assert round((decode_jpeg(row["jpeg"]).mean() - 1.5) / 4) == row["frame_index"]
    assert [r["frame_index"] for r in rows] == plan_frames(0, 40, 8) + plan_frames(20, 60, 8)


def test_an_engine_that_looks_at_no_pixels_gets_the_same_crops_stored(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("debug", ["pipeline.crop.engine=skeleton"])

    def digests(work: Path) -> list[str]:
        index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
        assert runner.run_stage(crop.STAGE, work, recipe).statuses.keys() == {"ok"}
        return [json.loads(p.read_text())["digest"] for p in sorted((work / "crops").glob("shard-*.json"))]

    lent = digests(tmp_path / "lent")
    entry = engines.BACKENDS["detector", "skeleton"]
    both = replace(entry, reads=frozenset({"joints", "pixels"}))
    monkeypatch.setitem(engines.BACKENDS, ("detector", "skeleton"), both)
    assert digests(tmp_path / "converted") == lent


def test_a_crop_is_the_union_of_the_best_people_with_margin_within_the_frame() -> None:
    config = CropConfig(engine=EngineSpec(role="detector", backend="motion"), margin=0.1, max_people=2)
    people = [Box(20, 20, 40, 60, 1), Box(50, 10, 70, 50, 0.9), Box(0, 0, 99, 99, 0.1)]
    assert crop.union(people, config, 100, 100) == (15, 5, 75, 65)
    assert crop.union(people[:1], config, 100, 100) == (18, 16, 42, 64)
    assert crop.union([Box(-5, -5, 50, 200, 1)], config, 60, 90) == (0, 0, 56, 90)
    assert crop.union([Box(300, 300, 310, 310, 1)], config, 60, 90) == (59, 89, 60, 90)


def test_large_crops_shrink_to_the_longest_side_and_keep_their_form(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,40,48")
    film(folder / "x.avi", size=(160, 96))
    rows = crops_of(folder, tmp_path / "w", "pipeline.crop.max_side=80")
    for row in rows:
        assert decode_jpeg(row["jpeg"]).shape == (48, 80, 3)
        assert row["box"] == [0, 0, 160, 96]
        assert (row["frame_width"], row["frame_height"], row["people"]) == (160, 96, 1)
