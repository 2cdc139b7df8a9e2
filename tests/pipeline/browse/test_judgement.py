"""Judgements of an audit: each threshold from both sides, and samples that show what is meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from c2vl_pipeline.browse.audit_crops import CropFigures, JointFigures, Worst
from c2vl_pipeline.browse.caption_stats import Corpus, describe
from c2vl_pipeline.browse.cards import command
from c2vl_pipeline.browse.judgement import ENOUGH, Judgement, judge_captions, judge_crops
from c2vl_pipeline.browse.selection import Filters

NAMES = ("jump", "drink water", "sit down")
IDS = [f"s{n}" for n in range(60)]
EVIL = "x\x1b[31m; rm\n"
LABELS = np.arange(60) % 3


def rich(sample: int, slot: int) -> str:
    """A caption of its own words, with an object."""
    return f"The man number{sample} holds a cup and moves{sample}x{slot} quickly"


def judged(text=rich, statuses=None) -> Judgement:
    corpus = Corpus.of([[text(n, slot) for slot in range(10)] for n in range(60)])
    assert corpus.codes.size >= ENOUGH
    stats = describe(corpus)
    assert stats is not None
    return judge_captions(corpus, stats, statuses or {"ok": 600}, LABELS, NAMES, IDS)


def test_good_captions_are_fine():
    assert judged().words() == "captions fine"


@pytest.mark.parametrize(
    ("text", "said", "shown"),
    [
        (lambda n, s: f"one holds a cup {'x' * (n % 5)}" if s < 9 else rich(n, s), "repeat an earlier one", IDS),
        (lambda n, s: rich(n, s).replace("holds", "sees"), "no object although one class holds one", IDS[1::3]),
        (lambda n, s: rich(n, s) + " word" * (90 if n == 7 else 0), "10 longer than CLIP reads (77 tokens)", ["s7"]),
        (
            lambda n, s: f"{rich(n, s)} {('standing', 'sitting')[s % 2]}",
            "of the samples both standing and sitting",
            IDS,
        ),
    ],
    ids=["repeats", "objects", "cut", "torn"],
)
def test_one_fault_is_fair_and_shown_by_samples_that_have_it(text, said, shown):
    found = judged(text)
    assert [r.text for r in found.reasons if said in r.text], found.words()
    (reason,) = [r for r in found.reasons if said in r.text]
    samples = reason.shown_by.samples
    assert reason.shown_by == Filters(samples=samples)
    assert samples
    assert set(samples) <= set(shown)


def test_people_who_sit_down_may_stand_and_sit():
    found = judged(lambda n, s: f"{rich(n, s)} {('standing', 'sitting')[s % 2] if n % 3 == 2 else ''}")
    assert found.words() == "captions fine"


def test_few_words_on_many_captions_are_poor_with_what_comes_of_it():
    words = judged(lambda n, s: f"The person {('stands', 'waits', 'turns')[(n + s) % 3]}").words()
    assert words.startswith("captions poor: 5 different words, no object although one class holds one, ")
    assert "repeat an earlier one" in words


def test_lost_rows_are_named_by_their_status():
    (reason,) = judged(statuses={"ok": 580, "failed": 20}).reasons
    assert (reason.text, reason.shown_by) == ("3.3 % of rows failed", Filters(status="captions:failed"))
    assert judged(statuses={"ok": 595, "failed": 5}).reasons == []


def crops(statuses, passed=1.0, derived=False) -> Judgement:
    worst = [Worst(f"s{n}", 0, 0.1, [0, 0, 1, 1], (9, 9), []) for n in range(12)]
    joints = JointFigures(9, 9, 0, 99, 0.9, passed, None, 0.0, 0, derived, worst)
    return judge_crops(CropFigures(sum(statuses.values()), statuses, None, None, None, None, None, {}), joints)


def test_crops_are_judged_by_lost_rows_and_joints():
    assert crops({"ok": 99}).words() == "crops fine"
    assert crops({"ok": 99}, derived=True).words() == "crops fine (boxes made from the joints themselves)"
    found = crops({"ok": 80, "no_person": 20}, 0.5)
    assert found.words().startswith(
        "crops poor: 20.0 % of rows no_person, one in two of the checked crops hold less than 90 %"
    )
    assert found.reasons[1].shown_by == Filters(samples=("s0", "s1", "s2"))


def test_control_characters_of_ids_become_the_sign_that_matches_any():
    corpus = Corpus.of([["The person stands"] * 10] * 60)
    stats = describe(corpus)
    assert stats is not None
    found = judge_captions(corpus, stats, {"ok": 600}, LABELS, NAMES, [EVIL] * 60)
    commands = [command(Path("w"), "inspect", *reason.shown_by.options()) for reason in found.reasons]
    assert commands
    assert all(command.isprintable() and "'x?[31m; rm?'" in command for command in commands)
