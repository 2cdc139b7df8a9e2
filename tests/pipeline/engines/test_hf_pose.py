"""ViTPose: joints follow their boxes, whatever else is in the batch; checkpoints of another role are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, VitPoseForPoseEstimation

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import index, pose
from support.factory import rows
from support.pose import film, tiny_vitpose

IMAGE = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
BOXES = [Box(10, 10, 60, 110, 0.9), Box(70, 5, 150, 90, 0.8), Box(20.5, 30.25, 40, 70, 0.7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vitpose(tmp_path_factory.mktemp("vitpose"))


def build(model: Path, **fields: Any) -> Any:
    detector = EngineSpec(role="detector", backend="motion")
    return engines.load(EngineSpec(role="pose", backend="hf", model=str(model), detector=detector, **fields))


def test_joints_are_those_of_the_library_for_the_same_boxes(folder: Path) -> None:
    (people,) = build(folder).estimate([Frame(IMAGE, "a", 0)], [BOXES])
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = VitPoseForPoseEstimation.from_pretrained(folder).eval()
    boxes = [[[b.x0, b.y0, b.x1 - b.x0, b.y1 - b.y0] for b in BOXES]]
    with torch.inference_mode():
        outputs = model(**processor(IMAGE, boxes=boxes, return_tensors="pt"))
    (expected,) = processor.post_process_pose_estimation(outputs, boxes=boxes)
    for person, one in zip(people, expected, strict=True):
        assert person.pixels[:, :2] == pytest.approx(one["keypoints"].numpy(), abs=1e-3)
        assert person.pixels[:, 2] == pytest.approx(one["scores"].numpy().clip(0, 1), abs=1e-5)
        assert person.score == pytest.approx(person.pixels[:, 2].mean())


def test_many_at_once_are_as_one_by_one(folder: Path) -> None:
    frames = [Frame(IMAGE, "a", 0), Frame(np.ascontiguousarray(IMAGE[::-1, :100]), "a", 1), Frame(IMAGE, "a", 2)]
    boxes = [BOXES, [], BOXES[:1]]
    found = build(folder, batch_size=3).estimate(frames, boxes)
    assert [len(people) for people in found] == [3, 0, 1]
    single = build(folder, batch_size=1)
    for frame, of_frame, people in zip(frames, boxes, found, strict=True):
        for box, person in zip(of_frame, people, strict=True):
            ((alone,),) = single.estimate([frame], [[box]])
            assert person.pixels == pytest.approx(alone.pixels, abs=1e-3)


def test_joints_move_with_the_picture(folder: Path) -> None:
    still, moved = (np.pad(IMAGE, ((40 + y, 60 - y), (40 + x, 80 - x), (0, 0))) for x, y in ((0, 0), (32, 16)))
    ((one,),) = build(folder).estimate([Frame(still, "a", 0)], [[Box(50, 50, 100, 150, 1)]])
    ((other,),) = build(folder).estimate([Frame(moved, "a", 0)], [[Box(82, 66, 132, 166, 1)]])
    assert other.pixels[:, :2] - one.pixels[:, :2] == pytest.approx(np.tile([32, 16], (17, 1)), abs=1e-2)


def test_the_layout_is_that_of_coco(folder: Path) -> None:
    spec = EngineSpec(
        role="pose", backend="hf", model=str(folder), detector=EngineSpec(role="detector", backend="motion")
    )
    assert (engines.layout_of(spec).name, engines.layout_of(spec).dims) == ("coco_17", 2)
    assert engines.key_facts(spec)["revision_resolved"].startswith("sha256:")


def test_experts_of_vitpose_plus_are_those_of_coco(tmp_path: Path) -> None:
    ((person,),) = build(tiny_vitpose(tmp_path / "plus", experts=3)).estimate([Frame(IMAGE, "a", 0)], [BOXES[:1]])
    assert np.isfinite(person.pixels).all()


def test_the_stage_finds_people_by_one_checkpoint_and_their_joints_by_another(
    folder: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    film(tmp_path / "own" / "x.avi", [[(20, 30)], [(60, 20)], [(90, 60)]])
    (tmp_path / "own" / "samples.csv").write_text("sample_id,video\na,x.avi\n")
    chosen = [
        "pipeline.pose.engine=hf-vitpose-base", f"pose.model={folder}", f"pose.detector.model={folders['detector']}",
        "pose.detector.dtype=float32", "pose.detector.options.threshold=0.05", "pose.detector.options.text_threshold=0.0",
        "pipeline.pose.joint_score=0.0",
    ]  # fmt: skip
    recipe = load_recipe("debug", chosen)
    made, _ = index.build(load_dataset("generic"), tmp_path / "own", tmp_path / "w", recipe.pipeline, recipe="debug")
    manifest = runner.run_stage(pose.STAGE, tmp_path / "w", recipe, max_failures=1.0)
    (row,) = rows(tmp_path / "w", "skeletons")
    assert (row["status"], row["frames"], made.layout.name) == ("ok", 3, "coco_17")
    assert manifest.provenance["detector"]["backend"] == manifest.provenance["backend"] == "hf"
    keyed = manifest.inputs["engine"]
    assert keyed["revision_resolved"] != keyed["detector"]["revision_resolved"]


def test_a_checkpoint_of_other_joints_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="that finds 21 joints; expected the 17 of COCO"):
        build(tiny_vitpose(tmp_path / "hands", joints=21))


def test_a_checkpoint_of_another_role_is_one_line(folders: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="holds a 'clip' model") as raised:
        build(folders["encoder"])
    assert "\n" not in str(raised.value)
