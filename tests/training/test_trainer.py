"""Training: resumption, interruptions, refusals, schedules."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.events import Event, Note, silent
from c2vl_training import checkpoint, objective, trainer
from c2vl_training.run_log import read_histograms, read_metrics
from c2vl_training.trainer import train
from support.cli import pretrain, refused, sets
from support.packed import COUNT, moving, sticks
from support.training import BASE, StoppedError, run, same, stop_after, tensors

# ---------------------------------------------------------------------------------------------- resume

SETTINGS = {
    "self": (),
    "ema": ("training.pretrain.teacher=ema", "training.pretrain.ema=0.8"),
    "previous_epoch": ("training.pretrain.teacher=previous_epoch",),
    "memory": ("training.pretrain.teacher=memory", "training.pretrain.targets={kind='inter',inter_hard=0.2}"),
    "all that is not the paper's": (
        *("training.pretrain.teacher=memory", "training.pretrain.views=2", "training.pretrain.view_weight=0.5"),
        *("training.pretrain.negatives=all", "training.pretrain.equal_prompts=ignored"),
        *("training.pretrain.skeleton_heads=per_kind", "training.pretrain.directions=mean"),
        *("training.pretrain.pooling=random", "training.pretrain.pooling_weights=idf"),
        "training.pretrain.targets={kind='partition',inter_hard=0.2,inter_hard_schedule='linear'}",
    ),
    "sigmoid": ("training.pretrain.targets=sigmoid", "training.pretrain.negatives=all"),
    "random frames": ("training.pretrain.pooling=random", "training.pretrain.standardise=true"),
    "dropout": ("training.encoder.dropout=0.3",),
    "free temperature": ("training.pretrain.temperature.mode=learnable",),
    "every second epoch": ("training.checkpoint_every=2",),
}
EVERYTHING = (*SETTINGS["random frames"], *SETTINGS["dropout"], *SETTINGS["free temperature"])


class AfterSteps:
    """Sends a signal to this process once the loss was computed so many times, as Ctrl-C or a scheduler does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: int, number: int) -> None:
        real, calls = objective.loss, iter(range(1, 10_000))

        def loss(*args: Any, **more: Any) -> Any:
            if next(calls) == steps:
                os.kill(os.getpid(), number)
            return real(*args, **more)

        monkeypatch.setattr(objective, "loss", loss)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_stopped_and_resumed_pretraining_ends_with_bitwise_the_same_weights(data, tmp_path, setting):
    train(run(data, tmp_path / "whole", *setting))
    for epochs in (1, 3):
        with pytest.raises(StoppedError):
            train(run(data, tmp_path / "parts", *setting), stop_after(epochs))
        assert not (tmp_path / "parts" / checkpoint.ENCODER).exists()
    train(run(data, tmp_path / "parts", *setting))
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT):
        assert same(tensors(tmp_path / "whole", name), tensors(tmp_path / "parts", name))
    assert [line["epoch"] for line in read_metrics(tmp_path / "parts")] == [0, 1, 2, 3]
    losses = [[line["loss"] for line in read_metrics(tmp_path / out)] for out in ("whole", "parts")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dropout", ["0.0", "0.3"])
def test_stopped_and_resumed_supervision_ends_with_bitwise_the_same_weights(data, tmp_path, dropout):
    setting = f"training.encoder.dropout={dropout}"
    train(run(data, tmp_path / "whole", setting, kind="supervised"))
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "parts", setting, kind="supervised"), stop_after(2))
    train(run(data, tmp_path / "parts", setting, kind="supervised"))
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


def test_a_run_broken_within_an_epoch_repeats_that_epoch(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "whole"))
    real, calls = objective.loss, iter(range(100))

    def loss(*args, **more):
        if next(calls) == 5:  # the second of two steps in the third epoch
            raise StoppedError
        return real(*args, **more)

    monkeypatch.setattr(objective, "loss", loss)
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "parts"))
    notes: list[Event] = []
    train(run(data, tmp_path / "parts"), notes.append)
    assert Note("parts: resuming after epoch 2 of 4") in notes
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["self", "previous_epoch", "ema", "memory"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_an_epoch_saves_the_step_and_resumes_bitwise(data, tmp_path, monkeypatch, number, teacher):
    more = (*EVERYTHING, f"training.pretrain.teacher={teacher}", "training.pretrain.batch_size=3")
    train(run(data, tmp_path / "whole", *more))
    before = signal.getsignal(number)
    for step in (6, 1, 4):  # the second of the second epoch, of four steps each; the next one; ...
        notes: list[Event] = []
        with monkeypatch.context() as patched:
            AfterSteps(patched, step, number)
            with pytest.raises(KeyboardInterrupt):
                train(run(data, tmp_path / "parts", *more), notes.append)
        assert signal.getsignal(number) == before
        facts = checkpoint.load(tmp_path / "parts" / checkpoint.CHECKPOINT)[1]
        where = (facts["epochs_done"], facts["steps_done"])
        assert where == {6: (1, 2), 1: (1, 3), 4: (2, 3)}[step]
        assert Note(f"parts: interrupted in epoch {where[0]} after step {where[1]}; saved") in notes
    notes = []
    train(run(data, tmp_path / "parts", *more), notes.append)
    assert Note("parts: resuming after epoch 2 and 3 steps of 4") in notes
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT, checkpoint.PROJECTORS):
        assert same(tensors(tmp_path / "whole", name), tensors(tmp_path / "parts", name))
    whole, parts = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(tmp_path / out)]
        for out in ("whole", "parts")
    )
    assert whole == parts
    assert read_histograms(tmp_path / "whole") == read_histograms(tmp_path / "parts")


def test_an_interrupt_in_the_last_step_of_an_epoch_saves_at_its_end(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        AfterSteps(patched, 4, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(run(data, tmp_path / "run", "training.checkpoint_every=4"))
    facts = checkpoint.load(tmp_path / "run" / checkpoint.CHECKPOINT)[1]
    assert (facts["epochs_done"], facts["steps_done"]) == (2, 0)
    assert [line["epoch"] for line in read_metrics(tmp_path / "run")] == [0, 1]


def test_going_on_with_another_torch_is_allowed_and_said(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out), stop_after(2))
    found, facts = checkpoint.load(out / checkpoint.CHECKPOINT)
    assert facts["made_by"]["torch"] == version("torch")
    checkpoint.save(out / checkpoint.CHECKPOINT, found, facts | {"made_by": facts["made_by"] | {"torch": "1.0"}})
    notes: list[Event] = []
    train(run(data, out), notes.append)
    said = f"{out / checkpoint.CHECKPOINT} was made with torch 1.0, this process has {version('torch')}: the run resumes, its last digits may differ"
    assert Note(said, "warning") in notes


def test_seconds_are_those_of_all_legs(data, tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr("c2vl_training.trainer.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(StoppedError):
        train(run(data, tmp_path / "run"), stop_after(3))
    first = checkpoint.load(tmp_path / "run" / checkpoint.CHECKPOINT)[1]["seconds"]
    assert first > 0
    result = train(run(data, tmp_path / "run"))
    assert result.seconds > first
    assert json.loads((tmp_path / "run" / "run.json").read_text())["seconds"] == result.seconds


def test_another_seed_ends_with_other_weights(data, tmp_path):
    for seed in (0, 1):
        train(run(data, tmp_path / str(seed), seed=seed))
    assert not same(tensors(tmp_path / "0"), tensors(tmp_path / "1"))


@pytest.mark.slow
def test_a_process_killed_again_and_again_ends_with_bitwise_the_same_weights(data, tmp_path):
    more = ("training.pretrain.epochs=60", "training.checkpoint_every=3", "training.pretrain.teacher=memory")
    out = tmp_path / "killed"
    command = [str(Path(sys.executable).parent / "c2vl-train"), "pretrain", "--data", str(data)]
    command += ["--benchmark", "xsub", "--out", str(out), "--recipe", "debug"]
    command += [word for value in (*BASE, *more) for word in ("--set", value)]
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        limit = time.monotonic() + 240
        # as soon as it has gone on for some epochs, whatever it is doing then
        while len(read_metrics(out)) < seen + 6 and time.monotonic() < limit:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done = checkpoint.load(out / checkpoint.CHECKPOINT)[1]["epochs_done"]
        assert seen < done < 60
        seen = max(done, len(read_metrics(out)))
    train(run(data, out, *more))
    train(run(data, tmp_path / "whole", *more))
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT):
        assert same(tensors(out, name), tensors(tmp_path / "whole", name))
    assert [line["epoch"] for line in read_metrics(out)] == list(range(60))


def test_a_kill_between_log_and_checkpoint_or_within_a_line_loses_and_doubles_nothing(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out), stop_after(2))
    with (out / "metrics.jsonl").open("a") as handle:
        handle.write(json.dumps({"epoch": 2, "loss": 99.0}) + "\n" + '{"epoch": 3, "lo')
    train(run(data, out))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert all(line["loss"] < 99 for line in lines)


def test_an_epoch_is_logged_before_its_checkpoint_is_written(data, tmp_path, monkeypatch):
    real = checkpoint.save

    def save(path, *rest):
        if path.name == checkpoint.CHECKPOINT:
            logged.append(len(read_metrics(path.parent)))
        real(path, *rest)

    logged: list[int] = []
    monkeypatch.setattr(checkpoint, "save", save)
    train(run(data, tmp_path / "run"))
    assert logged == [1, 2, 3, 4]


# ---------------------------------------------------------------------------------------------- labels


def test_pretraining_never_opens_labels_and_supervision_cannot_do_without(data, tmp_path):
    train(run(data, tmp_path / "with"))
    copy = tmp_path / "packed"
    shutil.copytree(data, copy)
    (copy / "labels.npy").unlink()
    train(run(copy, tmp_path / "without"))
    assert same(tensors(tmp_path / "with"), tensors(tmp_path / "without"))
    with pytest.raises(DataError, match=r"labels\.npy: cannot be read .*; run `c2vl-pipeline pack` again") as caught:
        train(run(copy, tmp_path / "ceiling", kind="supervised"))
    assert "\n" not in str(caught.value)


def test_supervision_refuses_samples_without_a_label(tmp_path):
    labels = [-1 if n in {1, 2, 4} else 0 for n in range(COUNT)]
    folder = sticks(tmp_path / "packed", labels=labels)
    with pytest.raises(
        DataError, match="2 of 12 training samples have no label; the supervised control needs all of them"
    ):
        train(run(folder, tmp_path / "run", kind="supervised"))


# -------------------------------------------------------------------------------------- stops and says


@pytest.mark.parametrize("kind", ["pretrain", "supervised"])
def test_a_batch_larger_than_the_split_says_what_to_set(data, tmp_path, kind):
    with pytest.raises(
        ConfigError,
        match=rf"training\.{kind}\.batch_size = 13 is larger than the 12 usable training samples; "
        rf"choose a smaller one by --set training\.{kind}\.batch_size=3",
    ):
        train(run(data, tmp_path / "run", f"training.{kind}.batch_size=13", kind=kind))
    train(run(data, tmp_path / "fits", f"training.{kind}.batch_size=12", kind=kind))


def test_nan_loss_names_epoch_and_step_and_leaves_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train(run(data, tmp_path / "whole"))
    real, calls = objective.loss, iter(range(100))

    def loss(*args, **more):
        found = real(*args, **more)
        return found._replace(total=found.total * math.nan) if next(calls) == 5 else found

    with monkeypatch.context() as patched:
        patched.setattr(objective, "loss", loss)
        with pytest.raises(C2VLError) as caught:
            train(run(data, out))
    text = str(caught.value)
    assert "became NaN or infinite in epoch 2, step 1 (samples " in text
    packed = run(data, out).packed
    assert any(name in text for name in packed.sample_ids(range(packed.manifest.samples)))
    assert f"the last good checkpoint is {out / checkpoint.CHECKPOINT}" in text
    listed = (out / "bad_batch.txt").read_text().splitlines()
    assert f"all 5 in {out / 'bad_batch.txt'}" in text
    assert len(listed) == len({*listed} & {*packed.sample_ids(range(packed.manifest.samples))}) == 5
    assert "lower the learning rate, e.g. --set training.pretrain.optimiser.lr=0.03" in text
    found, facts = checkpoint.load(out / checkpoint.CHECKPOINT)
    assert facts["epochs_done"] == 2
    assert all(torch.isfinite(t).all() for t in found.values())
    train(run(data, out))
    assert same(tensors(tmp_path / "whole"), tensors(out))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_joints_that_are_not_finite_are_named_by_their_sample(tmp_path, value):
    joints = moving()
    joints[6][2, 0, 1, 1] = value
    folder = sticks(tmp_path / "packed", joints=joints)
    with pytest.raises(
        DataError,
        match=r"sample s06 of .*packed holds NaN or infinite joints \(found in epoch 0, step .*\); run `c2vl-pipeline pack` again",
    ):
        train(run(folder, tmp_path / "run", "training.pretrain.batch_size=12"))


def test_vectors_that_are_not_finite_are_named_by_their_sample(tmp_path):
    language = np.random.default_rng(0).normal(size=(COUNT, 4, 5))
    language[6, 1, 2] = np.inf
    folder = sticks(tmp_path / "packed", language=language)
    with pytest.raises(
        DataError,
        match=r"sample s06 of .*packed holds NaN or infinite language vectors; run `c2vl-pipeline pack` again",
    ):
        train(run(folder, tmp_path / "run"))


@pytest.mark.parametrize(("kind", "batch"), [("pretrain", 5), ("pretrain", 12), ("supervised", 5)])
def test_an_absurd_learning_rate_never_leaves_broken_weights(data, tmp_path, kind, batch):
    # a batch of all samples: the loss of the only step is fine, the weights after it are not
    more = [f"training.{kind}.{knob}" for knob in ("optimiser.lr=1e38", "epochs=1", f"batch_size={batch}")]
    with pytest.raises(
        C2VLError, match=r"became NaN or infinite in epoch 0, step .*; there is no checkpoint yet; lower"
    ):
        train(run(data, tmp_path / "run", *more, "training.encoder.blocks=[[4,1]]", kind=kind))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_an_unknown_device_is_refused(data, tmp_path):
    with pytest.raises(
        ConfigError, match=r"training\.device = 'gpu' is not a device; use auto, cpu, cuda or cuda:<number>"
    ):
        train(run(data, tmp_path / "run", "training.device=gpu"))


def test_a_full_disk_ends_a_run_in_one_line(data, tmp_path, cli):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        said = cli(*pretrain(data, tmp_path / "run", *sets("training.pretrain.epochs=100")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    refused(said, "the file is too large for this file system", "use another disk")


def test_loss_falls_where_skeletons_and_knowledge_agree(tmp_path):
    vision = np.repeat(np.eye(4)[np.arange(COUNT) % 4][:, None], 4, axis=1)
    folder = sticks(tmp_path / "packed", vision=vision)
    more = ("training.pretrain.targets=hard", "training.pretrain.epochs=25", "training.pretrain.knowledge=vision")
    train(run(folder, tmp_path / "run", *more, "training.pretrain.optimiser.milestones=[20]"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.slow
def test_supervision_learns_the_training_labels(tmp_path):
    folder = sticks(tmp_path / "packed", labels=[n % 4 for n in range(COUNT)])
    more = ("training.supervised.epochs=60", "training.supervised.optimiser.milestones=[50]")
    result = train(run(folder, tmp_path / "run", *more, "training.supervised.batch_size=12", kind="supervised"))
    assert result.last["accuracy"] > 0.8


def test_alpha_and_learning_rate_follow_their_schedules(data, tmp_path):
    train(run(data, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert [line["alpha"] for line in lines] == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_the_floor_is_the_encoder_as_pretraining_begins_with_it(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "floor", kind="random", seed=3))
    began: list[dict[str, torch.Tensor]] = []

    def fit(method, *_):
        began.append({k: v.clone() for k, v in method.model.encoder.state_dict().items()})
        return trainer.Position()

    monkeypatch.setattr(trainer, "fit", fit)
    train(run(data, tmp_path / "run", seed=3), silent)
    assert same(tensors(tmp_path / "floor"), began[0])
