"""The manifest of a stage: what its finished shards hold, and the seal of a complete one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from c2vl_manifests.manifest import ShardManifest, StageManifest, fingerprint, write_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline.execution.keys import StageKeys, stage_keys
from c2vl_pipeline.execution.sharing import Share
from c2vl_pipeline.stages.base import Stage, seal
from c2vl_pipeline.stages.failures import may_have_failed, total_failure
from c2vl_pipeline.stages.speed import SPEED, rates, summed
from c2vl_pipeline.workspace import Workspace

_version = cache(version)  # reads a file


def commit(
    folder: Path,
    keys: StageKeys,
    done: Mapping[int, ShardManifest],
    index: Workspace,
    recipe: Recipe,
    share: Share | None,
) -> StageManifest:
    """Write the stage's manifest with what its finished shards hold, and return it.

    Of a share, with those that are found on disk, and again until none was finished meanwhile: of several calls, the
    last one that writes has then seen all shards.
    """
    if share is None:
        summary = summary_of(keys, done)
        if summary.complete and not failure_as_a_whole(summary, index, keys.stage):
            # of the rows that the keys were computed from: an earlier stage may have been made again meanwhile
            facts = [fact["upstream"] for fact in keys.facts]
            upstream = {name: fingerprint([one[name] for one in facts]) for name in keys.stage.upstream(recipe)}
            sealed = {"upstream": upstream, "seal": seal(index, keys.stage.name, upstream)}
            summary = summary.model_copy(update=sealed)
        write_stage_manifest(folder, summary)
        return summary
    state = None
    while state != (state := _state(keys.stage, index, recipe)):
        keys = stage_keys(keys.stage, index, recipe, keys.manifest.inputs["engine"])
        summary = summary_of(keys, keys.done)
        write_stage_manifest(folder, summary)
    return summary


def _state(stage: Stage, index: Workspace, recipe: Recipe) -> list[tuple[str, int, int]]:
    """Return which manifests of shards there are of a stage and those it reads: equal while no share finishes one."""
    found = []
    for name in (stage.name, *stage.upstream(recipe)):
        for path in sorted((index.work / name).glob("shard-*.json")):
            with suppress(OSError):  # replaced at this moment: it is another one the next time
                state = path.stat()
                found.append((str(path), state.st_ino, state.st_mtime_ns))
    return found


def summary_of(keys: StageKeys, done: Mapping[int, ShardManifest]) -> StageManifest:
    """Return the stage's manifest with what its finished shards hold."""
    statuses: Counter[str] = Counter()
    provenance: dict[str, Any] = {}
    for manifest in done.values():
        statuses.update(manifest.statuses)
        for name, fact in manifest.extra.get("provenance", {}).items():
            earlier = provenance.get(name, {})
            if name == SPEED:
                provenance[name] = summed([earlier, fact])
            else:
                provenance[name] = {**earlier, **fact} if isinstance(fact, dict) else fact
    for unit, counts in provenance.get(SPEED, {}).items():
        counts.update(rates({unit: counts}))
    complete = len(done) == len(keys.keys)
    libraries = {name: _version(name) for name in ("c2vl", "numpy", "pyarrow", "opencv-python")}
    return keys.manifest.model_copy(
        update={
            "provenance": {"libraries": libraries, **provenance},
            "complete": complete,
            "rows": sum(m.rows for m in done.values()),
            "statuses": dict(sorted(statuses.items())),
            "digest": fingerprint([done[n].digest for n in sorted(done)]) if complete else "",
            "seconds": round(sum(m.seconds for m in done.values()), 2),
        }
    )


def failure_as_a_whole(summary: StageManifest, index: Workspace, stage: Stage) -> str | None:
    """Return what has failed as a whole in a stage of these statuses, see `failures.total_failure`; None where nothing has."""
    return total_failure(index, stage, summary.complete) if may_have_failed(summary.statuses) else None
