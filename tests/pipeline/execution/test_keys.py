"""Shards that are stale: joints files that were corrected and kept their size; stages that nobody touched."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from c2vl_manifests.manifest import ShardManifest, read_shard
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline.execution import keys, runner
from c2vl_pipeline.execution.keys import former_inputs
from c2vl_pipeline.execution.sharing import Share
from c2vl_pipeline.execution.task import ShardTask, run_shard
from c2vl_pipeline.stages import STAGES, base
from c2vl_pipeline.stages.base import untouched
from c2vl_pipeline.workspace import load, shard_path
from support.cli import Cli
from support.factory import STAGE_NAMES, break_captions, run_all, start, states


@pytest.fixture
def copy(whole: Path, raw: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Raw folder and work folder of one's own."""
    folder = Path(shutil.copytree(raw, tmp_path / "raw"))
    return folder, start(folder, Path(shutil.copytree(whole, tmp_path / "w")))


def files_of(work: Path) -> list[Path]:
    index = load(work)
    return [index.root / name for name in index.table.column("skeleton").to_pylist()]


def correct(path: Path) -> None:
    """Change one digit of a joint's position far down the file: other joints, the same size."""
    data = path.read_bytes()
    at = len(data) // 2
    at += next(n for n, byte in enumerate(data[at:]) if chr(byte) == "." and chr(data[at + n + 1]).isdigit()) + 1
    path.write_bytes(data[:at] + (b"1" if data[at : at + 1] != b"1" else b"2") + data[at + 1 :])


def attempts(work: Path, stage: str) -> list[int]:
    shards = [shard_path(work, stage, n) for n in range(len(load(work).shard_ranges))]
    return [n for path in shards for n in read_shard(path, ["attempts"]).column("attempts").to_pylist()]


def run(cli: Cli, work: Path, command: str) -> list[str]:
    said = cli("c2vl-pipeline", command, "--work", work, "--workers", "0")
    assert (said.code, said.err) == (0, "")
    return said.out.splitlines()


@pytest.mark.parametrize("places", [[0], [3, 17], [0, 1, 2, 31]], ids=["one", "two", "four"])
def test_corrected_joints_cost_their_samples_alone(cli: Cli, copy: tuple[Path, Path], places: list[int]) -> None:
    _, work = copy
    files = files_of(work)
    run(cli, work, "skeletons")
    for place in places:
        correct(files[place])
    code, out, _ = cli("c2vl-pipeline", "status", "--work", work, "--why").told
    assert code == 1
    assert any(line.startswith("skeletons: ") and "changed since" in line for line in out)
    assert any("samples are made again" in line for line in run(cli, work, "skeletons"))
    assert [n for n, count in enumerate(attempts(work, "skeletons")) if count > 1] == places
    assert any("samples are made again" in line for line in run(cli, work, "crop"))
    crops = attempts(work, "crops")
    assert sorted({n * len(files) // len(crops) for n, count in enumerate(crops) if count > 1}) == places
    for command in ("skeletons", "crop"):
        assert not any("made again" in line for line in run(cli, work, command))
    code, out, _ = cli("c2vl-pipeline", "status", "--work", work, "--why").told
    assert not any("joints" in line or line.startswith(("skeletons: ", "crops: ")) for line in out if "changed" in line)


def test_files_that_were_only_touched_are_read_once(cli: Cli, copy: tuple[Path, Path]) -> None:
    _, work = copy
    run(cli, work, "skeletons")
    before = attempts(work, "skeletons")
    for path in files_of(work):
        os.utime(path, (time.time(), time.time()))
    manifest = shard_path(work, "skeletons", 0).with_suffix(".json")
    then = manifest.stat().st_mtime
    assert not any("made again" in line for line in run(cli, work, "skeletons"))
    assert manifest.stat().st_mtime > then
    assert attempts(work, "skeletons") == before


def test_a_corrected_file_that_keeps_its_time_is_found_and_one_that_is_gone_costs_nothing(
    cli: Cli, copy: tuple[Path, Path]
) -> None:
    _, work = copy
    files = files_of(work)
    correct(files[5])
    os.utime(files[5], (1e9, 1e9))
    files[6].unlink()
    run(cli, work, "skeletons")
    assert [n for n, count in enumerate(attempts(work, "skeletons")) if count > 1] == [5]


@pytest.mark.parametrize("key", ["../secret", "/secret", "..", "a/../../secret", "a\0b", ""])
def test_inputs_are_looked_up_by_hashes_and_never_by_paths(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "w" / "crops"
    for path in (folder / "secret.json", folder / "inputs" / "abc1.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"inputs": {"password": 1}}')
    assert former_inputs(folder, "abc1") == {"password": 1}
    assert former_inputs(folder, key.replace("/secret", f"{folder}/secret") if key[:1] == "/" else key) is None


# ------------------------------------------------------------------------------------------- untouched stages


@pytest.fixture
def sealed(copy: tuple[Path, Path], recipe: Recipe) -> Path:
    """A work folder whose stages have all been found complete."""
    run_all(copy[1], recipe)
    return copy[1]


def test_stages_that_nobody_touched_are_found_complete_without_opening_a_shard(
    sealed: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, shown = run_all(sealed, recipe), states(sealed, recipe)

    def opened(*_: object) -> None:
        raise AssertionError("a shard was opened")

    for module, name in ((keys, "finished_shard"), (keys, "read_shard_manifest"), (base, "finished_shard")):
        monkeypatch.setattr(module, name, opened)
    assert run_all(sealed, recipe) == before
    assert states(sealed, recipe) == shown
    assert {shown[name] for name in STAGE_NAMES} == {"complete"}


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    "touch",
    [
        lambda work: rewrite(shard_path(work, "embeddings", 2)),
        lambda work: rewrite(shard_path(work, "embeddings", 2).with_suffix(".json")),
        lambda work: shard_path(work, "embeddings", 2).unlink(),
        lambda work: rewrite(shard_path(work, "captions", 0)),
        lambda work: (work / "embeddings" / ".shard-00001-0123-00000-00002.piece").touch(),
        lambda work: start(load(work).root, work, shard_samples=16),
    ],
    ids=["shard", "manifest", "gone", "earlier stage", "cut short", "index"],
)
def test_a_touched_stage_is_looked_at_again(sealed: Path, recipe: Recipe, touch: Callable[[Path], object]) -> None:
    assert untouched(load(sealed), "embeddings") is not None
    touch(sealed)
    assert untouched(load(sealed), "embeddings") is None
    run_all(sealed, recipe)
    assert untouched(load(sealed), "embeddings") is not None


def test_a_stage_whose_earlier_stage_was_made_again_while_it_ran_is_stale(
    sealed: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = str(load(sealed).table["sample_id"][0])

    def while_captions_change(task: ShardTask) -> ShardManifest | None:
        monkeypatch.setattr(runner, "run_shard", run_shard)
        made = run_shard(task)
        break_captions(monkeypatch, {sample: {0}})
        runner.run_stage(STAGES["captions"], sealed, recipe, redo={0: frozenset({sample})})
        return made

    shard_path(sealed, "embeddings", 3).unlink()
    monkeypatch.setattr(runner, "run_shard", while_captions_change)
    runner.run_stage(STAGES["embeddings"], sealed, recipe)
    assert untouched(load(sealed), "captions") is not None
    assert untouched(load(sealed), "embeddings") is None
    assert states(sealed, recipe)["embeddings"] == "stale"


def test_a_stage_that_lost_a_shard_while_another_was_made_is_not_sealed(
    sealed: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = shard_path(sealed, "embeddings", 0)

    def while_one_is_removed(task: ShardTask) -> ShardManifest | None:
        lost.unlink(missing_ok=True)
        return run_shard(task)

    shard_path(sealed, "embeddings", 3).unlink()
    monkeypatch.setattr(runner, "run_shard", while_one_is_removed)
    runner.run_stage(STAGES["embeddings"], sealed, recipe)
    assert states(sealed, recipe)["embeddings"] == "unfinished"
    monkeypatch.setattr(runner, "run_shard", run_shard)
    runner.run_stage(STAGES["embeddings"], sealed, recipe)
    assert lost.is_file()
    assert states(sealed, recipe)["embeddings"] == "complete"


def test_a_shard_behind_a_link_that_leads_nowhere_is_made_again(sealed: Path, recipe: Recipe, tmp_path: Path) -> None:
    shard = shard_path(sealed, "embeddings", 2)
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    run_all(sealed, recipe)
    assert untouched(load(sealed), "embeddings") is not None
    (tmp_path / "elsewhere").unlink()
    assert states(sealed, recipe)["embeddings"] == "unfinished"
    run_all(sealed, recipe)
    assert shard.is_file()


@pytest.mark.parametrize("share", [None, Share(1, 2)], ids=["whole", "share"])
def test_joints_files_changed_by_a_clock_that_is_ahead_cost_a_look_and_no_more(
    sealed: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, share: Share | None
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(keys, "changed_at", lambda path: looked.append(path) or time.time() + 1e6)
    manifest = runner.run_stage(STAGES["skeletons"], sealed, recipe, share=share)
    assert (manifest.complete, len(looked)) == (True, 32 if share is None else 64)
    assert (untouched(load(sealed), "skeletons") is None) == (share is not None)


def test_the_index_is_read_again_when_it_changed(sealed: Path) -> None:
    index = load(sealed)
    assert load(sealed) is index
    start(index.root, sealed, shard_samples=16)
    assert len(load(sealed).shard_ranges) < len(index.shard_ranges)
