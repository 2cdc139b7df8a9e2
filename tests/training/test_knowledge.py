"""Pooling and standardisation of vision-language vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import DataError
from c2vl_manifests.recipe_training import PretrainConfig
from c2vl_training.dataset import PackedDataset
from c2vl_training.knowledge import Knowledge, idf_weights, sides
from support.packed import STICK, random_joints, write_packed

SLOTS, DIM = 10, 6


@pytest.fixture
def spoken(tmp_path) -> tuple[PackedDataset, np.ndarray, np.ndarray]:
    """Seven samples of 10 slots, a third unusable and filled with numbers that must not matter."""
    rng = np.random.default_rng(5)
    vectors = (rng.normal(size=(7, SLOTS, DIM)) * rng.uniform(0.5, 20, size=(7, SLOTS, 1))).astype(np.float16)
    ok = rng.random((7, SLOTS)) > 0.3
    ok[2] = [True] + [False] * 9
    vectors[~ok] = np.where(rng.random(((~ok).sum(), 1)) > 0.5, np.nan, 1e4)
    folder = write_packed(tmp_path / "packed", random_joints([5] * 7, 1, STICK), vision=vectors, vision_ok=ok)
    return PackedDataset(folder), vectors.astype(np.float64), ok


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def knowledge(packed: PackedDataset, rows: Sequence[int], **config: Any) -> Knowledge:
    return Knowledge(packed, np.array(rows), "vision", PretrainConfig(**config))


def test_mean_pooling_matches_a_loop_over_usable_slots(spoken):
    packed, vectors, ok = spoken
    rows = [6, 0, 2, 3]
    found = knowledge(packed, rows, pooling="mean").epoch(torch.Generator())
    for place, n in enumerate(rows):
        wanted = unit(sum(unit(vectors[n, s]) for s in range(SLOTS) if ok[n, s]))
        np.testing.assert_allclose(found[place].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "ordered"])
def test_lengths_weigh_where_only_the_mean_is_normalised(spoken, pooling):
    packed, vectors, ok = spoken
    found = knowledge(packed, range(7), pooling=pooling, normalise="after_pooling").epoch(torch.Generator())
    quarters = [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)] if pooling == "ordered" else [tuple(range(SLOTS))]
    for n in range(7):
        whole = unit(sum(vectors[n, s] for s in range(SLOTS) if ok[n, s]))
        parts = [[vectors[n, s] for s in slots if ok[n, s]] for slots in quarters]
        wanted = np.concatenate([unit(sum(part)) if part else whole for part in parts]) / math.sqrt(len(parts))
        np.testing.assert_allclose(found[n].numpy(), wanted, atol=1e-5)


def test_lengths_that_were_not_kept_are_missed(tmp_path):
    unit_vectors = np.random.default_rng(0).normal(size=(7, SLOTS, DIM))
    unit_vectors /= np.linalg.norm(unit_vectors, axis=2, keepdims=True)
    folder = write_packed(tmp_path / "packed", random_joints([5] * 7, 1, STICK), vision=unit_vectors)
    with pytest.raises(DataError, match=r"needs the lengths of the vision vectors, and all in .* have length 1"):
        knowledge(PackedDataset(folder), range(7), normalise="after_pooling")


def test_ordered_pooling_is_the_means_of_four_quarters_side_by_side(spoken):
    packed, vectors, ok = spoken
    source = knowledge(packed, range(7), pooling="ordered")
    found = source.epoch(torch.Generator())
    assert source.dim == found.shape[1] == 4 * DIM
    quarters = [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
    fell_back = 0
    for n in range(7):
        whole = unit(sum(unit(vectors[n, s]) for s in range(SLOTS) if ok[n, s]))
        for q, slots in enumerate(quarters):
            seen = [unit(vectors[n, s]) for s in slots if ok[n, s]]
            fell_back += not seen
            wanted = (unit(sum(seen)) if seen else whole) / 2
            np.testing.assert_allclose(found[n, q * DIM : (q + 1) * DIM].numpy(), wanted, atol=1e-5)
    assert fell_back >= 3
    torch.testing.assert_close(found.norm(dim=1), torch.ones(7))


def test_random_pooling_draws_every_usable_slot_and_no_other(spoken):
    packed, vectors, ok = spoken
    source = knowledge(packed, range(7), pooling="random")
    drawn: list[set[int]] = [set() for _ in range(7)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        found = source.epoch(generator).numpy()
        for n in range(7):
            slots = [s for s in range(SLOTS) if ok[n, s] and np.allclose(found[n], unit(vectors[n, s]), atol=1e-5)]
            assert len(slots) == 1
            drawn[n].update(slots)
    assert drawn == [{s for s in range(SLOTS) if ok[n, s]} for n in range(7)]


def test_random_pooling_is_keyed_by_its_generator(spoken):
    source = knowledge(spoken[0], range(7), pooling="random")
    one, same, other = (source.epoch(torch.Generator().manual_seed(seed)) for seed in (4, 4, 5))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("pooling", ["mean", "ordered"])
def test_standardise_uses_the_given_rows_only(spoken, pooling):
    packed = spoken[0]
    rows = [0, 1, 4, 5]
    raw = knowledge(packed, rows, pooling=pooling).epoch(torch.Generator()).numpy().astype(np.float64)
    wanted = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    found = knowledge(packed, rows, pooling=pooling, standardise=True).epoch(torch.Generator())
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-3)


def test_standardise_of_random_pooling_uses_the_usable_slots_of_the_given_rows(spoken):
    packed, vectors, ok = spoken
    rows = [0, 1, 4, 5]
    pool = np.array([unit(vectors[n, s]) for n in rows for s in range(SLOTS) if ok[n, s]])
    found = knowledge(packed, rows, pooling="random", standardise=True).epoch(torch.Generator().manual_seed(1))
    plain = knowledge(packed, rows, pooling="random").epoch(torch.Generator().manual_seed(1)).numpy()
    np.testing.assert_allclose(found.numpy(), (plain - pool.mean(axis=0)) / pool.std(axis=0), atol=1e-4)


# ------------------------------------------------------------------------------- what many samples say weighs less


@pytest.fixture
def repeated(tmp_path) -> tuple[PackedDataset, np.ndarray, np.ndarray]:
    """Seven samples that say ten of five things each, in numbers that differ as those of two batches do."""
    rng = np.random.default_rng(7)
    said = np.minimum(rng.integers(0, 9, size=(7, SLOTS)), 4)  # the last one is said by all
    things = rng.normal(size=(5, 64))
    vectors = (things / np.linalg.norm(things, axis=1, keepdims=True))[said] * (1 + 1e-6 * rng.random((7, SLOTS, 64)))
    ok = rng.random((7, SLOTS)) > 0.2
    folder = write_packed(tmp_path / "packed", random_joints([5] * 7, 1, STICK), vision=vectors, vision_ok=ok)
    return PackedDataset(folder), said, ok


def naive_weight(said: np.ndarray, ok: np.ndarray, n: int, slot: int) -> float:
    holders = sum(any(ok[m, s] and said[m, s] == said[n, slot] for s in range(SLOTS)) for m in range(len(said)))
    return math.log((len(said) + 1) / holders) if ok[n, slot] else 0.0


def test_idf_weights_count_the_samples_that_say_a_thing(repeated):
    packed, said, ok = repeated
    vectors = np.where(ok[..., None], packed.knowledge("vision")[0], 0).astype(np.float32)
    found = idf_weights(sides(vectors / np.maximum(np.linalg.norm(vectors, axis=2, keepdims=True), 1e-12)), ok)
    wanted = [[naive_weight(said, ok, n, s) for s in range(SLOTS)] for n in range(7)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert len({round(w, 6) for w in found[ok].tolist()}) > 2


@pytest.mark.parametrize("pooling", ["mean", "ordered"])
def test_idf_pooling_matches_a_loop(repeated, pooling):
    packed, said, ok = repeated
    vectors = packed.knowledge("vision")[0].astype(np.float64)
    found = knowledge(packed, range(7), pooling=pooling, pooling_weights="idf").epoch(torch.Generator()).numpy()

    def mean(n: int, slots: Sequence[int]) -> np.ndarray:
        return unit(sum(naive_weight(said, ok, n, s) * unit(vectors[n, s]) for s in slots if ok[n, s]))

    for n in range(7):
        whole = mean(n, range(SLOTS))
        parts = [whole]
        if pooling == "ordered":
            quarters = [(0, 1, 2), (3, 4, 5), (6, 7), (8, 9)]
            parts = [(mean(n, q) if ok[n, list(q)].any() else whole) / 2 for q in quarters]
        np.testing.assert_allclose(found[n], np.concatenate(parts), atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "ordered", "random"])
@pytest.mark.parametrize("weights", ["equal", "idf"])
def test_vectors_read_in_parts_are_those_read_at_once(repeated, monkeypatch, pooling, weights):
    def drawn() -> np.ndarray:
        config = {"pooling": pooling, "pooling_weights": weights, "standardise": True}
        return knowledge(repeated[0], [5, 1, 0, 6, 3], **config).epoch(torch.Generator().manual_seed(1)).numpy()

    whole = drawn()
    monkeypatch.setattr(Knowledge, "CHUNK", 2)
    np.testing.assert_array_equal(drawn(), whole)


def test_random_pooling_draws_by_idf(repeated):
    packed, said, ok = repeated
    source = knowledge(packed, range(7), pooling="random", pooling_weights="idf")
    generator, draws = torch.Generator().manual_seed(0), 3000
    counts = np.zeros((7, 5))
    things = [packed.knowledge("vision")[0][said == thing][0].astype(np.float32) for thing in range(5)]
    for _ in range(draws):
        found = source.epoch(generator).numpy()
        counts[np.arange(7), np.argmax(found @ np.stack(things).T, axis=1)] += 1
    for n in range(7):
        weights = np.array([naive_weight(said, ok, n, s) for s in range(SLOTS)])
        wanted = np.bincount(said[n], weights, 5) / weights.sum()
        np.testing.assert_allclose(counts[n] / draws, wanted, atol=0.04)


def test_where_nothing_repeats_idf_changes_nothing(spoken):
    packed = spoken[0]
    plain, idf = (knowledge(packed, range(7), pooling_weights=w).epoch(torch.Generator()) for w in ("equal", "idf"))
    torch.testing.assert_close(plain, idf)
