"""Fine-tuning, shares of the labels, other datasets, three streams: against loops, and what must not happen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from c2vl_evaluation import cache
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.cache import Outcome, Predictions, Subject
from c2vl_evaluation.protocols import common, ensemble, finetune, finetuning, linear, semi, transfer
from c2vl_evaluation.results import load
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.layouts import LAYOUTS
from c2vl_manifests.recipe import FinetuneConfig, Optimiser
from c2vl_training import checkpoint, encoders
from c2vl_training.dataset import Clips, Packed
from c2vl_training.trainer import train
from test_data import STICK, write_packed
from test_trainer import COUNT, StoppedError, moving, recipe, run, sticks, stop_after

TUNE = "{lr=0.05,weight_decay=1e-3,warmup_epochs=0,milestones=[2]}"
SETTINGS = (
    "evaluation.linear.epochs=4",
    "evaluation.linear.milestones=[3]",
    "evaluation.finetune.epochs=3",
    "evaluation.finetune.batch_size=5",
    f"evaluation.finetune.optimiser={TUNE}",
    "evaluation.semi.shares=[0.05,0.5]",
    "training.checkpoint_every=1",
)


def outcomes(protocol: ModuleType, *told: Any) -> Iterator[Outcome]:
    """Run the cells of a protocol, one after the other."""
    return (cell.make() for cell in protocol.cells(*told))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """12 training and 4 test sticks of 3 classes; tests must not write into it."""
    return Packed(sticks(tmp_path_factory.mktemp("sticks") / "packed"))


@pytest.fixture
def subject(data: Packed, tmp_path: Path) -> Subject:
    train(run(data.folder, tmp_path / "floor", kind="random"))
    return Subject(tmp_path / "floor", data, "xsub", recipe(*SETTINGS), 0)


def told(subject: Subject, *more: str) -> Subject:
    return replace(subject, recipe=recipe(*SETTINGS, *more))


def logits(outcome: Outcome) -> np.ndarray:
    assert outcome.predictions is not None
    return outcome.predictions.scores


# -------------------------------------------------------------------------------------------- finetune


def test_two_steps_match_a_loop_of_torch(subject, data):
    more = ("epochs=2", "batch_size=12", "augment=false")
    found = finetune.outcome(told(subject, *(f"evaluation.finetune.{word}" for word in more)))
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
    assert (found.finding.train, found.finding.test, found.finding.epochs) == (12, 4, 2)


def test_the_run_itself_stays_as_it_is(subject):
    before = (subject.run / checkpoint.ENCODER).read_bytes()
    finetune.outcome(subject)
    assert (subject.run / checkpoint.ENCODER).read_bytes() == before
    assert not list(subject.run.rglob("*-going.safetensors"))


@pytest.mark.parametrize("epochs", [1, 2])
def test_stopped_and_resumed_tuning_ends_with_bitwise_the_same_answers(subject, data, tmp_path, epochs):
    whole = finetune.outcome(subject)
    train(run(data.folder, tmp_path / "again", kind="random"))
    other = replace(subject, run=tmp_path / "again")
    with pytest.raises(StoppedError):
        finetune.outcome(other, stop_after(epochs))
    assert len(list(other.run.rglob("*-going.safetensors"))) == 1
    seen = []
    resumed = finetune.outcome(other, seen.append)
    assert seen[0].done == epochs
    np.testing.assert_array_equal(logits(whole), logits(resumed))
    assert whole.finding.model_copy(update={"seconds": 0}) == resumed.finding.model_copy(
        update={"seconds": 0}
    )


def test_a_checkpoint_of_another_tuning_is_not_taken_up(subject):
    with pytest.raises(StoppedError):
        finetune.outcome(subject, stop_after(2))
    seen = []
    finetune.outcome(told(subject, "evaluation.finetune.batch_size=4"), seen.append)
    assert seen[0].done == 0


def test_last_and_best_epoch_are_both_recorded(subject, monkeypatch):
    reached = iter([0.25, 0.75, 0.5])
    real = finetuning.scores.score

    def score(*args):
        return real(*args).model_copy(update={"top1": next(reached)})

    monkeypatch.setattr(finetuning.scores, "score", score)
    finding = finetune.outcome(subject).finding
    assert (finding.last.top1, finding.best.top1, finding.best_epoch) == (0.5, 0.75, 2)


def test_a_sweep_never_looks_at_the_test_split(data, subject, tmp_path):
    rates = "evaluation.finetune.lrs=[0.0001,0.05,0.3]"
    honest = finetune.outcome(told(subject, rates))
    labels = data.labels().copy()
    test_rows = data.select("xsub", "test").rows
    labels[test_rows] = np.roll(labels[test_rows], 1)
    other = Packed(sticks(tmp_path / "permuted" / "packed", labels=labels.tolist()))
    cheated = finetune.outcome(replace(told(subject, rates), packed=other))
    assert honest.finding.lr == cheated.finding.lr
    assert honest.finding.held_out == cheated.finding.held_out is not None
    np.testing.assert_array_equal(logits(honest), logits(cheated))


def test_the_rate_of_the_lowest_held_out_loss_is_taken(subject, monkeypatch):
    asked = []

    def trained(job, rate, rows, test, emit):
        asked.append((rate, sorted(rows), sorted(test)))
        good = torch.from_numpy(job.subject.packed.labels()[test])
        sharp = F.one_hot(good, 3).float() * {0.1: 1.0, 0.2: 5.0, 0.3: 2.0}[rate]
        return [finetuning.scores.score(sharp, good)], sharp.numpy()

    monkeypatch.setattr(finetuning, "_train", trained)
    finding = finetune.outcome(told(subject, "evaluation.finetune.lrs=[0.1,0.2,0.3]")).finding
    assert (finding.lr, finding.held_out) == (0.2, 1.0)
    *swept, (rate, rows, test) = asked
    assert rate == 0.2
    assert (len(rows), len(test)) == (12, 4)
    for _, some, held in swept:
        assert sorted([*some, *held]) == rows
        assert len(held) == 1


def test_a_diverging_rate_is_said(subject):
    with pytest.raises(
        C2VLError, match=r"became NaN or infinite in epoch \d, step \d, at the rate 1e\+30; lower"
    ):
        finetune.outcome(told(subject, "evaluation.finetune.optimiser.lr=1e30"))


@pytest.mark.parametrize("name", ["stgcn", "stgcn_slim", "ctrgcn", "bigru", "transformer"])
def test_each_layer_is_slower_than_the_one_above_it_and_none_is_forgotten(name):
    encoder = encoders.build(
        name, LAYOUTS["kinect_v1"], **({"width": 8} if name in {"bigru", "transformer"} else {})
    )
    head = nn.Linear(encoder.dim, 3)
    groups = list(finetuning._groups(encoder, head, FinetuneConfig(layer_decay=0.5)))
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
    held, free = (logits(finetune.outcome(some)) for some in decayed)
    assert not np.allclose(held, free, atol=1e-3)


def test_fine_tuning_learns_what_it_is_shown(data, subject):
    everything = replace(
        subject,
        recipe=recipe(*SETTINGS, "evaluation.finetune.epochs=60", "evaluation.finetune.augment=false"),
    )
    rows = data.select("xsub", "train").rows
    job = finetuning.Job(everything, rows, rows, 3, everything.recipe.evaluation.finetune)
    history = finetuning.tune(job).history
    assert history[-1].top1 == 1.0 > history[0].top1


# ------------------------------------------------------------------------------------------------ semi

LABELS = np.repeat(np.arange(6), [40, 30, 20, 50, 10, 16])


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_a_stratified_draw_takes_the_share_of_each_class(share):
    places = semi.subset(LABELS, share, "stratified", 0)
    assert places.tolist() == sorted(set(places.tolist()))
    for label in range(6):
        assert np.count_nonzero(LABELS[places] == label) == round(share * np.count_nonzero(label == LABELS))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.05, 8), (0.1, 16), (1.0, 166)])
def test_a_random_draw_takes_the_share_of_all_rounded_down(share, count):
    places = semi.subset(LABELS, share, "random", 0)
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(places) == count


def test_shares_are_rounded_as_written_and_not_as_stored():
    assert len(semi.subset(np.zeros(100, int), 0.07, "random", 0)) == 7  # 0.07 * 100 is 7.000000000000001
    assert len(semi.subset(np.zeros(100, int), 0.29, "random", 0)) == 29  # 28.999999999999996


@pytest.mark.parametrize("sampling", ["stratified", "random"])
def test_draws_differ_and_are_the_same_for_everybody(sampling):
    draws = [semi.subset(LABELS, 0.2, sampling, n).tolist() for n in range(5)]
    assert len({tuple(draw) for draw in draws}) == 5
    assert draws == [semi.subset(LABELS, 0.2, sampling, n).tolist() for n in range(5)]
    often = np.bincount(np.concatenate([semi.subset(LABELS, 0.5, sampling, n) for n in range(400)]))
    assert often.min() > 120
    assert often.max() < 280  # nobody is preferred


def test_a_share_that_makes_no_sense_says_why():
    labels = np.repeat(np.arange(27), 16)
    assert semi.impossible(labels, 0.01, "stratified") == (
        "1 % of the 16 clips of a class is less than half a clip (27 of 27 classes)"
    )
    assert semi.impossible(labels, 0.05, "stratified") == ""
    assert semi.impossible(labels, 0.05, "random") == "5 % of 432 clips are 21, fewer than the 27 classes"
    assert semi.impossible(labels, 0.1, "random") == ""


def test_every_setting_has_its_draws_or_a_reason(subject):
    found = list(outcomes(semi, subject))
    cells = [(o.finding.setting, o.finding.draw, o.finding.train, bool(o.finding.why)) for o in found]
    settings = ["stratified, frozen", "stratified, tuned", "random, frozen", "random, tuned"]
    assert cells[:4] == [(f"5 % {setting}", 0, 0, True) for setting in settings]
    assert cells[4:] == [(f"50 % {setting}", draw, 6, False) for setting in settings for draw in (0, 1)]
    assert all(o.finding.last is None and o.predictions is None for o in found[:4])
    assert all(o.finding.last is not None and o.predictions is not None for o in found[4:])


def test_a_frozen_encoder_with_few_labels_is_a_linear_probe_of_them(subject):
    found = next(o for o in outcomes(semi, subject) if o.finding.setting == "50 % stratified, frozen")
    gallery, query, classes = subject.splits()
    places = semi.subset(gallery.labels, 0.5, "stratified", 0)
    some = replace(gallery, values=gallery.values[places], labels=gallery.labels[places])
    config = subject.recipe.evaluation.linear
    wanted = linear.probe(some, query, classes, config, 0, linear.standard(gallery.values))
    np.testing.assert_array_equal(logits(found), wanted.logits)
    assert found.finding.held_out is not None


def test_one_label_a_class_leaves_nothing_to_sweep(subject):
    some = told(subject, "evaluation.semi.shares=[0.25]", "evaluation.semi.lr=0.5")
    found = next(o.finding for o in outcomes(semi, some) if o.finding.setting == "25 % stratified, frozen")
    assert (found.train, found.lr, found.held_out) == (3, 0.5, None)


# -------------------------------------------------------------------------------------------- transfer


@pytest.fixture
def elsewhere(tmp_path: Path) -> Packed:
    """Another set of the same joints."""
    folder = sticks(tmp_path / "elsewhere" / "packed", joints=moving(COUNT, 7))
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32).replace("synthetic", "elsewhere"))
    return Packed(folder)


def test_an_encoder_meets_another_dataset_frozen_and_tuned(subject, elsewhere):
    there = replace(subject, packed=elsewhere)
    frozen, tuned = outcomes(transfer, there)
    assert [o.finding.setting for o in (frozen, tuned)] == [
        "synthetic to elsewhere, xsub, frozen",
        "synthetic to elsewhere, xsub, tuned",
    ]
    np.testing.assert_array_equal(logits(frozen), logits(linear.outcome(there)))
    config = there.recipe.evaluation.transfer.tune
    whole = there.recipe.model_copy(
        update={"evaluation": there.recipe.evaluation.model_copy(update={"finetune": config})}
    )
    np.testing.assert_array_equal(logits(tuned), logits(finetune.outcome(replace(there, recipe=whole))))


def test_a_transfer_to_its_own_data_is_refused(subject):
    with pytest.raises(
        ConfigError, match=r"was trained on the data of .* itself; give those of another dataset"
    ):
        next(outcomes(transfer, subject))


def test_a_transfer_to_other_joints_names_the_mapping(subject, tmp_path):
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    folder = write_packed(tmp_path / "packed", [np.zeros((5, 1, 3, 3))] * 4, layout=layout, labels=[0] * 4,
                          splits=[{"xsub": "train"}, {"xsub": "test"}] * 2)  # fmt: skip
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    for encoder in ("frozen", "tuned"):
        some = told(subject, f"evaluation.transfer.encoder=['{encoder}']")
        with pytest.raises(CheckpointError, match=r"holds 'kite' \(3\); .* --layout stick`"):
            next(outcomes(transfer, replace(some, packed=Packed(folder))))


# -------------------------------------------------------------------------------------------- ensemble


def said(values: Iterable[Iterable[float]], names: str = "abc") -> Predictions:
    scores = np.array(list(values), np.float32)
    return Predictions(list(names), np.zeros(len(scores), np.int64), scores.argmax(axis=1), scores)


def test_scores_are_added_by_weight():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 3, 4)).astype(np.float32)
    parts = dict(zip(ensemble.STREAMS, map(said, values), strict=True))
    found = ensemble.add(parts, {"joint": 0.6, "bone": 0.6, "motion": 0.4})
    wanted = 0.6 * values[0] + 0.6 * values[1] + 0.4 * values[2]
    np.testing.assert_allclose(found.scores, wanted, rtol=1e-5, atol=1e-6)
    assert found.answers.tolist() == wanted.argmax(axis=1).tolist()


def test_streams_of_other_samples_are_not_added():
    parts = {"joint": said(np.eye(3)), "bone": said(np.eye(3), "abd")}
    with pytest.raises(DataError, match="the joint and the bone stream answered other test samples"):
        ensemble.add(parts, {"joint": 1, "bone": 1})


@pytest.fixture
def streams(subject: Subject, data: Packed, tmp_path: Path) -> list[Subject]:
    found = [subject]
    for stream in ("bone", "motion"):
        train(run(data.folder, tmp_path / stream, f"training.input.stream={stream}", kind="random"))
        found.append(replace(subject, run=tmp_path / stream))
    return found


def test_three_streams_are_known_by_their_runs(streams):
    found = ensemble.by_stream(streams[::-1])
    assert [found[stream].run for stream in ensemble.STREAMS] == [one.run for one in streams]
    with pytest.raises(
        ConfigError, match="are both of the bone stream; give one run of each of joint, bone, motion"
    ):
        ensemble.by_stream([*streams, streams[1]])
    with pytest.raises(ConfigError, match=r"no run of the bone stream is given; .*input.stream=bone"):
        ensemble.by_stream([streams[0], streams[2]])


@pytest.mark.parametrize("protocol", ["linear", "finetune"])
def test_an_ensemble_is_the_sum_of_its_runs_with_both_weights(streams, protocol):
    some = [told(one, f"evaluation.ensemble.protocol=['{protocol}']") for one in streams]
    fixed, equal = outcomes(ensemble, ensemble.by_stream(some))
    each = [linear.outcome(one) if protocol == "linear" else finetune.outcome(one) for one in some]
    parts = np.stack([logits(one) for one in each])
    np.testing.assert_allclose(logits(equal), parts.sum(axis=0), rtol=1e-5, atol=1e-6)
    wanted = np.tensordot([0.6, 0.6, 0.4], parts, axes=1)
    np.testing.assert_allclose(logits(fixed), wanted, rtol=1e-5, atol=1e-6)
    assert [o.finding.setting for o in (fixed, equal)] == [
        f"{protocol}, 0.6/0.6/0.4",
        f"{protocol}, equal weights",
    ]
    assert fixed.finding.best is None  # no epoch is chosen


def test_another_stream_makes_another_ensemble(streams, data, tmp_path, monkeypatch):
    by = ensemble.by_stream(streams)
    first = [o.finding for o in outcomes(ensemble, by)]
    with monkeypatch.context() as closed:
        closed.setattr(ensemble, "add", None)
        assert [o.finding for o in outcomes(ensemble, by)] == first
    train(run(data.folder, tmp_path / "other", "training.input.stream=bone", kind="random", seed=3))
    changed = by | {"bone": replace(by["bone"], run=tmp_path / "other")}
    calls = []
    real = ensemble.add
    monkeypatch.setattr(ensemble, "add", lambda *a: calls.append(a) or real(*a))
    list(outcomes(ensemble, changed))
    assert len(calls) == 2


# ---------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def table(data: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table")
    lines = benchmark.entries("debug", [*_base(), *SETTINGS], ["hard"])
    benchmark.run_table(data, "xsub", lines, [0], out, protocols=("finetune", "semi", "ensemble"))
    return out


def _base() -> tuple[str, ...]:
    from test_trainer import BASE

    return BASE


def test_every_line_of_a_table_gets_every_protocol(table):
    results = load(table)
    *encoders_, baseline = results.rows
    assert [row.role for row in encoders_] == ["pretrained", "floor", "ceiling", "shuffled"]
    first = [(f.protocol, f.setting, f.draw) for f in encoders_[0].findings]
    assert {protocol for protocol, *_ in first} == {"finetune", "semi", "ensemble"}
    for row in encoders_:
        assert [(f.protocol, f.setting, f.draw) for f in row.findings] == first
    assert baseline.findings == ()
    assert sorted(path.name for path in (table / "runs").glob("hard*")) == [
        "hard-seed0",
        "hard-seed0-bone",
        "hard-seed0-motion",
    ]


def test_a_table_grows_by_a_protocol_and_by_another_dataset(table, elsewhere, data):
    before = load(table)
    found = common.extend(table, elsewhere, "transfer", recipe(*SETTINGS))
    assert load(table) == found
    (target,) = found.targets
    assert (target.dataset, target.train, target.test) == ("elsewhere", 12, 4)
    for row, old in zip(found.rows, before.rows, strict=True):
        assert row.findings[: len(old.findings)] == old.findings
        assert len(row.findings) == len(old.findings) + (2 if row.run else 0)
    again = common.extend(table, data, "finetune", recipe(*SETTINGS))
    kept = [sorted((f.protocol, f.setting, f.draw) for f in row.findings) for row in again.rows]
    assert kept == [sorted((f.protocol, f.setting, f.draw) for f in row.findings) for row in found.rows]


def test_a_table_keeps_what_it_was_transferred_to_before(table, elsewhere, tmp_path):
    common.extend(table, elsewhere, "transfer", recipe(*SETTINGS))
    folder = sticks(tmp_path / "third" / "packed", joints=moving(COUNT, 8))
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "c" * 32).replace("synthetic", "third"))
    found = common.extend(table, Packed(folder), "transfer", recipe(*SETTINGS))
    settings = [f.setting for f in found.rows[0].findings if f.protocol == "transfer"]
    assert settings == [
        f"synthetic to {name}, xsub, {kind}"
        for name in ("elsewhere", "third")
        for kind in ("frozen", "tuned")
    ]
    assert [target.dataset for target in found.targets] == ["elsewhere", "third"]


def test_a_table_and_its_transfer_in_one_call(table, elsewhere, data, tmp_path):
    lines = benchmark.entries("debug", [*_base(), *SETTINGS], ["hard"])
    found = benchmark.run_table(data, "xsub", lines, [0], tmp_path, target=(elsewhere, "xsub"))
    assert load(tmp_path) == found
    grown = common.extend(table, elsewhere, "transfer", recipe(*SETTINGS))
    assert found.targets == tuple(target for target in grown.targets if target.dataset == "elsewhere")
    for one, other in zip(found.rows, grown.rows, strict=True):
        mine, theirs = (
            [f.model_copy(update={"seconds": 0}) for f in row.findings if "to elsewhere, " in f.setting]
            for row in (one, other)
        )
        assert mine == theirs
        assert len(mine) == (2 if one.run else 0)


def test_a_target_that_cannot_be_is_refused_before_anything_is_trained(data, elsewhere, tmp_path):
    lines = benchmark.entries("debug", [*_base(), *SETTINGS], ["hard"])
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    kites = sticks(tmp_path / "other" / "packed", joints=[np.zeros((5, 1, 3, 3))] * COUNT, layout=layout)
    text = (kites / "packed.json").read_text()
    (kites / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    for target, text in (
        ((data, "xsub"), "is the very data of the table"),
        ((elsewhere, "xview"), "no benchmark 'xview'"),
        ((Packed(kites), "xsub"), r"pack --work .*other --layout"),
    ):
        with pytest.raises(ConfigError, match=text):
            benchmark.run_table(data, "xsub", lines, [0], tmp_path / "out", target=target)
    assert not (tmp_path / "out").exists()


def test_a_table_of_other_data_does_not_grow(table, elsewhere):
    with pytest.raises(DataError, match="was made from other data than"):
        common.extend(table, elsewhere, "finetune", recipe(*SETTINGS))


def test_a_table_without_a_run_says_which(data, tmp_path):
    lines = benchmark.entries("debug", [*_base(), *SETTINGS], ["hard"])[1:2]
    benchmark.run_table(data, "xsub", lines, [0], tmp_path)
    (tmp_path / "runs" / "random-encoder-seed0" / checkpoint.ENCODER).unlink()
    with pytest.raises(CheckpointError, match=r"random-encoder-seed0/encoder\.safetensors does not exist"):
        common.extend(tmp_path, data, "finetune", recipe(*SETTINGS))


def test_runs_are_known_as_the_controls_they_are(table):
    names = {
        "hard": "pretrained",
        "random-encoder": "floor",
        "supervised": "ceiling",
        "shuffled-pairs": "shuffled",
    }
    assert {n: common.role_of(table / "runs" / f"{n}-seed0") for n in names} == names


def test_defaults_are_those_of_the_field():
    tune = FinetuneConfig()
    assert (tune.optimiser.lr, tune.optimiser.weight_decay, tune.batch_size, tune.epochs) == (
        0.1,
        1e-4,
        128,
        80,
    )
    assert tune.optimiser == Optimiser(weight_decay=1e-4, milestones=(50, 70))
    assert cache.FOLDER == "evaluations"


def test_weights_that_break_in_the_last_step_are_no_result(subject):
    rate = "evaluation.finetune.optimiser={lr=1e30,weight_decay=0,warmup_epochs=0,milestones=[]}"
    one_step = ("evaluation.finetune.epochs=1", "evaluation.finetune.batch_size=12", rate)
    with pytest.raises(
        C2VLError, match=r"NaN or infinite after the last epoch, at the rate 1e\+30; lower it"
    ):
        finetune.outcome(told(subject, *one_step))
    assert not list((subject.run / cache.FOLDER).glob("finetune-*.json"))
