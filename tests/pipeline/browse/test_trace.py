"""One sample explained from end to end."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import ConfigError
from c2vl_manifests.manifest import read_shard
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.browse import trace
from c2vl_pipeline.browse.trace_rows import judgement
from c2vl_pipeline.execution import runner
from c2vl_pipeline.readers.video import plan_frames
from c2vl_pipeline.stages import index, skeletons
from c2vl_pipeline.workspace import load, shard_path
from support.factory import run_factory
from support.pages import assert_self_contained
from support.video import matroska


def test_explain_hashes_what_lies_on_the_disk(work):
    loaded = load(work)
    sample = loaded.table.slice(5, 1).to_pylist()[0]
    facts = trace.trace(work, sample["sample_id"]).facts
    json.dumps(facts, allow_nan=False)
    for what in ("video", "skeleton"):
        data = (loaded.root / sample[what]).read_bytes()
        assert facts["raw"][what]["sha256"] == hashlib.sha256(data).hexdigest()
        assert facts["raw"][what]["bytes"] == len(data)
    shard = facts["sample"]["shard"]
    crops = [
        r for r in read_shard(shard_path(work, "crops", shard)).to_pylist() if r["sample_id"] == sample["sample_id"]
    ]
    assert len(facts["slots"]) == len(crops) > 1
    for slot, row in zip(facts["slots"], crops, strict=True):
        assert slot["crop"]["jpeg_sha256"] == hashlib.sha256(row["jpeg"]).hexdigest()
        assert slot["frame"] == row["frame_index"]
        assert slot["seconds"] == pytest.approx(row["frame_index"] / facts["raw"]["video"]["fps"], abs=1e-3)
    for stage in facts["stages"]:
        path = shard_path(work, stage["stage"], shard)
        assert stage["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == stage["sha256_recorded"]
        assert (stage["agrees"], stage["same_samples"]) == ("bytes", True)
    vectors = [
        r
        for r in read_shard(shard_path(work, "embeddings", shard)).to_pylist()
        if r["sample_id"] == sample["sample_id"]
    ]
    a, b = (np.asarray(vectors[i]["vision"], np.float64) for i in (0, 1))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert facts["similarity"]["vision"]["matrix"][0][1] == pytest.approx(cosine, abs=1e-3)


def test_explain_sees_a_rewritten_shard_and_a_lost_video(work, raw, tmp_path):
    folder, own = tmp_path / "w", tmp_path / "raw"
    shutil.copytree(raw, own)
    run_factory(own, folder, load_recipe("debug"))
    loaded = load(folder)
    sample = loaded.table.slice(0, 1).to_pylist()[0]
    path = shard_path(folder, "captions", 0)
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none")
    (loaded.root / sample["video"]).unlink()
    found = trace.trace(folder, sample["sample_id"])
    assert {s["stage"]: s["agrees"] for s in found.facts["stages"]}["captions"] == "rows"
    assert found.facts["raw"]["video"]["sha256"] is None
    assert found.frames == {}
    assert any(crop["image"] for crop in found.card.crops)
    assert_self_contained(trace.write(found, tmp_path / "e.html"))


def own(root, work, *lines, **arrays):
    root.mkdir()
    (root / "samples.csv").write_text("\n".join(["sample_id,skeleton", *lines]) + "\n")
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    recipe = load_recipe("debug")
    index.build(load_dataset("generic"), root, work, recipe.pipeline, recipe="debug")
    runner.run_stage(skeletons.STAGE, work, recipe, max_failures=1.0)


@pytest.mark.parametrize("shape", [(20, 25, 3), (20, 2, 25, 3), (20, 9, 3)])
def test_a_sample_without_a_video_has_no_frames(tmp_path, shape):
    own(tmp_path / "own", tmp_path / "w", "a,x.npy", x=np.random.default_rng(0).normal(size=shape))
    found = trace.trace(tmp_path / "w", "a")
    text = "\n".join(trace.outline(found.facts))
    assert "None" not in text
    assert "no frame planned, for no video can be read" in text
    assert_self_contained(trace.write(found, tmp_path / "e.html"))


def test_an_unknown_sample_names_the_near_ones(work):
    with pytest.raises(ConfigError, match=r"no sample 'S001C001P001R001A00'.*did you mean S001C001P001R001A00"):
        trace.trace(work, "S001C001P001R001A00")


def test_frames_of_a_miscounted_video_are_those_that_exist(tmp_path):
    matroska(tmp_path / "x.mkv", [*range(0, 500, 20), *range(1000, 18_000, 1000)])  # 42 frames, 852 advertised
    (tmp_path / "samples.csv").write_text("sample_id,video\na,x.mkv\n")
    recipe = load_recipe("debug")
    index.build(load_dataset("generic"), tmp_path, tmp_path / "w", recipe.pipeline, recipe="debug")
    found = trace.trace(tmp_path / "w", "a")
    assert [slot["frame"] for slot in found.facts["slots"]] == plan_frames(0, 42, 4)
    assert found.frames.keys() == {0, 1, 2, 3}


def test_the_judgement_counts_frames_captions_and_boxes(odd):
    index = load(odd)
    ids = index.table["sample_id"].to_pylist()
    stored = {name: read_shard(shard_path(odd, name, 0)).to_pylist() for name in ("crops", "captions")}
    for sample in (ids[0], stored["crops"][17]["sample_id"]):
        found = trace.trace(odd, sample)
        ok = [r["status"] == "ok" for r in stored["crops"] if r["sample_id"] == sample]
        said = {r["caption"] for r in stored["captions"] if r["sample_id"] == sample}
        parts = found.facts["judgement"].split(", ")
        assert parts[0] == f"{sum(ok)} of {len(ok)} frames ok"
        assert parts[1] == (f"{len(said)} captions differ" if len(said) > 1 else f"{len(ok)} equal captions")
        assert parts[2] == f"box holds the joints in {sum(ok)} of {sum(ok)}"  # made from the same joints


def test_the_judgement_sees_a_box_beside_the_person(odd):
    found = trace.trace(odd, load(odd).table["sample_id"][0].as_py())
    found.facts["slots"][1]["crop"]["box"] = [0, 0, 2, 2]
    count = len(found.facts["slots"])
    assert judgement(found.facts["slots"], found.projected).endswith(f"in {count - 1} of {count}")


def test_the_terminal_prints_the_judgement_and_the_path_only(work, cli, tmp_path):
    sample = load(work).table["sample_id"][3].as_py()
    said = cli("c2vl-pipeline", "explain", sample, "--work", work, "--out", tmp_path / "e.html")
    told, path = said.out.splitlines()
    assert "4 of 4 frames ok" in told
    assert path.endswith("e.html")
    page = assert_self_contained(tmp_path / "e.html")
    order = [
        page.text.index(t) for t in ("4 of 4 frames ok", "<animate", 'class="strip"', "Frame by frame", "sha256 of")
    ]
    assert order == sorted(order)
    assert all("open" not in d for d in page.of("details"))
