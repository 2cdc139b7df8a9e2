"""Skeleton files: strict parsing, the assembly of bodies against a slow reference, and the other formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from c2vl_manifests.config import SkeletonsConfig
from c2vl_manifests.errors import DataError
from c2vl_manifests.layouts import KINECT_V1, Layout
from c2vl_pipeline.skeletons import (
    NtuFile,
    assemble_ntu,
    projected,
    read_array,
    read_ntu,
    read_pku,
    read_utd,
)

CONFIG = SkeletonsConfig()
Frames = list[dict[str, np.ndarray]]
"""A .skeleton file: one dict a frame, body id to (25, 12) float32."""


def write(path: Path, frames: Frames) -> Path:
    lines = [str(len(frames))]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, rows in bodies.items():
            lines += [f"{body} 0 1 1 1 1 0 0.01 -0.2 2", "25"]
            lines += [" ".join(repr(float(v)) for v in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def body(rng: np.random.Generator, scale: float = 0.05, at: float = 0.0, wide: bool = False) -> np.ndarray:
    """One body at one instant: upright (or lying), 25 joints around a place."""
    rows = rng.normal(size=(25, 12))
    size = (2.0, 0.5, 0.3) if wide else (0.3, 1.8, 0.3)
    place = rng.normal(size=3) * scale + at
    rows[:, :3] = rng.random((25, 3)) * size + place
    rows[0, :3], rows[24, :3] = place, place + size
    return rows.astype(np.float32)


def track(
    frames: Frames, name: str, rng: np.random.Generator, when: range | list[int], **how: float | bool
) -> None:
    for number in when:
        frames[number][name] = body(rng, **how)  # type: ignore[arg-type]


def empty(count: int) -> Frames:
    return [{} for _ in range(count)]


def parsed(frames: Frames, folder: Path) -> NtuFile:
    return read_ntu(write(folder / "made.skeleton", frames))


# ------------------------------------------------------------------------------------------- reference


def variance(joints: list[np.ndarray]) -> float:
    stacked = np.concatenate(joints)  # all joints of all frames, (n * 25, 3)
    return float(sum(np.var(stacked[:, axis]) for axis in range(3)))


def reference(  # noqa: PLR0912
    frames: Frames, config: SkeletonsConfig
) -> tuple[np.ndarray, list[int]]:
    """Steps 1 to 4 of the design's datasets.md, one sentence at a time."""
    valid = [i for i, bodies in enumerate(frames) if bodies]
    found: dict[str, dict] = {}
    for at, number in enumerate(valid):
        for name, rows in frames[number].items():
            if name not in found:
                found[name] = {"joints": [], "interval": []}
            mine = found[name]
            mine["joints"].append(rows[:, :3])
            mine["interval"].append(mine["interval"][-1] + 1 if mine["interval"] else at)
    kept = list(found.values())
    if len(kept) >= 2:
        for mine in kept:
            mine["motion"] = variance(mine["joints"])
        long = [m for m in kept if len(m["joints"]) > 11]
        kept = long if long else [max(kept, key=lambda m: len(m["joints"]))]
        for mine in list(kept):
            if len(kept) == 1:
                break
            good = []
            for joints in mine["joints"]:
                width = joints[:, 0].max() - joints[:, 0].min()
                height = joints[:, 1].max() - joints[:, 1].min()
                if width <= np.float32(0.8) * height:
                    good.append(joints)
            bad = 1 - len(good) / len(mine["joints"])
            if bad >= 0.69754:
                kept = [m for m in kept if m is not mine]
            else:
                mine["motion"] = min(mine["motion"], variance(good))
        if len(kept) > 1:
            kept.sort(key=lambda m: m["motion"], reverse=True)
    out = np.zeros((len(valid), 2, 25, 3), np.float32)
    spans: list[list[int]] = []
    for mine in kept:
        first, last = mine["interval"][0], mine["interval"][-1]
        if not spans:
            actor = 0
            spans = [[first, last], [0, 0]]
        elif min(spans[0][1], last) - max(spans[0][0], first) <= 0:
            actor = 0
        elif min(spans[1][1], last) - max(spans[1][0], first) <= 0:
            actor = 1
        else:
            continue
        for offset, joints in enumerate(mine["joints"]):
            out[first + offset, actor] = joints
        spans[actor] = [min(spans[actor][0], first), max(spans[actor][1], last)]
    stay = [i for i in range(len(out)) if out[i].sum() != 0]
    out, numbers = out[stay], [valid[i] for i in stay]
    there = [[bool(out[t, m].any()) for m in range(2)] for t in range(len(out))]
    origin = next((out[t, 0, 1].copy() for t in range(len(out)) if there[t][0]), None)
    for t in range(len(out)):
        for m in range(2):
            if there[t][m] and origin is not None:
                out[t, m] -= origin
    if config.second_body == "copy" and not any(row[1] for row in there):
        out[:, 1] = out[:, 0]
    return out[: config.max_frames], numbers[: config.max_frames]


def agrees(frames: Frames, folder: Path, config: SkeletonsConfig = CONFIG) -> np.ndarray:
    """Assert that the package gives what the reference gives, to the last bit; returns the joints."""
    made = assemble_ntu(parsed(frames, folder), config)
    joints, numbers = reference(frames, config)
    assert made.joints.dtype == np.float32
    np.testing.assert_array_equal(made.joints, joints)
    assert made.frame_index.tolist() == numbers
    assert made.frames_in_file == len(frames)
    return made.joints


# --------------------------------------------------------------------------------------------- parsing


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = empty(9)
    track(frames, "72057594037931101", rng, range(9))
    track(frames, "7", rng, [2, 3, 7])
    frames[5] = {}
    file = parsed(frames, tmp_path)
    assert file.frames == 9
    assert list(file.tracks) == ["72057594037931101", "7"]
    for name, found in file.tracks.items():
        numbers = [i for i, bodies in enumerate(frames) if name in bodies]
        assert found.frames.tolist() == numbers
        np.testing.assert_array_equal(found.joints, [frames[i][name][:, :3] for i in numbers])
        np.testing.assert_array_equal(found.pixels, [frames[i][name][:, 5:7] for i in numbers])


def test_projected_joints_are_the_colour_pixels_of_everybody_in_that_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = empty(3)
    track(frames, "a", rng, [0, 1])
    track(frames, "b", rng, [1])
    file = parsed(frames, tmp_path)
    seen = projected(file, 1)
    assert seen is not None
    np.testing.assert_array_equal(seen, [frames[1][b][:, 5:7] for b in "ab"])
    assert projected(file, 2) is None


def test_windows_line_ends_and_unprojectable_pixels_are_read(tmp_path: Path) -> None:
    frames = empty(2)
    track(frames, "a", np.random.default_rng(0), range(2))
    frames[1]["a"][3, 5:7] = -np.inf
    path = write(tmp_path / "made.skeleton", frames)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_ntu(path).tracks["a"].pixels[1, 3].tolist() == [-np.inf, -np.inf]


def lines_of(folder: Path) -> list[str]:
    frames = empty(2)
    track(frames, "a", np.random.default_rng(0), range(2))
    return write(folder / "made.skeleton", frames).read_text().splitlines()


def put(number: int, text: str) -> Callable[[list[str]], list[str]]:
    """Replace a line, counted from 1."""
    return lambda lines: [*lines[: number - 1], text, *lines[number:]]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda lines: [], "1: file ends where the number of frames should stand; download it again"),
        (lambda lines: lines[:1], "2: file ends where the number of bodies should stand; download it again"),
        (lambda lines: lines[:2], "3: file ends where a body line should stand; download it again"),
        (lambda lines: lines[:10], "11: file ends where a joint line should stand; download it again"),
        (lambda lines: lines[:29], "30: file ends where the number of bodies should stand; download it again"),
        (put(1, "two"), "1: the number of frames is 'two'; expected a whole number up to 200000"),
        (put(1, "-1"), "1: the number of frames is '-1'; expected a whole number up to 200000"),
        (put(1, "200001"), "1: the number of frames is '200001'; expected a whole number up to 200000"),
        (put(1, "9" * 5000), f"1: the number of frames is '{'9' * 40}'; expected a whole number up to 200000"),
        (put(2, "101"), "2: the number of bodies is '101'; expected a whole number up to 100"),
        (put(2, "9" * 9), "2: the number of bodies is '999999999'; expected a whole number up to 100"),
        (put(3, "a 1 1"), "3: body line has 3 fields; expected 10"),
        (put(4, "20"), "4: expected 25 joints"),
        (put(4, "26"), "4: the number of joints is '26'; expected a whole number up to 25"),
        (put(7, "0 0 o.5 0 0 0 0 0 0 0 0 2"), "7: joint line is '0 0 o.5 0 0 0 0 0 0 0 0 2'; expected 12 numbers"),
        (put(29, "0 0 0"), "29: joint line is '0 0 0'; expected 12 numbers"),
        (put(29, "0 0 0 0 0 0 0 0"), "29: joint line is '0 0 0 0 0 0 0 0'; expected 12 numbers"),
        (put(30, ""), "30: the number of bodies is ''; expected a whole number up to 100"),
        (put(33, "0 nan 0 0 0 0 0 0 0 0 0 2"), "33: joint line is '0 nan 0 0 0 0 0 0 0 0 0 2'; expected 12 numbers, the first three finite"),
    ],
)  # fmt: skip
def test_damage_is_refused_with_file_and_line(
    tmp_path: Path, damage: Callable[[list[str]], list[str]], expected: str
) -> None:
    path = tmp_path / "made.skeleton"
    lines = damage(lines_of(tmp_path))
    path.write_text("\n".join(lines) + ("\n" if lines else ""))
    with pytest.raises(DataError) as caught:
        read_ntu(path)
    assert str(caught.value).startswith(f"{path}:{expected}")


def test_a_body_that_stands_twice_in_a_frame_is_refused(tmp_path: Path) -> None:
    lines = lines_of(tmp_path)
    path = tmp_path / "made.skeleton"
    path.write_text("\n".join([lines[0], "2", *lines[2:29], *lines[2:29], *lines[29:]]) + "\n")
    with pytest.raises(DataError) as caught:
        read_ntu(path)
    assert str(caught.value) == f"{path}:30: body a stands twice in frame 1"


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.skeleton"
    lines_of(tmp_path)
    data = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(data) - 30, 40):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=rf"^{path}:\d+: "):
            read_ntu(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.skeleton"
    path.write_bytes(b"2\n\xff\xfe")
    with pytest.raises(DataError, match=rf"^{path}: cannot be read as text"):
        read_ntu(path)


# -------------------------------------------------------------------------------------------- assembly


def test_one_body_is_centred_on_its_first_spine_and_the_second_stays_zero(tmp_path: Path) -> None:
    frames = empty(20)
    track(frames, "a", np.random.default_rng(1), range(3, 20), at=2.0)
    joints = agrees(frames, tmp_path)
    assert joints.shape == (17, 2, 25, 3)
    assert not joints[0, 0, 1].any()
    assert not joints[:, 1].any()


def test_a_one_person_clip_may_copy_the_body(tmp_path: Path) -> None:
    frames = empty(15)
    track(frames, "a", np.random.default_rng(1), range(15))
    joints = agrees(frames, tmp_path, SkeletonsConfig(second_body="copy"))
    np.testing.assert_array_equal(joints[:, 1], joints[:, 0])
    track(frames, "b", np.random.default_rng(2), range(15), at=1.0)
    both = agrees(frames, tmp_path, SkeletonsConfig(second_body="copy"))
    assert not np.array_equal(both[:, 1], both[:, 0])


def test_the_body_that_moves_more_is_the_first_actor(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frames = empty(30)
    track(frames, "still", rng, range(30), scale=0.01)
    track(frames, "lively", rng, range(30), scale=1.0, at=5.0)
    joints = agrees(frames, tmp_path)
    first = np.stack([f["lively"][:, :3] for f in frames])
    np.testing.assert_array_equal(joints[:, 0], first - first[0, 1])


def test_a_third_body_fills_a_gap_or_is_dropped(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    frames = empty(50)
    track(frames, "a", rng, range(25), scale=1.0)
    track(frames, "b", rng, range(50), scale=0.5)
    track(frames, "c", rng, range(26, 50), scale=0.2)
    joints = agrees(frames, tmp_path)
    assert joints[:, 0].any(axis=(1, 2)).sum() == 49  # c continues a
    track(frames, "d", rng, range(10, 30), scale=0.1)
    np.testing.assert_array_equal(agrees(frames, tmp_path), joints)


def test_a_body_that_vanishes_and_returns_is_stitched(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frames = empty(40)
    track(frames, "a", rng, range(40), scale=0.1)
    track(frames, "b", rng, [*range(5, 15), *range(25, 35)], scale=1.0)
    joints = agrees(frames, tmp_path)
    there = np.flatnonzero(joints[:, 0].any(axis=(1, 2)))
    assert there.tolist() == list(range(5, 25))


def test_short_bodies_go_and_of_only_short_ones_the_longest_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    frames = empty(30)
    track(frames, "long", rng, range(30), scale=0.01)
    track(frames, "short", rng, range(11), scale=5.0)
    assert not agrees(frames, tmp_path)[:, 1].any()
    track(frames, "short", rng, range(12), scale=5.0)
    assert agrees(frames, tmp_path)[:, 1].any()
    frames = empty(20)
    track(frames, "a", rng, range(4))
    track(frames, "b", rng, range(6, 15))
    assert len(agrees(frames, tmp_path)) == 9


def test_wide_bodies_go_and_partly_wide_ones_lose_motion(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    frames = empty(20)
    track(frames, "person", rng, range(20), scale=0.1)
    track(frames, "sofa", rng, range(20), scale=3.0, wide=True)
    assert not agrees(frames, tmp_path)[:, 1].any()
    frames = empty(20)
    track(frames, "person", rng, range(20), scale=1.0)
    track(frames, "noisy", rng, range(10), scale=30.0, wide=True)
    track(frames, "noisy", rng, range(10, 20), scale=0.01)
    joints = agrees(frames, tmp_path)
    first = np.stack([f["person"][:, :3] for f in frames])
    np.testing.assert_array_equal(joints[:, 0], first - first[0, 1])


def test_the_motion_of_a_partly_wide_body_never_rises(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    frames = empty(20)
    shape, lying = body(rng, scale=0), body(rng, scale=0, wide=True)
    for number, rows in enumerate(frames):
        side = 3.0 if number % 2 else -3.0
        rows["noisy"] = lying.copy() if number < 6 else shape.copy()
        rows["noisy"][:, 2] += 0 if number < 6 else side
        rows["person"] = shape.copy()
        rows["person"][:, 2] += 0.93 * side
    every, good = ([f["noisy"][:, :3] for f in frames[start:]] for start in (0, 6))
    person = [f["person"][:, :3] for f in frames]
    assert variance(every) < variance(person) < variance(good)
    joints = agrees(frames, tmp_path)
    np.testing.assert_array_equal(joints[:, 0], np.stack(person) - person[0][1])


def test_the_interval_of_the_second_actor_begins_at_the_first_frame(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    frames = empty(40)
    track(frames, "a", rng, range(40), scale=3.0)
    track(frames, "b", rng, range(25, 40), scale=1.0)
    track(frames, "c", rng, range(3, 18), scale=0.1)  # free of b, and yet dropped: the public script's quirk
    joints = agrees(frames, tmp_path)
    assert np.flatnonzero(joints[:, 1].any(axis=(1, 2))).tolist() == list(range(25, 40))


def test_overlap_of_one_frame_passes_and_the_later_write_wins(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    frames = empty(30)
    track(frames, "a", rng, range(16), scale=1.0)
    track(frames, "b", rng, range(15, 30), scale=0.1)
    joints = agrees(frames, tmp_path)
    assert not joints[:, 1].any()
    np.testing.assert_array_equal(joints[15, 0], frames[15]["b"][:, :3] - frames[0]["a"][1, :3])


def test_a_file_of_empty_frames_gives_no_joints(tmp_path: Path) -> None:
    made = assemble_ntu(parsed(empty(5), tmp_path), CONFIG)
    assert (made.joints.shape, made.frames_in_file, made.bodies) == ((0, 2, 25, 3), 5, 0)


def random_file(rng: np.random.Generator) -> Frames:
    frames = empty(int(rng.integers(1, 32)))
    for name in "abcd"[: rng.integers(1, 5)]:
        start, stop = sorted(rng.integers(0, len(frames) + 1, 2))
        when = [i for i in range(start, stop) if rng.random() > rng.choice([0.0, 0.0, 0.3])]
        noisy = rng.choice([0.0, 0.0, 0.5, 0.69, 0.9])
        scale, at = float(rng.choice([0.01, 0.1, 1.0])), float(rng.normal())
        for number in when:
            frames[number][name] = body(rng, scale, at, wide=bool(rng.random() < noisy))
    return frames


def test_hundreds_of_random_files_agree_with_the_reference_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    actors = set()
    for number in range(200):
        config = SkeletonsConfig(
            second_body="copy" if number % 3 == 0 else "zeros", max_frames=8 if number % 5 == 0 else 300
        )
        joints = agrees(random_file(rng), tmp_path, config)
        actors.add(int(joints.any(axis=(0, 2, 3)).sum()))
    assert actors == {0, 1, 2}


# ------------------------------------------------------------------------------------------------- UTD


def utd(path: Path, array: np.ndarray) -> Path:
    scipy.io.savemat(path, {"d_skel": array})
    return path


def test_utd_joints_are_reordered_and_centred_on_the_first_hip(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(20, 3, 7))
    made = read_utd(utd(tmp_path / "x.mat", array))
    assert made.joints.shape == (7, 1, 20, 3)
    assert (made.frames_in_file, made.bodies) == (7, 1)
    single = array.astype(np.float32)
    hip, head = KINECT_V1.names.index("hip_centre"), KINECT_V1.names.index("head")
    np.testing.assert_array_equal(made.joints[:, 0, hip], (single[3] - single[3, :, :1]).T)
    np.testing.assert_array_equal(made.joints[:, 0, head], (single[0] - single[3, :, :1]).T)
    np.testing.assert_array_equal(made.joints[:, 0, 19], (single[19] - single[3, :, :1]).T)


def test_utd_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = utd(tmp_path / "x.mat", np.zeros((20, 3)))
    with pytest.raises(DataError) as caught:
        read_utd(path)
    assert str(caught.value) == f"{path}: d_skel has the shape (20, 3); expected (20, 3, frames)"
    array = np.ones((20, 3, 4))
    array[3, 1, 2] = np.nan
    with pytest.raises(DataError, match="holds NaN or infinite joints; expected finite metres"):
        read_utd(utd(path, array))
    scipy.io.savemat(path, {"other": array})
    with pytest.raises(DataError, match="not a MATLAB file with d_skel \\(KeyError"):
        read_utd(path)
    for data in (b"", b"MATLAB 5.0 MAT-file", bytes(500)):
        path.write_bytes(data)
        with pytest.raises(DataError, match="not a MATLAB file with d_skel"):
            read_utd(path)


def test_utd_skeletons_have_as_many_frames_as_their_videos(shared: Path) -> None:
    files = sorted((shared / "utd_mhad" / "Skeleton").glob("*_skeleton.mat"))
    assert len(files) == 861
    for path in files[::123]:
        made = read_utd(path)
        name = path.name.replace("_skeleton.mat", "_depth.mp4")
        capture = cv2.VideoCapture(str(shared / "utd_mhad" / "Depth_video" / name))
        count = 0
        while capture.grab():
            count += 1
        assert made.frames_in_file == count > 30
        assert len(made.joints) == count
        height = np.ptp(made.joints[:, 0, :, 1], axis=1)
        assert 1.0 < np.median(height) < 2.2  # metres, upright
        assert (made.joints[:, 0, 3, 1] > made.joints[:, 0, 15, 1]).all()  # head above foot


# ------------------------------------------------------------------------------------------------- PKU


def pku(path: Path, joints: np.ndarray) -> Path:
    np.savetxt(path, joints.reshape(len(joints), 150), fmt="%.9g")
    return path


@pytest.fixture
def walk() -> np.ndarray:
    """(T, 2, 25, 3): two bodies, the second absent at first; frame 4 holds nobody."""
    joints = np.random.default_rng(0).normal(size=(12, 2, 25, 3)).astype(np.float32)
    joints[:6, 1] = 0
    joints[4] = 0
    return joints


def test_pku_cuts_the_frames_of_one_row_and_drops_empty_ones(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 2, 9, SkeletonsConfig(pku_norm="none"))
    np.testing.assert_array_equal(made.joints, walk[[2, 3, 5, 6, 7, 8]])
    assert made.frame_index.tolist() == [2, 3, 5, 6, 7, 8]
    assert made.frames_in_file == 7


def test_pku_first_frame_joint_2_becomes_the_origin(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, CONFIG)
    expected = walk[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]]
    absent = ~expected.any(axis=(2, 3))
    expected = expected - expected[0, 0, 1]
    expected[absent] = 0
    np.testing.assert_array_equal(made.joints, expected)


def test_pku_aimclr_puts_shoulders_along_x_and_keeps_lengths(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 0, 12, SkeletonsConfig(pku_norm="aimclr")).joints
    raw = walk[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]]
    there = raw.any(axis=(2, 3))
    assert not made[~there].any()
    assert not made[there][:, 20].any()
    across = made[there][:, 8] - made[there][:, 4]
    assert (across[:, 0] > 0).all()
    np.testing.assert_allclose(across[:, 2], 0, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(made[there], axis=-1),
        np.linalg.norm(raw[there] - raw[there][:, 20:21], axis=-1),
        rtol=1e-4,
        atol=1e-5,
    )
    np.testing.assert_allclose(made[there][..., 1], (raw[there] - raw[there][:, 20:21])[..., 1], atol=1e-6)


def test_a_long_pku_clip_is_cut_in_its_centre(tmp_path: Path) -> None:
    joints = np.random.default_rng(0).normal(size=(11, 2, 25, 3)).astype(np.float32)
    config = SkeletonsConfig(pku_norm="none", max_frames=4)
    made = read_pku(pku(tmp_path / "x.txt", joints), 0, 11, config)
    assert made.frame_index.tolist() == [3, 4, 5, 6]
    np.testing.assert_array_equal(made.joints, joints[3:7])


def test_pku_beyond_the_end_of_the_file_gives_no_joints(tmp_path: Path, walk: np.ndarray) -> None:
    made = read_pku(pku(tmp_path / "x.txt", walk), 40, 50, CONFIG)
    assert made.joints.shape == (0, 2, 25, 3)


def test_pku_damage_is_refused_with_file_and_line(tmp_path: Path, walk: np.ndarray) -> None:
    path = pku(tmp_path / "x.txt", walk)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].rsplit(" ", 1)[0], *lines[4:]]))
    with pytest.raises(DataError) as caught:
        read_pku(path, 0, 12, CONFIG)
    assert str(caught.value) == f"{path}:4: 149 numbers; expected 150"
    assert len(read_pku(path, 5, 12, CONFIG).joints) == 7  # damage elsewhere is another sample's
    path.write_text("\n".join([*lines[:5], "x " + lines[5], *lines[6:]]))
    with pytest.raises(DataError, match=rf"^{path}:6: expected 150 numbers \("):
        read_pku(path, 0, 12, CONFIG)


# -------------------------------------------------------------------------------------------- own data

STICK = Layout("stick", ("hip", "knee", "foot"), (0, 0, 1), 2)


@pytest.mark.parametrize("shape", [(6, 3, 2), (6, 1, 3, 2), (6, 2, 3, 2), (6, 4, 3, 2)])
def test_own_arrays_of_either_shape_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", joints=array)
    full = (array if array.ndim == 4 else array[:, None])[:, :2].astype(np.float32)
    for name in ("x.npy", "x.npz"):
        made = read_array(tmp_path / name, STICK, 2)
        np.testing.assert_array_equal(made.joints, full - full[0, 0, 0])
        assert made.frame_index.tolist() == list(range(6))


def test_own_empty_frames_are_dropped_and_absent_bodies_stay_zero(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 2, 3, 2))
    array[0], array[2:, 1] = 0, 0
    np.save(tmp_path / "x.npy", array)
    made = read_array(tmp_path / "x.npy", STICK, 2)
    assert made.frame_index.tolist() == [1, 2, 3, 4]
    assert made.frames_in_file == 5
    assert made.joints[0, 1].any()
    assert not made.joints[1:, 1].any()


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((6, 4, 2)), "shape (6, 1, 4, 2); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 3)), "shape (6, 3); layout 'stick' needs (T, 3, 2) or (T, M, 3, 2)"),
        (np.zeros((6, 0, 3, 2)), "shape (6, 0, 3, 2); layout 'stick' needs"),
        (np.full((6, 3, 2), np.inf), "holds NaN or infinite joints; expected finite metres"),
        (np.full((6, 3, 2), "a"), "holds <U1; expected numbers, in metres"),
        (np.full((6, 3, 2), 1j), "holds complex128; expected numbers, in metres"),
        (np.full((6, 3, 2), None), "not a numpy array (Object arrays cannot be loaded when allow_pickle=False)"),
    ],
)  # fmt: skip
def test_own_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, expected: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError) as caught:
        read_array(tmp_path / "x.npy", STICK, 2)
    assert str(caught.value).startswith(f"{tmp_path / 'x.npy'}: {expected}")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_every_cut_of_an_own_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    array = np.random.default_rng(0).normal(size=(9, 3, 2))
    if name == "x.npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, joints=array)
    data = path.read_bytes()
    for cut in (0, 1, 6, 40, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="not a numpy array"):
            read_array(path, STICK, 2)


def test_an_absent_own_file_stays_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "none.npy", STICK, 2)
