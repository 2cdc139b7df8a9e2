"""Engine calls in batches: errors are isolated to their rows."""

from __future__ import annotations

import errno

import pytest

from c2vl_manifests.errors import EngineError
from c2vl_pipeline.stages.base import in_batches


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
