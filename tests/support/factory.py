"""Stages of the pipeline run in this process, and what they wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.manifest import StageManifest, read_shard, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, stages
from c2vl_pipeline.engines.heuristic import Classical, SkeletonDetector
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance.status import survey
from c2vl_pipeline.stages import index, pack
from c2vl_pipeline.stages.base import Stage

STAGES = tuple(stages.STAGES.values())


def run_factory(raw: Path, work: Path, recipe: Recipe, dataset: str = "synthetic") -> Path:
    """Run every stage of the factory in this process; returns the work folder."""
    index.build(load_dataset(dataset), raw, work, recipe.pipeline, recipe=recipe.name)
    for stage in STAGES:
        runner.run_stage(stage, work, recipe)
    pack.run(work, recipe)
    return work


def run_all(work: Path, recipe: Recipe, stages: Sequence[Stage] = STAGES) -> list[StageManifest]:
    return [runner.run_stage(stage, work, recipe) for stage in stages]


def states(work: Path, recipe: Recipe) -> dict[str, str]:
    return {s.stage: s.state for s in survey(work, recipe)}


STAGE_NAMES = [*stages.STAGES]


def start(raw: Path, work: Path, shard_samples: int = 8) -> Path:
    """Index 32 samples, by default into 4 shards; only the root differs between two copies of one raw folder."""
    config = load_recipe("debug", [f"pipeline.shard_samples={shard_samples}"]).pipeline
    index.build(load_dataset("synthetic"), raw, work, config, recipe="debug", allow_missing=True)
    return work


def road(work: Path, recipe: Recipe) -> dict[str, str]:
    """Run all stages; returns their digests."""
    return {s.name: runner.run_stage(s, work, recipe).digest for s in STAGES}


def digests(work: Path) -> dict[str, str]:
    manifests = {name: read_stage_manifest(work / name) for name in STAGE_NAMES}
    return {name: m.digest for name, m in manifests.items() if m is not None}


def times(work: Path) -> dict[str, int]:
    return {f"{s}/{p.name}": p.stat().st_mtime_ns for s in STAGE_NAMES for p in (work / s).glob("shard-*.parquet")}


def remade(before: dict[str, int], work: Path) -> set[str]:
    now = times(work)
    assert set(now) | set(before) == set(now)
    return {name.replace("shard-0000", "").removesuffix(".parquet") for name, t in now.items() if t != before.get(name)}  # fmt: skip


def rows(work: Path, stage: str) -> list[dict[str, Any]]:
    return [r for p in sorted((work / stage).glob("shard-*.parquet")) for r in read_shard(p).to_pylist()]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


class Calls:
    """Counts what the engines are asked, by sample where they know it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.detected: Counter[str] = Counter()
        self.captioned: Counter[str] = Counter()
        self.images = 0
        detect, describe, encode = SkeletonDetector.detect, PoseCode.caption, Classical.encode_images

        def detecting(engine: Any, frames: Sequence[Any], query: str) -> Any:
            self.detected.update(f.sample_id for f in frames)
            return detect(engine, frames, query)

        def captioning(engine: Any, crops: Sequence[Any], question: str) -> Any:
            self.captioned.update(c.sample_id for c in crops)
            return describe(engine, crops, question)

        def encoding(engine: Any, images: Sequence[Any]) -> Any:
            self.images += len(images)
            return encode(engine, images)

        monkeypatch.setattr(SkeletonDetector, "detect", detecting)
        monkeypatch.setattr(PoseCode, "caption", captioning)
        monkeypatch.setattr(Classical, "encode_images", encoding)


def video_of(folder: Path, number: int) -> Path:
    return sorted(folder.rglob("*_rgb.avi"))[number]


def break_captions(monkeypatch: pytest.MonkeyPatch, broken: dict[str, set[int]]) -> Calls:
    """Let the captioner fail on some rows; counts what is asked."""
    counted = Calls(monkeypatch)
    describe = PoseCode.caption

    def failing(engine: Any, crops: Sequence[Any], question: str) -> Any:
        if any(c.slot in broken.get(c.sample_id, ()) for c in crops):
            raise RuntimeError("the model is upset")
        return describe(engine, crops, question)

    monkeypatch.setattr(PoseCode, "caption", failing)
    engines.clear()
    return counted
