"""The fuzz target itself: what it draws, what it calls a broken promise, and a small run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz_folders

pytestmark = pytest.mark.stress


@pytest.mark.parametrize(
    ("code", "out", "err"),
    [(0, "done\n", ""), (1, "{}\n", ""), (1, "", "error: x is y\n"), (2, "", "Usage: …\n\nError: no such option\n")],
)
def test_an_end_in_one_line_breaks_no_promise(code: int, out: str, err: str) -> None:
    assert fuzz_folders.judge(code, out, err) == []


@pytest.mark.parametrize(
    ("code", "out", "err"),
    [
        (1, "", 'Traceback (most recent call last):\n  File "/x/c2vl_a/b.py", line 3, in f\nKeyError: 1\n'),
        (1, "", "error: one\nerror: two\n"),
        (1, "", "note: one\n"),
        (1, "", ""),
        (0, "", "a library's warning\n"),
        (-9, "", ""),
        (130, "", ""),
        ("hang", "", ""),
        (1, "", "error: memory ran out (MemoryError)\n"),
        (0, "", "\noutside: open /etc/passwd\n"),
        (0, "a\x1b[31mb\n", ""),
        (1, "", "error: \u202ebad\n"),
        (0, "a\x9bb\n", ""),
    ],
)
def test_every_other_end_breaks_one(code: int | str, out: str, err: str) -> None:
    assert fuzz_folders.judge(code, out, err)


def test_a_case_is_what_its_seed_and_number_say() -> None:
    cases = [fuzz_folders.draw(1, number)[1:] for number in range(50)]
    assert cases == [fuzz_folders.draw(1, number)[1:] for number in range(50)]
    assert cases != [fuzz_folders.draw(2, number)[1:] for number in range(50)]


def test_some_folders_keep_every_promise(tmp_path: Path) -> None:
    """Cases are drawn as in the recorded run; a kind that is found here is an error of a command."""
    summary = tmp_path / "summary.json"
    result = subprocess.run(
        [sys.executable, fuzz_folders.__file__, "--cases", "12", "--seed", "7", "--scratch", tmp_path,
         "--findings", tmp_path / "findings.jsonl", "--json", summary],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, (result.stdout, result.stderr)
    record = json.loads(summary.read_text())
    assert record["folders"] == 12
    assert record["commands"] >= 12
    assert record["kinds"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
