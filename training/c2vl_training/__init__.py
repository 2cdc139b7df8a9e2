"""Pre-training of skeleton encoders on packed arrays, and the supervised control.

The names below are the public interface; they are imported when first used, so that `--help` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2vl_training.checkpoint import load_encoder
    from c2vl_training.inference import encode_skeleton, load_joint_embedding
    from c2vl_training.run_folder import Run
    from c2vl_training.trainer import train

__all__ = ["Run", "encode_skeleton", "load_encoder", "load_joint_embedding", "train"]

_MODULES = {
    "Run": "run_folder",
    "encode_skeleton": "inference",
    "load_encoder": "checkpoint",
    "load_joint_embedding": "inference",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
