"""`blazepose` as a detector: the network that finds people for BlazePose, run by LiteRT.

Source: MediaPipe's `pose_detection.tflite`. It sees the frame in a square of 224 pixels with black borders, values in
[-1, 1], and gives for each of 2,254 anchors a logit and 12 numbers, all in pixels from the anchor: box of the face (x, y,
width, height) and four points, of which the first is the middle of the hips and the second lies on the circle around it
that holds the body. OpenCV cannot read the file: its weights are stored sparsely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_pipeline.engines import Box, Detector, Frame, Image, Options, checked_options
from c2vl_pipeline.engines.tflite import located, refusal, silent

_SIDE = 224
_GRIDS = ((8, 2), (16, 2), (32, 6))
"""(stride in pixels, anchors per cell)."""
_SHAPES = {(1, 2254, 1), (1, 2254, 12)}
_FILES = "pose_detection.tflite"


class _Options(Options):
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Smallest score of a person."""
    overlap: float = Field(default=0.3, ge=0, le=1)
    """IoU from which two detections are one person, whose place is their mean, weighted by score."""


def anchors() -> npt.NDArray[np.float64]:
    """Return the centres of the anchors' cells in pixels of the square. Shape: (2254, 2)."""
    cells = []
    for stride, each in _GRIDS:
        places = (np.arange(_SIDE // stride) + 0.5) * stride
        y, x = np.meshgrid(places, places, indexing="ij")
        cells.append(np.repeat(np.column_stack([x.ravel(), y.ravel()]), each, axis=0))
    return np.concatenate(cells)


class BlazePoseDetector(Detector):
    """Finds people by face, hips and body. A box is the square around the body's circle; it may leave the frame."""

    def __init__(self, spec: EngineSpec) -> None:
        self._options = checked_options(spec, _Options)
        self._path = located(spec, _FILES)
        try:
            with silent():
                self._net = Interpreter(model_path=str(self._path), num_threads=1)
                self._net.allocate_tensors()
            outputs = {tuple(map(int, one["shape"])): one["index"] for one in self._net.get_output_details()}
            if set(outputs) != _SHAPES:
                raise ValueError(f"outputs {sorted(outputs)}; expected {sorted(_SHAPES)}")
        except (ValueError, RuntimeError, TypeError) as error:
            problem = f"not BlazePose's detection network, or cut off ({one_line(error)})"
            raise refusal(spec, problem, _FILES) from error
        self._input = self._net.get_input_details()[0]["index"]
        self._logits, self._numbers = (outputs[shape] for shape in sorted(_SHAPES))
        self._anchors = anchors()

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the hash of the file."""
        return {"sha256": remembered_sha256(located(spec, _FILES))}

    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the boxes of each frame, best first; the query is not needed."""
        return [self._boxes(frame.image) for frame in frames]

    def _boxes(self, image: Image) -> list[Box]:
        height, width = image.shape[:2]
        scale = _SIDE / max(height, width)
        corner = np.array([_SIDE - width * scale, _SIDE - height * scale]) / 2
        place = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
        square = cv2.warpAffine(image, place, (_SIDE, _SIDE), flags=cv2.INTER_LINEAR)
        self._net.set_tensor(self._input, (square.astype(np.float32) / 127.5 - 1)[None])
        self._net.invoke()
        logits = self._net.get_tensor(self._logits)[0, :, 0].astype(np.float64)
        scores = 1 / (1 + np.exp(-np.clip(logits, -100, 100)))
        found = np.flatnonzero(scores >= self._options.threshold)
        points = self._net.get_tensor(self._numbers)[0, found, 4:8].reshape(-1, 2, 2) + self._anchors[found, None]
        circles = people(points, scores[found], self._options.overlap)
        boxes = []
        for centre, radius, score in circles:
            (x0, y0), (x1, y1) = (centre - radius - corner) / scale, (centre + radius - corner) / scale
            boxes.append(Box(float(x0), float(y0), float(x1), float(y1), score))
        return boxes

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        facts = {"backend": "blazepose", "model": self._path.name, "sha256": remembered_sha256(self._path)}
        return facts | self._options.model_dump()


def people(
    points: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], overlap: float
) -> list[tuple[npt.NDArray[np.float64], float, float]]:
    """Return (centre, radius, score) of each person, best first: detections that overlap become their weighted mean.

    Args:
        points: hips and a point on the circle of each detection, (n, 2, 2).
        scores: of the detections, (n,).
        overlap: smallest IoU of the squares around their circles.
    """
    radii = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
    low, high = points[:, 0] - radii[:, None], points[:, 0] + radii[:, None]
    left, made = np.argsort(-scores, kind="stable"), []
    while len(left):
        best = left[0]
        sides = np.minimum(high[left], high[best]) - np.maximum(low[left], low[best])
        both = np.prod(np.maximum(sides, 0), axis=1)
        union = 4 * radii[left] ** 2 + 4 * radii[best] ** 2 - both
        same = both >= overlap * union
        same[0] = True
        group = left[same]
        centre, edge = np.average(points[group], axis=0, weights=scores[group])
        made.append((centre, float(np.linalg.norm(edge - centre)), float(scores[best])))
        left = left[~same]
    return made
