"""Back-ends behind three Protocols: who finds people, who describes them, who turns both into vectors.

`load(spec)` imports a back-end when it is first asked for and keeps it for the life of the process, so a Dask
worker holds each model once. Only the modules in this folder touch model libraries.

Arrays: images are uint8 RGB, (H, W, 3); boxes are pixels of that image, (x0, y0, x1, y1), x1 and y1 exclusive.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import Layout

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded video frame and what else is known about that instant."""

    image: Image
    sample_id: str
    slot: int
    camera: str = ""
    """Frames of one camera share a background."""
    joints: Array | None = None
    """Joints projected into this image, (bodies, V, 2) pixels, where the dataset records them; NaN = unseen."""
    background: Image | None = None
    """What this camera sees when nobody is there, for engines that need it."""


@dataclass(frozen=True, slots=True)
class Box:
    """One person: pixels (x0, y0, x1, y1) and a score in [0, 1]."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


@dataclass(frozen=True, slots=True)
class Pose:
    """The joints around one instant: `clip` is (T, bodies, V, C) in metres, `at` the instant's index in it."""

    clip: Array
    at: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Crop:
    """One person crop as it was stored (already shaped by the aspect policy), and its pose where known."""

    image: Image
    sample_id: str
    slot: int
    pose: Pose | None = None


@dataclass(frozen=True, slots=True)
class Caption:
    """An answer, and how many new tokens it took (words, for engines without a tokenizer)."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class TextVectors:
    """L2-normalised text vectors (n, D), token counts before truncation (n,), and which were truncated (n,)."""

    vectors: Array
    tokens: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.bool_]


class Detector(Protocol):
    """Finds people. Returns one list of boxes a frame, best first; an empty list means nobody is there."""

    needs: frozenset[str]
    """What frames must carry beside the image: `joints`, `background`."""

    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the people of each frame."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the stage's manifest says of this engine."""
        ...


class Captioner(Protocol):
    """Answers the question about each crop. `needs` may hold `pose`."""

    needs: frozenset[str]

    def caption(self, crops: Sequence[Crop], question: str) -> list[Caption]:
        """Return an answer a crop."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the stage's manifest says of this engine."""
        ...


class Encoder(Protocol):
    """Encodes crops and captions; vectors are float32 and L2-normalised."""

    image_dim: int
    text_dim: int

    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return vectors (n, image_dim)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return vectors (n, text_dim), and what was truncated."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the stage's manifest says of this engine."""
        ...


@dataclass(frozen=True, slots=True)
class _Backend:
    factory: str
    needs_packages: tuple[str, ...] = field(default=())


_BACKENDS: dict[tuple[str, str], _Backend] = {
    ("detector", "hf"): _Backend("c2vl_pipeline.engines.hf:GroundingDino", ("torch", "transformers")),
    ("detector", "skeleton"): _Backend("c2vl_pipeline.engines.embedded:SkeletonDetector"),
    ("detector", "motion"): _Backend("c2vl_pipeline.engines.embedded:MotionDetector"),
    ("captioner", "hf"): _Backend("c2vl_pipeline.engines.hf:Llava", ("torch", "transformers")),
    ("captioner", "posecode"): _Backend("c2vl_pipeline.engines.posecode:PoseCode"),
    ("encoder", "hf"): _Backend("c2vl_pipeline.engines.hf:Clip", ("torch", "transformers")),
    ("encoder", "classical"): _Backend("c2vl_pipeline.engines.embedded:Classical"),
}


def backends(role: str) -> list[str]:
    """Names of the back-ends that can play `role`."""
    return [name for r, name in _BACKENDS if r == role]


def _module(spec: EngineSpec) -> tuple[Any, str]:
    """Import the module of a back-end; returns it and the name of its factory."""
    backend = _BACKENDS.get((spec.role, spec.backend))
    if backend is None:
        raise EngineError(
            f"no {spec.role} engine is called {spec.backend!r}; the {spec.role} engines are "
            f"{', '.join(backends(spec.role))}"
        )
    module, name = backend.factory.split(":")
    try:
        return importlib.import_module(module), name
    except ModuleNotFoundError as error:
        wanted = ", ".join(backend.needs_packages) or error.name
        raise EngineError(
            f"the {spec.role} engine {spec.backend!r} needs {wanted} and {error.name!r} is not installed; "
            f"`pip install {error.name}`"
        ) from error


@lru_cache(maxsize=4)
def _load(key: str) -> Any:
    spec = EngineSpec.model_validate_json(key)
    module, name = _module(spec)
    factory: Callable[[EngineSpec], Any] = getattr(module, name)
    return factory(spec)


def identity(spec: EngineSpec) -> dict[str, Any]:
    """Return what tells two sets of weights apart, without loading them; empty for engines without weights.

    Raises EngineError in one line for an unknown back-end, a missing package or a missing checkpoint.
    """
    module, _ = _module(spec)
    identify: Callable[[EngineSpec], dict[str, Any]] | None = getattr(module, "identify", None)
    return identify(spec) if identify else {}


def load(spec: EngineSpec) -> Any:
    """Return the engine of `spec`: imported lazily, built once a process.

    Raises EngineError in one line for an unknown back-end, a missing package or a missing checkpoint.
    """
    return _load(spec.key())
