"""Indexing of raw folders that are whole, doubtful or refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.errors import ConfigError, DataError, StageError
from c2vl_manifests.recipe import PipelineConfig
from c2vl_pipeline.raw.check import Findings, IncompleteDataError
from c2vl_pipeline.stages.index import build
from c2vl_pipeline.workspace import Workspace

AVI = b"RIFF\x04\0\0\0AVI "


def indexed(dataset: str, root: Path, work: Path, config: PipelineConfig, **how: Any) -> tuple[Workspace, Findings]:
    return build(load_dataset(dataset), root, work, config, recipe="debug", **how)


def refused(dataset: str, root: Path, config: PipelineConfig, **how: Any) -> str:
    """Return the message of an index that must fail; nothing may be written."""
    work = root.parent / "refused"
    with pytest.raises((DataError, StageError, ConfigError)) as caught:
        indexed(dataset, root, work, config, **how)
    assert not work.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rows(index: Workspace) -> dict[str, dict[str, Any]]:
    return {r["sample_id"]: r for r in index.table.to_pylist()}


def own(folder: Path, entries: list[dict[str, Any]], kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(entries), folder / "samples.parquet")
    else:
        with (folder / "samples.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    return folder


def doubtful(dataset: str, root: Path, config: PipelineConfig, **how: Any) -> Findings:
    """Return what an index that must stop has found."""
    with pytest.raises(IncompleteDataError) as caught:
        indexed(dataset, root, root.parent / "refused", config, **how)
    assert not (root.parent / "refused").exists()
    assert "\n" not in str(caught.value)
    assert all(doubt in str(caught.value) for doubt in caught.value.findings.errors())
    return caught.value.findings


def pku_labels(root: Path, samples: dict[str, list[int]]) -> None:
    """Label files of so many recordings; each class stands in the row that the sample's id names."""
    (root / "Label").mkdir(parents=True)
    for video, classes in samples.items():
        text = "".join(f"{c},{100 * n + 1},{100 * n + 50},2\n" for n, c in enumerate(classes))
        (root / "Label" / f"{video}.txt").write_text(text)
