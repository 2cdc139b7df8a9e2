"""Shares of a stage: several processes fill it at one time, none makes what another makes, and the rows are a whole run's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from c2vl_manifests.errors import StageError
from c2vl_manifests.events import Event, Note, Progress, silent
from c2vl_manifests.manifest import StageManifest, read_stage_manifest, write_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline.execution import keys, runner, stage_manifest
from c2vl_pipeline.execution.sharing import Share, locked
from c2vl_pipeline.stages import skeletons
from support.cli import Cli, refused, sets
from support.factory import STAGE_NAMES, STAGES, digests, road, start, times


@pytest.fixture
def begun(raw: Path, tmp_path: Path) -> Path:
    """An index of 32 samples in 8 shards."""
    return start(raw, tmp_path / "w", 4)


@pytest.fixture(scope="module")
def reference(raw: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of all stages, made in one go in this process."""
    return road(start(raw, tmp_path_factory.mktemp("reference"), 4), recipe)


def hidden(work: Path) -> set[str]:
    return {path.name for name in STAGE_NAMES for path in (work / name).rglob(".*")}


@pytest.mark.parametrize(("count", "of"), [(8, 3), (8, 1), (2, 5), (0, 2)])
def test_every_shard_is_in_one_share(count: int, of: int) -> None:
    shares = [Share(number, of).shards(count) for number in range(1, of + 1)]
    assert sorted(n for share in shares for n in share) == list(range(count))


def test_shares_in_any_order_make_the_rows_of_a_whole_run_and_the_last_completes_each_stage(
    begun: Path, recipe: Recipe, reference: dict[str, str]
) -> None:
    made: dict[str, list[StageManifest]] = {name: [] for name in STAGE_NAMES}
    for number in (3, 1, 2):
        for stage in STAGES:  # all stages of one share, before the others have begun
            made[stage.name].append(runner.run_stage(stage, begun, recipe, share=Share(number, 3)))
    for manifests in made.values():
        assert [m.complete for m in manifests] == [False, False, True]
        assert manifests[0].rows < manifests[1].rows < manifests[2].rows
    assert digests(begun) == reference
    before = times(begun)
    road(begun, recipe)
    assert times(begun) == before
    assert hidden(begun) == {".lock"}


def test_a_share_with_other_settings_is_refused_before_it_makes_anything(begun: Path, recipe: Recipe) -> None:
    runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 2))
    fewer = recipe.pipeline.skeletons.model_copy(update={"second_body": "copy"})
    other = recipe.model_copy(update={"pipeline": recipe.pipeline.model_copy(update={"skeletons": fewer})})
    with pytest.raises(StageError, match=r"made under another configuration .*second_body"):
        runner.run_stage(skeletons.STAGE, begun, other, share=Share(2, 2), overwrite=False)
    assert len([*(begun / "skeletons").glob("shard-*.json")]) == 4


def test_a_share_of_fewer_shards_than_shares_has_nothing_to_make(begun: Path, recipe: Recipe) -> None:
    events: list[Event] = []
    manifest = runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(9, 9), emit=events.append)
    assert manifest.rows == 0
    assert "skeletons: share 9/9 has nothing to make of 8 shards" in [e.text for e in events if isinstance(e, Note)]


def test_progress_of_a_share_counts_its_own_samples(begun: Path, recipe: Recipe) -> None:
    runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 3))
    (begun / "skeletons" / ".shard-00002.done").write_text('{"samples": 3, "speed": {}}')  # of the third one
    for done in (False, True):
        events: list[Event] = []
        runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(2, 3), emit=events.append)
        counted = [(e.done, e.total) for e in events if isinstance(e, Progress)]
        assert counted == ([(12, 12)] if done else [(0, 12), (4, 12), (8, 12), (12, 12)])
        noted = [e.text for e in events if isinstance(e, Note)]
        assert noted == (["skeletons: 3 of 3 shards are already done"] if done else [])


def test_keys_are_computed_again_only_when_a_shard_was_finished_meanwhile(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    known = keys.stage_keys
    for module in (runner, stage_manifest):
        monkeypatch.setattr(module, "stage_keys", lambda *args: computed.append(1) or known(*args))
    runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 2))
    assert len(computed) == 2  # to find what is due, and for the manifest


def test_what_others_finish_while_the_manifest_is_written_is_in_it(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []

    def while_others_finish(folder: Path, manifest: StageManifest) -> None:
        if manifest.rows == 16 and not inside:  # what this share knows; the other is faster from here on
            inside.append(1)
            runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(2, 2))
        write_stage_manifest(folder, manifest)

    for module in (runner, stage_manifest):
        monkeypatch.setattr(module, "write_stage_manifest", while_others_finish)
    assert runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 2)).complete
    manifest = read_stage_manifest(begun / "skeletons")
    assert manifest is not None
    assert (inside, manifest.complete, manifest.rows) == ([1], True, 32)


# -------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize(
    ("holds", "asks", "named"),
    [
        (Share(1, 2), Share(1, 2), r"process \d+ on "),
        (Share(1, 2), None, r"share 1/2, process \d+ on "),
        (Share(1, 2), Share(2, 3), r"process \d+ on "),
        (None, Share(1, 2), r"process \d+ on "),
    ],
)
def test_runs_of_the_same_shards_exclude_each_other(
    begun: Path, recipe: Recipe, holds: Share | None, asks: Share | None, named: str
) -> None:
    folder = begun / "skeletons"
    folder.mkdir()
    with locked(folder, holds, silent), pytest.raises(StageError, match=rf"is being filled by another run \({named}"):
        runner.run_stage(skeletons.STAGE, begun, recipe, share=asks)
    assert runner.run_stage(skeletons.STAGE, begun, recipe, share=asks).rows


def test_another_share_is_not_in_the_way_and_keeps_its_files(begun: Path, recipe: Recipe) -> None:
    folder = begun / "skeletons"
    folder.mkdir()
    others = {".shard-00001.parquet.0123.tmp", ".shard-00003.done", ".shard-00005.hang", ".stage.json.0123.tmp"}
    with locked(folder, Share(2, 2), silent):
        for name in [*others, ".shard-00002.parquet.0123.tmp", ".shard-00004.done"]:
            (folder / name).write_bytes(b"being written")
        runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 2))
        assert {path.name for path in folder.glob(".s*") if not path.name.endswith(".lock")} == others
    runner.run_stage(skeletons.STAGE, begun, recipe)
    assert hidden(begun) == {".lock"}


def test_a_file_system_without_locks_serves_shares_with_one_note(
    begun: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none)
    events: list[Event] = []
    assert runner.run_stage(skeletons.STAGE, begun, recipe, share=Share(1, 2), emit=events.append).rows == 16
    (text,) = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    assert text.endswith("this file system has no locks; going on without: start no share twice")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_of_a_share_that_is_a_file_of_others_is_named(begun: Path, tmp_path: Path, cli: Cli, kind: str) -> None:
    lock = begun / "skeletons" / ".share-2-of-3.lock"
    lock.parent.mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(tmp_path / "thesis.tex")
    said = cli("c2vl-pipeline", "skeletons", "--work", begun, "--workers", "0", "--share", "1/2")
    refused(said, str(lock), "expected a file of its own; remove it")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# ------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "3", "3/", "/8", "-1/8", "3/8/2", "a/b", "1.5/8", f"1/{'9' * 5000}", ""]
)
def test_a_share_that_is_none_is_said_with_its_form(begun: Path, cli: Cli, text: str) -> None:
    said = cli("c2vl-pipeline", "skeletons", "--work", begun, f"--share={text}")
    assert said.code == 2
    assert "K from 1 to N" in " ".join(said.err.replace("│", " ").split())
    assert "Traceback" not in said.err


def test_a_share_needs_an_index_and_the_same_shards_of_the_earlier_stage(begun: Path, raw: Path, cli: Cli) -> None:
    options = ("--work", begun, "--workers", "0")
    said = cli("c2vl-pipeline", "prompts", *options, "--share", "1/2", "--dataset", "synthetic", "--data", raw)
    assert said.code == 2
    assert "run `c2vl-pipeline index` first" in " ".join(said.err.replace("│", " ").split())
    said = cli("c2vl-pipeline", "caption", *options, "--share", "1/2")
    refused(said, "caption needs the", "which do not exist; run `c2vl-pipeline")
    for command in ("skeletons", "crop"):
        assert cli("c2vl-pipeline", command, *options, "--share", "1/2").code == 0
    refused(
        cli("c2vl-pipeline", "caption", *options, "--share", "2/2"), "shard-00001.parquet, which is absent or damaged"
    )


def test_prompts_of_all_shares_and_one_call_without_give_the_packed_folder(
    begun: Path, cli: Cli, reference: dict[str, str]
) -> None:
    for share in ("2/2", "1/2"):
        said = cli("c2vl-pipeline", "prompts", "--work", begun, "--workers", "0", "--share", share)
        code, lines, err = said.told
        assert (code, err) == (0, "")
        assert lines[-1] == f"when all shares are done, next: c2vl-pipeline prompts --work {begun}"
        assert not (begun / "packed").exists()
        done = "share 2/2 is done" if share == "2/2" else "all accounted for"
        assert all(done in line for line in lines[:-1])
    assert digests(begun) == reference
    assert cli("c2vl-pipeline", "prompts", "--work", begun, "--workers", "0").code == 0
    assert (begun / "packed" / "packed.json").is_file()


@pytest.mark.slow
def test_processes_that_are_killed_and_started_again_make_the_rows_of_a_whole_run(
    begun: Path, reference: dict[str, str]
) -> None:
    entry = "from c2vl_pipeline.cli import main; main()"

    def share(number: int) -> subprocess.Popen[bytes]:
        words = [
            "prompts",
            "--work",
            str(begun),
            "--workers",
            "0",
            "--share",
            f"{number}/3",
            *sets("pipeline.shard_samples=4"),
        ]
        return subprocess.Popen([sys.executable, "-c", entry, *words], stdout=subprocess.DEVNULL)

    def crops() -> int:
        return len(list((begun / "crops").glob("shard-*.json")))

    running: dict[int, Any] = {number: share(number) for number in (1, 2, 3)}
    try:
        end = time.monotonic() + 120
        while not crops() and time.monotonic() < end:
            time.sleep(0.02)
        running[2].send_signal(signal.SIGKILL)
        running[2].wait()
        running[2] = share(2)
        assert [process.wait(timeout=300) for process in running.values()] == [0, 0, 0]
    finally:
        for process in running.values():
            process.kill()
    assert digests(begun) == reference
