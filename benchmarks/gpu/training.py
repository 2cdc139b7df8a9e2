"""Pre-training by the `paper` recipe on the device, beside an ST-GCN as it is usually written.

What is timed are whole epochs of a small set by the trainer's own loop: draws, augmentation on the device, encoder,
objective, optimiser, and every wait that they cause. The usual way differs in the encoder alone (`usual_encoders.Plain`: the
1x1 convolution before the graph, both bodies always computed), in float32 and under autocast; it is given our data path,
without which it would also wait for a feeder. Of the clips 80 % show one person. Utilisation counts the operations that a
variant really does, so that the skip of empty bodies lowers both time and operations.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
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
    """Write random clips of NTU's lengths, with one vector of each kind."""
    rng = np.random.default_rng(0)
    steps = 2 if session.tiny else STEPS
    count = steps * recipe.training.pretrain.batch_size
    lengths = np.clip(30 + rng.gamma(3, 15, count), 20, 300).astype(int)
    joints = [rng.standard_normal((length, 2, 25, 3), np.float32) for length in lengths]
    for clip, alone in zip(joints, rng.random(count) < ONE_PERSON, strict=True):
        clip[:, 1] *= not alone
    V, L = (rng.standard_normal((count, 1, DIM), np.float32) for _ in range(2))
    folder = session.folder / "packed"
    if not folder.is_dir():
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


def training(session: Session) -> None:
    """Time our training, without the skip too, and the usual ones."""
    recipe = recipe_of(session.tiny)
    packed, device = packed_set(session, recipe), session.device
    variants = {
        "ours, bf16": Variant.of(packed, recipe, device),
        "ours, bf16, no skip": Variant.of(
            packed, recipe_of(session.tiny, "training.encoder.empty_bodies=compute"), device
        ),
        "plain, bf16 autocast": Variant.of(packed, recipe, device, usual=True),
        "plain, float32": Variant.of(packed, recipe_of(session.tiny, "training.precision=float32"), device, usual=True),
    }
    _rows(session, variants, "plain, bf16 autocast")


def compiled(session: Session) -> None:
    """Time our training with compiled blocks beside the same as it is: numbers of bodies vary from batch to batch."""
    recipe = recipe_of(session.tiny)
    packed, device = packed_set(session, recipe), session.device
    variants = {name: Variant.of(packed, recipe, device) for name in ("ours, bf16, compiled", "ours, bf16")}
    encoder: Any = variants["ours, bf16, compiled"].method.model.encoder
    counters.clear()
    for block in encoder.blocks[: 1 if session.tiny else None]:
        # in the trial only the capture of one graph is tried: generating code takes minutes on a CPU
        block.compile(dynamic=True, **({"backend": "eager"} if session.tiny else {}))
    _rows(session, variants, "ours, bf16")
    for reason, times in counters["graph_break"].items():
        session.notes.append(f"compiled: graph broken {times} times: {one_line(RuntimeError(reason))}")


def _rows(session: Session, variants: dict[str, Variant], base: str) -> None:
    """Time epochs in turn and add a row for each variant, unless an earlier comparison measured it."""
    memory = {name: session.memory(variant.epoch) for name, variant in variants.items()}
    # compilers and the counter do not go together; what is compiled does the same operations
    flops = {name: flops_of(v.epoch) for name, v in variants.items() if not name.endswith("compiled")}
    times = session.timed({name: variant.epoch for name, variant in variants.items()})
    known = {row["name"] for row in session.rows}
    for name, variant in variants.items():
        if (called := f"pre-training, {name}") in known:
            continue
        steps, batch = variant.steps, variant.method.batch_size
        whole = steps_of_the_paper(variant.recipe)
        hours = whole * float(np.median(times[name])) / steps / 3600
        session.row(
            called,
            times[name],
            None if name == base else (base, times[base]),
            (steps * batch, "samples"),
            flops.get(name, flops[base]),
            variant.dtype,
            memory_gib=memory[name],
            batch=batch,
            # the sizes of a trial are not the paper's
            **({} if session.tiny else {"steps_of_the_paper": whole, "hours_of_the_paper": hours}),
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
