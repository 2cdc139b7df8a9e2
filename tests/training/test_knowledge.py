"""Pooling and standardisation of vision-language vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from c2vl_manifests.recipe import PretrainConfig
from c2vl_training.dataset import PackedDataset
from c2vl_training.knowledge import Knowledge
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
