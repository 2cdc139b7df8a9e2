"""Times and sizes in words."""

from __future__ import annotations

import pytest

from c2vl_manifests.events import byte_size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (4.25e6, "4.25 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1 GB"),
        (1.25e12, "1.25 TB"),
        (1.25e15, "1,250.00 TB"),
    ],
)
def test_a_size_is_in_the_largest_unit_that_it_fills(count, text):
    assert byte_size(count) == text
