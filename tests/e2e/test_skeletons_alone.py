"""A dataset without videos, from files to the report: rules over the joints are its only knowledge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_evaluation.results import load
from support.cli import Cli, pretrain, refused
from support.nw_ucla import write_clips

pytestmark = pytest.mark.slow
TWIN = "a01_s01_e00_v02", "a01_s01_e00_v03"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two actions of three subjects before three cameras; one clip is in both views 2 and 3."""
    rng = np.random.default_rng(0)
    names = [f"a{a:02d}_s{s:02d}_e00_v{v:02d}" for a in (1, 2) for s in (1, 2, 6) for v in (1, 2, 3)]
    frames = {name: rng.normal(size=(12, 20, 3)).cumsum(axis=0).astype(np.float32) for name in names}
    frames[TWIN[1]] = frames[TWIN[0]]
    return write_clips(tmp_path_factory.mktemp("ucla"), frames)


def test_every_command_says_in_one_line_what_it_leaves_out(raw: Path, tmp_path: Path, cli: Cli) -> None:
    work, table = tmp_path / "work", tmp_path / "table"
    made = cli(
        "c2vl-pipeline", "prompts", "--dataset", "nw-ucla", "--data", raw, "--work", work, "--recipe", "debug",
        "--only-present", "--workers", 0,
    )  # fmt: skip
    code, lines, _ = made.told
    assert code == 0, made
    assert "stage 3 of 6: crops: left out, no sample has a video" in lines
    assert "stage 5 of 6: embeddings: 72 of 72 rows, all accounted for: ok 72" in lines
    trained = f"c2vl-train pretrain --data {work}/packed --set training.pretrain.knowledge=language"
    assert lines[-1].endswith(trained)
    for more in ([], ["--set", "training.pretrain.knowledge=vision"]):
        refused(
            cli(*pretrain(work, tmp_path / "run"), "--benchmark", "xview", *more),
            "no usable train samples in xview",
            "language alone is there: --set training.pretrain.knowledge=language",
        )
    asked = ["c2vl-eval", "benchmark", "--data", work, "--benchmark", "xview", "--out", table, "--recipe", "debug"]
    refused(cli(*asked, "--set", "training.pretrain.knowledge=both"), "language alone is there")
    done = cli(*asked)
    assert done.code == 0, done
    assert done.out.startswith("NW-UCLA has no pictures here: pre-training uses language alone;")
    assert "1 of 6 test samples (16.7 %) have the joints of a training sample" in " ".join(done.out.split())
    found = load(table)
    assert {row.role: row.derived_from_joints for row in found.rows} == {
        "pretrained": True, "floor": False, "ceiling": False, "shuffled": True, "baseline": False,
    }  # fmt: skip
    assert {row.knowledge for row in found.rows if row.role in {"pretrained", "shuffled"}} == {"language"}
    page = (table / "report.html").read_text()
    assert "derived from joints" in page
    assert all(note in page for note in found.notes())
