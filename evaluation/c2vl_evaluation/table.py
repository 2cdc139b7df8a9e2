"""Tables with controls: pre-trained encoders next to the floor, the ceiling and shuffled pairs.

Each row is a run in its own folder. Finished runs are not trained again and finished results are not computed
again, so a table can grow by seeds, `targets` values and protocols. No number here is ever chosen on the test
split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import FORMAT, Cell, holds
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.entries import Entry, saved_run
from c2vl_evaluation.features import raw_joints
from c2vl_evaluation.protocols import PROTOCOLS, ensemble, fails_alone, knn, linear, run_safely, transfer
from c2vl_evaluation.results import ALWAYS, FILE, Protocol, Result, Table, TableRow, Target, load, save, target_id
from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.manifest import fingerprint, read_stage_manifest
from c2vl_manifests.pages import portable, shorten_paths
from c2vl_manifests.recipe import Recipe
from c2vl_training.dataset import PackedDataset
from c2vl_training.distributed import device_of
from c2vl_training.memory import OutOfMemoryError
from c2vl_training.run_folder import Run, check_same
from c2vl_training.trainer import train


def run_table(
    packed: PackedDataset,
    benchmark: str,
    lines: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
    emit: Emit = silent,
    protocols: Sequence[Protocol] = (),
    target: tuple[PackedDataset, str] | None = None,
) -> Table:
    """Train what is not trained yet, evaluate what is not evaluated yet, write results.json.

    Args:
        packed: the data.
        benchmark: e.g. xsub.
        lines: from `entries`.
        seeds: one run per line and seed.
        out: folder of the table; runs are written below it.
        emit: receives progress and notes.
        protocols: added to kNN and linear; `ensemble` trains two further streams per line and seed.
        target: another dataset and its benchmark, to which all encoders are transferred.

    If a result of `protocols` diverges, the others are still computed (`Table.failure_summary`). Results of
    earlier calls that this one does not compute stay in the table if the store still holds them.

    Raises:
        ConfigError: the target is the data of the table, has other joints or no such benchmark; or a batch is too large.
        DataError: a split is empty, a sample has no label, or a class of the test split has no training
            sample.
        CheckpointError: a folder holds another run than the requested one.
    """
    _check(packed, benchmark, lines, seeds, out, "ensemble" in protocols)
    if target is not None:
        _check_target(packed, benchmark, *target)
    before = _earlier(packed, benchmark, out, emit)
    goal = None if target is None else (target[0], _named(packed, *target, before.targets if before else ()))
    asked: list[Protocol] = [p for p in PROTOCOLS if p in protocols or (p == "transfer" and goal)]
    replaced = {(protocol, goal[1].id if goal and protocol == "transfer" else "") for protocol in asked}
    rows: list[TableRow] = []
    failed: dict[str, str] = {}
    for line in lines:
        for seed in seeds:
            label = f"{line.name}, seed {seed}"
            try:
                row = _row(line, line.run(packed, benchmark, seed, out), out, asked, goal, emit)
            except OutOfMemoryError as error:
                failed[label] = shorten_paths(str(error))
                emit(Note(f"{label}: {error}; the other rows are still made", "warning"))
                continue
            rows.append(_with_earlier(row, before, out, replaced))
            knn_, linear_ = (100 * row.top1(protocol) for protocol in ALWAYS)
            emit(Note(f"{label}: kNN {knn_:.1f}, linear {linear_:.1f}"))
    if before is not None:
        _report_earlier(before, rows, replaced, emit)
    recipe = lines[0].recipe
    rows.append(_baseline(packed, benchmark, recipe, before))
    shown_targets = {result.target for row in rows for result in row.results}
    targets = [t for t in (before.targets if before else ()) if t.id in shown_targets]
    if goal is not None:
        targets = [*(t for t in targets if t.id != goal[1].id), goal[1]]
    m = packed.manifest
    table = Table(
        **metrics.no_encoder_scores(packed, benchmark).model_dump(),
        recipe=recipe.name,
        recipe_fingerprint=recipe.fingerprint(),
        engines={
            role: _engine_name(portable(m.engines[stage]))
            for role, stage in (("crops", "crops"), ("captions", "captions"), ("vectors", "embeddings"))
        },
        classes=m.classes,
        targets=tuple(targets),
        rows=tuple(rows),
        failed=failed,
        stage_seconds=_stage_seconds(packed.folder.parent),
    )
    save(out, table)
    return table


def _check(
    packed: PackedDataset, benchmark: str, lines: Sequence[Entry], seeds: Sequence[int], out: Path, streams: bool
) -> None:
    """Check labels, classes, batches and run folders before hours of training; raises as `run_table`."""
    metrics.usable_splits(packed, benchmark)
    problems: dict[str, None] = {}  # each once, in order
    for line in lines:
        for seed in seeds:
            run = line.run(packed, benchmark, seed, out)
            problems[run.batch_problem(len(run.select().rows))] = None
            device_of(line.recipe.training.device)
            for one in _streams(run).values() if streams else (run,):
                if (saved := saved_run(one.out)) is not None:
                    check_same(one.facts(), saved[1], saved[0])
    if wrong := [problem for problem in problems if problem]:
        raise ConfigError("; ".join(wrong))


def _check_target(packed: PackedDataset, trained: str, target: PackedDataset, benchmark: str) -> None:
    facts = {"dataset": packed.manifest.dataset, "clips": packed.clips(packed.select(trained, "train").rows)}
    if transfer.is_own(facts, target):
        raise ConfigError(f"--target {target.folder} is the data of the table itself; give another dataset")
    own, other = packed.layout, target.layout
    if (own.names, own.dims) != (other.names, other.dims):
        raise ConfigError(
            f"--target {target.folder} holds joints of layout {other.name!r} ({other.joints}), the table's "
            f"are {own.name!r} ({own.joints}); map them: `c2vl-pipeline pack --work {target.folder.parent} "
            f"--layout {own.name}`"
        )
    try:
        metrics.usable_splits(target, benchmark)
    except DataError as error:
        raise DataError(f"--target {target.folder}: {error}") from error


def _named(packed: PackedDataset, target: PackedDataset, benchmark: str, others: Iterable[Target]) -> Target:
    """Return a target under a name that no other target of the table has."""
    scores, source = metrics.no_encoder_scores(target, benchmark), packed.manifest.dataset
    own = target_id(scores.data_fingerprint, benchmark)
    taken = {other.name for other in others if other.id != own}
    folder = transfer.folder_name(target.folder)
    names = [
        transfer.target_name(target, benchmark, source, *more)
        for more in ((), (folder,), (folder, scores.data_fingerprint))
    ]
    return Target(**scores.model_dump(), name=next(name for name in names if name not in taken))


# ----------------------------------------------------------------------------------------------------- rows


def _row(
    line: Entry, run: Run, out: Path, protocols: Sequence[Protocol], target: tuple[PackedDataset, Target] | None, emit: Emit
) -> TableRow:  # fmt: skip
    """Train a run if it is not finished, and evaluate it."""
    trained, label = train(run, emit), f"{line.name}, seed {run.seed}"
    context = EvalContext(run.out, run.packed, run.benchmark, line.recipe, run.seed, emit)
    results = [cell.run().result for protocol in ALWAYS for cell in PROTOCOLS[protocol](context)]
    for protocol in protocols:
        results += run_safely(_cells(protocol, context, run, target), label, emit)
    knowledge = line.recipe.training.pretrain.knowledge if line.kind == "pretrain" else ""
    return TableRow(
        name=line.name,
        role=line.role,
        seed=run.seed,
        run=run.out.relative_to(out).as_posix(),
        knowledge=knowledge,
        derived_from_joints=context.uses_joint_captions(),
        epochs=trained.epochs,
        seconds=trained.seconds,
        samples=trained.samples,
        left_out=trained.left_out,
        results=tuple(results),
    )


def _cells(
    protocol: Protocol, context: EvalContext, run: Run, target: tuple[PackedDataset, Target] | None
) -> Iterator[Cell]:
    if protocol == "ensemble":
        return _ensemble(run, context)
    if protocol == "transfer" and target is not None:
        context = replace(context, packed=target[0], benchmark=target[1].benchmark, target=target[1].name)
    return PROTOCOLS[protocol](context)


def _streams(run: Run) -> dict[str, Run]:
    """Return the trainings of all streams; the other streams' folders are next to the line's own."""
    runs: dict[str, Run] = {}
    for stream in ensemble.STREAMS:
        training = run.recipe.training
        if stream == training.input.stream:
            runs[stream] = run
            continue
        own = training.model_copy(update={"input": training.input.model_copy(update={"stream": stream})})
        recipe = run.recipe.model_copy(update={"training": own})
        runs[stream] = replace(run, recipe=recipe, out=run.out.with_name(f"{run.out.name}-{stream}"))
    return runs


def _ensemble(run: Run, context: EvalContext) -> Iterator[Cell]:
    """Train unfinished streams and yield the cells; if a training diverges, all of them fail."""
    runs, failed = _streams(run), None
    try:
        for one in runs.values():
            train(one, context.emit)
    except C2VLError as error:
        if not fails_alone(error):
            raise
        failed = partial(_again, error)
    streams = {stream: replace(context, run=one.out, recipe=one.recipe) for stream, one in runs.items()}
    for cell in ensemble.cells(replace(context, streams=streams)):
        yield replace(cell, key=None, compute=failed) if failed else cell


def _again(error: C2VLError) -> NoReturn:
    raise error


def _baseline(packed: PackedDataset, benchmark: str, recipe: Recipe, before: Table | None) -> TableRow:
    """Return the row of raw joints, kNN and linear without an encoder: that of the earlier table if its settings are these."""
    config = recipe.evaluation
    settings = [one.model_dump(mode="json") for one in (recipe.training.input, config.knn, config.linear)]
    key = f"raw-joints-{fingerprint([FORMAT, *settings])}"
    for row in before.rows if before else ():
        if row.role == "baseline" and all(result.key == key for result in row.results):
            return row.model_copy(update={"left_out": len(packed.select(benchmark, "train").left_out)})
    train, test = (raw_joints(packed, benchmark, split, recipe.training.input) for split in ("train", "test"))
    classes = metrics.check_classes(packed, train.labels, test.labels)
    last, sizes = knn.score(train, test, classes, config.knn.k)[0], (len(train.labels), len(test.labels))
    nearest = Result(protocol="knn", key=key, last=last, train=sizes[0], test=sizes[1])
    probe = linear.probe(train, test, classes, config.linear, 0).result().model_copy(update={"key": key})
    return TableRow(
        name="raw joints", role="baseline", seed=0, run="", epochs=0, seconds=0.0, samples=sizes[0],
        left_out=train.left_out, results=(nearest, probe),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ earlier results


def _earlier(packed: PackedDataset, benchmark: str, out: Path, emit: Emit) -> Table | None:
    """Return the existing table; None if there is none, or it is damaged or of other data."""
    if not (out / FILE).is_file():
        return None
    try:
        table = load(out)
    except DataError as error:
        emit(Note(f"{error}; it is written again with the results of this call", "warning"))
        return None
    same = (table.data_fingerprint, table.benchmark) == (metrics.data_read(packed, benchmark), benchmark)
    return table if same else None


def _with_earlier(row: TableRow, before: Table | None, out: Path, replaced: set[tuple[Protocol, str]]) -> TableRow:
    """Add earlier results of a row that this call does not compute, if they are of its present weights."""
    old = [r for r in before.rows if (r.name, r.seed, r.run) == (row.name, row.seed, row.run)] if before else []
    kept = [
        result
        for result in (old[0].results if old else ())
        if result.protocol not in ALWAYS
        and (result.protocol, result.target) not in replaced
        # without a key and not failed: not possible with these data for any weights
        and (holds(out / row.run, result.key) if result.key else not result.failed)
    ]
    order = list(PROTOCOLS)
    results = sorted((*kept, *row.results), key=lambda result: order.index(result.protocol))
    return row.model_copy(update={"results": tuple(results)})


def _report_earlier(before: Table, rows: Sequence[TableRow], replaced: set[tuple[Protocol, str]], emit: Emit) -> None:
    """Emit notes on the rows and results of an earlier table that stay and that do not."""

    def others(some: Iterable[TableRow]) -> list[Result]:
        results = [result for row in some for result in row.results if result.protocol not in ALWAYS]
        return [result for result in results if (result.protocol, result.target) not in replaced]

    here = {(row.name, row.seed, row.run) for row in rows}
    gone = [row for row in before.rows if row.run and (row.name, row.seed, row.run) not in here]
    if kept := others(rows):
        names = ", ".join(dict.fromkeys(result.protocol for result in kept))
        emit(Note(f"{len(kept)} results of earlier calls stay in the table ({names})"))
    lost = len(others(row for row in before.rows if row not in gone)) - len(kept)
    dropped = [f"{row.name} seed {row.seed}" for row in gone] + ([f"{lost} results"] if lost else [])
    if dropped:
        emit(
            Note(
                f"not in the table any more: {', '.join(dropped)}; the same call with their --targets, "
                "--seeds, --protocol and --target shows them, and computes nothing that is finished",
                "warning",
            )
        )


def _engine_name(described: dict[str, object]) -> str:
    model = described.get("model")
    return f"{described.get('backend')}{f' ({model})' if model else ''}"


def _stage_seconds(work: Path) -> dict[str, float]:
    """Return the seconds of each pipeline stage, if the packed arrays are still in their work folder."""
    seconds = {}
    for stage in ("skeletons", "crops", "captions", "embeddings"):
        manifest = read_stage_manifest(work / stage)
        if manifest is not None:
            seconds[stage] = manifest.seconds
    return seconds
