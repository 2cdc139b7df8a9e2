"""Prompt pipeline: raw videos and skeleton files in, packed training arrays out, one command per stage.

The names below are the public interface; they are imported when first used, so that `--help` stays light.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from c2vl_pipeline.execution.runner import run_stage
    from c2vl_pipeline.readers import read_skeleton
    from c2vl_pipeline.stages import STAGES
    from c2vl_pipeline.workspace import Workspace
    from c2vl_pipeline.workspace import load as load_workspace

# of pictures that OpenCV decodes; OpenCV reads it once, when it is imported
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))

__all__ = ["STAGES", "Workspace", "load_workspace", "read_skeleton", "run_stage"]

_PLACES = {
    "STAGES": "stages:STAGES",
    "Workspace": "workspace:Workspace",
    "load_workspace": "workspace:load",
    "read_skeleton": "readers:read_skeleton",
    "run_stage": "execution.runner:run_stage",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
