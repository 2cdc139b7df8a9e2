"""The command `c2vl-eval paper`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from c2vl_evaluation.paper import cli as paper_cli
from c2vl_evaluation.paper import compute as paper
from c2vl_evaluation.paper.experiments import Experiments, find_datasets
from c2vl_evaluation.paper.spec import tables_and_figures
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.events import Note
from support.packed import COUNT, sticks
from support.paper import FAST

pytestmark = pytest.mark.slow


def test_one_odd_set_does_not_stop_the_others(
    app: typer.Typer, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "work"
    shutil.copytree(work / "utd-mhad", root / "utd-mhad")
    odd = {"ntu60": {"splits": [{"xsub": "train"}] * COUNT}, "ntu120": {"splits": [{}] * COUNT}, "pku-mmd-2": {}}
    for name, more in odd.items():
        facts = json.loads((sticks(root / name / "packed", **more) / "packed.json").read_text())
        facts |= {"dataset": name, "fingerprint": name.ljust(32, "x")}
        if name == "pku-mmd-2":
            facts["recipe"] = str(tmp_path / "gone.toml")
        (root / name / "packed" / "packed.json").write_text(json.dumps(facts))
    for name in ("broken", "old"):
        shutil.copytree(work / "utd-mhad", root / name)
        text = json.dumps({"format": 1}) if name == "old" else "{"
        (root / name / "packed" / "packed.json").write_text(text)
    said: list[str] = []
    sets = find_datasets(root, lambda e: said.append(e.text) if isinstance(e, Note) else None)
    assert set(sets) == {"utd-mhad", *odd}
    assert [text.split(" is left out: ")[0] for text in said] == [str(root / n) for n in ("broken", "old")]
    here = Experiments(sets, tmp_path / "out")
    why = {c.column.title: c.why for c in here.cells(tables_and_figures())}
    assert "no usable test samples in xsub" in why["ntu60 xsub"]
    assert "has no benchmark" in why["ntu120 xsub"]
    assert "gone.toml" in why["pku-mmd-2 xsub"]
    assert why["utd-mhad xsub"] == ""
    assert set(here.unusable()) == {"ntu120", "pku-mmd-2"}
    assert "gone.toml" in here.unusable()["pku-mmd-2"]
    monkeypatch.setattr(paper, "compute", lambda *_: None)
    words = ["--work", str(root), "--out", str(tmp_path / "out"), "--only", "table7"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "broken" in done.output
    assert "ntu120 is left out" in done.output
    assert "gone.toml" in (tmp_path / "out" / "paper.html").read_text()
    # a word that no set can be used with is a mistake of the user's
    refused = CliRunner().invoke(app, [*words, "--set", "training.nothing=1"])
    assert isinstance(refused.exception, ConfigError)


def test_the_files_are_written_whatever_ends_the_command(
    app: typer.Typer, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--work", str(work), "--recipe", "debug", "--only", "table4"]
    for error in (RuntimeError("a fault"), OSError("disk full"), KeyboardInterrupt()):

        def end(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(paper, "compute", end)
        out = tmp_path / type(error).__name__
        assert CliRunner().invoke(app, [*words, "--out", str(out)]).exit_code != 0
        assert {p.suffix for p in out.glob("paper.*")} == {".csv", ".md", ".tex", ".html"}


@pytest.fixture
def app() -> typer.Typer:
    made = typer.Typer()
    made.command()(paper_cli.paper)
    return made


def test_the_command_plans_without_writing_and_refuses_unknown_tables(
    app: typer.Typer, work: Path, tmp_path: Path
) -> None:
    words = ["--work", str(work), "--out", str(tmp_path / "out"), "--recipe", "debug"]
    said = CliRunner().invoke(app, [*words, "--dry-run", "--only", "table7,figure4"])
    assert said.exit_code == 0, said.output
    assert "table7" in said.output
    assert "table1" not in said.output
    assert "trainings and" in said.output
    assert not (tmp_path / "out").exists()
    refused = CliRunner().invoke(app, [*words, "--only", "table9"])
    assert isinstance(refused.exception, ConfigError)
    assert "--only 'table9' is unknown; expected one of table1, table2" in str(refused.exception)


@pytest.mark.parametrize(
    ("recipe", "only", "less"),
    [
        ("debug", "table7,table1", "; for less, name tables by --only table7"),
        (
            "paper",
            "table7,table1",
            "; for less, name tables by --only table7 or take the small recipe by --recipe small",
        ),
        ("debug", "table7", ""),
    ],
)
def test_a_long_plan_opens_with_a_sentence_that_names_ways_that_are_shorter(
    app: typer.Typer, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, only: str, less: str
) -> None:
    monkeypatch.setattr(paper_cli, "_MANY", 0)
    words = ["--work", str(work), "--out", str(tmp_path / "out"), "--recipe", recipe, "--dry-run", "--only", only]
    first = CliRunner().invoke(app, words).output.splitlines()[0]
    assert first.partition("finished in this folder yet")[2] == less


def test_the_command_computes_writes_and_has_nothing_to_do_the_second_time(
    app: typer.Typer, work: Path, tmp_path: Path
) -> None:
    words = ["--work", str(work / "utd-mhad"), "--out", str(tmp_path), "--only", "table6", "--recipe", "debug"]
    words += [word for value in FAST for word in ("--set", value)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    assert (tmp_path / "paper.html").is_file()
    assert "vision and language" in first.output
    second = CliRunner().invoke(app, words)
    assert "0 trainings and 0 evaluations to do: nothing to do" in second.output
    assert '"cell' not in second.output
    assert "other settings" not in second.output + (tmp_path / "paper.html").read_text("utf-8")
    there = set((tmp_path / "runs").glob("*/*/*/encoder.safetensors"))
    third = CliRunner().invoke(app, [*words, "--set", "training.pretrain.epochs=2"])
    assert third.exit_code == 0, third.output
    note = "4 finished trainings are of other settings, data or seeds and not shown"  # all that pre-train
    assert note in " ".join(third.output.split())
    for name in ("paper.html", "paper.md"):
        assert note in (tmp_path / name).read_text("utf-8")
    assert there < set((tmp_path / "runs").glob("*/*/*/encoder.safetensors"))  # none is deleted
