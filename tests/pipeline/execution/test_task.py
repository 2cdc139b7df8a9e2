"""Work on one shard: rows that are reused and rows that are made again."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests import manifest as protocol
from c2vl_manifests.manifest import read_shard_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import caption, crop, embed
from c2vl_pipeline.workspace import shard_path
from support.factory import Calls, digests, flip, remade, road, rows, start, times


@pytest.fixture
def own(whole: Path, raw: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Raw folder and work folder of one's own."""
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    return folder, start(folder, Path(shutil.copytree(whole, tmp_path / "w")))


def test_a_repaired_video_costs_one_sample_in_each_stage(
    raw: Path, tmp_path: Path, recipe: Recipe, whole: Path, calls: Calls
) -> None:
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    video = sorted(folder.rglob("*_rgb.avi"))[9]
    data = video.read_bytes()
    video.write_bytes(data[: len(data) // 2])
    work = start(folder, tmp_path / "w")
    road(work, recipe)
    sample = video.name.removesuffix("_rgb.avi")
    broken = {r["sample_id"] for r in rows(work, "crops") if r["status"] != "ok"}
    assert broken == {sample}
    video.write_bytes(data)
    start(folder, work)  # sees another size
    calls.detected.clear()
    calls.captioned.clear()
    calls.images = 0
    before = times(work)
    road(work, recipe)
    number = remade(before, work).pop().partition("/")[2]
    assert remade(before, work) == {f"{stage}/{number}" for stage in ("crops", "captions", "embeddings")}
    assert calls.detected == calls.captioned == Counter({sample: 4})
    assert calls.images == 4
    assert digests(work) == digests(whole)
    assert [(r["sample_id"], r["slot"]) for r in rows(work, "crops")] == [
        (r["sample_id"], r["slot"]) for r in rows(whole, "crops")
    ]
    parts = [read_shard_manifest(shard_path(w, "embeddings", int(number))) for w in (work, whole)]
    assert parts[0] is not None
    assert parts[1] is not None
    own, reference = parts[0].extra["parts"], parts[1].extra["parts"]
    assert {s for s in own if own[s] != reference[s]} <= {sample}
    assert {s for s in own if own[s][1] != reference[s][1]} == set()


@pytest.mark.parametrize(
    ("change", "stage", "asked"),
    [
        ("pipeline.crop.jpeg_quality=60", crop.STAGE, "detected"),
        ("pipeline.crop.engine.options.grow=0.2", crop.STAGE, "detected"),
        ("pipeline.caption.question=Why?", caption.STAGE, "captioned"),
        ("pipeline.embed.aspect=squash", embed.STAGE, "images"),
    ],
)
def test_a_changed_configuration_reuses_no_row(
    own: tuple[Path, Path], calls: Calls, change: str, stage: Any, asked: str
) -> None:
    runner.run_stage(stage, own[1], load_recipe("debug", [change]))
    found = getattr(calls, asked)
    assert (found if asked == "images" else found.total()) == 128


def test_a_detector_that_now_finds_somebody_costs_those_captions_alone(
    own: tuple[Path, Path], recipe: Recipe, calls: Calls
) -> None:
    """Another configuration upstream: below it, only rows whose crops became others are made again."""
    other = load_recipe("debug", ["pipeline.crop.max_side=60"])
    runner.run_stage(crop.STAGE, own[1], other)
    old = rows(own[1], "crops")
    new = {r["sample_id"] for r in old if max(r["box"][2] - r["box"][0], r["box"][3] - r["box"][1]) > 60}
    assert 0 < len(new) < 32
    runner.run_stage(caption.STAGE, own[1], other)
    assert set(calls.captioned) == new


def damaged(work: Path, how: str) -> None:
    """Damage captions shard 1 and make it stale: one of its crops becomes another."""
    path = shard_path(work, "captions", 1)
    data, manifest = path.read_bytes(), path.with_suffix(".json").read_bytes()
    if how == "a bit of a page":
        flip(path, len(data) // 3)
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "the manifest":
        flip(path.with_suffix(".json"), len(manifest) // 2)
    elif how == "data of another run":
        runner.run_stage(
            caption.STAGE, work, load_recipe("debug", ["pipeline.caption.question=Why?"]), only=frozenset({1})
        )
        path.with_suffix(".json").write_bytes(manifest)


@pytest.mark.parametrize("how", ["nothing", "a bit of a page", "truncated", "the manifest", "data of another run"])
def test_rows_are_taken_over_from_an_undamaged_shard_only(
    own: tuple[Path, Path], recipe: Recipe, calls: Calls, whole: Path, how: str
) -> None:
    work = own[1]
    samples = [s["sample_id"] for s in workspace.load(work).shard(1)]
    damaged(work, how)
    calls.captioned.clear()
    runner.run_stage(caption.STAGE, work, recipe, redo={1: frozenset(samples[2:3])})
    assert set(calls.captioned) == set(samples[2:3] if how == "nothing" else samples)
    assert digests(work) == digests(whole)


def test_a_kill_between_data_and_manifest_of_a_retry_leaves_whole_rows(
    own: tuple[Path, Path], recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = own[1]
    sample = workspace.load(work).shard(1)[2]["sample_id"]
    commit = protocol.commit_text

    def dies(path: Path, text: str) -> None:
        if path.name.startswith("shard-"):
            raise KeyboardInterrupt
        commit(path, text)

    monkeypatch.setattr(protocol, "commit_text", dies)
    with pytest.raises(KeyboardInterrupt):
        runner.run_stage(caption.STAGE, work, recipe, redo={1: frozenset({sample})})
    monkeypatch.undo()
    road(work, recipe)
    assert digests(work) == digests(whole)


def test_samples_to_make_again_are_made_although_nothing_is_stale(
    own: tuple[Path, Path], recipe: Recipe, calls: Calls, whole: Path
) -> None:
    work = own[1]
    first, last = (workspace.load(work).shard(0)[0]["sample_id"], workspace.load(work).shard(3)[-1]["sample_id"])
    before = times(work)
    runner.run_stage(crop.STAGE, work, recipe, redo={0: frozenset({first}), 3: frozenset({last})})
    assert calls.detected == Counter({first: 4, last: 4})
    assert remade(before, work) == {"crops/0", "crops/3"}
    assert digests(work) == digests(whole)
    assert Counter(r["attempts"] for r in rows(work, "crops")) == Counter({1: 120, 2: 8})


def test_labels_and_splits_cost_nothing(own: tuple[Path, Path], recipe: Recipe) -> None:
    work = own[1]
    path = work / "samples.parquet"
    manifest = read_shard_manifest(path)
    assert manifest is not None
    table = pq.read_table(path)
    labels = pq.read_table(path).column("label")
    table = table.set_column(
        table.schema.get_field_index("label"), table.schema.field("label"), labels.take([*range(31, -1, -1)])
    )
    protocol.commit_table(path, table, key=manifest.key, row_group=64, extra=manifest.extra)
    before = times(work)
    road(work, recipe)
    assert remade(before, work) == set()
