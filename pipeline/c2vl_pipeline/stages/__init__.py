"""The sharded stages in the order in which they run; each module describes its own in a `STAGE` value."""

from __future__ import annotations

from c2vl_pipeline.stages import caption, crop, embed, skeletons
from c2vl_pipeline.stages.base import Stage

STAGES: dict[str, Stage] = {stage.name: stage for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE)}
"""Name of a stage, which is that of its folder -> its description."""
