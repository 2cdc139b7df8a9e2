"""The protocols beside kNN and linear by name, and how a finished table gets one more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from c2vl_evaluation import ensemble, finetune, scores, semi, transfer
from c2vl_evaluation.results import Finding, Protocol, Results, Role, Target, load, save
from c2vl_evaluation.store import Outcome, Subject
from c2vl_manifests.config import Recipe
from c2vl_manifests.errors import DataError
from c2vl_manifests.events import Emit, silent
from c2vl_training.checkpoint import load_finished
from c2vl_training.data import Packed

MORE: dict[Protocol, Callable[[Subject, Emit], Iterable[Outcome]]] = {
    "finetune": lambda subject, emit: [finetune.outcome(subject, emit)],
    "semi": semi.outcomes,
    "transfer": transfer.outcomes,
}
"""Protocols of one run beside kNN and linear, by name."""


def findings(
    subject: Subject, protocols: Sequence[Protocol], emit: Emit, streams: Mapping[str, Subject] | None = None
) -> tuple[Finding, ...]:
    """Run protocols beside kNN and linear on a run; `ensemble` needs a run of each stream."""
    found: list[Outcome] = []
    for protocol in protocols:
        if protocol == "ensemble":
            found += ensemble.outcomes(streams or {}, emit)
        else:
            found += MORE[protocol](subject, emit)
    return tuple(outcome.finding for outcome in found)


def extend(
    out: Path, packed: Packed, protocol: Protocol, recipe: Recipe, emit: Emit = silent, benchmark: str = ""
) -> Results:
    """Run one more protocol on every run of a finished table, and write the table again.

    Args:
        out: folder of the table.
        packed: the table's data; those of another dataset for `transfer`.
        protocol: a key of `MORE`.
        recipe: whose evaluation section is used.
        emit: receives progress.
        benchmark: of `packed`; the table's own unless given.

    Raises:
        DataError: there is no table, or it was made from other data.
        CheckpointError: a run of the table is gone.
    """
    results, rows = load(out), []
    if protocol != "transfer" and packed.manifest.fingerprint != results.data_fingerprint:
        raise DataError(
            f"the table in {out} was made from other data than {packed.folder} holds now; run `c2vl-eval benchmark` into a new folder"
        )
    benchmark = benchmark or results.benchmark
    for row in results.rows:
        if not row.run:  # raw joints: nothing to tune
            rows.append(row)
            continue
        found = findings(Subject(out / row.run, packed, benchmark, recipe, row.seed), [protocol], emit)
        names = {finding.setting for finding in found}
        others = [f for f in row.findings if f.protocol != protocol or f.setting not in names]
        if protocol == "semi":
            others = [f for f in others if f.protocol != "semi"]
        rows.append(row.model_copy(update={"findings": (*others, *found)}))
    targets = results.targets
    if protocol == "transfer":
        now = target(packed, benchmark)
        targets = (*(t for t in targets if t.dataset != now.dataset), now)
    results = results.model_copy(update={"rows": tuple(rows), "targets": targets})
    save(out, results)
    return results


def target(packed: Packed, benchmark: str) -> Target:
    """Say what answers without an encoder reach on a dataset."""
    train_split, test_split = (
        packed.labels()[packed.select(benchmark, split).rows] for split in ("train", "test")
    )
    classes = scores.class_count(packed, train_split, test_split)
    return Target(
        dataset=packed.manifest.dataset,
        title=packed.manifest.title,
        benchmark=benchmark,
        train=len(train_split),
        test=len(test_split),
        majority=scores.majority(train_split, test_split, classes),
        chance=scores.chance(classes),
    )


def role_of(run: Path) -> Role:
    """Return what a finished run is in a table: controls are known by how they were trained."""
    facts = load_finished(run)[1]
    if facts.get("kind") == "pretrain":
        return "shuffled" if (facts.get("config") or {}).get("pairs") == "shuffled" else "pretrained"
    return "ceiling" if facts.get("kind") == "supervised" else "floor"
