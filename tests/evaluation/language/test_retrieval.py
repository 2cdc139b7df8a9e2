"""Retrieval between clips and captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from c2vl_evaluation import cache
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.language import retrieval, search, shared_space
from c2vl_manifests.errors import DataError
from c2vl_training.dataset import PackedDataset
from c2vl_training.inference import load_joint_embedding
from c2vl_training.knowledge import Knowledge
from c2vl_training.run_folder import Run
from c2vl_training.trainer import train
from support.evaluation import another, manifest, spoken
from support.packed import COUNT
from support.training import recipe, run


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def naive(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    """Sort the gallery for each query, what is asked for behind all that are equally near."""
    found: list[list[int]] = [[], []]
    for q, mine in zip(queries.astype(float), own, strict=True):
        near = [round(float(q @ g), 12) for g in gallery.astype(float)]
        order = sorted(range(len(gallery)), key=lambda j: (-near[j], j == mine))
        found[0].append(order.index(mine) + 1)
        order = sorted(range(len(gallery)), key=lambda j: (-near[j], labels[j] == labels[mine]))
        found[1].append(next(n for n, j in enumerate(order, 1) if labels[j] == labels[mine]))
    return found


# ----------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("seed", range(6))
def test_ranks_match_a_loop_with_many_ties(seed, monkeypatch):
    monkeypatch.setattr(retrieval, "_CHUNK", 7)  # several chunks and a rest
    rng = np.random.default_rng(seed)
    gallery, queries = unit(30, 3, seed=seed)[rng.integers(0, 12, 30)], unit(23, 3, seed=seed + 50)
    labels = rng.integers(0, 5, 30)
    owns = np.stack([rng.permutation(30)[:23] for _ in range(3)])
    ranks, class_ranks, nearest, cosine = retrieval.search_ranks(queries, gallery, owns, labels)
    assert class_ranks is not None
    for n in range(3):
        wanted = naive(queries.numpy(), gallery.numpy(), owns[n], labels)
        assert [ranks[n].tolist(), class_ranks[n].tolist()] == wanted
    near = (queries.double() @ gallery.double().T).numpy()
    np.testing.assert_allclose(cosine, near[np.arange(23), owns[0]], atol=1e-9)
    assert nearest.shape == (23, 10)
    np.testing.assert_allclose(np.take_along_axis(near, nearest, axis=1), -np.sort(-near, axis=1)[:, :10], atol=1e-9)


def test_an_encoder_that_says_the_same_of_all_clips_finds_nothing():
    gallery = unit(1, 8).repeat(20, 1)
    own, labels = np.arange(20)[None], np.arange(20) % 4
    ranks, class_ranks, *_ = retrieval.search_ranks(unit(20, 8, seed=1), gallery, own, labels)
    assert class_ranks is not None
    assert set(ranks.ravel()) == {20}
    assert set(class_ranks.ravel()) == {16}  # behind all clips of the other classes
    assert retrieval.recall(ranks[0], 20) == retrieval.Recall(r1=0, r5=0, r10=0, median=20)


def test_equal_captions_are_no_hit_for_one_another():
    """Four clips share a caption: each lies at a place of its own, so only one of them can be first."""
    gallery = unit(40, 6)
    queries = gallery.clone()
    queries[:4] = gallery[0]
    ranks, *_ = retrieval.search_ranks(queries, gallery, np.arange(40)[None], None)
    assert ranks[0, 0] == 1
    assert (ranks[0, 1:4] > 1).all()
    assert len(set(ranks[0, :4])) == 4
    bound = retrieval.ceiling(np.array([4] + [1] * 36), 40)
    assert bound.r1 == pytest.approx(37 / 40)
    found = retrieval.recall(ranks[0], 40)
    assert found.r1 == bound.r1  # reached here: the others' captions are their own clips
    twins = gallery.clone()
    twins[1] = twins[0]  # and of two equal clips neither is found at the first place
    ranks, *_ = retrieval.search_ranks(queries, twins, np.arange(40)[None], None)
    assert ranks[0, :2].tolist() == [2, 2]


@pytest.mark.parametrize("seed", range(4))
def test_no_encoder_exceeds_the_ceiling(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 6, 25)
    bound = retrieval.ceiling(np.unique(group, return_counts=True)[1], 25)
    for trial in range(30):
        queries = unit(6, 5, seed=100 * seed + trial)[group]
        gallery = F.normalize(queries + 0.1 * unit(25, 5, seed=trial), dim=1)
        ranks, *_ = retrieval.search_ranks(queries, gallery, np.arange(25)[None], None)
        found = retrieval.recall(ranks[0], 25)
        assert found.r1 <= bound.r1
        assert found.r5 <= bound.r5
        assert found.r10 <= bound.r10
        assert found.median >= bound.median


def test_chance_is_that_of_galleries_in_random_order():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 24, p=[0.5, 0.3, 0.15, 0.05])
    members = np.bincount(labels)[labels]
    ranks = []
    for _ in range(6000):
        order = rng.permutation(24)
        ranks.append([np.argmax(labels[order] == label) + 1 for label in range(4)])
    drawn = np.array(ranks)[:, labels]
    found = retrieval.chance(members, 24)
    for k, share in ((1, found.r1), (5, found.r5), (10, found.r10)):
        assert share == pytest.approx((drawn <= k).mean(), abs=0.01)
    assert abs(found.median - np.median(drawn)) <= 1
    own = retrieval.chance(np.ones(24, np.int64), 24)
    assert (own.r1, own.r5, own.median) == (pytest.approx(1 / 24), pytest.approx(5 / 24), 12)


def test_recall_at_k_says_nothing_of_galleries_of_k_clips():
    found = retrieval.recall(np.array([1, 2, 5]), 5)
    assert (found.r1, found.r5, found.r10, found.median) == (pytest.approx(1 / 3), None, None, 2)


def test_vectors_that_are_not_finite_are_refused():
    broken = unit(3, 4)
    broken[1, 0] = torch.nan
    for pair in ((broken, unit(3, 4)), (unit(3, 4), broken)):
        with pytest.raises(DataError, match="NaN or infinite: the encoder diverged"):
            retrieval.search_ranks(*pair, np.arange(3)[None], None)


# -------------------------------------------------------------------------------------------- protocol


@pytest.mark.parametrize("pooling", ["mean", "ordered", "random"])
@pytest.mark.parametrize("caption", ["mean", "one"])
def test_the_query_of_a_clip_is_its_own_captions(tmp_path, pooling, caption):
    ok = np.ones((COUNT, 4), bool)
    ok[4] = [True, False, False, True]
    ok[8] = False  # a test clip that nobody described
    folder = spoken(tmp_path / "packed", language_ok=ok)
    sets = (f"training.pretrain.pooling={pooling}", "training.pretrain.standardise=true")
    made = run(folder, tmp_path / "main", *sets)
    train(made)
    packed = PackedDataset(folder)
    subject = EvalContext(tmp_path / "main", packed, "xsub", recipe(), 0)
    found = retrieval.evaluate(subject, caption)
    space, rows = load_joint_embedding(subject.run), packed.select("xsub", "test").rows
    assert rows.tolist() == [0, 4, 8, 12]
    assert (found.queries, found.gallery, found.distinct) == (3, 4, 3)
    vectors = packed.knowledge("language")[0]
    queries = []
    for row in (0, 4, 12):
        if caption == "one":
            queries.append(space.knowledge("language", vectors[row, [0 if row == 4 else 1]])[0])
            continue
        own = vectors[row][ok[row]].astype(np.float32)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        if pooling == "ordered":  # slots are quarters here; an empty one says what the whole says
            mean = own.mean(axis=0) / np.linalg.norm(own.mean(axis=0))
            parts = [own[0], mean, mean, own[1]] if row == 4 else list(own)
            raw = torch.from_numpy(np.concatenate(parts) / 2)
            raw = (raw - space.centre["language"]) / space.scale["language"]
            queries.append(space.model.knowledge("language", raw[None])[0])
        else:
            queries.append(space.knowledge("language", own.mean(axis=0)[None])[0])
    clips, _ = shared_space.open_space(subject).clips("test")
    wanted = naive(torch.stack(queries).numpy(), clips.numpy(), np.array([0, 1, 3]), packed.labels()[rows])
    (path,) = (subject.run / cache.FOLDER).glob("retrieval-*.parquet")
    table = pq.read_table(path)
    assert table["sample_id"].to_pylist() == packed.sample_ids([0, 4, 12])
    assert [table["rank"].to_pylist(), table["class_rank"].to_pylist()] == wanted
    assert found.clip.last.median == np.median(wanted[0])
    assert found.same_class is not None
    assert found.same_class.last.r1 == pytest.approx(np.mean(np.array(wanted[1]) == 1))


@pytest.mark.parametrize(("pooling", "distinct"), [("mean", 2), ("ordered", 3)])
def test_captions_that_repeat_lower_the_ceiling(tmp_path, pooling, distinct):
    vectors = np.random.default_rng(2).normal(size=(COUNT, 4, 5))
    vectors[4], vectors[8] = vectors[0], vectors[0][::-1]  # the same captions, once at other times
    folder = spoken(tmp_path / "packed", language=vectors)
    train(run(folder, tmp_path / "main", f"training.pretrain.pooling={pooling}"))
    found = retrieval.evaluate(EvalContext(tmp_path / "main", PackedDataset(folder), "xsub", recipe(), 0))
    assert (found.queries, found.distinct) == (4, distinct)
    assert found.ceiling.r1 == distinct / 4


def test_permuted_captions_are_at_chance(tmp_path, recipe, work):
    """On the synthetic set in NTU's format, with captions of the classical encoder."""
    packed = PackedDataset(work)
    train(Run("pretrain", packed, recipe, "xsub", 0, tmp_path / "main"))
    found = retrieval.evaluate(EvalContext(tmp_path / "main", packed, "xsub", recipe, 0))
    own = found.clip
    assert own.shuffled.r5 == pytest.approx(own.chance.r5, abs=4 * own.shuffled_std.r5 / found.draws**0.5)
    assert own.shuffled_std.r5 > 0
    assert found.same_class is not None
    assert own.last.r1 <= found.same_class.last.r1
    assert "derived from joints" in found.notes[0]
    (path,) = (tmp_path / "main" / cache.FOLDER).glob("retrieval-*.json")
    before = path.stat().st_mtime_ns
    assert retrieval.evaluate(EvalContext(tmp_path / "main", packed, "xsub", recipe, 0)) == found
    assert path.stat().st_mtime_ns == before


def test_clips_without_labels_are_searched_all_the_same(subject, tmp_path):
    def forget(folder: Path) -> None:
        np.save(folder / "labels.npy", np.full(COUNT, -1, np.int16))

    other = another(subject, tmp_path, forget)
    found, labelled = retrieval.evaluate(other), retrieval.evaluate(subject)
    assert found.same_class is None
    assert found.clip == labelled.clip
    hits = search.search(other, "wave", 4).hits
    assert [hit.name for hit in hits] == [""] * 4
    assert [hit.sample_id for hit in hits] == [hit.sample_id for hit in search.search(subject, "wave", 4).hits]


def test_a_test_split_without_captions_is_refused(subject, tmp_path):
    def silence(folder: Path) -> None:
        np.save(folder / "language_ok.npy", np.zeros((COUNT, 4), bool))

    with pytest.raises(DataError, match=r"none of the 4 test clips of .* has a caption"):
        retrieval.evaluate(another(subject, tmp_path, silence))


def test_captions_of_another_encoder_are_refused(subject, tmp_path):
    def widen(folder: Path) -> None:
        np.save(folder / "language.npy", np.ones((COUNT, 4, 7), np.float16))
        manifest(folder, language_dim=7)

    with pytest.raises(DataError, match="vectors of 7 numbers; this run was trained on vectors of another encoder"):
        retrieval.evaluate(another(subject, tmp_path, widen))


def test_queries_are_pooled_as_the_trainer_pools(subject):
    packed, shared = subject.packed, shared_space.open_space(subject)
    rows = packed.select("xsub", "train").rows
    config = recipe("training.pretrain.standardise=true").training.pretrain
    pooled = Knowledge(packed, rows, "language", config).epoch(torch.Generator())
    wanted = shared.space.model.knowledge("language", pooled)
    torch.testing.assert_close(retrieval._queries(shared, rows, "mean")[0], wanted)
