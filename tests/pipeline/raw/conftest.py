"""Raw folders to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.indexing import AVI


@pytest.fixture
def pku(tmp_path: Path) -> Path:
    root = tmp_path / "pku"
    for folder in ("Train_Label_PKU_final", "PKU_Skeleton", "RGB"):
        (root / folder).mkdir(parents=True)
    labels = {"A01N02-L": "3,1,30,2\n5,40,20,1\n\n51,31.0,60,2\n", "A01N01-M": "1,0,9,2\n2,10,50,2\n"}
    for name, text in labels.items():
        (root / "Train_Label_PKU_final" / f"{name}.txt").write_text(text)
        (root / "PKU_Skeleton" / f"{name}.txt").write_text("0 " * 150 + "\n")
        (root / "RGB" / f"{name}.avi").write_bytes(AVI)
    return root


@pytest.fixture
def whole(raw: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic folder, 4 classes x 4 subjects x 2 views, in which nothing is wrong."""
    return Path(shutil.copytree(raw, tmp_path / "raw"))
