"""Runs of the benchmarks are kept as JSON, and two of them compared by their ratios."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import timing
from c2vl_manifests.errors import DataError
from compare import compared, main
from support import ROOT

PROCESSOR = timing.PROCESSOR
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("bench_*.py") if path.name != "bench_gpu.py")


def row(name: str, ratio: float | None, **more: object) -> dict[str, object]:
    figures = {} if ratio is None else {"ratio": ratio, "low": ratio, "high": ratio, "pairs": 5}
    return {"script": "bench_x.py", "name": name, "baseline": "the usual way", "seconds": 1.0, **figures, **more}


def run(path: Path, *rows: dict[str, object], **machine: object) -> Path:
    path.write_text(json.dumps({"machine": {"processor": "p", "torch": "2", **machine}, "rows": rows}))
    return path


def test_a_row_is_slower_by_the_ratio_to_its_baseline_and_not_by_its_time(tmp_path):
    old = run(tmp_path / "old.json", row("a", 2.0), row("b", 2.0), row("c", 2.0))
    # by 17.6 % (the ratio fell by 15 %) and 14.3 %
    new = run(tmp_path / "new.json", row("a", 1.7, seconds=0.1), row("b", 1.75, seconds=9.0), row("c", 4.0))
    lines, fine = compared(old, new, 15)
    assert not fine
    assert [line for line in lines if line.startswith("slower")] == [
        "slower: a (bench_x.py): 18 %; was ratio 2.00 (2.00 to 2.00, 5 pairs), is ratio 1.70 (1.70 to 1.70, 5 pairs)"
    ]
    assert lines[-1] == "1 of 3 rows became more than 15 % slower beside their baselines, 0 gone"
    # the named percentage is the one that decides
    assert (compared(old, new, 17)[1], compared(old, new, 18)[1]) == (False, True)
    assert compared(new, new, 0)[1]


def judged(tmp_path: Path, old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Return the lines on two runs of a row on two cores, of which the new has half the ratio of wall time."""
    before = run(tmp_path / "old.json", row("a", 2.0, **{"load": 1.0, **old}), cores=2)
    after = run(tmp_path / "new.json", row("a", 1.0, **{"load": 1.0, **new}), cores=2)
    return compared(before, after, 15)[0][:-1]


BY_WALL = "slower: a (bench_x.py): 100 %; was ratio 2.00 (2.00 to 2.00, 5 pairs), is ratio 1.00 (1.00 to 1.00, 5 pairs)"
BY_PROCESSOR = "slower: a (bench_x.py): 100 %; was ratio of processor time 2.00 (5 pairs), is ratio of processor time 1.00 (5 pairs)"


def test_workers_that_wait_are_slower_although_they_compute_no_more(tmp_path):
    assert judged(tmp_path, {PROCESSOR: 2.0}, {PROCESSOR: 2.0}) == [BY_WALL]


def test_a_row_is_judged_by_the_ratio_that_it_names_if_both_runs_have_it(tmp_path):
    named = {PROCESSOR: 2.0, "judged_by": PROCESSOR}
    assert judged(tmp_path, named, named) == []
    assert judged(tmp_path, named, named | {PROCESSOR: 1.0}) == [BY_PROCESSOR]
    assert judged(tmp_path, {}, named) == [BY_WALL]


@pytest.mark.parametrize("busy", ["old", "new"])
def test_on_a_busy_machine_processor_time_judges_and_a_note_says_so(tmp_path, busy):
    of = {"old": {PROCESSOR: 2.0}, "new": {PROCESSOR: 2.0}}
    of[busy]["load"] = 3.0  # two cores, and one process that waits
    assert judged(tmp_path, of["old"], of["new"]) == [BY_WALL]
    of[busy]["load"] = 3.1
    note = "note: a machine was busy: processor time judges 1 rows of wall time, waiting is not seen"
    assert judged(tmp_path, of["old"], of["new"]) == [note]
    del of["old"][PROCESSOR]
    assert judged(tmp_path, of["old"], of["new"]) == [BY_WALL]


CHILD = """
import time
print(flush=True)
while input() != "end":
    began = time.process_time()
    while time.process_time() < began + 0.3:
        pass
    print(flush=True)
"""


def test_processor_time_is_that_of_child_processes_too_and_not_that_of_waiting():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as living:

        def ask() -> None:
            living.stdin.write("compute\n")
            living.stdout.readline()

        living.stdout.readline()
        busy, waiting = timing.measured(ask), timing.measured(lambda: time.sleep(0.5))
        living.stdin.write("end\n")
    assert waiting.processor < 0.15
    assert busy.processor > 0.25
    assert waiting.wall >= 0.5


def test_rows_that_are_gone_are_named_and_no_success_unless_a_part_is_compared(tmp_path):
    old = run(tmp_path / "old.json", row("a", 2.0), row("gone", 2.0), row("b", 1.0), row("time", None))
    new = run(tmp_path / "new.json", row("a", 2.0), row("new", None), row("b", 1.0, baseline="x"), torch="3")
    lines, fine = compared(old, new, 15)
    assert not fine
    note, remedy = "note: torch was 2, is 3; ratios may differ for that alone", "or give --part if left out on purpose"
    assert lines[:-1] == [
        note,
        f"gone: gone (bench_x.py): not measured against the usual way; run it again, {remedy}",
        f"gone: b (bench_x.py): not measured against the usual way; run it again, {remedy}",
        f"gone: time (bench_x.py): not measured; run it again, {remedy}",
    ]
    assert lines[-1] == "0 of 1 rows became more than 15 % slower beside their baselines, 3 gone"
    lines, fine = compared(old, new, 15, part=True)
    assert fine
    assert lines[:-1] == [note]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a run of the benchmarks"),
        ("[]", "not a run of the benchmarks"),
        ('{"machine": {}, "rows": [1]}', "not a run of the benchmarks"),
        ('{"machine": {}, "rows": [{"ratio": 1.0}]}', "names no script"),
        (json.dumps({"machine": {}, "rows": [row("a", 1.0), row("a", 1.0)]}), "has 'a' twice"),
        (json.dumps({"machine": {}, "rows": [row("a", 0)]}), "expected numbers above 0"),
        (json.dumps({"machine": {}, "rows": [row("a", float("nan"))]}), "expected numbers above 0"),
        (json.dumps({"machine": {}, "rows": [row("a", 1.0, low="1")]}), "expected numbers above 0"),
        (json.dumps({"machine": {}, "rows": [row("a", 1.0, ratio_of_processor_time=0)]}), "expected numbers above 0"),
        (json.dumps({"machine": {}, "rows": [row("a", 1.0, judged_by=PROCESSOR)]}), "is judged by 'ratio_of_pro"),
        (json.dumps({"machine": {}, "rows": [row("a", 1.0, judged_by=["low"])]}), "a ratio that it does not have"),
        (json.dumps({"machine": {}, "rows": []}), "no row with a ratio in common"),
    ],
)
def test_files_that_cannot_be_compared_are_refused_in_one_line(tmp_path, text, problem):
    good, bad = run(tmp_path / "good.json", row("a", 1.0)), tmp_path / "bad.json"
    bad.write_text(text)
    with pytest.raises(DataError, match=problem) as caught:
        compared(good, bad, 15)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ratio", "gone", "more", "code"),
    [(2.0, [], [], 0), (1.0, [], [], 1), (None, [], [], 2), (2.0, ["b"], [], 1), (2.0, ["b"], ["--part"], 0)],
)
def test_the_exit_code_says_whether_something_became_slower_or_is_gone(
    tmp_path, monkeypatch, capsys, ratio, gone, more, code
):
    old = run(tmp_path / "old.json", row("a", 2.0), *(row(name, 1.0) for name in gone))
    new = run(tmp_path / "new.json", row("a", ratio))
    monkeypatch.setattr("sys.argv", ["compare.py", str(old), str(new), *more])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    assert capsys.readouterr().out or code == 2


def test_a_comparison_is_printed_and_kept_where_the_environment_says(tmp_path, monkeypatch, capsys):
    calls: list[str] = []
    monkeypatch.setenv(timing.FILE, str(tmp_path / "new" / "run.json"))
    for pairs in (2, 3):  # the second run of a script replaces its rows
        calls.clear()
        timing.compare("a thing", partial(calls.append, "a"), partial(calls.append, "b"), pairs, judged_by=PROCESSOR)
        assert calls == ["a", "b"] * (pairs + 1)
    timing.report("a time", [1.0, 3.0, 2.0], mebibytes=2.5, captions=1024)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "a time: 2000.0 ms; mebibytes 2.5, captions 1,024"
    kept = json.loads((tmp_path / "new" / "run.json").read_text())
    assert {"processor", "cores", "torch", "commit", "load", "date"} <= set(kept["machine"])
    first, second = kept["rows"]
    assert (first["name"], first["baseline"], first["pairs"]) == ("a thing", "the usual way", 3)
    assert first["judged_by"] == PROCESSOR
    assert first["low"] <= first["ratio"] <= first["high"]
    assert (second["seconds"], second["mebibytes"]) == (2.0, 2.5)
    assert "ratio" not in second


def test_a_row_stands_once_for_each_of_its_baselines(tmp_path, monkeypatch):
    place = tmp_path / "kept.json"
    monkeypatch.setenv(timing.FILE, str(place))
    for baseline, seconds in (("a", 2.0), ("b", 3.0), ("a", 4.0)):
        timing.report("x", [1.0], [seconds], baseline=baseline)
    rows = json.loads(place.read_text())["rows"]
    assert [(row["baseline"], row["ratio"]) for row in rows] == [("b", 3.0), ("a", 4.0)]


def test_the_ratio_is_the_median_over_pairs():
    measured = timing.report("x", [1.0, 1.0, 4.0], [2.0, 3.0, 4.0], quiet=True)
    assert (measured["seconds"], measured["baseline_seconds"]) == (1.0, 3.0)
    assert (measured["low"], measured["ratio"], measured["high"]) == (1.0, 2.0, 3.0)
    assert measured["judged_by"] == timing.WALL


def test_no_turn_begins_after_the_budget():
    spent = timing.in_turn({"a": lambda: None, "b": lambda: None}, turns=1000, budget=0)
    assert [len(times) for times in spent.values()] == [1, 1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_measures_five_pairs_or_as_many_as_it_is_told_and_refuses_none(script, monkeypatch, capsys):
    found: list[int] = []

    def stop(parser: timing.Parser, *_: object) -> None:
        found.append(parser.parse_known_args()[0].pairs)
        parser.exit()

    script_main = runpy.run_path(str(script))["main"]
    monkeypatch.setattr("sys.argv", [script.name, "--pairs", "0"])
    with pytest.raises(SystemExit) as ended:
        script_main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == f"{script.name}: argument --pairs: '0' given; expected a whole number from 1\n"
    monkeypatch.setattr(timing.Parser, "parse_args", stop)
    for arguments in ([], ["--pairs", "1"]):
        monkeypatch.setattr("sys.argv", [script.name, *arguments])
        with pytest.raises(SystemExit):
            script_main()
    assert found[0] >= 5
    assert found[1:] == [1]
