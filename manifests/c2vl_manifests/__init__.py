"""File formats and settings shared by pipeline, training and evaluation.

Joint layouts, datasets and splits, Arrow schemas, manifests and recipes are defined here and nowhere else. Never
imports torch. The names below are the public interface; they are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2vl_manifests.datasets import load_dataset
    from c2vl_manifests.layouts import load_layout
    from c2vl_manifests.packed import read_packed_manifest
    from c2vl_manifests.recipe_loading import load_recipe

__all__ = ["load_dataset", "load_layout", "load_recipe", "read_packed_manifest"]
__version__ = "0.1.0"

_MODULES = {
    "load_dataset": "datasets",
    "load_layout": "layouts",
    "load_recipe": "recipe_loading",
    "read_packed_manifest": "packed",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"c2vl_manifests.{_MODULES[name]}"), name)
