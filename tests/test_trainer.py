"""Training runs: exact resume, what stops a run and what it says, and that every setting trains."""

from __future__ import annotations

import csv
import json
import math
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Event, Note, Progress, silent
from c2vl_manifests.recipe import TABLE_VII, Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint, cli, dry_run, methods, objective, trainer
from c2vl_training.dataset import Clips, Packed
from c2vl_training.run_log import BINS, read_histograms
from c2vl_training.trainer import Kind, Run, read_metrics, train
from test_data import STICK, write_packed

BASE = (
    "training.encoder.blocks=[[4,1],[6,2]]",
    "training.input.frames=8",
    "training.pretrain.projector_dim=8",
    "training.pretrain.epochs=4",
    "training.pretrain.batch_size=5",
    "training.pretrain.optimiser={lr=0.1,weight_decay=5e-4,warmup_epochs=1,milestones=[3]}",
    "training.supervised.epochs=4",
    "training.supervised.batch_size=5",
)
COUNT = 16


def moving(count: int = COUNT, seed: int = 0) -> list[np.ndarray]:
    """Sticks whose hand swings at a pace of its own, so that a sample can be told from the others."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        clip = np.tile(rng.normal(size=(1, 1, 5, 3)) * 0.1, (int(rng.integers(6, 24)), 1, 1, 1))
        clip[:, 0, 3, n % 3] += np.sin(np.arange(len(clip)) * (n % 4 + 1) / 3) * (1 + n % 4)
        found.append(clip.astype(np.float32))
    return found


def sticks(folder: Path, **more: Any) -> Path:
    splits = [{"xsub": "train" if n % 4 else "test"} for n in range(COUNT)]
    return write_packed(
        folder,
        **({"joints": moving(), "labels": [n % 3 for n in range(COUNT)], "splits": splits} | more),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 4 test samples; tests must not write into it."""
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")


def recipe(*overrides: str) -> Recipe:
    return load_recipe("debug", [*BASE, *overrides])


def run(data: Path, out: Path, *overrides: str, kind: Kind = "pretrain", seed: int = 0) -> Run:
    return Run(kind, Packed(data), recipe(*overrides), "xsub", seed, out)


def tensors(folder: Path, name: str = checkpoint.ENCODER) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / name)[0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class StoppedError(Exception):
    pass


def stop_after(epochs: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done >= epochs:
            raise StoppedError

    return emit


# ---------------------------------------------------------------------------------------------- resume

SETTINGS = {
    "self": (),
    "ema": ("training.pretrain.teacher=ema", "training.pretrain.ema=0.8"),
    "previous_epoch": ("training.pretrain.teacher=previous_epoch",),
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
    assert Note("parts: going on after epoch 2 of 4") in notes
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))


@pytest.mark.parametrize("teacher", ["self", "previous_epoch", "ema"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_within_an_epoch_saves_the_step_and_resumes_bitwise(
    data, tmp_path, monkeypatch, number, teacher
):
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
    assert Note("parts: going on after epoch 2 and 3 steps of 4") in notes
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
    assert facts["made_by"]["torch"] == torch.__version__
    checkpoint.save(
        out / checkpoint.CHECKPOINT, found, facts | {"made_by": facts["made_by"] | {"torch": "1.0"}}
    )
    notes: list[Event] = []
    train(run(data, out), notes.append)
    said = f"{out / checkpoint.CHECKPOINT} was made with torch 1.0, this process has {torch.__version__}: the run goes on, its last digits may differ"
    assert Note(said, "warning") in notes


def test_seconds_are_those_of_all_legs(data, tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(trainer.time, "monotonic", lambda: float(next(clock)))
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


def test_a_process_killed_again_and_again_ends_with_bitwise_the_same_weights(data, tmp_path):
    more = ("training.pretrain.epochs=60", "training.checkpoint_every=3", "training.pretrain.teacher=ema")
    out = tmp_path / "killed"
    command = [str(Path(sys.executable).parent / "c2vl-train"), "pretrain", "--data", str(data)]
    command += ["--benchmark", "xsub", "--out", str(out), "--recipe", "debug"]
    command += [word for value in (*BASE, *more) for word in ("--set", value)]
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
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


def test_a_finished_run_is_returned_untouched(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    first = train(run(data, out))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.iterdir() if path.is_file()}
    monkeypatch.setattr(trainer, "fit", lambda *_: pytest.fail("trained again"))
    again = train(run(data, out))
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    assert (again.epochs, again.samples, again.left_out, again.last) == (4, 12, 0, first.last)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"kind": "supervised"}, "kind is 'pretrain' there and 'supervised' here"),
        (
            {"set": "training.pretrain.targets=hard"},
            "config.targets.kind is 'partition' there and 'hard' here",
        ),
        ({"set": "training.pretrain.epochs=9"}, "config.epochs is 4 there and 9 here"),
        ({"set": "training.input.frames=9"}, "input.frames is 8 there and 9 here"),
    ],
)
def test_another_configuration_is_refused_naming_the_first_difference(data, tmp_path, finished, change, said):
    out = tmp_path / "run"
    if finished:
        train(run(data, out))
    else:
        with pytest.raises(StoppedError):
            train(run(data, out), stop_after(1))
    extra = [change["set"]] if "set" in change else []
    other = run(data, out, *extra, kind=change.get("kind", "pretrain"), seed=change.get("seed", 0))
    with pytest.raises(CheckpointError) as caught:
        train(other)
    assert str(caught.value).endswith(
        f"is of another run: {said}; choose another --out, or delete the folder to begin anew"
    )


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_checkpoint_is_refused_in_one_line(data, tmp_path, damage):
    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out), stop_after(2))
    path = out / checkpoint.CHECKPOINT
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello" * 99}[damage])
    with pytest.raises(
        CheckpointError, match=r"checkpoint\.safetensors: not a checkpoint of this program"
    ) as caught:
        train(run(data, out))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("delete it and train again")


@pytest.mark.parametrize("name", [checkpoint.CHECKPOINT, checkpoint.ENCODER, checkpoint.PROJECTORS])
def test_any_flipped_bit_is_noticed(data, tmp_path, name):
    train(run(data, tmp_path / "run"))
    path = tmp_path / "run" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in (9, *rng.integers(8, len(whole), 60).tolist(), len(whole) - 1):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r": (damaged|not a checkpoint of this program)") as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    checkpoint.load(path)


def test_a_tensor_damaged_on_disk_is_refused_by_its_hash(data, tmp_path):
    train(run(data, tmp_path / "run"))
    path = tmp_path / "run" / checkpoint.ENCODER
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(
        CheckpointError, match=r"damaged: its content has the sha256 .*, it was written with .*; put a good"
    ):
        checkpoint.load_encoder(path.parent, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------- labels


def test_pretraining_never_opens_labels_and_supervision_cannot_do_without(data, tmp_path):
    train(run(data, tmp_path / "with"))
    copy = tmp_path / "packed"
    shutil.copytree(data, copy)
    (copy / "labels.npy").unlink()
    train(run(copy, tmp_path / "without"))
    assert same(tensors(tmp_path / "with"), tensors(tmp_path / "without"))
    with pytest.raises(
        DataError, match=r"labels\.npy: cannot be read .*; run `c2vl-pipeline pack` again"
    ) as caught:
        train(run(copy, tmp_path / "ceiling", kind="supervised"))
    assert "\n" not in str(caught.value)


def test_supervision_refuses_samples_without_a_label(tmp_path):
    labels = [-1 if n in {1, 2, 4} else 0 for n in range(COUNT)]
    folder = sticks(tmp_path / "packed", labels=labels)
    with pytest.raises(
        DataError,
        match="2 of 12 training samples have no label; the supervised control needs all of them",
    ):
        train(run(folder, tmp_path / "run", kind="supervised"))


# ------------------------------------------------------------------------------------------------ plan


def test_a_dry_run_counts_what_the_run_then_has_and_writes_nothing(data, tmp_path):
    for kind in ("pretrain", "supervised", "random"):
        made = run(data, tmp_path / kind, kind=kind)
        found = dry_run.plan(made)
        assert not made.out.exists()
        result = train(made)
        facts = json.loads((made.out / "run.json").read_text())
        assert found.parameters["encoder"] == facts["parameters"]
        assert (found.samples, found.epochs) == (result.samples, result.epochs)
        assert found.steps == {"pretrain": 8, "supervised": 8, "random": 0}[kind]
        if kind == "pretrain":
            learner = learner_of(made)
            assert sum(found.parameters.values()) == sum(p.numel() for p in learner.model.parameters())
            assert found.memory["gradients"] == 4 * sum(found.parameters.values())


def test_a_teacher_is_counted_among_the_weights(data, tmp_path):
    alone, taught = (
        dry_run.plan(run(data, tmp_path, f"training.pretrain.teacher={teacher}")).memory["weights"]
        for teacher in ("self", "ema")
    )
    assert taught == 2 * alone


def test_activations_of_a_batch_are_foretold_from_a_few_clips(data, tmp_path):
    made = run(data, tmp_path, "training.pretrain.batch_size=12", "training.encoder.empty_bodies=compute")
    selection = made.packed.select("xsub", "train")
    clips = Clips(made.packed, selection.rows, made.recipe.training.input, torch.device("cpu"))
    measured = dry_run._kept(made, learner_of(made), clips, 12)
    assert dry_run.plan(made).memory["activations"] == pytest.approx(measured, rel=0.1)


def test_a_dry_run_refuses_what_the_run_would_refuse(data, tmp_path):
    with pytest.raises(ConfigError, match="batch_size = 13 is larger than the 12 usable"):
        dry_run.plan(run(data, tmp_path, "training.pretrain.batch_size=13"))


def test_the_command_line_takes_recipe_and_overrides_from_the_work_folder(work, tmp_path):
    def resolved(folder: Path, recipe: str | None, *overrides: str) -> Run:
        return cli._resolve("pretrain", folder, None, None, recipe, 3, list(overrides))

    found = resolved(work, None)
    assert found.recipe.name == Packed(work).manifest.recipe == "debug"  # the dataset's default is another
    assert (found.benchmark, str(found.out)) == ("xsub", "runs/synthetic-xsub-pretrain-3")
    copy = tmp_path / "packed"
    shutil.copytree(work / "packed", copy)
    path = copy / "packed.json"
    told = json.loads(path.read_text()) | {
        "overrides": ["training.pretrain.epochs=7", "training.precision=bfloat16"]
    }
    path.write_text(json.dumps(told))
    training = resolved(copy, None, "training.pretrain.epochs=9").recipe.training
    assert (training.pretrain.epochs, training.precision) == (9, "bfloat16")
    assert resolved(copy, "paper").recipe.training.pretrain.epochs == 150


# ----------------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_shuffled_pairs_are_a_permutation_without_fixed_points(count, seed):
    partner = methods.pairing(count, seed)
    assert sorted(partner.tolist()) == list(range(count))
    assert (partner != torch.arange(count)).all()


@pytest.mark.parametrize("pairs", ["true", "shuffled"])
def test_each_skeleton_meets_its_own_knowledge_or_always_the_same_other(tmp_path, monkeypatch, pairs):
    # skeletons that stand at n + 1, vision that points along axis n
    joints = [np.full((6, 1, 5, 3), n + 1, np.float32) for n in range(COUNT)]
    vision = np.repeat(np.eye(COUNT)[:, None], 4, axis=1)
    folder = sticks(tmp_path / "packed", joints=joints, vision=vision)
    met: list[tuple[int, int]] = []

    class Spy(methods.CrossModal):
        def skeletons(self, clips):
            self.seen = clips[:, 0, 0, 0, 0].round().long() - 1
            return super().skeletons(clips)

        def knowledge(self, kind, vectors):
            self.told = vectors.argmax(dim=1)
            return super().knowledge(kind, vectors)

    def loss(*args, **more):
        met.extend(zip(model.seen.tolist(), model.told.tolist(), strict=True))
        return real(*args, **more)

    models: list[Spy] = []
    monkeypatch.setattr(methods, "CrossModal", lambda *args: models.append(Spy(*args)) or models[0])
    real = objective.loss
    monkeypatch.setattr(objective, "loss", loss)
    more = ("training.pretrain.knowledge=vision", "training.input.augmentation.rotation=0.0")
    pretraining = run(folder, tmp_path / "run", *more, f"training.pretrain.pairs='{pairs}'")
    trainer_model = methods.pretraining

    def remember(*args):
        nonlocal model
        learner = trainer_model(*args)
        model = models[0]
        return learner

    model = None
    monkeypatch.setattr(methods, "pretraining", remember)
    train(pretraining)
    assert len(met) == 4 * 10
    assert all((skeleton == told) == (pairs == "true") for skeleton, told in met)
    partners = dict(met)
    assert all(partners[skeleton] == told for skeleton, told in met)
    assert all(skeleton % 4 and told % 4 for skeleton, told in met)  # training samples only


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
        ConfigError, match=r"training\.device = 'gpu' is no device; use auto, cpu, cuda or cuda:<number>"
    ):
        train(run(data, tmp_path / "run", "training.device=gpu"))


def test_left_out_samples_are_counted_named_and_listed(tmp_path):
    joints = moving()
    joints[1] = joints[1][:0]
    vision_ok = np.ones((COUNT, 4), bool)
    vision_ok[2] = False
    folder = sticks(tmp_path / "packed", joints=joints, vision_ok=vision_ok, reasons={1: "file, lost"})
    notes: list[Event] = []
    out = tmp_path / "run"
    result = train(run(folder, out), notes.append)
    assert (result.samples, result.left_out) == (10, 2)
    warning = f"2 of 12 training samples are left out: see {out / 'left_out.csv'}"
    assert Note(warning, "warning") in notes
    with (out / "left_out.csv").open(newline="") as handle:
        assert list(csv.reader(handle)) == [
            ["sample_id", "reason"],
            ["s01", "missing_skeleton: file, lost"],
            ["s02", "no usable vision rows: nobody found in any frame"],
        ]
    facts = json.loads((out / "run.json").read_text())
    assert (facts["samples"], facts["left_out"]) == (10, 2)
    # who only listens misses less
    told = train(run(folder, tmp_path / "told", "training.pretrain.knowledge=language"))
    assert (told.samples, told.left_out) == (11, 1)


def test_a_pickle_in_the_place_of_weights_is_refused_and_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "pwned"),))

    for name, write in (("plain", pickle.dump), ("torch", torch.save)):
        out = tmp_path / name
        out.mkdir()
        with (out / checkpoint.ENCODER).open("wb") as handle:
            write(Evil(), handle)
        with pytest.raises(CheckpointError, match=r"encoder\.safetensors: not a checkpoint of this program"):
            checkpoint.load_encoder(out, torch.device("cpu"))
    assert not (tmp_path / "pwned").exists()


def test_weights_of_another_model_are_refused_naming_the_tensor(data, tmp_path):
    train(run(data, tmp_path / "run", kind="random"))
    path = tmp_path / "run" / checkpoint.ENCODER
    found, facts = checkpoint.load(path)
    name = "blocks.0.temporal.weight"
    for changed, said in (
        ({k: v for k, v in found.items() if k != name}, f"lacks the tensor '{name}' that this model has"),
        (found | {"more": torch.ones(1)}, "holds the tensor 'more' that this model lacks"),
        (found | {name: torch.ones(1)}, rf"{name} has the shape \(1,\), this model's is \(4, 4, 9, 1\)"),
    ):
        checkpoint.save(path, changed, facts)
        with pytest.raises(CheckpointError, match=said):
            checkpoint.load_encoder(path.parent, torch.device("cpu"))


def test_a_loaded_encoder_is_the_saved_one_frozen_and_in_eval_mode(data, tmp_path):
    train(run(data, tmp_path / "run"))
    loaded = checkpoint.load_encoder(tmp_path / "run", torch.device("cpu"))
    assert same(dict(loaded.module.state_dict()), tensors(tmp_path / "run"))
    model = {
        k.removeprefix("model.encoder."): v
        for k, v in tensors(tmp_path / "run", checkpoint.CHECKPOINT).items()
    }
    assert all(torch.equal(model[name], t) for name, t in loaded.module.state_dict().items())
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert loaded.layout == STICK
    assert loaded.input == recipe().training.input


def test_run_json_says_what_was_run(data, tmp_path):
    result = train(run(data, tmp_path / "run", seed=5))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["kind"], facts["benchmark"], facts["seed"], facts["epochs"]) == ("pretrain", "xsub", 5, 4)
    assert facts["recipe_fingerprint"] == recipe().fingerprint()
    assert facts["data"] == "f" * 32
    assert facts["last"] == pytest.approx(result.last)
    assert facts["versions"]["torch"] == torch.__version__


# ------------------------------------------------------------------------------------------ histograms


def test_histograms_count_every_pair_and_every_non_pair_of_an_epoch(data, tmp_path):
    train(run(data, tmp_path / "run"))
    lines = read_histograms(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert (line["low"], line["high"]) == (-1.0, 1.0)
        for kind in ("vision", "language"):
            assert len(line[f"{kind}/positive"]) == len(line[f"{kind}/negative"]) == BINS
            assert sum(line[f"{kind}/positive"]) == 2 * 5  # two batches of five
            assert sum(line[f"{kind}/negative"]) == 2 * 5 * 4


def test_histograms_lie_where_the_mean_similarities_are(data, tmp_path):
    train(run(data, tmp_path / "run"))
    middles = (np.arange(BINS) + 0.5) * 2 / BINS - 1
    for line, said in zip(read_histograms(tmp_path / "run"), read_metrics(tmp_path / "run"), strict=True):
        for name in ("vision/positive", "vision/negative", "language/positive", "language/negative"):
            assert np.average(middles, weights=line[name]) == pytest.approx(said[name], abs=1 / BINS)


def test_histograms_of_long_runs_are_few(data, tmp_path):
    train(run(data, tmp_path / "run", "training.pretrain.epochs=45"))
    epochs = [line["epoch"] for line in read_histograms(tmp_path / "run")]
    assert epochs[0] == 0
    assert epochs[-1] == 44
    assert len(epochs) <= 13


def test_tensorboard_reads_what_a_resumed_run_wrote(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    with pytest.raises(StoppedError):
        train(run(data, out, "training.checkpoint_every=2"), stop_after(3))
    train(run(data, out, "training.checkpoint_every=2"))
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"histograms": 0})
    board.Reload()
    said = board.Scalars("loss")
    assert [event.step for event in said] == [0, 1, 2, 3]
    assert [event.value for event in said] == pytest.approx([line["loss"] for line in read_metrics(out)])
    assert [event.step for event in board.Histograms("similarity/vision/positive")] == [0, 1, 2, 3]


def test_a_full_disk_ends_a_run_in_one_line(data, tmp_path):
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000));"
        "from c2vl_training.cli import main; main()"
    )
    words = ["pretrain", "--data", str(data), "--benchmark", "xsub", "--out", str(tmp_path / "run")]
    words += [
        "--recipe",
        "debug",
        *(w for value in (*BASE, "training.pretrain.epochs=100") for w in ("--set", value)),
    ]
    found = subprocess.run(
        [sys.executable, "-c", script, *words], check=False, capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert re.search(r"error: File too large: .*; check the path", found.stderr)


# ------------------------------------------------------------------------------------------- settings


def last_loss(result: trainer.Result) -> float:
    return result.last["loss"]


@pytest.mark.parametrize("targets", TABLE_VII)
def test_every_row_of_table_vii_trains_with_finite_loss(data, tmp_path, targets):
    result = train(
        run(data, tmp_path / "run", f"training.pretrain.targets={targets}", "training.pretrain.epochs=1")
    )
    assert math.isfinite(last_loss(result))
    kinds = {"hard", "intra", "inter"} & {targets} or {"intra", "inter"}
    assert {key.split("/")[1] for key in result.last if key.startswith("s2v/")} == kinds


@pytest.mark.parametrize("knowledge", ["vision", "language", "both"])
def test_only_the_knowledge_asked_for_has_a_projector_and_a_loss(data, tmp_path, knowledge):
    result = train(run(data, tmp_path / "run", f"training.pretrain.knowledge={knowledge}"))
    kinds = {"vision", "language"} if knowledge == "both" else {knowledge}
    names = tensors(tmp_path / "run", checkpoint.CHECKPOINT)
    assert {n.split(".")[2] for n in names if n.startswith("model.projectors.")} == kinds
    assert {k.split("/")[1] for k in result.last if k.startswith("tau/")} == kinds
    assert {k.split("/")[0] for k in result.last if k.endswith("/positive")} == kinds
    assert math.isfinite(last_loss(result))


def test_loss_falls_where_skeletons_and_knowledge_agree(tmp_path):
    vision = np.repeat(np.eye(4)[np.arange(COUNT) % 4][:, None], 4, axis=1)
    folder = sticks(tmp_path / "packed", vision=vision)
    more = (
        "training.pretrain.targets=hard",
        "training.pretrain.epochs=25",
        "training.pretrain.knowledge=vision",
    )
    train(run(folder, tmp_path / "run", *more, "training.pretrain.optimiser.milestones=[20]"))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]


def test_supervision_learns_the_training_labels(tmp_path):
    folder = sticks(tmp_path / "packed", labels=[n % 4 for n in range(COUNT)])
    more = ("training.supervised.epochs=60", "training.supervised.optimiser.milestones=[50]")
    result = train(
        run(folder, tmp_path / "run", *more, "training.supervised.batch_size=12", kind="supervised")
    )
    assert result.last["accuracy"] > 0.8


def test_bfloat16_trains_and_is_not_float32(data, tmp_path):
    losses = [
        last_loss(train(run(data, tmp_path / precision, f"training.precision={precision}")))
        for precision in ("float32", "bfloat16")
    ]
    assert math.isfinite(losses[1])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.3)
    assert all(t.dtype != torch.bfloat16 for t in tensors(tmp_path / "bfloat16").values())


def learner_of(pretraining: Run) -> methods.Learner:
    selection = pretraining.packed.select("xsub", "train", trainer.kinds_of(pretraining))
    learner = trainer.learner_of(pretraining, selection, torch.device("cpu"))[1]
    assert learner is not None
    return learner


def test_learnable_temperature_has_its_own_group_without_weight_decay(data, tmp_path):
    learner = learner_of(run(data, tmp_path, "training.pretrain.temperature={mode='learnable',lr=0.02}"))
    scales = [id(p) for name, p in learner.model.named_parameters() if name.startswith("scales.")]
    rest, own = learner.groups
    assert [id(p) for p in own["params"]] == scales
    assert len(scales) == 2
    assert not {id(p) for p in rest["params"]} & {*scales}
    assert len(rest["params"]) + 2 == len(list(learner.model.parameters()))
    assert (own["weight_decay"], own["factor"]) == (0.0, pytest.approx(0.02 / 0.1))
    assert (rest["weight_decay"], rest["factor"]) == (5e-4, 1.0)
    assert len(learner_of(run(data, tmp_path, "training.pretrain.temperature.mode=fixed")).groups) == 1


def test_a_running_temperature_is_clamped_and_a_fixed_one_stays(data, tmp_path):
    out = tmp_path / "free"
    more = ("training.pretrain.temperature={mode='learnable',lr=1e4}", "training.pretrain.epochs=8")
    train(run(data, out, *more, "training.pretrain.targets=hard"))
    taus = {line[f"tau/{kind}"] for line in read_metrics(out) for kind in ("vision", "language")}
    assert all(0.0099 <= tau <= 1.0001 for tau in taus)
    assert any(tau == pytest.approx(bound) for tau in taus for bound in (0.01, 1.0))
    train(run(data, tmp_path / "fixed", "training.pretrain.temperature={mode='fixed',tau=0.2}"))
    assert {round(line["tau/vision"], 6) for line in read_metrics(tmp_path / "fixed")} == {0.2}


def test_alpha_and_learning_rate_follow_their_schedules(data, tmp_path):
    train(run(data, tmp_path / "run"))
    lines = read_metrics(tmp_path / "run")
    assert [line["alpha"] for line in lines] == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert [line["lr"] for line in lines] == pytest.approx([0.1, 0.1, 0.1, 0.01])


def test_the_moving_average_teacher_follows_the_student_by_its_share(data, tmp_path):
    learner = learner_of(run(data, tmp_path, "training.pretrain.teacher=ema", "training.pretrain.ema=0.75"))
    assert learner.extra is not None
    before = {k: v.clone() for k, v in learner.extra.state_dict().items()}
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    learner.after_step()
    for name, parameter in learner.extra.named_parameters():
        torch.testing.assert_close(parameter.data, before[name] + 0.25)
    assert not any(p.requires_grad for p in learner.extra.parameters())


def test_the_previous_epochs_teacher_is_the_student_as_the_epoch_began(data, tmp_path):
    learner = learner_of(run(data, tmp_path, "training.pretrain.teacher=previous_epoch"))
    assert learner.extra is not None
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    learner.begin_epoch(1, torch.Generator(), False)
    began = {k: v.clone() for k, v in learner.model.state_dict().items()}
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.add_(1.0)
    learner.after_step()
    assert same(dict(learner.extra.state_dict()), began)


def test_the_floor_is_the_encoder_as_pretraining_begins_with_it(data, tmp_path, monkeypatch):
    train(run(data, tmp_path / "floor", kind="random", seed=3))
    began: list[dict[str, torch.Tensor]] = []

    def fit(run, learner, *_):
        began.append({k: v.clone() for k, v in learner.model.encoder.state_dict().items()})
        return {}, 0.0

    monkeypatch.setattr(trainer, "fit", fit)
    train(run(data, tmp_path / "run", seed=3), silent)
    assert same(tensors(tmp_path / "floor"), began[0])
