"""Pre-training and the supervised control: one run reads top to bottom here.

A run is a folder. It is finished when `encoder.safetensors` is there; a killed one goes on from its last
checkpoint and ends, on a CPU, with bitwise the weights of an uninterrupted run, because every draw is keyed by
seed, epoch and step or sample. Ctrl-C and SIGTERM end the present step, leave a checkpoint in the middle of the
epoch, and lose nothing.
"""

from __future__ import annotations

import csv
import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import commit_text, fingerprint
from c2vl_manifests.recipe import Recipe, targets_name
from c2vl_training import checkpoint, distributed, methods, schedule
from c2vl_training.augmentation import Draws, draw
from c2vl_training.dataset import Clips, Packed, Selection
from c2vl_training.encoders import Encoder
from c2vl_training.methods import Learner, generator_of, key_of
from c2vl_training.run_log import Counts, Log, Metrics, add, read_metrics

__all__ = ["Kind", "Result", "Run", "describe", "device_of", "fit", "read_metrics", "refuse_other", "train"]

Kind = Literal["pretrain", "supervised", "random"]


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
        """What is saved beside the weights and must be equal for a resume.

        How many processes share the run is not among it: their number changes rounding and nothing else.
        """
        training = self.recipe.training
        part = {"pretrain": training.pretrain, "supervised": training.supervised, "random": None}[self.kind]
        m = self.packed.manifest
        return {
            "format": 2,
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
    """A finished run; `seconds` are those of all its legs."""

    out: Path
    epochs: int
    seconds: float
    samples: int
    left_out: int
    last: Metrics


def device_of(name: str) -> torch.device:
    """Resolve `auto`; raises ConfigError for a device this machine lacks."""
    if name == "auto":
        # each process of a run has its own GPU: `ranks.joined` chose it
        return (
            torch.device("cuda", torch.cuda.current_device())
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
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


# ------------------------------------------------------------------------------------------------ loop


@dataclass
class _Position:
    """How far a run has come: all that a checkpoint holds besides tensors and the facts of the run."""

    epochs_done: int = 0
    steps_done: int = 0
    """Steps of the epoch after those; 0 except after an interrupt."""
    sums: Metrics = field(default_factory=dict)
    """Figures of those steps, added up."""
    counts: Counts = field(default_factory=dict)
    epoch_seconds: float = 0.0
    seconds: float = 0.0


def fit(
    run: Run,
    learner: Learner,
    clips: Clips,
    selection: Selection,
    device: torch.device,
    emit: Emit,
) -> tuple[Metrics, float]:
    """Train to the last epoch, from the last checkpoint if there is one.

    Returns:
        The last epoch's figures, and the seconds of training, those of earlier legs included.

    Raises:
        CheckpointError: the folder holds a run of another configuration.
        C2VLError: the loss became NaN (step, samples and last good checkpoint are named), or another process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    config, total, o = run.recipe.training, len(clips), learner.optimiser
    check_batch(run, learner, total)
    optimiser = torch.optim.SGD(
        learner.groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0
    )
    at = _resume(run, learner, optimiser, emit)
    distributed.check_equal([at.epochs_done, at.steps_done, total], "run or data", device)
    before, started = at.seconds, time.monotonic()
    log = Log(run.out, at.epochs_done) if distributed.rank() == 0 else None
    metrics: Metrics = log.last if log else {}
    label = run.out.name
    emit(Progress(label, at.epochs_done, learner.epochs, "epochs"))
    with _interrupts() as interrupted, distributed.together(lambda: _remedy(run)):
        while at.epochs_done < learner.epochs:
            stop = _epoch(run, learner, optimiser, clips, selection, device, at, interrupted)
            at.seconds = before + time.monotonic() - started
            if stop:
                _save(run, learner, optimiser, at)
                emit(
                    Note(f"{label}: interrupted in epoch {at.epochs_done} after step {at.steps_done}; saved")
                )
                raise KeyboardInterrupt
            epoch, steps = at.epochs_done, total // learner.batch_size
            metrics = {name: value / steps for name, value in at.sums.items()}
            metrics |= {"lr": optimiser.param_groups[0]["lr"], "seconds": at.epoch_seconds}
            if log:  # before the checkpoint: a resume drops lines of epochs it repeats
                log.write(epoch, metrics, at.counts)
            at = _Position(epoch + 1, seconds=at.seconds)
            last = at.epochs_done == learner.epochs
            stop = distributed.agree(interrupted(), device) and not last
            if stop or last or at.epochs_done % config.checkpoint_every == 0:
                _save(run, learner, optimiser, at)
            shown = {k: v for k, v in metrics.items() if k in {"loss", "alpha", "accuracy"}}
            emit(Progress(label, at.epochs_done, learner.epochs, "epochs", shown))
            if stop:
                emit(Note(f"{label}: interrupted after epoch {epoch}; saved"))
                raise KeyboardInterrupt
    if log:
        log.close()
    return metrics, at.seconds


def check_batch(run: Run, learner: Learner, total: int) -> None:
    """Raise ConfigError unless the batch fits the split and the processes."""
    if learner.batch_size > total:
        raise ConfigError(
            f"training.{run.kind}.batch_size = {learner.batch_size} is larger than the {total} usable training samples; "
            f"choose a smaller one by --set training.{run.kind}.batch_size={max(2, total // 4)}"
        )
    distributed.share(learner.batch_size)


def _epoch(
    run: Run,
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    clips: Clips,
    selection: Selection,
    device: torch.device,
    at: _Position,
    interrupted: Callable[[], bool],
) -> bool:
    """Take the steps of one epoch that are left. Returns True if it was interrupted before its last step."""
    config, o, total, epoch = run.recipe.training, learner.optimiser, len(clips), at.epochs_done
    steps = total // learner.batch_size
    started, already = time.monotonic(), at.epoch_seconds
    generator = generator_of(run.seed, epoch)
    order = torch.randperm(total, generator=generator)
    draws = draw(total, config.input, generator)
    learner.begin_epoch(epoch, generator, at.steps_done > 0)
    learner.model.train()
    for step in range(at.steps_done, steps):
        places = order[step * learner.batch_size : (step + 1) * learner.batch_size]
        rate = schedule.learning_rate_at(
            epoch * steps + step, steps, o.lr, o.warmup_epochs, o.milestones, o.gamma
        )
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        # dropout draws from the global generator, on each rank for other samples
        torch.manual_seed(key_of(run.seed, epoch, step, distributed.rank()))
        batch = _batch(clips, distributed.mine(places), draws, device)
        if config.precision == "float64":
            batch = batch.double()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            told = learner.loss(batch, places.to(device), epoch)
        if not torch.isfinite(told.loss):
            _stop(run, epoch, step, selection, places)
        optimiser.zero_grad(set_to_none=True)
        told.loss.backward()
        if o.clip_norm is not None:
            nn.utils.clip_grad_norm_(learner.model.parameters(), o.clip_norm)
        optimiser.step()
        learner.after_step()
        for name, value in ({"loss": float(told.loss.detach())} | told.figures).items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        add(at.counts, told.counts)
        at.steps_done, at.epoch_seconds = step + 1, already + time.monotonic() - started
        stop = distributed.agree(interrupted(), device) and step + 1 < steps
        ends = step + 1 == steps and (
            epoch + 1 == learner.epochs or (epoch + 1) % config.checkpoint_every == 0
        )
        if (stop or ends) and not _finite(learner.model):  # the last step broke them after its loss was seen
            _stop(run, epoch, step, selection, places)
        if stop:
            return True
    return False


def _batch(clips: Clips, places: Tensor, draws: Draws, device: torch.device) -> Tensor:
    return clips.train(places.to(device), draws.take(places))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Make of Ctrl-C and SIGTERM a wish that the loop asks for; a second Ctrl-C of a lone process is obeyed at once."""
    wishes: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def wish(number: int, frame: FrameType | None) -> None:
        if wishes and number == signal.SIGINT and distributed.size() == 1:
            raise KeyboardInterrupt
        wishes.append(number)

    before = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(wishes)
    except BaseException:
        if (
            distributed.size() > 1
        ):  # torchrun now ends all processes by SIGTERM, and one of them has something to say
            before.clear()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())


def _stop(run: Run, epoch: int, step: int, selection: Selection, places: Tensor) -> NoReturn:
    """Say which batch broke the run, and whether its data did."""
    ids = run.packed.sample_ids(selection.rows[places.numpy()])
    listed = run.out / "bad_batch.txt"
    if distributed.rank() == 0:
        commit_text(listed, "\n".join(ids) + "\n")
    where = f"in epoch {epoch}, step {step}"
    for name, row in zip(ids, selection.rows[places.numpy()], strict=True):
        if not np.isfinite(run.packed.joints[run.packed.offsets[row] : run.packed.offsets[row + 1]]).all():
            raise DataError(
                f"sample {name} of {run.packed.folder} holds NaN or infinite joints (found {where}); "
                "run `c2vl-pipeline pack` again; " + _remedy(run)
            )
    raise C2VLError(
        f"the loss or the weights became NaN or infinite {where} (samples {', '.join(ids[:5])}, …: all {len(ids)} in {listed}); "
        f"{_kept(run)}; "
        f"lower the learning rate, e.g. --set training.{run.kind}.optimiser.lr=0.03, or clip gradients by optimiser.clip_norm=1"
    )


def _kept(run: Run) -> str:
    kept = run.out / checkpoint.CHECKPOINT
    return f"the last good checkpoint is {kept}" if kept.is_file() else "there is no checkpoint yet"


def _remedy(run: Run) -> str:
    """Say from where the same command would go on."""
    kept = run.out / checkpoint.CHECKPOINT
    return f"the same command goes on from {kept}" if kept.is_file() else "the same command begins anew"


def _save(run: Run, learner: Learner, optimiser: torch.optim.Optimizer, at: _Position) -> None:
    if distributed.rank():
        return
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    tensors |= checkpoint.optimiser_tensors(optimiser)
    if learner.extra is not None:
        tensors |= {f"teacher.{k}": v for k, v in learner.extra.state_dict().items()}
    facts = run.facts() | vars(at) | {"made_by": _made_by()}
    checkpoint.save(run.out / checkpoint.CHECKPOINT, tensors, facts)


def _made_by() -> dict[str, Any]:
    """Return what may change the last digits of a run and is no reason to refuse to go on."""
    return {name: version(name) for name in ("c2vl", "torch", "numpy")} | {
        "threads": torch.get_num_threads(),
        "processes": distributed.size(),
    }


def _resume(run: Run, learner: Learner, optimiser: torch.optim.Optimizer, emit: Emit) -> _Position:
    """Load the last checkpoint of this very run; returns where it stands."""
    path = run.out / checkpoint.CHECKPOINT
    if not path.is_file():
        return _Position()
    tensors, facts = checkpoint.load(path)
    refuse_other(run, facts, path)
    checkpoint.restore(learner.model, tensors, "model.", path)
    checkpoint.restore_optimiser(optimiser, tensors)
    if learner.extra is not None:
        checkpoint.restore(learner.extra, tensors, "teacher.", path)
    try:
        at = _Position(**{name: facts[name] for name in vars(_Position())})
    except KeyError as error:
        raise CheckpointError(f"{path}: does not say {error}; delete it and train again") from error
    for name, there, here in _differences(facts.get("made_by", {}), _made_by(), ""):
        emit(
            Note(
                f"{path} was made with {name} {there}, this process has {here}: the run goes on, its last digits may differ",
                "warning",
            )
        )
    within = f" and {at.steps_done} steps" if at.steps_done else ""
    emit(Note(f"{run.out.name}: going on after epoch {at.epochs_done}{within} of {learner.epochs}"))
    return at


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


# ------------------------------------------------------------------------------------------------ runs


def train(run: Run, emit: Emit = silent) -> Result:
    """Make a run: pre-train, train with labels, or leave the encoder as initialised (the floor).

    A finished run of the same configuration is returned as it is.

    Raises:
        ConfigError, DataError, CheckpointError: in one line each.
    """
    run.out.mkdir(parents=True, exist_ok=True)
    first = distributed.rank() == 0
    emit = emit if first else silent
    done = run.out / checkpoint.ENCODER
    if done.is_file():
        refuse_other(run, checkpoint.load(done)[1], done)
        return _read_result(run)
    device = device_of(run.recipe.training.device)
    started = time.monotonic()
    config = run.recipe.training
    selection = run.packed.select(run.benchmark, "train", kinds_of(run))
    if first:
        _write_left_out(run.out, selection)
    if selection.left_out:
        emit(
            Note(
                f"{len(selection.left_out)} of {len(selection.rows) + len(selection.left_out)} training samples are left out: see {run.out / 'left_out.csv'}",
                "warning",
            )
        )
    clips = Clips(run.packed, selection.rows, config.input, device)
    encoder, learner = learner_of(run, selection, device)
    epochs, seconds = 0, time.monotonic() - started
    last: Metrics = {}
    if learner is not None:
        epochs, (last, seconds) = learner.epochs, fit(run, learner, clips, selection, device, emit)
    result = Result(run.out, epochs, round(seconds, 2), len(selection.rows), len(selection.left_out), last)
    if first:
        _write_run(run, result, encoder)
        if learner is not None and (kept := learner.finished()):
            checkpoint.save(run.out / checkpoint.PROJECTORS, kept, run.facts())
        checkpoint.save_encoder(run.out, encoder, run.facts())
    return result


def kinds_of(run: Run) -> tuple[str, ...]:
    """Return the kinds of knowledge that a run listens to."""
    return methods.kinds_of(run.recipe.training.pretrain) if run.kind == "pretrain" else ()


def learner_of(run: Run, selection: Selection, device: torch.device) -> tuple[Encoder, Learner | None]:
    """Return the encoder as initialised by the seed, and what trains it (nothing, for the floor)."""
    config, packed = run.recipe.training, run.packed
    torch.manual_seed(run.seed)
    encoder = checkpoint.build_encoder(config.encoder, packed.layout, packed.manifest.bodies)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    if run.kind == "pretrain":
        return encoder, methods.pretraining(
            packed, config.pretrain, run.seed, encoder, selection, device, dtype
        )
    if run.kind == "supervised":
        return encoder, methods.supervision(packed, config.supervised, encoder, selection, device, dtype)
    return encoder, None


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
        "processes": distributed.size(),
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


def describe(run: Run) -> str:
    """Name what a run trains with, for tables: targets, knowledge and pairs of a pre-training."""
    if run.kind != "pretrain":
        return run.kind
    p = run.recipe.training.pretrain
    return f"{targets_name(p.targets)}, {p.knowledge}{', shuffled pairs' if p.pairs == 'shuffled' else ''}"
