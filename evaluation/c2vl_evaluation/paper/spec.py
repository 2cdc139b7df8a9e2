"""The paper's tables and figures as data: its numbers as printed, and what is trained and asked for each row of ours.

`numbers.toml` holds Tables I-VIII. A line is a variant of the recipe under one protocol; nothing here trains.
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
from c2vl_manifests.recipe import (
    TABLE_VII,
    Blend,
    Constant,
    Cosine,
    EncoderConfig,
    Hard,
    Inter,
    Intra,
    Partition,
    Recipe,
    targets_name,
)
from c2vl_training.run_folder import Kind

AnyTargets = Hard | Intra | Inter | Blend | Partition
Knowledge = Literal["vision", "language", "both"]
_TARGETS: dict[str, type[AnyTargets]] = {
    "hard": Hard,
    "intra": Intra,
    "inter": Inter,
    "blend": Blend,
    "partition": Partition,
}
_GRAPHS = ("stgcn", "ctrgcn", "msg3d")
_ENCODERS = {
    "bigru": "a bidirectional GRU",
    "transformer": "a Transformer",
    "msg3d": "MS-G3D",
    "ctrgcn": "CTR-GCN",
    "stgcn": "ST-GCN",
}
"""Of Table VIII, in words. *Reading:* the paper's rows PCM³ and UmURL are C²VL with the encoders of those methods: its
text speaks of "our method across different skeleton encoders"."""
_ROLES: dict[Kind, Role] = {"pretrain": "pretrained", "random": "floor", "supervised": "ceiling"}
ALPHAS = ((0.9, 0.1), (0.8, 0.2), (0.7, 0.3), (0.6, 0.4))
BETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""The grid of Fig. 6. *Reading:* the paper prints no values; these are ours."""


# ---------------------------------------------------------------------------------------------- as printed


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Model):
    """What a number is of."""

    dataset: str
    benchmark: str
    share: float | None = None
    """Of the labels, in the semi-supervised table."""
    to: str = ""
    """Where the encoder is transferred to; `benchmark` is the target's then."""

    @property
    def title(self) -> str:
        """`ntu60 xsub`, `ntu60 xsub, 1 %`, `ntu60 → pku-mmd-2 xsub`."""
        way = f"{self.dataset} → {self.to}" if self.to else self.dataset
        share = "" if self.share is None else f", {100 * self.share:g} %"
        return f"{way} {self.benchmark}{share}"


class Printed(_Model):
    """A row of the paper; values in percent, None where it prints a dash."""

    method: str
    cite: int | None = None
    about: str = ""
    ours: str = ""
    """Which lines here repeat it."""
    values: tuple[Annotated[float | None, BeforeValidator(lambda v: None if v == "-" else v)], ...]


class PaperTable(_Model):
    """One table, or a figure (without rows of the paper)."""

    number: str
    title: str
    caption: str
    protocol: Protocol
    columns: tuple[Column, ...]
    rows: tuple[Printed, ...] = ()


@cache
def printed() -> dict[str, PaperTable]:
    """Return Tables I-VIII of the paper by name, `table1` to `table8`."""
    text = files("c2vl_evaluation.paper").joinpath("numbers.toml").read_text("utf-8")
    return {name: PaperTable.model_validate(table) for name, table in tomllib.loads(text).items()}


# ------------------------------------------------------------------------------------------------ variants


@dataclass(frozen=True)
class Variant:
    """How a training differs from the recipe; empty values are the recipe's own."""

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
        """Return the recipe that it is trained with."""
        t = base.training
        pretrain: dict[str, Any] = {}
        if self.targets:
            pretrain["targets"] = component(t.pretrain.targets, self.targets)
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


def component(own: AnyTargets, name: str) -> AnyTargets:
    """Return a row of Table VII that shares every number it can (beta, temperature, ...) with a recipe's targets."""
    if name == targets_name(own):
        return own
    kind, _, schedule = name.rstrip(")").partition("(")
    model = _TARGETS[kind]
    kept = {k: v for k, v in own if k in model.model_fields and k not in {"kind", "alpha"}}
    if schedule:
        alpha = getattr(own, "alpha", None)
        same = alpha is not None and alpha.schedule == schedule
        kept["alpha"] = alpha if same else Cosine() if schedule == "cosine" else Constant()
    return model.model_validate(kept)


def _moved(own: AnyTargets, alpha: tuple[float, float] | None, beta: float | None) -> AnyTargets:
    """Return the paper's targets with another alpha or beta."""
    paper = component(own, "partition(cosine)")
    if alpha is not None:
        return paper.model_copy(update={"alpha": Cosine(start=alpha[0], end=alpha[1])})
    return paper.model_copy(update={"beta": beta})


def _encoder(own: EncoderConfig, name: str) -> EncoderConfig:
    """Return another encoder, published size; where the recipe's own is a small one, of comparable size.

    Empty bodies are treated alike by all that can treat them in more than one way. A width says nothing of blocks:
    beside a narrow bigru or transformer the graph networks are of published size.
    """
    if name not in _GRAPHS:
        width = own.blocks[-1][0] if own.blocks else own.width
        return EncoderConfig(name=name, width=width)
    blocks = None
    if own.blocks is not None:
        by = 6 if name == "msg3d" else 1  # its six branches in time share the channels
        blocks = tuple((-(-c // by) * by, stride) for c, stride in own.blocks)
    return EncoderConfig(name=name, blocks=blocks, empty_bodies=own.empty_bodies)


# --------------------------------------------------------------------------------------------------- lines


@dataclass(frozen=True)
class Line:
    """A row of ours before it is run."""

    label: str
    variant: Variant
    protocol: Protocol
    role: Role = "pretrained"
    repeats: str = ""
    """`ours` of the paper's row that it repeats."""
    setting: str = ""
    """`stratified, frozen`, `tuned`, `equal weights`: which findings of the protocol."""
    of: Literal["linear", "finetune"] = "linear"
    """Whose scores are added, of an ensemble."""

    @property
    def streams(self) -> tuple[Variant, ...]:
        """One variant a run that takes part."""
        if self.protocol != "ensemble":
            return (self.variant,)
        names: tuple[Literal["joint", "bone", "motion"], ...] = ("joint", "bone", "motion")
        return tuple(replace(self.variant, stream=name) for name in names)


OURS = Variant(targets="partition(cosine)", knowledge="both", stream="joint")
"""What the paper calls C²VL, whatever a recipe has in its place; all else (teacher, encoder, numbers) is the recipe's."""
SCRATCH = Variant("random", stream="joint")
CONTROLS: tuple[tuple[str, Role, Variant], ...] = (
    ("random encoder (floor)", "floor", SCRATCH),
    ("supervised (ceiling)", "ceiling", Variant("supervised", stream="joint")),
    ("shuffled pairs (control)", "shuffled", replace(OURS, shuffled=True)),
)


def _controls(protocol: Protocol, setting: str = "") -> list[Line]:
    end = f", {setting}" if setting else ""
    return [Line(f"{label}{end}", v, protocol, role, setting=setting) for label, role, v in CONTROLS]


def _fused_controls(of: Literal["linear", "finetune"], *, floor: bool) -> list[Line]:
    """Return the controls of three streams, fixed weights only; `floor`: with the random encoders."""
    return [
        Line(f"3s {label}", v, "ensemble", role, setting="fixed weights", of=of)
        for label, role, v in CONTROLS
        if floor or role != "floor"
    ]


def _fused(label: str, repeats: str, variant: Variant, of: Literal["linear", "finetune"]) -> list[Line]:
    return [
        Line(f"{label}{end}", variant, "ensemble", _ROLES[variant.kind], repeats, setting, of)
        for end, setting in (("", "fixed weights"), (", equal weights", "equal weights"))
    ]


def lines(name: str, encoder: str = "stgcn") -> list[Line]:
    """Return the lines of a table or figure, controls last; `encoder` is the recipe's, the controls' own."""
    own, scratch = OURS, SCRATCH
    if name == "table1":
        ours = [Line("C²VL", own, "linear", repeats="joint"), *_fused("3s-C²VL", "streams", own, "linear")]
        return [*ours, *_controls("linear"), *_fused_controls("linear", floor=True)]
    if name == "table2":
        return [
            Line("ST-GCN from random weights", scratch, "finetune", "floor", "scratch"),
            Line("C²VL", own, "finetune", repeats="joint"),
            *_fused("3s-ST-GCN from random weights", "scratch-streams", scratch, "finetune"),
            *_fused("3s-C²VL", "streams", own, "finetune"),
            *_controls("finetune")[1:],
            *_fused_controls("finetune", floor=False),
        ]
    if name == "table3":
        readings = [f"{how}, {what}" for how in ("stratified", "random") for what in ("frozen", "tuned")]
        ours = [Line(f"C²VL, {r}", own, "semi", repeats="joint", setting=r) for r in readings]
        return [*ours, *(line for r in readings for line in _controls("semi", r))]
    if name == "table4":
        return [Line("C²VL", own, "knn", repeats="joint"), *_controls("knn")]
    if name == "table5":
        frozen = Line("C²VL, frozen", own, "transfer", setting="frozen")
        ours = [Line("C²VL", own, "transfer", repeats="tuned", setting="tuned"), frozen]
        return [*ours, *(line for s in ("tuned", "frozen") for line in _controls("transfer", s))]
    controls = _controls("linear") if name.startswith("table") or name == "figure6" else []
    return [*_ablation(name, encoder), *controls]


def _ablation(name: str, encoder: str) -> list[Line]:
    """Return what is compared by linear evaluation: Tables VI-VIII and the figures."""
    kinds: tuple[Knowledge, ...] = ("vision", "language", "both")
    pairs: Iterable[tuple[str, str, Variant]]
    match name:
        case "table6":
            pairs = [(k.replace("both", "vision and language"), k, replace(OURS, knowledge=k)) for k in kinds]
        case "table7":
            pairs = [(t, t, replace(OURS, targets=t)) for t in TABLE_VII]
        case "table8":
            pairs = [(f"C²VL with {said}", e, replace(OURS, encoder=e)) for e, said in _ENCODERS.items()]
        case "figure4" | "figure5":
            pairs = [("InfoNCE", "", replace(OURS, targets="hard")), ("C²VL", "", OURS)]
        case "figure6":
            by_alpha = [(f"alpha {a:g} → {b:g}", "", replace(OURS, alpha=(a, b))) for a, b in ALPHAS]
            pairs = [*by_alpha, *((f"beta {b:g}", "", replace(OURS, beta=b)) for b in BETAS)]
        case _:
            losses = (("InfoNCE", "hard"), ("C²VL", OURS.targets))
            pairs = [
                (f"{n}, {k}", "", replace(OURS, targets=t, knowledge=k)) for k in kinds[:2] for n, t in losses
            ]
    found = [Line(label, variant, "linear", repeats=repeats) for label, repeats, variant in pairs]
    if name == "table8":  # untrained encoders differ too
        found += [
            Line(f"{said.removeprefix('a ')}, random", replace(SCRATCH, encoder=e), "linear", "floor")
            for e, said in _ENCODERS.items()
            if e != encoder
        ]
    return found


def _figure(number: str, title: str, caption: str) -> PaperTable:
    first = Column(dataset="ntu60", benchmark="xsub")
    return PaperTable(number=number, title=title, caption=caption, protocol="linear", columns=(first,))


FIGURES = {
    "figure4": _figure(
        "4",
        "Similarity of positive pairs",
        "Cosine of each skeleton and its own prompts over the training split in the last epoch, after InfoNCE and after C²VL.",
    ),
    "figure5": _figure(
        "5",
        "Similarity of negative pairs",
        "Cosine of each skeleton and the prompts of the other samples of its batch, in the last epoch, after InfoNCE and after C²VL.",
    ),
    "figure6": _figure(
        "6",
        "Hyper-parameters",
        "Linear evaluation over the range of alpha (start → end of its cosine) and over beta. The paper prints no numbers.",
    ),
    "figure7": _figure(
        "7",
        "t-SNE of test features",
        "InfoNCE and C²VL, pre-trained on vision and on language alone; {classes} in every panel.",
    ),
    "figure8": _figure(
        "8",
        "Confusion matrices",
        "Answers of the linear evaluation for {classes}, those of Figure 7; rows are the truth, in percent.",
    ),
}


def everything() -> dict[str, PaperTable]:
    """Return all tables and figures by name, in the paper's order."""
    return printed() | FIGURES
