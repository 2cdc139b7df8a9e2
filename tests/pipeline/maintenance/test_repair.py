"""Retry of failed rows and of what follows from them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.errors import StageError
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.engines.heuristic import SkeletonDetector
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance import repair, verify
from support.factory import Calls, break_captions, digests, remade, road, rows, start, times, video_of


def retry(work: Path, recipe: Recipe) -> dict[str, int]:
    return repair.retry(work, recipe, lambda stage, redo: runner.run_stage(stage, work, recipe, redo=redo))


@pytest.mark.slow
def test_failed_rows_are_made_again_and_only_their_samples(
    raw: Path, tmp_path: Path, recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    ids = workspace.load(work).table.column("sample_id").to_pylist()
    broken = {ids[3]: {1}, ids[20]: {0, 2}}
    calls = break_captions(monkeypatch, broken)
    road(work, recipe)
    assert digests(work) != digests(whole)
    failed = {(r["sample_id"], r["slot"]): r["attempts"] for r in rows(work, "captions") if r["status"] == "failed"}
    assert failed == {(ids[3], 1): 2, (ids[20], 0): 2, (ids[20], 2): 2}
    # still broken: tried once more, in vain
    calls.captioned.clear()
    calls.images = 0
    before = times(work)
    assert retry(work, recipe) == {"captions": 2, "embeddings": 0}
    assert set(calls.captioned) <= {ids[3], ids[20]}
    assert remade(before, work) == {"captions/0", "captions/2"}
    assert {r["attempts"] for r in rows(work, "captions") if r["status"] == "failed"} == {4}
    # mended
    broken.clear()
    calls.captioned.clear()
    assert retry(work, recipe) == {"captions": 2, "embeddings": 0}
    assert calls.captioned == Counter({ids[3]: 4, ids[20]: 4})
    assert calls.images == 8, "the vectors of two samples, four slots each, and of no other"
    attempts = {(r["sample_id"], r["slot"]): r["attempts"] for r in rows(work, "captions")}
    assert attempts[ids[3], 1] == attempts[ids[20], 0] == 5
    assert attempts[ids[3], 0] == 3, "a row that was well has been made three times"
    assert {n for (s, _), n in attempts.items() if s not in {ids[3], ids[20]}} == {1}
    assert digests(work) == digests(whole)
    assert verify.verify(work, raw=True) == []
    assert retry(work, recipe) == {}


@pytest.mark.slow
def test_a_mended_video_of_the_same_size_is_made_again_with_all_that_follows(
    raw: Path, tmp_path: Path, recipe: Recipe, whole: Path, calls: Calls
) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    video = video_of(folder, 11)
    data = video.read_bytes()
    video.write_bytes(bytes(len(data)))
    work = start(folder, tmp_path / "w")
    road(work, recipe)
    sample = video.name.removesuffix("_rgb.avi")
    assert {r["sample_id"] for r in rows(work, "captions") if r["status"] == "decode_error"} == {sample}
    calls.captioned.clear()
    calls.detected.clear()
    calls.images = 0
    # nothing changed: later stages have nothing of their own to try again
    assert retry(work, recipe) == {"crops": 1, "captions": 0, "embeddings": 0}
    assert not calls.captioned
    assert calls.images == 0
    video.write_bytes(data)
    assert retry(work, recipe) == {"crops": 1, "captions": 0, "embeddings": 0}
    assert calls.detected == Counter({sample: 4})
    assert calls.captioned == Counter({sample: 4})
    assert calls.images == 4
    assert digests(work) == digests(whole)
    assert {r["attempts"] for r in rows(work, "crops") if r["sample_id"] == sample} == {3}
    assert verify.verify(work, raw=True) == []


@pytest.mark.slow
def test_a_shard_that_is_stale_from_above_has_its_own_failures_tried_again_too(
    raw: Path, tmp_path: Path, recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    video = video_of(folder, 0)
    data = video.read_bytes()
    video.write_bytes(b"no video" + bytes(len(data) - 8))
    work = start(folder, tmp_path / "w")
    table = workspace.load(work).table
    sample = video.name.removesuffix("_rgb.avi")
    at = table.column("sample_id").to_pylist().index(sample)
    neighbour = table.column("sample_id")[at + 1].as_py()  # of the same shard
    broken = {neighbour: {2}}
    break_captions(monkeypatch, broken)
    road(work, recipe)
    broken.clear()
    video.write_bytes(data)
    assert retry(work, recipe) == {"crops": 1, "captions": 1, "embeddings": 0}
    assert digests(work) == digests(whole)


@pytest.mark.slow
def test_a_caption_that_failed_beside_a_crop_that_fails_for_good_gets_its_chance(
    raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    sample = workspace.load(work).table.column("sample_id")[6].as_py()
    detect = SkeletonDetector.detect

    def failing(engine: Any, frames: Sequence[Any], query: str) -> Any:
        if any((f.sample_id, f.slot) == (sample, 3) for f in frames):
            raise RuntimeError("never")
        return detect(engine, frames, query)

    broken = {sample: {0}}
    break_captions(monkeypatch, broken)
    monkeypatch.setattr(SkeletonDetector, "detect", failing)
    road(work, recipe)
    broken.clear()
    assert retry(work, recipe) == {"crops": 1, "captions": 1, "embeddings": 0}
    left = {(r["sample_id"], r["slot"]) for r in rows(work, "captions") if r["status"] == "failed"}
    assert left == {(sample, 3)}


@pytest.mark.slow
def test_nothing_is_tried_again_under_another_configuration(
    raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    sample = workspace.load(work).table.column("sample_id")[6].as_py()
    break_captions(monkeypatch, {sample: {0}})
    road(work, recipe)
    before = times(work)
    other = load_recipe("debug", ["pipeline.caption.question=Why?"])
    with pytest.raises(StageError, match=r"the captions of .* \(config.question: .* -> \"Why\?\"\); give the --recipe"):
        retry(work, other)
    assert remade(before, work) == set()
