"""Work folders to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.factory import start


@pytest.fixture
def copy(whole: Path, raw: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Raw folder and work folder of one's own, to break."""
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    return folder, start(folder, Path(shutil.copytree(whole, tmp_path / "w")))


@pytest.fixture
def own(copy: tuple[Path, Path]) -> Path:
    return copy[1]
