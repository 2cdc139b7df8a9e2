"""BlazePose's detector: anchors, the place of a person in the frame, one person of many detections, what is missing."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline import engines
from c2vl_pipeline.engines import Frame

MODULE = "c2vl_pipeline.engines.blazepose_detector"


class Interpreter:
    """A network that sees what it is told: logits and numbers of the anchors."""

    logits = np.full((1, 2254, 1), -9, np.float32)
    numbers = np.zeros((1, 2254, 12), np.float32)
    seen: np.ndarray[Any, Any]

    def __init__(self, model_path: str, num_threads: int) -> None:
        if Path(model_path).read_bytes() != b"whole":
            raise ValueError("Model provided has model identifier 'x', should be 'TFL3'\n")

    def allocate_tensors(self) -> None:
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n")

    def invoke(self) -> None: ...
    def get_input_details(self) -> Any:
        return [{"index": 0}]

    def get_output_details(self) -> Any:
        return [{"index": 1, "shape": np.array([1, 2254, 12])}, {"index": 2, "shape": np.array([1, 2254, 1])}]

    def set_tensor(self, index: int, values: Any) -> None:
        Interpreter.seen = values

    def get_tensor(self, index: int) -> Any:
        return {1: self.numbers, 2: self.logits}[index]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)
    engines.clear()


def spec(path: Path, **options: Any) -> EngineSpec:
    return EngineSpec(role="detector", backend="blazepose", model=str(path), options=options)


def test_anchors_are_the_middles_of_cells_row_by_row(module: Any) -> None:
    naive = [
        ((column + 0.5) * stride, (row + 0.5) * stride)
        for stride, each in ((8, 2), (16, 2), (32, 6))
        for row in range(224 // stride)
        for column in range(224 // stride)
        for _ in range(each)
    ]
    assert module.anchors() == pytest.approx(np.array(naive))


def test_a_person_is_the_square_around_the_bodys_circle_in_pixels_of_the_frame(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tflite").write_bytes(b"whole")
    logits, numbers = Interpreter.logits.copy(), Interpreter.numbers.copy()
    at = 2 * (10 * 28 + 12)  # the cell of column 12 and row 10
    logits[0, at] = 2
    numbers[0, at, 4:8] = 4, -3, 4, -3 - 28  # hips beside the anchor; the circle's top 28 pixels above
    monkeypatch.setattr(Interpreter, "logits", logits)
    monkeypatch.setattr(Interpreter, "numbers", numbers)
    frame = Frame(np.full((240, 448, 3), 255, np.uint8), "a", 0)
    ((box,),) = engines.load(spec(tmp_path / "x.tflite")).detect([frame], "person")
    # the frame is halved and lies below a black border of (224 - 120) / 2
    x, y = 2 * (12.5 * 8 + 4), 2 * (10.5 * 8 - 3 - 52)
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((x - 56, y - 56, x + 56, y + 56))
    assert box.score == pytest.approx(1 / (1 + np.exp(-2)))
    assert Interpreter.seen.shape == (1, 224, 224, 3)
    assert Interpreter.seen[0, 20].max() == -1
    assert Interpreter.seen[0, 112].min() == 1
    weak = engines.load(spec(tmp_path / "x.tflite", threshold=0.9))
    assert weak.detect([frame], "person") == [[]]


def test_detections_that_overlap_are_one_person_at_their_weighted_mean(module: Any) -> None:
    hips = np.array([[100, 100], [104, 100], [300, 100]], float)
    points = np.stack([hips, hips - (0, 50)], axis=1)
    first, second = module.people(points, np.array([0.6, 0.9, 0.7]), 0.3)
    assert first[0] == pytest.approx(((100 * 0.6 + 104 * 0.9) / 1.5, 100))
    assert first[1:] == pytest.approx((50, 0.9))
    assert second[0] == pytest.approx((300, 100))
    assert module.people(np.zeros((0, 2, 2)), np.zeros(0), 0.3) == []


def test_what_the_library_writes_by_itself_is_dropped_and_nothing_else(
    module: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.tflite").write_bytes(b"whole")
    engines.load(spec(tmp_path / "x.tflite"))
    os.write(2, b"heard\n")
    assert capfd.readouterr() == ("", "heard\n")
    (tmp_path / "x.tflite").write_bytes(b"cut")
    engines.clear()
    with pytest.raises(EngineError):
        engines.load(spec(tmp_path / "x.tflite"))
    os.write(2, b"heard\n")
    assert capfd.readouterr() == ("", "heard\n")


def test_another_file_is_one_line(module: Any, tmp_path: Path) -> None:
    (tmp_path / "x.tflite").write_bytes(b"cut")
    with pytest.raises(EngineError, match=r"not BlazePose's detection network, or cut off \(Model provided") as raised:
        engines.load(spec(tmp_path / "x.tflite"))
    assert "\n" not in str(raised.value)


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(
        EngineError,
        match=r"needs ai-edge-litert and 'ai_edge_litert\S*' is not installed; `pip install -e '\.\[blazepose\]'`",
    ):
        engines.load(spec(tmp_path / "x.tflite"))
