"""The work folder: what others made of it is checked where it is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.layouts import KINECT_V2
from c2vl_manifests.manifest import commit_table
from c2vl_pipeline.workspace import load, stored_joints
from support.cli import Cli, refused

OUTSIDE = ["/etc/hostname", "../raw of others/x.avi", "nturgb+d_rgb/../../x.avi", "..", "a\0b"]


def rewritten(work: Path, folder: Path, column: str, value: pa.Scalar | str) -> Path:
    """Return a copy of an index in which one row of a column has another value."""
    folder.mkdir()
    index = load(work)
    values = index.table[column].to_pylist()
    values[len(values) // 2] = value
    at = index.table.schema.get_field_index(column)
    table = index.table.set_column(at, index.table.schema.field(at), [values])
    manifest = index.manifest
    commit_table(folder / "samples.parquet", table, key=manifest.key, row_group=65536, extra=manifest.extra)
    return folder


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("column", ["video", "skeleton"])
def test_an_index_that_names_a_file_outside_its_raw_folder_is_refused(
    work: Path, tmp_path: Path, column: str, path: str
) -> None:
    folder = rewritten(work, tmp_path / "w", column, path)
    with pytest.raises(
        StageError, match="which is not below the raw folder; run `c2vl-pipeline index` again"
    ) as caught:
        load(folder)
    assert f"the {column} of 'S001" in str(caught.value)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize("path", ["a..b/..c/x...avi", "~/x.avi", "deep/er/x.avi", "ü x.avi"])
def test_any_name_below_the_raw_folder_is_one(work: Path, tmp_path: Path, path: str) -> None:
    assert path in load(rewritten(work, tmp_path / "w", "video", path)).table["video"].to_pylist()


def test_every_command_that_reads_the_index_refuses_it(work: Path, tmp_path: Path, cli: Cli) -> None:
    folder = rewritten(work, tmp_path / "w", "skeleton", "/etc/hostname")
    for command in ("skeletons", "crop", "pack", "status", "verify", "inspect"):
        refused(cli("c2vl-pipeline", command, "--work", folder), "'/etc/hostname', which is not below the raw folder")


def test_a_table_with_the_names_of_an_index_and_other_types_is_none(work: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(work, tmp_path / "w"))
    index = load(work)
    at = index.table.schema.get_field_index("video")
    table = index.table.set_column(at, "video", pa.array(range(index.table.num_rows)))
    commit_table(folder / "samples.parquet", table, key="k", row_group=65536, extra=index.manifest.extra)
    with pytest.raises(StageError, match="is not an index"):
        load(folder)


@pytest.mark.parametrize("plan", [[], [[0, 32], [0, 32]], [[0, 8], [16, 32]], [[0, 40]], [[0, 8]], [[0, 0], [0, 32]]])
def test_an_index_whose_shards_are_not_its_rows_is_refused(work: Path, tmp_path: Path, plan: list[list[int]]) -> None:
    index = load(work)
    assert index.table.num_rows == 32
    extra = index.manifest.extra | {"plan": plan}
    commit_table(tmp_path / "samples.parquet", index.table, key=index.manifest.key, row_group=65536, extra=extra)
    with pytest.raises(ConfigError, match=r"lacks a plan of 32 rows; run `c2vl-pipeline index` again"):
        load(tmp_path)


@pytest.mark.parametrize("size", [7, 8 * 25 * 3 * 4 - 4])
def test_joints_of_another_size_than_their_frames_are_one_line(size: int) -> None:
    row = {"sample_id": "a", "frames": 8, "joints": b"x" * size}
    with pytest.raises(
        DataError, match=rf"the joints of a have {size:,} bytes, which are no 8 frames of 25 joints"
    ) as caught:
        stored_joints(row, KINECT_V2)
    assert "\n" not in str(caught.value)
