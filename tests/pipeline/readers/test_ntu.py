"""Skeleton files of NTU RGB+D: parsing and assembly against a reference."""

from __future__ import annotations

import bz2
import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers.ntu import NtuFile, assemble_ntu, projected, read_ntu
from support import reference_ntu

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


def track(frames: Frames, name: str, rng: np.random.Generator, when: range | list[int], **how: float | bool) -> None:
    for number in when:
        frames[number][name] = body(rng, **how)


def empty(count: int) -> Frames:
    return [{} for _ in range(count)]


def parsed(frames: Frames, folder: Path) -> NtuFile:
    return read_ntu(write(folder / "made.skeleton", frames))


def agrees(frames: Frames, folder: Path, config: SkeletonsConfig = CONFIG) -> np.ndarray:
    """Assert that the package gives what the reference gives, to the last bit; returns the joints."""
    made = assemble_ntu(parsed(frames, folder), config)
    joints, numbers = reference_ntu.assemble(frames, config.second_body == "copy", config.max_frames, Counter())
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
        (lambda lines: [], "1: file ends where the number of frames was expected; download it again"),
        (lambda lines: lines[:1], "2: file ends where the number of bodies was expected; download it again"),
        (lambda lines: lines[:2], "3: file ends where a body line was expected; download it again"),
        (lambda lines: lines[:10], "11: file ends where a joint line was expected; download it again"),
        (lambda lines: lines[:29], "30: file ends where the number of bodies was expected; download it again"),
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
    assert str(caught.value) == f"{path}:30: body 'a' appears twice in frame 1"


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.skeleton"
    lines_of(tmp_path)
    data = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(data) - 30, 40):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=rf"^{path}:\d+: "):
            read_ntu(path)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (put(7, "0 0 0 0 0 0 0 0 0 0 0 x"), "7: joint line is '0 0 0 0 0 0 0 0 0 0 0 x'; expected 12 numbers"),
        (put(7, "0 0 0 0 0 0 0 0 0 0 0 \0\0"), r"7: joint line is '0 0 0 0 0 0 0 0 0 0 0 \x00\x00'; expected 12"),
        (put(7, "0 0 0 0 0 0 0 0 0 0 0 2 3"), "7: joint line is '0 0 0 0 0 0 0 0 0 0 0 2 3'; expected 12 numbers"),
        (put(7, "0 0 1e39 0 0 0 0 0 0 0 0 2"), "7: joint line is '0 0 1e39 0 0 0 0 0 0 0 0 2'; expected 12 numbers"),
        (put(7, "0 0 1e20000 0 0 0 0 0 0 0 0 2"), "7: joint line is '0 0 1e20000 0 0 0 0 0 0 0 0 2'; expected 12"),
        (put(7, "0 0 999999999999999999e22 0 0 0 0 0 0 0 0 2"), "7: joint line is '0 0 999999999999999999e22 0"),
        (put(2, "\0\0\0"), r"2: the number of bodies is '\x00\x00\x00'; expected a whole number up to 100"),
        (put(2, "1 1"), "2: the number of bodies is '1 1'; expected a whole number up to 100"),
        (put(3, ""), "3: body line has 0 fields; expected 10"),
    ],
)  # fmt: skip
def test_holes_and_foreign_characters_are_refused_with_file_and_line(
    tmp_path: Path, damage: Callable[[list[str]], list[str]], expected: str
) -> None:
    path = tmp_path / "made.skeleton"
    path.write_text("\n".join(damage(lines_of(tmp_path))) + "\n")
    for pixels in (False, True):
        with pytest.raises(DataError) as caught:
            read_ntu(path, pixels=pixels)
        assert str(caught.value).startswith(f"{path}:{expected}")


def test_of_two_mistakes_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "made.skeleton"
    lines = lines_of(tmp_path)
    twice = [lines[0], "2", *lines[2:29], *lines[2:29], *lines[29:]]
    twice[20] = "0 0 o.5 0 0 0 0 0 0 0 0 2"
    path.write_text("\n".join([*twice[:70], "broken", *twice[71:]]))
    for line, reason in ((21, "joint line"), (30, "body 'a' appears twice in frame 1"), (71, "joint line")):
        with pytest.raises(DataError) as caught:
            read_ntu(path)
        assert str(caught.value).startswith(f"{path}:{line}: {reason}")
        if line == 21:
            twice[20] = lines[20]
        else:
            twice[29] = twice[29].replace("a", "b", 1)
        path.write_text("\n".join([*twice[:70], "broken", *twice[71:]]))


def test_an_absent_file_stays_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ntu(tmp_path / "none.skeleton")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.skeleton"
    path.write_bytes(b"2\n\xff\xfe")
    with pytest.raises(DataError, match=rf"^{path}:2: is not text \(byte 0xff\); download it again$"):
        read_ntu(path)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda text: text.encode("utf-16"), "UTF-16: save it as UTF-8"),
        (lambda text: b"\xfe\xff" + text.encode("utf-16-be"), "UTF-16: save it as UTF-8"),
        (lambda text: text.encode("utf-16-le"), "UTF-16: save it as UTF-8"),
        (lambda text: gzip.compress(text.encode()), "compressed by gzip: gunzip it"),
        (lambda text: bz2.compress(text.encode()), "compressed by bzip2: bunzip2 it"),
    ],
)
def test_text_in_another_form_is_named(tmp_path: Path, change: Callable[[str], bytes], remedy: str) -> None:
    path = tmp_path / "made.skeleton"
    path.write_bytes(change("1\n0\n"))
    with pytest.raises(DataError) as caught:
        read_ntu(path)
    assert str(caught.value) == f"{path}:1: is {remedy}"


def test_a_byte_order_mark_is_passed_over(raw: Path, tmp_path: Path) -> None:
    source = next(iter(sorted(raw.rglob("*.skeleton"))))
    path = tmp_path / "made.skeleton"
    path.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    made, plain = read_ntu(path), read_ntu(source)
    assert made.frames == plain.frames
    for body, track in plain.tracks.items():
        np.testing.assert_array_equal(made.tracks[body].joints, track.joints)
    path.write_bytes(b"\xef\xbb\xbf1\nmany\n")
    with pytest.raises(DataError, match=f"^{path}:2: "):
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


def test_a_body_just_as_wide_as_the_limit_is_wide(tmp_path: Path) -> None:
    # 0.8 as a float32 is more than 0.8, and the scripts compared in float64 when the public arrays were made
    rng = np.random.default_rng(5)
    frames = empty(20)
    track(frames, "person", rng, range(20), scale=0.1)
    track(frames, "edge", rng, range(20), scale=3.0)
    for rows in frames:
        rows["edge"][:, 0] = np.linspace(0, 0.8, 25)
        rows["edge"][:, 1] = np.linspace(0, 1, 25)
    assert not agrees(frames, tmp_path)[:, 1].any()


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
    assert reference_ntu.variance(every) < reference_ntu.variance(person) < reference_ntu.variance(good)
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


def test_a_clip_whose_bodies_all_joined_the_first_actor_keeps_its_zeros(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    frames = empty(30)
    track(frames, "a", rng, range(15), scale=1.0)
    track(frames, "b", rng, range(15, 30), scale=0.1)
    joints = agrees(frames, tmp_path, SkeletonsConfig(second_body="copy"))
    assert joints[:, 0].any(axis=(1, 2)).all()
    assert not joints[:, 1].any()


def test_a_frame_of_zeros_is_nobody(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    frames = empty(6)
    track(frames, "a", rng, range(6))
    frames[2]["a"][:] = 0
    assert agrees(frames, tmp_path).shape == (5, 2, 25, 3)


def test_a_file_of_empty_frames_gives_no_joints(tmp_path: Path) -> None:
    made = assemble_ntu(parsed(empty(5), tmp_path), CONFIG)
    assert (made.joints.shape, made.frames_in_file, made.bodies) == ((0, 2, 25, 3), 5, 0)


# --------------------------------------------------------------------------------- against the reference

EACH = 80
HAPPENED: Counter[str] = Counter()


@pytest.mark.slow
@pytest.mark.parametrize("kind", reference_ntu.KINDS)
def test_made_files_agree_with_the_reference_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(reference_ntu.KINDS.index(kind))
    path = tmp_path / "made.skeleton"
    for number in range(EACH):
        text = reference_ntu.make(rng, kind)
        path.write_text(text, newline="\r\n" if number % 4 == 0 else "\n")
        config = SkeletonsConfig(
            second_body="copy" if number % 3 == 0 else "zeros", max_frames=8 if number % 5 == 0 else 300
        )
        frames = reference_ntu.read(path)
        joints, numbers = reference_ntu.assemble(frames, config.second_body == "copy", config.max_frames, HAPPENED)
        HAPPENED[f"{len({name for bodies in frames for name in bodies})} bodies"] += 1
        made = assemble_ntu(read_ntu(path, pixels=number % 2 == 0), config)
        assert made.joints.dtype == joints.dtype == np.float32
        np.testing.assert_array_equal(made.joints, joints)
        assert made.frame_index.tolist() == numbers
        assert made.frames_in_file == len(frames)


def test_the_made_files_show_every_case() -> None:
    if sum(HAPPENED[f"{n} bodies"] for n in range(6)) < EACH * len(reference_ntu.KINDS):
        pytest.skip("counts what the test above met, all of it")
    assert EACH * len(reference_ntu.KINDS) >= 1000
    rare = {"0 bodies"}
    assert {name: n for name, n in HAPPENED.items() if n < 10 and name not in rare} == {}
    assert len(HAPPENED) == 19
