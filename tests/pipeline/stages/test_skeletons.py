"""The skeletons stage: rows that cut one recording, and files that end too early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.execution import runner
from c2vl_pipeline.raw.check import IncompleteDataError
from c2vl_pipeline.stages import index, skeletons
from c2vl_pipeline.workspace import load, stored_joints


def made(dataset: str, root: Path, work: Path, **how: Any) -> dict[str, dict[str, Any]]:
    """Index a raw folder and run the stage; returns its rows by sample."""
    recipe = load_recipe("debug", [])
    index.build(load_dataset(dataset), root, work, recipe.pipeline, recipe="debug", **how)
    runner.run_stage(skeletons.STAGE, work, recipe, max_failures=1.0)
    rows = [r for p in sorted((work / "skeletons").glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
    return {r["sample_id"]: r for r in rows}


def own(root: Path, *lines: str, **arrays: np.ndarray) -> Path:
    root.mkdir()
    (root / "samples.csv").write_text("\n".join(["sample_id,start_frame,end_frame,skeleton", *lines]) + "\n")
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    return root


WALK = np.random.default_rng(0).normal(size=(90, 25, 3)).astype(np.float32)


def test_rows_of_one_recording_get_their_own_frames(tmp_path: Path) -> None:
    root = own(tmp_path / "own", "a,0,30,x.npy", "b,30,90,x.npy", "c,45,,x.npy", "d,,,x.npy", x=WALK)
    rows = made("generic", root, tmp_path / "w")
    assert {k: (r["status"], r["frames"], r["frame_index"][0]) for k, r in rows.items()} == {
        "a": ("ok", 30, 0), "b": ("ok", 60, 30), "c": ("ok", 45, 45), "d": ("ok", 90, 0),
    }  # fmt: skip
    layout = load(tmp_path / "w").layout
    np.testing.assert_array_equal(stored_joints(rows["b"], layout)[:, 0], WALK[30:] - WALK[30, 1])


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        (("a,0,45,x.npy", "b,45,90,x.npy"), {"b"}),  # half the frames of the recording, for both rows
        (("a,10,40,x.npy", "b,50,120,x.npy"), {"b"}),
        (("a,60,100,x.npy",), {"a"}),
    ],
)
def test_only_the_rows_that_do_not_fit_fail_and_say_both_lengths(tmp_path: Path, lines, failed: set[str]) -> None:
    rows = made("generic", own(tmp_path / "own", *lines, x=WALK[:45]), tmp_path / "w")
    assert {k for k, r in rows.items() if r["status"] != "ok"} == failed
    for name in failed:
        assert rows[name]["status"] == "decode_error"
        assert "45 frames; the row means frames" in rows[name]["error"]


def pku(root: Path, lines: int, labels: str) -> Path:
    for folder in ("Label", "Skeleton"):
        (root / folder).mkdir(parents=True)
    (root / "Label" / "A01N01-L.txt").write_text(labels)
    (root / "Skeleton" / "A01N01-L.txt").write_text(
        "0.1 0.2 3.0 " * 50 + "\n" if lines == 1 else ("1 " * 150 + "\n") * lines
    )
    return root


@pytest.mark.parametrize(
    ("lines", "labels", "statuses"),
    [
        (60, "2,10,40,2\n3,50,70,2\n4,90,110,2\n", ["ok", "decode_error", "decode_error"]),
        (60, "2,10,40,2\n3,50,400,2\n", ["ok", "decode_error"]),
        (60, "2,10,40,2\n3,50,90,2\n", ["ok", "ok"]),  # the label runs on behind the recording
    ],
)
def test_a_pku_file_that_ends_before_its_labels_says_so(tmp_path: Path, lines: int, labels: str, statuses) -> None:
    root = pku(tmp_path / "pku", lines, labels)
    rows = made("pku-mmd-2", root, tmp_path / "w", only_present=True)
    assert [r["status"] for r in rows.values()] == statuses
    for row in rows.values():
        assert row["frames_in_file"] <= lines
        assert row["status"] == "ok" or "truncated: it ends after 60 frames" in row["error"]
    recipe = load_recipe("debug", [])
    deep = {"recipe": "debug", "only_present": True, "deep": True}
    _, found = index.build(load_dataset("pku-mmd-2"), root, tmp_path / "d", recipe.pipeline, **deep)
    assert len(found.truncated) == ("decode_error" in statuses)
    if found.truncated:
        assert "Skeleton/A01N01-L.txt: truncated: it ends after 60 frames" in found.truncated[0]
        with pytest.raises(IncompleteDataError, match="1 damaged or truncated files"):
            index.build(load_dataset("pku-mmd-2"), root, tmp_path / "e", recipe.pipeline, recipe="debug", deep=True)
