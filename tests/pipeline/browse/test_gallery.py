"""The gallery of prompts: filters, limits, contents."""

from __future__ import annotations

import shutil

import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import audit, cards, gallery, trace
from c2vl_pipeline.browse.selection import Filters
from c2vl_pipeline.workspace import load, shard_path
from support.pages import assert_self_contained


def test_a_gallery_shows_the_limit_and_counts_all(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", limit=3)
    page = assert_self_contained(made.path)
    total = load(odd).table.num_rows
    assert (made.matched, made.shown, made.total) == (total, 3, total)
    assert len(page.of("article")) == 3
    assert f"3 of {total} samples" in page.text
    random = [gallery.gallery(odd, tmp_path / f"{s}.html", limit=3, seed=s).path for s in (1, 1, 2)]
    first, again, other = (p.read_text("utf-8") for p in random)
    assert first == again != other
    every, three = (
        [int(card["data-poor"]) for card in assert_self_contained(path).of("article")]
        for path in (gallery.gallery(odd, tmp_path / f"{n}.html", limit=n, order="captions").path for n in (1000, 3))
    )
    assert every == sorted(every, reverse=True)
    assert three == every[:3]
    with pytest.raises(ConfigError, match="--seed and --order exclude each other; give one of them"):
        gallery.gallery(odd, tmp_path / "no.html", seed=1, order="score")


def test_a_slice_of_one_class_names_only_what_differs(odd, tmp_path):
    made = gallery.gallery(odd, tmp_path / "g.html", Filters(label="0"), limit=3)
    assert made.chosen == "a slice spread over 3 subjects, 2 cameras"
    assert f" · {made.chosen};" in assert_self_contained(made.path).text


def test_a_card_shows_motion_crops_and_different_captions_once(odd, tmp_path):
    index = load(odd)
    first = index.table["sample_id"][0].as_py()
    page = assert_self_contained(gallery.gallery(odd, tmp_path / "g.html", Filters(samples=(first,))).path)
    rows = [r for r in read_shard(shard_path(odd, "captions", 0)).to_pylist() if r["sample_id"] == first]
    assert len(page.of("img")) == len(rows) + 1  # and the viewer's
    assert [f["data-slot"] for f in page.of("figure")] == [str(r["slot"]) for r in rows]
    assert page.of("animate")
    slots = [li["data-slots"].split() for li in page.of("li")]
    assert len(page.of("summary")) == 1 + (len(slots) > 2)  # statuses of all rows, and the captions between
    assert sorted(slot for some in slots for slot in some) == sorted(str(r["slot"]) for r in rows)
    assert slots[0][0] == "0"
    (card,) = page.of("article")
    assert set(card["data-text"].split("\n")) == {r["caption"] for r in rows}
    assert f"c2vl-pipeline explain {first} --work {odd.name}" in [b.get("data-copy") for b in page.of("button")]


def test_facts_of_a_card_are_those_of_its_rows(odd, tmp_path):
    page = assert_self_contained(gallery.gallery(odd, tmp_path / "g.html", limit=1000).path)
    shown = dict(zip(load(odd).table["sample_id"].to_pylist(), page.of("article"), strict=True))
    crops = read_shard(shard_path(odd, "crops", 0)).to_pylist()
    captions = read_shard(shard_path(odd, "captions", 0)).to_pylist()
    for sample in {r["sample_id"] for r in crops}:
        own, said = ([r for r in rows if r["sample_id"] == sample] for rows in (crops, captions))
        bad = [f"crops:{r['status']}" for r in own if r["status"] != "ok"]
        bad += [f"captions:{r['status']}" for r in said if r["status"] != "ok"]
        texts = [r["caption"] for r in said if r["caption"]]
        assert shown[sample]["data-status"] == ("\n".join(sorted(bad)) or "ok")
        assert float(shown[sample]["data-score"]) == min(r["score"] for r in own if r["score"] is not None)
        assert int(shown[sample]["data-poor"]) == len(said) - len(set(texts))  # missing or repeated; none is cut


def test_of_very_many_samples_every_nth_crop_is_shown(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "PICTURES", 40)
    monkeypatch.setattr(cards, "MOVING", 10)
    made = gallery.gallery(odd, tmp_path / "g.html", limit=20)
    page = assert_self_contained(made.path)
    assert {f["data-slot"] for f in page.of("figure")} == {"0", "2"}  # 4 slots, room for 2
    assert "Only every 2nd crop" in page.text
    assert "skeletons and boxes are not drawn" in page.text
    assert not page.of("animate") + page.of("rect")


def test_a_gallery_without_stages_says_so(work, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    for name in ("samples.parquet", "samples.json"):
        shutil.copy(work / name, folder / name)
    made = gallery.gallery(folder, tmp_path / "g.html")
    assert sorted(made.notes) == [
        f"There are no {stage} yet; `c2vl-pipeline {command}` makes them."
        for stage, command in (
            ("captions", "caption"),
            ("crops", "crop"),
            ("embeddings", "embed"),
            ("skeletons", "skeletons"),
        )
    ]
    assert_self_contained(made.path)
    facts = trace.trace(folder, load(folder).table["sample_id"][0].as_py()).facts
    assert {s["state"] for s in facts["stages"]} == {"not run"}
    assert [s["frame"] for s in facts["slots"]]
    found = audit.measure(folder)
    assert found.crops is found.captions is found.joints is None
    assert_self_contained(audit.write(found, tmp_path / "a.html"))
