"""Targets of the contrastive loss as settings: the rows of the paper's Table VII, by name or as a table, and SigLIP's.

`partition(cosine)` is the paper's objective. `c2vl_training.objective` computes what is chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    field_validator,
    model_serializer,
    model_validator,
)

MOST_NUMBER = (1 << 31) - 1
"""Of whole numbers, which libraries count in 32 bits."""


def _countable(value: Any) -> Any:
    if isinstance(value, int) and abs(value) > MOST_NUMBER:
        raise ValueError(f"expected a number up to {MOST_NUMBER:,}")
    return value


class Settings(BaseModel):
    """Base of all settings: frozen, strict (`true` is not a number, 3.0 is not an integer), without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    LATER: ClassVar[tuple[str, ...]] = ()
    """Fields added to a model that has results: not dumped at their default, so that keys and checkpoints stay valid."""

    _numbers = field_validator("*")(_countable)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        """Lay a table that is a part over the default of its own field, which may be another than that of its class."""
        return _over({name: field.default for name, field in cls.model_fields.items()}, given, cls)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        fields = type(self).model_fields
        unused = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in dump(self).items() if name not in unused}


def _over(defaults: Mapping[str, Any], given: Any, form: type[BaseModel]) -> Any:
    """Return the settings of a form that are given, each table over its default unless it may be of another form."""
    if not isinstance(given, Mapping):
        return given
    laid = dict(given)
    for name, value in given.items():
        default = defaults.get(name)
        if (
            isinstance(default, Settings)
            and isinstance(value, Mapping)
            and form.model_fields[name].annotation is type(default)
        ):
            laid[name] = dict(default) | _over(dict(default), value, type(default))
    return laid


Listed = Strict(strict=False)
"""Accepts a list where a tuple is expected, since TOML and JSON have no tuples; its items stay strict."""


class Constant(Settings):
    """Constant alpha."""

    schedule: Literal["constant"] = "constant"
    value: float = Field(default=0.5, ge=0, le=1)
    """*Reading:* the paper gives no value for its ablation without progression."""


class Cosine(Settings):
    """Cosine annealing of alpha, updated once per epoch."""

    schedule: Literal["cosine"] = "cosine"
    start: float = Field(default=0.9, ge=0, le=1)
    end: float = Field(default=0.1, ge=0, le=1)


Alpha = Annotated[Constant | Cosine, Field(discriminator="schedule")]


class Hard(Settings):
    """InfoNCE: the identity as target (Eq. 2-3)."""

    kind: Literal["hard"] = "hard"


class _Soft(Settings):
    temperature: float | None = Field(default=None, gt=0, le=1)
    """tau of the targets; default: the tau of the logits, as in the paper."""


class Intra(_Soft):
    """Self-similarity targets on every row (Eq. 4-6)."""

    kind: Literal["intra"] = "intra"
    beta: float = Field(default=0.2, ge=0, le=1)


class _Inter(_Soft):
    LATER = ("inter_hard_schedule",)

    inter_hard: float = Field(default=0.0, ge=0, le=1)
    """Share of the identity matrix mixed into Q; 0 in the paper."""
    inter_hard_schedule: Literal["constant", "linear"] = "constant"
    """`linear`: the soft share grows by equal steps from epoch to epoch and ends at 1 - `inter_hard`. With 0.2 it is the
    schedule of the self-distillation that the paper cites (PS-KD, ICCV 2021: alpha_t = 0.8 t / T)."""
    average: bool = False
    """Divide Q's sum by its number of terms; the paper does not."""


class Inter(_Inter):
    """Cross-consistency targets on every row (Eq. 7-10)."""

    kind: Literal["inter"] = "inter"


class Blend(_Inter):
    """Both targets on every row, weighted alpha and 1 - alpha."""

    kind: Literal["blend"] = "blend"
    beta: float = Field(default=0.2, ge=0, le=1)
    alpha: Alpha = Cosine()


class Partition(_Inter):
    """The first floor(alpha B) rows use P, the rest Q (Eq. 12-13): with cosine alpha, the paper's objective."""

    kind: Literal["partition"] = "partition"
    beta: float = Field(default=0.2, ge=0, le=1)
    alpha: Alpha = Cosine()


class Sigmoid(Settings):
    """SigLIP's loss in place of InfoNCE: each pair of a batch is judged on its own (not of the paper)."""

    kind: Literal["sigmoid"] = "sigmoid"
    bias: float = -10.0
    """Initial value of the learnable bias of all logits."""


AnyTargets = Hard | Intra | Inter | Blend | Partition | Sigmoid


def targets_from_name(value: Any) -> Any:
    """Accept targets by name: `hard`, `blend(cosine)`, `partition(0.5)`, `sigmoid`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(
        r"(hard|intra|inter|blend|partition|sigmoid)(?:\((?:alpha=)?(cosine|constant|[0-9]*\.?[0-9]+)\))?",
        value.strip(),
    )
    if match is None or (match[2] and match[1] not in {"blend", "partition"}):
        raise ValueError(f"{value!r} is not one of {', '.join(TABLE_VII)}, sigmoid")
    if match[2] is None:
        return {"kind": match[1]}
    if match[2] in {"cosine", "constant"}:
        return {"kind": match[1], "alpha": {"schedule": match[2]}}
    return {"kind": match[1], "alpha": {"schedule": "constant", "value": float(match[2])}}


Targets = Annotated[Annotated[AnyTargets, Field(discriminator="kind")], BeforeValidator(targets_from_name)]

TABLE_VII = ("hard", "intra", "inter", "blend(constant)", "partition(constant)", "blend(cosine)", "partition(cosine)")
"""The rows of the paper's Table VII as values of `training.targets`."""


def targets_name(targets: AnyTargets) -> str:
    """Return the short name of a `targets` value, e.g. `partition(cosine)`."""
    if isinstance(targets, (Blend, Partition)):
        return f"{targets.kind}({targets.alpha.schedule})"
    return targets.kind
