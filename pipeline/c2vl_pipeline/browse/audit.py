"""`c2vl-pipeline audit`: check crops and captions, and compare captions with the authors' released ones.

The result is one offline page of three sections, and the same figures as JSON (`Audit`). Crops are checked against
the joints in pixels, if the dataset records them.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.manifest import commit_text
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import caption_stats, cards, html
from c2vl_pipeline.browse.audit_crops import (
    INSIDE,
    CropFigures,
    JointFigures,
    count_values,
    crop_figures,
    joint_figures,
)
from c2vl_pipeline.browse.caption_stats import Agreement, CaptionStats, ClassStats, Corpus, Texts
from c2vl_pipeline.browse.html import Quantiles
from c2vl_pipeline.browse.judgement import EXAMPLES, Judgement, Reason, judge_captions, judge_crops
from c2vl_pipeline.browse.reader import RowReader
from c2vl_pipeline.browse.selection import select
from c2vl_pipeline.readers.captions import read_captions
from c2vl_pipeline.workspace import Workspace, load


@dataclass(frozen=True)
class CaptionFigures:
    """Figures of the captions stage: statuses of all rows, words of the samples that are read."""

    read: int
    """Samples whose captions are read."""
    statuses: dict[str, int]
    empty: int
    wording: CaptionStats | None
    tokens: Quantiles | None
    """Counted by the encoder, before truncation."""
    truncated: int | None
    classes: list[ClassStats]


@dataclass(frozen=True)
class ReleasedFigures:
    """The authors' captions, and their agreement with the work folder's on samples described by both."""

    file: str
    wording: CaptionStats
    common: int
    """Samples of the work folder, of those that are read, that the file describes."""
    agreement: Agreement | None = None
    control: Agreement | None = None
    """Agreement with the samples of the released captions shuffled."""
    slots: list[Agreement] = field(default_factory=list)


@dataclass(frozen=True)
class Audit:
    """Result of an audit; a part that could not be measured is None, for the reason in `why`."""

    dataset: str
    samples: int
    crops: CropFigures | None
    joints: JointFigures | None
    captions: CaptionFigures | None
    released: ReleasedFigures | None
    why: dict[str, str]
    notes: list[str]
    work: Path
    judgements: list[Judgement] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without drawings; each reason with the command that shows it."""
        values = asdict(self) | {"work": str(self.work)}
        values["judgements"] = [
            {"sentence": j.words(), "reasons": [{"text": r.text, "show": self.command(r)} for r in j.reasons]}
            for j in self.judgements
        ]
        for worst in (values["joints"] or {}).get("worst", ()):
            del worst["joints"]
        return values

    def summary(self) -> list[str]:
        """Return the judgements, each with the commands that show its reasons, and the agreement with released captions."""
        lines = []
        for judgement in self.judgements:
            lines.append(judgement.words())
            for reason in judgement.reasons:
                lines += [f"  {reason.text}:", f"    {self.command(reason)}"]
        return [*lines, *self.compared()]

    def command(self, reason: Reason, *, page: bool = False) -> str:
        """Return the command that shows a reason."""
        return cards.command(self.work, "inspect", *reason.shown_by.options(), page=page)

    def compared(self) -> list[str]:
        """Return the agreement with released captions as a sentence; none if no file was given."""
        if not self.released:
            return []
        w, both = self.released.wording, self.released.agreement
        against = f"; F1 with ours {both.f1:.3f}" if both else ""
        return [f"released: {w.captions:,} captions, {html.percent(w.repeats)} % repeats{against}"]


def write(audit: Audit, out: Path) -> Path:
    """Write the page and, next to it, the figures as JSON; return the page's path."""
    index = load(audit.work)
    reader = RowReader(index)
    shown = [
        (j.what, r, cards.cards(index, reader, select(index, r.shown_by, reader)[:EXAMPLES].tolist()))
        for j in audit.judgements
        for r in j.reasons
    ]
    worst = audit.joints.worst if audit.joints else []
    held = cards.of_ids(audit.work, [w.sample_id for w in worst])
    html.render(
        "audit.html.j2", out, audit=audit, inside=INSIDE, shown=shown, worst=[(w, held[w.sample_id]) for w in worst]
    )
    commit_text(out.with_suffix(".json"), json.dumps(audit.as_dict(), indent=1, ensure_ascii=False) + "\n")
    return out


def measure(
    work: Path, released: Path | None = None, *, check: int = 500, captions: int = 20_000, seed: int = 0
) -> Audit:
    """Audit a work folder.

    Args:
        work: the work folder; stages that were not run are left out, with a note.
        released: the authors' caption file (.json or .zip).
        check: largest number of samples whose joints are compared with their crops.
        captions: largest number of samples whose captions are read.
        seed: seed of the choice of these samples, and of the shuffled control.

    Raises:
        StageError: there is no index.
        EngineError: `released` is not a caption file.
    """
    theirs = read_captions(released) if released is not None else None
    index = load(work)
    reader = RowReader(index)
    why: dict[str, str] = {}
    crops = crop_figures(reader)
    joints = joint_figures(index, reader, check, seed, why) if crops else None
    chosen = _chosen(index.table.num_rows, captions, seed)
    corpus, figures = _captions(index, reader, chosen)
    judgements = [judge_crops(crops, joints)] if crops else []
    labels, ids = index.table["label"].to_numpy()[chosen], index.table["sample_id"].take(chosen).to_pylist()
    if corpus and figures:
        judgements.append(judge_captions(corpus, figures.wording, figures.statuses, labels, index.classes, ids))
        if len(chosen) < index.table.num_rows:
            reader.notes.append(
                f"the captions of {len(chosen):,} samples are read, chosen by chance; --captions sets how many"
            )
    return Audit(
        dataset=index.dataset.title,
        samples=index.table.num_rows,
        crops=crops,
        joints=joints,
        captions=figures,
        released=_released(ids, corpus, theirs, released.name, seed) if released and theirs else None,
        why=why,
        notes=list(reader.notes),
        work=work,
        judgements=judgements,
    )


# ------------------------------------------------------------------------------------------- captions


def _chosen(samples: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the rows of at most `most` samples, in order."""
    return np.sort(np.random.default_rng(seed).permutation(samples)[:most])


def _captions(
    index: Workspace, reader: RowReader, chosen: npt.NDArray[np.int64]
) -> tuple[Corpus | None, CaptionFigures | None]:
    """Return the captions of the chosen samples, a row each, and the figures of the stage."""
    statuses: Counter[str] = Counter()
    numbers: dict[str, int] = {}
    blocks: list[tuple[slice, caption_stats.Codes]] = []
    empty = 0
    for shard, manifest in reader.shards("captions"):
        table = reader.columns("captions", shard, ["status", "caption"])
        if table is None:
            continue
        statuses.update(count_values(table["status"]))
        if set(manifest.statuses) - {str(Status.OK)}:
            classes = reader.columns("captions", shard, ["error_class"])
            empty += classes["error_class"].to_pylist().count("empty") if classes is not None else 0
        start, stop = index.shard_ranges[shard]
        here = slice(*np.searchsorted(chosen, (start, stop)).tolist())
        slots = table.num_rows // (stop - start)
        rows = (chosen[here] - start)[:, None] * slots + np.arange(slots)
        column = table["caption"].combine_chunks().take(pa.array(rows.reshape(-1))).dictionary_encode()
        own = [numbers.setdefault(t, len(numbers)) for t in column.dictionary.to_pylist()]
        indices = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        blocks.append((here, np.array([*own, -1], np.int32)[indices].reshape(rows.shape)))
    if not blocks:
        return None, None
    slots = max(block.shape[1] for _, block in blocks)
    codes = np.full((len(chosen), slots), -1, np.int32)
    for here, block in blocks:
        codes[here, : block.shape[1]] = block
    corpus = Corpus(Texts(numbers), codes)
    tokens, truncated = _tokens(reader)
    labels = index.table["label"].to_numpy()[chosen]
    names = {i: cards.class_name(index, i) for i in range(len(index.classes))}
    return corpus, CaptionFigures(
        read=len(chosen),
        statuses=dict(statuses.most_common()),
        empty=empty,
        wording=caption_stats.describe(corpus),
        tokens=tokens,
        truncated=truncated,
        classes=caption_stats.by_class(corpus, labels, names),
    )


def _tokens(reader: RowReader) -> tuple[Quantiles | None, int | None]:
    """Return the token counts of the encoded captions, and the number of truncated ones."""
    tokens, truncated = [], 0
    for shard, _ in reader.shards("embeddings"):
        table = reader.columns("embeddings", shard, ["tokens", "truncated"])
        if table is not None:
            tokens.append(table["tokens"].drop_null().to_numpy())
            truncated += int(pc.sum(table["truncated"]).as_py() or 0)
    return (Quantiles.of(np.concatenate(tokens)), truncated) if tokens else (None, None)


# ------------------------------------------------------------------------------------------- released


def _released(
    ids: list[str], corpus: Corpus | None, theirs: dict[str, list[str]], name: str, seed: int
) -> ReleasedFigures | None:
    whole = caption_stats.describe(Corpus.of(list(theirs.values())))
    assert whole is not None  # read_captions rejects an empty file
    common = [n for n, sample_id in enumerate(ids) if sample_id in theirs]
    if corpus is None or not common:
        return ReleasedFigures(name, whole, len(common))
    ours = Corpus(corpus.texts, corpus.codes[common])
    other = Corpus.of([theirs[ids[n]] for n in common])
    slots = min(ours.codes.shape[1], other.codes.shape[1])
    each = (caption_stats.agreement(ours.slot(s), other.slot(s)) for s in range(slots))
    return ReleasedFigures(
        name,
        whole,
        len(common),
        agreement=caption_stats.agreement(ours, other),
        control=caption_stats.agreement(ours, other.shuffled(seed)) if len(common) > 1 else None,
        slots=[a for a in each if a is not None],
    )
