"""verify, repair, retry-failed: every damage is found, only what is damaged is made again, failures get another chance."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import read_shard, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines, workspace
from c2vl_pipeline.engines.heuristic import Classical, SkeletonDetector
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import runner
from c2vl_pipeline.maintenance import verify
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from c2vl_pipeline.workspace import shard_path
from conftest import Cli

STAGES = {s.command: s for s in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE)}
NAMES = [s.name for s in STAGES.values()]


def start(raw: Path, work: Path) -> Path:
    """Index 32 samples into 4 shards; only the root differs between two copies of one raw folder."""
    config = load_recipe("debug").pipeline
    index.build(load_dataset("synthetic"), raw, work, config, recipe="debug", allow_missing=True)
    return work


def road(work: Path, recipe: Recipe) -> dict[str, str]:
    """Run all stages; returns their digests."""
    return {s.name: runner.run(s, work, recipe).digest for s in STAGES.values()}


def repair(work: Path, recipe: Recipe, *, raw: bool = False) -> None:
    def run(command: str, only: frozenset[int], redo: verify.Redo) -> None:
        runner.run(STAGES[command], work, recipe, only=only, redo=redo)

    verify.repair(work, recipe, verify.verify(work, raw=raw), run)


def retry(work: Path, recipe: Recipe) -> dict[str, int]:
    return verify.retry(work, recipe, lambda c, redo: runner.run(STAGES[c], work, recipe, redo=redo))


def digests(work: Path) -> dict[str, str]:
    manifests = {name: read_stage_manifest(work / name) for name in NAMES}
    return {name: m.digest for name, m in manifests.items() if m is not None}


def times(work: Path) -> dict[str, int]:
    return {f"{s}/{p.name}": p.stat().st_mtime_ns for s in NAMES for p in (work / s).glob("shard-*.parquet")}


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


def found(work: Path, *, raw: bool = False) -> list[tuple[str, int | None]]:
    return [(d.stage, d.shard) for d in verify.verify(work, raw=raw)]


@pytest.fixture(scope="module")
def whole(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All four stages of 32 samples in 4 shards; not to be written into."""
    folder = start(raw, tmp_path_factory.mktemp("whole") / "w")
    road(folder, recipe)
    return folder


@pytest.fixture
def copy(whole: Path, raw: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Raw folder and work folder of one's own, to break."""
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    return folder, start(folder, Path(shutil.copytree(whole, tmp_path / "w")))


@pytest.fixture
def work(copy: tuple[Path, Path]) -> Path:
    return copy[1]


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


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    engines._load.cache_clear()
    yield Calls(monkeypatch)
    engines._load.cache_clear()


# ---------------------------------------------------------------------------------------------- finding


def test_a_whole_folder_has_no_damage_and_is_left_alone(work: Path) -> None:
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in work.rglob("*") if p.is_file()}
    assert verify.verify(work, raw=True) == []
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in work.rglob("*") if p.is_file()} == before


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
        said = "is absent although its manifest is there"
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
        runner.run(crop.STAGE, work, newer, only=frozenset({2}))
        manifest.write_bytes(text)
        said = "its manifest says"
    return said


KINDS = [
    "page", "footer", "manifest", "truncated", "data deleted", "manifest deleted", "both deleted",
    "data of another shard", "newer data than the manifest",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_damage_is_found_alone_and_repaired_alone(
    work: Path, whole: Path, recipe: Recipe, kind: str
) -> None:
    stage = (work / "crops" / "stage.json").read_bytes()
    said = damage(work, kind)
    (work / "crops" / "stage.json").write_bytes(stage)
    (only,) = verify.verify(work)
    assert (only.stage, only.shard, only.path) == ("crops", 2, str(shard_path(work, "crops", 2)))
    assert said in only.problem
    before = times(work)
    repair(work, recipe)
    assert remade(before, work) == {"crops/2"}
    assert digests(work) == digests(whole)
    assert verify.verify(work, raw=True) == []


def test_any_flipped_bit_of_a_manifest_makes_it_unreadable_or_says_the_same(work: Path) -> None:
    path = shard_path(work, "captions", 1)
    manifest = path.with_suffix(".json")
    text, meant = manifest.read_bytes(), read_shard_manifest(path)
    assert meant is not None
    for at in range(0, len(text), 7):
        for bit in (0, 3, 5, 6):
            data = bytearray(text)
            data[at] ^= 1 << bit
            manifest.write_bytes(data)
            assert read_shard_manifest(path) in (None, meant)


def test_swapped_shards_are_found_both_with_and_without_their_manifests(
    work: Path, recipe: Recipe, whole: Path
) -> None:
    one, two = shard_path(work, "captions", 0), shard_path(work, "captions", 3)

    def swap(a: Path, b: Path) -> None:
        a.rename(a.with_name("aside"))
        b.rename(a)
        a.with_name("aside").rename(b)

    swap(one, two)
    assert found(work) == [("captions", 0), ("captions", 3)]
    swap(one.with_suffix(".json"), two.with_suffix(".json"))
    damages = verify.verify(work)
    assert [d.shard for d in damages if d.shard is not None] == [0, 3]
    assert {d.problem for d in damages if d.shard is not None} == {
        "its rows are not those of the index (run its stage again)"
    }
    before = times(work)
    repair(work, recipe)
    assert {"captions/0", "captions/3"} == remade(before, work)
    assert digests(work) == digests(whole)
    assert verify.verify(work) == []


@pytest.mark.parametrize("kind", ["garbage", "deleted", "a count", "its key"])
def test_a_damaged_stage_manifest_is_found_and_written_again_without_making_rows(
    work: Path, recipe: Recipe, whole: Path, kind: str
) -> None:
    path = work / "captions" / "stage.json"
    if kind == "garbage":
        path.write_bytes(path.read_bytes()[:100])
    elif kind == "deleted":
        path.unlink()
    else:
        facts = json.loads(path.read_text())
        facts |= {"rows": 127} if kind == "a count" else {"key": "0" * 32}
        path.write_text(json.dumps(facts))
    (only,) = verify.verify(work)
    assert (only.stage, only.shard, only.path) == ("captions", None, str(path))
    before = times(work)
    repair(work, recipe)
    assert remade(before, work) == set()
    assert verify.verify(work) == []
    assert digests(work) == digests(whole)


def test_a_folder_that_is_still_being_filled_is_not_damaged(work: Path, recipe: Recipe) -> None:
    shutil.rmtree(work / "embeddings")
    assert verify.verify(work) == []
    runner.run(embed.STAGE, work, recipe, limit=9)
    assert len(list((work / "embeddings").glob("shard-*.json"))) == 2
    assert verify.verify(work) == []


def test_rows_of_another_index_are_named(copy: tuple[Path, Path], recipe: Recipe) -> None:
    folder, work = copy
    config = load_recipe("debug", ["pipeline.shard_samples=16"]).pipeline
    index.build(load_dataset("synthetic"), folder, work, config, recipe="debug")
    assert {(s, n) for s, n in found(work) if n is not None} == {(s, n) for s in NAMES for n in (0, 1)}
    assert all(
        "rows are not those of the index" in d.problem for d in verify.verify(work) if d.shard is not None
    )


def test_repair_of_a_later_stage_leaves_shards_that_were_never_made(work: Path, recipe: Recipe) -> None:
    shutil.rmtree(work / "embeddings")
    runner.run(embed.STAGE, work, recipe, limit=8)
    flip(shard_path(work, "crops", 3), 200)
    repair(work, recipe)
    assert sorted(p.name for p in (work / "embeddings").glob("shard-*.parquet")) == ["shard-00000.parquet"]


# -------------------------------------------------------------------------------------------------- raw


def video_of(folder: Path, number: int) -> Path:
    return sorted(folder.rglob("*_rgb.avi"))[number]


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
    changed = {
        r["sample_id"] for r in rows(work, "crops") if r["jpeg"] != old[r["sample_id"], r["slot"]]["jpeg"]
    }
    assert changed == {sample}


def test_a_changed_skeleton_file_costs_its_sample(
    copy: tuple[Path, Path], recipe: Recipe, calls: Calls
) -> None:
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


def test_a_change_is_still_noticed_after_a_neighbour_was_made_again(
    copy: tuple[Path, Path], recipe: Recipe
) -> None:
    folder, work = copy
    samples = workspace.load(work).table
    video = folder / samples.column("video")[1].as_py()
    data = video.read_bytes()
    video.write_bytes(data[:-8] + b"changed!")
    neighbour = samples.column("sample_id")[5].as_py()
    runner.run(crop.STAGE, work, recipe, redo={0: frozenset({neighbour})})
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
        n for n, (a, b) in enumerate(workspace.load(work).plan) if a <= _row_of(work, video, folder) < b
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


def test_nothing_is_mended_under_another_configuration_than_the_rest_was_made_under(
    work: Path, recipe: Recipe
) -> None:
    other = load_recipe("debug", ["pipeline.crop.margin=0.2"])
    path = shard_path(work, "crops", 2)
    flip(path, 500)
    kept = path.read_bytes()
    with pytest.raises(StageError) as caught:
        repair(work, other)
    assert str(caught.value) == (
        f"the crops of {work} were made under another configuration (config.margin: 0.1 -> 0.2); give the --recipe "
        "and --set they were made with, or make all of them again with `c2vl-pipeline crop`"
    )
    assert path.read_bytes() == kept
    repair(work, recipe)
    assert verify.verify(work) == []


# ------------------------------------------------------------------------------------------------ retry


def break_captions(monkeypatch: pytest.MonkeyPatch, broken: dict[str, set[int]]) -> Calls:
    """Let the captioner fail on some rows; counts what is asked."""
    counted = Calls(monkeypatch)
    describe = PoseCode.caption

    def failing(engine: Any, crops: Sequence[Any], question: str) -> Any:
        if any(c.slot in broken.get(c.sample_id, ()) for c in crops):
            raise RuntimeError("the model is upset")
        return describe(engine, crops, question)

    monkeypatch.setattr(PoseCode, "caption", failing)
    engines._load.cache_clear()
    return counted


def test_failed_rows_are_made_again_and_only_their_samples(
    raw: Path, tmp_path: Path, recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    ids = workspace.load(work).table.column("sample_id").to_pylist()
    broken = {ids[3]: {1}, ids[20]: {0, 2}}
    calls = break_captions(monkeypatch, broken)
    road(work, recipe)
    assert digests(work) != digests(whole)
    failed = {
        (r["sample_id"], r["slot"]): r["attempts"] for r in rows(work, "captions") if r["status"] == "failed"
    }
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


def test_nothing_is_tried_again_under_another_configuration(
    raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    sample = workspace.load(work).table.column("sample_id")[6].as_py()
    break_captions(monkeypatch, {sample: {0}})
    road(work, recipe)
    before = times(work)
    other = load_recipe("debug", ["pipeline.caption.question=Why?"])
    with pytest.raises(
        StageError, match=r"the captions of .* \(config.question: .* -> \"Why\?\"\); give the --recipe"
    ):
        retry(work, other)
    assert remade(before, work) == set()


# -------------------------------------------------------------------------------------------- commands


def test_verify_and_repair_as_commands(cli: Cli, work: Path, whole: Path) -> None:
    assert cli("verify", "--work", work, "--raw") == (0, [f"{work}: everything is as it was committed"], "")
    assert cli("repair", "--work", work) == (0, [f"{work}: everything is as it was committed"], "")
    path = shard_path(work, "captions", 1)
    path.with_suffix(".json").unlink()
    line = f"captions: {path} has no manifest that can be read: it was never committed, or the manifest is damaged"
    code, out, err = cli("verify", "--work", work)
    assert (code, out, err) == (1, [line, f"1 damaged; mend with: c2vl-pipeline repair --work {work}"], "")
    code, out, err = cli("verify", "--work", work, "--raw", "--json")
    (entry,) = json.loads("\n".join(out))
    assert (code, entry["stage"], entry["shard"], entry["path"]) == (1, "captions", 1, str(path))
    code, out, err = cli("repair", "--work", work, "--workers", "0")
    assert (code, out[0], err) == (0, line, "")
    assert out[1] == "captions: 128 of 128 rows, all accounted for: ok 128"
    assert out[2].startswith(f"repaired 1; {work} is whole again")
    assert cli("verify", "--work", work)[0] == 0
    assert digests(work) == digests(whole)


def test_a_changed_video_as_commands(cli: Cli, copy: tuple[Path, Path]) -> None:
    folder, work = copy
    video = video_of(folder, 3)
    data = video.read_bytes()
    video.write_bytes(data[:-8] + b"changed!")
    assert cli("verify", "--work", work)[0] == 0
    code, out, _ = cli("verify", "--work", work, "--raw")
    assert (code, out[0]) == (1, f"raw: {video} changed since crops were made from it")
    assert out[1] == f"1 damaged; mend with: c2vl-pipeline repair --work {work} --raw"
    code, out, _ = cli("repair", "--work", work, "--raw", "--workers", "0")
    assert (code, out[0]) == (0, f"raw: {video} changed since crops were made from it")
    assert cli("verify", "--work", work, "--raw")[0] == 0
    video.unlink()
    code, out, err = cli("repair", "--work", work, "--raw", "--workers", "0")
    assert (code, err) == (1, "")
    assert out[-1] == f"still damaged: {video} is gone since crops were made from it; they are kept"


def test_a_damaged_index_is_named_first_and_nothing_is_mended_over_it(cli: Cli, work: Path) -> None:
    path = work / "samples.parquet"
    pq.write_table(pq.read_table(path), path, compression="gzip")  # still a table, of other bytes
    before = times(work)
    code, out, _ = cli("verify", "--work", work)
    assert code == 1
    assert out[0] == f"index: {work / 'samples.parquet'} holds other bytes than were committed (sha256)"
    assert out[-1].endswith("run `c2vl-pipeline index` again first, then verify again")
    code, out, err = cli("repair", "--work", work, "--workers", "0")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "run `c2vl-pipeline index` again first" in err
    assert remade(before, work) == set()
    (work / "samples.parquet").write_bytes(b"PAR1")
    for words in (("verify",), ("repair",), ("status",)):
        code, _, err = cli(*words, "--work", work)
        assert (code, len(err.splitlines())) == (1, 1), err
        assert "samples.parquet is damaged" in err


def test_retry_failed_as_a_command(
    cli: Cli, raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    ids = workspace.load(work).table.column("sample_id").to_pylist()
    broken = {ids[3]: {1}, ids[20]: {0, 2}}
    break_captions(monkeypatch, broken)
    road(work, recipe)
    del broken[ids[3]]
    code, out, err = cli("retry-failed", "--work", work, "--workers", "0")
    assert (code, err) == (0, "")
    assert out[-2:] == [
        "captions: 2 samples tried again, 1 failed again",
        "embeddings: brought up to date",
    ]
    broken.clear()
    code, out, err = cli("retry-failed", "--work", work, "--workers", "0")
    assert out[-2] == "captions: 1 sample tried again, none failed again"
    assert cli("retry-failed", "--work", work) == (
        0,
        [f"{work}: no row has failed or could not be decoded; nothing to try again"],
        "",
    )
    code, _, err = cli("verify", "--work", tmp_path)
    assert code == 1
    assert "holds no index" in err


def test_a_repair_that_died_is_named_and_ended_by_the_next_one(work: Path, recipe: Recipe, cli: Cli) -> None:
    path = shard_path(work, "captions", 1)
    flip(path, path.stat().st_size // 2)
    damages = verify.verify(work)

    def die(command: str, only: frozenset[int], redo: verify.Redo) -> None:
        raise StageError("the scheduler was lost")

    with pytest.raises(StageError, match="the scheduler was lost"):
        verify.repair(work, recipe, damages, die)
    assert not path.exists()
    # a run of another shard has called the stage unfinished meanwhile
    runner.run(caption.STAGE, work, recipe, only=frozenset({0}))
    (left,) = verify.verify(work)
    assert (left.stage, left.shard, left.path) == ("captions", 1, str(path))
    code, out, err = cli("repair", "--work", work, "--workers", "0")
    assert (code, err) == (0, "")
    assert "is whole again" in out[-1]
    assert verify.verify(work) == []


def test_a_smaller_index_does_not_drop_rows_unasked(
    cli: Cli, raw: Path, tmp_path: Path, recipe: Recipe
) -> None:
    work = start(raw, tmp_path / "w")
    road(work, recipe)
    before = {p.name: p.read_bytes() for p in sorted((work / "captions").glob("shard-*"))}
    words = (
        "prompts",
        "--dataset",
        "synthetic",
        "--data",
        raw,
        "--work",
        work,
        "--recipe",
        "debug",
        "--workers",
        "0",
    )
    code, _, err = cli(*words, "--limit", "3")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "samples" in err
    assert "that its index no longer has" in err
    assert {p.name: p.read_bytes() for p in sorted((work / "captions").glob("shard-*"))} == before
    code, _, err = cli(*words, "--limit", "3", "--overwrite")
    assert (code, err) == (0, "")
    assert workspace.load(work).table.num_rows == 3


def test_a_wrong_option_leaves_a_complete_stage_complete(cli: Cli, work: Path) -> None:
    words = ("embed", "--work", work, "--workers", "0", "--overwrite", "--recipe", "debug")
    code, _, err = cli(*words, "--set", "pipeline.embed.engine.options.image_dim=0")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "image_dim = 0" in err
    manifest = read_stage_manifest(work / "embeddings")
    assert manifest is not None
    assert manifest.complete
