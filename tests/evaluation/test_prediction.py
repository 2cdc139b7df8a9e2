"""Skeleton files to answers: those of the protocol, and one line for what cannot be answered; the commands around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from c2vl_evaluation import prediction
from c2vl_evaluation.cache import softmax
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import encoder_for
from c2vl_evaluation.protocols import linear
from c2vl_evaluation.report.console import show_predictions
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.stages import pack
from c2vl_training import checkpoint
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train
from support.cli import Cli, refused, sets
from support.evaluation import evaluated
from support.packed import sticks
from support.training import recipe, run

SET = ("evaluation.linear.epochs=5", "evaluation.linear.milestones=[4]")


@pytest.fixture(scope="module")
def subject(work: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalContext:
    """A random encoder on the synthetic set in NTU's format."""
    packed, used = PackedDataset(work), load_recipe("debug", SET)
    out = tmp_path_factory.mktemp("runs") / "floor"
    train(Run("random", packed, used, "xsub", 0, out))
    return EvalContext(out, packed, "xsub", used, 0)


def test_a_skeleton_file_is_answered_as_the_protocol_answered_it(subject, raw):
    protocol = evaluated(linear, subject).predictions
    assert protocol is not None
    files = [next(raw.rglob(f"{name}.skeleton")) for name in protocol.sample_ids[:5]]
    found = prediction.predict_files(subject, files)
    names = subject.packed.manifest.classes
    for answer, file, scores in zip(found, files, softmax(protocol.scores[:5]), strict=True):
        assert answer.file == file
        order = np.argsort(-scores)
        assert [name for name, _ in answer.top] == [names[n] for n in order[:5]]
        np.testing.assert_allclose([p for _, p in answer.top], scores[order[:5]], rtol=1e-3)
        assert sum(p for _, p in answer.top) == pytest.approx(1)  # of four classes
    assert len({tuple(answer.top) for answer in found}) > 1


def test_the_layer_is_trained_where_it_is_not_there(subject, raw, tmp_path):
    folder = Path(shutil.copytree(subject.run, tmp_path / "run", ignore=lambda *_: {"evaluations"}))
    other = EvalContext(folder, subject.packed, "xsub", subject.recipe, 0)
    file = next(raw.rglob("*.skeleton"))
    assert prediction.predict_files(other, [file]) == prediction.predict_files(subject, [file])


def test_a_layer_of_another_encoder_is_trained_again(subject, tmp_path):
    evaluated(linear, subject)
    folder = Path(shutil.copytree(subject.run, tmp_path / "run"))
    tensors, facts = checkpoint.load(folder / checkpoint.ENCODER)
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}
    checkpoint.save(folder / checkpoint.ENCODER, changed, facts)
    other = EvalContext(folder, subject.packed, "xsub", subject.recipe, 0)
    heads = [linear.head_of(one)[0].weight.clone() for one in (other, subject)]
    assert not torch.equal(*heads)


@pytest.mark.parametrize("keep", [None, 100])
def test_a_layer_that_is_gone_or_cut_is_trained_again(subject, raw, tmp_path, keep):
    file = next(raw.rglob("*.skeleton"))
    wanted = prediction.predict_files(subject, [file])
    folder = Path(shutil.copytree(subject.run, tmp_path / "run"))
    for path in (folder / "evaluations").glob("linear-*.safetensors"):
        path.unlink() if keep is None else path.write_bytes(path.read_bytes()[:keep])
    assert prediction.predict_files(EvalContext(folder, subject.packed, "xsub", subject.recipe, 0), [file]) == wanted


def test_answers_that_are_no_numbers_are_refused(subject, raw, tmp_path):
    file = next(raw.rglob("*.skeleton"))
    evaluated(linear, subject)
    folder = Path(shutil.copytree(subject.run, tmp_path / "run"))
    other = EvalContext(folder, subject.packed, "xsub", subject.recipe, 0)
    for path in (folder / "evaluations").glob("linear-*.safetensors"):
        tensors, facts = checkpoint.load(path)
        checkpoint.save(path, tensors | {"bias": tensors["bias"] * np.nan}, facts)
    with pytest.raises(CheckpointError, match=r"answers are NaN or infinite.*; give lower ones by --set") as caught:
        prediction.predict_files(other, [file])
    assert "\n" not in str(caught.value)
    tensors, facts = checkpoint.load(folder / checkpoint.ENCODER)
    changed = {k: v * np.nan if v.is_floating_point() else v for k, v in tensors.items()}
    checkpoint.save(folder / checkpoint.ENCODER, changed, facts)
    with pytest.raises(CheckpointError, match=r"weights that are NaN or infinite.*; train it again"):
        prediction.predict_files(other, [file])


def test_features_of_a_file_that_are_no_numbers_are_refused(subject, raw, monkeypatch):
    """Weights may be finite, and what they make of a file not."""
    evaluated(linear, subject)
    encoder = encoder_for(subject.run, subject.packed, torch.device("cpu"))
    encoder.module.register_forward_hook(lambda *of: of[-1] * np.inf)
    monkeypatch.setattr(prediction, "encoder_for", lambda *_: encoder)
    with pytest.raises(CheckpointError, match=r"of its features of the files, 1 of 1 are NaN or infinite, expected"):
        prediction.predict_files(subject, [next(raw.rglob("*.skeleton"))])


def test_files_that_cannot_be_answered_are_one_line_each(subject, tmp_path):
    (tmp_path / "empty.skeleton").write_text("3\n0\n0\n0\n")
    (tmp_path / "cut.skeleton").write_text("3\n1\n")
    (tmp_path / "clip.pdf").write_bytes(b"RIFF")
    np.save(tmp_path / "nan.npy", np.full((4, 25, 3), np.nan))
    np.save(tmp_path / "joints.npy", np.ones((4, 9, 3)))
    for name, said in {
        "empty.skeleton": "no body in any frame",
        "cut.skeleton": r"cut\.skeleton:",
        "clip.pdf": r"\.pdf is not a skeleton file; give \.npy",
        "nan.npy": "no body in any frame",
        "joints.npy": r"layout 'kinect_v2' needs \(T, 25, 3\)",
        "nowhere.skeleton": r"nowhere\.skeleton does not exist",
    }.items():
        with pytest.raises(DataError, match=said) as caught:
            prediction.predict_files(subject, [tmp_path / name])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_good_files_are_answered_beside_bad_ones(cli: Cli, subject, work, raw, tmp_path, order):
    good = next(raw.rglob("*.skeleton"))
    (tmp_path / "bad.json").write_text("[0]")
    files = [(good, tmp_path / "bad.json")[n] for n in order]
    found = cli("c2vl-eval", "predict", *files, "--run", subject.run, "--data", work, "--recipe", "debug", *sets(*SET))
    assert found.code == 1
    assert f"{good.stem} " in found.out
    assert "On the" in found.out
    assert "bad.json: JSON of no known form" in found.err
    failed = []
    (answer,) = prediction.predict_files(subject, [tmp_path / "a.npy", good, tmp_path / "b.npy"], failed)
    assert answer == prediction.predict_files(subject, [good])[0]
    assert ["does not exist" in str(error) for error in failed] == [True, True]
    assert prediction.predict_files(subject, [tmp_path / "a.npy"], []) == []


def test_missing_joints_of_a_file_do_not_hinder_its_answer(subject, tmp_path):
    joints = np.random.default_rng(0).normal(size=(30, 25, 3))
    joints[4:9, 7], joints[12] = np.nan, 0
    np.save(tmp_path / "x.npy", joints)
    (answer,) = prediction.predict_files(subject, [tmp_path / "x.npy"])
    assert answer.frames == 29


def test_a_file_of_another_sensor_is_mapped_to_the_encoder_s_joints(work, raw, tmp_path):
    copy = Path(shutil.copytree(work, tmp_path / "work"))
    used = load_recipe("debug", SET)
    pack.run(copy, used, layout="kinect_v1")
    packed = PackedDataset(copy / "packed-kinect_v1")
    train(Run("random", packed, used, "xsub", 0, tmp_path / "floor"))
    subject = EvalContext(tmp_path / "floor", packed, "xsub", used, 0)
    protocol = evaluated(linear, subject).predictions
    file = next(raw.rglob(f"{protocol.sample_ids[0]}.skeleton"))
    (answer,) = prediction.predict_files(subject, [file])
    best = int(np.argmax(protocol.scores[0]))
    assert answer.top[0][0] == packed.manifest.classes[best]
    assert answer.top[0][1] == pytest.approx(softmax(protocol.scores[:1])[0, best], rel=1e-3)


def test_joints_that_cannot_be_mapped_are_refused(raw, tmp_path):
    packed = PackedDataset(sticks(tmp_path / "packed"))
    train(run(packed.folder, tmp_path / "floor", kind="random"))
    subject = EvalContext(tmp_path / "floor", packed, "xsub", recipe(*SET), 0)
    with pytest.raises(ConfigError, match="'kinect_v2' cannot be mapped to 'stick'"):
        prediction.predict_files(subject, [next(raw.rglob("*.skeleton"))])


def test_predict_prints_a_table_of_the_five_most_probable_classes(cli: Cli, subject, work, raw):
    file = next(raw.rglob("*.skeleton"))
    words = ("--run", subject.run, "--data", work, "--recipe", "debug", *sets(*SET))
    found = cli("c2vl-eval", "predict", file, *words)
    assert found.code == 0, found.err
    (answer,) = prediction.predict_files(subject, [file])
    (line,) = [line for line in found.out.splitlines() if file.stem in line]
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    first, *others = [(name, f"{p:.3f}") for name, p in answer.top]
    assert cells == [file.stem, str(answer.frames), *first, ", ".join(f"{name} {p}" for name, p in others)]
    refused(cli("c2vl-eval", "predict", "nowhere.skeleton", *words), "nowhere.skeleton does not exist")


def test_calibration_is_that_of_the_answers_to_the_test_split(subject):
    protocol = evaluated(linear, subject).predictions
    known = prediction.calibration(subject)
    top = softmax(protocol.scores).max(axis=1)
    right = protocol.answers == protocol.labels
    assert (known.clips, known.sure) == (len(right), int((top >= prediction.SURE).sum()))
    assert known.probability == pytest.approx(top.mean())
    assert known.right == pytest.approx(right.mean())


def test_calibration_is_unknown_without_stored_answers(subject, tmp_path, capsys):
    folder = Path(shutil.copytree(subject.run, tmp_path / "run", ignore=lambda *_: {"evaluations"}))
    assert prediction.calibration(EvalContext(folder, subject.packed, "xsub", subject.recipe, 0)) is None
    show_predictions([prediction.Answer(tmp_path / "a.npy", 9, [("wave", 1.0), ("clap", 1e-9)])], None)
    shown = capsys.readouterr().out
    assert "calibrated is unknown" in shown
    assert "> 0.999" in shown
    assert "clap" not in shown
    assert "1.000" not in shown


@pytest.mark.parametrize(
    ("probability", "right", "word"),
    [(0.9, 0.6, "overconfident"), (0.5, 0.8, "underconfident"), (0.62, 0.6, "calibrated within noise")],
)
def test_calibration_is_worded_by_its_gap(probability, right, word):
    said = prediction.Calibration("xsub", 100, probability, right, 20, 0.75).words()
    assert f"On the 100 test clips of xsub probabilities are {word}" in said
    assert "Of 20 answered with 0.9 or more, 75 % are right." in said


def test_a_row_is_one_line_at_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    top = [("punch another person", 0.7), ("shake hands", 0.2), ("stand up", 0.1)]
    show_predictions([prediction.Answer(Path("S001C001P001R001A001.skeleton"), 9, top)], None)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "S001C001P001R001A001" in line]
    assert "punch another person" in line
    assert "0.700" in line


def test_files_of_one_name_are_told_apart(capsys):
    files = [Path("a/x.npy"), Path("b/x.npy"), Path("b/y.npy")]
    show_predictions([prediction.Answer(file, 9, [("wave", 0.7), ("clap", 0.3)]) for file in files], None)
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("a/x.npy", "b/x.npy", "y"))
