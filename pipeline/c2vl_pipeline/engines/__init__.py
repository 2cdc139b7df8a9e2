"""Engines behind the four Protocols of `roles`: detectors, pose estimators, captioners and encoders.

`BACKENDS` is the registry: one entry per engine with every fact that code outside this folder needs, so that none
of it knows an engine by name. `load(spec)` imports an engine when it is first asked for and keeps it until another
one is asked for, so a worker holds one model at a time. Only the modules in this folder import model libraries.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe import ENGINE_STAGES
from c2vl_manifests.recipe_loading import keys_called, suggestion
from c2vl_pipeline.engines.roles import (
    THINK,
    Array,
    Caption,
    Captioner,
    Crop,
    Detector,
    Encoder,
    Engine,
    Frame,
    Image,
    Options,
    Pose,
    PoseEstimator,
    TextVectors,
)
from c2vl_pipeline.readers.tracking import Box, Person

__all__ = [
    "BACKENDS",
    "THINK",
    "Array",
    "Backend",
    "Box",
    "Caption",
    "Captioner",
    "Crop",
    "Detector",
    "Encoder",
    "Engine",
    "Frame",
    "Image",
    "Options",
    "Person",
    "Pose",
    "PoseEstimator",
    "TextVectors",
    "backend",
    "backends",
    "checked_options",
    "clear",
    "declared_facts",
    "gpus",
    "key_facts",
    "layout_of",
    "load",
    "load_detector",
    "naming_the_detector",
    "provenance",
    "setting",
    "wants_own_process",
    "weights_id",
]

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

    A detector that reads no pixels is asked before a video is decoded, with images of which only the shape is true. A
    captioner that reads nothing answers by sample and slot, for every planned frame, with or without a crop.
    """
    derived_from: str | None = None
    """`joints`: its output is a function of the joints, the input of the skeleton encoder."""
    joint_space: bool = False
    """Whether its text and image vectors share one space."""
    prompts: frozenset[str] = frozenset({"frame"})
    """What a captioner can be asked about: one `frame`, a `clip` of several in one prompt, `text` alone; empty: it does
    not read the question."""
    one_file: bool = False
    """Whether its model is one file: known by its hash, and the same in any folder."""
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
        "c2vl_pipeline.engines.blazepose_detector:BlazePoseDetector", ("ai-edge-litert",), "blazepose", one_file=True
    ),
    ("pose", "hf"): Backend("c2vl_pipeline.engines.hf_pose:VitPose", _MODEL, own_process=True),
    ("pose", "blazepose"): Backend("c2vl_pipeline.engines.blazepose:BlazePose", one_file=True),
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
    ("encoder", "precomputed-vectors"): Backend(
        "c2vl_pipeline.engines.precomputed_vectors:PrecomputedVectors", own_process=True
    ),
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
            known = [
                key for key in keys_called(name.rpartition(".")[2]) if key.startswith(f"pipeline.{_STAGES[spec.role]}.")
            ]
            options = ", ".join(form.model_fields)
            raise EngineError(f"{name} is not an option; the options are {options}{suggestion(known)}") from None
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
    with naming_the_detector():
        return facts | {"detector": key_facts(spec.detector)}


def declared_facts(spec: EngineSpec) -> dict[str, Any]:
    """Return what a spec and the code say about the rows; the weights need not be on this machine.

    Device, batch size and volatile options are left out. `revision_of_code` is the class's `REVISION`, left out while
    it is 1. If the engine's packages are absent, neither its revision nor its volatile options are known.
    """
    facts = spec.model_dump(mode="json", exclude={"device", "batch_size", "detector"})
    facts |= {} if spec.detector is None else {"detector": declared_facts(spec.detector)}
    with contextlib.suppress(EngineError):
        if spec.model and backend(spec).one_file:
            facts["model"] = Path(spec.model).name
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
    with naming_the_detector():
        return _load_detector(spec.detector.key())


@contextlib.contextmanager
def naming_the_detector() -> Iterator[None]:
    """Let errors about a pose estimator's detector name the settings of that one."""
    try:
        yield
    except EngineError as error:
        text = str(error).replace("pipeline.crop.engine", "pipeline.pose.engine.detector")
        raise EngineError(text.replace("pipeline.crop.query", "pipeline.pose.query")) from error


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
