"""`c2vl-pipeline prompts --dry-run`: what a run will cost, measured on a few samples before it starts.

A probe runs the stages over a few samples spread over the dataset, in a temporary folder, and extrapolates time,
GPU-hours and disk. The estimate is stored in the work folder, and `status` compares it with what the stages took.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from c2vl_manifests.errors import StageError
from c2vl_manifests.events import Emit, Progress, byte_size, silent
from c2vl_manifests.manifest import commit_table, commit_text, fingerprint, read_shard_manifest
from c2vl_manifests.reading import read_bytes
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import stage_keys
from c2vl_pipeline.execution.runner import default_workers, run_stage
from c2vl_pipeline.stages import STAGES, stages_of
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import Workspace, load, shard_path

FILE = "plan.json"


class StagePlan(BaseModel):
    """The expected cost of one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    probed: int
    """Number of samples that were measured."""
    load_seconds: float
    """Time to the first sample: loading the engine, empty scenes; once per worker."""
    sample_seconds: float
    sample_bytes: float
    samples: int = 0
    """Still to do."""
    workers: int = 1
    on_gpu: bool

    @property
    def seconds(self) -> float:
        """Return the wall time with all workers busy."""
        return self.load_seconds + self.samples * self.sample_seconds / self.workers if self.samples else 0.0

    @property
    def gpu_hours(self) -> float:
        """Return the GPU-hours, one GPU per worker."""
        return self.seconds * self.workers / 3600 if self.on_gpu else 0.0

    @property
    def bytes(self) -> float:
        """Return the bytes that the stage will write."""
        return self.samples * self.sample_bytes


class Estimate(BaseModel):
    """The estimate of a work folder, stored in `plan.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[StagePlan, ...]
    free_bytes: int
    all_samples: int

    def problem(self) -> str | None:
        """Return a message if the disk is too small, else None."""
        needed = sum(stage.bytes for stage in self.stages)
        # packing writes vectors and joints once more
        needed += sum(s.bytes for s in self.stages if s.stage in {"skeletons", "embeddings"}) * 2
        if needed > self.free_bytes:
            return (
                f"the disk has {byte_size(self.free_bytes)} free, the stages will write about {byte_size(needed)}, "
                f"{byte_size(needed - self.free_bytes)} too many; free some or lower pipeline.crop.max_side"
            )
        return None


def estimate(
    work: Path, recipe: Recipe, *, seconds: float = 30.0, workers: int | None = None, emit: Emit = silent
) -> Estimate:
    """Probe each stage for its share of `seconds` and extrapolate to the remaining samples.

    Args:
        work: folder with an index.
        recipe: resolved.
        seconds: in all; loading an engine may take longer than its share.
        workers: processes the run will have; the stage's own default where None.
        emit: receives progress.

    Raises:
        StageError: no index exists, or no sample has a video.
        EngineError: an engine cannot be loaded.
    """
    index = load(work)
    usable = [n for n, path in enumerate(index.table.column("video").to_pylist()) if path is not None]
    if not usable:
        raise StageError(
            f"none of the {index.table.num_rows:,} samples of {work} has a video, so there is nothing to "
            f"probe; run `c2vl-pipeline index` on the complete folder"
        )
    plans: list[StagePlan] = []
    due: dict[str, set[int]] = {}
    with tempfile.TemporaryDirectory(prefix="plan-", dir=work) as name:
        emit(Progress("probe", 0, len(STAGES), "stages"))
        # 48 samples spread over the dataset; a stage reads what the one before made from them
        count = min(48, len(usable))
        chosen = [usable[n * len(usable) // count] for n in range(count)]
        for number, stage in enumerate(stages_of(index).values()):
            due[stage.name] = _due(index, recipe, stage, due)
            left = sum(b - a for n, (a, b) in enumerate(index.shard_ranges) if n in due[stage.name])
            plan = _probe(index, recipe, Path(name), stage, chosen, seconds / len(STAGES))
            chosen = chosen[: plan.probed]
            count = max(1, min(workers or default_workers(stage, work, recipe), len(due[stage.name])))
            plans.append(plan.model_copy(update={"samples": left, "workers": count}))
            emit(Progress("probe", number + 1, len(STAGES), "stages"))
    made = Estimate(stages=tuple(plans), free_bytes=shutil.disk_usage(work).free, all_samples=index.table.num_rows)
    commit_text(work / FILE, made.model_dump_json(indent=1) + "\n")
    return made


def _probe(
    index: Workspace, recipe: Recipe, folder: Path, stage: Stage, chosen: Sequence[int], seconds: float
) -> StagePlan:
    """Run one stage in `folder` over one sample (which loads its engine), then over as many as its time allows."""
    started = time.monotonic()
    _subset(index, folder, chosen)
    run_stage(stage, folder, recipe, only=frozenset({0}))
    first = time.monotonic() - started
    done, spent = 1, 0.0
    while done < len(chosen) and spent < seconds:
        run_stage(stage, folder, recipe, only=frozenset({done}))
        made = read_shard_manifest(shard_path(folder, stage.name, done))
        assert made is not None
        spent += made.seconds  # without what starting and ending a run costs: a shard has hundreds of samples
        done += 1
    each = spent / (done - 1) if done > 1 else first
    size = sum(shard_path(folder, stage.name, n).stat().st_size for n in range(done))
    spec = stage.engine(recipe, index) if stage.engine else None
    return StagePlan(
        stage=stage.name,
        probed=done,
        load_seconds=round(max(first - each, 0.0), 3),
        sample_seconds=each,
        sample_bytes=size / done,
        on_gpu=spec is not None and engines.wants_own_process(spec) and bool(engines.gpus()),
    )


def _due(index: Workspace, recipe: Recipe, stage: Stage, earlier: Mapping[str, set[int]]) -> set[int]:
    """Return the shards of the work folder that a run would make: absent, stale, or made from such a shard."""
    keys = stage_keys(stage, index, recipe)
    stale = (earlier.get(name, set()) for name in stage.upstream(recipe))
    return set(range(len(keys.keys))) - keys.done.keys() | set().union(*stale)


def _subset(index: Workspace, folder: Path, chosen: Sequence[int]) -> None:
    """Write the index of the probe: one shard per chosen sample; shards that exist already stay."""
    table = index.table.take(pa.array(chosen))
    extra = index.manifest.extra | {"plan": [[n, n + 1] for n in range(len(chosen))]}
    key = fingerprint({"probe": table.column("sample_id").to_pylist()})
    commit_table(folder / "samples.parquet", table, key=key, row_group=65536, extra=extra)


def read(work: Path) -> Estimate | None:
    """Return the estimate of a work folder, or None if none can be read."""
    try:
        return Estimate.model_validate_json(read_bytes(work / FILE))
    except (OSError, ValueError):
        return None
