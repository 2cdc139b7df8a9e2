"""Raw files are hashed by their contents, and read again only when they changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from c2vl_manifests import file_hashes
from c2vl_manifests.file_hashes import changed_at, content_sha256
from c2vl_manifests.manifest import file_sha256


def test_a_folder_of_files_has_a_hash_of_their_names_and_contents(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for n in range(2):
        (folder / f"{n}.json").write_text(str(n))
    before = content_sha256(folder)
    assert content_sha256(folder / "0.json") == file_sha256(folder / "0.json")
    os.utime(folder / "1.json")
    assert content_sha256(folder) == before
    assert changed_at(folder) == (folder / "1.json").stat().st_ctime > folder.stat().st_ctime
    (folder / "1.json").write_text("2")  # of the same size
    assert content_sha256(folder) != before
    os.mkfifo(tmp_path / "pipe")
    assert content_sha256(tmp_path / "pipe") is None


def test_a_raw_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    hashed = file_sha256
    monkeypatch.setattr(file_hashes, "file_sha256", lambda path: read.append(path) or hashed(path))
    path = tmp_path / "samples.pkl"
    path.write_bytes(b"a")
    assert content_sha256(path) == content_sha256(path) == hashed(path)
    assert len(read) == 1
    path.write_bytes(b"b")
    os.utime(path, (0, 0))
    assert content_sha256(path) == hashed(path)
    path.write_bytes(b"c")
    os.utime(path, (0, 0))  # as `cp -p` does
    assert content_sha256(path) == hashed(path)
    assert len(read) == 3
