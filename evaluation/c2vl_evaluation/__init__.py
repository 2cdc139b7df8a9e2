"""Protocols on frozen encoders, the controls next to them, and the report.

The names below are the public interface; they are imported when first used, so that `--help` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2vl_evaluation.comparison import compare
    from c2vl_evaluation.prediction import predict
    from c2vl_evaluation.protocols import evaluate

__all__ = ["compare", "evaluate", "predict"]

_MODULES = {"compare": "comparison", "evaluate": "protocols", "predict": "prediction"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
