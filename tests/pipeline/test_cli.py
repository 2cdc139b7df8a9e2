"""Commands of `c2vl-pipeline`: order of stages and what they print."""

from __future__ import annotations

import json
import shutil

import pytest

from c2vl_manifests.manifest import read_stage_manifest
from support.cli import refused


def test_an_unknown_dataset_names_the_nearest(cli, tmp_path):
    refused(
        cli("c2vl-pipeline", "index", "--dataset", "ntu06", "--data", tmp_path, "--work", tmp_path / "w"),
        "unknown dataset 'ntu06'; use one of generic, msr-action3d, ntu120, ntu60",
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


def test_stages_report_in_lines_of_json_and_one_sentence(cli, copied):
    shutil.rmtree(copied / "captions")
    found = cli("c2vl-pipeline", "caption", "--work", copied, "--workers", "1")
    assert found.code == 0, found.err
    *lines, last = found.out.splitlines()
    assert [json.loads(line)["task"] for line in lines] == ["captions"] * len(lines)
    assert last.startswith("captions: 128 of 128 rows, all accounted for: ")
