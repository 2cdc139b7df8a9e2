"""Recipes: frozen models of every setting of pipeline, training and evaluation.

Each setting belongs to the component that uses it. Commands take a recipe, paths and `--set`; no setting has a flag
of its own. The resolved recipe is saved as JSON with every artefact made from it. Files are read by `recipe_loading`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.manifest import fingerprint
from c2vl_manifests.recipe_training import Optimiser, Size, TrainingConfig
from c2vl_manifests.targets import Listed, Settings

QUESTION = (
    "Is he/she or are they holding anything in the hand? Is he/she or are they standing or sitting? "
    "What is he/she or are they trying to do? Answer the questions concisely"
)
"""The paper's question, verbatim (Section III-A)."""

Aspect = Literal["pad", "center_crop", "squash"]


ENGINE_STAGES = {"pose": "pose", "crop": "detector", "caption": "captioner", "embed": "encoder"}
"""Stages that have an engine -> its role."""

_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
"""Names of options that hold what must not be kept."""


class SkeletonsConfig(Settings):
    """Assembly of skeleton files into joints."""

    LATER = ("image_size",)

    second_body: Literal["zeros", "copy"] = "zeros"
    """Second body of a one-person clip: the public scripts for NTU 60 and NTU 120 differ."""
    max_frames: int = Field(default=300, ge=1)
    pku_norm: Literal["aimclr", "first_frame_joint2", "none"] = "first_frame_joint2"
    image_size: Annotated[tuple[Size, Size], Listed] | None = None
    """Width and height of the images that own joints in pixels are of, where neither their files nor videos tell."""


class PoseConfig(Settings):
    """Skeletons from videos instead of skeleton files."""

    engine: EngineSpec
    """The pose estimator, with its `detector`."""
    query: str = "person"
    detect_every: int = Field(default=1, ge=1)
    """Frames from one run of the detector to the next; between them people are looked for where their joints were."""
    joint_score: float = Field(default=0.3, ge=0, le=1)
    """A joint whose score is lower is missing."""
    mirrored: bool | None = None
    """True for videos that show the scene as a mirror does, as those of a Kinect do; None: what the dataset's
    description says."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds allowed for opening a video, or for reading on to the next frame, before the file is skipped."""


class CropConfig(Settings):
    """Vision prompts: one person crop per sampled frame."""

    engine: EngineSpec
    query: str = "person"
    margin: float = Field(default=0.1, ge=0, le=1)
    """Added on every side, as a share of the box's own width and height."""
    max_people: int = Field(default=2, ge=1)
    """*Reading:* the crop is the union of at most this many people, since the question says "they"."""
    max_side: int = Field(default=672, ge=32)
    jpeg_quality: int = Field(default=95, ge=1, le=100)
    timeout: float = Field(default=120.0, gt=0)
    """Seconds allowed for opening a video, or for reading on to the next sampled frame, before the file is skipped."""


class CaptionConfig(Settings):
    """Language prompts: one answer per crop."""

    engine: EngineSpec
    question: str = QUESTION
    aspect: Aspect = "pad"
    """How a crop is made square for the model; LLaVA-1.5 was trained with `pad`."""
    view: Literal["frame", "clip"] = "frame"
    """`frame`: one answer about each crop, as in the paper; `clip`: one about all crops of a sample, in one prompt."""
    also_ask: Annotated[tuple[str, ...], Listed] = ()
    """Further questions; the caption is the answers to all, one after the other."""
    thinking: Literal["keep", "remove"] = "keep"
    """`remove` takes what a model says to itself (`<think>…</think>`) out of its answers."""
    rewrite: str = ""
    """Instruction of a second pass: the captioner makes one sentence out of all captions of a sample; empty: none."""


class EmbedConfig(Settings):
    """Vectors of crops and captions."""

    engine: EngineSpec
    aspect: Aspect = "pad"


class PipelineConfig(Settings):
    """Settings of the pipeline."""

    frames: int = Field(default=16, ge=1, le=32_767)
    """Frames per sample: the centres of this many equal segments. The authors published 16 captions per sample."""
    shard_samples: int = Field(default=512, ge=1)
    skeletons: SkeletonsConfig = SkeletonsConfig()
    pose: PoseConfig | None = Field(default=None, exclude_if=lambda pose: pose is None)
    """None: joints are read from skeleton files."""
    crop: CropConfig
    caption: CaptionConfig
    embed: EmbedConfig


class LinearConfig(Settings):
    """Linear protocol: one fully connected layer on frozen features."""

    epochs: int = Field(default=100, ge=1, le=1_000_000)
    batch_size: int = Field(default=1024, ge=1)
    milestones: Annotated[tuple[int, ...], Listed] = (80,)
    lrs: Annotated[tuple[Annotated[float, Field(gt=0, le=1e4)], ...], Listed] = Field(
        default=(0.01, 0.1, 1.0, 3.0, 10.0, 30.0), min_length=1
    )
    """Learning rates, compared on a held-out part of the training split, never on test data."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    standardise: bool = True
    """Centre and scale features by the training split first; peers often train on plain features."""


class KnnConfig(Settings):
    """kNN protocol: nearest neighbours by cosine similarity of encoder features."""

    k: int = Field(default=1, ge=1)


Rate = Annotated[float, Field(gt=0, le=1e4)]


class FinetuneConfig(Settings):
    """Fine-tuning of the whole network with a new fully connected layer."""

    optimiser: Optimiser = Optimiser(weight_decay=1e-4, milestones=(50, 70))
    lrs: Annotated[tuple[Rate, ...], Listed] = ()
    """Learning rates, compared on a held-out part of the training split, never on test data; empty: `optimiser.lr` only."""
    holdout: float = Field(default=0.1, gt=0, lt=1)
    epochs: int = Field(default=80, ge=1, le=1_000_000)
    batch_size: int = Field(default=128, ge=1)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Ratio of the learning rates of consecutive blocks, earlier to later; 1 for the same rate everywhere."""
    augment: bool = True
    """Random windows and rotations, as in pre-training; otherwise central windows."""
    every_epoch: bool = False
    """Answer the test split after every epoch, for the best one as an oracle, as peers report it; with few labels that is
    most of the time. It changes no other figure, so it is no part of a result's key."""


class SemiConfig(Settings):
    """Semi-supervised protocol with 1, 5 and 10 % of the labels, as in the paper.

    *Reading:* the paper's "finetuning the classifier" does not say whether the encoder is trained too, nor how labels
    are drawn; all four combinations are reported.
    """

    shares: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Listed] = Field(
        default=(0.01, 0.05, 0.1), min_length=1
    )
    sampling: Annotated[tuple[Literal["stratified", "random"], ...], Listed] = Field(
        default=("stratified", "random"), min_length=1
    )
    """`stratified`: the share of each class, rounded; `random`: the share of the split, rounded down."""
    encoder: Annotated[tuple[Literal["frozen", "tuned"], ...], Listed] = Field(
        default=("frozen", "tuned"), min_length=1
    )
    draws: int = Field(default=5, ge=1)
    """Number of label draws; the draws are the same for every encoder, so that encoders can be compared."""
    lr: Rate = 0.1
    """Learning rate on a frozen encoder if a class has one label only, since then nothing can be held out."""
    tune: FinetuneConfig = FinetuneConfig(
        optimiser=Optimiser(lr=0.01, weight_decay=0.0, milestones=(50, 70)), batch_size=64
    )


class TransferConfig(Settings):
    """Transfer protocol: an encoder pre-trained on one dataset, evaluated on another."""

    encoder: Annotated[tuple[Literal["frozen", "tuned"], ...], Listed] = Field(
        default=("frozen", "tuned"), min_length=1
    )
    """`frozen`: linear protocol; `tuned`: fine-tuning, as in the paper."""
    tune: FinetuneConfig = FinetuneConfig(
        optimiser=Optimiser(lr=0.01, weight_decay=1e-4, milestones=(50, 70)), batch_size=64
    )


class EnsembleConfig(Settings):
    """Three-stream ensemble: weighted sum of scores, with fixed weights and with equal weights."""

    protocol: Annotated[tuple[Literal["linear", "finetune"], ...], Listed] = Field(default=("linear",), min_length=1)
    """Protocols whose scores are added."""
    joint: float = Field(default=0.6, ge=0)
    bone: float = Field(default=0.6, ge=0)
    motion: float = Field(default=0.4, ge=0)


class EvaluationConfig(Settings):
    """Settings of all protocols."""

    linear: LinearConfig = LinearConfig()
    knn: KnnConfig = KnnConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    semi: SemiConfig = SemiConfig()
    transfer: TransferConfig = TransferConfig()
    ensemble: EnsembleConfig = EnsembleConfig()


class Recipe(Settings):
    """All settings of the pipeline, the trainer and the protocols."""

    name: str
    title: str = ""
    pipeline: PipelineConfig
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _roles(self) -> Recipe:
        for stage, role in ENGINE_STAGES.items():
            part = getattr(self.pipeline, stage)
            if part is not None and part.engine.role != role:
                needs = f"this stage needs a {role}{' estimator' if role == 'pose' else ''}"
                raise ValueError(f"pipeline.{stage}.engine has the role {part.engine.role!r}; {needs}")
        return self

    @model_validator(mode="after")
    def _no_secrets(self) -> Recipe:
        """Refuse keys among the options of engines: every manifest would store them."""
        for place, spec in self._engines():
            if secret := next(filter(_SECRET.search, spec.options), None):
                raise ValueError(
                    f"{place}.options.{secret} would be stored in manifests; set the key in an environment "
                    "variable, which options.api_key_env names"
                )
            address, variable = (str(spec.options.get(name, "")) for name in ("base_url", "api_key_env"))
            if set("@?#") & set(address) or not re.fullmatch(r"\w*", variable):
                raise ValueError(
                    f"{place}.options holds a user name, password, query or fragment in base_url, or in "
                    "api_key_env what names no environment variable; leave it out: manifests would store a key"
                )
        return self

    def _engines(self) -> Iterator[tuple[str, EngineSpec]]:
        """Yield every engine with the setting that holds it."""
        for stage in ENGINE_STAGES:
            if (part := getattr(self.pipeline, stage)) is not None:
                yield f"pipeline.{stage}.engine", part.engine
                if part.engine.detector is not None:
                    yield f"pipeline.{stage}.engine.detector", part.engine.detector

    def fingerprint(self) -> str:
        """Return a hash of the resolved recipe."""
        return fingerprint(self.model_dump(mode="json"))
