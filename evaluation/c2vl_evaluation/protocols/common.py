"""The protocols beside kNN and linear by name, and how a finished table gets one more of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import Subject, stored
from c2vl_evaluation.features import encoder_for
from c2vl_evaluation.protocols import ensemble, finetuning, semi, transfer
from c2vl_evaluation.protocols.finetuning import Cell, splits_of
from c2vl_evaluation.results import FAILED, FILE, Finding, Protocol, Results, Role, Row, Target, load, save
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.recipe import Recipe
from c2vl_training.checkpoint import load_finished
from c2vl_training.dataset import Packed

MORE: dict[Protocol, Callable[[Subject, Emit], Iterator[Cell]]] = {
    "finetune": finetuning.cells,
    "semi": semi.cells,
    "transfer": transfer.cells,
}
"""Protocols of one run beside kNN and linear, by name."""


def findings(
    subject: Subject, protocols: Sequence[Protocol], emit: Emit, streams: Mapping[str, Subject] | None = None
) -> tuple[Finding, ...]:
    """Run protocols beside kNN and linear on a run; `ensemble` needs a run of each stream."""
    found: list[Finding] = []
    for protocol in protocols:
        cells = (
            ensemble.cells(streams or {}, emit) if protocol == "ensemble" else MORE[protocol](subject, emit)
        )
        found += [cell.make().finding for cell in cells]
    return tuple(found)


def of_one_cell(error: C2VLError) -> bool:
    """Whether an error is of what was computed (it diverged), and not of data, settings or the place."""
    return type(error) in {C2VLError, CheckpointError}


def tried(cells: Iterable[Cell], named: str, emit: Emit = silent) -> Iterator[Finding]:
    """Run cells; one that diverges becomes a finding that says why, and the others go on.

    Args:
        cells: of one run.
        named: the run, for the note.
        emit: receives a note of each that failed.

    Raises:
        C2VLError: what is not of one cell: data, settings.
        OSError: the disk is full.
    """
    for cell in cells:
        try:
            found = cell.make().finding
        except C2VLError as error:
            if not of_one_cell(error):
                raise
            why = FAILED + " ".join(str(error).split())
            found = Finding(protocol=cell.protocol, setting=cell.setting, draw=cell.draw, why=why)
            told = f"{cell.protocol} {cell.setting}".rstrip()
            emit(Note(f"{named}, {told}: {why}; the other cells go on", "warning"))
        yield found


def failures(results: Results, protocol: Protocol | None = None) -> str:
    """Say in one line how many cells of a table (or of one protocol) failed; empty where none did."""
    cells = [(row, f) for row in results.rows for f in row.findings if protocol in {None, f.protocol}]
    if not (bad := [(row, f) for row, f in cells if f.why.startswith(FAILED)]):
        return ""
    row, first = bad[0]
    told = f"{first.protocol} {first.setting}".rstrip()
    return (
        f"{len(bad)} of {len(cells)} cells beside kNN and linear failed, the others are in the table (first: {row.name}, "
        f"seed {row.seed}, {told}: {first.why.removeprefix(FAILED)}); the same command tries them again, and no others"
    )


def extend(
    out: Path, packed: Packed, protocol: Protocol, recipe: Recipe, emit: Emit = silent, benchmark: str = ""
) -> Results:
    """Run one more protocol on every run of a finished table, and write the table again.

    A cell that diverges says why, and the others go on (`failures` tells).

    Args:
        out: folder of the table.
        packed: the table's data; those of another dataset for `transfer`.
        protocol: a key of `MORE`.
        recipe: whose evaluation section is used.
        emit: receives progress.
        benchmark: of `packed`; the table's own unless given, and no other but for `transfer`.

    Raises:
        DataError: there is no table, or it was made from other data.
        ConfigError: it was made for another benchmark.
        CheckpointError: a run of the table is gone, or is of other joints.
    """
    results, rows = load(out), []
    if protocol != "transfer":
        if packed.manifest.fingerprint != results.data_fingerprint:
            raise DataError(
                f"the table in {out} was made from other data than {packed.folder} holds now; run `c2vl-eval benchmark` into a new folder"
            )
        if benchmark not in {"", results.benchmark}:
            raise ConfigError(
                f"the table in {out} is of {results.benchmark} and --benchmark is {benchmark}; leave --benchmark out, or "
                f"run `c2vl-eval benchmark --benchmark {benchmark}` into a new folder"
            )
    benchmark = benchmark or results.benchmark
    for row in results.rows:  # before hours of training
        if row.run:
            encoder_for(out / row.run, packed, torch.device("cpu"))
    metrics.check_classes(packed, *splits_of(packed, benchmark))
    targets, cells, gone = results.targets, MORE[protocol], set[str]()
    if protocol == "transfer":
        now, old = _placed(results, packed, benchmark)
        targets = (*(t for t in targets if t not in old), now)
        gone = {f.setting for t in old for row in results.rows for f in row.findings if t.holds(f)}
        gone = gone if any(t.named != now.named for t in old) else set()
        cells = partial(transfer.cells, to=now.named)
    for row in results.rows:
        if not row.run:  # raw joints: nothing to tune
            rows.append(row)
            continue
        subject = Subject(out / row.run, packed, benchmark, recipe, row.seed)
        found = tuple(tried(cells(subject, emit), f"{row.name}, seed {row.seed}", emit))
        names = {finding.setting for finding in found} | gone
        others = [f for f in row.findings if f.protocol != protocol or f.setting not in names]
        if protocol == "semi":
            others = [f for f in others if f.protocol != "semi"]
        rows.append(row.model_copy(update={"findings": (*others, *found)}))
    results = results.model_copy(update={"rows": tuple(rows), "targets": targets})
    save(out, results)
    return results


def _placed(results: Results, packed: Packed, benchmark: str) -> tuple[Target, list[Target]]:
    """Return a target under a name that no other one of a table has, and those of the table that are the same."""
    now = target(packed, benchmark)

    def same(other: Target) -> bool:
        if other.data:
            return (other.data, other.benchmark) == (now.data, now.benchmark)
        # of an earlier version, which did not say
        return other.model_copy(update={"data": now.data, "named": now.named}) == now

    old = [t for t in results.targets if same(t)]
    taken = {t.named or t.dataset for t in results.targets if t not in old}
    names = [t.named for t in old if t.named]
    for more in ("", transfer.folder_of(packed), now.data[:8], f"{transfer.folder_of(packed)} {now.data}"):
        names.append(transfer.named(packed, benchmark, results.dataset, more))
    return now.model_copy(update={"named": next(name for name in names if name not in taken)}), old


def target(packed: Packed, benchmark: str) -> Target:
    """Say what answers without an encoder reach on a dataset.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a sample has no label.
    """
    train, test = (split.labels for split in splits_of(packed, benchmark))
    classes = metrics.class_count(packed, train, test)
    return Target(
        dataset=packed.manifest.dataset,
        title=packed.manifest.title,
        benchmark=benchmark,
        train=len(train),
        test=len(test),
        majority=metrics.majority(train, test, classes),
        chance=metrics.chance(classes),
        data=packed.manifest.fingerprint,
    )


# --------------------------------------------------------------------------------------- earlier calls


def earlier(packed: Packed, benchmark: str, out: Path, emit: Emit) -> Results | None:
    """Return the table that is there; None where there is none, or it is damaged or of something else."""
    if not (out / FILE).is_file():
        return None
    try:
        found = load(out)
    except DataError:
        emit(
            Note(
                f"{out / FILE} is damaged and made again; what earlier calls found beyond this one is kept beside the runs, "
                "and shown by the same call with their --targets, --seeds, --protocol and --target",
                "warning",
            )
        )
        return None
    same = (found.data_fingerprint, found.benchmark) == (packed.manifest.fingerprint, benchmark)
    return found if same else None


def with_earlier(row: Row, before: Results | None, out: Path, protocols: Sequence[Protocol]) -> Row:
    """Add what an earlier call found on a run, as far as it is of the weights that are there now."""
    old = {(r.name, r.seed, r.run): r for r in before.rows} if before else {}
    there = old.get((row.name, row.seed, row.run))
    found = [f for f in there.findings if f.protocol not in protocols] if there else []
    on_disk = {protocol: _of_weights(out / row.run, protocol) for protocol in {f.protocol for f in found}}
    # without a score and not failed: what the data do not allow, whatever the weights
    kept = [
        f for f in found if _bare(f) in on_disk[f.protocol] or (not f.last and not f.why.startswith(FAILED))
    ]
    return row.model_copy(update={"findings": (*kept, *row.findings)})


def _of_weights(run: Path, protocol: Protocol) -> list[Finding]:
    first = run.with_name(
        f"{run.name}-{ensemble.STREAMS[0]}"
    )  # where an ensemble's are, if the line is of another one
    if protocol == "ensemble" and first.is_dir():
        run = first
    try:
        return [_bare(one.finding) for one in stored(run, protocol).found.values()]
    except C2VLError:  # damaged: found again when it is asked for
        return []


def _bare(finding: Finding) -> Finding:
    """Leave out how a setting is called: a transfer to the same data may be named anew."""
    return finding.model_copy(update={"setting": ""})


def say_earlier(
    before: Results | None, rows: Sequence[Row], protocols: Sequence[Protocol], emit: Emit
) -> tuple[Target, ...]:
    """Say what stays of an earlier table and what does not; returns the targets of what stays."""
    if before is None:
        return ()
    kept = [f for row in rows for f in row.findings if f.protocol not in protocols]
    if kept:
        names = ", ".join(dict.fromkeys(f.protocol for f in kept))
        emit(Note(f"{len(kept)} findings of earlier calls stay in the table ({names})"))
    here = {(row.name, row.seed, row.run) for row in rows}
    others = [row for row in before.rows if row.run and (row.name, row.seed, row.run) not in here]
    had = [f for row in before.rows if row not in others for f in row.findings if f.protocol not in protocols]
    lost = len(had) - len(kept)
    told = [f"{row.name} seed {row.seed}" for row in others] + ([f"{lost} findings"] if lost else [])
    if told:
        emit(
            Note(
                f"of the earlier table these are not shown: {', '.join(told)}; the same call with their --targets, --seeds, "
                "--protocol and --target shows them, and what is finished is not made again",
                "warning",
            )
        )
    return tuple(t for t in before.targets if any(t.holds(f) for f in kept))


def role_of(run: Path) -> Role:
    """Return what a finished run is in a table: controls are known by how they were trained."""
    facts = load_finished(run)[1]
    if facts.get("kind") == "pretrain":
        return "shuffled" if (facts.get("config") or {}).get("pairs") == "shuffled" else "pretrained"
    return "ceiling" if facts.get("kind") == "supervised" else "floor"


def derived(run: Path, packed: Packed) -> bool:
    """Whether a run learned from captions that are a function of joints, as far as the data that it is of say."""
    facts = load_finished(run)[1]
    knowledge = (facts.get("config") or {}).get("knowledge") if facts.get("kind") == "pretrain" else None
    own = facts.get("data") == packed.manifest.fingerprint
    return own and listens(knowledge or "", packed)


def listens(knowledge: str, packed: Packed) -> bool:
    """Whether a kind of knowledge of these data is a function of the joints."""
    return knowledge in {"language", "both"} and packed.manifest.derived_from_joints("language")


def overlap(subject: Subject) -> str:
    """Say which test clips a run was trained on under another benchmark of the same data; empty where none."""
    facts = load_finished(subject.run)[1]
    kind, own, packed = facts.get("kind"), str(facts.get("benchmark", "")), subject.packed
    if kind == "random" or facts.get("data") != packed.manifest.fingerprint or own == subject.benchmark:
        return ""
    asked = packed.select(subject.benchmark, "test").rows
    seen = int(np.isin(asked, packed.select(own, "train").rows).sum())
    if not seen:
        return ""
    labels = ", with their labels" if kind == "supervised" else ""
    return (
        f"{subject.run} was trained on {own}: {seen:,} of the {len(asked):,} test clips of {subject.benchmark} were among "
        f"its training clips{labels}; for a fair number train a run on {subject.benchmark}"
    )
