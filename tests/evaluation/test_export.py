"""One file from joints to probabilities: its preparation is the readers' and trainer's, its answers are `predict`'s."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2vl_evaluation import export, prediction
from c2vl_evaluation.context import EvalContext
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import LAYOUTS, Layout
from c2vl_manifests.recipe_training import InputConfig
from c2vl_pipeline.readers.base import anchored
from c2vl_training import export as graphs
from c2vl_training.dataset import PackedDataset
from c2vl_training.export import session_of
from c2vl_training.inference import clip_of
from c2vl_training.trainer import train
from support import ROOT
from support.cli import Cli, sets
from support.packed import STICK
from support.training import recipe, run

SET = ("evaluation.linear.epochs=5", "evaluation.linear.milestones=[4]")


def recording(rng: np.random.Generator, layout: Layout, frames: int, people: int, *, centred: bool) -> np.ndarray:
    """Joints as sensors give them: gaps as zero and NaN, people who come and go or are never seen, empty frames."""
    joints = rng.normal(size=(frames, people, layout.joints, layout.dims)).astype(np.float32) + 1
    if centred:
        joints -= joints[:1, :1, layout.anchor : layout.anchor + 1]
    joints[rng.random(joints.shape[:3]) < rng.choice([0, 0.2])] = rng.choice([0, np.nan])
    joints[rng.random(joints.shape[:2]) < rng.choice([0, 0.3])] = 0
    joints[:, rng.random(people) < 0.2] = 0
    return joints


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from(["joint", "bone", "motion"]), st.sampled_from(["stick", "kinect_v2", "coco_17"]), st.booleans(),
)  # fmt: skip
def test_the_preparation_is_that_of_readers_and_trainer(seed, frames, people, bodies, stream, name, centred):
    layout = STICK if name == "stick" else LAYOUTS[name]
    joints = recording(np.random.default_rng(seed), layout, frames, people, centred=centred)
    config = InputConfig(stream=stream, frames=8)
    clip, length = export.Preparation(layout, bodies, config)(torch.from_numpy(joints))
    wanted = anchored(joints, layout, bodies).joints
    assert int(length) == len(wanted)
    if len(wanted):
        torch.testing.assert_close(clip, clip_of(wanted, layout, bodies, config), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def context(work: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalContext:
    """An encoder on the synthetic set in NTU's format."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(run(work, folder, *SET, kind="supervised"))
    return EvalContext(folder, PackedDataset(work), "xsub", recipe(*SET), 0)


@pytest.fixture(scope="module")
def made(context: EvalContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = export.export(context, tmp_path_factory.mktemp("onnx") / "recogniser.onnx")
    assert found.difference < 1e-5
    assert found.classes == 4
    assert found.loss is None
    return found.path


def clips(folder: Path) -> list[Path]:
    """Arrays of several lengths and numbers of people."""
    rng, paths = np.random.default_rng(3), []
    for frames, people in ((1, 1), (60, 3)):
        paths.append(folder / f"{frames}.npy")
        joints = recording(rng, LAYOUTS["kinect_v2"], frames, people, centred=False)
        joints[0, 0] = rng.normal(size=(25, 3))
        np.save(paths[-1], joints)
    return paths


@pytest.mark.slow
def test_the_example_of_the_documentation_gives_the_answers_of_predict(context, made, tmp_path):
    paths = clips(tmp_path)
    example = [sys.executable, str(ROOT / "docs" / "examples" / "recognise.py"), str(made)]
    for answer in prediction.predict_files(context, paths):
        said = subprocess.run([*example, str(answer.file)], capture_output=True, text=True, check=True).stdout
        found = {name: float(p) for p, name in (line.split("  ") for line in said.splitlines())}
        assert len(found) == len(answer.top)
        for name, probability in answer.top:
            assert found[name] == pytest.approx(probability, abs=1e-4)  # as many digits are printed
        assert sorted(found.values(), reverse=True) == [*found.values()]


@pytest.mark.slow
def test_a_skeleton_file_is_answered_as_by_predict(context, made, raw):
    from c2vl_pipeline import read_skeleton

    session = session_of(made)
    for answer in prediction.predict_files(context, sorted(raw.rglob("*.skeleton"))[:4]):
        (found,) = session.run(None, {export.INPUT: read_skeleton(answer.file)[0].joints})
        names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
        for name, probability in answer.top:
            assert found[names.index(name)] == pytest.approx(probability, abs=1e-4)


@pytest.mark.slow
def test_the_file_says_what_it_is_fed_and_gives_and_holds_no_ids(context, made):
    held = {p.key: p.value for p in onnx.load(made).metadata_props}
    assert json.loads(held["classes"]) == list(context.packed.manifest.classes)
    assert json.loads(held["layout"]) == list(context.packed.layout.names)
    assert "metres" in held["input"]
    assert context.packed.sample_ids([0])[0] not in held["c2vl"]
    for folder in (Path(torch.__file__).parents[1], ROOT, context.run, Path.home()):
        assert str(folder).encode() not in made.read_bytes()
    for frames in (0, 3):
        (found,) = session_of(made).run(None, {export.INPUT: np.zeros((frames, 1, 25, 3), np.float32)})
        assert np.isnan(found).all()
    card = (context.run / "README.md").read_text()
    stored = json.loads(next((context.run / "evaluations").glob("linear-*.json")).read_text())["result"]
    assert f"| linear | xsub | {100 * stored['last']['top1']:.1f} % | {stored['test']} |" in card


@pytest.mark.slow
def test_int8_is_smaller_and_its_loss_is_measured_on_the_test_clips(context, made, tmp_path, cli: Cli, monkeypatch):
    monkeypatch.setattr(export, "graph_of", lambda *_: made.read_bytes())  # it takes torch a while to make it
    (context.run / "README.md").write_text("edited")
    out = tmp_path / "int8.onnx"
    words = ("--run", context.run, "--data", context.packed.folder, "--out", out, "--int8")
    said = cli("c2vl-eval", "export", *words, "--recipe", "debug", *sets(*SET))
    assert said.code == 0, said
    assert out.stat().st_size < made.stat().st_size
    assert any(node.op_type == "ConvInteger" for node in onnx.load(out).graph.node)
    rows = context.packed.select("xsub", "test").rows
    labels, held = context.packed.labels()[rows], context.packed
    answers = []
    for path in (made, out):
        session = session_of(path)
        joints = [held.joints[held.offsets[r] : held.offsets[r + 1]].transpose(0, 2, 3, 1) for r in rows]
        answers.append(np.array([session.run(None, {export.INPUT: j})[0].argmax() for j in joints]))
    plain, small = (100 * (found == labels).mean() for found in answers)
    same = 100 * (answers[0] == answers[1]).mean()
    line = said.told[1][-1]
    assert f"top-1 {small:.1f} %, in float32 {plain:.1f} %; {same:.1f} % of the answers are the same" in line
    assert f"on the {len(rows)} test clips" in line
    assert (context.run / "README.md").read_text() == "edited"


def test_a_missing_package_says_which_extra(context, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxruntime" else object())
    with pytest.raises(EngineError, match=r"needs the package onnxruntime; `pip install"):
        export.export(context, tmp_path / "x.onnx", int8=True)
