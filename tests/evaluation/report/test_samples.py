"""Sample crops and captions in the report."""

from __future__ import annotations

import base64
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c2vl_evaluation.report import build, samples
from c2vl_manifests.schema import CROPS
from support.report import CLASSES, read, table, work_folder


def test_crops_are_made_small(tmp_path):
    found = samples.read(work_folder(tmp_path / "w"), CLASSES)
    for sample in found.samples:
        for crop in sample["crops"]:
            data = base64.b64decode(crop["image"].split(",")[1])
            assert Image.open(io.BytesIO(data)).size == (80, 160)


def test_gallery_is_spread_and_chosen_by_the_shards_alone(tmp_path):
    first = samples.read(work_folder(tmp_path / "a"), CLASSES)
    again = samples.read(work_folder(tmp_path / "b"), CLASSES)
    assert first == again
    ids = [int(sample["id"][1:]) for sample in first.samples]
    assert (ids[0], ids[-1]) == (0, 29)
    assert max(np.diff(ids)) <= 3
    assert [crop["slot"] for crop in first.samples[0]["crops"]] == [0, 2, 3, 5]
    assert {sample["title"] for sample in first.samples} <= {"", *CLASSES}


@pytest.mark.parametrize("stage", ["crops", "captions"])
@pytest.mark.parametrize("at", [(0, 0), (1, 1), (16, 4), (29, 5)])
def test_one_row_that_is_not_ok_is_always_shown(tmp_path, stage, at):
    found = samples.read(work_folder(tmp_path / "w", bad={at: (stage, "failed", "engine said no")}), CLASSES)
    assert len(found.samples) == samples.SAMPLES
    entries = [entry for sample in found.samples for entry in sample[stage]]
    assert [entry["error"] for entry in entries if entry["status"] == "failed"] == ["engine said no"]


def test_equal_captions_in_a_row_are_written_once(tmp_path):
    found = samples.read(work_folder(tmp_path / "w", caption="stands"), CLASSES)
    assert [entry["slots"] for entry in found.samples[0]["captions"]] == ["0, 2, 3, 5"]


def test_truncated_shard_is_passed_over_with_a_sentence(tmp_path):
    work = work_folder(tmp_path / "w")
    shard = work / "crops" / "shard-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    page = read(build.build(table(), tmp_path / "r.html", work=work))
    assert page.text.count("crops/shard-00001.parquet cannot be read and is skipped") == 1
    assert page.count("article") == samples.SAMPLES
    assert str(tmp_path) not in page.text


def test_damaged_crop_is_said_to_be_unreadable(tmp_path):
    work = work_folder(tmp_path / "w", samples=2)
    path = work / "crops" / "shard-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["jpeg"] = b"\xff\xd8 not a picture"
    pq.write_table(pa.Table.from_pylist(rows, schema=CROPS), path)
    found = samples.read(work, CLASSES)
    assert found.samples[0]["crops"][0]["status"] == "unreadable"
