"""`blazepose`: 33 landmarks of a person, in the image and in metres, by BlazePose's published network.

Source: Bazarevsky et al., *BlazePose: On-device Real-time Body Pose tracking* (2020), and MediaPipe's
`pose_landmark_{lite,full,heavy}.tflite`, which OpenCV reads by itself. The network sees a square of 256 pixels:

    Identity    (39, 5)  x, y, z in pixels of the square; logits of visibility and of presence; 33 landmarks, 6 helpers
    Identity_1  (1,)     probability that a person is in the square
    Identity_4  (39, 3)  metres about the middle of the hips: x right, y down, z away from the camera
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import one_line
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.layouts import Layout, load_layout
from c2vl_pipeline.engines import Array, Box, Frame, Image, Options, Person, PoseEstimator, checked_options
from c2vl_pipeline.engines.tflite import located, refusal

_SIDE = 256
_LANDMARKS = 33
_OUTPUTS = {"Identity": 39 * 5, "Identity_1": 1, "Identity_4": 39 * 3}
"""Outputs that are read -> their number of values."""
_FILES = "pose_landmark_lite.tflite, pose_landmark_full.tflite or pose_landmark_heavy.tflite"


class _BlazePose(Options):
    dims: Literal[2, 3] = 3
    """2: landmarks in the image; 3: landmarks in metres."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Smallest probability, at the first look, that a person is in the square; a later look that doubts it is not used."""
    grow: float = Field(default=1.5, ge=1, le=4)
    """Side of the square that the network sees, in longer sides of the box."""
    passes: int = Field(default=2, ge=1, le=4)
    """Looks at each person: every further one through the square around the joints of the one before."""


class BlazePose(PoseEstimator):
    """Estimates one person per box.

    *Reading:* MediaPipe centres the square on the hips, with a side of 2.5 times the radius of the circle around them
    that holds the body, and turns it until the person is upright. A detector gives a box alone, so the first pass sees a
    square around the middle of the box; the next ones see the square of hips and radius that the network itself
    reports (its helpers 33 and 34), turned as there.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._options = checked_options(spec, _BlazePose)
        self._path = located(spec, _FILES)
        self._sha256 = remembered_sha256(self._path)
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would print the fault too
        try:
            # from memory: OpenCV neither names the file nor the fault, and a path may hold any letter
            self._net = cv2.dnn.readNetFromTFLite(np.fromfile(self._path, np.uint8))
            self._run(np.zeros((_SIDE, _SIDE, 3), np.uint8))
        except (cv2.error, ValueError, OSError) as error:
            problem = f"not BlazePose's landmark network, or cut off ({_fault(error)})"
            raise refusal(spec, problem, _FILES) from error
        finally:
            cv2.utils.logging.setLogLevel(level)

    @staticmethod
    def layout(spec: EngineSpec) -> Layout:
        """Return MediaPipe's 33 joints in 2D or 3D."""
        return load_layout("mediapipe_33" if checked_options(spec, _BlazePose).dims == 3 else "mediapipe_33_2d")

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return the hash of the file."""
        return {"sha256": remembered_sha256(located(spec, _FILES))}

    def estimate(self, frames: Sequence[Frame], boxes: Sequence[Sequence[Box]]) -> list[list[Person]]:
        """Return the people of each frame, at most one per box."""
        return [
            [person for box in of_frame if (person := self._person(frame.image, box)) is not None]
            for frame, of_frame in zip(frames, boxes, strict=True)
        ]

    def _person(self, image: Image, box: Box) -> Person | None:
        centre = np.array([box.x0 + box.x1, box.y0 + box.y1]) / 2
        side = self._options.grow * max(box.x1 - box.x0, box.y1 - box.y0)
        angle, person = 0.0, None
        for _ in range(self._options.passes):
            if not 2 <= side <= 16 * max(image.shape):
                break
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            axes = turn * side / _SIDE
            corner = centre - axes @ (_SIDE / 2, _SIDE / 2)
            square = cv2.warpAffine(
                image,
                np.column_stack([axes, corner]),
                (_SIDE, _SIDE),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            landmarks, probability, world = self._run(np.asarray(square, np.uint8))
            if probability < self._options.threshold:
                break
            places = landmarks[:, :2] @ axes.T + corner
            scores = 1 / (1 + np.exp(-landmarks[:_LANDMARKS, 4:]))
            pixels = np.hstack([places[:_LANDMARKS], scores]).astype(np.float32)
            world[:, :2] = world[:, :2] @ turn.T
            person = Person(pixels, probability, world[:_LANDMARKS])
            centre, (x, y) = places[33], places[34] - places[33]
            side, angle = 2.5 * float(np.hypot(x, y)), float(np.pi / 2 - np.arctan2(-y, x))
        return person

    def _run(self, square: Image) -> tuple[npt.NDArray[np.float64], float, Array]:
        """Return landmarks (39, 5), the probability of a person, and world landmarks (39, 3)."""
        pixels = np.ascontiguousarray(square.transpose(2, 0, 1)[None], np.float32) / 255
        self._net.setInput(pixels)
        values = self._net.forward(list(_OUTPUTS))
        sizes = dict(zip(_OUTPUTS, (value.size for value in values), strict=True))
        if sizes != _OUTPUTS:
            raise ValueError(f"outputs of {', '.join(map(str, sizes.values()))} values; expected 195, 1, 117")
        landmarks, probability, world = values
        return (
            landmarks.reshape(39, 5).astype(np.float64),
            float(probability.item()),
            world.reshape(39, 3).astype(np.float32),
        )

    def describe(self) -> Mapping[str, Any]:
        """Return the facts that the stage's manifest records."""
        facts = {"backend": "blazepose", "model": self._path.name, "sha256": self._sha256}
        return facts | self._options.model_dump()


def _fault(error: Exception) -> str:
    """Return what OpenCV says of a file, without the place in its own sources."""
    return one_line(error, limit=400).rpartition("error: ")[2][:120]
