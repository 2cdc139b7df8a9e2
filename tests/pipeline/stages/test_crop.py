"""The crop stage: frames of damaged, missing and short videos, and the size of crops."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.recipe import CropConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import Video, decode_jpeg, plan_frames
from c2vl_pipeline.stages import crop, index
from support.video import FRAMES, cut, edited, faststart, film, matroska, turned


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
    assert f"planned frame 56 of 60 advertised, the video ends after {decoded}: 12,602 of 21,004 bytes" in lost["error"]
    assert "download it again" in lost["error"]
    whole = [r for r in rows if r["sample_id"] == "b"]
    assert {r["status"] for r in whole[1:]} == {"ok"}
    assert {(r["frames_advertised"], r["frames_decoded"]) for r in whole} == {(FRAMES, FRAMES)}


SLIDES = [*range(0, 500, 20), *range(1000, 18_000, 1000)]
"""Times of 42 frames, for which 852 are advertised."""

MISCOUNTED = {
    "a recording that goes on as a slide show": lambda p: matroska(p / "x.mkv", SLIDES),
    "a slide show after three frames": lambda p: matroska(p / "x.mkv", [0, 40, 80, *range(1000, 40_000, 1000)]),
    "a stream that starts late": lambda p: matroska(p / "x.mkv", range(7000, 8386, 33)),
    "a length that is too short": lambda p: matroska(p / "x.mkv", range(0, 1386, 33), length=300),
    "no length": lambda p: matroska(p / "x.mkv", range(0, 1386, 33), length=None),
    "a length of years": lambda p: matroska(p / "x.mkv", range(0, 1386, 33), length=1e12),
    "a cut by an edit list": lambda p: edited(film(p / "x.mp4", codec="mp4v"), 18),
    "a guess by the bit rate": lambda p: film(p / "x.mpg", frames=42, codec="mp1v"),
    "one frame": lambda p: matroska(p / "x.mkv", [0]),
}


@pytest.mark.parametrize("what", MISCOUNTED)
def test_frames_are_planned_over_those_that_exist_whatever_the_container_advertises(tmp_path: Path, what: str) -> None:
    (tmp_path / "own").mkdir()
    path = MISCOUNTED[what](tmp_path / "own")
    there = 1 if what == "one frame" else 42
    rows = crops_of(own(tmp_path / "own", f"a,{path.name},,", f"b,{path.name},0,1"), tmp_path / "w")
    whole = [r for r in rows if r["sample_id"] == "a"]
    assert [r["frame_index"] for r in whole] == plan_frames(0, there, 8)
    assert {r["frames_decoded"] for r in whole} == {there}
    assert {r["status"] for r in rows} <= {"ok", "no_person"}
    assert [r["frame_index"] for r in rows if r["sample_id"] == "b"] == [0] * 8


@pytest.mark.parametrize("name", ["x.mkv", "x.mp4", "zeros.mkv", "x.flv"])
def test_a_video_of_which_bytes_are_missing_is_truncated(tmp_path: Path, name: str) -> None:
    folder = own(tmp_path / "own", f"a,{name},,")
    codec = {".mkv": "FFV1", ".mp4": "mp4v", ".flv": "FLV1"}[Path(name).suffix]
    path = film(folder / name, codec=codec)
    size = (faststart(path) if codec == "mp4v" else path).stat().st_size
    cut(path, 0.75 if codec == "mp4v" else 0.6)
    if name.startswith("zeros"):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    rows = crops_of(folder, tmp_path / "w")
    assert [r["frame_index"] for r in rows] == plan_frames(0, FRAMES, 8)
    assert (rows[-1]["status"], rows[-1]["error_class"]) == ("truncated_video", "truncated")
    assert rows[-1]["error"].endswith("download it again")
    assert 0 < sum(r["status"] != "truncated_video" for r in rows) < 8


def test_a_range_of_a_miscounted_video_is_read_where_it_says_and_one_that_fits_none_is_named(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.mkv,10,30", "b,x.mkv,35,60", "c,x.mkv,34,", "d,x.mkv,50,")
    matroska(folder / "x.mkv", SLIDES)
    rows = {s: [r for r in crops if r["sample_id"] == s] for s in "abcd" for crops in [crops_of(folder, tmp_path / s)]}
    assert [r["frame_index"] for r in rows["a"]] == plan_frames(10, 30, 8)
    assert {r["status"] for r in rows["a"]} == {"ok"}
    assert [r["frame_index"] for r in rows["c"]] == plan_frames(34, 42, 8)
    assert {r["status"] for r in rows["c"]} == {"ok"}
    assert [r["error_class"] for r in rows["b"]] == [None] * 2 + ["range"] * 6
    assert {(r["status"], r["error_class"]) for r in rows["d"]} == {("truncated_video", "range")}
    assert rows["d"][0]["error"].startswith("start_frame 50 is past the end of the video, which has 42 frames")


@pytest.mark.parametrize("behind", [0, 1, 2, 3])
def test_a_range_that_ends_a_frame_or_two_behind_its_video_is_planned_within_it(tmp_path: Path, behind: int) -> None:
    end = FRAMES + behind
    folder = own(
        tmp_path / "own", f"short,x.avi,{FRAMES - 4},{end}", f"long,x.avi,0,{end}", "early,x.avi,0,20", "open,x.avi,,"
    )
    film(folder / "x.avi")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in crops_of(folder, tmp_path / "w"):
        rows.setdefault(row["sample_id"], []).append(row)
    within = end if behind > 2 else FRAMES
    assert [r["frame_index"] for r in rows["short"]] == plan_frames(FRAMES - 4, within, 8)
    assert [r["error_class"] == "range" for r in rows["short"]] == [r["frame_index"] >= FRAMES for r in rows["short"]]
    assert [r["frame_index"] for r in rows["long"]] == plan_frames(0, end, 8)  # none of its frames is missing
    assert [r["frame_index"] for r in rows["early"]] == plan_frames(0, 20, 8)
    assert [r["frame_index"] for r in rows["open"]] == plan_frames(0, FRAMES, 8)
    everything = [r for name in ("long", "early", "open") for r in rows[name]]
    assert not {r["status"] for r in everything} & {"truncated_video", "decode_error"}


def test_a_video_without_a_frame_cannot_be_decoded(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.avi,,")
    film(folder / "x.avi", frames=0)
    rows = crops_of(folder, tmp_path / "w")
    assert {(r["status"], r["error_class"]) for r in rows} == {("decode_error", "empty")}


def test_a_turned_video_has_the_size_of_its_turned_frames(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", "a,x.mp4,40,48")
    turned(film(folder / "x.mp4", codec="mp4v"), 3)
    for row in crops_of(folder, tmp_path / "w"):
        assert (row["frame_width"], row["frame_height"], row["box"]) == (48, 64, [0, 0, 48, 64])
        assert decode_jpeg(row["jpeg"]).shape == (64, 48, 3)


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
    assert "bad.avi: OpenCV finds no video in it that it can decode (693 bytes)" in said["bad"]
    assert said["gone"] == "no video file"
    assert said["back"] == "start_frame 9 is not before end_frame 4"
    assert said["late"].startswith("frame 79 lies between start_frame and end_frame, the video ends after 60; correct")
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

    class Mislabelled(Video):
        """A video whose container states another size than its frames have."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.shape = 1, 1

    monkeypatch.setitem(engines.BACKENDS, ("detector", "skeleton"), entry)
    monkeypatch.setattr(crop, "Video", Mislabelled)
    assert digests(tmp_path / "mislabelled") == lent


def posed(folder: Path, name: str, height: int = 48) -> None:
    """Joints of a person who walks from 10 to 40 of 64 pixels, in image heights, y up."""
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.uniform(0, 8, 17), rng.uniform(8, 40, 17)], axis=1)
    pixels[0, 1], pixels[15:, 1] = 8, 40  # head up
    walk = pixels + np.stack([np.linspace(10, 32, FRAMES), np.zeros(FRAMES)], axis=1)[:, None]
    np.save(folder / name, (walk / height * [1, -1] + [0, 1]).astype(np.float32))


def boxes(work: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path in sorted((work / "crops").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found.setdefault(row["sample_id"], []).append(row["box"] or row["status"])
    return found


def filmed(folder: Path, work: Path, *lines: str, engine: str | None = None, layout: str = "coco_17") -> str:
    """Index own clips with joints, crop them, and return the backend that was used."""
    folder.mkdir(exist_ok=True)
    (folder / "samples.csv").write_text("\n".join(["sample_id,video,skeleton,start_frame,end_frame", *lines]) + "\n")
    if not (folder / "v.avi").exists():
        film(folder / "v.avi")
        posed(folder, "x.npy")
    recipe = load_recipe("heuristic", ["pipeline.frames=8", *([f"pipeline.crop.engine={engine}"] if engine else [])])
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="heuristic", layout=layout)
    runner.run_stage(crop.STAGE, work, recipe, max_failures=1.0)
    return str(json.loads((work / "crops" / "stage.json").read_text())["inputs"]["engine"]["backend"])


def test_own_2d_joints_place_the_crops(tmp_path: Path) -> None:
    assert filmed(tmp_path / "own", tmp_path / "w", "a,v.avi,x.npy,,", "b,v.avi,x.npy,20,60") == "skeleton"
    found = boxes(tmp_path / "w")
    for name, frames in (("a", plan_frames(0, 60, 8)), ("b", plan_frames(20, 60, 8))):
        for (x0, y0, x1, y1), frame in zip(found[name], frames, strict=True):
            left = 10 + 22 * frame / 59
            assert x0 == pytest.approx(left, abs=6)
            assert x1 == pytest.approx(left + 8, abs=6)
            assert (y0, y1) == (pytest.approx(8, abs=8), pytest.approx(40, abs=8))


def test_crops_by_joints_follow_a_segment_that_was_saved_alone(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    filmed(folder, tmp_path / "w", "b,v.avi,x.npy,20,60")
    np.save(folder / "y.npy", np.load(folder / "x.npy")[20:])
    filmed(folder, tmp_path / "v", "b,v.avi,y.npy,20,60")
    assert boxes(tmp_path / "w") == boxes(tmp_path / "v")


@pytest.mark.parametrize(
    "lines", [("a,v.avi,x.npy,,", "b,v.avi,,,"), ("a,v.avi,pixels.npy,,",), ("a,v.avi,centred.npy,,",)]
)
def test_crops_are_found_by_motion_unless_all_joints_are_in_the_image(tmp_path: Path, lines) -> None:
    folder = tmp_path / "own"
    filmed(folder, tmp_path / "x", "a,v.avi,x.npy,,")
    joints = np.load(folder / "x.npy")
    np.save(folder / "pixels.npy", joints * 480)
    np.save(folder / "centred.npy", joints - joints[:, :1])
    assert filmed(folder, tmp_path / "w", *lines) == "motion"


@pytest.mark.parametrize(
    ("array", "layout", "status", "why"),
    [
        (
            np.ones((60, 25, 3)),
            "kinect_v2",
            "missing_skeleton",
            "with 3D joints (kinect_v2) records no joints in pixels",
        ),
        (np.random.default_rng(0).uniform(100, 900, (60, 17, 2)), "coco_17", "decode_error", "pixels? Divide them"),
        (np.full((60, 17, 2), np.nan), "coco_17", "no_person", None),
    ],
)
def test_joints_that_place_no_crop_say_the_true_reason(tmp_path: Path, array, layout: str, status: str, why) -> None:
    (tmp_path / "own").mkdir()
    np.save(tmp_path / "own" / "x.npy", array)
    film(tmp_path / "own" / "v.avi")
    filmed(tmp_path / "own", tmp_path / "w", "a,v.avi,x.npy,,", engine="skeleton", layout=layout)
    (path,) = (tmp_path / "w" / "crops").glob("*.parquet")
    for row in pq.read_table(path).to_pylist():
        assert row["status"] == status
        assert why is None or why in row["error"]


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
