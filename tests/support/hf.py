"""Roles of the Hugging Face engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import EngineError
from c2vl_pipeline.engines.hf_captioner import HfCaptioner
from c2vl_pipeline.engines.hf_detector import HfDetector
from c2vl_pipeline.engines.hf_encoder import HfEncoder

ROLES = {
    "detector": ("groundingdino", HfDetector, "pipeline.crop.engine", "IDEA-Research/grounding-dino-tiny"),
    "captioner": ("llava", HfCaptioner, "pipeline.caption.engine", "llava-hf/llava-1.5-7b-hf"),
    "encoder": ("clip", HfEncoder, "pipeline.embed.engine", "openai/clip-vit-large-patch14-336"),
}


def message(role: str, model: Path | str | None, **fields: Any) -> str:
    chosen: Any = role
    spec = EngineSpec(role=chosen, backend="hf", model=None if model is None else str(model), **fields)
    with pytest.raises(EngineError) as caught:
        ROLES[role][1](spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)
