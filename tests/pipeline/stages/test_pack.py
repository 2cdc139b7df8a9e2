"""Packing: arrays equal to the shards, counted gaps with their reasons, nothing done twice, nothing stale."""

from __future__ import annotations

import errno
import json
import shutil
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2
from c2vl_manifests.manifest import commit_text, read_shard, read_stage_manifest, write_stage_manifest
from c2vl_manifests.packed import FILE, read_packed_manifest
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import workspace
from c2vl_pipeline.execution import runner
from c2vl_pipeline.stages import STAGES, caption, crop, embed, index, pack, skeletons
from c2vl_pipeline.synthetic import dataset
from c2vl_pipeline.workspace import shard_path, stored_joints
from c2vl_training.dataset import PackedDataset
from support.factory import run_factory

FILES = {
    "index.parquet", "joints.npy", "offsets.npy", "vision.npy", "vision_ok.npy", "language.npy",
    "language_ok.npy", "labels.npy", FILE,
}  # fmt: skip


def table(work: Path, stage: str) -> list[dict[str, Any]]:
    return [r for p in sorted((work / stage).glob("*.parquet")) for r in pq.read_table(p).to_pylist()]


def arrays(folder: Path) -> dict[str, np.ndarray]:
    return {f.stem: np.load(f) for f in folder.glob("*.npy")}


def times(folder: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}


@pytest.fixture
def copy(work: Path, tmp_path: Path) -> Path:
    """A work folder with every stage complete, to be written into."""
    shutil.copytree(work, tmp_path / "w")
    return tmp_path / "w"


# ---------------------------------------------------------------------------------------------- arrays


def test_the_packed_arrays_are_the_shards_rows(work: Path, recipe: Recipe) -> None:
    folder = work / "packed"
    assert {f.name for f in folder.iterdir()} == FILES
    manifest, packed = read_packed_manifest(folder), arrays(folder)
    samples = workspace.load(work).table.to_pylist()
    bodies, vectors = table(work, "skeletons"), table(work, "embeddings")
    slots = recipe.pipeline.frames
    assert (manifest.samples, manifest.slots) == (len(samples), slots) == (32, 4)
    assert packed["offsets"].tolist() == np.cumsum([0, *(b["frames"] for b in bodies)]).tolist()
    assert len(packed["joints"]) == manifest.frames == packed["offsets"][-1]
    assert packed["joints"].dtype == np.float32
    for n, body in enumerate(bodies):
        mine = packed["joints"][packed["offsets"][n] : packed["offsets"][n + 1]]
        wanted = stored_joints(body, KINECT_V2)[:, : manifest.bodies]
        np.testing.assert_array_equal(mine, wanted.transpose(0, 3, 1, 2))
        assert not stored_joints(body, KINECT_V2)[:, manifest.bodies :].any()
    for kind, width in (("vision", manifest.vision_dim), ("language", manifest.language_dim)):
        stored = np.array([r[kind] for r in vectors], np.float16).reshape(32, slots, width)
        assert packed[kind].dtype == np.float16
        np.testing.assert_array_equal(packed[kind], stored)
        good = np.array([r[f"{kind}_status"] == "ok" for r in vectors]).reshape(32, slots)
        np.testing.assert_array_equal(packed[f"{kind}_ok"], good)
        norms = np.linalg.norm(packed[kind].astype(np.float32), axis=2)
        np.testing.assert_allclose(norms[good], 1, atol=2e-3)
    assert packed["labels"].tolist() == [s["label"] for s in samples]


def test_the_packed_index_is_in_row_order_and_counts_rows(work: Path) -> None:
    rows = pq.read_table(work / "packed" / "index.parquet").to_pylist()
    samples = workspace.load(work).table.to_pylist()
    for row, sample in zip(rows, samples, strict=True):
        for column in ("sample_id", "subject", "view", "splits"):
            assert row[column] == sample[column]
        assert (row["skeleton_status"], row["vision_rows"], row["language_rows"]) == ("ok", 4, 4)
        assert row["reason"] is None
    assert "label" not in rows[0]


def test_the_manifest_says_what_was_packed(work: Path) -> None:
    manifest = read_packed_manifest(work / "packed")
    assert manifest.joint_layout() == KINECT_V2
    assert (manifest.dataset, manifest.title) == ("synthetic", "Synthetic (NTU format)")
    assert len(manifest.classes) == 4
    assert manifest.engines["captions"]["backend"] == "posecode"
    assert manifest.derived_from_joints("language")
    assert not manifest.derived_from_joints("vision")
    assert manifest.second_body == "zeros"


def test_one_person_data_is_stored_with_one_body_and_two_person_data_with_two(work: Path) -> None:
    found = max(b["bodies"] for b in table(work, "skeletons"))
    joints = np.load(work / "packed" / "joints.npy", mmap_mode="r")
    assert joints.shape[1:] == (3, max(1, found), 25)


# --------------------------------------------------------------------------------------------- refusal


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_or_unfinished_stage_is_refused_with_its_command(copy: Path, recipe: Recipe, stage: str) -> None:
    command = f"run `c2vl-pipeline {STAGES[stage].command} --work {copy}` first"
    before = times(copy / "packed")
    manifest = read_stage_manifest(copy / stage)
    assert manifest is not None
    write_stage_manifest(copy / stage, manifest.model_copy(update={"complete": False, "rows": 8}))
    with pytest.raises(StageError) as caught:
        pack.run(copy, recipe)
    assert (
        str(caught.value)
        == f"pack needs the {stage} of {copy}, which are unfinished (8 of {manifest.expected_rows} rows); {command}"
    )
    (copy / stage / "stage.json").unlink()
    with pytest.raises(StageError) as caught:
        pack.run(copy, recipe)
    assert str(caught.value) == f"pack needs the {stage} of {copy}, which do not exist; {command}"
    assert times(copy / "packed") == before


def test_a_folder_that_is_not_packed_or_damaged_says_what_to_do(copy: Path, recipe: Recipe) -> None:
    folder = copy / "packed"
    commit_text(folder / FILE, "{")
    with pytest.raises(DataError) as caught:
        pack.run(copy, recipe)
    assert str(caught.value).startswith(f"{folder / FILE}: damaged (")
    assert str(caught.value).endswith("; delete it and run `c2vl-pipeline pack` again")
    (folder / FILE).unlink()
    with pytest.raises(StageError) as caught_too:
        read_packed_manifest(folder)
    assert str(caught_too.value) == f"{folder} holds no packed data; run `c2vl-pipeline pack --work {copy}` first"


# ---------------------------------------------------------------------------------------------- resume


def test_packing_twice_leaves_every_file_alone(copy: Path, recipe: Recipe) -> None:
    before = times(copy / "packed")
    assert pack.run(copy, recipe) == read_packed_manifest(copy / "packed")
    assert times(copy / "packed") == before


def test_packing_again_takes_the_places_of_this_machine_out_of_the_facts_and_leaves_the_arrays(
    copy: Path, recipe: Recipe
) -> None:
    path = copy / "packed" / FILE
    before, facts = times(copy / "packed"), json.loads(path.read_text())
    facts["engines"]["embeddings"]["model"] = "/home/someone/clip"
    facts |= {"recipe": "/home/someone/own.toml", "overrides": ["captioner.base_url=http://someone.lab:8000/v1"]}
    path.write_text(json.dumps(facts))
    assert pack.run(copy, recipe).engines["embeddings"]["model"] == "…/clip"
    assert "someone" not in path.read_text("utf-8")
    assert {name: at for name, at in times(copy / "packed").items() if at != before[name]}.keys() == {FILE}


def test_a_folder_of_an_older_format_is_packed_again(copy: Path, recipe: Recipe) -> None:
    path, whole = copy / "packed" / FILE, arrays(copy / "packed")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in facts.items() if name != "format"}))
    np.save(copy / "packed" / "joints.npy", whole["joints"].transpose(0, 2, 3, 1))
    assert pack.run(copy, recipe) == read_packed_manifest(copy / "packed")
    np.testing.assert_array_equal(arrays(copy / "packed")["joints"], whole["joints"])


def test_changed_vectors_are_packed_again(copy: Path, recipe: Recipe) -> None:
    old, before = read_packed_manifest(copy / "packed"), arrays(copy / "packed")
    other = load_recipe("debug", ["pipeline.embed.engine.options.image_dim=64"])
    runner.run_stage(embed.STAGE, copy, other)
    made = pack.run(copy, other)
    after = arrays(copy / "packed")
    assert made.fingerprint != old.fingerprint
    assert (made.vision_dim, after["vision"].shape) == (64, (32, 4, 64))
    np.testing.assert_array_equal(after["joints"], before["joints"])
    np.testing.assert_array_equal(after["language"], before["language"])


@pytest.mark.slow
def test_arrays_do_not_depend_on_how_the_shards_were_cut(work: Path, raw: Path, recipe: Recipe, tmp_path: Path) -> None:
    other = load_recipe("debug", ["pipeline.shard_samples=32"])
    index.build(load_dataset("synthetic"), raw, tmp_path / "w", other.pipeline, recipe="debug")
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run_stage(stage, tmp_path / "w", other)
    pack.run(tmp_path / "w", other)
    for name in FILES - {FILE, "index.parquet"}:
        assert (tmp_path / "w" / "packed" / name).read_bytes() == (work / "packed" / name).read_bytes()


def test_vectors_are_held_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = [(n, n + 8) for n in range(0, 160, 8)]
    vectors = np.arange(8 * 16 * 256, dtype=np.float16)
    shard = pa.table(
        {"vision": pa.FixedSizeListArray.from_arrays(pa.array(vectors), 256), "vision_status": ["ok"] * 128}
    )
    monkeypatch.setattr(pack, "read_shard", lambda path, columns: shard)
    rows: list[dict[str, Any]] = [{} for _ in range(160)]
    tracemalloc.start()
    pack._pack_kind(
        SimpleNamespace(work=tmp_path, shard_ranges=ranges), tmp_path, "vision", (160, 16, 256), rows, print
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    packed = np.load(tmp_path / "vision.npy", mmap_mode="r")
    assert packed.nbytes > 1_300_000
    assert peak < packed.nbytes / 2
    assert np.array_equal(packed[152:].ravel(), vectors)
    assert {row["vision_rows"] for row in rows} == {16}


def test_a_full_disk_leaves_the_folder_unpacked_and_without_temporary_files(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = arrays(copy / "packed")
    other = load_recipe("debug", ["pipeline.embed.engine.options.seed=3"])
    runner.run_stage(embed.STAGE, copy, other)
    (copy / "packed" / ".joints.npy.0123.tmp").write_bytes(b"left by a kill")

    def full(handle: Any, array: np.ndarray) -> None:
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("c2vl_pipeline.stages.pack.np.save", full)
    with pytest.raises(OSError, match="No space left"):
        pack.run(copy, other)
    monkeypatch.undo()
    assert list((copy / "packed").glob(".*")) == []
    with pytest.raises(StageError, match="holds no packed data"):
        read_packed_manifest(copy / "packed")
    pack.run(copy, other)
    for name, array in arrays(copy / "packed").items():
        assert np.array_equal(array, whole[name]) == (name != "vision")


# ------------------------------------------------------------------------------------------------ gaps


@pytest.mark.slow
def test_samples_that_lack_something_are_counted_with_the_reason(tmp_path: Path) -> None:
    root, work = tmp_path / "raw", tmp_path / "w"
    dataset.generate(
        root, classes=4, subjects=2, views=1, repeats=1, seed=1, size=(128, 96), frames=(12, 14), workers=1
    )
    no_body, no_video, nothing = (f"S001C001P001R001A00{n}" for n in (1, 2, 3))
    for name in (f"{no_body}.skeleton", f"{no_video}_rgb.avi", f"{nothing}_rgb.avi", f"{nothing}.skeleton"):
        next(root.rglob(name)).unlink()
    empty = "S001C001P001R001A004"
    next(root.rglob(f"{empty}.skeleton")).write_text("3\n0\n0\n0\n")
    recipe = load_recipe("debug", ["pipeline.crop.engine=motion"])
    index.build(load_dataset("synthetic"), root, work, recipe.pipeline, recipe="debug", allow_missing=True)
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        assert runner.run_stage(stage, work, recipe).complete
    manifest = pack.run(work, recipe)
    assert manifest.samples == 8
    rows = {r["sample_id"]: r for r in pq.read_table(work / "packed" / "index.parquet").to_pylist()}
    found = {
        name: (r["frames"] > 0, r["skeleton_status"], r["vision_rows"] > 0, r["language_rows"] > 0, r["reason"])
        for name, r in rows.items()
    }
    assert found[no_body] == (False, "missing_skeleton", True, False, "no skeleton file")
    assert found[no_video] == (True, "ok", False, True, "no video file")
    assert found[nothing] == (False, "missing_skeleton", False, False, "no skeleton file")
    assert found[empty] == (False, "missing_skeleton", True, False, "no body in any frame")
    assert sum(r["frames"] == 0 for r in rows.values()) == 3
    packed = arrays(work / "packed")
    names = list(rows)
    for name in (no_video, nothing):
        assert not packed["vision"][names.index(name)].any()
        assert not packed["vision_ok"][names.index(name)].any()
    assert packed["vision_ok"][names.index(no_body)].any()
    at = names.index(no_body)
    assert packed["offsets"][at] == packed["offsets"][at + 1]
    whole = [r for n, r in rows.items() if n not in {no_body, no_video, nothing, empty}]
    assert all(r["reason"] is None and r["language_rows"] == r["vision_rows"] for r in whole)
    assert json.loads((work / "packed" / FILE).read_text())["frames"] == packed["offsets"][-1]


# ------------------------------------------------------------------ what binds rows to the files they came from


def _folder(tmp_path: Path, names: str = "abcd") -> Path:
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for n, name in enumerate(names):
        np.save(folder / f"{name}.npy", rng.standard_normal((12 + n, 25, 3)).astype(np.float32))
    _table(folder, [f"{name},{name}.npy,{n % 2},train" for n, name in enumerate(names)])
    return folder


def _table(folder: Path, lines: list[str]) -> None:
    (folder / "samples.csv").write_text("\n".join(["sample_id,skeleton,label,split_mine", *lines]) + "\n")


def _index(folder: Path, work: Path, recipe: Recipe, **how: object) -> workspace.Workspace:
    made, _ = index.build(load_dataset("generic"), folder, work, recipe.pipeline, recipe="debug", **how)
    return made


def test_a_changed_file_costs_its_shard_and_no_other(tmp_path: Path) -> None:
    recipe = load_recipe("debug", ["pipeline.shard_samples=2"])
    folder, work = _folder(tmp_path), tmp_path / "work"
    _index(folder, work, recipe)
    runner.run_stage(skeletons.STAGE, work, recipe)
    before = [shard_path(work, "skeletons", n).stat().st_mtime_ns for n in range(2)]
    np.save(folder / "d.npy", np.ones((40, 25, 3), np.float32))
    _index(folder, work, recipe)
    runner.run_stage(skeletons.STAGE, work, recipe)
    after = [shard_path(work, "skeletons", n).stat().st_mtime_ns for n in range(2)]
    assert after[0] == before[0]
    assert after[1] > before[1]
    assert read_shard(shard_path(work, "skeletons", 1)).column("frames").to_pylist() == [14, 40]


def test_people_in_any_slot_are_packed(tmp_path: Path) -> None:
    folder, recipe = _folder(tmp_path), load_recipe("debug")
    plain = run_factory(folder, tmp_path / "plain", recipe, "generic")
    for slot, name in enumerate("abcd"):
        person = np.load(folder / f"{name}.npy")
        slots = np.zeros((len(person), 4, 25, 3), np.float32)
        slots[:, slot] = person
        np.save(folder / f"{name}.npy", slots)
    work = run_factory(folder, tmp_path / "work", recipe, "generic")
    joints = np.load(work / "packed" / "joints.npy")
    assert joints.any()
    np.testing.assert_array_equal(joints, np.load(plain / "packed" / "joints.npy"))


def test_rows_of_an_older_table_are_never_packed_under_new_ids(tmp_path: Path) -> None:
    recipe = load_recipe("debug")
    folder = _folder(tmp_path)
    work = run_factory(folder, tmp_path / "work", recipe, "generic")
    _table(folder, [f"new-{name},{name}.npy,{n % 2},train" for n, name in enumerate("dcba")])
    _index(folder, work, recipe)
    with pytest.raises(
        StageError, match="was made from other samples or files than the index names now; run `c2vl-pipeline skeletons"
    ):
        pack.run(work, recipe)


def test_new_labels_are_packed_without_making_a_stage_again(tmp_path: Path) -> None:
    recipe = load_recipe("debug")
    folder = _folder(tmp_path)
    work = run_factory(folder, tmp_path / "work", recipe, "generic")
    stamp = shard_path(work, "skeletons", 0).stat().st_mtime_ns
    _table(folder, [f"{name},{name}.npy,sit,train" for name in "abcd"])
    _index(folder, work, recipe)
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run_stage(stage, work, recipe)
    assert pack.run(work, recipe).classes == ("sit",)
    assert np.load(work / "packed" / "labels.npy").tolist() == [0, 0, 0, 0]
    assert shard_path(work, "skeletons", 0).stat().st_mtime_ns == stamp


def test_another_layout_makes_the_joints_again(tmp_path: Path) -> None:
    recipe = load_recipe("debug")
    folder, work = _folder(tmp_path), tmp_path / "work"
    names = [f"j{n}" for n in range(25)]
    (folder / "mine.toml").write_text(f"names = {names!r}\nparents = {[names[0]] * 25!r}\n".replace("'", '"'))
    _index(folder, work, recipe)
    first = runner.run_stage(skeletons.STAGE, work, recipe)
    _index(folder, work, recipe, layout="mine.toml")
    assert runner.run_stage(skeletons.STAGE, work, recipe).key != first.key


def test_a_flipped_bit_in_a_shard_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe("debug")
    work = run_factory(_folder(tmp_path), tmp_path / "work", recipe, "generic")
    (work / "packed" / "packed.json").unlink()
    path = shard_path(work, "skeletons", 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"damaged or absent .* delete it and run its stage again"):
        pack.run(work, recipe)


def test_another_stage_in_place_of_the_vectors_is_refused(copy: Path, recipe: Recipe) -> None:
    (copy / "packed" / FILE).unlink()
    shutil.rmtree(copy / "embeddings")
    shutil.copytree(copy / "captions", copy / "embeddings")
    with pytest.raises((DataError, StageError)) as caught:
        pack.run(copy, recipe)
    assert "\n" not in str(caught.value)


def test_nan_joints_are_refused_naming_the_sample(copy: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / "packed" / FILE).unlink()
    stored = stored_joints

    def damaged(row: dict[str, Any], layout: Any) -> np.ndarray:
        joints = stored(row, layout).copy()
        if row["sample_id"] == "S001C001P002R001A001":
            joints[3, 0, 2, 1] = np.nan
        return joints

    monkeypatch.setattr(pack, "stored_joints", damaged)
    with pytest.raises(DataError, match=r"sample S001C001P002R001A001 holds NaN or infinite joints; .* again"):
        pack.run(copy, recipe)
    with pytest.raises(StageError, match="holds no packed data"):
        read_packed_manifest(copy / "packed")


def test_the_label_derived_from_joints_survives_a_lost_stage_manifest(tmp_path: Path) -> None:
    recipe = load_recipe("debug")
    work = run_factory(_folder(tmp_path), tmp_path / "work", recipe, "generic")
    (work / "captions" / "stage.json").unlink()
    (work / "packed" / "packed.json").unlink()
    runner.run_stage(caption.STAGE, work, recipe)
    packed = pack.run(work, recipe)
    assert packed.derived_from_joints("language")
    assert packed.engines["captions"]["derived_from"] == "joints"


@pytest.mark.slow
def test_packed_joints_of_another_layout_lie_beside_the_own_ones(raw: Path, tmp_path: Path, recipe: Recipe) -> None:
    work = run_factory(raw, tmp_path / "w", recipe)
    manifest = pack.run(work, recipe, layout="kinect_v1")
    own, other = PackedDataset(work), PackedDataset(work / "packed-kinect_v1")
    assert other.layout == KINECT_V1
    assert own.layout == KINECT_V2
    assert (other.manifest.samples, other.manifest.frames) == (own.manifest.samples, own.manifest.frames)
    assert other.joints.shape == (*own.joints.shape[:3], 20)
    assert manifest.fingerprint != own.manifest.fingerprint
    np.testing.assert_array_equal(other.knowledge("vision")[0], own.knowledge("vision")[0])
    first = other.joints[other.offsets[:-1]][:, :, 0]
    assert not first[:, :, KINECT_V1.anchor].any()
    written = (other.folder / "joints.npy").stat().st_mtime_ns
    assert pack.run(work, recipe, layout="kinect_v1").fingerprint == manifest.fingerprint
    assert (other.folder / "joints.npy").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="3 coordinates per joint, 'coco_17' has 2"):
        pack.run(work, recipe, layout="coco_17")
    assert not (work / "packed-coco_17").exists()
