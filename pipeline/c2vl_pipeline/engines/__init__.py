"""Back-ends behind three Protocols: who finds people, who describes them, who turns both into vectors.

`load(spec)` imports a back-end when it is first asked for and keeps it for the life of the process, so a Dask
worker holds each model once. Only the modules in this folder touch model libraries.

Arrays: images are uint8 RGB, (H, W, 3); boxes are pixels of that image, (x0, y0, x1, y1), x1 and y1 exclusive.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import Layout

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
_Form = TypeVar("_Form", bound=BaseModel)


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
    frames: int | None = None
    """Slots a sample has in this run, where known."""


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
    """What frames must carry beside the image: `joints`, `background`; `shape` says that of the image only its shape
    is looked at: its colours may then be in any order."""

    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return the people of each frame."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return what the stage's manifest says of this engine."""
        ...


class Captioner(Protocol):
    """Answers the question about each crop.

    `needs` may hold `pose`, or `nothing`: the captioner looks at no pixels and is asked about every planned frame,
    whether or not there is a crop.
    """

    needs: frozenset[str]

    def caption(self, crops: Sequence[Crop], question: str) -> Sequence[Caption | Exception]:
        """Return an answer a crop, in order; an exception in its place says why this one crop has none.

        Raises:
            EngineError: One line, when the engine and not a crop is at fault: it stops the stage.
        """
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
    ("detector", "skeleton"): _Backend("c2vl_pipeline.engines.heuristic:SkeletonDetector"),
    ("detector", "motion"): _Backend("c2vl_pipeline.engines.heuristic:MotionDetector"),
    ("detector", "groundingdino-py"): _Backend(
        "c2vl_pipeline.engines.groundingdino:GroundingDinoPy", ("torch", "transformers")
    ),
    ("captioner", "hf"): _Backend("c2vl_pipeline.engines.hf:Llava", ("torch", "transformers")),
    ("captioner", "llava"): _Backend("c2vl_pipeline.engines.llava:OriginalLlava", ("torch",)),
    ("captioner", "openai"): _Backend("c2vl_pipeline.engines.openai_server:Served", ("openai",)),
    ("captioner", "released"): _Backend("c2vl_pipeline.engines.precomputed:Released"),
    ("captioner", "posecode"): _Backend("c2vl_pipeline.engines.posecode:PoseCode"),
    ("encoder", "hf"): _Backend("c2vl_pipeline.engines.hf:Clip", ("torch", "transformers")),
    ("encoder", "classical"): _Backend("c2vl_pipeline.engines.heuristic:Classical"),
}
_STAGES = {"detector": "crop", "captioner": "caption", "encoder": "embed"}


def backends(role: str) -> list[str]:
    """Names of the back-ends that can play `role`."""
    return [name for r, name in _BACKENDS if r == role]


def setting(spec: EngineSpec) -> str:
    """Return where a recipe sets an engine of this role, such as `pipeline.crop.engine`."""
    return f"pipeline.{_STAGES[spec.role]}.engine"


def checked_options(spec: EngineSpec, form: type[_Form]) -> _Form:
    """Validate `spec.options`.

    Raises:
        EngineError: One line: an unknown option with the known ones, a missing one, or a wrong value.
    """
    try:
        return form.model_validate(spec.options)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"{setting(spec)}.options.{first['loc'][0]}"
        if first["type"] == "missing":
            raise EngineError(
                f"{name} is missing; the {spec.role} engine {spec.backend!r} needs it: set it by `--set {name}=…`"
            ) from error
        raise EngineError(
            f"{name} = {first['input']!r}: {first['msg']}; the options are {', '.join(form.model_fields)}"
        ) from error


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


@lru_cache(maxsize=1)  # a worker serves one stage after the other: the last model makes room
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


def lasting(spec: EngineSpec) -> dict[str, Any]:
    """Return what determines the rows: not where, in which batches and how patiently an engine runs.

    `revision_of_code` is the constant `REVISION` of the engine's module (1 where it has none), and is left out while
    it is 1. Raise it in the change that gives other rows for the same spec, weights and input: another box,
    sentence, vector, token count, or preparation of what a model is given. Never for speed, wording of messages or a
    new option whose default keeps the rows. Rows of the former number are then stale, of all engines of the module.
    """
    module, _ = _module(spec)
    return stated(spec, getattr(module, "VOLATILE_OPTIONS", frozenset())) | identity(spec)


def stated(spec: EngineSpec, volatile: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return what a spec and the code say of the rows (see `lasting`): no weights need be on this machine.

    Where the engine's packages are absent, the revision of its code is not known and left out.
    """
    plain = spec.model_dump(mode="json", exclude={"device", "batch_size"})
    plain["options"] = {name: value for name, value in plain["options"].items() if name not in volatile}
    with contextlib.suppress(EngineError):
        revision: int = getattr(_module(spec)[0], "REVISION", 1)
        plain |= {"revision_of_code": revision} if revision > 1 else {}
    return plain


def has_weights(spec: EngineSpec) -> bool:
    """Whether every process of an engine holds a model of its own (or a server's attention)."""
    backend = _BACKENDS.get((spec.role, spec.backend))
    return backend is not None and bool(backend.needs_packages)


def gpus() -> tuple[str, ...]:
    """Return the names under which CUDA shows this machine's GPUs, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    folder = Path("/proc/driver/nvidia/gpus")
    return tuple(str(number) for number in range(len(list(folder.iterdir())))) if folder.is_dir() else ()


def load(spec: EngineSpec) -> Any:
    """Return the engine of `spec`: imported lazily, built once a process.

    Raises EngineError in one line for an unknown back-end, a missing package or a missing checkpoint.
    """
    return _load(spec.key())
