"""Packed data for training: loading, refusals, splits."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from c2vl_manifests import manifest
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training.augmentation import draw
from c2vl_training.clips import Clips, copy_to_device
from c2vl_training.dataset import PackedDataset
from support.packed import LENGTHS, STICK, T, random_joints, sticks, write_packed

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
]


# ------------------------------------------------------------------------------------------------- store


def test_on_a_cpu_the_mapped_file_itself_is_read(tmp_path):
    packed = PackedDataset(write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK)))
    assert isinstance(packed.joints, np.memmap)
    clips = Clips(packed, np.array([3, 5]), InputConfig(), CPU)
    assert clips._planes.data_ptr() == packed.joints.ctypes.data


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_maps_no_files_is_read_into_memory(tmp_path, monkeypatch, number):
    folder = write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK))
    mapped = PackedDataset(folder)

    def refuse(*_):
        raise OSError(number, "No such device")

    monkeypatch.setattr(np, "memmap", refuse)
    packed = PackedDataset(folder)
    monkeypatch.undo()
    assert not isinstance(packed.joints, np.memmap)
    assert np.array_equal(packed.joints, mapped.joints)


def test_resident_frames_are_those_of_the_rows_in_their_order(tmp_path):
    joints = random_joints(LENGTHS, 2, STICK)
    packed = PackedDataset(write_packed(tmp_path / "packed", joints))
    rows = np.array([8, 0, 3, 3, 5])
    for at_once in (2, 1024):
        frames, first = copy_to_device(packed, rows, CPU, at_once)
        assert len(frames) == sum(LENGTHS[r] for r in rows)
        for place, r in enumerate(rows):
            found = frames[first[place] : first[place] + LENGTHS[r]].numpy()
            np.testing.assert_array_equal(found, joints[r].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("device", DEVICES)
def test_resident_clips_are_the_mapped_clips(tmp_path, device):
    packed = PackedDataset(write_packed(tmp_path / "packed", random_joints(LENGTHS, 2, STICK)))
    rows, config = np.array([8, 0, 3, 5, 1, 2]), InputConfig(frames=T)
    mapped = Clips(packed, rows, config, CPU)
    held = Clips(packed, rows, config, device)
    at, draws = torch.arange(6), draw(6, config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(held.test(at.to(device)).cpu(), mapped.test(at))
    torch.testing.assert_close(held.train(at.to(device), draws).cpu(), mapped.train(at, draws), atol=1e-5, rtol=0)


def test_sample_ids_are_those_of_the_rows(tmp_path):
    packed = PackedDataset(write_packed(tmp_path / "packed", random_joints((5, 6, 7), 1, STICK)))
    assert packed.sample_ids(np.array([2, 0])) == ["s02", "s00"]


# -------------------------------------------------------------------------------------------- refusals


def test_a_folder_of_an_older_format_names_the_command(tmp_path):
    folder = write_packed(tmp_path / "work" / "packed", random_joints((5,), 1, STICK))
    facts = json.loads((folder / "packed.json").read_text())
    del facts["format"]
    (folder / "packed.json").write_text(json.dumps(facts))
    with pytest.raises(
        StageError, match=f"packed in format 1, expected 3; run `c2vl-pipeline pack --work {tmp_path / 'work'}` again"
    ):
        PackedDataset(tmp_path / "work")


def test_the_work_folder_will_do_and_a_folder_without_arrays_names_the_command(tmp_path):
    write_packed(tmp_path / "work" / "packed", random_joints((5,), 1, STICK))
    assert PackedDataset(tmp_path / "work").folder == tmp_path / "work" / "packed"
    with pytest.raises(
        StageError,
        match=f"other/packed holds no packed data; run `c2vl-pipeline pack --work {tmp_path / 'other'}` first",
    ):
        PackedDataset(tmp_path / "other")


@pytest.mark.parametrize("name", ["offsets.npy", "joints.npy", "index.parquet"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other", "absent"])
def test_damaged_arrays_are_refused_naming_the_file(tmp_path, name, damage):
    folder = write_packed(tmp_path / "packed", random_joints((30, 30), 1, STICK))
    path = folder / name
    if damage == "absent":
        path.unlink()
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "other": b"not an array"}[damage])
    with pytest.raises(DataError, match=rf"{name}: cannot be read .*; run `c2vl-pipeline pack` again"):
        PackedDataset(folder)


def test_an_array_whose_header_does_not_end_is_refused(tmp_path):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    path = folder / "offsets.npy"
    path.write_bytes(path.read_bytes().replace(b"(3,)", b"(3,("))
    with pytest.raises(DataError, match=r"offsets\.npy: cannot be read .*; run `c2vl-pipeline pack` again"):
        PackedDataset(folder)


@pytest.mark.parametrize("name", ["offsets.npy", "joints.npy"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_or_device_in_place_of_an_array_is_refused(tmp_path, name, make):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(DataError, match=rf"{name}: a pipe, socket, device or folder"):
        PackedDataset(folder)


@pytest.mark.parametrize("shape", [b"(" + b"-" * 9000 + b"1,)", b"(" + b"1+" * 4400 + b"1,)"])
def test_an_array_whose_header_no_parser_takes_is_refused(tmp_path, shape):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': " + shape + b"}\n"
    (folder / "offsets.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(99))
    with pytest.raises(DataError, match=r"offsets\.npy: cannot be read .*; run `c2vl-pipeline pack` again"):
        PackedDataset(folder)


def test_arrays_of_another_shape_than_promised_are_refused(tmp_path):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    np.save(folder / "offsets.npy", np.zeros(7, np.int64))
    with pytest.raises(DataError, match=r"offsets.npy: shape \(7,\) of int64, expected \(3,\) of int64"):
        PackedDataset(folder)
    write_packed(tmp_path / "more", random_joints((5, 6, 7), 1, STICK))
    (tmp_path / "more" / "index.parquet").replace(folder / "index.parquet")
    with pytest.raises(DataError, match=r"index\.parquet: 3 rows, expected 2"):
        PackedDataset(folder)


def _read_all(folder):
    packed = PackedDataset(folder)
    return packed.labels(), packed.knowledge("vision"), packed.knowledge("language")


@pytest.mark.parametrize("name", ["offsets", "joints", "labels", "vision", "language_ok"])
@pytest.mark.parametrize("dtype", ["f8", ">i4", "c8", "U3"])
def test_arrays_of_another_type_are_refused(tmp_path, name, dtype):
    path = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK)) / f"{name}.npy"
    np.save(path, np.zeros(np.load(path).shape, dtype))
    with pytest.raises(
        DataError, match=rf"{name}\.npy: shape .* of .*, expected .* of \w+; run `c2vl-pipeline pack` again"
    ):
        _read_all(path.parent)


@pytest.mark.parametrize("offsets", [(1, 5, 11), (0, 6, 11), (0, 5, 10), (0, 12, 11), (0, -1, 11)])
def test_offsets_that_disagree_with_the_index_are_refused(tmp_path, offsets):
    folder = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK))
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    with pytest.raises(DataError, match=r"offsets\.npy: differs from the frames of index\.parquet; run"):
        PackedDataset(folder)


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("frames", ["5", "6"], "'frames' is of another type (string)"),
        ("splits", ["xsub", "xsub"], "'splits' is of another type (string)"),
        ("sample_id", [1, 2], "'sample_id' is of another type (int64)"),
        ("vision_rows", pa.array([None, 1], pa.int16()), "'vision_rows' is of another type (int16) or lacks values"),
    ],
)
def test_columns_of_another_type_or_with_nulls_are_refused(tmp_path, name, values, says):
    path = write_packed(tmp_path / "packed", random_joints((5, 6), 1, STICK)) / "index.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values)), path)
    with pytest.raises(DataError, match=re.escape(says)):
        PackedDataset(path.parent)


# --------------------------------------------------------------------------------------------- select


@pytest.fixture
def mixed(tmp_path) -> PackedDataset:
    """Ten samples: subjects 0 to 7 train, 8 and 9 test; s01 has no skeleton, s02 no crops, s09 no captions."""
    joints = random_joints([0 if n == 1 else 6 for n in range(10)], 1, STICK)
    vision_ok, language_ok = np.ones((10, 4), bool), np.ones((10, 4), bool)
    vision_ok[2] = language_ok[9] = False
    vision_ok[3, :3] = False
    splits = [{"xsub": "train" if n < 8 else "test", "a-val": "train"} for n in range(10)]
    return PackedDataset(
        write_packed(
            tmp_path / "packed",
            joints,
            vision_ok=vision_ok,
            language_ok=language_ok,
            splits=splits,
            reasons={1: "file lost", 9: "model spoke nonsense"},
        )
    )


def test_select_returns_the_rows_of_a_split_and_why_others_are_left_out(mixed):
    plain = mixed.select("xsub", "train")
    assert plain.rows.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert plain.left_out == (("s01", "missing_skeleton: file lost"),)
    seen = mixed.select("xsub", "train", ("vision",))
    assert seen.rows.tolist() == [0, 3, 4, 5, 6, 7]
    assert seen.left_out[1] == ("s02", "no usable vision rows: nobody found in any frame")
    told = mixed.select("xsub", "test", ("vision", "language"))
    assert told.rows.tolist() == [8]
    assert told.left_out == (("s09", "no usable language rows: model spoke nonsense"),)


def test_what_many_runs_read_is_selected_and_hashed_once(mixed, monkeypatch):
    calls, real = [], manifest.fingerprint

    def fingerprint(values):
        calls.append(values)
        return real(values)

    monkeypatch.setattr("c2vl_training.dataset.fingerprint", fingerprint)
    rows = mixed.select("xsub", "train").rows
    assert mixed.select("xsub", "train").rows is rows
    first = mixed.digests(rows, ("vision",))
    count = len(calls)
    first["joints"] = "changed by a caller"
    assert mixed.digests(rows.copy(), ("vision",)) == first | {"joints": real(calls[1])}
    assert len(calls) == count
    assert mixed.digests(rows[:1], ("vision",)) != mixed.digests(rows, ("vision",)) != mixed.digests(rows)


def test_unknown_benchmark_names_the_known_ones(mixed):
    with pytest.raises(
        ConfigError, match=r"Sticks has no benchmark 'xviw'; it has a-val, xsub \(and each as <name>-val\)"
    ):
        mixed.select("xviw", "train")


def test_val_holds_out_only_training_subjects(mixed):
    train, test = (mixed.select("xsub-val", split).rows.tolist() for split in ("train", "test"))
    assert train == [0, 2, 3, 4, 5]
    assert test == [6, 7]  # a quarter of eight subjects, the last ones
    assert not {*train, *test} & {*mixed.select("xsub", "test").rows.tolist()}


def test_a_benchmark_may_itself_end_in_val(mixed):
    assert mixed.select("a-val", "train").rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_val_needs_two_subjects(tmp_path):
    joints = random_joints((5, 5), 1, STICK)
    packed = PackedDataset(write_packed(tmp_path / "packed", joints, subjects=[None, 4]))
    with pytest.raises(
        ConfigError, match="'xsub-val' holds out subjects of the training split, which names 1; at least 2 are needed"
    ):
        packed.select("xsub-val", "train")


def test_nothing_usable_gives_the_first_reason(tmp_path):
    joints = random_joints((5, 0), 1, STICK)
    splits = [{"xsub": "train"}, {"xsub": "test"}]
    packed = PackedDataset(write_packed(tmp_path / "packed", joints, splits=splits))
    with pytest.raises(
        DataError,
        match="no usable test samples in xsub; the first was left out because of missing_skeleton: no skeleton",
    ):
        packed.select("xsub", "test")


@pytest.mark.parametrize("name", ["index.parquet", "offsets.npy", "joints.npy", "labels.npy", "vision.npy"])
def test_a_pipe_in_place_of_a_file_of_a_packed_set_is_one_line_and_does_not_wait(tmp_path: Path, name: str) -> None:
    packed = sticks(tmp_path / "packed")
    (packed / name).unlink()
    os.mkfifo(packed / name)
    with pytest.raises(DataError, match=f"{name}: a pipe"):
        _read_all(packed)
