"""Pre-training and the supervised control: one run reads top to bottom here.

A run is a folder. It is finished when `encoder.safetensors` is there; a killed one goes on from its last
checkpoint and ends, on a CPU, with bitwise the weights of an uninterrupted run, because every draw is keyed by
seed and epoch.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from c2vl_manifests.config import Constant, Cosine, Optimiser, Recipe, targets_name
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_training import checkpoint, objective, schedule
from c2vl_training.data import Clips, Knowledge, Packed, Selection, draw
from c2vl_training.model import CrossModal

Kind = Literal["pretrain", "supervised", "random"]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """Everything that determines a run."""

    kind: Kind
    packed: Packed
    recipe: Recipe
    benchmark: str
    seed: int
    out: Path

    def facts(self) -> dict[str, Any]:
        """What is saved beside the weights and must be equal for a resume."""
        training = self.recipe.training
        part = {"pretrain": training.pretrain, "supervised": training.supervised, "random": None}[self.kind]
        m = self.packed.manifest
        return {
            "format": 1,
            "kind": self.kind,
            "benchmark": self.benchmark,
            "seed": self.seed,
            "dataset": m.dataset,
            "data": m.fingerprint,
            "layout": m.layout,
            "bodies": m.bodies,
            "encoder": training.encoder.model_dump(mode="json"),
            "input": training.input.model_dump(mode="json"),
            "precision": training.precision,
            "config": part.model_dump(mode="json") if part else None,
        }


@dataclass(frozen=True)
class Result:
    """A finished run."""

    out: Path
    epochs: int
    seconds: float
    samples: int
    left_out: int
    last: Metrics


def device_of(name: str) -> torch.device:
    """Resolve `auto`; raises ConfigError for a device this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"training.device = {name!r} is no device; use auto, cpu, cuda or cuda:<number>"
        ) from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"training.device = {name!r}: training runs on cpu and cuda; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"training.device = {name!r} and this machine has no CUDA device; use auto or cpu")
    return device


def _key(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % (1 << 63)


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(_key(seed, epoch))


# ------------------------------------------------------------------------------------------------ loop


@dataclass
class _Learner:
    """What the loop trains: a model, what it returns for a batch, and what happens around an epoch."""

    model: nn.Module
    groups: list[dict[str, Any]]
    optimiser: Optimiser
    epochs: int
    batch_size: int
    begin_epoch: Callable[[int, torch.Generator], None]
    loss: Callable[[Tensor, Tensor, int], tuple[Tensor, Metrics]]
    """(clips (B, C, T, V, M), their places in the selection (B,), epoch) -> loss and figures for the log."""
    after_step: Callable[[], None] = lambda: None
    extra: nn.Module | None = None
    """A teacher: checkpointed, not optimised."""


def fit(
    run: Run, learner: _Learner, clips: Clips, selection: Selection, device: torch.device, emit: Emit
) -> Metrics:
    """Train to the last epoch, from the last checkpoint if there is one. Returns the last epoch's figures.

    Raises:
        CheckpointError: the folder holds a run of another configuration.
        C2VLError: the loss became NaN (step, samples and last good checkpoint are named).
    """
    config, total = run.recipe.training, len(clips)
    if learner.batch_size > total:
        raise ConfigError(
            f"training.{run.kind}.batch_size = {learner.batch_size} is larger than the {total} usable training samples; "
            f"choose a smaller one by --set training.{run.kind}.batch_size={max(2, total // 4)}"
        )
    o = learner.optimiser
    optimiser = torch.optim.SGD(
        learner.groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0
    )
    first = _resume(run, learner, optimiser, emit)
    steps = total // learner.batch_size
    log = _Log(run.out, first)
    metrics: Metrics = log.last
    label = run.out.name
    emit(Progress(label, first, learner.epochs, "epochs"))
    for epoch in range(first, learner.epochs):
        started = time.monotonic()
        generator = _generator(run.seed, epoch)
        order = torch.randperm(total, generator=generator)
        draws = draw(total, config.input, generator)
        torch.manual_seed(_key(run.seed, epoch))  # dropout draws from the global generator
        learner.begin_epoch(epoch, generator)
        learner.model.train()
        sums: dict[str, float] = {}
        for step in range(steps):
            at = slice(step * learner.batch_size, (step + 1) * learner.batch_size)
            rows = order[at].to(device)
            rate = schedule.learning_rate_at(
                epoch * steps + step, steps, o.lr, o.warmup_epochs, o.milestones, o.gamma
            )
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            batch = clips.train(rows, draws.take(at))
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss, figures = learner.loss(batch, rows, epoch)
            if not torch.isfinite(loss):
                _stop(run, epoch, step, selection, order[at])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if o.clip_norm is not None:
                nn.utils.clip_grad_norm_(learner.model.parameters(), o.clip_norm)
            optimiser.step()
            learner.after_step()
            for name, value in ({"loss": float(loss.detach())} | figures).items():
                sums[name] = sums.get(name, 0.0) + value
        metrics = {name: value / steps for name, value in sums.items()}
        metrics |= {"lr": rate, "seconds": time.monotonic() - started}
        last = epoch + 1 == learner.epochs
        log.write(epoch, metrics)  # before the checkpoint: a resume drops lines of epochs it repeats
        if last or (epoch + 1) % config.checkpoint_every == 0:
            if not _finite(learner.model):  # the last step broke them after its loss was seen
                _stop(run, epoch, steps - 1, selection, order[at])
            _save(run, learner, optimiser, epoch + 1)
        emit(
            Progress(
                label,
                epoch + 1,
                learner.epochs,
                "epochs",
                {k: v for k, v in metrics.items() if k in {"loss", "alpha", "accuracy"}},
            )
        )
    log.close()
    return metrics


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())


def _stop(run: Run, epoch: int, step: int, selection: Selection, places: Tensor) -> None:
    rows = selection.rows[places[:5].numpy()]
    ids = ", ".join(run.packed.sample_ids(rows))
    kept = run.out / checkpoint.CHECKPOINT
    good = f"the last good checkpoint is {kept}" if kept.is_file() else "there is no checkpoint yet"
    raise C2VLError(
        f"the loss or the weights became NaN or infinite in epoch {epoch}, step {step} (samples {ids}, …); {good}; "
        f"lower the learning rate, e.g. --set training.{run.kind}.optimiser.lr=0.03, or clip gradients by optimiser.clip_norm=1"
    )


def _save(run: Run, learner: _Learner, optimiser: torch.optim.Optimizer, epochs_done: int) -> None:
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    tensors |= checkpoint.optimiser_tensors(optimiser)
    if learner.extra is not None:
        tensors |= {f"teacher.{k}": v for k, v in learner.extra.state_dict().items()}
    checkpoint.save(run.out / checkpoint.CHECKPOINT, tensors, {**run.facts(), "epochs_done": epochs_done})


def _resume(run: Run, learner: _Learner, optimiser: torch.optim.Optimizer, emit: Emit) -> int:
    """Load the last checkpoint of this very run; returns how many epochs are done."""
    path = run.out / checkpoint.CHECKPOINT
    if not path.is_file():
        return 0
    tensors, facts = checkpoint.load(path)
    refuse_other(run, facts, path)
    checkpoint.restore(learner.model, tensors, "model.", path)
    checkpoint.restore_optimiser(optimiser, tensors)
    if learner.extra is not None:
        checkpoint.restore(learner.extra, tensors, "teacher.", path)
    done = int(facts["epochs_done"])
    emit(Note(f"{run.out.name}: going on after epoch {done} of {learner.epochs}"))
    return done


def refuse_other(run: Run, facts: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError, naming the first difference, unless `facts` are those of this run."""
    mine = json.loads(json.dumps(run.facts()))
    for name, there, here in _differences(facts, mine, ""):
        raise CheckpointError(
            f"{path} is of another run: {name} is {there!r} there and {here!r} here; choose another --out, or delete the folder to begin anew"
        )


def _differences(there: Any, here: Any, place: str) -> list[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        names = [n for n in here if n in there] + [n for n in here if n not in there]
        return [d for n in names for d in _differences(there.get(n), here[n], f"{place}.{n}".lstrip("."))]
    return [] if there == here else [(place, there, here)]


class _Log:
    """metrics.jsonl and TensorBoard; epochs after the one a resume begins with are dropped."""

    def __init__(self, folder: Path, first: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["epoch"] < first]
        commit_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self.last: Metrics = {k: v for k, v in kept[-1].items() if k != "epoch"} if kept else {}
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, epoch: int, metrics: Metrics) -> None:
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        for name, value in metrics.items():
            self._board.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._board.close()


# ------------------------------------------------------------------------------------------------ runs


def train(run: Run, emit: Emit = silent) -> Result:
    """Make a run: pre-train, train with labels, or leave the encoder as initialised (the floor).

    A finished run of the same configuration is returned as it is.

    Raises:
        ConfigError, DataError, CheckpointError: in one line each.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    done = run.out / checkpoint.ENCODER
    if done.is_file():
        refuse_other(run, checkpoint.load(done)[1], done)
        return _read_result(run)
    device = device_of(run.recipe.training.device)
    started = time.monotonic()
    kinds = _kinds(run) if run.kind == "pretrain" else ()
    selection = run.packed.select(run.benchmark, "train", kinds)
    _write_left_out(run.out, selection)
    if selection.left_out:
        emit(
            Note(
                f"{len(selection.left_out)} of {len(selection.rows) + len(selection.left_out)} training samples are left out: see {run.out / 'left_out.csv'}",
                "warning",
            )
        )
    clips = Clips(run.packed, selection.rows, run.recipe.training.input, device)
    torch.manual_seed(run.seed)
    encoder = checkpoint.build_encoder(
        run.recipe.training.encoder, run.packed.layout, run.packed.manifest.bodies
    )
    epochs, last = 0, {}
    if run.kind == "pretrain":
        learner = _pretraining(run, encoder, selection, kinds, device)
        epochs, last = learner.epochs, fit(run, learner, clips, selection, device, emit)
    elif run.kind == "supervised":
        learner = _supervision(run, encoder, selection, device)
        epochs, last = learner.epochs, fit(run, learner, clips, selection, device, emit)
    result = Result(
        run.out,
        epochs,
        round(time.monotonic() - started, 2),
        len(selection.rows),
        len(selection.left_out),
        last,
    )
    _write_run(run, result, encoder)
    checkpoint.save_encoder(run.out, encoder, run.facts())
    return result


def _kinds(run: Run) -> tuple[str, ...]:
    knowledge = run.recipe.training.pretrain.knowledge
    return ("vision", "language") if knowledge == "both" else (knowledge,)


def _write_left_out(folder: Path, selection: Selection) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("sample_id", "reason"), *selection.left_out])
    commit_text(folder / "left_out.csv", text.getvalue())


def _write_run(run: Run, result: Result, encoder: nn.Module) -> None:
    facts = {
        **run.facts(),
        "recipe": run.recipe.model_dump(mode="json"),
        "recipe_fingerprint": run.recipe.fingerprint(),
        "samples": result.samples,
        "left_out": result.left_out,
        "epochs": result.epochs,
        "seconds": result.seconds,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "device": str(device_of(run.recipe.training.device)),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("c2vl", "torch", "numpy")},
        "fingerprint": fingerprint(run.facts()),
        "last": result.last,
    }
    commit_text(run.out / "run.json", json.dumps(facts, indent=1) + "\n")


def _read_result(run: Run) -> Result:
    try:
        facts = json.loads((run.out / "run.json").read_text("utf-8"))
        return Result(
            run.out, facts["epochs"], facts["seconds"], facts["samples"], facts["left_out"], facts["last"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{run.out / 'run.json'} is damaged ({error}); delete the folder and train again"
        ) from error


def _groups(parameters: list[nn.Parameter], o: Optimiser) -> list[dict[str, Any]]:
    return [{"params": parameters, "weight_decay": o.weight_decay, "factor": 1.0}]


def _pretraining(
    run: Run, encoder: Any, selection: Selection, kinds: tuple[str, ...], device: torch.device
) -> _Learner:
    """Set up Section III-D: projectors, knowledge from disk, soft targets, teacher."""
    config = run.recipe.training.pretrain
    knowledge = {kind: Knowledge(run.packed, selection.rows, kind, config) for kind in kinds}
    model = CrossModal(encoder, {kind: k.dim for kind, k in knowledge.items()}, config).to(device)
    soft = objective.Targets(**config.targets.model_dump(exclude={"alpha"}))
    pairs = (
        _pairing(len(selection.rows), run.seed)
        if config.pairs == "shuffled"
        else torch.arange(len(selection.rows))
    )
    present: dict[str, Tensor] = {}
    state: dict[str, Any] = {"alpha": 1.0}
    teacher = None if config.teacher == "self" else copy.deepcopy(model).eval().requires_grad_(False)

    def begin_epoch(epoch: int, generator: torch.Generator) -> None:
        state["alpha"] = _alpha(config.targets, epoch, config.epochs)
        for kind, source in knowledge.items():
            present[kind] = source.epoch(generator)[pairs].to(device)
        if teacher is not None and config.teacher == "previous_epoch":
            teacher.load_state_dict(model.state_dict())

    def embed(
        network: CrossModal, clips: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        sides = [
            network.knowledge(kind, present[kind][rows]) if kind in present else None
            for kind in ("vision", "language")
        ]
        return network.skeletons(clips), sides[0], sides[1]

    def loss(clips: Tensor, rows: Tensor, epoch: int) -> tuple[Tensor, Metrics]:
        S, V, L = embed(model, clips, rows)
        guide = None
        if teacher is not None:
            with torch.no_grad():
                guide = embed(teacher, clips, rows)
        scales = {kind: model.scales[kind]() for kind in kinds}
        parts = objective.loss(
            S, V, L, targets=soft, alpha=state["alpha"],
            scale_v=scales.get("vision", 1.0), scale_l=scales.get("language", 1.0), teacher=guide,
        )  # fmt: skip
        figures = {"alpha": float(state["alpha"])}
        figures |= {f"tau/{kind}": 1 / float(scale.detach()) for kind, scale in scales.items()}
        figures |= {name: float(v) for name, v in (parts.parts | parts.similarity).items()}
        return parts.total, figures

    @torch.no_grad()
    def after_step() -> None:
        if teacher is not None and config.teacher == "ema":
            for mine, theirs in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - config.ema)
                else:
                    mine.copy_(theirs)

    o, t = config.optimiser, config.temperature
    scales = [p for kind in kinds for p in model.scales[kind].parameters()]
    own = {id(p) for p in scales}
    groups = _groups([p for p in model.parameters() if id(p) not in own], o)
    if scales:
        groups.append({"params": scales, "weight_decay": 0.0, "factor": t.lr / o.lr})
    return _Learner(
        model, groups, o, config.epochs, config.batch_size, begin_epoch, loss, after_step, teacher
    )


def _alpha(targets: Any, epoch: int, epochs: int) -> float:
    plan = getattr(targets, "alpha", None)
    if isinstance(plan, Cosine):
        return schedule.alpha(epoch, epochs, plan.start, plan.end)
    return plan.value if isinstance(plan, Constant) else 1.0


def _pairing(count: int, seed: int) -> Tensor:
    """A permutation without fixed points: each sample gets another one's knowledge, the same in every epoch."""
    order = torch.randperm(count, generator=_generator(seed, -1 % (1 << 20)))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def _supervision(run: Run, encoder: Any, selection: Selection, device: torch.device) -> _Learner:
    """Set up the ceiling: the same encoder, clips and augmentation, with labels."""
    config = run.recipe.training.supervised
    labels = torch.from_numpy(run.packed.labels()[selection.rows]).to(device)
    if (labels < 0).any():
        raise DataError(
            f"{int((labels < 0).sum())} of {len(labels)} training samples have no label; the supervised control needs all of them"
        )
    head = nn.Linear(encoder.dim, max(len(run.packed.manifest.classes), int(labels.max()) + 1))
    model = nn.Sequential(encoder, head).to(device)

    def loss(clips: Tensor, rows: Tensor, epoch: int) -> tuple[Tensor, Metrics]:
        logits = model(clips).float()
        value = F.cross_entropy(logits, labels[rows])
        return value, {"accuracy": float((logits.argmax(1) == labels[rows]).float().mean())}

    groups = _groups(list(model.parameters()), config.optimiser)
    return _Learner(
        model, groups, config.optimiser, config.epochs, config.batch_size, lambda epoch, generator: None, loss
    )


def describe(run: Run) -> str:
    """Name what a run trains with, for tables: targets, knowledge and pairs of a pre-training."""
    if run.kind != "pretrain":
        return run.kind
    p = run.recipe.training.pretrain
    return f"{targets_name(p.targets)}, {p.knowledge}{', shuffled pairs' if p.pairs == 'shuffled' else ''}"


def read_metrics(folder: Path) -> list[Metrics]:
    """Return the epochs of a run's metrics.jsonl; a line that a kill tore is skipped."""
    path = folder / "metrics.jsonl"
    found: list[Metrics] = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
