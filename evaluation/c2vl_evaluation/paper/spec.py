"""The paper's tables and figures as data: its printed numbers, and the training and protocol of each row that this code computes.

`numbers.toml` holds Tables I-VIII and the captions of the figures. A computed row is a variant of the recipe under one protocol; nothing is trained here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from c2vl_evaluation.results import Protocol, Role
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_training import EncoderConfig, PretrainConfig
from c2vl_manifests.targets import TABLE_VII, Blend, Cosine, Partition, Targets, targets_name
from c2vl_training.run_folder import Kind

Knowledge = Literal["vision", "language", "both"]
_GRAPHS = ("stgcn", "ctrgcn", "msg3d")
_ENCODERS = {
    "bigru": "a bidirectional GRU",
    "transformer": "a Transformer",
    "msg3d": "MS-G3D",
    "ctrgcn": "CTR-GCN",
    "stgcn": "ST-GCN",
}
"""Names of the encoders of Table VIII. *Reading:* the paper's rows PCM³ and UmURL are C²VL with the encoders of those methods: its
text speaks of "our method across different skeleton encoders"."""
_ROLES: dict[Kind, Role] = {"pretrain": "pretrained", "random": "floor", "supervised": "ceiling"}
ALPHAS = ((0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The grid of Fig. 6. *Reading:* the paper prints no values; these are ours."""


# ---------------------------------------------------------------------------------------------- as printed


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """Dataset and benchmark of a column of numbers."""

    dataset: str
    benchmark: str
    share: float | None = None
    """Share of the labels, in the semi-supervised table."""
    to: str = ""
    """Dataset that the encoder is transferred to; `benchmark` is then one of it."""

    @property
    def title(self) -> str:
        """`ntu60 xsub`, `ntu60 xsub, 1 %`, `ntu60 → pku-mmd-2 xsub`."""
        way = f"{self.dataset} → {self.to}" if self.to else self.dataset
        share = "" if self.share is None else f", {100 * self.share:g} %"
        return f"{way} {self.benchmark}{share}"


class PrintedRow(_Model):
    """A row of the paper; values in percent, None for a dash."""

    method: str
    cite: int | None = None
    about: str = ""
    ours: str = ""
    """`RowSpec.repeats` of the computed rows that repeat it; empty for other methods."""
    values: tuple[Annotated[float | None, BeforeValidator(lambda v: None if v == "-" else v)], ...]


class TableSpec(_Model):
    """One table, or a figure (without rows of the paper)."""

    number: str
    title: str
    caption: str
    protocol: Protocol
    columns: tuple[Column, ...]
    rows: tuple[PrintedRow, ...] = ()


@cache
def tables_and_figures() -> dict[str, TableSpec]:
    """Return all tables and figures by name, in the paper's order: `table1` to `table8`, `figure4` to `figure8`."""
    text = files("c2vl_evaluation.paper").joinpath("numbers.toml").read_text("utf-8")
    return {name: TableSpec.model_validate(spec) for name, spec in tomllib.loads(text).items()}


def printed_tables() -> dict[str, TableSpec]:
    """Return Tables I-VIII, whose numbers the paper prints."""
    return {name: spec for name, spec in tables_and_figures().items() if spec.rows}


# ------------------------------------------------------------------------------------------------ variants


@dataclass(frozen=True)
class Variant:
    """Differences of a training to the recipe; empty values are the recipe's own."""

    kind: Kind = "pretrain"
    targets: str = ""
    """A name of Table VII."""
    knowledge: Knowledge | None = None
    encoder: str = ""
    stream: Literal["joint", "bone", "motion"] | None = None
    shuffled: bool = False
    alpha: tuple[float, float] | None = None
    beta: float | None = None

    def recipe(self, base: Recipe) -> Recipe:
        """Return the recipe of this variant."""
        t = base.training
        pretrain: dict[str, Any] = {}
        if self.targets:
            pretrain["targets"] = targets_of(t.pretrain.targets, self.targets)
        if self.alpha is not None or self.beta is not None:
            pretrain["targets"] = _moved(t.pretrain.targets, self.alpha, self.beta)
        if self.knowledge is not None:
            pretrain["knowledge"] = self.knowledge
        if self.shuffled:
            pretrain["pairs"] = "shuffled"
        changes: dict[str, Any] = {"pretrain": t.pretrain.model_copy(update=pretrain)}
        if self.stream is not None:
            changes["input"] = t.input.model_copy(update={"stream": self.stream})
        if self.encoder and self.encoder != t.encoder.name:
            changes["encoder"] = _encoder(t.encoder, self.encoder)
        return base.model_copy(update={"training": t.model_copy(update=changes)})


def targets_of(own: Targets, name: str) -> Targets:
    """Return targets of Table VII with as many numbers (beta, temperature, …) as possible from a recipe's targets."""
    if name == targets_name(own):
        return own
    named = PretrainConfig.model_validate({"targets": name}).targets
    values = {k: v for k, v in own if k in type(named).model_fields and k not in {"kind", "alpha"}}
    alpha = getattr(own, "alpha", None)
    if alpha is not None and isinstance(named, Blend | Partition) and named.alpha.schedule == alpha.schedule:
        values["alpha"] = alpha
    return named.model_copy(update=values)


def _moved(own: Targets, alpha: tuple[float, float] | None, beta: float | None) -> Targets:
    """Return the paper's targets with another alpha or beta."""
    paper = targets_of(own, "partition(cosine)")
    if alpha is not None:
        return paper.model_copy(update={"alpha": Cosine(start=alpha[0], end=alpha[1])})
    return paper.model_copy(update={"beta": beta})


def _encoder(own: EncoderConfig, name: str) -> EncoderConfig:
    """Return another encoder of published size, or of the recipe's size if its own encoder is smaller.

    Encoders that have a choice treat empty bodies as the recipe's own. A width cannot be translated to blocks: next to
    a narrow bigru or transformer the graph networks keep their published size.
    """
    if name not in _GRAPHS:
        width = own.blocks[-1][0] if own.blocks else own.width
        return EncoderConfig(name=name, width=width)
    blocks = None
    if own.blocks is not None:
        by = 6 if name == "msg3d" else 1  # its six branches in time share the channels
        blocks = tuple((-(-c // by) * by, stride) for c, stride in own.blocks)
    return EncoderConfig(name=name, blocks=blocks, empty_bodies=own.empty_bodies)


# ---------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class RowSpec:
    """A computed row: variant, protocol and role."""

    label: str
    variant: Variant
    protocol: Protocol
    role: Role = "pretrained"
    repeats: str = ""
    """`PrintedRow.ours` of the paper's row that it repeats."""
    setting: str = ""
    """Setting of the protocol: `stratified, frozen`, `tuned`, `equal weights`."""
    of: Literal["linear", "finetune"] = "linear"
    """Protocol whose scores an ensemble adds."""

    @property
    def streams(self) -> tuple[Variant, ...]:
        """Variants of the runs that take part, one per stream for an ensemble."""
        if self.protocol != "ensemble":
            return (self.variant,)
        names: tuple[Literal["joint", "bone", "motion"], ...] = ("joint", "bone", "motion")
        return tuple(replace(self.variant, stream=name) for name in names)


OURS = Variant(targets="partition(cosine)", knowledge="both", stream="joint")
"""The paper's C²VL. Fixed here, independent of the recipe; everything else (teacher, encoder, numbers) is the recipe's."""
SCRATCH = Variant("random", stream="joint")
CONTROLS: tuple[tuple[str, Role, Variant], ...] = (
    ("random encoder (floor)", "floor", SCRATCH),
    ("supervised (ceiling)", "ceiling", Variant("supervised", stream="joint")),
    ("shuffled pairs (control)", "shuffled", replace(OURS, shuffled=True)),
)


def _controls(protocol: Protocol, setting: str = "") -> list[RowSpec]:
    end = f", {setting}" if setting else ""
    return [RowSpec(f"{label}{end}", v, protocol, role, setting=setting) for label, role, v in CONTROLS]


def _fused_controls(of: Literal["linear", "finetune"], *, floor: bool) -> list[RowSpec]:
    """Return the controls of three streams with fixed weights; `floor` adds the random encoders."""
    return [
        RowSpec(f"3s {label}", v, "ensemble", role, setting="fixed weights", of=of)
        for label, role, v in CONTROLS
        if floor or role != "floor"
    ]


def _fused(label: str, repeats: str, variant: Variant, of: Literal["linear", "finetune"]) -> list[RowSpec]:
    return [
        RowSpec(f"{label}{end}", variant, "ensemble", _ROLES[variant.kind], repeats, setting, of)
        for end, setting in (("", "fixed weights"), (", equal weights", "equal weights"))
    ]


def rows_of(name: str, encoder: str = "stgcn") -> list[RowSpec]:
    """Return our rows of a table or figure, controls last; `encoder` is the recipe's, used by the controls."""
    own, scratch = OURS, SCRATCH
    if name == "table1":
        ours = [RowSpec("C²VL", own, "linear", repeats="joint"), *_fused("3s-C²VL", "streams", own, "linear")]
        return [*ours, *_controls("linear"), *_fused_controls("linear", floor=True)]
    if name == "table2":
        return [
            RowSpec("ST-GCN from random weights", scratch, "finetune", "floor", "scratch"),
            RowSpec("C²VL", own, "finetune", repeats="joint"),
            *_fused("3s-ST-GCN from random weights", "scratch-streams", scratch, "finetune"),
            *_fused("3s-C²VL", "streams", own, "finetune"),
            *_controls("finetune")[1:],
            *_fused_controls("finetune", floor=False),
        ]
    if name == "table3":
        readings = [f"{how}, {what}" for how in ("stratified", "random") for what in ("frozen", "tuned")]
        ours = [RowSpec(f"C²VL, {r}", own, "semi", repeats="joint", setting=r) for r in readings]
        return [*ours, *(row for r in readings for row in _controls("semi", r))]
    if name == "table4":
        return [RowSpec("C²VL", own, "knn", repeats="joint"), *_controls("knn")]
    if name == "table5":
        frozen = RowSpec("C²VL, frozen", own, "transfer", setting="frozen")
        ours = [RowSpec("C²VL", own, "transfer", repeats="tuned", setting="tuned"), frozen]
        return [*ours, *(row for s in ("tuned", "frozen") for row in _controls("transfer", s))]
    controls = _controls("linear") if name.startswith("table") or name == "figure6" else []
    return [*_ablation(name, encoder), *controls]


def _ablation(name: str, encoder: str) -> list[RowSpec]:
    """Return the rows of Tables VI-VIII and the figures, all by linear evaluation."""
    kinds: tuple[Knowledge, ...] = ("vision", "language", "both")
    pairs: Iterable[tuple[str, str, Variant]]
    match name:
        case "table6":
            pairs = [(k.replace("both", "vision and language"), k, replace(OURS, knowledge=k)) for k in kinds]
        case "table7":
            pairs = [(t, t, replace(OURS, targets=t)) for t in TABLE_VII]
        case "table8":
            pairs = [(f"C²VL with {words}", e, replace(OURS, encoder=e)) for e, words in _ENCODERS.items()]
        case "figure4" | "figure5":
            pairs = [("InfoNCE", "", replace(OURS, targets="hard")), ("C²VL", "", OURS)]
        case "figure6":
            by_alpha = [(f"alpha {a:g} → {b:g}", "", replace(OURS, alpha=(a, b))) for a, b in ALPHAS]
            pairs = [*by_alpha, *((f"beta {b:g}", "", replace(OURS, beta=b)) for b in BETAS)]
        case _:
            losses = (("InfoNCE", "hard"), ("C²VL", OURS.targets))
            pairs = [(f"{n}, {k}", "", replace(OURS, targets=t, knowledge=k)) for k in kinds[:2] for n, t in losses]
    rows = [RowSpec(label, variant, "linear", repeats=repeats) for label, repeats, variant in pairs]
    if name == "table8":  # untrained encoders differ too
        rows += [
            RowSpec(f"{words.removeprefix('a ')}, random", replace(SCRATCH, encoder=e), "linear", "floor")
            for e, words in _ENCODERS.items()
            if e != encoder
        ]
    return rows
