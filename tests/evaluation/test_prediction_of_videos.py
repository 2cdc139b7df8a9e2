"""Videos to answers: those of the skeletons that the pose stage makes of them."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation import prediction
from c2vl_evaluation.context import EvalContext
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.events import Event, Note
from c2vl_manifests.layouts import load_layout
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import index, pack, stages_of
from c2vl_pipeline.workspace import load, stored_joints
from c2vl_training.dataset import PackedDataset
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train
from support.factory import rows
from support.pose import film, settings, tiny_blazepose

SET = ("evaluation.linear.epochs=5", "evaluation.linear.milestones=[4]")


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvalContext, Path]:
    """A random encoder on eight videos of squares that go right or down, and the folder of the videos."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["sample_id,video,label,split_s"]
    for n in range(8):
        steps = [(10 + 2 * t + n, 10) if n % 2 else (10 + n, 10 + t) for t in range(20)]
        film(folder / f"{n}.avi", [[at] for at in steps])
        lines.append(f"{n},{n}.avi,{n % 2},{'train' if n < 4 else 'test'}")
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")
    model = tiny_blazepose(folder / "tiny.tflite")
    recipe, work = load_recipe("debug", [*settings(model), *SET]), tmp_path_factory.mktemp("work")
    index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug")
    for stage in stages_of(load(work)).values():
        runner.run_stage(stage, work, recipe)
    pack.run(work, recipe)
    packed, out = PackedDataset(work), tmp_path_factory.mktemp("runs") / "floor"
    train(Run("random", packed, recipe, "s", 0, out))
    return EvalContext(out, packed, "s", recipe, 0), folder


def test_a_video_is_answered_as_its_skeleton(subject: tuple[EvalContext, Path], tmp_path: Path) -> None:
    context, folder = subject
    stored = {row["sample_id"]: row for row in rows(context.packed.folder.parent, "skeletons")}
    files = []
    for n in (5, 6):
        np.save(tmp_path / f"{n}.npy", stored_joints(stored[str(n)], context.packed.manifest.joint_layout()))
        files.append(tmp_path / f"{n}.npy")
    found = prediction.predict_files(context, [folder / "5.avi", folder / "6.avi"])
    for answer, same in zip(found, prediction.predict_files(context, files), strict=True):
        assert (answer.frames, len(answer.top)) == (20, 2)
        assert [name for name, _ in answer.top] == [name for name, _ in same.top]
        np.testing.assert_allclose([p for _, p in answer.top], [p for _, p in same.top], rtol=1e-4)


def test_videos_of_nobody_or_of_nothing_are_one_line_each(subject: tuple[EvalContext, Path], tmp_path: Path) -> None:
    context, folder = subject
    film(tmp_path / "nobody.avi", [[]] * 5)
    (tmp_path / "empty.mp4").write_bytes(b"")
    failed: list[Exception] = []
    files = [tmp_path / "nobody.avi", tmp_path / "empty.mp4", tmp_path / "gone.mkv", folder / "5.avi"]
    assert len(prediction.predict_files(context, files, failed)) == 1
    said = [str(error) for error in failed]
    assert all("\n" not in line for line in said)
    assert "no body in any frame" in said[0]
    assert "finds no video in it" in said[1]
    assert "gone.mkv does not exist; give a skeleton file or a video" in said[2]


def test_a_recipe_without_an_estimator_names_those_there_are(subject: tuple[EvalContext, Path]) -> None:
    context, folder = subject
    other = EvalContext(context.run, context.packed, "s", load_recipe("debug", SET), 0)
    with pytest.raises(ConfigError, match=r"--set pipeline\.pose\.engine=NAME`, of blazepose with pose\.dims=2$"):
        prediction.predict_files(other, [folder / "5.avi"])


def warnings(context: EvalContext, files: list[Path]) -> list[str]:
    said: list[Event] = []
    assert len(prediction.predict_files(replace(context, emit=said.append), files)) == len(files)
    return [event.text for event in said if isinstance(event, Note) and event.level == "warning"]


def test_other_weights_are_noted_once_for_all_videos(subject: tuple[EvalContext, Path], tmp_path: Path) -> None:
    context, folder = subject
    model, files = tmp_path / "other.tflite", [folder / "5.avi", folder / "6.avi"]
    model.write_bytes((folder / "tiny.tflite").read_bytes() + b"\0")
    other = replace(context, recipe=load_recipe("debug", [*settings(model), *SET]))
    assert warnings(other, files) == [
        "joints of the data were found by other weights (tiny.tflite) than those of the videos here (other.tflite); "
        "give those by --set pose.model=PATH"
    ]
    assert warnings(context, files) == []


def test_another_estimator_or_detector_is_noted(subject: tuple[EvalContext, Path]) -> None:
    context, folder = subject
    packed, made = copy(context.packed), deepcopy(context.packed.manifest.engines)
    packed.manifest = packed.manifest.model_copy(update={"engines": made})
    made["skeletons"]["backend"], made["skeletons"]["detector"]["backend"] = "hf", "blazepose"
    assert warnings(replace(context, packed=packed), [folder / "5.avi"]) == [
        f"{found} of the data were found by another {noun} than those of the videos here ({now}); give --recipe and "
        "--set of the data"
        for found, noun, now in (
            ("joints", "pose estimator (hf)", "blazepose"),
            ("people", "detector (blazepose)", "motion"),
        )
    ]


def test_only_estimators_whose_joints_can_be_mapped_are_named() -> None:
    assert prediction._remedy(load_layout("coco_17")).endswith("of blazepose with pose.dims=2, hf-vitpose-base")
    assert "none here finds the joints of layout kinect_v2" in prediction._remedy(load_layout("kinect_v2"))


def test_a_failing_engine_names_the_video(subject: tuple[EvalContext, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from c2vl_pipeline.engines.heuristic import MotionDetector

    context, folder = subject

    def broken(*_: object) -> None:
        raise RuntimeError("upset")

    monkeypatch.setattr(MotionDetector, "detect", broken)
    with pytest.raises(DataError, match=r"5\.avi: 'blazepose' failed on 20 frames \(RuntimeError: upset\)"):
        prediction.predict_files(context, [folder / "5.avi"])
