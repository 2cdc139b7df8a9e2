"""The skeletons stage, except that named samples kill the process that touches them: for tests of dying workers."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from c2vl_pipeline import engines
from c2vl_pipeline.stages import skeletons
from c2vl_pipeline.stages.base import ShardContext


def process(shard: ShardContext) -> pa.Table:
    work = shard.index.work
    with (work / "processes.txt").open("a") as handle:
        handle.write(f"{os.getpid()} {shard.number} {len(shard.samples)}\n")
    once = Path(work / "once.txt")
    if once.exists() and any(s["sample_id"] == once.read_text() for s in shard.samples):
        once.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    poison = (work / "poison.txt").read_text().split() if (work / "poison.txt").exists() else []
    if any(s["sample_id"] in poison for s in shard.samples):
        os.kill(os.getpid(), signal.SIGKILL)
    return skeletons.process(shard)


def loads() -> tuple[int, int]:
    """How often this process asked for an engine, and how often it had to load one."""
    info = engines._load.cache_info()
    return info.hits + info.misses, info.misses


STAGE = replace(skeletons.STAGE, process=process)
