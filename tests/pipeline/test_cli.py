"""Commands of `c2vl-pipeline`: order of stages and what they print."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from c2vl_manifests.manifest import read_stage_manifest
from c2vl_pipeline.stages import STAGES
from support.cli import refused


def test_an_unknown_dataset_names_the_nearest(cli, tmp_path):
    refused(
        cli("c2vl-pipeline", "index", "--dataset", "ntu06", "--data", tmp_path, "--work", tmp_path / "w"),
        "unknown dataset 'ntu06'; use one of drive-act, generic, msr-action3d, ntu120, ntu60",
        "did you mean 'ntu60'?",
    )


@pytest.mark.parametrize(
    ("command", "stage", "first"),
    [("caption", "captions", "crop"), ("embed", "embeddings", "caption"), ("embed", "embeddings", "crop")],
)
def test_a_stage_before_its_predecessor_says_what_to_run(cli, copied, command, stage, first):
    folders = {"crop": "crops", "caption": "captions"}
    for folder in (folders[first], stage):
        shutil.rmtree(copied / folder)
    refused(
        cli("c2vl-pipeline", command, "--work", copied),
        f"{command} needs the {folders[first]} of {copied}, which do not exist; "
        f"run `c2vl-pipeline {first} --work {copied}` first",
    )


def test_pack_before_its_stages_says_what_to_run(cli, copied):
    manifest = read_stage_manifest(copied / "embeddings")
    assert manifest is not None
    (copied / "embeddings" / "stage.json").write_text(
        manifest.model_copy(update={"complete": False, "rows": 5}).model_dump_json()
    )
    refused(
        cli("c2vl-pipeline", "pack", "--work", copied),
        f"pack needs the embeddings of {copied}, which are unfinished (5 of 128 rows); "
        f"run `c2vl-pipeline embed --work {copied}` first",
    )


@pytest.mark.slow
def test_stages_report_in_lines_of_json_and_one_sentence(cli, copied):
    shutil.rmtree(copied / "captions")
    found = cli("c2vl-pipeline", "caption", "--work", copied, "--workers", "1")
    assert found.code == 0, found.err
    *lines, last = found.out.splitlines()
    assert last.endswith(f"; next: c2vl-pipeline embed --work {copied}")
    assert [json.loads(line)["task"] for line in lines] == ["captions"] * len(lines)
    assert last.startswith("captions: 128 of 128 rows, all accounted for: ")


def test_every_stage_has_a_command(cli):
    for stage in STAGES.values():
        help_text = cli("c2vl-pipeline", stage.command, "--help").out
        assert ("--engine" in help_text) == (stage.engine is not None)
        assert "--max-failures" in help_text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--data", "x"), "give --dataset and --data, or neither"),
        (("--limit", "3"), "need --dataset and --data"),
        (("--retry-failed", "--dry-run"), "--retry-failed goes with neither --dry-run nor"),
        (("--retry-failed", "--dataset", "synthetic", "--data", "x"), "--retry-failed goes with neither"),
    ],
)
def test_options_of_prompts_that_exclude_each_other_are_usage_errors(cli, copied, words, text):
    answer = cli("c2vl-pipeline", "prompts", "--work", copied, *words)
    assert answer.code == 2
    assert text in " ".join(answer.err.split())


def test_prompts_without_a_dataset_resumes_with_the_index_of_the_work_folder(cli, copied):
    shutil.rmtree(copied / "embeddings")
    code, lines, _ = cli("c2vl-pipeline", "prompts", "--work", copied, "--workers", "0").told
    assert code == 0
    assert [line.split(":")[:2] for line in lines] == [
        [f"stage {number} of 6", f" {name}"]
        for number, name in enumerate(("skeletons", "crops", "captions", "embeddings", "packed"), 2)
    ]
    look, train = f"c2vl-pipeline inspect --work {copied}", f"c2vl-train pretrain --data {copied / 'packed'}"
    assert lines[-1].endswith(f"; next: {look}; then: {train}")
    code, lines, _ = cli("c2vl-pipeline", "status", "--work", copied).told
    assert (code, lines[-1]) == (0, f"next: {look}; then: {train}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "32 of 32 samples"),
        (("--limit", "8"), "8 of 32 samples, a slice spread over 4 classes, 4 subjects, 2 cameras"),
        (("--class", "0", "--order", "score"), "8 of 8 samples that match (class 0), of 32, lowest score first"),
    ],
)
def test_a_gallery_says_what_it_shows(cli, odd, tmp_path, words, said):
    assert cli("c2vl-pipeline", "inspect", "--work", odd, "--out", tmp_path / "g.html", *words).told[1][0] == said


def test_a_gallery_with_rows_that_are_not_ok_names_the_command_that_shows_them(cli, odd, tmp_path):
    words = ("--work", odd, "--class", "0", "--out", tmp_path / "g.html")
    following = cli("c2vl-pipeline", "inspect", *words).told[1][-1]
    assert following == f"next: c2vl-pipeline inspect --status not-ok --class 0 --work {odd}"
    _, (first, *_), _ = cli(*following.removeprefix("next: ").split(), "--out", tmp_path / "g.html").told
    assert first.startswith("1 of 1 samples that match (status not-ok, class 0)")


def test_verify_does_not_repair_and_list_as_json_at_once(cli, copied):
    answer = cli("c2vl-pipeline", "verify", "--work", copied, "--repair", "--json")
    assert answer.code == 2
    assert "cannot be combined with --repair" in " ".join(answer.err.split())


@pytest.mark.parametrize("missing", ["full shm", "no shm", "no folder for temporary files"])
def test_without_worker_processes_a_stage_goes_on_in_its_own(cli, copied, monkeypatch, missing):
    def refuse(*_: object, **__: object) -> None:
        number = errno.ENOSPC if missing == "full shm" else errno.ENOENT
        raise OSError(number, os.strerror(number))

    call = "tempfile.gettempdir" if missing.startswith("no folder") else "multiprocessing.context.SpawnContext.Lock"
    shutil.rmtree(copied / "captions")
    with monkeypatch.context() as patch:
        patch.setattr(call, refuse)
        found = cli("c2vl-pipeline", "caption", "--work", copied, "--workers", "2")
    assert found.code == 0, found.err
    events = [json.loads(line) for line in found.out.splitlines() if line.startswith("{")]
    (warning,) = [event for event in events if event["event"] == "warning"]
    assert ("TMPDIR" if missing.startswith("no folder") else "/dev/shm") in warning["text"]
