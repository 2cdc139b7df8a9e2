"""Engine calls in batches: errors are isolated to their rows."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline.engines import Caption
from c2vl_pipeline.stages.base import FITS, in_batches
from c2vl_pipeline.stages.speed import SPEED, rates, summed


def test_batches_isolate_errors_and_pass_on_what_is_not_about_a_row() -> None:
    def call(batch: list[int]) -> list[int]:
        if 3 in batch:
            raise ValueError("three")
        return [10 * n for n in batch]

    found = list(in_batches(list(range(7)), 3, call))
    assert [item for item, _ in found] == list(range(7))
    assert [r for _, r in found if not isinstance(r, Exception)] == [0, 10, 20, 40, 50, 60]
    assert [(item, str(r)) for item, r in found if isinstance(r, ValueError)] == [(3, "three")]
    for error in (EngineError("x"), OSError(errno.ENOSPC, "full"), MemoryError()):

        def fails(batch: list[int], error: BaseException = error) -> list[int]:
            raise error

        for items in ([1], [1, 2]):
            with pytest.raises(type(error)):
                list(in_batches(items, 2, fails))


def test_an_answer_too_few_is_no_silent_loss() -> None:
    assert list(in_batches([1, 2, 3], 3, lambda batch: batch[:1])) == [(1, 1), (2, 2), (3, 3)]
    ((item, error),) = in_batches([1], 3, lambda batch: [])
    assert item == 1
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 2 GiB", "CUDA error: out of memory"])
def test_a_batch_that_does_not_fit_the_memory_is_halved_for_good_and_recorded(text):
    sizes, shard = [], SimpleNamespace(provenance={}, spec=None)

    def call(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError(text)
        return batch

    found = list(in_batches(list(range(12)), 8, call, shard))
    assert found == [(n, n) for n in range(12)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    assert shard.provenance == {FITS: 2}


def test_an_item_that_does_not_fit_alone_costs_its_row():
    def call(batch):
        raise RuntimeError("CUDA out of memory")

    assert [(item, str(error)) for item, error in in_batches([1, 2], 4, call)] == [
        (1, "CUDA out of memory"),
        (2, "CUDA out of memory"),
    ]


def test_the_speed_of_an_engine_with_a_model_is_recorded_by_unit(monkeypatch):
    clock = iter([0.0, 2.0, 10.0, 12.0, 20.0, 21.0])
    monkeypatch.setattr("c2vl_pipeline.stages.base.time.monotonic", lambda: next(clock))
    spec = EngineSpec(role="captioner", backend="hf")
    shard = SimpleNamespace(provenance={}, spec=spec, engine=None)
    answers = list(in_batches([1, 2, 3], 2, lambda batch: [Caption("he sits", 5)] * len(batch), shard))
    list(in_batches(["a"], 2, lambda batch: batch, shard, "texts"))
    assert len(answers) == 3
    assert shard.provenance[SPEED] == {
        "images": {"made": 3, "tokens": 15, "seconds": 4.0},
        "texts": {"made": 1, "tokens": 0, "seconds": 1.0},
    }
    assert rates(shard.provenance[SPEED]) == {"images/s": 0.75, "tokens/s": 3.75, "texts/s": 1.0}
    assert summed([shard.provenance[SPEED]] * 2)["images"] == {"made": 6, "tokens": 30, "seconds": 8.0}


def test_an_engine_without_a_model_has_no_speed():
    shard = SimpleNamespace(provenance={}, spec=EngineSpec(role="captioner", backend="posecode"), engine=None)
    assert list(in_batches([1], 2, lambda batch: batch, shard)) == [(1, 1)]
    assert shard.provenance == {}
