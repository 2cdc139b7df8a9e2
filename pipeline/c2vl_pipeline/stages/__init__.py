"""The sharded stages in the order in which they run; each module describes its own in a `STAGE` value."""

from __future__ import annotations

from c2vl_pipeline.stages import caption, crop, embed, pose, skeletons
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import Workspace

STAGES: dict[str, Stage] = {stage.name: stage for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE)}
"""Name of a stage, which is that of its folder -> its description."""


def stages_of(index: Workspace) -> dict[str, Stage]:
    """Return the stages of a work folder: its skeletons are made by `pose` where the joints come from the videos."""
    return STAGES | {pose.STAGE.name: pose.STAGE} if index.joints_from_videos else STAGES
