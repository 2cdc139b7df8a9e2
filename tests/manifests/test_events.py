"""Times and sizes in words."""

from __future__ import annotations

import pytest

from c2vl_manifests.events import gigabytes


@pytest.mark.parametrize(
    ("size", "digits", "text"),
    [
        (0, 2, "0.00 GB"),
        (1, 2, "< 0.01 GB"),
        (4.9e6, 2, "< 0.01 GB"),
        (5.1e6, 2, "0.01 GB"),
        (1.25e12, 2, "1,250.00 GB"),
        (3e8, 0, "< 1 GB"),
    ],
)
def test_a_size_is_never_rounded_to_nothing(size, digits, text):
    assert gigabytes(size, digits) == text
