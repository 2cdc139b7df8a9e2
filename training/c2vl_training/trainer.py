"""Pre-training and the supervised control, in reading order: `train` makes a run, `fit` trains, `_epoch` takes steps.

A run is a folder. It is finished when `encoder.safetensors` exists; a killed one resumes from its last checkpoint
and ends, on a CPU, with bitwise the weights of an uninterrupted run, because every draw is keyed by seed, epoch and
step or sample. Ctrl-C and SIGTERM end the present step, leave a checkpoint in the middle of the epoch, and lose
nothing. Fine-tuning (`c2vl_evaluation.protocols.finetuning`) uses the same `fit`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.machine import keep_freed
from c2vl_manifests.manifest import commit_text
from c2vl_manifests.recipe_training import TrainingConfig
from c2vl_training import card, checkpoint, distributed, run_folder, schedule
from c2vl_training.augmentation import AugmentationDraws, draw
from c2vl_training.clips import Clips
from c2vl_training.dataset import Selection
from c2vl_training.encoders import Encoder, build_encoder
from c2vl_training.memory import memory_errors
from c2vl_training.methods import Method, StepOutput, Supervised
from c2vl_training.pretraining import Pretraining
from c2vl_training.run_folder import Result, Run
from c2vl_training.run_log import Counts, Metrics, RunLog, add
from c2vl_training.seeding import generator_of, key_of

SHOWN = ("loss", "alpha", "accuracy", "top-1")
"""Figures that progress reports show."""


# ------------------------------------------------------------------------------------------------ a run


def train(run: Run, emit: Emit = silent) -> Result:
    """Make a run: pre-train, train with labels, or leave the encoder as initialised (the floor).

    A finished run of the same configuration is returned as it is.

    Raises:
        ConfigError, DataError, CheckpointError: in one line each.
        C2VLError: the loss became NaN (step, samples and last good checkpoint are named), or another process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    first = distributed.rank() == 0
    emit = emit if first else silent
    done = run.out / checkpoint.ENCODER
    if done.is_file():
        run_folder.check_same(run.facts(), checkpoint.load(done)[1], done)
        return run_folder.read_result(run.out)
    config = run.recipe.training
    device = distributed.device_of(config.device)
    started = time.monotonic()
    selection = run.select()
    samples, left_out = len(selection.rows), len(selection.left_out)
    if problem := run.batch_problem(samples):
        raise ConfigError(problem)
    with memory_errors(f"copying {samples:,} clips and their vectors to {device}"):
        clips = Clips(run.packed, selection.rows, config.input, device)
        encoder, method = method_of(run, selection, device)
    # after all that can refuse the run: no folder of a run that never was
    run.out.mkdir(parents=True, exist_ok=True)
    if first:
        run_folder.write_left_out(run.out, selection)
    if left_out:
        emit(
            Note(
                f"{left_out} of {samples + left_out} training samples are left out: see {run.out / 'left_out.csv'}",
                "warning",
            )
        )
    epochs, seconds, last = 0, time.monotonic() - started, Metrics()
    if method is not None:
        if slow := distributed.slow_precision(config.precision, device):
            emit(Note(f"{run.out.name}: {slow}", "warning"))
        seconds, last = _fit_with_log(run, selection, method, clips, emit)
        epochs = method.epochs
    result = Result(run.out, epochs, round(seconds, 2), samples, left_out, last)
    if first:
        run_folder.write_run(run, result, encoder)
        facts = run.facts() | run.trained_with(selection)
        card.write(run.out, facts)
        if isinstance(method, Pretraining):
            checkpoint.save(run.out / checkpoint.PROJECTORS, method.projectors(), facts)
        checkpoint.save(run.out / checkpoint.ENCODER, encoder.state_dict(), facts)
    return result


def _fit_with_log(run: Run, selection: Selection, method: Method, clips: Clips, emit: Emit) -> tuple[float, Metrics]:
    """Fit, resuming from the run's checkpoint, and log each epoch; return the seconds and the last metrics (rank 0)."""
    log = RunLog(run.out) if distributed.rank() == 0 else None

    def on_epoch_end(epoch: int, metrics: Metrics, counts: Counts) -> Metrics:
        if log:  # before the checkpoint: a resumed run drops lines of epochs that it repeats
            log.write(epoch, metrics, counts)
        return {name: value for name, value in metrics.items() if name in SHOWN}

    path = run.out / checkpoint.CHECKPOINT
    session = Session(run.out.name, run.seed, run.recipe.training, path, run.facts(), emit, on_epoch_end)
    kept = f"; finished epochs are kept in {path}: delete it if the batch changes" if path.is_file() else ""
    try:
        with memory_errors(f"the {run.kind} training", f"training.{run.kind}.batch_size", method.batch_size, kept):
            seconds = fit(method, clips, session).seconds
    except DivergedError as error:
        raise _broken_batch(run, selection, error) from error
    return seconds, log.close() if log else Metrics()


def method_of(run: Run, selection: Selection, device: torch.device) -> tuple[Encoder, Method | None]:
    """Return the encoder as initialised by the seed, and the method that trains it (None for the floor)."""
    config, packed = run.recipe.training, run.packed
    torch.manual_seed(run.seed)
    encoder = build_encoder(config.encoder, packed.layout, packed.manifest.bodies)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    if run.kind == "pretrain":
        return encoder, Pretraining(packed, config.pretrain, run.seed, encoder, selection, device, dtype)
    if run.kind == "supervised":
        return encoder, Supervised(packed, config.supervised, encoder, selection, device, dtype)
    return encoder, None


def _broken_batch(run: Run, selection: Selection, error: DivergedError) -> C2VLError:
    """Write the samples of a batch that broke the run; return an error that tells whether their data did."""
    rows = selection.rows[error.places.numpy()]
    ids = run.packed.sample_ids(rows)
    listed, kept = run.out / "bad_batch.txt", run.out / checkpoint.CHECKPOINT
    if distributed.rank() == 0:
        commit_text(listed, "\n".join(ids) + "\n")
    for name, row in zip(ids, rows, strict=True):
        if not np.isfinite(run.packed.joints[run.packed.offsets[row] : run.packed.offsets[row + 1]]).all():
            return DataError(
                f"sample {name} of {run.packed.folder} holds NaN or infinite joints (found {error.where}); "
                "run `c2vl-pipeline pack` again; " + _remedy(kept)
            )
    last = f"the last good checkpoint is {kept}" if kept.is_file() else "there is no checkpoint yet"
    return C2VLError(
        f"the loss or the weights became NaN or infinite {error.where} "
        f"(samples {', '.join(ids[:5])}, …: all {len(ids)} in {listed}); "
        f"{last}; "
        f"lower the learning rate, e.g. --set training.{run.kind}.optimiser.lr=0.03, "
        "or clip gradients by optimiser.clip_norm=1"
    )


# ------------------------------------------------------------------------------------------- a training


@dataclass(frozen=True)
class Session:
    """Settings of one call of `fit`."""

    label: str
    """Name of the training in progress reports."""
    seed: int
    config: TrainingConfig
    """For precision and the number of epochs between checkpoints."""
    path: Path
    """The checkpoint."""
    facts: Mapping[str, Any]
    """Saved with it; must be equal to resume."""
    emit: Emit
    on_epoch_end: Callable[[int, Metrics, Counts], Metrics]
    """(epoch, mean figures of its steps, histogram counts) -> figures for `Position.history`; before the checkpoint."""


@dataclass
class Position:
    """How far a training has come: all that a checkpoint holds besides tensors and facts."""

    epochs_done: int = 0
    steps_done: int = 0
    """Steps of the epoch after those; 0 except after an interrupt."""
    sums: Metrics = field(default_factory=dict)
    """Figures of those steps, added up."""
    counts: Counts = field(default_factory=dict)
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    """Of training, earlier sessions included."""
    history: list[Metrics] = field(default_factory=list)
    """What `on_epoch_end` returned, one entry per epoch."""


class DivergedError(C2VLError):
    """The loss or the weights became NaN or infinite."""

    def __init__(self, epoch: int, step: int, places: Tensor) -> None:
        self.where = f"in epoch {epoch}, step {step}"
        self.places = places
        super().__init__(f"the loss or the weights became NaN or infinite {self.where}")


def fit(method: Method, clips: Clips, session: Session) -> Position:
    """Train to the last epoch, from the checkpoint if one exists.

    Returns:
        The position after the last epoch.

    Raises:
        CheckpointError: the checkpoint is of another configuration.
        DivergedError: the loss or the weights became NaN or infinite.
        C2VLError: another process died.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    o, emit, label = method.optimiser, session.emit, session.label
    keep_freed()
    optimiser = torch.optim.SGD(method.groups, lr=o.lr, momentum=o.momentum, nesterov=o.nesterov and o.momentum > 0)
    at = _resume(method, optimiser, session)
    distributed.check_equal([at.epochs_done, at.steps_done, len(clips)], "run or data", clips.device)
    before, started = at.seconds, time.monotonic()
    emit(Progress(label, at.epochs_done, method.epochs, "epochs"))
    with _interrupts() as interrupted, distributed.collective_errors(lambda: _remedy(session.path)):
        while (epoch := at.epochs_done) < method.epochs:
            stop = _epoch(method, optimiser, clips, session, at, interrupted)
            at.seconds = before + time.monotonic() - started
            if stop:
                _save(method, optimiser, session, at)
                emit(Note(f"{label}: interrupted in epoch {epoch} after step {at.steps_done}; saved"))
                raise KeyboardInterrupt
            metrics = {name: value / at.steps_done for name, value in at.sums.items()}
            metrics |= {"lr": optimiser.param_groups[0]["lr"], "seconds": at.epoch_seconds}
            figures = session.on_epoch_end(epoch, metrics, at.counts)
            at = Position(epoch + 1, seconds=at.seconds, history=[*at.history, figures])
            last = at.epochs_done == method.epochs
            stop = distributed.any_rank(interrupted(), clips.device) and not last
            if stop or last or at.epochs_done % session.config.checkpoint_every == 0:
                _save(method, optimiser, session, at)
            shown = {name: value for name, value in figures.items() if name in SHOWN}
            emit(Progress(label, at.epochs_done, method.epochs, "epochs", shown))
            if stop:
                emit(Note(f"{label}: interrupted after epoch {epoch}; saved"))
                raise KeyboardInterrupt
    return at


def _epoch(
    method: Method,
    optimiser: torch.optim.Optimizer,
    clips: Clips,
    session: Session,
    at: Position,
    interrupted: Callable[[], bool],
) -> bool:
    """Take the remaining steps of one epoch; return True if it was interrupted before its last step."""
    o, epoch, every = method.optimiser, at.epochs_done, session.config.checkpoint_every
    steps = len(clips) // method.batch_size
    started, already = time.monotonic(), at.epoch_seconds
    order, draws = begin_epoch(method, clips, session.seed, epoch, at.steps_done > 0)
    for step in range(at.steps_done, steps):
        places = order[step * method.batch_size : (step + 1) * method.batch_size]
        rate = schedule.learning_rate(epoch * steps + step, steps, o)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        # dropout draws from the global generator, on each rank for other samples
        torch.manual_seed(key_of(session.seed, epoch, step, distributed.rank()))
        output = forward(method, clips, draws, places, epoch, session.config.precision)
        if not torch.isfinite(output.loss):
            raise DivergedError(epoch, step, places)
        optimiser.zero_grad(set_to_none=True)
        output.loss.backward()
        if o.clip_norm is not None:
            nn.utils.clip_grad_norm_(method.model.parameters(), o.clip_norm)
        optimiser.step()
        method.after_step()
        for name, value in ({"loss": float(output.loss.detach())} | output.figures).items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        add(at.counts, output.counts)
        at.steps_done, at.epoch_seconds = step + 1, already + time.monotonic() - started
        stop = distributed.any_rank(interrupted(), clips.device) and step + 1 < steps
        ends = step + 1 == steps and (epoch + 1 == method.epochs or (epoch + 1) % every == 0)
        if (stop or ends) and not _finite(method.model):  # the last step broke them after its loss was seen
            raise DivergedError(epoch, step, places)
        if stop:
            return True
    return False


def begin_epoch(
    method: Method, clips: Clips, seed: int, epoch: int, resumed: bool = False
) -> tuple[Tensor, list[AugmentationDraws]]:
    """Return the order of the clips (N,) and the augmentation of each view in an epoch, and prepare the method for it."""
    generator = generator_of(seed, epoch)
    order = torch.randperm(len(clips), generator=generator)
    draws = [draw(len(clips), clips.config, generator) for _ in range(method.views)]
    method.begin_epoch(epoch, generator, resumed)
    method.model.train()
    return order, draws


def forward(
    method: Method, clips: Clips, draws: list[AugmentationDraws], places: Tensor, epoch: int, precision: str
) -> StepOutput:
    """Compute the loss of one batch, of which this rank encodes its part.

    Args:
        method: what is trained.
        clips: all clips of the split.
        draws: augmentation of the epoch, for each view.
        places: the whole batch. Shape (B,), on the CPU.
        epoch: counted from 0.
        precision: of the recipe.
    """
    device, local = clips.device, distributed.local_rows(places)
    at = local.to(device)
    views = [clips.train(at, view.take(local)) for view in draws] if method.augment else [clips.test(at)]
    batch = views[0] if len(views) == 1 else torch.cat(views)
    if precision == "float64":
        batch = batch.double()
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return method.loss(batch, places.to(device), epoch)


# ---------------------------------------------------------------------------------- stop, save, resume


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn SIGINT and SIGTERM into a flag polled by the loop; a second Ctrl-C raises at once (single process only)."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        if signals and number == signal.SIGINT and distributed.size() == 1:
            raise KeyboardInterrupt
        signals.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(signals)
    except BaseException:
        if distributed.size() > 1:
            before.clear()  # torchrun now ends all processes by SIGTERM, and one of them has a message to print
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(model: nn.Module) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in model.state_dict().values())


def _remedy(path: Path) -> str:
    """Return from where the same command would resume."""
    return f"the same command resumes from {path}" if path.is_file() else "the same command starts over"


def _save(method: Method, optimiser: torch.optim.Optimizer, session: Session, at: Position) -> None:
    if distributed.rank():
        return
    tensors = {f"model.{k}": v for k, v in method.model.state_dict().items()}
    tensors |= checkpoint.optimiser_tensors(optimiser)
    if method.teacher is not None:
        tensors |= {f"teacher.{k}": v for k, v in method.teacher.state_dict().items()}
    facts = {**session.facts, **vars(at), "made_by": run_folder.made_by()}
    checkpoint.save(session.path, tensors, facts)


def _resume(method: Method, optimiser: torch.optim.Optimizer, session: Session) -> Position:
    """Load the last checkpoint of this very training, if any, and return its position."""
    path = session.path
    if not path.is_file():
        return Position()
    tensors, facts = checkpoint.load(path)
    run_folder.check_same(session.facts, facts, path)
    checkpoint.restore(method.model, tensors, "model.", path)
    checkpoint.restore_optimiser(optimiser, tensors)
    if method.teacher is not None:
        checkpoint.restore(method.teacher, tensors, "teacher.", path)
    try:
        at = Position(**{name: facts[name] for name in vars(Position())})
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks {error}; delete it and train again") from error
    for name, there, here in run_folder.differences(facts.get("made_by", {}), run_folder.made_by()):
        session.emit(
            Note(
                f"{path} was made with {name} {there}, this process has {here}: "
                "the run resumes, its last digits may differ",
                "warning",
            )
        )
    within = f" and {at.steps_done} steps" if at.steps_done else ""
    session.emit(Note(f"{session.label}: resuming after epoch {at.epochs_done}{within} of {method.epochs}"))
    return at
