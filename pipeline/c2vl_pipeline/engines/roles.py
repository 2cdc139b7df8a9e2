"""Roles of engines as Protocols, and what goes into engines and comes out of them.

Arrays: images are uint8 RGB, (H, W, 3); boxes are pixels of that image, (x0, y0, x1, y1), x1 and y1 exclusive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.layouts import Layout
from c2vl_pipeline.readers.tracking import Box, Person

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
    given: frozenset[str] = frozenset()
    """Kinds of knowledge (`vision`, `language`) whose vectors `lookup` has, so that nothing is encoded."""

    def lookup(self, kind: str, sample_id: str, slot: int, slots: int) -> Array | Exception:
        """Return the vector of a sample's slot, one of `slots`, of a kind that is `given`; an exception where there is none."""
        return LookupError(f"this engine has no vectors of {sample_id}")

    @abstractmethod
    def encode_images(self, images: Sequence[Image]) -> Array:
        """Return vectors (n, image_dim)."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Return vectors (n, text_dim), and which texts were truncated."""
