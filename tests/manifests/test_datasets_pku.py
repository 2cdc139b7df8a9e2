"""Splits of PKU-MMD part 2: published counts and the list of left-out samples."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c2vl_manifests.datasets import Benchmark, Dataset, load_dataset, parse_dataset
from c2vl_manifests.errors import ConfigError
from c2vl_pipeline.readers.pku import parse_labels
from c2vl_training.dataset import PackedDataset
from support.packed import write_packed

WITH, WITHOUT = "xsub", "xsub-published"
PUBLISHED = {WITH: {"train": 5_339, "test": 1_613}, WITHOUT: {"train": 5_295, "test": 1_610}}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("pku-mmd-2")


@pytest.fixture(scope="module")
def drops(dataset: Dataset) -> frozenset[str]:
    return dataset.benchmarks[WITHOUT].dropped()


def recording(sample_id: str) -> tuple[str, int, int]:
    """The recording, class and label row that a sample's id names, read without the project's parser."""
    setup, subject, view, label, row = (int(sample_id[at : at + 3]) for at in (1, 5, 9, 13, 17))
    return f"A{setup:02d}N{subject:02d}-{'LMR'[view - 1]}", label, row


def rows_of(ids: list[str], dataset: Dataset) -> list[dict[str, Any]]:
    """The rows that `index` makes of label files which hold these samples, each in the row its id names."""
    files: dict[str, dict[int, int]] = {}
    for sample in ids:
        name, label, row = recording(sample)
        files.setdefault(name, {})[row] = label
    made: list[dict[str, Any]] = []
    for name, labels in files.items():
        lines = (f"{labels[n]},1,50,2" if n in labels else "" for n in range(1, max(labels) + 1))
        made += parse_labels("\n".join(lines), name, dataset, f"{name}.txt")
    assert sorted(row["sample_id"] for row in made) == sorted(ids)
    return made


def counts(rows: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {name: Counter() for name in PUBLISHED}
    for row in rows:
        for name, split in row["splits"]:
            found.setdefault(name, Counter())[split] += 1
    return found


def test_the_shipped_list_is_the_difference_of_the_two_published_counts(
    dataset: Dataset, drops: frozenset[str]
) -> None:
    rows = rows_of(sorted(drops), dataset)
    assert counts(rows)[WITHOUT] == {}
    lost = counts(rows)[WITH]
    assert lost == {split: n - PUBLISHED[WITHOUT][split] for split, n in PUBLISHED[WITH].items()}
    assert lost.total() == len(drops) == 47
    assert {recording(sample)[0] for sample in drops} <= set(dataset.expected_recordings())


def test_the_description_expects_both_published_counts(dataset: Dataset) -> None:
    assert dataset.expected is not None
    for name, published in PUBLISHED.items():
        assert dataset.expected.splits[name] == (published["train"], published["test"])


def test_only_the_listed_samples_differ(dataset: Dataset, drops: frozenset[str]) -> None:
    dropped = min(drops)
    name, label, row = recording(dropped)
    files = "\n".join(f"{label},1,50,2" for _ in range(row + 1))
    splits = {r["sample_id"]: dict(r["splits"]) for r in parse_labels(files, name, dataset, "x.txt")}
    assert set(splits.pop(dropped)) == {"xsub", "xview"}
    assert splits
    for of_one in splits.values():
        assert of_one[WITHOUT] == of_one[WITH]


def test_every_other_sample_keeps_the_split_of_the_rule(dataset: Dataset) -> None:
    for name in dataset.expected_recordings():
        splits = dataset.splits(dataset.parse_id(name), "A001N001V001C001L999")
        assert splits[WITHOUT] == splits[WITH]


@pytest.fixture(scope="module")
def published(shared: Path, dataset: Dataset) -> list[dict[str, Any]]:
    """Rows of all 6,952 samples: the keys of the released captions are the samples of the label files."""
    with zipfile.ZipFile(shared / "captions" / "pkuv2_language.zip") as archive:
        return rows_of(sorted(json.loads(archive.read(archive.namelist()[0]))), dataset)


def test_both_published_counts_come_from_the_label_files(published: list[dict[str, Any]]) -> None:
    found = counts(published)
    assert {name: dict(found[name]) for name in PUBLISHED} == PUBLISHED


def test_the_shipped_list_is_the_published_one(shared: Path, drops: frozenset[str]) -> None:
    assert drops == set((shared / "pku" / "part2_published_drops.txt").read_text().split())


def test_one_packed_set_serves_both(published: list[dict[str, Any]], drops: frozenset[str], tmp_path: Path) -> None:
    """One folder as `pack` writes it, with these rows' splits; which benchmark is meant is said when it is read."""
    folder = write_packed(
        tmp_path / "packed",
        [np.zeros((1, 1, 5, 3), np.float32)] * len(published),
        subjects=[row["subject"] for row in published],
        splits=[dict(row["splits"]) for row in published],
    )
    packed = PackedDataset(folder)
    chosen = {
        (name, split): {published[n]["sample_id"] for n in packed.select(name, split).rows}
        for name, splits in PUBLISHED.items()
        for split in splits
    }
    for (name, split), ids in chosen.items():
        assert len(ids) == PUBLISHED[name][split]
    for split in ("train", "test"):
        assert chosen[WITH, split] - chosen[WITHOUT, split] == chosen[WITH, split] & drops
        assert chosen[WITHOUT, split] < chosen[WITH, split]
    held = {published[n]["sample_id"] for n in packed.select(f"{WITHOUT}-val", "test").rows}
    assert held < chosen[WITHOUT, "train"]


@pytest.mark.parametrize("name", ["pku3_drops.txt", "../../../secret.txt", "pku-mmd-2.toml"])
def test_a_list_that_is_not_shipped_is_refused(name: str) -> None:
    text = f"""
name = "x"
title = "X"
reader = "pku"
layout = "kinect_v2"
bodies = 2
fps = 30
id_pattern = 'A(?P<setup>\\d{{2}})N(?P<subject>\\d{{2}})-(?P<side>[LMR])'
video_suffixes = [".avi"]
skeleton_suffixes = [".txt"]
default_recipe = "paper"
detector = {{ backend = "motion" }}
benchmarks.xsub = {{ field = "subject", test = [2], drops = "{name}" }}
"""
    with pytest.raises(ConfigError) as caught:
        parse_dataset(text, "x.toml")
    assert str(caught.value) == (
        f"x.toml: not a description of a dataset (benchmarks.xsub.drops: Value error, {name!r} is not a list of "
        "samples; use one of ntu_missing.txt, nw_ucla.txt, pku2_drops.txt)"
    )


def test_a_rule_without_a_list_drops_nothing() -> None:
    assert Benchmark(field="subject", test=(2,)).dropped() == frozenset()
