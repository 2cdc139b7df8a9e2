"""What the figures of an audit mean: fine, fair or poor, each reason with samples that show it.

Thresholds are rules of thumb, each with its reason below; they word a sentence and stop nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from c2vl_manifests.schema import Status
from c2vl_pipeline.browse.audit_crops import INSIDE, CropFigures, JointFigures
from c2vl_pipeline.browse.caption_stats import CONTEXT, CaptionStats, Corpus, contradicting, words
from c2vl_pipeline.browse.html import percent
from c2vl_pipeline.browse.selection import Filters

LOST = 0.01
"""Share of rows without a crop or caption: NTU itself lacks half a percent of its skeletons, so twice that is much."""
MISSED = 0.05
"""Share of crops that hold less than `INSIDE` of the joints: one frame in twenty cannot spoil the mean of a clip's 16."""
FEW_WORDS = 100
"""Captions written freely use several hundred words already for a few hundred clips; templates stay below."""
ENOUGH = 500
"""Captions from which `FEW_WORDS` is expected."""
REPEATED = 0.5
"""Share of repeats: where most captions repeat an earlier one, most say nothing that tells clips apart."""
OBJECTS = 0.05
"""Share of captions with a held thing, in classes that hold one: the paper's prompt asks for it first."""
CUT = 0.01
"""Share of captions longer than CLIP reads: their ends are lost."""
TORN = 0.05
"""Share of samples described as standing and as sitting, in classes where nobody gets up or down."""
EXAMPLES = 3

_HOLDING = frozenset({
    "bag", "ball", "baseball", "basketball", "bat", "book", "bottle", "bowling", "box", "brush", "brushing", "cap",
    "coin", "cube", "cup", "drink", "eat", "fan", "gun", "hammer", "hat", "headphone", "jacket", "keyboard", "knife",
    "meal", "money", "paper", "phone", "racket", "read", "reading", "selfie", "shoe", "tablet", "tennis", "type",
    "typing", "write", "writing",
})  # fmt: skip
"""Words in names of classes whose people hold something."""
_MOVING = frozenset({"sit", "sitting", "stand", "standing", "fall", "falling", "squat"})
"""Words in names of classes where people rightly stand and sit."""


@dataclass(frozen=True)
class Reason:
    """One thing that is not as it should be."""

    text: str
    shown_by: Filters
    """Samples that show it."""
    grave: bool = False
    """Poor by itself."""


@dataclass(frozen=True)
class Judgement:
    """A judgement of one stage's output."""

    what: str
    reasons: list[Reason]
    note: str = ""

    def words(self) -> str:
        """Return it as a sentence: `captions poor: 50 different words, two in three repeat an earlier one`."""
        poor = len(self.reasons) > 1 or any(reason.grave for reason in self.reasons)
        word = "poor" if poor else "fair" if self.reasons else "fine"
        note = f" ({self.note})" if self.note else ""
        return f"{self.what} {word}{note}" + (": " if self.reasons else "") + ", ".join(r.text for r in self.reasons)


def _share(value: float) -> str:
    """Return a share in words: `two in three`; in percent if it is near none or all."""
    near = Fraction(value).limit_denominator(5)
    names = ("none", "one", "two", "three", "four", "five")
    return f"{names[near.numerator]} in {names[near.denominator]}" if 0 < near < 1 else f"{percent(value)} %"


def _samples(ids: Sequence[str]) -> Filters:
    """Return some of the samples, spread over all; `?` matches what a terminal would obey."""
    spread = sorted({round(n) for n in np.linspace(0, len(ids) - 1, EXAMPLES)}) if len(ids) else []
    return Filters(samples=tuple(_plain(ids[n]) for n in spread))


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _lost(statuses: dict[str, int], what: str) -> list[Reason]:
    rows, bad = sum(statuses.values()), {s: n for s, n in statuses.items() if s != Status.OK}
    if not bad or sum(bad.values()) <= LOST * rows:
        return []
    status, count = max(bad.items(), key=lambda item: item[1])
    return [
        Reason(
            f"{percent(count / rows)} % of rows {status}",
            Filters(status=f"{what}:{status}"),
            sum(bad.values()) > rows / 2,
        )
    ]


def judge_crops(crops: CropFigures, joints: JointFigures | None) -> Judgement:
    """Judge crops by their statuses and by the joints that they hold."""
    reasons = _lost(crops.statuses, "crops")
    if joints and joints.passed < 1 - MISSED:
        text = f"{_share(1 - joints.passed)} of the checked crops hold less than {100 * INSIDE:.0f} % of the joints"
        reasons.append(Reason(text, _samples([w.sample_id for w in joints.worst[:EXAMPLES]])))
    note = (
        "not checked against joints"
        if not joints
        else "boxes made from the joints themselves"
        if joints.derived
        else ""
    )
    return Judgement("crops", reasons, note)


def judge_captions(
    corpus: Corpus,
    stats: CaptionStats | None,
    statuses: dict[str, int],
    labels: npt.NDArray[np.int64],
    names: Sequence[str],
    ids: Sequence[str],
) -> Judgement:
    """Judge captions by their words.

    Args:
        corpus: the captions.
        stats: figures of the corpus; None if it is empty.
        statuses: numbers of rows by status.
        labels: class of each sample, -1 if unknown.
        names: of the classes.
        ids: of the samples.
    """
    reasons = _lost(statuses, "captions")
    if stats is None:
        return Judgement("captions", reasons)

    def shown(text: str, samples: npt.ArrayLike) -> None:
        reasons.append(Reason(text, _samples([ids[n] for n in np.flatnonzero(samples).tolist()])))

    def says(texts: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Mark captions (samples, slots) whose text is marked."""
        return np.asarray(np.append(texts, False)[corpus.codes])

    if stats.vocabulary < FEW_WORDS and stats.captions >= ENOUGH:
        shown(f"{stats.vocabulary} different words", (corpus.codes >= 0).any(axis=1))
    holding = np.isin(labels, [n for n, name in enumerate(names) if _HOLDING & set(words(name))])
    own = corpus.codes[holding]
    own = own[own >= 0]
    things = np.flatnonzero(corpus.texts.things[1])
    if own.size and (share := float(np.isin(own, things).mean())) < OBJECTS:
        count = len(np.unique(labels[holding]))
        classes = "one class holds" if count == 1 else f"{count} classes hold"
        shown(f"{'no object' if share == 0 else f'objects in {percent(share)} %'} although {classes} one", holding)
    if stats.repeats > REPEATED:
        common = np.array([text == stats.top[0][0] for text in corpus.texts])
        shown(f"{_share(stats.repeats)} repeat an earlier one", says(common).any(axis=1))
    if stats.over_context > CUT * stats.captions:
        long = corpus.texts.tokens > CONTEXT
        shown(f"{stats.over_context:,} longer than CLIP reads ({CONTEXT} tokens)", says(long).any(axis=1))
    still = ~np.isin(labels, [n for n, name in enumerate(names) if _MOVING & set(words(name))])
    torn = contradicting(corpus) & still
    if still.any() and torn.sum() > TORN * still.sum():
        shown(f"{_share(float(torn.sum() / still.sum()))} of the samples both standing and sitting", torn)
    return Judgement("captions", reasons)
