"""Settings of the trainer: encoder, input, pre-training and its supervised control. `recipe.Recipe` holds them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from c2vl_manifests.targets import Listed, Partition, Settings, Targets

Size = Annotated[int, Field(ge=1, le=65_536)]
"""Pixels, channels or units of a layer; `encoders.build` bounds the parameters of all layers."""


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
