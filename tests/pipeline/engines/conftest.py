"""Tiny checkpoints of the real architectures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.engine import EngineSpec
from support import checkpoints
from support.hf import ROLES


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("checkpoints")
    return {
        "detector": checkpoints.tiny_grounding_dino(out / "groundingdino"),
        "captioner": checkpoints.tiny_llava(out / "llava"),
        "encoder": checkpoints.tiny_clip(out / "clip"),
    }


@pytest.fixture(scope="session")
def build(folders: dict[str, Path]) -> Callable[..., Any]:
    def build(role: Any, **fields: Any) -> Any:
        fields = {"model": str(folders[role]), **fields}
        return ROLES[role][1](EngineSpec(role=role, backend="hf", **fields))

    return build
