"""Words of the captions that a run learned from: a text in other words is compared with nothing it has seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import read_shard

_OFFERED = 8
"""Words of the captions that a hint offers."""
_ENOUGH = 20_000
"""Captions whose words are worth offering; beyond them only captions that may hold a word of the texts are counted."""
_ENDING = re.compile("(ing|ed|es|s|e)$")


def vocabulary(captions: Path, texts: Sequence[str] = ()) -> Counter[str]:
    """Count the words of the captions stage, once per different caption of a shard; unreadable shards are skipped.

    Args:
        captions: folder of the stage.
        texts: reading ends once the captions hold all words of these.
    """
    from c2vl_pipeline.browse.caption_stats import words

    pieces: Counter[str] = Counter()  # words with their punctuation
    found: Counter[str] = Counter()
    read = 0
    for path in sorted(captions.glob("shard-*.parquet")):
        try:
            column = read_shard(path, ["caption"])["caption"]
        except (OSError, DataError):
            continue
        lacking = unknown_words(texts, found)
        if found and texts and not lacking:
            break
        if lacking and read >= _ENOUGH:
            column = column.filter(
                pc.match_substring_regex(column, "|".join(map(re.escape, lacking)), ignore_case=True)
            )
        different = column.unique().drop_null()
        counts = pc.utf8_split_whitespace(pc.utf8_lower(different)).flatten().value_counts()
        new = {entry["values"]: entry["counts"] for entry in counts.to_pylist()}
        fresh = (piece for piece in new if piece not in pieces)
        found.update(dict.fromkeys((word for piece in fresh for word in words(piece)), 0))
        pieces.update(new)
        read += len(different)
    for piece, count in pieces.items():
        for word in words(piece):
            found[word] += count
    return found


def unknown_words(texts: Sequence[str], known: Counter[str]) -> list[str]:
    """Return the content words of texts that no caption holds; none if there are no captions to look at."""
    from c2vl_pipeline.browse.caption_stats import STOP_WORDS, words

    if not known:
        return []
    asked = dict.fromkeys(word for text in texts for word in words(text))
    return [word for word in asked if word not in STOP_WORDS and word not in known]


def hint(unknown: Sequence[str], known: Counter[str]) -> str:
    """Return a note on words that no caption holds, with words that captions do hold; empty without such words."""
    from c2vl_pipeline.browse.caption_stats import STOP_WORDS

    if not unknown:
        return ""
    near = [word for word, _ in known.most_common() if any(_akin(word, asked) for asked in unknown)]
    common = [word for word, _ in known.most_common() if word not in STOP_WORDS]
    offered = list(dict.fromkeys([*near, *common]))[:_OFFERED]
    shown = ", ".join(repr(word) for word in unknown[:_OFFERED])
    more = f" and {len(unknown) - _OFFERED} more" if len(unknown) > _OFFERED else ""
    it = "it" if len(unknown) == 1 else "them"
    return f"No caption holds {shown}{more}, so the run was not trained on {it}. Captions hold: {', '.join(offered)}."


def _akin(word: str, other: str) -> bool:
    """Return True if two words have the same stem, like `sit` and `sitting`, `waves` and `waving`."""
    short, long = sorted((_ENDING.sub("", word), _ENDING.sub("", other)), key=len)
    return len(short) > 2 and long.startswith(short) and len(long) <= len(short) + 1  # a doubled consonant
