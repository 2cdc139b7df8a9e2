"""Words of captions, and hints on words that they lack."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_evaluation.language import caption_words
from c2vl_evaluation.language.caption_words import hint, unknown_words, vocabulary


def shard(folder, number, captions):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"caption": pa.array(captions, pa.string())}), folder / f"shard-{number:05d}.parquet")


def test_the_vocabulary_is_of_all_readable_shards_without_punctuation(tmp_path):
    shard(tmp_path / "c", 0, ["The man waves.", "The man waves.", None, "(A man’s hand, waves)"])
    shard(tmp_path / "c", 1, ["the MAN sits"])
    (tmp_path / "c" / "shard-00002.parquet").write_bytes(b"broken")
    assert vocabulary(tmp_path / "c") == {"the": 2, "man": 2, "waves": 2, "a": 1, "man’s": 1, "hand": 1, "sits": 1}
    assert vocabulary(tmp_path / "none") == {}


def test_reading_ends_once_the_captions_hold_all_words_asked_for(tmp_path):
    for number, caption in enumerate(["one", "two", "three", "four"]):
        shard(tmp_path / "c", number, [caption])
    assert set(vocabulary(tmp_path / "c", ["One"])) == {"one"}
    assert set(vocabulary(tmp_path / "c", ["three"])) == {"one", "two", "three"}
    assert (
        set(vocabulary(tmp_path / "c", ["none"])) == set(vocabulary(tmp_path / "c")) == {"one", "two", "three", "four"}
    )


def test_beyond_enough_captions_only_those_that_may_hold_a_word_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_words, "_ENOUGH", 2)
    for number, caption in enumerate(["one", "a.two", "three", "The Man’s four", "five"]):
        shard(tmp_path / "c", number, [caption])
    known = vocabulary(tmp_path / "c", ["one man’s five"])
    assert unknown_words(["one man’s five"], known) == []
    assert set(known) == {"one", "a", "two", "the", "man’s", "four", "five"}  # and not what says nothing of them
    assert unknown_words(["a.two three"], vocabulary(tmp_path / "c", ["a.two three six"])) == []


def test_words_that_captions_lack_are_named_once_without_function_words(tmp_path):
    shard(tmp_path / "c", 0, ["a person is sitting near a walking man"] * 3)
    known = vocabulary(tmp_path / "c")
    assert unknown_words(["a person waving", "the waving one and an apple"], known) == ["waving", "one", "apple"]
    assert unknown_words(["person sitting"], known) == []
    assert unknown_words(["waving"], vocabulary(tmp_path / "none")) == []  # nothing is known of the captions


def test_a_hint_offers_words_of_the_captions_the_akin_ones_first(tmp_path):
    shard(tmp_path / "c", 0, ["the person sitting", "the person walking", "the person waves"])
    known = vocabulary(tmp_path / "c")
    said = hint(["waving"], known)
    assert said == (
        "No caption holds 'waving', so the run was not trained on it. Captions hold: waves, person, sitting, walking."
    )
    assert "Captions hold: sitting, person" in hint(["sit"], known)
    assert "'w7' and 2 more, so the run was not trained on them" in hint([f"w{n}" for n in range(10)], known)
    assert hint([], known) == ""
