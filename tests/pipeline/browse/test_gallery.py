"""The gallery of prompts: filters, limits, contents."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import audit, gallery, trace
from c2vl_pipeline.browse.gallery import Filters
from c2vl_pipeline.workspace import load, shard_path
from support.pages import assert_self_contained


def names(work: Path, **filters) -> list[str]:
    index = load(work)
    ids = index.table["sample_id"].to_pylist()
    return [ids[n] for n in gallery.select(index, Filters(**filters))]


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


def test_a_gallery_shows_the_limit_and_counts_all(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", limit=3)
    page = assert_self_contained(made.path)
    total = load(odd).table.num_rows
    assert (made.matched, made.shown, made.total) == (total, 3, total)
    assert len(page.of("article")) == 3
    assert f"3 of {total} matching samples" in page.text
    random = [gallery.gallery(odd, tmp_path / f"{s}.html", limit=3, seed=s).path for s in (1, 1, 2)]
    first, again, other = (p.read_text("utf-8") for p in random)
    assert first == again != other


def test_an_empty_selection_is_a_page_too(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", Filters(text="no such words"))
    assert (made.matched, made.shown) == (0, 0)
    assert "No sample matches." in assert_self_contained(made.path).text


def test_a_gallery_without_stages_says_so(work, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    for name in ("samples.parquet", "samples.json"):
        shutil.copy(work / name, folder / name)
    made = gallery.gallery(folder, tmp_path / "g.html")
    assert "There are no crops yet; `c2vl-pipeline crop` makes them." in made.notes
    assert_self_contained(made.path)
    facts = trace.trace(folder, load(folder).table["sample_id"][0].as_py()).facts
    assert {s["state"] for s in facts["stages"]} == {"not run"}
    assert [s["frame"] for s in facts["slots"]]
    found = audit.measure(folder)
    assert found.crops is found.captions is found.joints is None
    assert_self_contained(audit.write(found, tmp_path / "a.html"))
