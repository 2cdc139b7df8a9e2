"""The runner: one row for everything expected, resume after kills and full disks, staleness, workers, status."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import EngineError, StageError
from c2vl_manifests.events import Event, Note, Progress
from c2vl_manifests.manifest import ShardManifest, read_shard_manifest, read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.engines.posecode import PoseCode
from c2vl_pipeline.execution import progress, runner
from c2vl_pipeline.execution.task import ShardTask, run_shard
from c2vl_pipeline.execution.workers import Workers
from c2vl_pipeline.maintenance.status import survey
from c2vl_pipeline.stages import caption, crop, embed, index, skeletons
from c2vl_pipeline.workspace import shard_path
from support.cli import Cli, refused
from support.factory import STAGES, run_all, start, states


def times(work: Path, stage: str) -> dict[str, int]:
    """Inode-independent proof that a shard was not written again: its data file's time of change."""
    return {f.name: f.stat().st_mtime_ns for f in (work / stage).glob("shard-*.parquet")}


def table(work: Path, stage: str) -> list[dict[str, Any]]:
    return [r for p in sorted((work / stage).glob("*.parquet")) for r in pq.read_table(p).to_pylist()]


@pytest.fixture
def begun(raw: Path, tmp_path: Path) -> Path:
    """An index of 32 samples in 8 shards."""
    return start(raw, tmp_path / "w", 4)


@pytest.fixture(scope="module")
def clean(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages up to captions of 32 samples in 32 shards, never interrupted; not to be written into."""
    work = start(raw, tmp_path_factory.mktemp("clean"), 1)
    run_all(work, recipe, STAGES[:3])
    return work


# ------------------------------------------------------------------------------------------------ rows


def test_every_expected_row_is_there_exactly_once_and_in_order(work: Path, recipe: Recipe) -> None:
    samples = workspace.load(work).table.column("sample_id").to_pylist()
    assert [r["sample_id"] for r in table(work, "skeletons")] == samples
    expected = [(s, slot) for s in samples for slot in range(recipe.pipeline.frames)]
    for stage in ("crops", "captions", "embeddings"):
        assert [(r["sample_id"], r["slot"]) for r in table(work, stage)] == expected
        manifest = read_stage_manifest(work / stage)
        assert manifest is not None
        assert manifest.complete
        assert manifest.rows == manifest.expected_rows == len(expected)
        assert sum(manifest.statuses.values()) == len(expected)
        assert manifest.statuses == dict(sorted(Counter(r["status"] for r in table(work, stage)).items()))


def test_a_finished_stage_is_left_alone_and_says_so(begun: Path, recipe: Recipe) -> None:
    (first,) = run_all(begun, recipe, STAGES[:1])
    before = times(begun, "skeletons")
    events: list[Event] = []
    again = runner.run_stage(skeletons.STAGE, begun, recipe, emit=events.append)
    assert times(begun, "skeletons") == before
    assert again == first
    assert events == [Note("skeletons: 8 of 8 shards are already done"), Progress("skeletons", 32, 32)]


def test_worker_processes_are_asked_for_only_if_a_shard_is_to_be_made(begun: Path, recipe: Recipe) -> None:
    asked: list[str] = []

    def workers() -> None:
        asked.append("once")

    runner.run_stage(skeletons.STAGE, begun, recipe, workers=workers)
    assert asked == ["once"]
    for limit in (None, 4):  # found finished by its seal, and by its shards
        runner.run_stage(skeletons.STAGE, begun, recipe, workers=workers, limit=limit)
    assert asked == ["once"]


def test_progress_counts_samples_up_to_the_total(begun: Path, recipe: Recipe) -> None:
    events: list[Event] = []
    runner.run_stage(skeletons.STAGE, begun, recipe, emit=events.append)
    assert [(e.done, e.total) for e in events if isinstance(e, Progress)] == [(n, 32) for n in range(0, 33, 4)]


def test_samples_of_a_shard_in_the_making_count_as_progress(
    raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WATCH_EVERY", 0.001)
    index.build(load_dataset("synthetic"), raw, tmp_path, recipe.pipeline, recipe="debug")
    events: list[Event] = []
    runner.run_stage(crop.STAGE, tmp_path, recipe, only=frozenset({0, 1}), emit=events.append)
    seen = [event.done for event in events if isinstance(event, Progress)]
    assert max(seen) == 16
    assert {0, 8, 16} < set(seen)
    assert list((tmp_path / "crops").glob(".shard-*.done")) == []


def test_the_manifest_names_engine_and_libraries(work: Path) -> None:
    manifest = read_stage_manifest(work / "captions")
    assert manifest is not None
    assert manifest.inputs["engine"]["backend"] == "posecode"
    assert manifest.provenance["derived_from"] == "joints"
    assert {"numpy", "pyarrow", "opencv-python"} <= set(manifest.provenance["libraries"])


# ----------------------------------------------------------------------------------------------- kills


def kill_at(work: Path, shards: int) -> int:
    """Start `c2vl-pipeline crop`, kill it when so many shards are committed; returns how many then were."""
    folder = work / "crops"
    process = subprocess.Popen(
        [Path(sys.executable).parent / "c2vl-pipeline", "crop", "--work", work, "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and len(list(folder.glob("shard-*.json"))) < shards:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the stage ended before it could be killed"
    return len(list(folder.glob("shard-*.json")))


@pytest.mark.slow
def test_rows_add_up_after_kills_and_finished_shards_are_not_made_again(
    raw: Path, clean: Path, recipe: Recipe, tmp_path: Path
) -> None:
    work = start(raw, tmp_path / "w", 1)
    kept: dict[str, int] = {}
    for shards in (3, 14):
        done = kill_at(work, shards)
        assert shards <= done < 32
        now = times(work, "crops")
        assert {k: now[k] for k in kept} == kept
        kept = {name: when for name, when in now.items() if read_shard_manifest(work / "crops" / name) is not None}
        assert len(kept) == done
        manifest = read_stage_manifest(work / "crops")
        assert manifest is not None
        assert not manifest.complete
    assert states(work, recipe)["crops"] == "unfinished"
    (work / "crops" / ".shard-00031.parquet.0123.tmp").write_bytes(b"half")
    final = runner.run_stage(crop.STAGE, work, recipe)
    reference = read_stage_manifest(clean / "crops")
    assert reference is not None
    assert (final.complete, final.rows, final.digest) == (True, 128, reference.digest)
    assert final.statuses == reference.statuses
    now = times(work, "crops")
    assert len(now) == 32
    assert {k: now[k] for k in kept} == kept
    assert [p.name for p in (work / "crops").rglob(".*")] == [".lock"]


@pytest.mark.parametrize("damage", ["delete data", "delete manifest", "truncate", "other key"])
def test_only_the_damaged_shard_is_made_again(begun: Path, recipe: Recipe, damage: str) -> None:
    (first,) = run_all(begun, recipe, STAGES[:1])
    path = shard_path(begun, "skeletons", 3)
    if damage == "delete data":
        path.unlink()
    elif damage == "delete manifest":
        path.with_suffix(".json").unlink()
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        text = path.with_suffix(".json").read_text()
        path.with_suffix(".json").write_text(text.replace('"key": "', '"key": "0'))
    before = times(begun, "skeletons")
    assert states(begun, recipe)["skeletons"] in {"unfinished", "stale"}
    (again,) = run_all(begun, recipe, STAGES[:1])
    assert (again.digest, again.rows, again.complete) == (first.digest, 32, True)
    after = times(begun, "skeletons")
    assert {n for n in after if after[n] != before.get(n)} == {path.name}


def test_a_full_disk_leaves_the_finished_shards_and_the_stage_goes_on_from_there(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = pq.write_table, []

    def full(data: Any, where: Path, **options: Any) -> None:
        calls.append(where)
        if len(calls) > 3:
            where.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(data, where, **options)

    monkeypatch.setattr("c2vl_manifests.manifest.pq.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        runner.run_stage(skeletons.STAGE, begun, recipe)
    monkeypatch.undo()
    before = times(begun, "skeletons")
    assert sorted(before) == [f"shard-0000{n}.parquet" for n in range(3)]
    assert [p.name for p in (begun / "skeletons").rglob(".*")] == [".lock"]
    status = survey(begun, recipe)[0]
    assert (status.state, status.shards_done, status.rows) == ("unfinished", 3, 12)
    (done,) = run_all(begun, recipe, STAGES[:1])
    assert done.complete
    after = times(begun, "skeletons")
    assert {n: after[n] for n in before} == before


# ------------------------------------------------------------------------------------------- staleness


@pytest.mark.slow
def test_a_changed_value_makes_its_stage_stale_and_redone_and_no_other(begun: Path, recipe: Recipe) -> None:
    before = run_all(begun, recipe, STAGES[:3])
    other = load_recipe("debug", ["pipeline.crop.jpeg_quality=60"])
    assert states(begun, recipe) | {"embeddings": "", "packed": ""} == {
        "skeletons": "complete", "crops": "complete", "captions": "complete", "embeddings": "", "packed": "",
    }  # fmt: skip
    assert states(begun, other)["crops"] == "stale"
    assert states(begun, other)["skeletons"] == "complete"
    old = {stage: times(begun, stage) for stage in ("skeletons", "crops")}
    after = run_all(begun, other, STAGES[:2])
    assert times(begun, "skeletons") == old["skeletons"]
    assert all(times(begun, "crops")[n] != when for n, when in old["crops"].items())
    assert after[1].digest != before[1].digest
    # captions were made from other crops: stale although their own configuration is the same
    assert states(begun, other)["captions"] == "stale"
    (captions,) = run_all(begun, other, STAGES[2:3])
    assert captions.digest == before[2].digest
    assert states(begun, other)["captions"] == "complete"


@pytest.mark.slow
def test_a_change_upstream_that_leaves_the_rows_as_they_were_costs_nothing_below(begun: Path, recipe: Recipe) -> None:
    run_all(begun, recipe, STAGES[:3])
    other = load_recipe("debug", ["pipeline.crop.max_side=600"])  # no crop is that large
    captions = times(begun, "captions")
    assert states(begun, other)["crops"] == "stale"
    run_all(begun, other, STAGES[:3])
    assert times(begun, "captions") == captions


def test_batches_and_devices_do_not_make_a_stage_stale(begun: Path, recipe: Recipe) -> None:
    run_all(begun, recipe, STAGES[:2])
    other = load_recipe("debug", ["pipeline.crop.engine.batch_size=3", "pipeline.crop.engine.device=cpu"])
    assert states(begun, other)["crops"] == "complete"
    other = load_recipe("debug", ["pipeline.crop.engine.options.grow=0.2"])
    assert states(begun, other)["crops"] == "stale"


# ------------------------------------------------------------------------------------------------ order


def test_a_stage_before_its_predecessor_names_the_command(begun: Path, recipe: Recipe) -> None:
    for stage, needs, command in ((caption.STAGE, "crops", "crop"), (embed.STAGE, "crops", "crop")):
        with pytest.raises(StageError) as caught:
            runner.run_stage(stage, begun, recipe)
        assert str(caught.value) == (
            f"{stage.command} needs the {needs} of {begun}, which do not exist; run `c2vl-pipeline {command} --work {begun}` first"
        )
    run_all(begun, recipe, STAGES[1:2])
    with pytest.raises(StageError, match=r"caption needs the skeletons of .* run `c2vl-pipeline skeletons "):
        runner.run_stage(caption.STAGE, begun, recipe)
    assert not (begun / "captions").exists()


@pytest.mark.slow
def test_a_limit_makes_the_first_shards_and_leaves_the_stage_unfinished(begun: Path, recipe: Recipe) -> None:
    run_all(begun, recipe, STAGES[:1])
    part = runner.run_stage(crop.STAGE, begun, recipe, limit=5)
    assert (part.complete, part.rows, part.expected_rows, part.digest) == (False, 32, 128, "")
    assert sorted(times(begun, "crops")) == ["shard-00000.parquet", "shard-00001.parquet"]
    with pytest.raises(StageError) as caught:
        runner.run_stage(caption.STAGE, begun, recipe)
    assert str(caught.value) == (
        f"caption needs all crops of {begun}: 32 of 128 rows exist; run `c2vl-pipeline crop --work {begun}` again, "
        "or take the first ones with --limit"
    )
    assert runner.run_stage(caption.STAGE, begun, recipe, limit=8).rows == 32
    with pytest.raises(StageError) as caught:
        runner.run_stage(caption.STAGE, begun, recipe, limit=9)
    assert str(caught.value) == (
        f"caption needs {shard_path(begun, 'crops', 2)}, which is absent or damaged; run `c2vl-pipeline crop --work {begun}` again"
    )
    before = times(begun, "crops")
    assert runner.run_stage(crop.STAGE, begun, recipe).complete
    assert {n: t for n, t in times(begun, "crops").items() if n in before} == before
    assert runner.run_stage(caption.STAGE, begun, recipe).complete


@pytest.mark.slow
def test_a_shard_lost_upstream_is_named_before_work_begins(begun: Path, recipe: Recipe) -> None:
    run_all(begun, recipe, STAGES[:2])
    shard_path(begun, "crops", 6).unlink()
    with pytest.raises(StageError, match=r"crops/shard-00006.parquet, which is absent or damaged; run `c2vl-"):
        runner.run_stage(caption.STAGE, begun, recipe)
    run_all(begun, recipe, STAGES[1:2])
    assert runner.run_stage(caption.STAGE, begun, recipe).complete


# --------------------------------------------------------------------------------------------- poison


@pytest.mark.slow
def test_a_poisonous_sample_costs_only_its_own_rows(
    begun: Path, recipe: Recipe, clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(begun, recipe, STAGES[:2])
    describe, sizes = PoseCode.caption, []

    def poisoned(self: PoseCode, crops: Sequence[Any], question: str) -> list[Any]:
        sizes.append(len(crops))
        if any(c.sample_id == "S001C002P001R001A002" and c.slot == 3 for c in crops):
            raise RuntimeError("poison " + "x" * 400)
        return describe(self, crops, question)

    monkeypatch.setattr(PoseCode, "caption", poisoned)
    manifest = runner.run_stage(caption.STAGE, begun, recipe)
    assert manifest.statuses == {"failed": 1, "ok": 127}
    assert manifest.complete
    rows = table(begun, "captions")
    (bad,) = [r for r in rows if r["status"] == "failed"]
    assert (bad["sample_id"], bad["slot"], bad["attempts"]) == ("S001C002P001R001A002", 3, 2)
    assert (bad["error_class"], len(bad["error"]), bad["caption"]) == ("RuntimeError", 300, None)
    whole = {(r["sample_id"], r["slot"]): r["caption"] for r in table(clean, "captions")}
    assert all(r["caption"] == whole[r["sample_id"], r["slot"]] for r in rows if r is not bad)
    assert max(sizes) == 8
    assert sizes.count(1) == 8  # one batch of eight was taken apart


# --------------------------------------------------------------------------------------------- workers


@pytest.mark.slow
def test_two_workers_give_what_one_gives(begun: Path, recipe: Recipe) -> None:
    (alone,) = run_all(begun, recipe, STAGES[1:2])
    shutil.rmtree(begun / "crops")
    with Workers(2) as workers:
        together = runner.run_stage(crop.STAGE, begun, recipe, workers=workers)
    assert (together.digest, together.rows, together.complete) == (alone.digest, 128, True)
    assert together.provenance == alone.provenance


# ------------------------------------------------------------------------------------- what is refused


@pytest.mark.slow
def test_rows_of_another_configuration_are_not_made_again_unasked(begun: Path, recipe: Recipe) -> None:
    run_all(begun, recipe, STAGES[:2])
    before = times(begun, "crops")
    other = load_recipe("debug", ["pipeline.crop.margin=0.2"])
    with pytest.raises(StageError) as caught:
        runner.run_stage(crop.STAGE, begun, other, overwrite=False)
    assert "(config.margin: 0.1 -> 0.2)" in str(caught.value)
    assert str(caught.value).endswith("another --work, or --overwrite to make them again")
    assert times(begun, "crops") == before
    assert runner.run_stage(crop.STAGE, begun, recipe, overwrite=False).complete  # the same one goes on
    assert runner.run_stage(crop.STAGE, begun, other).complete
    assert times(begun, "crops") != before


@pytest.mark.slow
def test_an_engine_that_refuses_an_option_leaves_a_finished_stage_finished(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(begun, recipe, STAGES[:2])
    before = times(begun, "crops")

    def refuses(task: ShardTask) -> None:
        raise EngineError("temperature: is no option of it")  # which an engine with weights says where it is loaded

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_shard", refuses)
        with pytest.raises(EngineError, match="temperature"):
            runner.run_stage(crop.STAGE, begun, load_recipe("debug", ["pipeline.crop.margin=0.2"]))
    assert times(begun, "crops") == before
    found = read_stage_manifest(begun / "crops")
    assert found is not None
    assert found.complete
    run_all(begun, recipe, STAGES[:3])
    assert times(begun, "crops") == before


@pytest.mark.slow
def test_a_shard_that_was_committed_unseen_leaves_the_stage_unfinished(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(begun, recipe, STAGES[:2])

    def commits_and_refuses(task: ShardTask) -> None:
        run_shard(task)
        raise EngineError("refused")  # as if another worker had committed meanwhile

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_shard", commits_and_refuses)
        with pytest.raises(EngineError, match="refused"):
            runner.run_stage(crop.STAGE, begun, load_recipe("debug", ["pipeline.crop.margin=0.2"]))
    found = read_stage_manifest(begun / "crops")
    assert found is not None
    assert not found.complete
    with pytest.raises(StageError, match="caption needs all crops"):
        runner.run_stage(caption.STAGE, begun, recipe)


def linked(raw: Path, folder: Path) -> Path:
    """A folder of links to the raw files, to be damaged."""
    for path in sorted(raw.rglob("*")):
        target = folder / path.relative_to(raw)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.symlink_to(path)
    return folder


def test_a_raw_folder_that_is_away_is_refused_and_no_row_says_missing(
    raw: Path, tmp_path: Path, recipe: Recipe
) -> None:
    folder = linked(raw, tmp_path / "raw")
    work = start(folder, tmp_path / "w", 4)
    folder.rename(tmp_path / "away")
    with pytest.raises(StageError, match=r"the raw folder .* is not there; mount it"):
        runner.run_stage(crop.STAGE, work, recipe)
    (tmp_path / "away").rename(folder)
    assert runner.run_stage(crop.STAGE, work, recipe).statuses == {"ok": 128}


@pytest.mark.slow
def test_an_unreadable_video_costs_its_rows_and_one_that_was_away_is_tried_again(
    raw: Path, tmp_path: Path, recipe: Recipe
) -> None:
    from c2vl_pipeline.maintenance.repair import failed_samples

    folder = linked(raw, tmp_path / "raw")
    work = start(folder, tmp_path / "w", 4)
    first, second = sorted(folder.rglob("*_rgb.avi"))[:2]
    first.unlink()
    first.symlink_to(first)  # a loop
    target = second.readlink()
    second.unlink()
    manifest = runner.run_stage(crop.STAGE, work, recipe)
    assert manifest.statuses == {"decode_error": 4, "missing_video": 4, "ok": 120}
    tried = {s for ids in failed_samples(work, crop.STAGE).values() for s in ids}
    assert tried == {p.name.removesuffix("_rgb.avi") for p in (first, second)}
    second.symlink_to(target)
    again = runner.run_stage(crop.STAGE, work, recipe, redo=failed_samples(work, crop.STAGE))
    assert again.statuses == {"decode_error": 4, "ok": 124}


def test_what_a_kill_after_the_commit_leaves_behind_is_removed_by_the_next_run(
    raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    work = tmp_path / "w"
    index.build(load_dataset("synthetic"), raw, work, recipe.pipeline, recipe="debug")
    runner.run_stage(skeletons.STAGE, work, recipe)
    folder = work / "skeletons"
    manifest = read_shard_manifest(folder / "shard-00001.parquet")
    assert manifest is not None
    for name in ("00000-00004.piece", "123.journal"):
        (folder / f".shard-00001-{manifest.key[:12]}-{name}").write_bytes(b"left")
    runner.run_stage(skeletons.STAGE, work, recipe)
    assert [p.name for p in folder.glob(".*")] == [".lock"]


def test_what_a_worker_killed_in_a_commit_leaves_behind_is_removed_by_the_same_run(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_a_kill(task: ShardTask) -> ShardManifest | None:
        (begun / "skeletons" / f".shard-{task.number:05d}.parquet.0123.tmp").write_bytes(b"half")
        return run_shard(task)

    monkeypatch.setattr(runner, "run_shard", after_a_kill)
    assert runner.run_stage(skeletons.STAGE, begun, recipe).complete
    assert [p.name for p in (begun / "skeletons").glob(".*")] == [".lock"]


# -------------------------------------------------------------------------------------------------- locks


def refusing(number: int) -> Any:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_serves_with_a_note(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(number))
    events: list[Event] = []
    assert runner.run_stage(skeletons.STAGE, begun, recipe, limit=4, emit=events.append).rows == 4
    notes = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert len(notes) == 1
    assert "no locks" in notes[0]


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES])
def test_a_lock_that_is_held_is_another_run(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (begun / "skeletons").mkdir(exist_ok=True)
    (begun / "skeletons" / ".lock").write_text("process 7 on there")
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with pytest.raises(StageError, match="is being filled by another run"):
        runner.run_stage(skeletons.STAGE, begun, recipe)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
def test_a_lock_that_fails_otherwise_is_no_other_run(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    runner.run_stage(skeletons.STAGE, begun, recipe, limit=4)  # leaves no name of a process in the lock
    monkeypatch.setattr("fcntl.flock", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        runner.run_stage(skeletons.STAGE, begun, recipe)
    assert (caught.value.errno, caught.value.filename) == (number, str(begun / "skeletons" / ".lock"))


@pytest.mark.parametrize("kind", ["link", "pipe", "hard link"])
def test_a_lock_that_is_a_file_of_others_is_not_written_to(
    begun: Path, recipe: Recipe, tmp_path: Path, cli: Cli, kind: str
) -> None:
    precious, lock = tmp_path / "thesis.tex", begun / "skeletons" / ".lock"
    precious.write_text("years of work")
    lock.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        (lock.symlink_to if kind == "link" else lock.hardlink_to)(precious)
    said = cli("c2vl-pipeline", "skeletons", "--work", begun, "--workers", "0")
    assert precious.read_text() == "years of work"
    if kind == "hard link":  # of a copy of the folder made by links, for one
        assert said.code == 0
    else:
        refused(said, str(lock), "expected a file of its own; remove it")
        lock.unlink()
        assert runner.run_stage(skeletons.STAGE, begun, recipe).complete


@pytest.mark.parametrize("leftover", [".shard-00000.hang", ".shard-00000.done", ".x.tmp", "shard-00099.parquet"])
def test_what_is_removed_from_a_stage_is_a_link_and_never_its_target(
    begun: Path, recipe: Recipe, tmp_path: Path, leftover: str
) -> None:
    others = tmp_path / "of others"
    others.mkdir()
    for name in ("file", ".y.tmp"):
        (others / name).write_text("kept")
    folder = begun / "skeletons"
    folder.mkdir()
    (folder / leftover).symlink_to(others / "file")
    (folder / "more").symlink_to(others)
    assert runner.run_stage(skeletons.STAGE, begun, recipe).complete
    assert not os.path.lexists(folder / leftover)
    assert {path.name: path.read_text() for path in others.iterdir()} == {"file": "kept", ".y.tmp": "kept"}
