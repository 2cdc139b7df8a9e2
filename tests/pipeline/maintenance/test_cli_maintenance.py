"""The commands `verify`, `verify --repair` and `prompts --retry-failed`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import read_stage_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.execution.keys import Redo
from c2vl_pipeline.maintenance import repair, verify
from c2vl_pipeline.stages import caption
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import shard_path
from support.cli import Cli
from support.factory import break_captions, digests, flip, remade, road, start, times, video_of


def test_verify_and_repair_as_commands(cli: Cli, own: Path, whole: Path) -> None:
    assert cli("c2vl-pipeline", "verify", "--work", own, "--raw").told == (
        0,
        [f"{own}: everything is as it was committed"],
        "",
    )
    assert cli("c2vl-pipeline", "verify", "--repair", "--work", own).told == (
        0,
        [f"{own}: everything is as it was committed"],
        "",
    )
    path = shard_path(own, "captions", 1)
    path.with_suffix(".json").unlink()
    line = f"captions: {path} has no manifest that can be read: it was never committed, or the manifest is damaged"
    code, out, err = cli("c2vl-pipeline", "verify", "--work", own).told
    assert (code, out, err) == (1, [line, f"1 damaged; repair with: c2vl-pipeline verify --work {own} --repair"], "")
    code, out, err = cli("c2vl-pipeline", "verify", "--work", own, "--raw", "--json").told
    (entry,) = json.loads("\n".join(out))
    assert (code, entry["stage"], entry["shard"], entry["path"]) == (1, "captions", 1, str(path))
    code, out, err = cli("c2vl-pipeline", "verify", "--repair", "--work", own, "--workers", "0").told
    assert (code, out[0], err) == (0, line, "")
    assert out[1] == "captions: 128 of 128 rows, all accounted for: ok 128"
    assert out[2].startswith(f"repaired 1; {own} is whole again")
    assert cli("c2vl-pipeline", "verify", "--work", own).told[0] == 0
    assert digests(own) == digests(whole)


def test_a_changed_video_as_commands(cli: Cli, copy: tuple[Path, Path]) -> None:
    folder, work = copy
    video = video_of(folder, 3)
    data = video.read_bytes()
    video.write_bytes(data[:-8] + b"changed!")
    assert cli("c2vl-pipeline", "verify", "--work", work).told[0] == 0
    code, out, _ = cli("c2vl-pipeline", "verify", "--work", work, "--raw").told
    assert (code, out[0]) == (1, f"raw: {video} changed since crops were made from it")
    assert out[1] == f"1 damaged; repair with: c2vl-pipeline verify --work {work} --raw --repair"
    code, out, _ = cli("c2vl-pipeline", "verify", "--repair", "--work", work, "--raw", "--workers", "0").told
    assert (code, out[0]) == (0, f"raw: {video} changed since crops were made from it")
    assert cli("c2vl-pipeline", "verify", "--work", work, "--raw").told[0] == 0
    video.unlink()
    code, out, err = cli("c2vl-pipeline", "verify", "--repair", "--work", work, "--raw", "--workers", "0").told
    assert (code, err) == (1, "")
    assert out[-1] == f"still damaged: {video} is gone since crops were made from it; they are kept"


def test_a_damaged_index_is_named_first_and_nothing_is_mended_over_it(cli: Cli, own: Path) -> None:
    path = own / "samples.parquet"
    pq.write_table(pq.read_table(path), path, compression="gzip")  # still a table, of other bytes
    before = times(own)
    code, out, _ = cli("c2vl-pipeline", "verify", "--work", own).told
    assert code == 1
    assert out[0] == f"index: {own / 'samples.parquet'} holds other bytes than were committed (sha256)"
    assert out[-1].endswith("run `c2vl-pipeline index` again first, then verify again")
    code, out, err = cli("c2vl-pipeline", "verify", "--repair", "--work", own, "--workers", "0").told
    assert (code, len(err.splitlines())) == (1, 1)
    assert "run `c2vl-pipeline index` again first" in err
    assert remade(before, own) == set()
    (own / "samples.parquet").write_bytes(b"PAR1")
    for words in (("verify",), ("verify", "--repair"), ("status",)):
        code, _, err = cli("c2vl-pipeline", *words, "--work", own).told
        assert (code, len(err.splitlines())) == (1, 1), err
        assert "samples.parquet is damaged" in err


@pytest.mark.slow
def test_retry_failed_as_a_command(
    cli: Cli, raw: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = start(raw, tmp_path / "w")
    ids = workspace.load(work).table.column("sample_id").to_pylist()
    broken = {ids[3]: {1}, ids[20]: {0, 2}}
    break_captions(monkeypatch, broken)
    road(work, recipe)
    del broken[ids[3]]
    code, out, err = cli("c2vl-pipeline", "prompts", "--retry-failed", "--work", work, "--workers", "0").told
    assert (code, err) == (0, "")
    assert out[-2:] == ["captions: 2 samples tried again, 1 failed again", "embeddings: brought up to date"]
    broken.clear()
    code, out, err = cli("c2vl-pipeline", "prompts", "--retry-failed", "--work", work, "--workers", "0").told
    assert out[-2] == "captions: 1 sample tried again, none failed again"
    assert cli("c2vl-pipeline", "prompts", "--retry-failed", "--work", work).told == (
        0,
        [f"{work}: no row has failed or could not be decoded; nothing to try again"],
        "",
    )
    code, _, err = cli("c2vl-pipeline", "verify", "--work", tmp_path).told
    assert code == 1
    assert "holds no index" in err


def test_a_repair_that_died_is_named_and_ended_by_the_next_one(own: Path, recipe: Recipe, cli: Cli) -> None:
    path = shard_path(own, "captions", 1)
    flip(path, path.stat().st_size // 2)
    damages = verify.verify(own)

    def die(stage: Stage, only: frozenset[int], redo: Redo) -> None:
        raise StageError("the scheduler was lost")

    with pytest.raises(StageError, match="the scheduler was lost"):
        repair.repair(own, recipe, damages, die)
    assert not path.exists()
    # a run of another shard has called the stage unfinished meanwhile
    runner.run_stage(caption.STAGE, own, recipe, only=frozenset({0}))
    (left,) = verify.verify(own)
    assert (left.stage, left.shard, left.path) == ("captions", 1, str(path))
    code, out, err = cli("c2vl-pipeline", "verify", "--repair", "--work", own, "--workers", "0").told
    assert (code, err) == (0, "")
    assert "is whole again" in out[-1]
    assert verify.verify(own) == []


@pytest.mark.slow
def test_a_smaller_index_does_not_drop_rows_unasked(cli: Cli, raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    work = start(raw, tmp_path / "w")
    road(work, recipe)
    before = {p.name: p.read_bytes() for p in sorted((work / "captions").glob("shard-*"))}
    words = ("prompts", "--dataset", "synthetic", "--data", raw, "--work", work, "--recipe", "debug", "--workers", "0")
    code, _, err = cli("c2vl-pipeline", *words, "--limit", "3").told
    assert (code, len(err.splitlines())) == (1, 1)
    assert "samples" in err
    assert "that its index no longer has" in err
    assert {p.name: p.read_bytes() for p in sorted((work / "captions").glob("shard-*"))} == before
    code, _, err = cli("c2vl-pipeline", *words, "--limit", "3", "--overwrite").told
    assert (code, err) == (0, "")
    assert workspace.load(work).table.num_rows == 3


def test_a_wrong_option_leaves_a_complete_stage_complete(cli: Cli, own: Path) -> None:
    words = ("embed", "--work", own, "--workers", "0", "--overwrite", "--recipe", "debug")
    code, _, err = cli("c2vl-pipeline", *words, "--set", "pipeline.embed.engine.options.image_dim=0").told
    assert (code, len(err.splitlines())) == (1, 1)
    assert "image_dim = 0" in err
    manifest = read_stage_manifest(own / "embeddings")
    assert manifest is not None
    assert manifest.complete
