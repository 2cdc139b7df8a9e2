"""`c2vl-pipeline inspect`: any subset of a work folder as an offline gallery that can be searched, sorted and enlarged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from c2vl_manifests.errors import ConfigError
from c2vl_pipeline.browse import cards, html
from c2vl_pipeline.browse.cards import Card
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.browse.selection import ALL, ORDERS, Filters, Numbers, frequent, nothing, select, spread, worst_first
from c2vl_pipeline.stages import STAGES, failures, stages_of
from c2vl_pipeline.workspace import Workspace, load


@dataclass(frozen=True)
class Gallery:
    """A written gallery."""

    path: Path
    matched: int
    shown: int
    total: int
    chosen: str
    """How those shown were chosen, in words; empty if all that match are shown as listed."""
    notes: tuple[str, ...]
    reasons: tuple[str, ...]
    """Why rows of the samples that match failed: the commonest of each stage."""


def gallery(
    work: Path,
    out: Path,
    filters: Filters = ALL,
    *,
    limit: int = 48,
    seed: int | None = None,
    order: str | None = None,
    tell: Callable[[Gallery], None] = lambda made: None,
) -> Gallery:
    """Write a gallery of the samples that pass the filters.

    Args:
        work: the work folder; stages that were not run are left out, with a note.
        out: the HTML file.
        filters: conditions on the samples.
        limit: show at most `limit` samples, spread over classes, subjects and cameras.
        seed: show random samples instead.
        order: show the first of one of `selection.ORDERS` instead.
        tell: receives the result before the page is written.

    Raises:
        StageError: there is no index.
        ConfigError: no sample passes, a filter names something that this work folder lacks, or both `seed` and `order`.
    """
    index = load(work)
    reader = RowReader(index)
    matched = select(index, filters, reader)
    if not len(matched):
        raise nothing(index, filters, reader)
    if order is not None:
        if seed is not None:
            raise ConfigError("--seed and --order exclude each other; give one of them")
        chosen = worst_first(index, reader, matched, order)[:limit]
    elif seed is not None and len(matched) > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(matched, limit, replace=False))
    else:
        chosen = spread(index.table, matched, limit)
    shown = cards.cards(index, reader, chosen.tolist())
    reasons = [
        f"{count:,} row{'s' if count > 1 else ''} of {name} {status}: {text}"
        for name, stage in stages_of(index).items()
        for status, text, count in failures.reasons(index, stage, matched)[:3]
    ]
    stages = _stages(reader)
    words = _chosen(index, chosen, seed, order, len(matched) > limit)
    made = Gallery(out, len(matched), len(shown), index.table.num_rows, words, tuple(reader.notes), tuple(reasons))
    tell(made)
    html.render(
        "inspect.html.j2",
        out,
        index=index,
        selection=filters.words(),
        made=made,
        orders=ORDERS,
        cards=shown,
        choices=_choices(shown),
        words=frequent(caption["text"] for card in shown for caption in card.captions)[:40],
        plain=len(shown) > cards.MOVING,
        every=cards.every(len(shown), shown[0].slots),
        notes=reader.notes,
        stages=stages,
    )
    return made


def _chosen(index: Workspace, chosen: Numbers, seed: int | None, order: str | None, fewer: bool) -> str:
    if order is not None:
        return ORDERS[order]
    if not fewer:
        return ""
    if seed is not None:
        return f"chosen at random, seed {seed}"
    shown = index.table.take(pa.array(chosen))
    counts = {
        plural: len(shown[column].unique().drop_null())
        for column, plural in (("label", "classes"), ("subject", "subjects"), ("camera", "cameras"))
    }
    kinds = ", ".join(f"{count} {plural}" for plural, count in counts.items() if count > 1)
    return f"a slice spread over {kinds}" if kinds else "a slice"


def _choices(shown: list[Card]) -> dict[str, list[tuple[Any, str, int]]]:
    """Return value, text and number of cards of each choice of the bar."""
    classes = Counter((card.sample["label"], card.name or "no class") for card in shown)
    choices: dict[str, list[tuple[Any, str, int]]] = {"class": [(*key, n) for key, n in sorted(classes.items())]}
    for what in ("status", "split"):
        counts = Counter(one for card in shown for one in getattr(card, what))
        choices[what] = [(one, one, n) for one, n in sorted(counts.items())]
    return choices


def _stages(reader: RowReader) -> list[dict[str, Any]]:
    """Return the counts of statuses of every stage, from the manifests of its shards."""
    counted = {s: sum((Counter(m.statuses) for _, m in reader.shards(s)), Counter[str]()) for s in STAGES}
    return [{"name": s, "rows": n.total(), "statuses": n} for s, n in counted.items() if n]
