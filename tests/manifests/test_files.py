"""Files that are changed in place, and stored paths: nothing outside their folder is reached through them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import BaseModel, ValidationError

from c2vl_manifests.errors import DataError
from c2vl_manifests.files import OUTSIDE, Inside, leads_outside, open_own
from c2vl_manifests.manifest import file_sha256

PRECIOUS = b"a thesis\n"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a path of a socket may have some hundred bytes


PLANTED: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, target: path.symlink_to(target),
    "a link to nothing": lambda path, target: path.symlink_to(target.with_name("new")),
    "a link to itself": lambda path, _: path.symlink_to(path),
    "an endless device": lambda path, _: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a socket": lambda path, _: _socket(path),
}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "of somebody else"
    folder.mkdir()
    (folder / "file").write_bytes(PRECIOUS)
    return folder / "file"


@pytest.mark.parametrize("mode", ["a", "ab", "a+"])
@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_what_is_no_file_of_its_own_is_not_written_to(
    tmp_path: Path, target: Path, plant: Callable[[Path, Path], object], mode: str
) -> None:
    path = tmp_path / "log"
    plant(path, target)
    with pytest.raises(DataError, match="expected a file of its own; remove it") as caught:
        open_own(path, mode)
    assert str(caught.value).startswith(f"{path}: a {'symbolic link' if path.is_symlink() else 'pipe, socket'}")
    assert [(p.name, p.read_bytes()) for p in target.parent.iterdir()] == [("file", PRECIOUS)]


@pytest.mark.parametrize(
    "plant", [*PLANTED.values(), lambda path, target: path.hardlink_to(target)], ids=[*PLANTED, "a hard link"]
)
def test_a_new_file_replaces_a_link_or_pipe_of_its_name(
    tmp_path: Path, target: Path, plant: Callable[[Path, Path], object]
) -> None:
    path = tmp_path / "mark"
    plant(path, target)
    with open_own(path, "w") as file:
        file.write("ü")
    assert (path.read_text("utf-8"), path.is_symlink()) == ("ü", False)
    assert [(p.name, p.read_bytes()) for p in target.parent.iterdir()] == [("file", PRECIOUS)]


def test_an_own_file_is_made_appended_to_and_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for line in ("one\n", "two\n"):
        with open_own(path, "a") as file:
            file.write(line)
    with open_own(path, "a+") as file:
        file.seek(0)
        assert file.read() == path.read_text() == "one\ntwo\n"


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape(str(tmp_path))):
        open_own(tmp_path, "a")


@pytest.mark.parametrize("plant", [PLANTED["an endless device"], PLANTED["a pipe"]], ids=["device", "pipe"])
def test_only_a_regular_file_is_hashed_and_a_link_to_one(
    tmp_path: Path, target: Path, plant: Callable[[Path, Path], object]
) -> None:
    plant(tmp_path / "odd", target)
    with pytest.raises(DataError, match="expected a file"):
        file_sha256(tmp_path / "odd")
    (tmp_path / "link").symlink_to(target)
    assert file_sha256(tmp_path / "link") == file_sha256(target)


LEADING_OUT = ["/etc/passwd", "..", "../x", "a/..", "a/../../x", "/", "//x", "a\0b", "\n/../x", "a\n/.."]
STAYING = ["", "a", "a/b.avi", "..a", "a..", "a/..b/c", "...", "a/.../b", "~/x", "é/\n", "./a", "C:\\x"]


@pytest.mark.parametrize(("paths", "out"), [(LEADING_OUT, True), (STAYING, False)])
def test_a_path_leads_out_of_its_folder_for_python_and_arrow_alike(paths: list[str], out: bool) -> None:
    class Named(BaseModel):
        path: Inside

    assert [leads_outside(path) for path in paths] == [out] * len(paths)
    assert pc.match_substring_regex(pa.array(paths), OUTSIDE).to_pylist() == [out] * len(paths)
    for path in paths:
        if out:
            with pytest.raises(ValidationError, match="leads out of the folder"):
                Named(path=path)
        else:
            assert Named(path=path).path == path
