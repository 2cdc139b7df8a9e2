"""Layouts as parameters of tests."""

from __future__ import annotations

import pytest

from c2vl_manifests.layouts import LAYOUTS

ALL = list(LAYOUTS.values())
EACH = pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)


def mirrored(name: str) -> str:
    if name.endswith("_left"):
        return name.removesuffix("_left") + "_right"
    return name.removesuffix("_right") + "_left" if name.endswith("_right") else name
