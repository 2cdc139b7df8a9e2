"""Packed data and finished experiments for the paper's tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from c2vl_evaluation.paper.compute import compute
from c2vl_evaluation.paper.experiments import Experiments
from support.packed import COUNT, sticks
from support.paper import experiments


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up sets under the names of datasets, one of them of the paper; tests must not write into it."""
    root = tmp_path_factory.mktemp("experiments")
    for name in ("ntu60", "utd-mhad"):
        splits = [dict.fromkeys(("xsub", "xview"), "train" if n % 4 else "test") for n in range(COUNT)]
        more = {} if name == "ntu60" else {"splits": [{"xsub": s["xsub"]} for s in splits]}
        folder = sticks(root / name / "packed", **({"splits": splits} | more))
        facts = json.loads((folder / "packed.json").read_text())
        facts |= {"dataset": name, "title": f"Sticks {name}", "fingerprint": name.ljust(32, "x")}
        (folder / "packed.json").write_text(json.dumps(facts))
    return root


@pytest.fixture(scope="session")
def finished(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiments:
    """Table VII, table IV and figure 4, complete; tests must not write into it."""
    found = experiments(work, tmp_path_factory.mktemp("out"))
    compute(found, found.cells(["table4", "table7", "figure4"]))
    return found
