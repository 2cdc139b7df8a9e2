"""Injected faults: each is found by `verify` or is a leftover."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import faults
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import index, skeletons

pytestmark = pytest.mark.stress


@pytest.mark.parametrize("how", faults.GARBAGE)
def test_garbage_replaces_the_link_and_never_what_it_points_to(how: str, tmp_path: Path) -> None:
    raw, link = tmp_path / "raw.avi", tmp_path / "link.avi"
    raw.write_bytes(bytes(range(100)))
    link.symlink_to(raw)
    faults.spoil(link, how, random.Random(0))
    assert raw.read_bytes() == bytes(range(100))
    assert not link.is_symlink()
    assert link.read_bytes() != raw.read_bytes()
    assert (link.stat().st_size == 100) == ("same size" in how)


def test_every_damage_is_found_by_verify_or_is_only_a_leftover(raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    from c2vl_pipeline.maintenance.verify import verify

    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
    runner.run_stage(skeletons.STAGE, work, recipe)
    whole = {p.name: p.read_bytes() for p in (work / "skeletons").glob("shard-*")}
    assert verify(work) == []
    rng, seen = random.Random(0), set()
    for _ in range(60):
        what = faults.damage(work / "skeletons", rng)
        assert what is not None
        seen.add(what)
        assert bool(verify(work)) == (what != "an orphan left")
        for name, data in whole.items():
            (work / "skeletons" / name).write_bytes(data)
    assert len(seen) == 6
    assert faults.damage(tmp_path / "nothing", rng) is None
