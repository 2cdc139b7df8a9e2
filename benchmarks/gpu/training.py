"""Pre-training by the `paper` recipe on the device, beside an ST-GCN as it is usually written.

What is timed are whole epochs of a small set by the trainer's own loop: draws, augmentation on the device, encoder,
objective, optimiser, and every wait that they cause. The usual way differs in the encoder alone (`usual_encoders.Plain`: the
1x1 convolution before the graph, both bodies always computed), in float32 and under autocast; it is given our data path,
without which it would also wait for a feeder. Of the clips 80 % show one person. Utilisation counts the operations that a
variant really does, so that the skip of empty bodies lowers both time and operations. Those of one item are timed in turn.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch._dynamo
from torch import Tensor
from torch._C._autograd import DeviceType
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import one_line
from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import trainer
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset, Selection
from c2vl_training.encoders.stgcn import FULL
from c2vl_training.pretraining import Pretraining
from c2vl_training.run_folder import Run
from gpu.session import Session, flops_of
from support.packed import write_packed
from usual_encoders import Plain

ONE_PERSON, DIM = 0.8, 768
"""Share of clips with an empty second body, about that of NTU RGB+D; width of CLIP's vectors."""
STEPS = 10
"""Of an epoch that is timed."""
TINY = (
    "training.pretrain.batch_size=4",
    "training.input.frames=16",
    "training.encoder.blocks=[[8, 1], [8, 2]]",
    "training.pretrain.projector_dim=16",
)
GROUPS = (
    ("convolution", r"conv"),
    ("product of matrices", r"mm|linear|matmul|einsum|baddbmm"),
    ("normalisation", r"norm|_Weighted"),
    ("gathering (augmentation, skip)", r"embedding_bag|index|gather|scatter|nonzero|sort|randperm"),
    ("optimiser", r"foreach|Optimizer|fused_sgd"),
    ("copies and types", r"copy|contiguous|clone|_to_copy|cat\b|fill|zero"),
    ("sums", r"sum|mean|reduce|softmax|logsumexp"),
    ("element by element", r"add|mul|div|sub|relu|threshold|clamp|where|sqrt|exp|log|eq|ne|lt|gt|pow|neg|any|isfinite"),
)
"""Group of operators -> pattern of their names; the first that fits counts."""


def packed_set(session: Session, recipe: Recipe) -> PackedDataset:
    """Write random clips of NTU's lengths, with one vector of each kind, unless they are there."""
    folder = session.folder / "packed"
    if not folder.is_dir():
        rng = np.random.default_rng(0)
        steps = 2 if session.tiny else STEPS
        count = steps * recipe.training.pretrain.batch_size
        lengths = np.clip(30 + rng.gamma(3, 15, count), 20, 300).astype(int)
        joints = [rng.standard_normal((length, 2, 25, 3), np.float32) for length in lengths]
        for clip, alone in zip(joints, rng.random(count) < ONE_PERSON, strict=True):
            clip[:, 1] *= not alone
        V, L = (rng.standard_normal((count, 1, DIM), np.float32) for _ in range(2))
        write_packed(folder, joints, layout=KINECT_V2, vision=V, language=L, splits=[{"xsub": "train"}] * count)
    return PackedDataset(folder)


@dataclass
class Variant:
    """A training whose epochs are timed."""

    recipe: Recipe
    method: Pretraining
    clips: Clips
    _optimiser: torch.optim.Optimizer

    @classmethod
    def of(cls, packed: PackedDataset, recipe: Recipe, device: torch.device, usual: bool = False) -> Variant:
        """Build a training by a recipe, with our encoder or the usual one."""
        run = Run("pretrain", packed, recipe, "xsub", 0, Path("nowhere"))
        selection: Selection = run.select()
        clips = Clips(packed, selection.rows, recipe.training.input, device)
        config = recipe.training.pretrain
        if usual:
            torch.manual_seed(0)
            method: Any = Pretraining(
                packed,
                config,
                0,
                cast("Any", Plain(widths_and_strides=recipe.training.encoder.blocks or FULL)),
                selection,
                device,
            )
        else:
            _, method = trainer.method_of(run, selection, device)
        o = config.optimiser
        optimiser = torch.optim.SGD(method.groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov)
        return cls(recipe, method, clips, optimiser)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.clips) // self.method.batch_size

    @property
    def blocks(self) -> int:
        """Blocks of the encoder."""
        return len(self.recipe.training.encoder.blocks or FULL)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the products."""
        return torch.bfloat16 if self.recipe.training.precision == "bfloat16" else torch.float32

    def epoch(self) -> float:
        """Train one epoch as the trainer does, but not the first, which counts similarities; return the mean loss."""
        config = self.recipe.training.model_copy(update={"checkpoint_every": 1_000_000})
        session = trainer.Session("bench", 0, config, Path("nowhere"), {}, _silent, lambda *_: {})
        at = trainer.Position(epochs_done=1)
        trainer._epoch(self.method, self._optimiser, self.clips, session, at, lambda: False)
        return at.sums["loss"] / at.steps_done


def _silent(event: object) -> None:
    pass


def recipe_of(tiny: bool, *overrides: str) -> Recipe:
    """Return the `paper` recipe, of tiny sizes in a trial."""
    return load_recipe("paper", [*(TINY if tiny else ()), *overrides])


def steps_of_the_paper(recipe: Recipe) -> int:
    """Return the steps of a whole pre-training on the cross-subject split of NTU RGB+D 60."""
    expected = load_dataset("ntu60").expected
    assert expected is not None
    return recipe.training.pretrain.epochs * (expected.splits["xsub"][0] // recipe.training.pretrain.batch_size)


@dataclass(frozen=True)
class Kind:
    """How a variant differs from the `paper` recipe with our encoder, and what its first ratio is over."""

    base: str | None
    overrides: tuple[str, ...] = ()
    usual: bool = False
    compiled: bool = False


USUAL = "plain, float32"
"""What every variant has a second ratio over: the usual way."""
_AUTOCAST = "plain, bf16 autocast"
KINDS = {
    "ours, bf16": Kind(_AUTOCAST),
    "ours, bf16, no skip": Kind(_AUTOCAST, ("training.encoder.empty_bodies=compute",)),
    "ours, bf16, compiled": Kind("ours, bf16", compiled=True),
    _AUTOCAST: Kind(None, usual=True),
    USUAL: Kind(_AUTOCAST, ("training.precision=float32",), usual=True),
}


@dataclass
class _Measured:
    """A variant, what an epoch of it takes, and the seconds of those that were timed."""

    variant: Variant
    flops: int
    memory: float | None
    first: float
    """Seconds of its first epoch, compilation included."""
    seconds: list[float] = field(default_factory=list)


def beside(*names: str) -> Callable[[Session], None]:
    """Return what times epochs of variants in turn, while the item's time lasts for another turn.

    Each has a row as soon as it was timed once, and again after every turn, unless an earlier item measured it. One that
    fails is a row with its reason.
    """

    def run(session: Session) -> None:
        known = {row["name"] for row in session.rows if "reason" not in row}
        measured: dict[str, _Measured] = {}
        left = list(names)
        for turn in range(session.pairs):
            if turn and session.left() < 2 * sum(one.seconds[-1] for one in measured.values()):
                break
            for name in tuple(left):
                if reason := _timed(session, name, measured):
                    left.remove(name)
                    session.free()
                    if measured.get(name):
                        session.notes.append(f"{_called(name)}: left out after {turn} turns: {reason}")
                    else:
                        session.skip(_called(name), reason)
                if not turn:
                    _renew(session, measured, known)
            _renew(session, measured, known)

    return run


def _timed(session: Session, name: str, measured: dict[str, _Measured]) -> str:
    """Time an epoch of a variant, which is built before its first; return why that failed, out of memory say, or nothing."""
    try:
        one = measured.get(name) or _warm(session, KINDS[name])
        one.seconds.append(session.seconds_of(one.variant.epoch))
        measured[name] = one
    except Exception as error:
        return one_line(error, named=True)
    return ""


def _called(name: str) -> str:
    return f"pre-training, {name}"


def _warm(session: Session, kind: Kind) -> _Measured:
    """Build a variant; count the operations of an epoch, then its memory without what others hold."""
    session.free()
    others = session.held()
    recipe = recipe_of(session.tiny, *kind.overrides)
    variant = Variant.of(packed_set(session, recipe), recipe, session.device, kind.usual)
    flops = flops_of(variant.epoch)  # before it is compiled, which hides operations from the counter
    if kind.compiled:
        counters.clear()
        _compile(variant, session.tiny)
    began = time.perf_counter()
    memory = session.memory(variant.epoch, others)
    return _Measured(variant, flops, memory, time.perf_counter() - began)


def _compile(variant: Variant, tiny: bool) -> None:
    """Compile the blocks for any number of bodies, which differs from batch to batch.

    In the trial graphs are captured, forwards and backwards, but no code is made of them: that takes minutes on a CPU.
    """
    # equal blocks share an entry: six kinds in the full network, and as many again where the compiler tells sizes apart
    torch._dynamo.config.recompile_limit = 64
    encoder: Any = variant.method.model.encoder
    for block in encoder.blocks:
        block.forward = _any_number(torch.compile(block.forward, backend="aot_eager" if tiny else "inductor"))


def _any_number(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def called(x: Tensor, copies: Tensor | None = None) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return block(x, copies)

    return called


def _renew(session: Session, measured: Mapping[str, _Measured], known: Collection[str]) -> None:
    """Put the row of every variant that an earlier item did not measure."""
    for name, one in measured.items():
        if (called := _called(name)) in known:
            continue
        variant, base = one.variant, KINDS[name].base
        steps, batch = variant.steps, variant.method.batch_size
        facts: dict[str, Any] = {"batch": batch, "memory_gib": one.memory}
        pairs = list(zip(one.seconds, measured[base].seconds, strict=False)) if base and base in measured else []
        usual = measured[USUAL].seconds if USUAL in measured else []
        if usual:
            facts["usual_ratio"] = float(np.median([b / a for a, b in zip(one.seconds, usual, strict=False)]))
        if not session.tiny:  # the sizes of a trial are not the paper's
            whole = steps_of_the_paper(variant.recipe)
            facts |= {"steps_of_the_paper": whole, "minutes": whole * float(np.median(one.seconds)) / steps / 60}
        if KINDS[name].compiled:
            facts |= {"graphs": counters["stats"]["unique_graphs"], "breaks": dict(counters["graph_break"])}
            facts |= {"blocks": variant.blocks, "first_seconds": one.first}
        session.row(
            called,
            [a for a, _ in pairs] or one.seconds,
            (base, [b for _, b in pairs]) if base and pairs else None,
            (steps * batch, "samples"),
            one.flops,
            variant.dtype,
            **facts,
        )


def profiled(session: Session) -> None:
    """Add a row with the share of each group of operators in the time of the device, and of its idle time."""
    recipe = recipe_of(session.tiny)
    variant = Variant.of(packed_set(session, recipe), recipe, session.device)
    (times,) = session.timed({"": variant.epoch}).values()
    cuda = session.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as found:
        variant.epoch()
        session.wait()
    # operators, not the kernels that they launch: those would count twice
    events = [one for one in found.key_averages() if one.device_type == DeviceType.CPU]
    spent = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6 for e in events}
    wall, busy = float(np.median(times)), sum(spent.values())
    groups: defaultdict[str, float] = defaultdict(float)
    for key, seconds in spent.items():
        groups[group_of(key)] += seconds / busy
    top = sorted(spent, key=spent.__getitem__, reverse=True)[:12]
    flops = flops_of(variant.epoch)
    session.row(
        "pre-training, ours, bf16, profiled",
        times,
        None,
        (variant.steps * variant.method.batch_size, "samples"),
        flops,
        variant.dtype,
        busy=min(1.0, busy / wall) if cuda else None,
        shares={name: round(share, 4) for name, share in sorted(groups.items(), key=lambda kv: -kv[1])},
        top={key: round(spent[key] / busy, 4) for key in top},
    )


def group_of(operator: str) -> str:
    """Return the group of an operator."""
    return next((name for name, pattern in GROUPS if re.search(pattern, operator)), "other")
