"""BlazePose's landmarks: where they lie in the frame, who is nobody, and files that are no such network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Box, Frame, Person
from c2vl_pipeline.stages.pose import other_side
from support import ROOT
from support.pose import figure, tiny_blazepose, world

MOTION = EngineSpec(role="detector", backend="motion")


def spec(model: Path | str, **options: Any) -> EngineSpec:
    return EngineSpec(role="pose", backend="blazepose", model=str(model), detector=MOTION, options=options)


def look(model: Path, box: Box, image: Any = None, **options: Any) -> list[Person]:
    white = np.full((300, 400, 3), 255, np.uint8)
    frame = Frame(white if image is None else image, "a", 0)
    (people,) = engines.load(spec(model, **options)).estimate([frame], [[box]])
    return list(people)


def test_joints_lie_in_the_square_around_the_box(tmp_path: Path) -> None:
    (person,) = look(tiny_blazepose(tmp_path / "x.tflite"), Box(100, 50, 140, 130, 1), passes=1, grow=1.5)
    side = 1.5 * 80
    expected = [(120 + (u / 256 - 0.5) * side, 90 + (v / 256 - 0.5) * side) for u, v in figure()[:33, :2]]
    assert person.pixels[:, :2] == pytest.approx(np.array(expected), abs=1e-3)
    assert person.pixels[:, 2] == pytest.approx(1 / (1 + np.exp(-4)))
    assert person.world == pytest.approx(world()[:33])
    assert person.score == pytest.approx(1)


def test_a_further_look_sees_the_square_of_hips_and_radius_turned_upright(tmp_path: Path) -> None:
    lying = figure()
    lying[34, :2] = 128 + 51.2, 128  # the body's circle is reached to the right of the hips: half as large, lying
    model = tiny_blazepose(tmp_path / "x.tflite", lying)
    (first,) = look(model, Box(100, 100, 200, 200, 1), passes=1, grow=1)
    (second,) = look(model, Box(100, 100, 200, 200, 1), passes=2, grow=1)
    assert first.pixels[:, :2] == pytest.approx(150 + (lying[:33, :2] - 128) * 100 / 256, abs=1e-3)
    side = 2.5 * 51.2 * 100 / 256
    u, v = ((lying[:33, :2] - 128) * side / 256).T
    assert second.pixels[:, :2] == pytest.approx(150 + np.column_stack([-v, u]), abs=1e-3)  # a quarter turn
    x, y, z = world()[:33].T
    assert second.world == pytest.approx(np.column_stack([-y, x, z]), abs=1e-6)


def test_nobody_is_in_a_dark_square(tmp_path: Path) -> None:
    model = tiny_blazepose(tmp_path / "x.tflite")
    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = 200
    assert look(model, Box(20, 50, 140, 130, 1), image) == []
    assert len(look(model, Box(260, 50, 300, 130, 1), image)) == 1
    assert look(model, Box(260, 50, 300, 130, 1), image, threshold=0.9) == []


def test_people_are_told_by_frame_and_box(tmp_path: Path) -> None:
    engine = engines.load(spec(tiny_blazepose(tmp_path / "x.tflite"), passes=1))
    frames = [Frame(np.full((200, 200, 3), 255, np.uint8), "a", n) for n in range(3)]
    boxes = [[Box(0, 0, 50, 50, 1), Box(100, 100, 150, 150, 1)], [], [Box(20, 20, 60, 60, 1)]]
    found = engine.estimate(frames, boxes)
    assert [len(one) for one in found] == [2, 0, 1]
    assert found[0][1].pixels[:, :2] == pytest.approx(found[0][0].pixels[:, :2] + 100, abs=1e-3)


def test_the_layout_follows_the_number_of_coordinates() -> None:
    assert engines.layout_of(spec("any")).dims == 3
    flat = engines.layout_of(spec("any", dims=2))
    assert (flat.name, flat.dims, flat.joints) == ("mediapipe_33_2d", 2, 33)


def test_other_bytes_are_other_weights(tmp_path: Path) -> None:
    one, other = tiny_blazepose(tmp_path / "x.tflite"), tiny_blazepose(tmp_path / "y.tflite", figure() + 1)
    assert engines.key_facts(spec(one))["sha256"] != engines.key_facts(spec(other))["sha256"]
    assert engines.key_facts(spec(one))["detector"]["backend"] == "motion"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_one_line(tmp_path: Path, share: float) -> None:
    path = tiny_blazepose(tmp_path / "x.tflite")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(EngineError, match=r"pipeline\.pose\.engine\.model = '.*x\.tflite': .*`make weights`") as raised:
        engines.load(spec(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("outputs", [(63, 1, 117), (195, 2, 117), (195, 1, 63)])
def test_a_network_with_other_outputs_is_another_model(tmp_path: Path, outputs: tuple[int, int, int]) -> None:
    path = tiny_blazepose(tmp_path / "x.tflite", outputs=outputs)
    found = ", ".join(map(str, outputs))
    with pytest.raises(
        EngineError, match=f"not BlazePose's landmark network.*outputs of {found} values; expected 195, 1"
    ):
        engines.load(spec(path))


def test_bytes_of_anything_else_are_one_line(tmp_path: Path) -> None:
    for n, content in enumerate([b"hello" * 1000, np.random.default_rng(0).bytes(5000), b"\0" * 5000]):
        path = tmp_path / f"{n}.tflite"
        path.write_bytes(content)
        with pytest.raises(EngineError, match="not BlazePose's landmark network, or cut off"):
            engines.load(spec(path))


def test_a_file_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no such file; expected pose_landmark_lite\.tflite.*`make weights` fetches it"
    ):
        engines.load(spec(tmp_path / "absent.tflite"))
    with pytest.raises(EngineError, match="no file is named"):
        engines.load(EngineSpec(role="pose", backend="blazepose", detector=MOTION))


def test_the_published_network_finds_the_mirrored_joints_in_a_mirrored_frame(shared: Path) -> None:
    from c2vl_pipeline.readers.video import Video

    model = ROOT / "weights" / "pose_landmark_full.tflite"
    if not model.is_file():
        pytest.skip("needs the weights that `make weights` fetches")
    with Video(shared / "videos" / "bird.mkv") as video:
        ((_, image),) = video.frames([60])
    width = image.shape[1]
    (one,) = look(model, Box(0, 0, width, image.shape[0], 1), image)
    (other,) = look(model, Box(0, 0, width, image.shape[0], 1), np.ascontiguousarray(image[:, ::-1]))
    sides = other_side(engines.layout_of(spec(model)))
    there = one.pixels[:, 2] > 0.5
    back = other.pixels[sides][:, :2] * (-1, 1) + (width - 1, 0)
    assert np.linalg.norm(back - one.pixels[:, :2], axis=1)[there].mean() < 0.04 * image.shape[0]
