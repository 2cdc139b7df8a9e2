"""Cells of a table: refusals before training, failures, earlier calls, targets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from c2vl_evaluation import cli
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.cache import Cell
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.entries import Entry, entries
from c2vl_evaluation.metrics import data_read, no_encoder_scores
from c2vl_evaluation.protocols import ensemble, finetuning, run_safely, semi, transfer
from c2vl_evaluation.report import console
from c2vl_evaluation.results import ALWAYS, Line, Result, Table, load
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Event, Note
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.cli import sets
from support.evaluation import MANIFEST, outcomes
from support.packed import COUNT, moving, sticks
from support.training import BASE, recipe, run

SETTINGS = (
    "evaluation.linear.epochs=2",
    "evaluation.linear.milestones=[1]",
    "evaluation.finetune.epochs=1",
    "evaluation.transfer.tune.epochs=1",
    "evaluation.semi.shares=[0.05,0.5]",
    "evaluation.semi.draws=1",
    "evaluation.semi.tune.epochs=1",
    "training.pretrain.epochs=1",
    "training.supervised.epochs=1",
)
DIVERGES = "evaluation.finetune.optimiser.lr=1e30"


def two_views() -> list[dict[str, str]]:
    """12 clips to train and 4 to test in both benchmarks; all test clips of xview are training clips of xsub."""
    return [{"xsub": "train" if n % 4 else "test", "xview": "train" if n % 4 != 1 else "test"} for n in range(COUNT)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Tests must not write into it."""
    return PackedDataset(sticks(tmp_path_factory.mktemp("sticks") / "packed", splits=two_views()))


def lines(*targets: str, more: tuple[str, ...] = ()) -> list[Entry]:
    return entries(MANIFEST, "debug", [*BASE, *SETTINGS, *more], targets)


@pytest.fixture(scope="module")
def made(data: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of `hard` with fine-tuning and shares of the labels; tests must not write into it."""
    out = tmp_path_factory.mktemp("table") / "out"
    benchmark.run_table(data, "xsub", lines("hard"), [0], out, protocols=("finetune", "semi"))
    return out


@pytest.fixture
def table(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "table"))


def other(folder: Path, seed: int = 7, dataset: str = "generic", **more: object) -> PackedDataset:
    """Another set of the same joints."""
    path = sticks(folder / "packed", joints=moving(COUNT, seed), splits=two_views(), **more)
    text = (path / "packed.json").read_text().replace("f" * 32, f"{seed:x}" * 32)
    (path / "packed.json").write_text(text.replace('"synthetic"', f'"{dataset}"'))
    return PackedDataset(path)


def never(*_: object, **__: object) -> None:
    raise AssertionError("trained")


def call(*words: str | Path) -> tuple[int, str, BaseException | None]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words], env={"COLUMNS": "250"})
    return done.exit_code, done.output, done.exception


def notes() -> tuple[list[str], Callable[[Event], None]]:
    said: list[str] = []
    return said, lambda event: said.append(event.text) if isinstance(event, Note) else None


def without_seconds(results: Table) -> list[list[Result]]:
    """Findings of each row, in an order of their own."""
    found = []
    for row in results.rows:
        bare = [f.model_copy(update={"seconds": 0.0}) for f in row.results]
        found.append(sorted(bare, key=lambda f: (f.protocol, f.setting, f.draw)))
    return found


def added(table: Table) -> list[Result]:
    """All results beside kNN and linear."""
    return [r for row in table.rows for r in row.results if r.protocol not in ALWAYS]


def transferred(out: Path, data: PackedDataset, packed: PackedDataset, where: str = "xsub", *more: str) -> Table:
    """Add a transfer to the table of `hard`."""
    return benchmark.run_table(data, "xsub", lines("hard", more=more), [0], out, target=(packed, where))


# ------------------------------------------------------------------------------------- other benchmarks


def test_a_table_is_not_filled_with_another_benchmark(table, data):
    before = (table / "results.json").read_bytes()
    with pytest.raises(CheckpointError, match="benchmark is 'xsub' there and 'xview' here; choose another --out"):
        benchmark.run_table(data, "xview", lines("hard")[1:2], [0], table)
    assert (table / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pretrain", "4 of the 4 test clips of xview were among its training clips; for a fair number"),
        ("supervised", "4 of the 4 test clips of xview were among its training clips, with their labels; "),
        ("random", ""),
    ],
)
def test_clips_that_a_run_was_trained_on_are_said_and_not_refused(data, tmp_path, kind, said):
    train(run(data.folder, tmp_path / "run", *SETTINGS, kind=kind))
    words = ["c2vl-eval", "run", "linear", "--run", tmp_path / "run", "--data", data.folder, "--recipe", "debug"]
    code, out, _ = call(*words[1:], *sets(*SETTINGS), "--benchmark", "xview")
    assert code == 0
    assert (said in out) if said else ("training clips" not in out)
    assert "12 train / 4 test" in out
    for same in ("xsub",):
        assert "training clips" not in call(*words[1:], *sets(*SETTINGS), "--benchmark", same)[1]


def test_held_out_training_clips_of_a_run_are_counted(data, tmp_path):
    train(run(data.folder, tmp_path / "run", *SETTINGS))
    subject = EvalContext(tmp_path / "run", data, "xsub-val", recipe(*SETTINGS), 0)
    asked = data.select("xsub-val", "test").rows
    assert f"{len(asked)} of the {len(asked)} test clips of xsub-val" in subject.overlap()
    assert replace(subject, packed=other(tmp_path / "there")).overlap() == ""


@pytest.mark.parametrize(
    ("moved", "seen"), [({1}, 1), ({1, 2, 3}, 3), (set(range(COUNT)) - {0, 4, 8}, 12)], ids=["one", "three", "all"]
)
def test_clips_that_became_test_clips_are_said_the_mark_stays_and_a_transfer_is_refused(data, tmp_path, moved, seen):
    trained = PackedDataset(sticks(tmp_path / "first" / "packed", splits=two_views(), joints=moving(COUNT)))
    train(run(trained.folder, tmp_path / "run", *SETTINGS))
    splits = [one | {"xsub": "test"} if n in moved else one for n, one in enumerate(two_views())]
    for n in (0, 4, 8):
        splits[n] = splits[n] | {"xsub": "train"}
    now = PackedDataset(sticks(tmp_path / "now" / "packed", splits=splits, joints=moving(COUNT)))
    subject = EvalContext(tmp_path / "run", now, "xsub", recipe(*SETTINGS), 0)
    assert f": {seen} of the " in subject.overlap()
    assert subject.uses_joint_captions() == run(trained.folder, tmp_path / "run", *SETTINGS).uses_joint_captions()
    with pytest.raises(ConfigError, match="c2vl-eval run finetune"):
        next(transfer.cells(subject))
    assert EvalContext(tmp_path / "run", trained, "xsub", recipe(*SETTINGS), 0).overlap() == ""


# -------------------------------------------------------------------------------------- before training


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([3 if n % 4 == 0 else n % 3 for n in range(COUNT)], r"classes of the test split have no training"),
        ([-1 if n == 5 else n % 3 for n in range(COUNT)], r"1 of 12 train samples of xsub have no label"),
    ],
    ids=["classes", "labels"],
)
def test_splits_that_cannot_be_evaluated_are_refused_before_training(data, tmp_path, monkeypatch, labels, said):
    monkeypatch.setattr(benchmark, "train", never)
    broken = other(tmp_path / "broken", labels=labels)
    with pytest.raises(DataError, match=said):
        benchmark.run_table(broken, "xsub", lines("hard"), [0], tmp_path / "out")
    with pytest.raises(DataError, match=rf"--target .*broken/packed: .*{said}"):
        benchmark.run_table(data, "xsub", lines("hard"), [0], tmp_path / "out", target=(broken, "xsub"))


def test_a_folder_of_another_run_is_refused_before_any_training(table, data, monkeypatch):
    monkeypatch.setattr(benchmark, "train", never)
    shutil.rmtree(table / "runs" / "hard-seed0")
    changed = lines("hard", more=("training.supervised.epochs=3",))
    with pytest.raises(
        CheckpointError, match=r"supervised-seed0/.* is of another run: config\.epochs .*another --out, or delete"
    ):
        benchmark.run_table(data, "xsub", changed, [0], table)


def test_a_folder_of_another_stream_is_refused_before_any_training(table, data, monkeypatch):
    monkeypatch.setattr(benchmark, "train", never)
    shutil.copytree(table / "runs" / "hard-seed0", table / "runs" / "supervised-seed0-bone")
    with pytest.raises(CheckpointError, match=r"supervised-seed0-bone/.* is of another run: kind"):
        benchmark.run_table(data, "xsub", lines("hard"), [0], table, protocols=("ensemble",))
    monkeypatch.undo()
    benchmark.run_table(data, "xsub", lines("hard"), [0], table)  # not asked for: nobody's business


@pytest.mark.slow
def test_a_table_grows_by_targets_given_alone_with_a_control_of_their_own(table, data):
    plain = table / "runs" / "shuffled-pairs-seed0" / checkpoint.ENCODER
    before = plain.read_bytes()
    for _ in range(2):
        grown = benchmark.run_table(data, "xsub", lines("intra"), [0], table)
    assert [(row.name, row.run) for row in grown.rows if row.role in {"pretrained", "shuffled"}] == [
        ("intra", "runs/intra-seed0"),
        ("shuffled pairs", "runs/shuffled-pairs-intra-seed0"),
    ]
    facts = checkpoint.load_finished(table / "runs" / "shuffled-pairs-intra-seed0")[1]
    assert (facts["config"]["targets"]["kind"], facts["config"]["pairs"]) == ("intra", "shuffled")
    assert plain.read_bytes() == before
    back = benchmark.run_table(data, "xsub", lines("hard"), [0], table)
    assert back.of("shuffled pairs")[0].run == "runs/shuffled-pairs-seed0"


# ------------------------------------------------------------------------------------- cells that fail


@pytest.mark.slow
def test_a_cell_that_diverges_says_why_and_the_others_go_on(made, table, data):
    said, emit = notes()
    broken = lines("hard", more=(DIVERGES,))
    found = benchmark.run_table(data, "xsub", broken, [0], table, emit, ("finetune", "semi"))
    assert load(table) == found
    for row, whole in zip(found.rows, load(made).rows, strict=True):
        if not row.run:
            continue
        (cell,) = [f for f in row.results if f.protocol == "finetune"]
        assert cell.last is None
        assert cell.failed
        assert "lower it (optimiser.lr)" in cell.why
        assert [f for f in row.results if f.protocol == "semi"] == [f for f in whole.results if f.protocol == "semi"]
    assert sum("the other results are still computed" in text for text in said) == 4
    assert found.failure_summary().startswith(f"4 of {len(added(found))} results in addition to kNN and linear failed")
    mended = benchmark.run_table(data, "xsub", lines("hard"), [0], table, protocols=("finetune", "semi"))
    assert mended.failure_summary() == ""
    assert without_seconds(mended) == without_seconds(load(made))


def test_a_failed_cell_is_tried_again(subject_of, monkeypatch):
    tries = []

    def diverge(*_: object) -> None:
        tries.append(1)
        raise C2VLError("the loss\nbecame NaN")

    monkeypatch.setattr(finetuning, "tune", diverge)
    for _ in range(2):
        (found,) = run_safely(finetuning.cells(subject_of), "x")
        assert found.reason == "failed: the loss became NaN"
    assert len(tries) == 2


@pytest.fixture
def subject_of(table: Path, data: PackedDataset) -> EvalContext:
    return EvalContext(table / "runs" / "random-encoder-seed0", data, "xsub", recipe(*SETTINGS, DIVERGES), 0)


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt(), ValueError("x"), ConfigError("x"),
                                   DataError("x")], ids=lambda e: type(e).__name__)  # fmt: skip
def test_what_is_not_of_one_cell_is_not_swallowed(error):
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        list(run_safely([Cell("finetune", fail)], "x"))


def test_one_draw_that_diverges_costs_no_other_setting(table, data, monkeypatch):
    real = finetuning.tune

    def tune(job):
        if "stratified" in job.label:
            raise C2VLError("diverged")
        return real(job)

    monkeypatch.setattr(finetuning, "tune", tune)
    some = EvalContext(table / "runs" / "hard-seed0", data, "xsub", recipe(*SETTINGS, "evaluation.semi.draws=2",
                                                                       "evaluation.semi.tune.batch_size=3"), 0)  # fmt: skip
    found = list(run_safely(semi.cells(some), "x"))
    bad = [(f.setting, f.draw) for f in found if f.failed]
    assert bad == [("50 % stratified, tuned", 0), ("50 % stratified, tuned", 1)]
    assert sum(f.last is not None for f in found) == 6


def test_a_stream_whose_training_diverges_fails_its_cells_alone(table, data, monkeypatch):
    real, tries = train, []

    def trained(one, emit):
        if one.out.name == "hard-seed0-motion":
            tries.append(1)
            raise C2VLError("the loss or the weights became NaN")
        return real(one, emit)

    monkeypatch.setattr(benchmark, "train", trained)
    found = benchmark.run_table(data, "xsub", lines("hard")[:2], [0], table, protocols=("ensemble",))
    by_row = [[bool(f.why) for f in row.results if f.protocol == "ensemble"] for row in found.rows[:2]]
    assert by_row == [[True, True], [False, False]]
    assert len(tries) == 1


@pytest.mark.slow
def test_the_command_ends_with_1_after_table_and_report(table, data):
    shutil.rmtree(table / "results.json", ignore_errors=True)
    words = ("benchmark", "--data", data.folder, "--benchmark", "xsub", "--out", table, "--recipe", "debug")
    told = sets(*BASE, *SETTINGS, "training.pretrain.targets=hard", DIVERGES)
    code, out, error = call(*words, *told, "--protocol", "finetune")
    assert code == 1
    assert isinstance(error, C2VLError)
    assert str(error).startswith("4 of ")
    assert "\n" not in str(error)
    assert (table / "report.html").is_file()
    assert "n/a" in out
    code, out, error = call(*words, *told[:-2], "--protocol", "finetune")
    assert (code, error) == (0, None)


def test_runs_that_failed_are_not_counted_among_those_of_a_mean(made, data, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    good = next(f for f in load(made).rows[0].results if f.protocol == "finetune")
    bad = Result(protocol="finetune", why="it diverged", failed=True)
    console.show_protocol("finetune", [Line("hard", "pretrained", [bad, good])], no_encoder_scores(data, "xsub"))
    (shown,) = [text for text in capsys.readouterr().out.splitlines() if "hard" in text]
    assert shown.replace("│", "").split()[-5:] == ["12", "1", "failed:", "it", "diverged"]


# --------------------------------------------------------------------------------------- earlier calls


def test_what_earlier_calls_found_stays(table, data, tmp_path, monkeypatch):
    there = other(tmp_path / "there")
    whole = transferred(table, data, there)
    monkeypatch.setattr(finetuning, "_train", never)
    said, emit = notes()
    again = benchmark.run_table(data, "xsub", lines("hard"), [0], table, emit)
    assert without_seconds(again) == without_seconds(whole)
    assert again.targets == whole.targets
    assert f"{len(added(whole))} results of earlier calls stay in the table (finetune, semi, transfer)" in said
    assert not any("not in the table" in text for text in said)


def test_findings_of_other_weights_do_not_stay(table, data):
    shutil.rmtree(table / "runs" / "random-encoder-seed0")
    changed = lines("hard")
    said, emit = notes()
    before = load(table)
    again = benchmark.run_table(data, "xsub", changed, [0], table, emit)
    floor = again.of("random encoder")[0].results[2:]
    assert floor
    assert all(f.last is None and f.why for f in floor)  # what 5 % of 12 clips do not allow
    assert again.of("hard")[0].results == before.of("hard")[0].results
    lost = len(before.of("random encoder")[0].results[2:]) - len(floor)
    assert any(f"not in the table any more: {lost} results; " in text for text in said)


def test_lines_and_seeds_that_are_not_asked_for_are_named(table, data):
    benchmark.run_table(data, "xsub", lines("hard", "intra"), [0], table)
    said, emit = notes()
    benchmark.run_table(data, "xsub", lines("hard"), [0], table, emit)
    assert any("not in the table any more: intra seed 0; the same call with their --targets" in t for t in said)


def test_a_cut_table_says_that_it_is_made_again(table, data):
    (table / "results.json").write_text((table / "results.json").read_text()[:200])
    said, emit = notes()
    benchmark.run_table(data, "xsub", lines("hard"), [0], table, emit)
    assert any("results.json: damaged" in text for text in said)
    assert load(table).names()[0] == "hard"


# --------------------------------------------------------------------------------------------- targets


@pytest.mark.slow
def test_targets_of_one_dataset_id_stand_side_by_side(table, data, tmp_path, capsys, monkeypatch):
    one, two = other(tmp_path / "one", 7), other(tmp_path / "two", 8)
    frozen = "evaluation.transfer.encoder=['frozen']"
    for packed, where in ((one, "xsub"), (two, "xsub"), (two, "xview")):
        found = transferred(table, data, packed, where, frozen)
    assert [(t.name, t.data_fingerprint, t.benchmark) for t in found.targets] == [
        ("generic, xsub", data_read(one, "xsub"), "xsub"),
        ("generic, xsub (two)", data_read(two, "xsub"), "xsub"),
        ("generic, xview", data_read(two, "xview"), "xview"),
    ]
    settings = [f.setting for f in found.rows[0].results if f.protocol == "transfer"]
    assert settings == [
        "synthetic to generic, xsub, frozen",
        "synthetic to generic, xsub (two), frozen",
        "synthetic to generic, xview, frozen",
    ]
    for target, setting in zip(found.targets, settings, strict=True):
        assert [f.setting for f in found.rows[0].results if f.target == target.id] == [setting]
    assert transferred(table, data, two, "xsub", frozen).targets[-1] == found.targets[1]
    assert len(load(table).targets) == 3
    monkeypatch.setenv("COLUMNS", "250")
    console.show_results(load(table))
    shown = capsys.readouterr().out
    assert shown.count("Sticks, xsub: transfer") == 2
    assert shown.count("Sticks, xview: transfer") == 1
    assert shown.count("(two)") == 4


def test_an_own_set_to_another_one_names_the_folder(data, tmp_path):
    source = other(tmp_path / "utd", 3)
    train(run(source.folder, tmp_path / "run", kind="random"))
    frozen = recipe(*SETTINGS, "evaluation.transfer.encoder=['frozen']")
    for name, seed in (("msr", 4), ("kicks", 5)):
        there = other(tmp_path / name, seed)
        (found,) = outcomes(transfer, EvalContext(tmp_path / "run", there, "xsub", frozen, 0))
        assert found.result.setting == f"other data to generic, xsub ({name}), frozen"
    moved = PackedDataset(shutil.move(tmp_path / "msr", tmp_path / "msr2"))
    (again,) = outcomes(transfer, EvalContext(tmp_path / "run", moved, "xsub", frozen, 0))
    assert again.result.setting == "other data to generic, xsub (msr2), frozen"  # read, and called as it is now


# -------------------------------------------------------------------------------------------- ensemble


def trained(data: PackedDataset, out: Path, stream: str, *more: str, **told: object) -> EvalContext:
    done = run(data.folder, out, f"training.input.stream={stream}", *SETTINGS, *more, **told)
    train(done)
    return EvalContext(out, data, "xsub", done.recipe, done.seed)


@pytest.mark.parametrize(
    ("more", "told", "said"),
    [
        ((), {"kind": "random"}, "kind is pretrain there and random here"),
        (("training.pretrain.targets=hard",), {}, "targets.kind is partition there and hard here"),
        (("training.pretrain.knowledge=vision",), {}, "knowledge is both there and vision here"),
        (("training.pretrain.pairs=shuffled",), {}, "pairs is true there and shuffled here"),
    ],
    ids=["kind", "targets", "knowledge", "pairs"],
)
def test_streams_that_were_not_trained_alike_are_refused(data, tmp_path, more, told, said):
    found = [trained(data, tmp_path / stream, stream) for stream in ("joint", "motion")]
    bone = trained(data, tmp_path / "bone", "bone", *more, **told)
    with pytest.raises(ConfigError, match=f"/joint and .*/bone were not trained alike: {said}; give") as caught:
        ensemble.joined([found[0], bone, found[1]])
    assert "\n" not in str(caught.value)


def test_streams_of_other_seeds_are_an_ensemble(data, tmp_path):
    some = [trained(data, tmp_path / s, s, seed=n) for n, s in enumerate(ensemble.STREAMS)]
    assert list(ensemble.joined(some).streams) == list(ensemble.STREAMS)


def test_no_stream_at_all_names_all_three():
    with pytest.raises(ConfigError, match="no run of the joint and of the bone") as caught:
        ensemble.joined([])
    for stream in ensemble.STREAMS:
        assert f"training.input.stream={stream}" in str(caught.value)
        assert f"the {stream}" in str(caught.value)


# --------------------------------------------------------------------------------------------- console


def test_lines_that_learned_from_joint_captions_are_marked(table, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    console.show_results(load(table))
    shown = capsys.readouterr().out
    marked = [text for text in shown.splitlines() if "†" in text and "%" not in text and "Derived" not in text]
    assert len(marked) == 4  # hard and its control, of kNN and linear and of fine-tuning; neither floor nor ceiling
    assert any("hard †" in text for text in marked)
    assert any("shuffled pairs (control) †" in text for text in marked)
    assert "Derived from joints: captions made by rule" in " ".join(shown.split())
    words = ("--data", data.folder, "--recipe", "debug", *sets(*SETTINGS))
    runs = [word for name in ("hard", "supervised") for word in ("--run", table / "runs" / f"{name}-seed0")]
    code, out, _ = call("run", "finetune", *runs, *words)
    assert code == 0
    assert [text.count("†") for text in out.splitlines() if "-seed0" in text] == [1, 0]
    train(run(data.folder, tmp_path / "sight", *SETTINGS, "training.pretrain.knowledge=vision"))
    assert "†" not in call("run", "finetune", "--run", tmp_path / "sight", *words)[1]


def test_runs_of_one_name_are_lines_of_their_own(data, tmp_path):
    runs = [tmp_path / parent / "run" for parent in ("a", "b")]
    for seed, out in enumerate(runs):
        train(run(data.folder, out, kind="random", seed=seed))
    words = [word for out in runs for word in ("--run", out)]
    code, out, _ = call("run", "knn", *words, "--data", data.folder, "--recipe", "debug")
    assert code == 0
    assert all(f"{one} (floor)" in out for one in runs)
