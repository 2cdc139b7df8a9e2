"""Protocols: kNN against a loop, the linear probe against autograd, features bound to what made them, tables with controls."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from c2vl_evaluation import metrics
from c2vl_evaluation import table as benchmark
from c2vl_evaluation.cache import Subject
from c2vl_evaluation.features import Features, extract, raw_joints
from c2vl_evaluation.protocols import knn, linear
from c2vl_evaluation.results import Results, Score, load, mean_std
from c2vl_manifests.errors import CheckpointError, ConfigError, DataError
from c2vl_manifests.recipe import LinearConfig
from c2vl_training import checkpoint
from c2vl_training.dataset import Clips, Packed
from c2vl_training.trainer import train
from test_data import STICK, write_packed
from test_trainer import BASE, COUNT, StoppedError, run, sticks, stop_after

DEBUG = ("evaluation.linear.epochs=5", "evaluation.linear.lrs=[0.1,1.0]", "evaluation.linear.milestones=[4]")


def features(values: np.ndarray, labels: np.ndarray) -> Features:
    return Features(np.asarray(values, np.float32), np.asarray(labels, np.int64), np.arange(len(values)), 0)


def noisy(count: int, dim: int, classes: int, seed: int, spread: float = 1.0) -> Features:
    """Classes around the same centres for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return features(centres[labels] + spread * rng.normal(size=(count, dim)), labels)


# -------------------------------------------------------------------------------------------------- knn


def naive_knn(gallery: Features, query: Features, k: int) -> list[int]:
    answers = []
    for q in query.values.astype(np.float64):
        near = []
        for g, label in zip(gallery.values.astype(np.float64), gallery.labels, strict=True):
            near.append((-round(float(q @ g / np.linalg.norm(q) / np.linalg.norm(g)), 12), int(label)))
        near = sorted(near, key=lambda pair: pair[0])[:k]
        votes: dict[int, int] = {}
        for _, label in near:
            votes[label] = votes.get(label, 0) + 1
        most = max(votes.values())
        answers.append(next(label for _, label in near if votes[label] == most))
    return answers


@pytest.mark.parametrize("k", [1, 2, 5])
def test_knn_matches_a_loop(k, monkeypatch):
    monkeypatch.setattr(knn, "_CHUNK", 16)  # queries span several chunks and a rest
    gallery, query = noisy(60, 6, 5, 1), noisy(41, 6, 5, 2)
    wanted = naive_knn(gallery, query, k)
    assert knn.predict(gallery, query, k).tolist() == wanted
    assert 0.2 < knn.accuracy(np.array(wanted), query.labels) < 1


@pytest.mark.parametrize("k", [1, 3])
def test_knn_matches_a_loop_where_float32_cannot_tell_neighbours_apart(k, monkeypatch):
    """All clips point nearly the same way, as of a collapsed encoder; cosines differ in the eighth digit."""
    monkeypatch.setattr(knn, "_CHUNK", 16)
    rng = np.random.default_rng(0)
    far = 1000 * np.ones((1, 12))
    gallery = features(far + 0.05 * rng.normal(size=(50, 12)), rng.integers(0, 5, 50))
    query = features(far + 0.05 * rng.normal(size=(30, 12)), rng.integers(0, 5, 30))
    known, asked = knn._unit(gallery.values), knn._unit(query.values)
    blunt = gallery.labels[(asked @ known.T).argmax(axis=1)].tolist()
    wanted = naive_knn(gallery, query, k)
    assert knn.predict(gallery, query, k).tolist() == wanted
    if k == 1:
        assert blunt != wanted  # the case is one


def test_of_equally_near_neighbours_the_first_of_the_gallery_counts():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(10, 33)).astype(np.float32), 4, axis=0)
    values[1::2] *= 2  # as near by angle
    order = rng.permutation(40)
    gallery = features(values[order], rng.integers(0, 6, 40))
    query = features(rng.normal(size=(25, 33)), np.zeros(25))
    assert knn.predict(gallery, query).tolist() == naive_knn(gallery, query, 1)


def test_nearest_of_each_class_ranks_the_classes():
    gallery, query = noisy(60, 6, 9, 1), noisy(41, 6, 9, 2)
    answers, nearest = knn.search(gallery, query, 11)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query.values, gallery.values)]
    cosines = unit[0] @ unit[1].T
    for label in range(11):
        of = cosines[:, gallery.labels == label]
        wanted = of.max(axis=1) if of.size else -np.ones(41)
        np.testing.assert_allclose(nearest[:, label], wanted, atol=1e-6)
    found, *_ = knn.score(gallery, query, 11)
    top = np.argsort(-nearest, axis=1)[:, :5]
    assert found.top5 == pytest.approx((top == query.labels[:, None]).any(axis=1).mean())
    assert found.top1 == pytest.approx((answers == query.labels).mean())


def test_knn_is_by_angle_not_by_length():
    gallery = features(np.array([[100.0, 60.0], [0.1, 0.0]]), np.array([1, 0]))
    query = features(np.array([[50.0, 1.0]]), np.array([0]))
    assert knn.predict(gallery, query).tolist() == [0]


def test_ties_of_a_vote_go_to_the_nearer():
    angles = np.array([0.3, 0.1, 0.2, 0.4, 2.0])
    gallery = features(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([7, 3, 7, 3, 9]))
    query = features(np.array([[1.0, 0.0]]), np.array([3]))
    assert knn.predict(gallery, query, 2).tolist() == [3]
    assert knn.predict(gallery, query, 3).tolist() == [7]
    assert knn.predict(gallery, query, 4).tolist() == [3]
    assert knn.predict(gallery, query, 99).tolist() == [3]  # no more neighbours than there are


# ----------------------------------------------------------------------------------------------- linear


def by_autograd(
    x: torch.Tensor, y: torch.Tensor, classes: int, lr: float, config: LinearConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """The probe as anyone would write it; returns weight (D, C) and bias (C,)."""
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    plan = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(config.milestones), 0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(config.epochs):
        for at in torch.randperm(len(x), generator=generator).split(config.batch_size):
            optimiser.zero_grad()
            F.cross_entropy(layer(x[at]), y[at]).backward()
            optimiser.step()
        plan.step()
    return layer.weight.detach().T, layer.bias.detach()


@pytest.mark.parametrize(
    ("epochs", "batch"), [(1, 64), (6, 64), (6, 20)], ids=["one step", "whole batches", "with a rest"]
)
def test_every_head_of_the_sweep_matches_autograd_and_torchs_sgd(epochs, batch):
    data = noisy(64, 6, 4, 0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    config = LinearConfig(epochs=epochs, batch_size=batch, milestones=(3,))
    lrs = (0.05, 0.5)
    found = linear.fit(x, y, 4, lrs, config, 3)
    assert (found.weight.shape, found.bias.shape) == ((2, 6, 4), (2, 4))
    for head, lr in enumerate(lrs):
        weight, bias = by_autograd(x, y, 4, lr, config)
        torch.testing.assert_close(found.weight[head], weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.bias[head], bias, rtol=1e-5, atol=1e-5)


def test_every_head_of_the_sweep_equals_its_own_run():
    """The last rates are far too high: any difference in rounding would be blown up to the size of the weights."""
    data = noisy(300, 20, 7, 0, 4.0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    config = LinearConfig(epochs=100, batch_size=64, milestones=(80,))
    lrs = (0.01, 0.1, 1.0, 10.0, 30.0)
    together = linear.fit(x, y, 7, lrs, config, 0)
    assert not torch.allclose(together.weight[0], together.weight[2], atol=1e-3)
    for head, lr in enumerate(lrs):
        alone = linear.fit(x, y, 7, (lr,), config, 0)
        size = float(alone.weight.abs().max())
        assert float((together.weight[head] - alone.weight[0]).abs().max()) < 1e-5 * size
        assert float((together.bias[head] - alone.bias[0]).abs().max()) < 1e-5 * size


def test_the_heads_are_seen_after_every_epoch():
    data = noisy(40, 5, 3, 0)
    x, y = torch.from_numpy(data.values), torch.from_numpy(data.labels)
    seen = []
    config = LinearConfig(epochs=4, batch_size=16, milestones=(2,))
    last = linear.fit(x, y, 3, (0.1,), config, 0, lambda heads: seen.append(heads.weight.clone()))
    for epochs, weight in enumerate(seen, 1):
        shorter = config.model_copy(update={"epochs": epochs})
        torch.testing.assert_close(weight, linear.fit(x, y, 3, (0.1,), shorter, 0).weight)
    assert len(seen) == 4
    torch.testing.assert_close(seen[-1], last.weight)


def test_the_learning_rate_is_chosen_without_the_test_split():
    train_split, test_split = noisy(120, 8, 4, 0, 2.0), noisy(60, 8, 4, 1, 2.0)
    config = LinearConfig(epochs=8, batch_size=32, milestones=(6,), lrs=(1e-4, 0.1, 30.0))
    honest = linear.probe(train_split, test_split, 4, config)
    permuted = replace(test_split, labels=np.roll(test_split.labels, 7))
    cheated = linear.probe(train_split, permuted, 4, config)
    assert (honest.lr, honest.held_out) == (cheated.lr, cheated.held_out)
    assert honest.predictions.tolist() == cheated.predictions.tolist()
    assert honest.last.top1 != cheated.last.top1
    assert honest.last.top1 == pytest.approx((honest.predictions == test_split.labels).mean())
    assert honest.best.top1 >= honest.last.top1


def test_the_best_epoch_is_the_first_best_of_the_recorded_ones():
    train_split, test_split = noisy(120, 8, 4, 0, 2.0), noisy(60, 8, 4, 1, 2.0)
    config = LinearConfig(epochs=12, batch_size=32, milestones=(), lrs=(3.0,))
    reached = []
    for epochs in range(1, 13):
        shorter = config.model_copy(update={"epochs": epochs})
        reached.append(linear.probe(train_split, test_split, 4, shorter).last.top1)
    found = linear.probe(train_split, test_split, 4, config)
    assert found.best.top1 == max(reached) > found.last.top1
    assert found.best_epoch == 1 + reached.index(max(reached))
    assert found.held_out is None  # one rate: nothing was swept


def test_the_chosen_rate_is_the_best_on_the_held_out_tenth():
    train_split, test_split = noisy(100, 8, 4, 0, 1.5), noisy(10, 8, 4, 1)
    config = LinearConfig(epochs=3, batch_size=10, milestones=(), lrs=(300.0, 0.1, 100.0))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(5))
    (x,) = linear.standardise(train_split.values)
    points, y = torch.from_numpy(x), torch.from_numpy(train_split.labels)
    logits = linear.fit(points[order[10:]], y[order[10:]], 4, config.lrs, config, 5).logits(
        points[order[:10]]
    )
    held = y[order[:10]]
    losses = [float(torch.nn.functional.cross_entropy(head, held)) for head in logits]
    found = linear.probe(train_split, test_split, 4, config, seed=5)
    assert found.lr == config.lrs[int(np.argmin(losses))] == 0.1
    assert len(set(losses)) > 1
    assert found.held_out == pytest.approx((logits[1].argmax(dim=1) == held).float().mean().item())


def test_separable_data_reach_one_hundred_percent():
    found = linear.probe(
        noisy(90, 8, 3, 0, 0.05), noisy(60, 8, 3, 1, 0.05), 3, LinearConfig(epochs=20, milestones=())
    )
    assert (found.last.top1, found.best.top1, found.last.balanced, found.held_out) == (1.0, 1.0, 1.0, 1.0)


def test_standardise_centres_and_scales_by_the_training_split_alone():
    rng = np.random.default_rng(0)
    one, other = rng.normal(5, 3, (200, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    found, moved = linear.standardise(one, other)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(moved, (other - one.mean(axis=0)) / one.std(axis=0), rtol=1e-4, atol=1e-5)
    assert found.dtype == moved.dtype == np.float32


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1000.1])
def test_constant_features_become_zero_whatever_their_size(value):
    one = np.full((1000, 1), value, np.float32)  # its float32 mean is off in the last digits
    found, moved = linear.standardise(one, one[:5] + np.float32(0.01))
    assert (found == 0).all()
    assert (moved == 0).all()


# --------------------------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """12 training and 4 test sticks of 3 classes; tests must not write into it."""
    return Packed(sticks(tmp_path_factory.mktemp("sticks") / "packed"))


@pytest.fixture
def floor(data: Packed, tmp_path: Path) -> Path:
    """A finished run."""
    train(run(data.folder, tmp_path / "floor", kind="random"))
    return tmp_path / "floor"


def cache(folder: Path, split: str = "train") -> Path:
    return folder / "features" / f"xsub-{split}.safetensors"


def test_features_are_those_of_the_frozen_encoder_on_central_windows(data, floor):
    loaded = checkpoint.load_encoder(floor, torch.device("cpu"))
    found = extract(floor, data, "xsub", "test", "cpu", batch_size=3)
    assert found.rows.tolist() == [0, 4, 8, 12]
    assert found.sample_ids(data) == ["s00", "s04", "s08", "s12"]
    assert found.labels.tolist() == [0, 1, 2, 0]
    clips = Clips(data, found.rows, loaded.input, torch.device("cpu"))
    with torch.no_grad():
        for place in range(4):
            wanted = loaded.module(clips.test(torch.tensor([place])))[0].numpy()
            np.testing.assert_allclose(found.values[place], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stream", ["bone", "motion"])
def test_a_run_is_evaluated_on_its_own_stream(data, tmp_path, stream):
    train(run(data.folder, tmp_path / "own", f"training.input.stream={stream}", kind="random"))
    loaded = checkpoint.load_encoder(tmp_path / "own", torch.device("cpu"))
    found = extract(tmp_path / "own", data, "xsub", "test", "cpu")
    for name in ("joint", stream):
        config = loaded.input.model_copy(update={"stream": name})
        clips = Clips(data, found.rows, config, torch.device("cpu")).test(torch.arange(4))
        with torch.no_grad():
            wanted = loaded.module(clips).numpy()
        assert np.allclose(found.values, wanted, rtol=1e-4, atol=1e-6) == (name == stream)


def test_features_are_cached(data, floor):
    first = extract(floor, data, "xsub", "train")
    stamp = cache(floor).stat().st_mtime_ns
    again = extract(floor, data, "xsub", "train")
    assert cache(floor).stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(first.values, again.values)


def test_other_weights_are_encoded_anew(data, floor):
    first = extract(floor, data, "xsub", "train").values
    found, facts = checkpoint.load(floor / checkpoint.ENCODER)
    changed = {k: v + 0.1 if v.is_floating_point() else v for k, v in found.items()}
    checkpoint.save(floor / checkpoint.ENCODER, changed, facts)
    assert not np.allclose(extract(floor, data, "xsub", "train").values, first)
    checkpoint.save(floor / checkpoint.ENCODER, found, facts)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


def test_other_data_are_encoded_anew(data, floor, tmp_path):
    first = extract(floor, data, "xsub", "train").values
    rng = np.random.default_rng(7)
    joints = [rng.normal(size=(9, 1, 5, 3)) for _ in range(COUNT)]
    folder = sticks(tmp_path / "other", joints=joints)
    text = (folder / "packed.json").read_text()
    (folder / "packed.json").write_text(text.replace("f" * 32, "e" * 32))
    other = extract(floor, Packed(folder), "xsub", "train").values
    assert other.shape == first.shape
    assert not np.allclose(other, first)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_cache_is_made_again(data, floor, damage):
    first = extract(floor, data, "xsub", "train").values
    path = cache(floor)
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello" * 50}[damage])
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)
    assert path.read_bytes() == whole


def spoil(folder: Path, value: float) -> None:
    """Set a weight of an encoder."""
    found, facts = checkpoint.load(folder / checkpoint.ENCODER)
    name = next(name for name, tensor in found.items() if name.endswith("weight") and tensor.ndim > 1)
    found[name] = torch.full_like(found[name], value)
    checkpoint.save(folder / checkpoint.ENCODER, found, facts)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.nan, r"encoder\.safetensors holds weights that are NaN or infinite, expected finite numbers"),
        (
            3e38,
            r"floor: of its train features of xsub, \d+ of 12 are NaN or infinite, expected finite numbers",
        ),
    ],
)
@pytest.mark.parametrize("protocol", [knn.outcome, linear.outcome])
def test_an_encoder_that_diverged_is_refused_and_nothing_is_kept(data, floor, value, said, protocol):
    spoil(floor, value)
    with pytest.raises(
        CheckpointError, match=f"{said}.*; train it again with a lower learning rate"
    ) as caught:
        protocol(Subject(floor, data, "xsub", lines()[0].recipe, 0))
    assert "\n" not in str(caught.value)
    assert not (floor / "features").exists()
    assert not (floor / "evaluations").exists()


def test_cached_features_that_are_not_finite_are_made_again(data, floor):
    from safetensors import safe_open
    from safetensors.numpy import save_file

    first = extract(floor, data, "xsub", "train").values
    with safe_open(cache(floor), framework="np") as handle:
        told = handle.metadata()
    save_file({"features": np.full_like(first, np.nan)}, cache(floor), told)
    np.testing.assert_array_equal(extract(floor, data, "xsub", "train").values, first)


@pytest.mark.parametrize("damage", ["gone", "cut", "of another encoder"])
def test_a_finding_without_its_head_is_made_again(data, floor, damage):
    subject = Subject(floor, data, "xsub", lines()[0].recipe, 0)
    first = linear.outcome(subject)
    (path,) = (floor / "evaluations").glob("linear-*.safetensors")
    weights = linear.head_of(subject)[0].weight.clone()  # it lies in the file, which is cut in place
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    else:
        tensors, _ = checkpoint.load(path)
        checkpoint.save(path, tensors, {"key": "another"})
    with pytest.raises(CheckpointError, match=r"no head of this encoder.*; run `c2vl-eval linear` on"):
        linear.head_of(subject)
    assert linear.outcome(subject).finding.last == first.finding.last
    assert torch.equal(linear.head_of(subject)[0].weight, weights)


def test_unlabelled_samples_are_refused_naming_the_first(floor, tmp_path):
    packed = Packed(sticks(tmp_path / "packed", labels=[-1 if n in {4, 8} else 0 for n in range(COUNT)]))
    with pytest.raises(
        DataError,
        match=r"2 of 4 test samples of xsub have no label \(first: s04\); evaluation needs all of them",
    ):
        extract(floor, packed, "xsub", "test")


def test_an_unfinished_run_says_to_finish_it(data, tmp_path):
    with pytest.raises(StoppedError):
        train(run(data.folder, tmp_path / "run"), stop_after(1))
    with pytest.raises(
        CheckpointError,
        match="run is an unfinished run; run the same c2vl-train command again to finish it",
    ):
        extract(tmp_path / "run", data, "xsub", "train")
    with pytest.raises(
        CheckpointError,
        match=r"encoder\.safetensors does not exist; give the folder of a finished run",
    ):
        extract(tmp_path / "nowhere", data, "xsub", "train")


def test_data_of_another_joint_layout_are_refused_naming_both(floor, tmp_path):
    layout = type(STICK)("kite", ("hip", "chest", "tail"), (1, 1, 0))
    joints = [np.zeros((5, 1, 3, 3))] * 4
    packed = Packed(write_packed(tmp_path / "packed", joints, layout=layout))
    with pytest.raises(
        CheckpointError,
        match=r"was trained on the joints of layout 'stick' \(5\), .*packed holds 'kite' \(3\); use data of the same layout",
    ):
        extract(floor, packed, "xsub", "train")


# ------------------------------------------------------------------------------------------------ tables


def test_majority_is_the_training_splits_largest_class():
    assert metrics.majority(np.array([2, 2, 0]), np.array([2, 1, 0, 2]), 3).top1 == 0.5
    assert metrics.majority(np.array([0, 0, 2]), np.array([2, 1, 0, 2]), 3).top1 == 0.25


def lines(*targets: str, more: tuple[str, ...] = ()) -> list[benchmark.Entry]:
    return benchmark.entries("debug", [*BASE, *DEBUG, *more], targets)


def test_every_table_has_its_three_controls():
    found = lines()
    assert [(line.name, line.role, line.kind) for line in found] == [
        ("partition(cosine)", "pretrained", "pretrain"),
        ("random encoder", "floor", "random"),
        ("supervised", "ceiling", "supervised"),
        ("shuffled pairs", "shuffled", "pretrain"),
    ]
    pairs = [line.recipe.training.pretrain.pairs for line in found]
    assert pairs == ["true", "true", "true", "shuffled"]


def test_shuffled_pairs_differ_from_the_first_line_in_the_pairs_alone():
    first, *_, control = lines("hard", "intra")
    assert first.recipe.training.pretrain.targets.kind == "hard"
    dumps = [line.recipe.model_dump(mode="json") for line in (first, control)]
    dumps[1]["training"]["pretrain"]["pairs"] = "true"
    assert dumps[0] == dumps[1]


def test_lines_have_a_name_and_a_folder_each(tmp_path):
    found = lines("hard", "partition(0.3)", "partition(0.7)", "partition(cosine)", "blend(constant)")
    names = [line.name for line in found if line.role == "pretrained"]
    assert names == ["hard", "partition(0.3)", "partition(0.7)", "partition(cosine)", "blend(constant)"]
    folders = {line.folder(tmp_path, seed) for line in found for seed in (0, 1)}
    assert len(folders) == 2 * len(found)
    assert found[3].folder(tmp_path, 1) == tmp_path / "partition-cosine-seed1"


def test_a_value_named_twice_is_one_line():
    found = lines("partition", "hard", "partition(cosine)", "hard", "partition(constant)", "partition(0.5)")
    assert [line.name for line in found if line.role == "pretrained"] == [
        "partition(cosine)",
        "hard",
        "partition(constant)",
    ]


def test_a_value_named_as_the_recipes_own_keeps_the_recipes_numbers():
    own = ("training.pretrain.targets.beta=0.4", "training.pretrain.targets.average=true")
    same, other, *_ = lines("partition(cosine)", "partition(constant)", more=own)
    targets = same.recipe.training.pretrain.targets
    assert (targets.beta, targets.average) == (0.4, True)
    assert other.recipe.training.pretrain.targets.beta == 0.2


def test_an_unknown_target_names_the_known_ones():
    with pytest.raises(ConfigError, match="'soft' is none of hard, intra, inter, blend"):
        lines("soft")


@pytest.fixture(scope="module")
def table(data: Packed, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    out = tmp_path_factory.mktemp("table")
    return out, benchmark.run_table(data, "xsub", lines("hard"), range(2), out)


def test_raw_joints_are_the_flattened_input_and_need_no_run(table, data, tmp_path):
    _, results = table
    row = results.rows[-1]
    assert (row.name, row.run, row.epochs) == ("raw joints", "", 0)
    config = lines("hard")[0].recipe.training.input
    gallery, query = (raw_joints(data, "xsub", split, config) for split in ("train", "test"))
    clip = Clips(
        data, gallery.rows, config.model_copy(update={"frames": min(16, config.frames)}), torch.device("cpu")
    )
    assert np.allclose(gallery.values[0], clip.test(torch.tensor([0]))[0].reshape(-1).numpy())
    assert row.knn == knn.accuracy(knn.predict(gallery, query), query.labels)


def test_a_table_holds_every_line_and_seed_with_its_controls(table, data):
    out, results = table
    roles = [(row.role, row.seed) for row in results.rows]
    assert roles == [
        *((role, seed) for role in ("pretrained", "floor", "ceiling", "shuffled") for seed in (0, 1)),
        ("baseline", 0),
    ]
    assert (results.train, results.test, results.chance) == (12, 4, pytest.approx(1 / 3))
    train_labels, test_labels = (
        data.labels()[data.select("xsub", split).rows] for split in ("train", "test")
    )
    assert results.majority == metrics.majority(train_labels, test_labels, 3).top1
    assert load(out) == results
    pretrained, floor, ceiling, shuffled, _ = (results.of(name)[0] for name in results.names())
    assert [row.epochs for row in (pretrained, floor, ceiling, shuffled)] == [4, 0, 4, 4]
    assert [row.knowledge for row in (pretrained, floor, ceiling, shuffled)] == ["both", "", "", "both"]
    assert [row.derived_from_joints for row in (pretrained, floor)] == [True, False]
    assert all(row.samples == 12 and 0 <= row.linear <= row.linear_best <= 1 for row in results.rows)
    assert results.main_run() == pretrained


def test_a_tables_numbers_are_those_of_its_protocols(table, data):
    row = table[1].rows[1]
    config = lines()[0].recipe.evaluation.linear
    gallery, query = (extract(table[0] / row.run, data, "xsub", split) for split in ("train", "test"))
    assert row.knn == knn.accuracy(knn.predict(gallery, query), query.labels)
    found = linear.probe(gallery, query, 3, config, seed=1)
    assert (row.linear, row.linear_best, row.linear_lr) == (found.last.top1, found.best.top1, found.lr)
    assert (row.linear_top5, row.linear_balanced) == (None, found.last.balanced)


def test_a_table_made_again_trains_nothing_and_grows_by_lines(table, data):
    out, results = table
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.safetensors")}
    assert len(stamps) == 8 + 6 + 4  # every encoder; a checkpoint for all but the floors; projectors
    again = benchmark.run_table(data, "xsub", lines("hard", "intra"), range(2), out)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.names() == ["hard", "intra", "random encoder", "supervised", "shuffled pairs", "raw joints"]
    assert again.of("hard") == results.of("hard")


def test_a_result_is_not_found_twice(table, data, monkeypatch):
    out, results = table

    def never(*_, **__):
        raise AssertionError("computed again")

    for name in ("knn.search", "linear.fit"):
        part, function = name.split(".")
        monkeypatch.setattr({"knn": knn, "linear": linear}[part], function, never)
    row = results.rows[0]
    subject = Subject(out / row.run, data, "xsub", lines("hard")[0].recipe, row.seed)
    assert knn.outcome(subject).finding.last.top1 == row.knn
    again = linear.outcome(subject)
    assert again.finding.last.top1 == row.linear
    assert again.predictions is not None
    assert again.predictions.sample_ids == ["s00", "s04", "s08", "s12"]
    other = replace(subject, recipe=lines("hard", more=("evaluation.linear.epochs=6",))[0].recipe)
    with pytest.raises(AssertionError, match="computed again"):
        linear.outcome(other)


def test_the_floors_of_a_table_are_scored_in_full(table, data):
    results = table[1]
    assert results.chance_score == Score(top1=1 / 3, top5=None, balanced=1 / 3)
    assert results.majority_score is not None
    assert results.majority_score.top1 == results.majority


def test_a_class_without_training_samples_is_refused_by_name(tmp_path):
    labels = [3 if n % 4 == 0 else n % 3 for n in range(COUNT)]
    packed = Packed(sticks(tmp_path / "packed", labels=labels))
    with pytest.raises(
        DataError,
        match=r"1 of 1 classes of the test split have no training sample \(first: 'class 3'\)",
    ):
        benchmark.run_table(packed, "xsub", lines("hard")[1:2], [0], tmp_path / "out")


def test_val_never_looks_at_test_subjects(data, tmp_path):
    results = benchmark.run_table(data, "xsub-val", lines("hard"), [0], tmp_path)
    assert (results.train, results.test) == (9, 3)


def test_results_that_are_absent_or_damaged_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"results\.json does not exist; run `c2vl-eval benchmark` first"):
        load(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"dataset": 1}))
    with pytest.raises(
        DataError, match=r"damaged .*; run `c2vl-eval benchmark` again, finished runs are kept"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (("rows", 0, "knn"), "rows.0.knn: Input should be a finite number"),
        (
            ("rows", 1, "findings", 0, "last", "top1"),
            "rows.1.findings.0.last.top1: Input should be a finite number",
        ),
        (("majority_score", "balanced"), "majority_score.balanced: Input should be a finite number"),
        (("chance",), "chance: Input should be a finite number"),
    ],
)
def test_a_number_that_is_none_is_damage_and_said_where(table, tmp_path, place, said):
    whole = json.loads((table[0] / "results.json").read_text())
    score = {"top1": 0.5, "top5": None, "balanced": 0.5}
    whole["rows"][1]["findings"] = [{"protocol": "semi", "last": score}]
    (tmp_path / "results.json").write_text(json.dumps(whole))
    assert load(tmp_path).rows[1].findings[0].last == Score(**score)
    held = whole
    for step in place[:-1]:
        held = held[step]
    held[place[-1]] = float("nan")
    (tmp_path / "results.json").write_text(json.dumps(whole))
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert f"results.json: damaged ({said}); run `c2vl-eval benchmark` again" in str(caught.value)


def test_mean_and_deviation_are_percent_over_seeds():
    assert mean_std([0.6123]) == "61.2"
    assert mean_std([0.5, 0.7]) == "60.0 ± 14.1"
