"""Fine-tuning: steps, resumption, choice of rate, layer decay."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from c2vl_evaluation import cache, metrics
from c2vl_evaluation.protocols import finetuning
from c2vl_manifests.errors import C2VLError
from c2vl_manifests.events import Event, Progress
from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.recipe import FinetuneConfig
from c2vl_training import checkpoint, encoders, methods
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.trainer import train
from support.evaluation import TUNED, evaluated, logits, told
from support.packed import sticks
from support.training import StoppedError, recipe, run, stop_after

EVERY = "evaluation.finetune.every_epoch=true"


def first_epoch(events: list[Event]) -> int:
    """Epochs that were done when a training began."""
    return next(event.done for event in events if isinstance(event, Progress))


def test_two_steps_match_a_loop_of_torch(subject, data):
    more = ("epochs=2", "batch_size=12", "augment=false")
    found = evaluated(finetuning, told(subject, *(f"evaluation.finetune.{word}" for word in more)))
    loaded = checkpoint.load_encoder(subject.run, torch.device("cpu"))
    torch.manual_seed(0)
    network = nn.Sequential(loaded.module.requires_grad_(True), nn.Linear(6, 3))
    rows, asked = (data.select("xsub", split).rows for split in ("train", "test"))
    clips, questions = (Clips(data, some, loaded.input, torch.device("cpu")) for some in (rows, asked))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    for _ in range(2):
        network.train()
        optimiser.zero_grad()
        y = torch.from_numpy(data.labels()[rows])
        F.cross_entropy(network(clips.test(torch.arange(12))), y).backward()
        optimiser.step()
    wanted = network.eval()(questions.test(torch.arange(4))).detach().numpy()
    np.testing.assert_allclose(logits(found), wanted, rtol=1e-3, atol=1e-4)
    assert (found.result.train, found.result.test, found.result.epochs) == (12, 4, 2)


def test_the_run_itself_stays_as_it_is(subject):
    before = (subject.run / checkpoint.ENCODER).read_bytes()
    evaluated(finetuning, subject)
    assert (subject.run / checkpoint.ENCODER).read_bytes() == before
    assert not list(subject.run.rglob("*-going.safetensors"))


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_and_resumed_tuning_ends_with_bitwise_the_same_answers(subject, data, tmp_path, epochs):
    whole = evaluated(finetuning, subject)
    train(run(data.folder, tmp_path / "again", kind="random"))
    other = replace(subject, run=tmp_path / "again")
    with pytest.raises(StoppedError):
        evaluated(finetuning, replace(other, emit=stop_after(epochs)))
    assert len(list(other.run.rglob("*-going.safetensors"))) == 1
    seen = []
    resumed = evaluated(finetuning, replace(other, emit=seen.append))
    assert first_epoch(seen) == epochs
    np.testing.assert_array_equal(logits(whole), logits(resumed))
    # the key names the file of the encoder, whose metadata safetensors writes in any order
    one, other = (found.result.model_copy(update={"seconds": 0, "key": ""}) for found in (whole, resumed))
    assert one == other


def test_an_interrupt_within_an_epoch_of_tuning_saves_the_step(subject, data, tmp_path, monkeypatch):
    whole = evaluated(finetuning, subject)
    train(run(data.folder, tmp_path / "again", kind="random"))
    other = replace(subject, run=tmp_path / "again")
    real, calls = F.cross_entropy, iter(range(100))

    def loss(*args, **more):
        if next(calls) == 2:  # the first of two steps in the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return real(*args, **more)

    with monkeypatch.context() as patched:
        patched.setattr("c2vl_training.methods.F.cross_entropy", loss)
        with pytest.raises(KeyboardInterrupt):
            evaluated(finetuning, other)
    (going,) = other.run.rglob("*-going.safetensors")
    facts = checkpoint.load(going)[1]
    assert (facts["epochs_done"], facts["steps_done"], len(facts["history"])) == (1, 1, 1)
    resumed = evaluated(finetuning, other)
    np.testing.assert_array_equal(logits(whole), logits(resumed))
    assert whole.result.last == resumed.result.last


def test_a_checkpoint_of_another_tuning_is_not_taken_up(subject):
    with pytest.raises(StoppedError):
        evaluated(finetuning, replace(subject, emit=stop_after(2)))
    seen = []
    evaluated(finetuning, replace(told(subject, "evaluation.finetune.batch_size=4"), emit=seen.append))
    assert first_epoch(seen) == 0


def test_last_and_best_epoch_are_both_recorded(subject, monkeypatch):
    reached = iter([0.25, 0.75, 0.5])
    real = metrics.score

    def score(*args):
        return real(*args).model_copy(update={"top1": next(reached)})

    monkeypatch.setattr(metrics, "score", score)
    finding = evaluated(finetuning, told(subject, EVERY)).result
    assert (finding.last.top1, finding.best.top1, finding.best_epoch) == (0.5, 0.75, 2)


def test_test_samples_are_answered_once_an_epoch_or_after_the_last_alone(subject, monkeypatch):
    asked, real = [], finetuning.answer

    def answer(network, clips, precision):
        asked.append(len(clips))
        return real(network, clips, precision)

    monkeypatch.setattr(finetuning, "answer", answer)
    brief = evaluated(finetuning, subject)
    assert asked == [4]
    asked.clear()
    whole = evaluated(finetuning, told(subject, EVERY))  # a result without the best epoch is not enough
    assert asked == [4, 4, 4]
    np.testing.assert_array_equal(logits(brief), logits(whole))
    assert (brief.result.last, brief.result.epochs) == (whole.result.last, whole.result.epochs)
    assert (brief.result.best, brief.result.best_epoch) == (None, None)
    assert whole.result.best is not None
    asked.clear()
    for cell in finetuning.cells(subject):  # one that has it is, without it
        assert cell.run().result == cell.cached() == whole.result.model_copy(update={"best": None, "best_epoch": None})
    assert not asked
    evaluated(finetuning, told(subject, EVERY, "evaluation.finetune.lrs=[0.01,0.05]"))
    assert asked == [1, 1, 4, 4, 4]


@pytest.mark.slow
def test_a_sweep_never_looks_at_the_test_split(data, subject, tmp_path):
    rates = "evaluation.finetune.lrs=[0.0001,0.05,0.3]"
    honest = evaluated(finetuning, told(subject, rates))
    labels = data.labels().copy()
    test_rows = data.select("xsub", "test").rows
    labels[test_rows] = np.roll(labels[test_rows], 1)
    other = PackedDataset(sticks(tmp_path / "permuted" / "packed", labels=labels.tolist()))
    cheated = evaluated(finetuning, replace(told(subject, rates), packed=other))
    assert honest.result.lr == cheated.result.lr
    assert honest.result.held_out == cheated.result.held_out is not None
    np.testing.assert_array_equal(logits(honest), logits(cheated))


def test_the_rate_of_the_lowest_held_out_loss_is_taken(subject, monkeypatch):
    asked = []

    def trained(job, rate, rows, test, every_epoch):
        asked.append((rate, sorted(rows), sorted(test)))
        good = torch.from_numpy(job.context.packed.labels()[test])
        sharp = F.one_hot(good, 3).float() * {0.1: 1.0, 0.2: 5.0, 0.3: 2.0}[rate]
        return [metrics.score(sharp, good)], sharp.numpy()

    monkeypatch.setattr(finetuning, "_train", trained)
    finding = evaluated(finetuning, told(subject, "evaluation.finetune.lrs=[0.1,0.2,0.3]")).result
    assert (finding.lr, finding.held_out) == (0.2, 1.0)
    *swept, (rate, rows, test) = asked
    assert rate == 0.2
    assert (len(rows), len(test)) == (12, 4)
    for _, some, held in swept:
        assert sorted([*some, *held]) == rows
        assert len(held) == 1


def test_a_diverging_rate_is_said(subject):
    with pytest.raises(C2VLError, match=r"became NaN or infinite in epoch \d, step \d, at the rate 1e\+30; lower"):
        evaluated(finetuning, told(subject, "evaluation.finetune.optimiser.lr=1e30"))


@pytest.mark.parametrize("name", ["stgcn", "stgcn_slim", "ctrgcn", "bigru", "transformer"])
def test_each_layer_is_slower_than_the_one_above_it_and_none_is_forgotten(name):
    encoder = encoders.build(name, LAYOUTS["kinect_v1"], **({"width": 8} if name in {"bigru", "transformer"} else {}))
    head = nn.Linear(encoder.dim, 3)
    groups = list(methods.layer_groups(encoder, head, FinetuneConfig(layer_decay=0.5)))
    assert groups[0]["params"] == list(head.parameters())
    factors = [group["factor"] for group in groups]
    assert factors == [0.5**n for n in range(len(groups))]
    assert len(factors) > 2
    found = [id(p) for group in groups for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in [*encoder.parameters(), *head.parameters()]}
    if name == "stgcn":
        assert groups[1]["params"] == list(encoder.blocks[-1].parameters())


def test_a_layer_decay_holds_the_encoder_back(subject):
    often = ("evaluation.finetune.augment=false", "evaluation.finetune.batch_size=12")
    decayed = [told(subject, *often, f"evaluation.finetune.layer_decay={share}") for share in ("1e-9", "1.0")]
    held, free = (logits(evaluated(finetuning, some)) for some in decayed)
    assert not np.allclose(held, free, atol=1e-3)


@pytest.mark.slow
def test_fine_tuning_learns_what_it_is_shown(data, subject):
    everything = replace(
        subject,
        recipe=recipe(
            *TUNED, *(f"evaluation.finetune.{one}" for one in ("epochs=60", "augment=false", "every_epoch=true"))
        ),
    )
    rows = data.select("xsub", "train").rows
    job = finetuning.Job(everything, rows, rows, 3, everything.recipe.evaluation.finetune)
    history = finetuning.tune(job).history
    assert history[-1].top1 == 1.0 > history[0].top1


def test_weights_that_break_in_the_last_step_are_no_result(subject):
    rate = "evaluation.finetune.optimiser={lr=1e30,weight_decay=0,warmup_epochs=0,milestones=[]}"
    one_step = ("evaluation.finetune.epochs=1", "evaluation.finetune.batch_size=12", rate)
    with pytest.raises(C2VLError, match=r"NaN or infinite after the last epoch, at the rate 1e\+30; lower it"):
        evaluated(finetuning, told(subject, *one_step))
    assert not list((subject.run / cache.FOLDER).glob("finetune-*.json"))
