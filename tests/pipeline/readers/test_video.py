"""Reading of videos: planned frames, decoding and the shape of images."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_pipeline.readers.video import Deadline, Video, decode_jpeg, encode_jpeg, plan_frames, shape_image
from support.video import FRAMES, cut, edited, film, matroska, turned

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
    assert str(caught.value).startswith(f"{path}: ")
    assert f"({len(data)} bytes)" in str(caught.value)
    assert "convert it to MP4" in str(caught.value)


def test_an_absent_video_is_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Video(tmp_path / "none.avi")


@pytest.mark.parametrize("length", [None, 0, -500, 1e12, float("nan")])
def test_a_length_that_cannot_be_is_no_number_of_frames(tmp_path: Path, length: float | None) -> None:
    with Video(matroska(tmp_path / "x.mkv", range(0, 1980, 33), length=length)) as video:
        assert video.advertised == 0
        assert video.count() == 60
        assert len(dict(video.frames([0, 59]))) == 2


def test_a_plan_is_made_again_where_the_count_misses_by_more_than_one_or_a_frame_is_not_there(tmp_path: Path) -> None:
    def miscounted(path: Path, slots: int) -> bool:
        with Video(path) as video:
            planned = plan_frames(0, video.count(), slots)
            video.drain()
            return video.miscounted(planned)

    assert not miscounted(film(tmp_path / "a.avi"), 16)
    assert not miscounted(matroska(tmp_path / "b.mkv", range(0, 900, 30), length=930), 4)  # 31 for 30
    assert miscounted(matroska(tmp_path / "b.mkv", range(0, 900, 30), length=930), 31)
    assert miscounted(matroska(tmp_path / "c.mkv", range(0, 900, 30), length=960), 4)
    assert miscounted(matroska(tmp_path / "d.mkv", range(0, 900, 30), length=840), 4)
    assert miscounted(edited(film(tmp_path / "e.mp4", codec="mp4v"), 30), 4)


def test_a_rotation_tag_turns_every_frame(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "x.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30, (64, 48))
    image = np.zeros((48, 64, 3), np.uint8)
    image[:10] = 250
    for _ in range(4):
        writer.write(image)
    writer.release()
    for quarters, bright in enumerate([np.s_[:5], np.s_[:, -5:], np.s_[-5:], np.s_[:, :5]]):
        with Video(turned(tmp_path / "x.mp4", quarters)) as video:
            seen = [found.copy() for _, found in video.frames([0, 3], lent=True)]
        for found in seen:
            assert found.shape == ((64, 48, 3) if quarters % 2 else (48, 64, 3))
            assert found[bright].mean() > 200
            assert found.mean() < 100


def test_lent_frames_are_the_same_pixels_in_the_decoders_order(raw: Path) -> None:
    path = next((raw / "nturgb+d_rgb").iterdir())
    with Video(path) as own_copy, Video(path) as lent:
        for (n, rgb), (m, bgr) in zip(own_copy.frames([2, 5, 9]), lent.frames([2, 5, 9], lent=True), strict=True):
            assert n == m
            assert not np.array_equal(rgb, bgr)
            np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_a_suspected_file_is_named_only_while_it_is_read(tmp_path: Path) -> None:
    deadline = Deadline(60, mark := tmp_path / "mark")
    with suppress(DataError), deadline.suspecting("a.avi", ["a1", "a2"]):
        assert json.loads(mark.read_text()) == {"name": "a.avi", "samples": ["a1", "a2"]}
        raise DataError("unreadable")
    assert not mark.exists()
    deadline.close()


# --------------------------------------------------------------------------------------------- shaping


def test_pad_centres_the_image_on_clips_mean_colour() -> None:
    image = np.full((4, 10, 3), 7, np.uint8)
    square = shape_image(image, "pad")
    assert square.shape == (10, 10, 3)
    np.testing.assert_array_equal(square[3:7], image)
    np.testing.assert_array_equal(square[:3], np.full((3, 10, 3), (122, 116, 104)))
    np.testing.assert_array_equal(square[7:], np.full((3, 10, 3), (122, 116, 104)))
    np.testing.assert_array_equal(shape_image(image.transpose(1, 0, 2).copy(), "pad"), square.transpose(1, 0, 2))


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
    assert str(caught.value) == "a stored crop of 7 bytes is not a JPEG, or too large; run the crop stage again"
