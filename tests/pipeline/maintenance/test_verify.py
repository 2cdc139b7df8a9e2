"""Verification and repair: every damage is found and only it is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import read_shard_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.keys import Redo
from c2vl_pipeline.maintenance import repair as repairs
from c2vl_pipeline.maintenance import verify
from c2vl_pipeline.stages import crop, embed, index
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import shard_path
from support.factory import STAGE_NAMES, Calls, digests, flip, remade, rows, times, video_of


def repair(work: Path, recipe: Recipe, *, raw: bool = False) -> None:
    def run(stage: Stage, only: frozenset[int], redo: Redo) -> None:
        runner.run_stage(stage, work, recipe, only=only, redo=redo)

    repairs.repair(work, recipe, verify.verify(work, raw=raw), run)


def found(work: Path, *, raw: bool = False) -> list[tuple[str, int | None]]:
    return [(d.stage, d.shard) for d in verify.verify(work, raw=raw)]


# ---------------------------------------------------------------------------------------------- finding


def test_a_whole_folder_has_no_damage_and_is_left_alone(own: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in own.rglob("*") if p.is_file()}
    assert verify.verify(own, raw=True) == []
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in own.rglob("*") if p.is_file()} == before


def damage(work: Path, kind: str) -> str:
    """Damage crops shard 2 in one way; returns words of what is to be said of it."""
    path, other = shard_path(work, "crops", 2), shard_path(work, "crops", 1)
    manifest = path.with_suffix(".json")
    size = path.stat().st_size
    said = "holds other bytes than were committed (sha256)"
    if kind == "page":
        flip(path, size // 2)
    elif kind == "footer":
        flip(path, size - 300)
    elif kind == "manifest":
        flip(manifest, manifest.stat().st_size // 2)
        said = "has no manifest that can be read"
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
        said = f"has {size - 1:,} bytes, its manifest says {size:,}"
    elif kind == "data deleted":
        path.unlink()
        said = "is absent although its manifest exists"
    elif kind == "manifest deleted":
        manifest.unlink()
        said = "has no manifest that can be read"
    elif kind == "both deleted":
        path.unlink()
        manifest.unlink()
        said = "is absent although its stage was complete"
    elif kind == "data of another shard":
        shutil.copyfile(other, path)
        said = "its manifest says"
    elif kind == "newer data than the manifest":
        newer = load_recipe("debug", ["pipeline.crop.jpeg_quality=60"])
        text = manifest.read_bytes()
        runner.run_stage(crop.STAGE, work, newer, only=frozenset({2}))
        manifest.write_bytes(text)
        said = "its manifest says"
    return said


KINDS = [
    "page", "footer", "manifest", "truncated", "data deleted", "manifest deleted", "both deleted",
    "data of another shard", "newer data than the manifest",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_damage_is_found_alone_and_repaired_alone(own: Path, whole: Path, recipe: Recipe, kind: str) -> None:
    stage = (own / "crops" / "stage.json").read_bytes()
    said = damage(own, kind)
    (own / "crops" / "stage.json").write_bytes(stage)
    (only,) = verify.verify(own)
    assert (only.stage, only.shard, only.path) == ("crops", 2, str(shard_path(own, "crops", 2)))
    assert said in only.problem
    before = times(own)
    repair(own, recipe)
    assert remade(before, own) == {"crops/2"}
    assert digests(own) == digests(whole)
    assert verify.verify(own, raw=True) == []


def test_any_flipped_bit_of_a_manifest_makes_it_unreadable_or_says_the_same(own: Path) -> None:
    path = shard_path(own, "captions", 1)
    manifest = path.with_suffix(".json")
    text, meant = manifest.read_bytes(), read_shard_manifest(path)
    assert meant is not None
    for at in range(0, len(text), 7):
        for bit in (0, 3, 5, 6):
            data = bytearray(text)
            data[at] ^= 1 << bit
            manifest.write_bytes(data)
            assert read_shard_manifest(path) in (None, meant)


def test_swapped_shards_are_found_both_with_and_without_their_manifests(own: Path, recipe: Recipe, whole: Path) -> None:
    one, two = shard_path(own, "captions", 0), shard_path(own, "captions", 3)

    def swap(a: Path, b: Path) -> None:
        a.rename(a.with_name("aside"))
        b.rename(a)
        a.with_name("aside").rename(b)

    swap(one, two)
    assert found(own) == [("captions", 0), ("captions", 3)]
    swap(one.with_suffix(".json"), two.with_suffix(".json"))
    damages = verify.verify(own)
    assert [d.shard for d in damages if d.shard is not None] == [0, 3]
    assert {d.problem for d in damages if d.shard is not None} == {
        "its rows are not those of the index (run its stage again)"
    }
    before = times(own)
    repair(own, recipe)
    assert {"captions/0", "captions/3"} == remade(before, own)
    assert digests(own) == digests(whole)
    assert verify.verify(own) == []


@pytest.mark.parametrize("kind", ["garbage", "deleted", "a count", "its key"])
def test_a_damaged_stage_manifest_is_found_and_written_again_without_making_rows(
    own: Path, recipe: Recipe, whole: Path, kind: str
) -> None:
    path = own / "captions" / "stage.json"
    if kind == "garbage":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "deleted":
        path.unlink()
    else:
        facts = json.loads(path.read_text())
        facts |= {"rows": 127} if kind == "a count" else {"key": "0" * 32}
        path.write_text(json.dumps(facts))
    (only,) = verify.verify(own)
    assert (only.stage, only.shard, only.path) == ("captions", None, str(path))
    before = times(own)
    repair(own, recipe)
    assert remade(before, own) == set()
    assert verify.verify(own) == []
    assert digests(own) == digests(whole)


@pytest.mark.parametrize("frames", [2**63, -1, "many", [3]])
def test_a_stage_manifest_of_impossible_frames_is_damage(own: Path, frames: object) -> None:
    path = own / "captions" / "stage.json"
    facts = json.loads(path.read_text())
    facts["inputs"]["frames"] = frames
    path.write_text(json.dumps(facts))
    found = verify.verify(own)
    assert found
    assert {damage.stage for damage in found} == {"captions"}


def test_a_folder_that_is_still_being_filled_is_not_damaged(own: Path, recipe: Recipe) -> None:
    shutil.rmtree(own / "embeddings")
    assert verify.verify(own) == []
    runner.run_stage(embed.STAGE, own, recipe, limit=9)
    assert len(list((own / "embeddings").glob("shard-*.json"))) == 2
    assert verify.verify(own) == []


def test_rows_of_another_index_are_named(copy: tuple[Path, Path], recipe: Recipe) -> None:
    folder, work = copy
    config = load_recipe("debug", ["pipeline.shard_samples=16"]).pipeline
    index.build(load_dataset("synthetic"), folder, work, config, recipe="debug")
    assert {(s, n) for s, n in found(work) if n is not None} == {(s, n) for s in STAGE_NAMES for n in (0, 1)}
    assert all("rows are not those of the index" in d.problem for d in verify.verify(work) if d.shard is not None)


def test_repair_of_a_later_stage_leaves_shards_that_were_never_made(own: Path, recipe: Recipe) -> None:
    shutil.rmtree(own / "embeddings")
    runner.run_stage(embed.STAGE, own, recipe, limit=8)
    flip(shard_path(own, "crops", 3), 200)
    repair(own, recipe)
    assert sorted(p.name for p in (own / "embeddings").glob("shard-*.parquet")) == ["shard-00000.parquet"]


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_video_costs_its_own_sample_and_what_follows_from_it(
    copy: tuple[Path, Path], recipe: Recipe, whole: Path, calls: Calls, same_size: bool
) -> None:
    folder, work = copy
    samples = workspace.load(work).table
    relative = samples.column("video")[13].as_py()
    video, sample = folder / relative, samples.column("sample_id")[13].as_py()
    other = folder / samples.column("video")[20].as_py()
    data = other.read_bytes()
    video.write_bytes((data * 2)[: video.stat().st_size] if same_size else data + b"more")
    assert verify.verify(work) == []
    (only,) = verify.verify(work, raw=True)
    assert (only.stage, only.shard, only.path) == ("raw", 1, str(video))
    assert only.problem == "changed since crops were made from it"
    assert (only.readers, only.samples) == (("crops",), (sample,))
    before = times(work)
    repair(work, recipe, raw=True)
    assert remade(before, work) == {"crops/1", "captions/1", "embeddings/1"}
    assert set(calls.detected) == {sample}
    assert set(calls.captioned) == {sample}
    assert 0 < calls.images <= 4
    assert verify.verify(work, raw=True) == []
    old = {(r["sample_id"], r["slot"]): r for r in rows(whole, "crops")}
    changed = {r["sample_id"] for r in rows(work, "crops") if r["jpeg"] != old[r["sample_id"], r["slot"]]["jpeg"]}
    assert changed == {sample}


def test_a_changed_skeleton_file_costs_its_sample(copy: tuple[Path, Path], recipe: Recipe, calls: Calls) -> None:
    folder, work = copy
    samples = workspace.load(work).table
    path = folder / samples.column("skeleton")[2].as_py()
    text = path.read_text()
    at = text.index(".") + 2
    path.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    (only,) = verify.verify(work, raw=True)
    assert (only.path, only.readers) == (str(path), ("skeletons", "crops"))
    repair(work, recipe, raw=True)
    assert set(calls.detected) <= {samples.column("sample_id")[2].as_py()}
    assert verify.verify(work, raw=True) == []


def test_a_change_is_still_noticed_after_a_neighbour_was_made_again(copy: tuple[Path, Path], recipe: Recipe) -> None:
    folder, work = copy
    samples = workspace.load(work).table
    video = folder / samples.column("video")[1].as_py()
    data = video.read_bytes()
    video.write_bytes(data[:-8] + b"changed!")
    neighbour = samples.column("sample_id")[5].as_py()
    runner.run_stage(crop.STAGE, work, recipe, redo={0: frozenset({neighbour})})
    assert [d.path for d in verify.verify(work, raw=True)] == [str(video)]


def test_what_was_made_from_a_raw_file_that_is_gone_is_kept(
    copy: tuple[Path, Path], recipe: Recipe, whole: Path
) -> None:
    folder, work = copy
    video = video_of(folder, 4)
    aside = video.rename(folder / "aside")
    (only,) = verify.verify(work, raw=True)
    assert only.problem == "is gone since crops were made from it; they are kept"
    before = times(work)
    repair(work, recipe, raw=True)
    assert remade(before, work) == set()
    # and a damaged shard is not thrown away while its videos are
    number = next(
        n for n, (a, b) in enumerate(workspace.load(work).shard_ranges) if a <= _row_of(work, video, folder) < b
    )
    path = shard_path(work, "crops", number)
    path.with_suffix(".json").unlink()
    kept = path.read_bytes()
    with pytest.raises(StageError) as caught:
        repair(work, recipe)
    assert str(caught.value) == (
        f"{path} is damaged and cannot be made again: {video} is gone; bring it back, or run `c2vl-pipeline index` "
        "again so that its rows say that it is missing"
    )
    assert path.read_bytes() == kept
    aside.rename(video)
    repair(work, recipe)
    assert digests(work) == digests(whole)


def _row_of(work: Path, video: Path, folder: Path) -> int:
    videos: list[str] = workspace.load(work).table.column("video").to_pylist()
    return videos.index(str(video.relative_to(folder)))


# --------------------------------------------------------------------------------------- another recipe


def test_nothing_is_mended_under_another_configuration_than_the_rest_was_made_under(own: Path, recipe: Recipe) -> None:
    other = load_recipe("debug", ["pipeline.crop.margin=0.2"])
    path = shard_path(own, "crops", 2)
    flip(path, 500)
    kept = path.read_bytes()
    with pytest.raises(StageError) as caught:
        repair(own, other)
    assert str(caught.value) == (
        f"the crops of {own} were made under another configuration (config.margin: 0.1 -> 0.2); give the --recipe "
        "and --set they were made with, or make all of them again with `c2vl-pipeline crop`"
    )
    assert path.read_bytes() == kept
    repair(own, recipe)
    assert verify.verify(own) == []


def test_a_repair_file_of_others_names_stages_only(own: Path) -> None:
    names = {"crops": [1], "../elsewhere": [0], "/etc": [0], "packed": [0]}
    (own / verify.REPAIR_FILE).write_text(json.dumps(names))
    shard_path(own, "crops", 1).with_suffix(".json").unlink()
    assert {damage.path for damage in verify.verify(own)} >= {str(shard_path(own, "crops", 1))}
    assert {damage.stage for damage in verify.verify(own)} == {"crops"}
