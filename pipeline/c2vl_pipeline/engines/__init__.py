"""Engines behind four Protocols: detectors, pose estimators, captioners and encoders.

`BACKENDS` is the registry: one entry per engine with every fact that code outside this folder needs, so that none
of it knows an engine by name. `load(spec)` imports an engine when it is first asked for and keeps it until another
one is asked for, so a worker holds one model at a time. Only the modules in this folder import model libraries.

Arrays: images are uint8 RGB, (H, W, 3); boxes are pixels of that image, (x0, y0, x1, y1), x1 and y1 exclusive.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe import ENGINE_STAGES

Image = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
THINK = ("<think>", "</think>")
"""Marks around what a model says to itself before it answers."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded video frame and further data of that instant."""

    image: Image
    sample_id: str
    slot: int
    camera: str = ""
    """Frames of one camera share a background."""
    joints: Array | None = None
    """Joints projected into this image, (bodies, V, 2) pixels, for engines that read joints; NaN = unseen."""
    background: Callable[[], Image | None] = lambda: None
    """Returns what this camera sees when nobody is there, or None if no clip of it can be read in this shape."""


@dataclass(frozen=True, slots=True)
class Box:
    """One person: pixels (x0, y0, x1, y1) and a score in [0, 1]."""

    x0: float
    y0: float
    x1: float
    y1: float
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """The joints of one person in one frame, in the order of the estimator's layout."""

    pixels: Array
    """(V, 3): x and y in pixels of the frame, and a score in [0, 1]."""
    score: float
    """How sure it is that somebody is there, in [0, 1]."""
    world: Array | None = None
    """(V, 3) metres, for estimators of a 3D layout: x to the right of the image, y down, z away from the camera."""


@dataclass(frozen=True, slots=True)
class Pose:
    """The joints around one instant: `clip` is (T, bodies, V, C) in metres, `at` the instant's index in it."""

    clip: Array
    at: int
    layout: Layout


@dataclass(frozen=True, slots=True)
class Crop:
    """One stored person crop, already shaped by the aspect policy (no pixels if the engine reads none)."""

    image: Image
    sample_id: str
    slot: int
    pose: Pose | None = None
    """For engines that read joints."""
    frames: int | None = None
    """Slots per sample in this run, if known."""
    later: tuple[Image, ...] = ()
    """The sample's other crops in order of time, where one answer is about all of them."""


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


class Options(BaseModel):
    """Base of the options of an engine: an unknown name or a value of another type is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


# ----------------------------------------------------------------------------------------------- Protocols


class Engine(Protocol):
    """Members of every engine class. Subclass the Protocol of a role to inherit the defaults."""

    REVISION: ClassVar[int] = 1
    """Revision of the code behind the rows.

    Raise it in the change that gives other rows for the same spec, weights and input: another box, sentence, vector,
    token count, or preparation of what a model is given. Never for speed, wording of messages or a new option whose
    default keeps the rows. The engine's existing rows are then stale.
    """

    VOLATILE_OPTIONS: ClassVar[frozenset[str]] = frozenset()
    """Options that do not change any row, such as the address of a server and its time limits."""

    @abstractmethod
    def __init__(self, spec: EngineSpec) -> None: ...

    @staticmethod
    def weights_id(spec: EngineSpec) -> dict[str, Any]:
        """Return what tells two sets of weights apart, without loading them; empty without weights.

        Raises:
            EngineError: One line, if a checkpoint or file is absent.
        """
        return {}

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """Return the facts about this engine that the stage's manifest records."""


class Detector(Engine, Protocol):
    """Finds people."""

    @abstractmethod
    def detect(self, frames: Sequence[Frame], query: str) -> list[list[Box]]:
        """Return one list of boxes per frame, best first; an empty list means that nobody is there."""


class PoseEstimator(Engine, Protocol):
    """Finds the joints of people whose boxes are known."""

    @staticmethod
    @abstractmethod
    def layout(spec: EngineSpec) -> Layout:
        """Return the layout of the joints, without loading weights."""

    @abstractmethod
    def estimate(self, frames: Sequence[Frame], boxes: Sequence[Sequence[Box]]) -> list[list[Person]]:
        """Return the people of each frame, at most one per box; a box in which nobody is found gives none."""


class Captioner(Engine, Protocol):
    """Answers the question about each crop."""

    @abstractmethod
    def caption(self, crops: Sequence[Crop], question: str) -> Sequence[Caption | Exception]:
        """Return one answer per crop, in order; an exception in its place says why this one crop has none.

        Raises:
            EngineError: One line, if the engine and not a crop is at fault: it stops the stage.
        """

    def complete(self, prompts: Sequence[str]) -> Sequence[Caption | Exception]:
        """Return one answer per prompt without any image, of engines whose `Backend.prompts` has `text`."""
        raise NotImplementedError


class Encoder(Engine, Protocol):
    """Encodes crops and captions; vectors are float32 and L2-normalised."""

    image_dim: int
    text_dim: int

    @abstractmethod
    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return vectors (n, image_dim)."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return vectors (n, text_dim), and which texts were truncated."""


# ------------------------------------------------------------------------------------------------ registry


@dataclass(frozen=True, slots=True)
class Backend:
    """Registry entry: the class of an engine, and the facts about it that other code needs."""

    factory: str
    """`module:Class`; the module is imported when the engine is first needed."""
    packages: tuple[str, ...] = ()
    """Packages that it needs; the error names them if one is not installed."""
    extra: str | None = None
    """Extra of this project that installs the packages."""
    reads: frozenset[str] = frozenset({"pixels"})
    """Its inputs: `pixels` of frames or crops, `joints`.

    A detector that reads no pixels gets frames with colours in any order. A captioner that reads nothing answers by
    sample and slot, for every planned frame, with or without a crop.
    """
    derived_from: str | None = None
    """`joints`: its output is a function of the joints, the input of the skeleton encoder."""
    joint_space: bool = False
    """Whether its text and image vectors share one space."""
    prompts: frozenset[str] = frozenset({"frame"})
    """What a captioner can be asked about: one `frame`, a `clip` of several in one prompt, `text` alone; empty: it does
    not read the question."""
    own_process: bool = False
    """Whether it runs in one process per GPU instead of one per core, and gets frames in batches: it holds a model,
    or keeps a server busy from a single process."""


_NONE = frozenset[str]()
_JOINTS = frozenset({"joints"})
_MODEL = ("torch", "transformers")
_ANY_PROMPT = frozenset({"frame", "clip", "text"})

BACKENDS: dict[tuple[str, str], Backend] = {
    ("detector", "hf"): Backend("c2vl_pipeline.engines.hf_detector:HfDetector", _MODEL, own_process=True),
    ("detector", "skeleton"): Backend(
        "c2vl_pipeline.engines.heuristic:SkeletonDetector", reads=_JOINTS, derived_from="joints"
    ),
    ("detector", "motion"): Backend("c2vl_pipeline.engines.heuristic:MotionDetector"),
    ("detector", "groundingdino-py"): Backend(
        "c2vl_pipeline.engines.groundingdino:GroundingDinoPy", _MODEL, "groundingdino", own_process=True
    ),
    ("detector", "blazepose"): Backend(
        "c2vl_pipeline.engines.blazepose_detector:BlazePoseDetector", ("ai-edge-litert",), "blazepose"
    ),
    ("pose", "hf"): Backend("c2vl_pipeline.engines.hf_pose:VitPose", _MODEL, own_process=True),
    ("pose", "blazepose"): Backend("c2vl_pipeline.engines.blazepose:BlazePose"),
    ("captioner", "hf"): Backend(
        "c2vl_pipeline.engines.hf_captioner:HfCaptioner", _MODEL, prompts=_ANY_PROMPT, own_process=True
    ),
    ("captioner", "llava"): Backend("c2vl_pipeline.engines.llava:OriginalLlava", ("torch",), own_process=True),
    ("captioner", "openai"): Backend(
        "c2vl_pipeline.engines.openai_server:Served", ("openai",), "openai", prompts=_ANY_PROMPT, own_process=True
    ),
    ("captioner", "precomputed"): Backend("c2vl_pipeline.engines.precomputed:Precomputed", reads=_NONE, prompts=_NONE),
    ("captioner", "posecode"): Backend(
        "c2vl_pipeline.engines.posecode:PoseCode", reads=_JOINTS, derived_from="joints", prompts=_NONE
    ),
    ("encoder", "hf"): Backend(
        "c2vl_pipeline.engines.hf_encoder:HfEncoder", _MODEL, joint_space=True, own_process=True
    ),
    ("encoder", "classical"): Backend("c2vl_pipeline.engines.heuristic:Classical"),
    ("encoder", "sentences"): Backend(
        "c2vl_pipeline.engines.sentences:Sentences", ("onnxruntime", "tokenizers"), "sentences"
    ),
}
_STAGES = {role: stage for stage, role in ENGINE_STAGES.items()}


def backends(role: str) -> list[str]:
    """Return the names of the engines of a role."""
    return [name for r, name in BACKENDS if r == role]


def backend(spec: EngineSpec) -> Backend:
    """Return the registry entry of a spec.

    Raises:
        EngineError: One line, for an unknown name.
    """
    if (spec.role, spec.backend) not in BACKENDS:
        raise EngineError(
            f"no {spec.role} engine is called {spec.backend!r}; the {spec.role} engines are "
            f"{', '.join(backends(spec.role))}"
        )
    return BACKENDS[spec.role, spec.backend]


def setting(spec: EngineSpec) -> str:
    """Return where a recipe sets an engine of this role, such as `pipeline.crop.engine`."""
    return f"pipeline.{_STAGES[spec.role]}.engine"


_Form = TypeVar("_Form", bound=Options)


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
        if first["type"] == "extra_forbidden":  # its value may be a key
            raise EngineError(f"{name} is not an option; the options are {', '.join(form.model_fields)}") from None
        raise EngineError(
            f"{name} = {first['input']!r}: {first['msg']}; the options are {', '.join(form.model_fields)}"
        ) from error


def _class(spec: EngineSpec) -> type[Engine]:
    """Import and return the class of an engine."""
    entry = backend(spec)
    module, name = entry.factory.split(":")
    try:
        engine: type[Engine] = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        needed = ", ".join(entry.packages) or error.name
        package = f"-e '.[{entry.extra}]'" if entry.extra else error.name
        raise EngineError(
            f"the {spec.role} engine {spec.backend!r} needs {needed} and {error.name!r} is not installed; "
            f"`pip install {package}`"
        ) from error
    return engine


# ---------------------------------------------------------------------------------------- facts and loading


def weights_id(spec: EngineSpec) -> dict[str, Any]:
    """Return what tells two sets of weights apart, without loading them; empty for engines without weights.

    Raises EngineError in one line for an unknown engine, a missing package or a missing checkpoint.
    """
    return _class(spec).weights_id(spec)


def key_facts(spec: EngineSpec) -> dict[str, Any]:
    """Return the facts that determine the rows: `declared_facts` and what identifies the weights.

    Raises EngineError in one line for an unknown engine, a missing package or a missing checkpoint.
    """
    facts = declared_facts(spec) | weights_id(spec)
    if spec.detector is None:
        return facts
    with _naming_the_detector():
        return facts | {"detector": key_facts(spec.detector)}


def declared_facts(spec: EngineSpec) -> dict[str, Any]:
    """Return what a spec and the code say about the rows; the weights need not be on this machine.

    Device, batch size and volatile options are left out. `revision_of_code` is the class's `REVISION`, left out while
    it is 1. If the engine's packages are absent, neither its revision nor its volatile options are known.
    """
    facts = spec.model_dump(mode="json", exclude={"device", "batch_size", "detector"})
    facts |= {} if spec.detector is None else {"detector": declared_facts(spec.detector)}
    with contextlib.suppress(EngineError):
        engine = _class(spec)
        facts["options"] = {k: v for k, v in facts["options"].items() if k not in engine.VOLATILE_OPTIONS}
        facts |= {"revision_of_code": engine.REVISION} if engine.REVISION > 1 else {}
    return facts


def provenance(spec: EngineSpec) -> dict[str, Any]:
    """Return the facts that manifests record: what the loaded engine says of itself and its registry entry."""
    entry = backend(spec)
    facts: dict[str, Any] = {"derived_from": entry.derived_from, "joint_space": entry.joint_space}
    facts |= {} if spec.detector is None else {"detector": {**load_detector(spec).describe()}}
    return {**load(spec).describe(), **{name: fact for name, fact in facts.items() if fact}}


def wants_own_process(spec: EngineSpec) -> bool:
    """Return True if one process per core would be too many (see `Backend.own_process`)."""
    own = (spec.role, spec.backend) in BACKENDS and backend(spec).own_process
    return own or (spec.detector is not None and wants_own_process(spec.detector))


def gpus() -> tuple[str, ...]:
    """Return the names under which CUDA shows this machine's GPUs, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    folder = Path("/proc/driver/nvidia/gpus")
    return tuple(str(number) for number in range(len(list(folder.iterdir())))) if folder.is_dir() else ()


@lru_cache(maxsize=1)  # a worker serves one stage after the other: the last model makes room
def _load(key: str) -> Any:
    _load_detector.cache_clear()
    spec = EngineSpec.model_validate_json(key)
    return _class(spec)(spec)


@lru_cache(maxsize=1)
def _load_detector(key: str) -> Any:
    spec = EngineSpec.model_validate_json(key)
    return _class(spec)(spec)


def load(spec: EngineSpec) -> Any:
    """Return the engine of `spec`, built on first use.

    Raises EngineError in one line for an unknown engine, a missing package or a missing checkpoint.
    """
    return _load(spec.key())


def load_detector(spec: EngineSpec) -> Any:
    """Return the detector of a pose estimator's spec, built on first use and kept beside the estimator.

    Raises EngineError in one line, as `load`.
    """
    assert spec.detector is not None
    with _naming_the_detector():
        return _load_detector(spec.detector.key())


@contextlib.contextmanager
def _naming_the_detector() -> Iterator[None]:
    """Let errors about a pose estimator's detector name the setting of that one."""
    try:
        yield
    except EngineError as error:
        own = "pipeline.crop.engine"
        raise EngineError(str(error).replace(own, "pipeline.pose.engine.detector")) from error


def layout_of(spec: EngineSpec) -> Layout:
    """Return the layout of a pose estimator's joints, without loading its weights.

    Raises EngineError in one line for an unknown engine, a missing package or a wrong option.
    """
    estimator: Any = _class(spec)
    layout: Layout = estimator.layout(spec)
    return layout


def clear() -> None:
    """Forget the loaded engine, so that its memory is freed and the next `load` builds anew."""
    _load.cache_clear()
    _load_detector.cache_clear()
