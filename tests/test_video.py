"""Decoding: planned frames, cut and unreadable videos, aspect policies, and what the crop stage says of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import CropConfig
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.engines import Box
from c2vl_pipeline.engines.heuristic import SkeletonDetector
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import Video, decode_jpeg, encode_jpeg, plan_frames, shape_image
from c2vl_pipeline.stages import crop, index

FRAMES = 60


def film(path: Path, frames: int = FRAMES, size: tuple[int, int] = (64, 48), codec: str = "MJPG") -> Path:
    """Noise in which frame n is everywhere about 4 n bright, so that a decoded frame tells its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, size)
    rng = np.random.default_rng(0)
    for number in range(frames):
        writer.write((rng.integers(0, 4, (size[1], size[0], 3)) + 4 * number).astype(np.uint8))
    writer.release()
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def crops_of(folder: Path, work: Path, *overrides: str) -> list[dict[str, Any]]:
    """Index a folder of own data and run the crop stage; returns its rows."""
    recipe = load_recipe(
        "debug",
        ["pipeline.frames=8", "pipeline.crop.engine=motion", "pipeline.crop.engine.options.background=black", *overrides],
    )  # fmt: skip
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug", allow_missing=True)
    manifest = runner.run(crop.STAGE, work, recipe)
    assert manifest.complete
    rows = []
    for path in sorted((work / "crops").glob("*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return rows


# ------------------------------------------------------------------------------------------------ plan


@pytest.mark.parametrize(
    ("start", "end", "slots", "expected"),
    [
        (0, 16, 16, list(range(16))),
        (0, 32, 16, list(range(1, 32, 2))),
        (0, 90, 3, [15, 45, 75]),
        (100, 190, 3, [115, 145, 175]),
        (0, 7, 1, [3]),
        (0, 2, 5, [0, 0, 1, 1, 1]),
        (5, 6, 3, [5, 5, 5]),
        (4, 4, 3, []),
        (9, 4, 3, []),
    ],
)
def test_planned_frames_are_the_centres_of_equal_segments(
    start: int, end: int, slots: int, expected: list[int]
) -> None:
    assert plan_frames(start, end, slots) == expected


def test_a_plan_has_its_length_lies_within_and_never_goes_back() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, span, slots = (int(v) for v in rng.integers((0, 1, 1), (1000, 400, 40)))
        plan = plan_frames(start, start + span, slots)
        assert len(plan) == slots
        assert plan == sorted(plan)
        assert start <= plan[0] <= plan[-1] < start + span
        if span >= slots:
            assert len(set(plan)) == slots
            assert plan[0] - start <= span / slots


# -------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(("name", "codec"), [("x.avi", "MJPG"), ("x.mp4", "mp4v")])
def test_one_pass_gives_just_the_wanted_frames_in_order(tmp_path: Path, name: str, codec: str) -> None:
    path = film(tmp_path / name, codec=codec)
    plain, every = cv2.VideoCapture(str(path)), []
    while (step := plain.read())[0]:
        every.append(step[1][..., ::-1])
    assert len(every) == FRAMES
    with Video(path) as video:
        assert video.count() == FRAMES
        seen = dict(video.frames([40, 3, 3, 17]))
        assert list(seen) == [3, 17, 40]
        for number, image in seen.items():
            np.testing.assert_array_equal(image, every[number])
        assert video.decoded == 41


def test_frames_are_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))  # OpenCV's red
    writer.release()
    with Video(tmp_path / "x.avi") as video:
        _, image = next(video.frames([0]))
    assert image.shape == (48, 64, 3)
    assert image[..., 0].min() > 200
    assert image[..., 1:].max() < 60


def test_a_video_cut_to_60_percent_advertises_all_and_gives_the_beginning(tmp_path: Path) -> None:
    with Video(cut(film(tmp_path / "x.avi"))) as video:
        assert video.count() == FRAMES
        seen = [n for n, _ in video.frames(range(FRAMES))]
        assert seen == list(range(len(seen)))
        assert 20 < len(seen) < 50
        assert video.decoded == len(seen)


@pytest.mark.parametrize("data", [b"", b"garbage" * 99])
def test_a_file_that_is_no_video_says_its_size(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.avi"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        Video(path)
    assert (
        str(caught.value)
        == f"{path}: OpenCV cannot open it as a video ({len(data)} bytes); download it again"
    )


def test_an_absent_video_is_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "none.avi")


# ------------------------------------------------------------------------------------------ crop stage


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
    folder = own(
        tmp_path / "own", "bad,bad.avi,,", "gone,gone.avi,,", "none,,,", "back,y.avi,9,4", "late,y.avi,70,80"
    )
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
    manifest = runner.run(crop.STAGE, tmp_path / "w", recipe)
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


def test_lent_frames_are_the_same_pixels_in_the_decoders_order(raw: Path) -> None:
    path = next((raw / "nturgb+d_rgb").iterdir())
    with Video(path) as own_copy, Video(path) as lent:
        for (n, rgb), (m, bgr) in zip(
            own_copy.frames([2, 5, 9]), lent.frames([2, 5, 9], lent=True), strict=True
        ):
            assert n == m
            assert not np.array_equal(rgb, bgr)
            np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_an_engine_that_looks_at_no_pixels_gets_the_same_crops_stored(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("debug", ["pipeline.crop.engine=skeleton"])

    def digests(work: Path) -> list[str]:
        index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
        assert runner.run(crop.STAGE, work, recipe).statuses.keys() == {"ok"}
        return [json.loads(p.read_text())["digest"] for p in sorted((work / "crops").glob("shard-*.json"))]

    lent = digests(tmp_path / "lent")
    monkeypatch.setattr(SkeletonDetector, "needs", frozenset({"joints"}))
    assert digests(tmp_path / "converted") == lent


# --------------------------------------------------------------------------------------------- shaping


def test_pad_centres_the_image_on_clips_mean_colour() -> None:
    image = np.full((4, 10, 3), 7, np.uint8)
    square = shape_image(image, "pad")
    assert square.shape == (10, 10, 3)
    np.testing.assert_array_equal(square[3:7], image)
    np.testing.assert_array_equal(square[:3], np.full((3, 10, 3), (122, 116, 104)))
    np.testing.assert_array_equal(square[7:], np.full((3, 10, 3), (122, 116, 104)))
    np.testing.assert_array_equal(
        shape_image(image.transpose(1, 0, 2).copy(), "pad"), square.transpose(1, 0, 2)
    )


def test_squash_gives_a_square_center_crop_and_squares_are_left() -> None:
    image = np.random.default_rng(0).integers(0, 255, (4, 10, 3)).astype(np.uint8)
    assert shape_image(image, "squash").shape == (10, 10, 3)
    assert shape_image(image, "center_crop") is image
    for aspect in ("pad", "squash", "center_crop"):
        assert shape_image(image[:, :4], aspect) is not None
        np.testing.assert_array_equal(shape_image(image[:, :4], aspect), image[:, :4])


def test_jpegs_keep_shape_and_channel_order_and_garbage_is_refused() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200
    back = decode_jpeg(encode_jpeg(image, 95))
    assert back.shape == image.shape
    np.testing.assert_allclose(back, image, atol=4)
    with pytest.raises(DataError) as caught:
        decode_jpeg(b"no jpeg")
    assert str(caught.value) == "a stored crop of 7 bytes is not a JPEG; run the crop stage again"


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
