"""Statistics of captions: length, vocabulary, repeats, posture, held objects, agreement of two captioners.

Plain rules for English answers to the paper's question (is the person holding anything, standing or sitting, what
are they trying to do): good for comparing captioners, not a parser.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from c2vl_pipeline.browse.html import Histogram, Quantiles

Codes = npt.NDArray[np.int32]

CONTEXT = 77
"""Tokens that CLIP reads, including start and end."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# all are of lower case, and begin with letters that a search finds fast
_CLIP_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\s\w]+|_+")
_STANDING = re.compile(r"stand(?:ing|s)\b(?<!\wstanding)(?<!\wstands)(?<!not standing)(?<!not stands)")
_SITTING = re.compile(
    r"s(?:itting|its|eated)\b(?<!\wsitting)(?<!\wsits)(?<!\wseated)(?<!not sitting)(?<!not sits)(?<!not seated)"
)
_HOLDING = re.compile(r"h(?:olding|olds|eld)\b(?<!\wholding)(?<!\wholds)(?<!\wheld)(?P<what>[^.;,!?]*)")
_NOT = re.compile(r"(?:\bnot|n['’]t|\bnever)\s+(?:\w+ly\s+)?$")
_SKIP = frozenset({
    "a", "an", "the", "his", "her", "their", "its", "my", "your", "some", "several", "two", "three",
    "both", "one", "another", "onto", "on", "up", "out", "to", "what", "appears", "be", "possibly",
    "probably", "likely", "large", "small", "big", "little", "white", "black", "blue", "red",
    "green", "yellow", "brown", "pink", "purple", "orange", "grey", "gray", "silver", "wooden",
    "pair", "piece", "of",
})  # fmt: skip
STOP_WORDS = frozenset({
    "in", "with", "while", "and", "or", "on", "up", "to", "near", "of", "that", "which", "over",
    "at", "from", "for", "as", "is", "are", "by", "against", "around", "between", "behind", "above",
    "below", "under", "front", "into", "like", "but", "who", "the", "a", "an", "his", "her", "their",
    "out", "down", "not", "it", "so", "if",
})  # fmt: skip
"""Words that end the name of a held thing, and say nothing about an action on their own."""
_NOTHING = frozenset({"anything", "nothing", "something", "still", "it", "them"})


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return _WORD.findall(text.lower())


def least_tokens(text: str) -> int:
    """Return the fewest tokens CLIP can make of a text: its byte pairs never cross these pieces; two marks added."""
    return len(_CLIP_PIECE.findall(text.lower())) + 2


def posture(text: str) -> str:
    """Return `standing`, `sitting`, `both` or the empty text."""
    standing, sitting = bool(_STANDING.search(text := text.lower())), bool(_SITTING.search(text))
    return "both" if standing and sitting else "standing" if standing else "sitting" if sitting else ""


def held(text: str) -> str:
    """Return the first object that a text describes as held, without adjectives; empty if none."""
    text = text.lower()
    for match in _HOLDING.finditer(text):
        if _NOT.search(text, max(match.start() - 40, 0), match.start()):
            continue
        phrase: list[str] = []
        for word in words(match["what"]):
            if not phrase and word in _SKIP:
                continue
            if word in STOP_WORDS or len(phrase) == 3:
                break
            phrase.append(word)
        if phrase and phrase[0] not in _NOTHING:
            return " ".join(phrase)
    return ""


# --------------------------------------------------------------------------------------------- corpus


class Texts(Sequence[str]):
    """Different captions, and what each says: found out once, whichever parts of a corpus ask; there may be a million."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: Any) -> Any:
        return self._texts[number]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    @cached_property
    def postures(self) -> npt.NDArray[np.str_]:
        """The posture that each states, see `posture`."""
        return np.array([posture(text) for text in self])

    @cached_property
    def things(self) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The names of what is held, see `held`, in order, and the number of the one of each text; 0 is nothing."""
        said = [held(text) for text in self]
        names = sorted({"", *said})
        numbers = {name: number for number, name in enumerate(names)}
        return names, np.array([numbers[name] for name in said], np.int64)

    @cached_property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The fewest tokens of each, see `least_tokens`."""
        return np.array([least_tokens(text) for text in self])


@dataclass(frozen=True)
class Corpus:
    """Captions of samples: `texts` are the different ones, `codes[sample, slot]` their numbers, -1 for none."""

    texts: Texts
    codes: Codes

    @classmethod
    def of(cls, samples: Sequence[Sequence[str | None]]) -> Corpus:
        """Intern the captions of samples; those with fewer than others have none in the last slots."""
        numbers: dict[str, int] = {}
        codes = np.full((len(samples), max(map(len, samples), default=0)), -1, np.int32)
        for sample, row in enumerate(samples):
            codes[sample, : len(row)] = [-1 if t is None else numbers.setdefault(t, len(numbers)) for t in row]
        return cls(Texts(numbers), codes)

    @property
    def flat(self) -> Codes:
        """Codes of all existing captions, in order."""
        return np.asarray(self.codes[self.codes >= 0])

    def slot(self, number: int) -> Corpus:
        """Return the captions of one slot."""
        return Corpus(self.texts, self.codes[:, [number]])

    def shuffled(self, seed: int = 0) -> Corpus:
        """Give every sample another sample's captions, as a control of an agreement."""
        order = np.random.default_rng(seed).permutation(len(self.codes))
        codes = np.empty_like(self.codes)
        codes[order] = self.codes[np.roll(order, 1)]
        return Corpus(self.texts, codes)


@dataclass(frozen=True)
class CaptionStats:
    """Figures of one set of captions; shares are of captions unless stated otherwise."""

    samples: int
    captions: int
    unique: int
    repeats: float
    """Share of captions that are not the first of their text."""
    top: list[tuple[str, int]]
    words: Quantiles | None
    words_histogram: Histogram | None
    vocabulary: int
    running_words: int
    most_common: float
    all_equal: float
    """Share of complete samples whose captions are all the same."""
    standing: float
    sitting: float
    contradicting: float
    """Share of samples with a standing and a sitting caption."""
    holding: float
    objects: list[tuple[str, float]]
    over_context: int
    """Captions with certainly more than CLIP's 77 tokens."""


def describe(corpus: Corpus, *, top: int = 12) -> CaptionStats | None:
    """Return the figures of a corpus; None if it holds no caption."""
    flat = corpus.flat
    if not flat.size:
        return None
    counts = np.bincount(flat, minlength=len(corpus.texts))
    length, vocabulary = np.zeros(len(corpus.texts), np.int64), set[str]()
    for n in np.flatnonzero(counts).tolist():  # of each, the words are forgotten: those of a million take a gigabyte
        said = words(corpus.texts[n])
        length[n] = len(said)
        vocabulary.update(said)
    postures, tokens, (names, thing_of) = corpus.texts.postures, corpus.texts.tokens, corpus.texts.things
    complete = corpus.codes[(corpus.codes >= 0).all(axis=1)]
    amounts = np.bincount(thing_of, weights=counts, minlength=len(names))
    things = [(names[i], float(amounts[i])) for i in np.argsort(-amounts, kind="stable") if names[i]]
    order = np.argsort(-counts, kind="stable")[:top]
    return CaptionStats(
        samples=len(corpus.codes),
        captions=int(flat.size),
        unique=int((counts > 0).sum()),
        repeats=1 - int((counts > 0).sum()) / flat.size,
        top=[(corpus.texts[i], int(counts[i])) for i in order],
        words=Quantiles.of(length[flat]),
        words_histogram=Histogram.of(length[flat]),
        vocabulary=len(vocabulary),
        running_words=int(length[flat].sum()),
        most_common=float(counts.max() / flat.size),
        all_equal=float((complete == complete[:, :1]).all(axis=1).mean()) if len(complete) else 0.0,
        standing=float((postures[flat] == "standing").mean()),
        sitting=float((postures[flat] == "sitting").mean()),
        contradicting=float(contradicting(corpus).mean()),
        holding=float((thing_of[flat] > 0).mean()),
        objects=[(name, amount / flat.size) for name, amount in things[:top]],
        over_context=int((tokens[flat] > CONTEXT).sum()),
    )


def contradicting(corpus: Corpus) -> npt.NDArray[np.bool_]:
    """Mark the samples that stand in one caption and sit in another. Returns (samples,)."""
    postures = np.append(corpus.texts.postures, "")  # the last is for -1
    of = postures[corpus.codes]
    return np.asarray((of == "standing").any(axis=1) & (of == "sitting").any(axis=1))


@dataclass(frozen=True)
class ClassStats:
    """Figures of the captions of one class."""

    name: str
    captions: int
    most_common: float
    text: str
    entropy: float
    """Of the captions as whole texts, in bits."""
    normalised: float
    """Entropy divided by its maximum, log2 of the number of captions: 1 means that no two are equal."""
    contradicting: float
    thing: str
    """The object most often held in this class."""
    thing_share: float
    lift: float
    """Its share in this class divided by its share in all."""


def by_class(corpus: Corpus, labels: npt.NDArray[np.int64], names: Mapping[int, str]) -> list[ClassStats]:
    """Return the figures of each class; `labels` has one entry per sample, -1 if unknown."""
    flat = corpus.flat
    if not flat.size:
        return []
    objects, thing_of = corpus.texts.things
    overall = np.bincount(thing_of[flat], minlength=len(objects)) / flat.size
    torn = contradicting(corpus)
    classes = []
    for label in sorted({int(v) for v in labels if v >= 0}):
        mask = labels == label
        codes = corpus.codes[mask]
        codes = codes[codes >= 0]
        if not codes.size:
            continue
        texts, counts = np.unique(codes, return_counts=True)
        p = counts / counts.sum()
        entropy = float(-(p * np.log2(p)).sum()) + 0.0
        share = np.bincount(thing_of[codes], minlength=len(objects)) / codes.size
        share[0] = 0
        best = int(np.argmax(share))
        any_thing = share[best] > 0
        classes.append(
            ClassStats(
                name=names.get(label, f"class {label}"),
                captions=int(codes.size),
                most_common=float(counts.max() / codes.size),
                text=corpus.texts[int(texts[np.argmax(counts)])],
                entropy=entropy,
                normalised=entropy / float(np.log2(codes.size)) if codes.size > 1 else 0.0,
                contradicting=float(torn[mask].mean()),
                thing=objects[best] if any_thing else "",
                thing_share=float(share[best]),
                lift=float(share[best] / overall[best]) if any_thing else 0.0,
            )
        )
    return classes


# ------------------------------------------------------------------------------------------ agreement


@dataclass(frozen=True)
class Agreement:
    """Agreement of two captions of the same sample and slot: means over all pairs."""

    pairs: int
    exact: float
    jaccard: float
    """Words in both over words in either."""
    f1: float
    """Of the words with their counts."""
    posture: float | None
    """Of pairs that both state standing or sitting, the share that agree."""
    posture_pairs: int
    holding: float
    """Share of pairs in which both or neither state that something is held."""


def agreement(ours: Corpus, theirs: Corpus) -> Agreement | None:
    """Compare two corpora of the same samples in the same order, slot by slot; None if no pair is complete."""
    slots = min(ours.codes.shape[1], theirs.codes.shape[1])
    a, b = ours.codes[:, :slots], theirs.codes[:, :slots]
    both = (a >= 0) & (b >= 0)
    if not both.any():
        return None
    a, b = a[both], b[both]
    left, right = _counts(ours.texts, theirs.texts)
    x, y = left[a], right[b]
    shared = _sum(x.minimum(y))
    total = _sum(x) + _sum(y)
    sx, sy = x.sign(), y.sign()
    either = _sum(sx.maximum(sy))
    numbers = {t: n for n, t in enumerate(ours.texts)}
    known = np.array([numbers.get(t, -1) for t in theirs.texts])
    stand = [c.texts.postures[k] for c, k in ((ours, a), (theirs, b))]
    definite = np.isin(stand[0], ("standing", "sitting")) & np.isin(stand[1], ("standing", "sitting"))
    holds = [(c.texts.things[1] > 0)[k] for c, k in ((ours, a), (theirs, b))]
    return Agreement(
        pairs=len(a),
        exact=float((known[b] == a).mean()),
        jaccard=_mean(_sum(sx.minimum(sy)), either),
        f1=_mean(2 * shared, total),
        posture=float((stand[0] == stand[1])[definite].mean()) if definite.any() else None,
        posture_pairs=int(definite.sum()),
        holding=float((holds[0] == holds[1]).mean()),
    )


def _counts(ours: Texts, theirs: Texts) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Return the word counts of both lists of texts over one vocabulary, (texts, vocabulary)."""
    from sklearn.feature_extraction import DictVectorizer

    counts = DictVectorizer(dtype=np.float32).fit_transform(Counter(words(t)) for t in [*ours, *theirs])
    return counts[: len(ours)], counts[len(ours) :]


def _sum(matrix: sp.csr_matrix) -> npt.NDArray[np.float64]:
    return np.asarray(matrix.sum(axis=1), np.float64).ravel()


def _mean(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> float:
    """Return the mean of part / whole; two empty captions agree."""
    return float(np.where(whole > 0, part / np.maximum(whole, 1), 1.0).mean())
