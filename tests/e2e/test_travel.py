"""What is given away tells no folder, user or host: all files of packed and published data, runs, tables and pages are read."""

from __future__ import annotations

import shutil
import socket
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from support import checkpoints
from support.cli import Cli, refused

pytestmark = pytest.mark.slow

SECRETS = b"secret-user", b"secret-host", b"secret-login"
MADE = (
    "packed/packed.json", "packed-kinect_v1/packed.json", "inspect.html", "audit.html", "run/run.json",
    "run/left_out.csv", "run/encoder.safetensors", "run/projectors.safetensors", "search.html", "table/results.json",
    "table/report.html", "published/README.md", "published/published.json", "published/webdataset/shard-00000.tar",
    "run/README.md",
)  # fmt: skip


PUBLISHED = ("--crops", "--skeletons", "--webdataset")


def content(path: Path) -> bytes:
    """Return a file's bytes, and what is compressed in it."""
    data = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        data += str([table.schema.metadata, *(column.to_pylist() for column in table.columns)]).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data += b"".join(archive.read(name) for name in archive.namelist())
    return data


def tell_tales(folder: Path) -> dict[str, list[bytes]]:
    """Return the files that hold a secret."""
    install = str(Path(find_spec("torch").origin).parent.parent).encode()
    found = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        data = content(path)
        if told := [secret for secret in (*SECRETS, install) if secret in data]:
            found[path.relative_to(folder).as_posix()] = told
    return found


@pytest.fixture
def home(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user with raw data, some of them broken, a recipe file and a checkpoint."""
    folder = tmp_path / "secret-user"
    shutil.copytree(raw, folder / "raw")
    videos, skeletons = (sorted((folder / "raw").rglob(f"*.{kind}")) for kind in ("avi", "skeleton"))
    videos[0].write_bytes(b"junk")
    skeletons[1].write_text("3\n1\nx")
    checkpoints.tiny_clip(folder / "clip")
    (folder / "mine.toml").write_text('extends = "debug"\n[pipeline]\nframes = 2\n')
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-host")
    for name in ("USER", "LOGNAME"):
        monkeypatch.setenv(name, "secret-login")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


def ok(cli: Cli, *words: str | Path) -> None:
    said = cli(*words)
    assert said.code == 0, said


def test_packed_data_runs_tables_and_pages_tell_no_folder_user_or_host(cli: Cli, home: Path) -> None:
    work, run, table = home / "work", home / "run", home / "table"
    engine = "pipeline.embed.engine"
    clip = ("--set", f"{engine}=hf-clip-vit-l-14-336", "--set", f"{engine}.model={home / 'clip'}", "--set", f"{engine}.dtype=float32")  # fmt: skip
    given = ("--dataset", "synthetic", "--data", home / "raw", "--recipe", home / "mine.toml", "--allow-missing", *clip)
    ok(cli, "c2vl-pipeline", "prompts", "--work", work, *given, "--workers", "0")
    ok(cli, "c2vl-pipeline", "pack", "--work", work, "--layout", "kinect_v1")
    for name in ("inspect", "audit", "explain S001C001P001R001A001", "explain S001C001P001R001A002"):
        ok(cli, "c2vl-pipeline", *name.split(), "--work", work)
    ok(cli, "c2vl-pipeline", "publish", "--work", work, "--out", home / "published", *PUBLISHED)
    data = ("--data", work)
    ok(cli, "c2vl-train", "pretrain", *data, "--out", run)
    if find_spec("onnxscript") is not None:
        ok(cli, "c2vl-train", "export", "--run", run)
    for words in (("run", "knn"), ("zeroshot",), ("search", "a person waving", "--out", home / "search.html")):
        ok(cli, "c2vl-eval", *words, "--run", run, *data)
    ok(cli, "c2vl-eval", "benchmark", *data, "--benchmark", "xsub", "--out", table)

    away = home.parent / "away"
    for folder in (run, table, home / "published", work / "packed", work / "packed-kinect_v1"):
        shutil.copytree(folder, away / folder.name)
    for page in (*home.glob("*.html"), *work.glob("*.html")):
        shutil.copy(page, away)
    assert len(list(away.glob("explain-*.html"))) == 2
    assert [name for name in MADE if not (away / name).is_file()] == []
    assert list(away.glob("run/tensorboard/*"))
    assert "S001C001P001R001A001_rgb.avi" in (away / "run" / "left_out.csv").read_text()
    assert tell_tales(away) == {}
    assert "samples.json" in tell_tales(work)  # what is needed to go on stays there

    packed = ("--data", away / "packed")
    train = ("c2vl-train", "pretrain", *packed, "--out", away / "again")
    (home / "mine.toml").rename(home / "other.toml")
    refused(cli(*train), "mine.toml", "--recipe")
    ok(cli, *train, "--recipe", home / "other.toml")
    zeroshot = ("c2vl-eval", "zeroshot", "--run", away / "again", *packed, "--recipe", "debug")
    refused(cli(*zeroshot), "…/clip", "--encoder")
    ok(cli, *zeroshot, "--encoder", home / "clip")
