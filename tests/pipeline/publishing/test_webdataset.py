"""Tar shards: keys that readers split where they should, and the rows of the stages in them."""

from __future__ import annotations

import io
import json
import re
import tarfile
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2vl_manifests.manifest import file_sha256
from c2vl_pipeline.publishing.publish import publish
from c2vl_pipeline.publishing.webdataset import key_of
from c2vl_pipeline.workspace import load, stored_joints
from support.factory import rows
from support.sharing import library

# as readers split names: https://github.com/webdataset/webdataset, `base_plus_ext`
READER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_key_is_split_from_its_ending_and_gives_the_id_back(sample_id):
    split = READER.match(f"{key_of(sample_id)}.00.jpg")
    assert split is not None
    assert split.groups() == (key_of(sample_id), "00.jpg")
    assert unquote(split[1]) == sample_id
    assert re.fullmatch(r"[A-Za-z0-9_%-]+", split[1])


def test_ids_of_datasets_are_their_own_keys():
    assert key_of("S001C001P001R001A001") == "S001C001P001R001A001"
    assert key_of("day 1/clip.2") == "day%201%2Fclip%2E2"


def test_members_are_the_rows_of_the_stages(work, tmp_path):
    publish(work, tmp_path / "out", crops=True, skeletons=True, webdataset=True)
    index = load(work)
    held: dict[str, dict[str, bytes]] = {}
    for path in sorted((tmp_path / "out" / "webdataset").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, ending = member.name.partition(".")
                assert key not in list(held)[:-1]  # members of a sample stand together
                assert (member.mtime, member.uname, member.uid) == (0, "", 0)
                content = archive.extractfile(member)
                assert content is not None
                held.setdefault(key, {})[ending] = content.read()
    samples = index.table.to_pylist()
    assert list(held) == [key_of(row["sample_id"]) for row in samples]
    captions, vectors, crops, skeletons = (rows(work, n) for n in ("captions", "embeddings", "crops", "skeletons"))
    slots = len(captions) // len(samples)
    for n, (sample, members) in enumerate(zip(samples, held.values(), strict=True)):
        mine, facts = slice(n * slots, (n + 1) * slots), json.loads(members.pop("json"))
        assert facts["sample_id"] == sample["sample_id"]
        assert facts["class"] == index.classes[sample["label"]]
        assert facts["captions"] == [row["caption"] for row in captions[mine]]
        for kind in ("vision", "language"):
            array = np.load(io.BytesIO(members.pop(f"{kind}.npy")))
            assert array.dtype == np.float16
            np.testing.assert_array_equal(array, np.array([row[kind] for row in vectors[mine]], np.float16))
            assert facts[f"{kind}_ok"] == [row[f"{kind}_status"] == "ok" for row in vectors[mine]]
        joints = np.load(io.BytesIO(members.pop("joints.npy")))
        np.testing.assert_array_equal(joints, stored_joints(skeletons[n], index.layout))
        assert members == {f"{row['slot']:02d}.jpg": row["jpeg"] for row in crops[mine] if row["jpeg"]}


def test_two_calls_write_the_same_bytes(work, tmp_path):
    for name in ("one", "other"):
        publish(work, tmp_path / name, webdataset=True)
    for path in sorted((tmp_path / "one" / "webdataset").glob("*.tar")):
        assert file_sha256(path) == file_sha256(tmp_path / "other" / "webdataset" / path.name)


@pytest.mark.slow
def test_the_library_of_the_hub_streams_the_tars(work, tmp_path, monkeypatch):
    publish(work, tmp_path / "out", webdataset=True)
    datasets = library(monkeypatch, tmp_path)
    tars = str(tmp_path / "out" / "webdataset" / "*.tar")
    found = list(datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True))
    assert [row["json"]["sample_id"] for row in found] == load(work).table.column("sample_id").to_pylist()
    assert np.array(found[0]["vision.npy"]).ndim == 2
