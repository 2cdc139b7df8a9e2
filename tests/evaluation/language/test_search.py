"""Search of clips by text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markupsafe import escape

from c2vl_evaluation.language import search, text_encoder
from c2vl_evaluation.language.caption_words import vocabulary
from c2vl_manifests.cli_output import link, show_table
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_training.inference import load_joint_embedding
from support.cli import Cli, refused
from support.evaluation import another, manifest
from support.pages import assert_self_contained

# ---------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_nearest_clips_of_a_text_come_first(subject, split):
    found = search.search(subject, "sit down", 3, split)
    space, packed = load_joint_embedding(subject.run), subject.packed
    vector = text_encoder.load(packed).encode_texts(["sit down"]).vectors
    text = space.knowledge("language", vector)[0]
    rows = packed.select("xsub", split).rows
    cosines = {}
    for row, name in zip(rows, packed.sample_ids(rows), strict=True):
        joints = packed.joints[packed.offsets[row] : packed.offsets[row + 1]].transpose(0, 2, 3, 1)
        cosines[name] = float(space.skeleton(joints) @ text)
    order = sorted(cosines, key=lambda name: -cosines[name])[:3]
    assert [hit.sample_id for hit in found.hits] == order
    for hit in found.hits:
        assert hit.cosine == pytest.approx(cosines[hit.sample_id], abs=1e-5)
        assert packed.sample_ids([hit.row]) == [hit.sample_id]
        assert hit.name == packed.manifest.classes[packed.labels()[hit.row]]
    assert (found.clips, found.split) == (len(rows), split)
    assert found.mean == pytest.approx(np.mean(list(cosines.values())), abs=1e-5)


def test_words_that_no_caption_holds_are_said_with_some_that_captions_hold(subject, tmp_path):
    other = another(subject, tmp_path, lambda _: None)
    folder = other.packed.folder.parent / "captions"
    folder.mkdir()
    pq.write_table(pa.table({"sample_id": ["s00"], "caption": ["they kick"]}), folder / "shard-00000.parquet")
    assert search.search(other, "a kick wave", 2).notes[0].startswith("No caption holds 'wave', so the run was not")
    assert not any("No caption" in note for note in search.search(other, "they kick", 2).notes)


def test_a_search_that_cannot_be_made_is_refused(subject):
    with pytest.raises(DataError, match="the text is empty"):
        search.search(subject, "  ")
    with pytest.raises(ConfigError, match="--split 'val' is unknown; expected train or test"):
        search.search(subject, "wave", split="val")
    with pytest.raises(DataError, match=r"finds no word in '!'"):
        search.search(subject, "!")


# ------------------------------------------------------------------------------------------------ page


HOSTILE = "<script>alert('&')</script>"


def test_the_page_escapes_what_others_wrote_and_asks_for_nothing(subject, tmp_path):
    other = another(
        subject, tmp_path, lambda folder: manifest(folder, classes=[HOSTILE, "sit down", "kick"], title=HOSTILE)
    )
    found = search.search(other, f"wave {HOSTILE}", 4)
    page = assert_self_contained(search.write_page(found, other, tmp_path / "deep" / "page.html"))
    assert (len(page.of("article")), len(page.of("svg"))) == (4, 8)  # one that moves, one that stands still
    assert len(page.of("animate")) == 4
    assert escape(f"wave {HOSTILE}") in page.text
    assert any(hit.name == HOSTILE for hit in found.hits)
    for place, hit in enumerate(found.hits, 1):
        assert f"{place} · cosine {hit.cosine:.3f}".replace("-", "−") in page.text
    assert str(tmp_path) not in page.text


def test_a_clip_takes_its_own_time(subject, tmp_path):
    found = search.search(subject, "wave", 4)
    page = assert_self_contained(search.write_page(found, subject, tmp_path / "page.html"))
    seconds = [attrs["dur"] for attrs in page.of("animate")]
    frames = np.diff(subject.packed.offsets)[[hit.row for hit in found.hits]]
    assert seconds == [f"{max(n / 30, 0.5):.2f}s" for n in frames]
    assert len(set(seconds)) > 1


# --------------------------------------------------------------------------------------------- commands


def test_the_commands_print_tables_and_draw(cli: Cli, subject, tmp_path):
    words = ("--data", subject.packed.folder, "--recipe", "debug", "--run", subject.run)
    found = cli("c2vl-eval", "retrieval", *words)
    assert found.code == 0, found.err
    text = " ".join(found.out.split())
    for said in (
        "4 queries (4 different) among 4 test clips",
        "main",
        "the clip itself",
        "captions permuted",
        "any of its class",
        "ceiling: the clip itself",
        "chance: any of its class",
        "median rank",
    ):
        assert said in text
    refused(cli("c2vl-eval", "retrieval", *words, "--caption", "two"), "--caption 'two' is not one of mean, one")
    out = tmp_path / "found.html"
    found = cli("c2vl-eval", "search", "a person waving", *words, "--top", "2", "--out", out)
    assert found.code == 0, found.err
    hits = search.search(subject, "a person waving", 2).hits
    text = " ".join(found.out.split())
    for hit in hits:
        assert hit.sample_id in text
        assert f"{hit.cosine:.3f}" in text
    assert f"page: {link(out)}" in found.out
    assert out.read_text("utf-8").count("<article") == 2
    refused(cli("c2vl-eval", "search", " ", *words, "--out", tmp_path / "no.html"), "the text is empty")
    assert not (tmp_path / "no.html").exists()


def test_brackets_in_titles_and_searches_are_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("wave [/foo]", ["[/a]", "b"], [["[red]", "1"]], caption="[/z]")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("wave [/foo]", "[/a]", "[red]", "[/z]"))


@pytest.mark.parametrize("columns", [{"other": [1]}, {"sample_id": ["a"], "caption": [3]}, {"caption": ["x"]}])
def test_shards_of_another_stage_give_no_words(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "shard-00000.parquet")
    assert set(vocabulary(tmp_path)) <= {"x"}
