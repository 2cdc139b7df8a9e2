"""Raw folders to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def whole(raw: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic folder, 4 classes x 4 subjects x 2 views, in which nothing is wrong."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))
