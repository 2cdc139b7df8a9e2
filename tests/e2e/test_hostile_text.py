"""Names and labels that hold escape sequences, through the commands: none reaches what is printed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.cli import Cli, Said, pretrain, sets

pytestmark = pytest.mark.slow

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1A\x7f\b\u202e\u2066\u200f\u061c"
WORD = f"z{EVIL}\nerror: forged"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Custom data with hostile ids, labels and names of files; two of the files are no arrays."""
    folder, entries, random = tmp_path_factory.mktemp("own"), [], np.random.default_rng(0)
    for n in range(12):
        file = f"{n}{WORD}.npy"
        np.save(folder / file, random.normal(size=(20, 25, 3)).astype(np.float32))
        if n in {1, 3}:
            (folder / file).write_bytes(b"junk")
        entries.append({"sample_id": f"{n}{WORD}", "skeleton": file, "label": f"{n // 3 % 2}{WORD}", "split_xsub": "train" if n < 8 else "test"})  # fmt: skip
    pq.write_table(pa.Table.from_pylist(entries), folder / "samples.parquet")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9\x1b[2J.npy")).write_bytes(b"no array")
    return folder


def harmless(said: Said) -> Said:
    """No control of a terminal, no forged line, no traceback."""
    told = said.out + said.err
    assert not [c for c in told if c != "\n" and ((c in EVIL and c not in "]0;owned[2J1A") or ord(c) < 32)], told
    assert not [line for line in told.splitlines() if line.startswith("error: forged")]
    assert "Traceback" not in told
    assert said.code in {0, 1, 2}
    return said


def test_no_command_prints_a_control_that_stands_in_the_data(cli: Cli, own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, work, run = ("--data", own), ("--work", f"w{EVIL}"), f"r{EVIL}"
    shown = ""
    for words in (
        ("index", "--dataset", "generic", *data, *work, "--recipe", "debug", "--layout", "kinect_v2", "--allow-missing"),
        ("prompts", *work, "--workers", "0", "--max-failures", "1"),
        ("status", *work, "--why"),
        ("status", *work, "--json"),
        ("inspect", *work, "--out", f"{EVIL}.html", "--class", f"0{WORD}"),
        ("inspect", *work, "--class", f"no{EVIL}"),
        ("explain", f"1{WORD}", *work),
        ("explain", f"1{WORD}", *work, "--json"),
        ("explain", f"no{EVIL}", *work),
        ("audit", *work),
        ("verify", *work, "--json"),
        ("status", *work, "--set", f"pipeline.{EVIL}={EVIL}"),
        ("status", *work, "--set", f"pipeline.frames={EVIL}"),
        ("status", *work, "--recipe", f"{EVIL}.toml"),
        ("caption", *work, "--engine", EVIL),
        ("crop", *work, "--workers", EVIL),
        ("index", "--dataset", EVIL, *data, *work),
        ("index", "--dataset", "generic", "--data", f"no{EVIL}", *work),
        (f"no{EVIL}",),
        (f"--no{EVIL}",),
    ):  # fmt: skip
        shown += harmless(cli("c2vl-pipeline", *words)).out
    assert "1z\\x1b]0;owned\\x07" in shown  # what is asked above is what data say
    language = sets("training.pretrain.knowledge=language", "training.pretrain.batch_size=2")
    assert harmless(cli(*pretrain(Path(work[1]), Path(run), *language))).code == 0
    packed = ("--data", work[1], "--recipe", "debug")
    assert harmless(cli("c2vl-eval", "run", "knn", "--run", run, *packed)).code == 0
    harmless(cli("c2vl-eval", "predict", own / f"0{WORD}.npy", own / f"1{WORD}.npy", "--run", run, *packed))
    harmless(cli("c2vl-eval", "search", EVIL, "--run", run, *packed))
    harmless(cli("c2vl-eval", "benchmark", *packed, "--benchmark", EVIL, "--out", f"t{EVIL}"))
