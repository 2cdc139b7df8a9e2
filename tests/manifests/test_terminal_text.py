"""Text from data on a terminal and in a pipe: controls are escapes, whatever they come with."""

from __future__ import annotations

import ast
import json
import os
import pty
import subprocess
import sys
import unicodedata

import pytest

from c2vl_manifests import cli_common
from c2vl_manifests.cli_output import Reporter, say, say_json, show_table, visible
from c2vl_manifests.events import Note, Progress

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1A\x7f\r\b\u202e\u2066\u200f\u061c\u2028\udce9"
CODES = "]0;owned", "[2J", "1A"
"""What follows an escape of `EVIL`; the only sign of it that stays."""


def hidden(text: str) -> list[str]:
    """Return what is no letter on a terminal: categories of Unicode, not the list that the product has."""
    allowed = {"\n", "\u200d", "\u200c", "\xad", "\ufeff"}
    bad = {"Cc", "Cs", "Zl", "Zp"}
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = "\u200e\u200f\u061c"
    return [
        c
        for c in text
        if c not in allowed and (unicodedata.category(c) in bad or unicodedata.bidirectional(c) in bidi or c in marks)
    ]


def test_every_control_is_an_escape_and_every_letter_stays():
    everything = "".join(map(chr, range(0x110000)))
    shown = visible(everything)
    assert not hidden(shown)
    assert "\n" not in shown
    assert ast.literal_eval(f'"{visible(EVIL)}"') == EVIL
    for text in ("a person's left arm [bold]", "é ü 日本 עברית عربي 👩‍👧", "\xa0\u3000\xad", ""):
        assert visible(text) == text


def test_no_line_of_a_pipe_is_forged_or_holds_a_control(capsys):
    say(f"id {EVIL}\nerror: forged")
    say_json({EVIL: [f"{EVIL}\nerror: forged"]})
    show_table(EVIL, ["", f"a{EVIL}\nb"], [[f"{EVIL}\nerror: forged", "[/x]"]], f"x{EVIL}\ny")
    with Reporter() as emit:
        emit(Note(f"{EVIL}\nerror: forged"))
        emit(Progress(f"{EVIL}\nerror: forged", 1, 2, info={EVIL: EVIL}))
    with pytest.raises(SystemExit):
        cli_common._exit_with(f"{EVIL}\nerror: forged")
    out, err = capsys.readouterr()
    assert not hidden(out + err)
    assert not [line for line in out.splitlines() if line.startswith(("error", "b", "y"))]
    assert len(err.splitlines()) == 1
    assert out.splitlines()[0] == f"id {visible(EVIL)}\\nerror: forged"


def test_json_is_read_back_as_the_value_it_was(capsys):
    value = {f"k{EVIL}": [f"{EVIL}\n\t", "é\\x1b", 1.5, None]}
    say_json(value)
    with Reporter() as emit:
        emit(Note(f"{EVIL}\n"))
    text, _, note = capsys.readouterr().out.rpartition("}\n")[0].rpartition("}\n")
    assert json.loads(text + "}") == value
    assert json.loads(note + "}")["text"] == f"{EVIL}\n"


PROGRAM = """
import warnings
from c2vl_manifests.cli_common import application, main
from c2vl_manifests.cli_output import Reporter, say, say_json, show_table
from c2vl_manifests.errors import DataError
from c2vl_manifests.events import Note, Progress
EVIL = {evil!r} + "[/b] :warning:"
app = application("")
@app.command("go")
def run(how: str) -> None:
    warnings.warn(EVIL)
    say(EVIL + "\\nerror: forged")
    say_json([EVIL])
    show_table(EVIL, ["", EVIL], [[EVIL + "\\nerror: forged", EVIL]], EVIL)
    with Reporter() as emit:
        for n in range(3):
            emit(Progress(EVIL + "\\nerror: forged", n, 2, info={{EVIL: EVIL}}))
        emit(Note(EVIL + "\\nerror: forged", "warning"))
        emit(Note(EVIL))
    raise ValueError(EVIL) if how == "bug" else DataError(EVIL + "\\nerror: forged")
main(app)
"""


def on_a_terminal(*words: str, term: str | None) -> str:
    """Run the program on a pseudo-terminal; return what the terminal got."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in {"TERM", "NO_COLOR", "FORCE_COLOR"}} | {
        "COLUMNS": "300"
    }
    environment |= {} if term is None else {"TERM": term}
    command = [sys.executable, "-c", PROGRAM.format(evil=EVIL), *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        got = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the end of a terminal
                break
            if not part:
                break
            got += part
    os.close(ours)
    assert process.returncode in {1, 2}
    return got.decode("utf-8").replace("\r\n", "\n")


@pytest.mark.parametrize("term", ["xterm-256color", "dumb", None])
@pytest.mark.parametrize("words", [("go", "error"), ("go", "bug"), ("go", f"--x{EVIL}")], ids=["error", "bug", "usage"])
def test_a_terminal_gets_only_the_sequences_of_the_program(term, words):
    got = on_a_terminal(*words, term=term)
    for code in CODES:
        assert code in got
        assert f"\x1b{code}" not in got
    for control in "\x07\x08\x7f\x9b\u202e\u2066\u200f\u061c\u2028":
        assert control not in got
    if words == ("go", "error"):
        assert "\nerror: forged" not in got
        assert "[/b] :warning:" in got
        assert "MarkupError" not in got
