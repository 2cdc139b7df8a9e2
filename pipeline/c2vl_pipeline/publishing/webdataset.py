"""Tar shards in WebDataset's form: one group of files for each sample, which readers stream from beginning to end.

    KEY.json           id, class, splits, captions (null where one is missing), and which vectors are usable
    KEY.vision.npy     (slots, D) float16, zero where not usable; KEY.language.npy alike
    KEY.00.jpg …       crops by slot, those that exist, on request
    KEY.joints.npy     (T, M, V, C) float32 in the layout's unit, T = 0 without a skeleton, on request

A reader takes all letters before the first dot of a name for the key, and a slash for a folder. So KEY is the id with
every letter but `A-Z a-z 0-9 _ -` written as %XX, as in web addresses: `urllib.parse.unquote` gives the id, and so does
the JSON file.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from c2vl_manifests.manifest import (
    ShardManifest,
    commit_file,
    commit_shard_manifest,
    digest,
    file_sha256,
    fingerprint,
    finished_file,
    read_shard,
    read_shard_manifest,
)
from c2vl_manifests.schema import Status
from c2vl_pipeline.workspace import Workspace, shard_path, stored_joints

FOLDER = "webdataset"
_FORMAT = 1
Row = dict[str, Any]


def key_of(sample_id: str) -> str:
    """Return an id as a key of WebDataset: without dots and slashes, and unlike that of any other id."""
    return quote(sample_id, safe="").replace(".", "%2E").replace("~", "%7E")


def write(index: Workspace, out: Path, number: int, names: Sequence[str], about: pa.Table) -> None:
    """Write the tar of a shard, unless it is there.

    Args:
        index: of the work folder.
        out: the published folder.
        number: of the shard.
        names: of the stages that are published.
        about: id, class and splits of its samples.
    """
    path = shard_path(out, FOLDER, number).with_suffix(".tar")
    sources = {name: shard_path(index.work, name, number) for name in names}
    held = {name: read_shard_manifest(source) for name, source in sources.items()}
    key = fingerprint([_FORMAT, digest(about), {name: one and one.digest for name, one in held.items()}])
    if finished_file(path, key) is not None:
        return
    tables = {name: read_shard(source) for name, source in sources.items()}

    def fill(temporary: Path) -> None:
        # the same bytes on every machine: no time, no user
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for name, content in _members(index, tables, about):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    commit_file(path, fill)
    sha256 = file_sha256(path)
    commit_shard_manifest(
        path,
        ShardManifest(
            file=path.name, key=key, rows=about.num_rows, bytes=path.stat().st_size, sha256=sha256, digest=sha256[:32],
            statuses={},
        ),
    )  # fmt: skip


def _members(index: Workspace, tables: dict[str, pa.Table], about: pa.Table) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of all files of a shard, those of a sample one after the other."""
    samples = about.to_pylist()
    slots = tables["captions"].num_rows // max(1, len(samples))
    vectors = tables["embeddings"].combine_chunks()
    arrays = {
        kind: vectors.column(kind).chunk(0).flatten().to_numpy(zero_copy_only=False).reshape(len(samples), slots, -1)
        for kind in ("vision", "language")
    }
    states = {kind: vectors.column(f"{kind}_status").to_pylist() for kind in arrays}
    captions = tables["captions"].column("caption").to_pylist()
    for n, sample in enumerate(samples):
        key, mine = key_of(sample["sample_id"]), slice(n * slots, (n + 1) * slots)
        facts = sample | {"captions": captions[mine]}
        facts |= {f"{kind}_ok": [state == str(Status.OK) for state in states[kind][mine]] for kind in arrays}
        yield f"{key}.json", json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace")
        for kind, values in arrays.items():
            yield f"{key}.{kind}.npy", _npy(values[n])
        if "crops" in tables:
            pictures = tables["crops"].column("jpeg").slice(n * slots, slots).to_pylist()
            yield from ((f"{key}.{slot:02d}.jpg", jpeg) for slot, jpeg in enumerate(pictures) if jpeg)
        if "skeletons" in tables:
            (row,) = tables["skeletons"].slice(n, 1).select(["sample_id", "frames", "joints"]).to_pylist()
            yield f"{key}.joints.npy", _npy(stored_joints(row, index.layout))


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=False)
    return sink.getvalue()
