"""The audit of crops and captions."""

from __future__ import annotations

import shutil

import numpy as np

from c2vl_manifests.manifest import read_shard
from c2vl_manifests.schema import CAPTIONS, CROPS
from c2vl_pipeline.browse import audit, audit_crops
from c2vl_pipeline.workspace import load, shard_path
from support.pages import assert_self_contained, rewrite


def test_work_without_a_single_caption_is_audited(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)
    for shard in range(1, len(load(folder).shard_ranges)):
        shard_path(folder, "captions", shard).with_suffix(".json").unlink()

    def nothing(rows):
        for row in rows:
            row.update(status="missing_skeleton", caption=None, tokens=None)

    rewrite(folder, "captions", CAPTIONS, nothing)
    found = audit.measure(folder)
    assert found.captions is not None
    assert found.captions.wording is None
    assert found.captions.classes == []
    assert "captions poor: 100.0 % of rows missing_skeleton" in found.summary()
    assert "No captions yet" not in assert_self_contained(audit.write(found, tmp_path / "a.html")).text


def test_joints_inside_are_counted_against_the_box_and_the_frame():
    joints = np.array([[[5, 5], [15, 5], [10, 5], [-1, 5], [np.nan, 5]]], np.float32)
    points, held, outside = audit_crops.inside(joints, [0, 0, 10, 10], (20, 20))
    assert len(points) == 3
    assert held.tolist() == [True, False, False]
    assert outside == 1


def test_the_crops_of_the_skeleton_engine_hold_their_joints(work, tmp_path):
    found = audit.measure(work)
    assert found.joints is not None
    assert found.crops is not None
    assert found.joints.frames == found.crops.statuses["ok"]
    if found.joints.derived:
        assert found.joints.passed == 1


def test_crops_moved_off_the_person_are_the_worst(work, tmp_path):
    folder = tmp_path / "w"
    shutil.copytree(work, folder)

    def shift(rows):
        rows[21]["box"] = [0.0, 0.0, 3.0, 3.0]

    rewrite(folder, "crops", CROPS, shift)
    found = audit.measure(folder)
    assert found.joints is not None
    row = read_shard(shard_path(folder, "crops", 0)).slice(21, 1).to_pylist()[0]
    worst = found.joints.worst[0]
    assert (worst.sample_id, worst.slot, worst.share) == (row["sample_id"], row["slot"], 0)
    assert found.joints.passed < 1
    assert_self_contained(audit.write(found, tmp_path / "a.html"))


def test_of_a_large_set_the_captions_of_some_samples_are_read(work, tmp_path):
    whole, some = audit.measure(work), audit.measure(work, captions=3, seed=1)
    assert whole.captions is not None
    assert some.captions is not None
    assert (whole.captions.read, some.captions.read) == (whole.samples, 3)
    assert some.captions.statuses == whole.captions.statuses
    assert some.captions.wording is not None
    assert some.captions.wording.samples == 3
    assert "the captions of 3 samples are read, chosen by chance; --captions sets how many" in some.notes
    assert not any("chosen by chance" in note for note in whole.notes)
    stored = [
        row
        for shard in range(len(load(work).shard_ranges))
        for row in read_shard(shard_path(work, "captions", shard)).to_pylist()
    ]
    samples = np.sort(np.random.default_rng(1).permutation(whole.samples)[:3]).tolist()
    names = load(work).table["sample_id"].take(samples).to_pylist()
    texts = [row["caption"] for row in stored if row["sample_id"] in names and row["caption"]]
    assert some.captions.wording.captions == len(texts)
    assert some.captions.wording.unique == len(set(texts))


def test_captions_are_read_whole_where_all_are_asked_for(work):
    assert audit.measure(work, captions=10**6).as_dict() == audit.measure(work).as_dict()
