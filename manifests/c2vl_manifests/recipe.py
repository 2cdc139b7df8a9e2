"""Recipes: frozen models of every setting of pipeline, training and evaluation.

Each setting belongs to the component that uses it. Commands take a recipe, paths and `--set`; no setting has a flag
of its own. The resolved recipe is saved as JSON with every artefact made from it. Files are read by `recipe_loading`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.manifest import fingerprint
from c2vl_manifests.targets import Listed, Partition, Settings, Targets

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

Size = Annotated[int, Field(ge=1, le=65_536)]
"""Channels or units of a layer; `encoders.build` bounds the parameters of all layers."""


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


class EncoderConfig(Settings):
    """Name and options of the skeleton encoder. An option that the encoder does not use is rejected."""

    name: str = "stgcn"
    """stgcn, stgcn_slim, ctrgcn, msg3d, bigru or transformer (the paper's Table VIII)."""
    blocks: Annotated[tuple[Annotated[tuple[Size, Size], Listed], ...], Listed, Field(max_length=256)] | None = None
    """(channels, stride) of each block of a graph network; default: the encoder's own."""
    graph: Literal["stgcn", "proper"] = "stgcn"
    """Partition of ST-GCN."""
    temporal_kernel: int | None = Field(default=None, ge=1, le=65_536)
    """Odd number of frames; default: the encoder's own (ST-GCN 9, CTR-GCN 5, MS-G3D 3)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside ST-GCN's blocks."""
    width: int | None = Field(default=None, ge=1, le=65_536)
    """Hidden units of bigru and transformer; default 1024."""
    empty_bodies: Literal["compute", "exact_skip", "leave_out"] = "exact_skip"
    """Treatment of bodies that are zero throughout a clip: `compute` treats them like any other body; `exact_skip` gives
    the same result but computes one for all (with dropout it acts as `compute`); `leave_out` is a different network."""


class Temperature(Settings):
    """Temperature tau of the logits."""

    mode: Literal["fixed", "learnable", "raw"] = "learnable"
    """`raw` stores ln(1/tau) and multiplies by it without exp, as the code that the paper builds on does."""
    tau: float = Field(default=0.07, ge=0.01, le=1)
    lr: float = Field(default=1e-3, ge=0)
    """Learning rate of tau (a parameter group without weight decay); tau is clamped to [0.01, 1]."""


class Optimiser(Settings):
    """SGD with linear warm-up and step decay."""

    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_epochs: int = Field(default=5, ge=0)
    milestones: Annotated[tuple[int, ...], Listed] = (130, 140)
    gamma: float = Field(default=0.1, gt=0, le=1)
    clip_norm: float | None = Field(default=None, gt=0)


class Augmentation(Settings):
    """Random changes of a training clip. A test clip is the central `test_window`, not rotated or sheared."""

    LATER = ("shear",)

    window: Annotated[tuple[float, float], Listed] = (0.5, 1.0)
    """Range of the share of valid frames that is kept, drawn uniformly."""
    rotation: float = Field(default=0.3, ge=0)
    """Each of three angles is drawn from (-rotation, rotation) radians."""
    shear: float = Field(default=0.0, ge=0, le=1)
    """Each coordinate gains a share, drawn from (-shear, shear), of each other one (not of the paper)."""
    test_window: float = Field(default=0.95, gt=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> Augmentation:
        if not 0 < self.window[0] <= self.window[1] <= 1:
            raise ValueError(f"window = {self.window}: expected two shares, 0 < first <= second <= 1")
        return self


class InputConfig(Settings):
    """Conversion of a stored skeleton into a clip of fixed length."""

    stream: Literal["joint", "bone", "motion"] = "joint"
    frames: int = Field(default=64, ge=4, le=65_536)
    augmentation: Augmentation = Augmentation()


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str | int) else value


class PretrainConfig(Settings):
    """Cross-modal pre-training (Section III-D). Other readings, and ideas beyond the paper, are off by default."""

    LATER = (
        *("normalise", "pooling_weights", "equal_prompts", "skeleton_heads", "directions"),
        *("negatives", "views", "view_weight", "view_temperature", "exclude_classes"),
    )

    knowledge: Literal["vision", "language", "both"] = "both"
    pooling: Literal["mean", "random", "ordered"] = "mean"
    """How 16 vectors become one: their `mean`; one at `random` per epoch; or `ordered`, the concatenated means of
    four consecutive quarters, which keeps the order in time."""
    standardise: bool = False
    """Standardise each dimension of the knowledge vectors on the training split (for engines other than CLIP)."""
    pairs: Annotated[Literal["true", "shuffled"], BeforeValidator(lambda v: "true" if v is True else v)] = "true"
    """`shuffled` pairs each skeleton with another sample's knowledge: a control that should not help."""
    normalise: Literal["before_pooling", "after_pooling"] = "before_pooling"
    """Whether the 16 vectors are brought to length 1 before they are averaged, or their mean alone is."""
    pooling_weights: Literal["equal", "idf"] = "equal"
    """`idf` weights each of the 16 vectors by how few training samples have it, so that near-constant captions lose
    weight; with `random` pooling it is drawn by that weight."""
    exclude_classes: Annotated[
        tuple[Annotated[int, Field(ge=0, le=32_767)] | str, ...], Listed, BeforeValidator(_one_or_more)
    ] = ()
    """Classes whose training clips are left out, for zero-shot recognition: a zero-shot split of the dataset (`55/5`),
    or names and numbers from 0. Labels serve for this choice alone."""
    projector_dim: int = Field(default=512, ge=1, le=65_536)
    skeleton_heads: Literal["shared", "per_kind"] = "shared"
    """`per_kind`: one skeleton projector toward vision and another toward language."""
    targets: Targets = Partition()
    teacher: Literal["memory", "self", "previous_epoch", "ema"] = "memory"
    """Source of soft targets: what each sample's own embeddings were in the previous epoch (`memory`), present outputs
    (`self`), the model as the epoch began, or a moving average of it. Hard targets have none.

    *Reading:* the paper's teacher is updated "at each epoch" and is to save computation and memory; the self-distillation
    it cites stores each sample's outputs of the previous epoch, without a second network."""
    ema: float = Field(default=0.99, gt=0, lt=1)
    equal_prompts: Literal["negatives", "ignored", "positives"] = "negatives"
    """What other samples of a batch are that have the very same prompt."""
    negatives: Literal["batch", "all"] = "batch"
    """`all`: a skeleton is contrasted with the prompts of all training samples."""
    directions: Literal["sum", "mean"] = "sum"
    """Whether the losses of the two directions, skeleton to knowledge and back, are added or averaged."""
    views: int = Field(default=1, ge=1, le=2)
    """Augmented views of each skeleton in a step; two double its cost."""
    view_weight: float = Field(default=0.0, ge=0)
    """Weight of the contrast between the two views, beside the cross-modal loss."""
    view_temperature: float = Field(default=0.1, ge=0.01, le=1)
    """tau of that contrast."""
    temperature: Temperature = Temperature()
    optimiser: Optimiser = Optimiser()
    epochs: int = Field(default=150, ge=1, le=1_000_000)
    batch_size: int = Field(default=400, ge=2)

    @property
    def soft(self) -> bool:
        """True if targets are soft, so that they need a teacher."""
        return self.targets.kind not in {"hard", "sigmoid"}

    @model_validator(mode="after")
    def _agree(self) -> PretrainConfig:
        """Refuse settings that contradict each other."""
        kind = self.targets.kind
        if self.view_weight > 0 and self.views == 1:
            raise ValueError(f"view_weight = {self.view_weight} needs a second view, not views = 1; set views = 2")
        if (self.normalise, self.pooling) == ("after_pooling", "random"):
            raise ValueError("normalise = 'after_pooling' needs vectors that are averaged, not pooling = 'random'")
        if self.directions == "mean" and kind == "sigmoid":
            raise ValueError("directions = 'mean' has no meaning for targets = 'sigmoid', one sum over all pairs")
        if self.skeleton_heads == "per_kind" and self.knowledge != "both":
            raise ValueError(f"skeleton_heads = 'per_kind' is 'shared' where knowledge = {self.knowledge!r} alone")
        return self


class SupervisedConfig(Settings):
    """Supervised control: the same encoder trained with labels."""

    optimiser: Optimiser = Optimiser(milestones=(50, 70), weight_decay=1e-4)
    epochs: int = Field(default=80, ge=1, le=1_000_000)
    batch_size: int = Field(default=128, ge=2)


class TrainingConfig(Settings):
    """Settings of the trainer."""

    encoder: EncoderConfig = EncoderConfig()
    input: InputConfig = InputConfig()
    pretrain: PretrainConfig = PretrainConfig()
    supervised: SupervisedConfig = SupervisedConfig()
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    """`bfloat16` uses autocast; `float64` is for comparing runs digit by digit."""
    device: str = "auto"
    checkpoint_every: int = Field(default=5, ge=1)
    """Epochs between two checkpoints; the last epoch always writes one."""


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
