"""`EngineSpec`: the choice of an engine, serialisable, sent to workers and written into manifests."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["detector", "pose", "captioner", "encoder"]


class EngineSpec(BaseModel):
    """Back-end, weights and options of an engine for one role. Loaded by `c2vl_pipeline.engines.load`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    role: Role
    backend: str
    """Name in the registry of `c2vl_pipeline.engines`; `dataset`: the heuristic detector that the dataset's
    description names."""
    model: str | None = None
    """Hub id or local folder; None for engines without weights."""
    revision: str | None = None
    """Requested branch, tag or commit; the resolved commit is written to the stage's manifest."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    """`auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1`."""
    batch_size: int = Field(default=8, ge=1)
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of this back-end only; each engine declares and validates its own."""
    detector: EngineSpec | None = Field(default=None, exclude_if=lambda detector: detector is None)
    """Of a pose estimator: the detector that finds the people; None for every other role."""

    @model_validator(mode="after")
    def _has_its_detector(self) -> EngineSpec:
        if (self.role == "pose") != (self.detector is not None):
            needs = "needs a detector" if self.role == "pose" else "takes no detector"
            raise ValueError(f"the {self.role} engine {self.backend!r} {needs}")
        if self.detector is not None and self.detector.role != "detector":
            raise ValueError(f"detector has the role {self.detector.role!r}; expected a detector")
        return self

    def key(self) -> str:
        """Return canonical JSON: equal specs have equal keys."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
