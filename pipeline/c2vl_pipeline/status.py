"""`c2vl-pipeline status`: what each stage holds, counted from the shards' manifests, under the present recipe."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from c2vl_manifests.config import Recipe
from c2vl_manifests.manifest import read_shard_manifest, read_stage_manifest
from c2vl_manifests.packed import FILE, read_packed_manifest
from c2vl_pipeline import caption, crop, embed, skeletons
from c2vl_pipeline.index import load
from c2vl_pipeline.pack import STAGES, content_key
from c2vl_pipeline.runner import Plan, make_plan, shard_path


@dataclass(frozen=True)
class StageStatus:
    """One stage: `state` is complete, unfinished, stale (made under another configuration or from other rows) or missing."""

    stage: str
    state: str
    shards_done: int
    shards: int
    rows: int
    expected_rows: int
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def counts(self) -> str:
        """Say the statuses in one line."""
        return ", ".join(f"{k} {v:,}" for k, v in self.statuses.items())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def _superseded(work: Path, plan: Plan) -> bool:
    """Whether a shard is there that was made from other upstream rows."""
    found = (read_shard_manifest(shard_path(work, plan.stage.name, n)) for n in range(len(plan.keys)))
    return any(m is not None and m.key != key for m, key in zip(found, plan.keys, strict=True))


def survey(work: Path, recipe: Recipe) -> list[StageStatus]:
    """Return the status of every stage of a work folder; reads manifests and footers, no rows.

    Raises StageError where there is no index.
    """
    index = load(work)
    found = []
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        written = read_stage_manifest(work / stage.name)
        # what was prepared (backgrounds) is taken as it was: status must not decode videos
        prepared = written.inputs.get("prepared", {}) if written else {}
        plan = make_plan(stage, index, recipe, prepared)
        statuses: Counter[str] = Counter()
        for shard in plan.done.values():
            statuses.update(shard.statuses)
        rows = sum(s.rows for s in plan.done.values())
        if len(plan.done) == len(plan.keys):
            state = "complete"
        elif written is None:
            state = "missing"
        elif written.key != plan.manifest.key or (written.complete and _superseded(work, plan)):
            state = "stale"
        else:
            state = "unfinished"
        seconds = sum(s.seconds for s in plan.done.values())
        found.append(
            StageStatus(
                stage.name,
                state,
                len(plan.done),
                len(plan.keys),
                rows,
                plan.manifest.expected_rows,
                dict(sorted(statuses.items())),
                seconds,
            )
        )
    total = index.table.num_rows
    if (work / "packed" / FILE).is_file():
        packed = read_packed_manifest(work / "packed")
        manifests = {name: m for name in STAGES if (m := read_stage_manifest(work / name)) is not None}
        fresh = (
            len(manifests) == len(STAGES)
            and all(m.complete for m in manifests.values())
            and content_key(index, manifests) == packed.fingerprint
        )
        state, done = ("complete", 1) if fresh else ("stale", 0)
        found.append(StageStatus("packed", state, done, 1, packed.samples, total))
    else:
        found.append(StageStatus("packed", "missing", 0, 1, 0, total))
    return found
