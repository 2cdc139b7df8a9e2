"""Statistics of captions against naive counts."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest

from c2vl_manifests.manifest import read_shard
from c2vl_pipeline.browse import audit, caption_stats
from c2vl_pipeline.browse.caption_stats import Corpus
from c2vl_pipeline.readers.captions import read_captions
from c2vl_pipeline.workspace import load, shard_path
from support.pages import assert_self_contained


def test_caption_figures_equal_a_naive_count(odd):
    found = audit.measure(odd)
    rows = [
        r
        for shard in range(len(load(odd).shard_ranges))
        for r in read_shard(shard_path(odd, "captions", shard)).to_pylist()
    ]
    said = [r["caption"] for r in rows if r["status"] == "ok"]
    counts = Counter(said)
    assert found.captions is not None
    w = found.captions.wording
    assert w is not None
    assert found.captions.statuses == Counter(r["status"] for r in rows)
    assert (w.captions, w.unique) == (len(said), len(counts))
    assert w.repeats == pytest.approx(1 - len(counts) / len(said))
    assert w.top[0][1] == counts.most_common(1)[0][1]
    assert w.vocabulary == len({word for text in said for word in caption_stats.words(text)})
    assert w.running_words == sum(len(caption_stats.words(text)) for text in said)
    labels = dict(zip(*(load(odd).table[c].to_pylist() for c in ("sample_id", "label")), strict=True))
    for label, c in enumerate(found.captions.classes):
        own = Counter(r["caption"] for r in rows if r["status"] == "ok" and labels[r["sample_id"]] == label)
        n = sum(own.values())
        entropy = -sum(v / n * math.log2(v / n) for v in own.values())
        assert c.entropy == pytest.approx(entropy)
        assert c.normalised == pytest.approx(entropy / math.log2(n))
        assert c.most_common == pytest.approx(max(own.values()) / n)


def test_a_caption_is_read_once_however_many_figures_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.of([["He is holding a cup.", "He is standing."], ["He is holding a cup.", "She sits."]])
    read: Counter[str] = Counter()

    def held(text: str, known=caption_stats.held) -> str:
        read[text] += 1
        return known(text)

    monkeypatch.setattr(caption_stats, "held", held)
    caption_stats.describe(corpus)
    caption_stats.by_class(corpus, np.array([0, 1]), {})
    for slot in range(2):
        caption_stats.agreement(corpus.slot(slot), corpus.shuffled().slot(slot))
    assert read == Counter(set(corpus.texts))


@pytest.mark.parametrize(
    ("text", "stance", "thing"),
    [
        ("He is standing and holding a remote control in his hand.", "standing", "remote control"),
        ("She is sitting on a chair. She is holding a large blue jacket up to her face.", "sitting", "jacket"),
        ("No, the person is not holding anything in their hand. They are standing.", "standing", ""),
        ("The person is holding still.", "", ""),
        ("They are not standing, they are sitting and holding two cups.", "sitting", "cups"),
        ("He stands while she sits.", "both", ""),
        ("He is not currently holding a cup.", "", ""),
        ("Understanding nobody, she HELD A Ball and was NOT standing.", "", "ball"),
        ("He never withholds a cup.", "", ""),
    ],
)
def test_posture_and_held_thing_are_read_from_the_answer(text, stance, thing):
    assert caption_stats.posture(text) == stance
    assert caption_stats.held(text) == thing


def test_samples_that_say_the_same_or_contradict_themselves_are_counted():
    corpus = Corpus.of([["standing", "standing"], ["standing", "sitting"], ["a", None], ["he sits", "he is standing"]])
    w = caption_stats.describe(corpus)
    assert w is not None
    assert w.all_equal == pytest.approx(1 / 3)
    assert w.contradicting == pytest.approx(2 / 4)


def test_samples_may_have_unequal_numbers_of_captions():
    corpus = Corpus.of([["a", "b", "a"], [], ["b"]])
    assert corpus.codes.tolist() == [[0, 1, 0], [-1, -1, -1], [1, -1, -1]]
    found = caption_stats.describe(corpus)
    assert found is not None
    assert (found.captions, found.unique) == (4, 2)


def test_lift_is_the_share_in_the_class_over_the_share_in_all():
    corpus = Corpus.of([["holding a cup"] * 4, ["holding a book", "holding a book", "x", "holding a cup"]])
    first, second = caption_stats.by_class(corpus, np.array([0, 1]), {0: "drink", 1: "read"})
    assert (first.thing, first.thing_share, first.lift) == ("cup", 1, pytest.approx(8 / 5))
    assert (second.thing, second.thing_share, second.lift) == ("book", 0.5, pytest.approx(2))


def test_agreement_equals_a_naive_count():
    ours = [["he is sitting", "he holds a cup"], ["a a b", None]]
    theirs = [["he is standing", "he holds a cup"], ["a b c", "x"]]
    found = caption_stats.agreement(Corpus.of(ours), Corpus.of(theirs))
    pairs = [
        (a, b)
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None
    ]

    def f1(a, b):
        x, y = Counter(caption_stats.words(a)), Counter(caption_stats.words(b))
        return 2 * (x & y).total() / (x.total() + y.total())

    def jaccard(a, b):
        x, y = set(caption_stats.words(a)), set(caption_stats.words(b))
        return len(x & y) / len(x | y)

    assert found is not None
    assert found.pairs == len(pairs) == 3
    assert found.exact == pytest.approx(1 / 3)
    assert found.f1 == pytest.approx(np.mean([f1(*p) for p in pairs]))
    assert found.jaccard == pytest.approx(np.mean([jaccard(*p) for p in pairs]))
    assert (found.posture, found.posture_pairs, found.holding) == (0, 1, 1)


def test_shuffling_gives_every_sample_anothers_captions():
    corpus = Corpus.of([[str(i)] for i in range(20)])
    other = corpus.shuffled(3)
    assert sorted(other.codes[:, 0]) == list(range(20))
    assert (other.codes != corpus.codes).all()


def test_captions_of_the_same_samples_are_compared(work, tmp_path):
    ids = load(work).table["sample_id"].to_pylist()
    captions: dict[str, list[str]] = {}
    for shard in range(len(load(work).shard_ranges)):
        for row in read_shard(shard_path(work, "captions", shard)).to_pylist():
            captions.setdefault(row["sample_id"], []).append(row["caption"])
    path = tmp_path / "same.json"
    path.write_text(json.dumps({i: captions[i] for i in ids[:8]}))
    found = audit.measure(work, path).released
    assert found is not None
    assert found.agreement is not None
    assert found.control is not None
    assert found.common == 8
    assert (found.agreement.exact, found.agreement.f1) == (1, pytest.approx(1))
    assert found.control.f1 < 1
    assert len(found.slots) == len(captions[ids[0]])
    assert_self_contained(audit.write(audit.measure(work, path), tmp_path / "a.html"))
    assert json.loads((tmp_path / "a.json").read_text())["released"]["common"] == 8


@pytest.mark.slow
def test_the_released_captions_are_what_their_authors_counted(shared):
    path = shared / "captions" / "pkuv2_language.zip"
    table = read_captions(path)
    w = caption_stats.describe(Corpus.of(list(table.values())))
    assert w is not None
    assert (w.samples, w.captions, w.unique) == (6952, 111_232, 47_529)
    assert round(100 * w.repeats) == 57
    # 25 exceed CLIP's context by its own tokenizer; without it the count is a lower bound
    assert 15 <= w.over_context <= 25
