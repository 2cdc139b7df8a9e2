"""Tables, bars and lines on a terminal and in a pipe: rows of one line, figures that stay, words of the shell."""

from __future__ import annotations

import re
import shlex
import sys

import pytest

from c2vl_manifests import cli_output
from c2vl_manifests.events import Progress


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_no_word_of_a_table_is_cut_on_a_narrow_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    rows = [
        ["skeletons", "complete", "2/2", "missing_skeleton 12, ok 4"],
        ["embeddings", "unfinished", "17/20", "ok 64"],
        ["/a/very/long/path/that/goes/on/and/on", "x", "y", "z"],
    ]
    cli_output.show_table("w", ["stage", "state", "shards", "statuses"], rows)
    told = capsys.readouterr().out
    for word in ("skeletons", "complete", "embeddings", "unfinished", "17/20", "missing_skeleton", "statuses"):
        assert word in told


def _table(monkeypatch, capsys, columns: int, spare: tuple[str, ...]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    rows = [["crops", "17/20", "no_person 12", "14 s"], ["captions", "3/20", "", "1,204 s"]]
    cli_output.show_table("work", ["stage", "shards", "not ok", "time"], rows, "Below.", spare=spare)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("columns", "left"), [(80, ""), (42, ""), (36, "time"), (26, "time, shards"), (12, "time, shards")]
)
def test_columns_give_way_until_a_row_is_one_line(monkeypatch, capsys, columns, left):
    shown = _table(monkeypatch, capsys, columns, ("time", "shards"))
    assert ("Left out" in " ".join(shown.split())) == bool(left)
    for column in ("shards", "time"):
        assert (column in shown.partition("Left")[0]) == (column not in left)
    if columns > 20:
        assert sum("crops" in line and "no_person 12" in line for line in shown.splitlines()) == 1


def test_nothing_is_left_out_of_a_table_in_a_pipe(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "20")
    cli_output.show_table("t", ["a", "b"], [["x" * 30, "y" * 30]], spare=["b"])
    assert "y" * 30 in capsys.readouterr().out


def test_commands_to_run_next_are_words_of_the_shell(tmp_path):
    odd = tmp_path / "my work; it's"
    said = cli_output.next_steps(["c2vl-pipeline", "inspect", "--work", odd], ["c2vl-train", "pretrain"], ["last"])
    first = said.removesuffix("; then: c2vl-train pretrain; then: last")
    assert shlex.split(first.removeprefix("next: ")) == ["c2vl-pipeline", "inspect", "--work", str(odd)]
    assert cli_output.link(odd).startswith("file:///")
    assert " " not in cli_output.link(odd)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_progress_bar_keeps_its_figures_and_cuts_the_name(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with cli_output.Reporter("stage 3 of 6: ") as emit:
        emit(Progress("a-run-with-a-very-long-name-in-a-folder", 7, 114480, info={"no_person": 12, "loss": 3.25}))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    lines = [line for line in re.split(r"[\r\n]+", shown) if "stage" in line]
    assert lines
    for line in lines:
        assert len(line) <= columns
        assert "7/114480" in line
        assert "-:--:--" in line


def test_a_progress_bar_without_text_behind_it_names_its_task_whole(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with cli_output.Reporter("stage 3 of 6: ") as emit:
        emit(Progress("embeddings", 7, 114480))
    assert "stage 3 of 6: embeddings " in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)


def test_a_column_that_is_empty_in_all_rows_is_not_shown(capsys):
    cli_output.show_table("t", ["", "full", "never", "some"], [["", "1", "", ""], ["", "2", "", "x"]], spare=["never"])
    shown = capsys.readouterr().out
    assert "never" not in shown
    assert all(word in shown for word in ("full", "some", "x"))
    cli_output.show_table("t", ["a", "b"], [])
    assert "b" in capsys.readouterr().out
