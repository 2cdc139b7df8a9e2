"""The library by which published data are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Return `datasets`, without network, with its cache below `folder`."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    return datasets
