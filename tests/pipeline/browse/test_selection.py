"""Which samples a gallery shows: filters, a slice of all kinds, errors."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import cards, selection
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.workspace import load, shard_path
from support.cli import refused
from support.pages import rewrite


def names(work: Path, **filters) -> list[str]:
    index = load(work)
    ids = index.table["sample_id"].to_pylist()
    return [ids[n] for n in selection.select(index, selection.Filters(**filters))]


def test_filters_select_what_a_scan_of_all_rows_selects(odd):
    index = load(odd)
    rows = index.table.to_pylist()
    ids = [r["sample_id"] for r in rows]
    assert names(odd) == ids
    assert names(odd, label=index.classes[2].upper()) == [r["sample_id"] for r in rows if r["label"] == 2]
    assert names(odd, label="2") == names(odd, label=index.classes[2])
    assert names(odd, subject=3, camera="2") == [r["sample_id"] for r in rows if r["subject"] == 3 and r["view"] == 2]
    assert names(odd, split="xsub:test") == [r["sample_id"] for r in rows if ("xsub", "test") in r["splits"]]
    assert names(odd, samples=(ids[3], "*A002")) == [i for i in ids if i == ids[3] or i.endswith("A002")]
    captions = read_shard(shard_path(odd, "captions", 0)).to_pylist()
    start, stop = index.shard_ranges[0]
    for text in ("SITTING", "<script>", "no such words"):
        wanted = {c["sample_id"] for c in captions if text.lower() in (c["caption"] or "").lower()}
        assert [n for n in names(odd, text=text) if n in ids[start:stop]] == [i for i in ids[start:stop] if i in wanted]


def test_statuses_select_the_samples_that_hold_them(odd):
    ids = load(odd).table["sample_id"].to_pylist()
    slots = len(read_shard(shard_path(odd, "crops", 0)).filter(pa.compute.field("sample_id") == ids[0]))
    assert names(odd, status="no_person") == [ids[17 // slots]]
    assert names(odd, status="failed") == names(odd, status="captions:failed") == [ids[29 // slots]]
    assert names(odd, status="crops:failed") == []
    assert names(odd, status="not-ok") == sorted({ids[17 // slots], ids[29 // slots]}, key=ids.index)


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ({"status": "no_persn"}, "unknown status 'no_persn'; did you mean 'no_person'?"),
        ({"status": "crop:failed"}, "did you mean 'crops'"),
        ({"split": "xsub:tset"}, "did you mean 'xsub:test'"),
        ({"shard": 99}, "unknown shard '99'"),
        ({"samples": ("S001C001P001R001A0O1",)}, "did you mean S001C001P001R001A001"),
    ],
)
def test_unknown_filters_name_the_near_ones(odd, filters, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        names(odd, **filters)


def test_where_nothing_has_a_name_none_is_offered(odd):
    with pytest.raises(ConfigError, match="unknown class 'drink'; known: none"):
        selection.select(replace(load(odd), classes=()), selection.Filters(label="drink"))


def test_a_slice_holds_all_classes_subjects_and_cameras_equally():
    kinds = [
        (label, subject, camera) for label in range(6) for subject in range(4) for camera in "ab" for _ in range(5)
    ]
    table = pa.table(dict(zip(("label", "subject", "camera"), map(list, zip(*kinds, strict=True)), strict=True)))
    matched = np.arange(len(kinds))
    chosen = selection.spread(table, matched, 24)
    assert len(set(chosen)) == 24
    assert list(chosen) == sorted(chosen)
    for column in range(3):
        counts = Counter(kinds[n][column] for n in chosen)
        assert counts.keys() == {kind[column] for kind in kinds}
        assert len(set(counts.values())) == 1
    few = selection.spread(table, matched, 3)
    assert [kinds[n][0] for n in few] == [0, 2, 5]  # of too many classes, from first to last
    assert list(selection.spread(table, matched, len(kinds))) == list(matched)


def test_a_slice_of_samples_without_subject_and_with_a_rare_class_is_whole():
    table = pa.table({"label": [-1] * 9 + [3], "subject": pa.nulls(10, pa.int16()), "camera": [""] * 10})
    assert set(selection.spread(table, np.arange(10), 9)) >= {9}
    assert len(selection.spread(table, np.arange(2, 10), 7)) == 7


def test_an_empty_match_says_which_words_and_how_many_each_filter_gives(odd, cli, tmp_path):
    page = tmp_path / "g.html"
    said = cli("c2vl-pipeline", "inspect", "--work", odd, "--out", page, "--text", "siting", "--class", "1")
    refused(
        said, "no sample matches class 1, text siting", "class 1 gives 8, text siting gives 0", "did you mean 'sitting'"
    )
    assert "Captions say " in said.err
    assert "person" in said.err
    assert not page.exists()


def test_an_empty_match_says_what_could_not_be_read(copied, cli):
    def asked() -> str:
        said = cli("c2vl-pipeline", "inspect", "--work", copied, "--text", "standing")
        refused(said, "no sample matches text standing.")
        return said.err

    shards = sorted((copied / "captions").glob("*.parquet"))
    for path in shards:
        path.write_bytes(b"PAR1")
    assert asked().count("cannot be read and is skipped") == len(shards)
    shutil.rmtree(copied / "captions")
    assert "There are no captions yet; `c2vl-pipeline caption` makes them." in asked()


def test_the_words_of_most_captions_come_first():
    said = ["a person waves", "the person is seated", "the person waves; waves", "so it is"]
    assert selection.frequent(said) == ["person", "waves", "seated"]


def test_the_worst_come_first_as_their_cards_count_them(copied, odd):
    def cut(rows):
        for row in rows[:4]:
            row["truncated"] = True

    rewrite(copied, "embeddings", read_shard(shard_path(copied, "embeddings", 0)).schema, cut)
    for folder in (copied, odd):
        index = load(folder)
        reader = RowReader(index)
        every = np.arange(index.table.num_rows)
        made = cards.cards(index, reader, every.tolist())
        worst = sorted(every, key=lambda n: -made[n].poor)
        assert selection.worst_first(index, reader, every, "captions").tolist() == worst
        assert selection.worst_first(index, reader, every[3:9], "captions").tolist() == [n for n in worst if 3 <= n < 9]
        least = sorted(every, key=lambda n: made[n].score)
        assert selection.worst_first(index, reader, every, "score").tolist() == least
    assert made[worst[0]].poor > made[worst[-1]].poor
    shard_path(copied, "captions", 1).unlink()
    start, stop = load(copied).shard_ranges[1]
    order = selection.worst_first(load(copied), RowReader(load(copied)), every, "captions").tolist()
    assert order[start - stop :] == list(range(start, stop))  # nothing is known of them
    with pytest.raises(ConfigError, match="unknown order 'caption'; did you mean 'captions'"):
        selection.worst_first(load(odd), RowReader(load(odd)), every, "caption")
