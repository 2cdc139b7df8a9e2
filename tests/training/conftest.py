"""Packed data shared by training's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.packed import sticks


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 training and 4 test samples; tests must not write into it."""
    return sticks(tmp_path_factory.mktemp("sticks") / "packed")
