"""Parsing of NTU files: numbers, and arbitrary input."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.recipe import SkeletonsConfig
from c2vl_pipeline.readers import ntu
from c2vl_pipeline.readers.ntu import assemble_ntu, projected, read_ntu

CONFIG = SkeletonsConfig()


# --------------------------------------------------------------------------------------------- numbers


def numbers_file(path: Path, tokens: list[str]) -> Path:
    """Write tokens as colour pixels, 50 a body; the last body is filled up with zeros."""
    pairs = [*tokens, *["0"] * (-len(tokens) % 50)]
    bodies = [pairs[n : n + 50] for n in range(0, len(pairs), 50)]
    lines = [str(len(bodies))]
    for mine in bodies:
        lines += ["1", "a 0 1 1 1 1 0 0 0 2", "25"]
        lines += [f"1 2 3 4 5 {mine[n]} {mine[n + 1]} 0 0 0 0 2" for n in range(0, 50, 2)]
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_read_as_python_does(path: Path, tokens: list[str]) -> None:
    with np.errstate(over="ignore"):
        expected = np.array([np.float32(float(token)) for token in tokens])
    pixels = read_ntu(numbers_file(path, tokens)).tracks["a"].pixels
    assert pixels is not None
    found = pixels.reshape(-1)[: len(tokens)]
    wrong = np.flatnonzero(found.view(np.int32) != expected.view(np.int32))
    assert [(tokens[n], found[n], expected[n]) for n in wrong] == []


def test_numbers_of_every_length_are_float32_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=6000) * 10.0 ** rng.integers(-30, 31, 6000)
    forms = ("%.7g", "%.9g", "%.15g", "%.17g", "%.18e", "%.25f", "%.0f", "%d", "%+.3f", "%.40f", "%.3E", "%030.7f")
    near = [form % value for value in values for form in (forms[int(n)] for n in rng.integers(0, len(forms), 2))]
    assert_read_as_python_does(tmp_path / "made.skeleton", near)


def test_numbers_beside_the_middle_of_two_float32_are_rounded_as_python_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    low = np.abs(rng.integers(0x30000000, 0x4B000000, 3000).astype(np.int32).view(np.float32))
    middle = (low.astype(np.float64) + np.nextafter(low, np.float32(np.inf)).astype(np.float64)) / 2
    beside = [middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)]
    tokens = [form % value for values in beside for value in values for form in ("%.16g", "%.17g", "%.18g", "%.30g")]
    assert_read_as_python_does(tmp_path / "made.skeleton", tokens)


WORDS = ("nan", "NaN", "-nan", "inf", "-Infinity", "+INF", "1_000.5", "-0", "-0.0", ".5", "5.", "1e5", "1E-7", "1e999",
         "1e-999", "0e999", "9" * 400, "0." + "0" * 400 + "1", "340282356779733661637539395458142568447", "1e-45", "7e-46",
         "000000000000000000000000000000.5", "1e0000000005", "18446744073709551616", "9223372036854775808")  # fmt: skip


def test_numbers_that_are_words_or_extreme_are_read_as_python_does(tmp_path: Path) -> None:
    assert_read_as_python_does(tmp_path / "made.skeleton", list(WORDS))
    assert_read_as_python_does(tmp_path / "made.skeleton", list(WORDS) * 40)  # more than the first table holds


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(
    tokens=st.lists(
        st.from_regex(r"[+-]?([0-9]{1,24}(\.[0-9]{0,24})?|\.[0-9]{1,24})([eE][+-]?[0-9]{1,3})?", fullmatch=True)
        | st.floats().map(repr)
        | st.sampled_from(WORDS),
        min_size=1,
        max_size=60,
    )
)
def test_any_number_is_read_as_python_does(tmp_path_factory: pytest.TempPathFactory, tokens: list[str]) -> None:
    assert_read_as_python_does(tmp_path_factory.getbasetemp() / "number.skeleton", tokens)


@pytest.mark.parametrize(
    "token", ["", "-", "+", ".", "e5", "1e", "1e+", "--1", "1.2.3", "0x10", "1,5", "1#", "_1", "nane", "1\0"]
)
@pytest.mark.parametrize("column", [0, 6])
def test_what_is_no_number_is_refused(tmp_path: Path, token: str, column: int) -> None:
    path = numbers_file(tmp_path / "made.skeleton", ["0"] * 100)
    lines = path.read_text().split("\n")
    row = lines[40].split()
    row[column] = token
    lines[40] = " ".join(row)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        read_ntu(path)
    assert str(caught.value).startswith(f"{path}:41: joint line is ")
    assert str(caught.value).endswith("; expected 12 numbers, the first three finite")


def test_pixels_are_read_only_where_they_are_asked_for(tmp_path: Path) -> None:
    path = numbers_file(tmp_path / "made.skeleton", ["12.5"] * 100)
    with_them, without = read_ntu(path), read_ntu(path, pixels=False)
    assert without.tracks["a"].pixels is None
    assert projected(without, 0) is None
    np.testing.assert_array_equal(without.tracks["a"].joints, with_them.tracks["a"].joints)
    assert without.tracks["a"].joints.flags.c_contiguous


# ------------------------------------------------------------------------------- all numbers of a file at once


def outcome(data: bytes, pixels: bool = True) -> object:
    """Return all that is read of some bytes, bit by bit, or the text of the error."""
    with patch.object(ntu, "read_bytes", lambda path, most: data):
        try:
            file = read_ntu(Path("made.skeleton"), pixels=pixels)
        except C2VLError as error:
            return str(error)
    return file.frames, {
        body: [part if part is None else part.tobytes() for part in (track.frames, track.joints, track.pixels)]
        for body, track in file.tracks.items()
    }


def outcome_line_by_line(data: bytes, pixels: bool = True) -> object:
    with patch.object(ntu, "_all_at_once", lambda lines, pixels: None):
        return outcome(data, pixels)


def test_the_form_of_the_dataset_is_read_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    tokens = [f"{value:.7g}" for value in rng.normal(size=4000) * 10.0 ** rng.integers(-30, 31, 4000)]
    tokens += ["-1.5", "1e-7", "-0", "inf", "-inf", "nan", "1e39"]
    path = numbers_file(tmp_path / "made.skeleton", tokens)
    line_by_line = outcome_line_by_line(path.read_bytes())
    with patch.object(ntu, "_numbers", side_effect=AssertionError("read line by line")):
        assert_read_as_python_does(path, tokens)
        assert outcome(path.read_bytes()) == line_by_line
        assert isinstance(outcome(path.read_bytes().replace(b"\n", b"\r\n")), tuple)


GOOD = "1 2 3 4 5 6 7 8 9 10 11 2"


@pytest.mark.parametrize(
    "lines",
    [
        ["1 2 3  5 6 7 8 9 10 11 2"],  # eleven numbers between eleven spaces
        [f"{GOOD} 3", "1 2 3 4 5 6 7 8 9 10 11"],  # as many numbers as in two good lines
        [f"{GOOD}\r{GOOD}", ""],
        [f" {GOOD}", f"{GOOD} ", GOOD.replace(" ", "\t", 1), GOOD.replace(" ", "  ", 1), f"{GOOD}\r"],
        [GOOD.replace("4", "inf nan", 1).replace(" 2", "", 1)],
        [GOOD.replace("4", "1_0"), GOOD.replace("7", "+7"), GOOD.replace("5", "E")],
        [GOOD.replace("3", "1e39", 1)],
        ['"1" 2 3 4 5 6 7 8 9 10 11 2'],
        [""],
    ],
)
def test_lines_in_other_forms_are_read_or_refused_as_line_by_line(lines: list[str]) -> None:
    text = "\n".join(["1", "1", "a 0 1 1 1 1 0 0 0 2", "25", *lines, *[GOOD] * (25 - len(lines)), ""])
    assert outcome(text.encode()) == outcome_line_by_line(text.encode())


def test_the_first_wrong_line_is_named_where_a_later_one_has_another_form() -> None:
    head = ["2", "1", "a 0 1 1 1 1 0 0 0 2", "25", *[GOOD] * 24, "1 2 x 4 5 6 7 8 9 10 11 2"]
    text = "\n".join([*head, "1", "no body line"])
    assert str(outcome(text.encode())).startswith("made.skeleton:29: joint line is '1 2 x")


# --------------------------------------------------------------------------------------- any input at all


SMALL = "\n".join(["2", "1", "7 0 1 1 1 1 0 0 0 2", "25", *["0.1 2e-3 -3 4 5 6.5 -inf 0 0 0 1 2"] * 25, "0"]).encode()


def value_or_error(data: bytes, pixels: bool) -> None:
    """Assert that any bytes give bodies that make sense, or one line that names file and line."""
    assert outcome(data, pixels) == outcome_line_by_line(data, pixels)
    try:
        with patch.object(ntu, "read_bytes", lambda path, most: data):
            file = read_ntu(Path("made.skeleton"), pixels=pixels)
    except C2VLError as error:
        text = str(error)
        place, _, reason = text.removeprefix("made.skeleton:").partition(": ")
        assert text.startswith("made.skeleton:")
        assert 1 <= int(place) <= data.count(b"\n") + 1
        assert reason
        assert "\n" not in text
        assert len(text) < 400
        return
    for track in file.tracks.values():
        assert np.isfinite(track.joints).all()
        assert (np.diff(track.frames) > 0).all()
        assert 0 <= track.frames[0] <= track.frames[-1] < file.frames
    assert assemble_ntu(file, CONFIG).joints.shape[1:] == (2, 25, 3)


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(data=st.data(), pixels=st.booleans())
def test_a_damaged_file_gives_a_value_or_one_error_with_file_and_line(data: st.DataObject, pixels: bool) -> None:
    text = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(text)))
        stop = min(at + data.draw(st.integers(0, 40)), len(text))
        text[at:stop] = data.draw(
            st.sampled_from(
                [b"", b"\n", b" ", b"\r", b"\0", b"-", b"9" * 30, b"nan", b"1e", b"\xff", bytes(text[at:stop] * 2)]
            )
            | st.binary(max_size=8)
        )
    value_or_error(bytes(text), pixels)


@settings(deadline=None, max_examples=200)
@example(data=b"1", pixels=False)
@example(data=b"1\n1\n a", pixels=True)
@given(data=st.binary(max_size=300), pixels=st.booleans())
def test_any_bytes_give_a_value_or_one_error_with_file_and_line(data: bytes, pixels: bool) -> None:
    value_or_error(data, pixels)
