"""A table with its controls: pre-trained encoders beside the floor, the ceiling and shuffled pairs.

Each row is a run in a folder of its own; finished runs are not trained again, so a table can grow by seeds and
by `targets` values. What earlier calls found on the same runs by other protocols stays in it. No number here is ever
chosen on the test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from c2vl_evaluation import metrics
from c2vl_evaluation.cache import Subject
from c2vl_evaluation.features import raw_joints
from c2vl_evaluation.protocols import ensemble, knn, linear
from c2vl_evaluation.protocols.common import (
    MORE,
    earlier,
    extend,
    listens,
    of_one_cell,
    say_earlier,
    tried,
    with_earlier,
)
from c2vl_evaluation.protocols.common import target as blind
from c2vl_evaluation.protocols.finetuning import Cell, splits_of
from c2vl_evaluation.results import (
    Finding,
    Protocol,
    Results,
    Role,
    Row,
    Score,
    Target,
    save,
)
from c2vl_manifests.errors import C2VLError, ConfigError, DataError
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.manifest import read_stage_manifest
from c2vl_manifests.recipe import Recipe, targets_name
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_training import checkpoint
from c2vl_training.dataset import Packed
from c2vl_training.run_folder import Kind, Run, check_same
from c2vl_training.trainer import train


@dataclass(frozen=True)
class Entry:
    """One line of a table before it is run."""

    name: str
    role: Role
    kind: Kind
    recipe: Recipe
    control_of: str = ""
    """The line that shuffled pairs are the control of."""

    def folder(self, runs: Path, seed: int) -> Path:
        """Where its run of a seed lives; beside it, where the control of other targets lives there already."""
        plain = runs / f"{_slug(self.name)}-seed{seed}"
        if self.role != "shuffled" or (held := _held(plain)) is None:
            return plain
        there = (held[1].get("config") or {}).get("targets")
        own = self.recipe.training.pretrain.targets.model_dump(mode="json")
        return plain if there == own else runs / f"{_slug(f'{self.name} {self.control_of}')}-seed{seed}"

    def run(self, packed: Packed, benchmark: str, seed: int, out: Path) -> Run:
        """Return its training; `out` is the folder of the table."""
        return Run(self.kind, packed, self.recipe, benchmark, seed, self.folder(out / "runs", seed))


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _held(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return what a folder's run is saved in, and its facts; None where there is none."""
    for name in (checkpoint.ENCODER, checkpoint.CHECKPOINT):
        if (path := folder / name).is_file():
            return path, checkpoint.load(path)[1]
    return None


def entries(recipe: str, overrides: Sequence[str], targets: Sequence[str]) -> list[Entry]:
    """Return the lines of a table: each `targets` value (the recipe's own where none is given) and three controls."""
    base = load_recipe(recipe, overrides)
    chosen = targets or [targets_name(base.training.pretrain.targets)]
    found: list[Entry] = []
    for name in chosen:
        # a value named as the recipe's own keeps the recipe's numbers (beta, temperature of the targets, ...)
        same = name == targets_name(base.training.pretrain.targets)
        one = base if same else load_recipe(recipe, [*overrides, f"training.pretrain.targets={name}"])
        if any(entry.recipe == one for entry in found):
            continue  # the same values under another name would share a folder and count as a seed
        # a number keeps partition(0.3) and partition(0.7) apart
        label = name if any(c.isdigit() for c in name) else targets_name(one.training.pretrain.targets)
        found.append(Entry(label, "pretrained", "pretrain", one))
    control = found[0].recipe
    pretrain = control.training.pretrain.model_copy(update={"pairs": "shuffled"})
    shuffled = control.model_copy(
        update={"training": control.training.model_copy(update={"pretrain": pretrain})}
    )
    return [
        *found,
        Entry("random encoder", "floor", "random", base),
        Entry("supervised", "ceiling", "supervised", base),
        Entry("shuffled pairs", "shuffled", "pretrain", shuffled, found[0].name),
    ]


def run_table(
    packed: Packed,
    benchmark: str,
    lines: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
    emit: Emit = silent,
    protocols: Sequence[Protocol] = (),
    target: tuple[Packed, str] | None = None,
) -> Results:
    """Train what is not trained yet, evaluate what is not evaluated yet, write results.json.

    Args:
        packed: the data.
        benchmark: e.g. xsub.
        lines: from `entries`.
        seeds: one run a line and seed.
        out: folder of the table; runs go below it.
        emit: receives progress and notes.
        protocols: beside kNN and linear; `ensemble` trains two further streams a line and seed.
        target: another dataset and its benchmark, which all encoders are transferred to.

    A cell of `protocols` that diverges says why, and the others go on (`protocols.failures` tells). What an earlier call
    found on the same runs by protocols that are not asked for now stays in the table.

    Raises:
        ConfigError: the target is this very data, or has other joints or no such benchmark.
        DataError: a split holds nothing usable, a sample without a label, or a class that cannot be learned.
        CheckpointError: a folder holds another run than the one that is asked for.
    """
    _check(packed, benchmark, lines, seeds, out, "ensemble" in protocols)
    if target is not None:
        _check_target(packed, *target)
    before = earlier(packed, benchmark, out, emit)
    rows: list[Row] = []
    recipe = lines[0].recipe
    for line in lines:
        for seed in seeds:
            row = _row(line, line.run(packed, benchmark, seed, out), out, protocols, emit)
            rows.append(with_earlier(row, before, out, protocols))
            emit(Note(f"{line.name}, seed {seed}: kNN {100 * row.knn:.1f}, linear {100 * row.linear:.1f}"))
    targets = say_earlier(before, rows, protocols, emit)
    rows.append(_baseline(packed, benchmark, recipe))
    results = _results(packed, benchmark, recipe, rows, targets)
    save(out, results)
    if target is not None:
        results = extend(out, target[0], "transfer", recipe, emit, target[1])
    return results


def _results(
    packed: Packed, benchmark: str, recipe: Recipe, rows: Sequence[Row], targets: tuple[Target, ...]
) -> Results:
    """Set the rows of a table beside what they are of, and what answers without an encoder reach there."""
    m = packed.manifest
    own = blind(packed, benchmark)
    return Results(
        dataset=m.dataset,
        title=m.title,
        benchmark=benchmark,
        recipe=recipe.name,
        recipe_fingerprint=recipe.fingerprint(),
        data_fingerprint=m.fingerprint,
        engines={
            role: _engine_name(m.engines[stage])
            for role, stage in (("crops", "crops"), ("captions", "captions"), ("vectors", "embeddings"))
        },
        classes=m.classes,
        train=own.train,
        test=own.test,
        chance=own.chance.top1,
        majority=own.majority.top1,
        majority_score=own.majority,
        chance_score=own.chance,
        targets=targets,
        rows=tuple(rows),
        seconds=_stage_seconds(packed.folder.parent),
    )


def _check(
    packed: Packed, benchmark: str, lines: Sequence[Entry], seeds: Sequence[int], out: Path, streams: bool
) -> None:
    """Refuse, before hours of training, what would be refused after them: labels, classes, folders of other runs."""
    metrics.check_classes(packed, *splits_of(packed, benchmark))
    for line in lines:
        for seed in seeds:
            run = line.run(packed, benchmark, seed, out)
            for one in _streams(run).values() if streams else (run,):
                if (held := _held(one.out)) is not None:
                    check_same(one.facts(), held[1], held[0])


def _check_target(packed: Packed, target: Packed, benchmark: str) -> None:
    if target.manifest.fingerprint == packed.manifest.fingerprint:
        raise ConfigError(f"--target {target.folder} is the very data of the table; give another dataset")
    own, other = packed.layout, target.layout
    if (own.names, own.dims) != (other.names, other.dims):
        raise ConfigError(
            f"--target {target.folder} holds joints of layout {other.name!r} ({other.joints}), the table's are "
            f"{own.name!r} ({own.joints}); map them: `c2vl-pipeline pack --work {target.folder.parent} --layout {own.name}`"
        )
    try:
        metrics.check_classes(target, *splits_of(target, benchmark))
    except DataError as error:
        raise DataError(f"--target {target.folder}: {error}") from error


def _row(line: Entry, run: Run, out: Path, protocols: Sequence[Protocol], emit: Emit) -> Row:
    """Train a run if it is not there, and evaluate it."""
    result, packed = train(run, emit), run.packed
    subject = Subject(run.out, packed, run.benchmark, line.recipe, run.seed)
    nearest, probe = knn.outcome(subject).finding, linear.outcome(subject).finding
    knowledge = line.recipe.training.pretrain.knowledge if line.kind == "pretrain" else ""
    found: list[Finding] = []
    for protocol in protocols:
        cells = _ensemble(run, subject, emit) if protocol == "ensemble" else MORE[protocol](subject, emit)
        found += tried(cells, f"{line.name}, seed {run.seed}", emit)
    return Row(
        name=line.name,
        role=line.role,
        seed=run.seed,
        run=run.out.relative_to(out).as_posix(),
        knowledge=knowledge,
        derived_from_joints=listens(knowledge, packed),
        **_measures(nearest.last, probe),
        epochs=result.epochs,
        seconds=result.seconds,
        samples=result.samples,
        left_out=result.left_out,
        findings=tuple(found),
    )


def _measures(nearest: Score | None, probe: Finding) -> dict[str, Any]:
    assert nearest is not None
    assert probe.last is not None
    assert probe.best is not None
    return {
        "knn": nearest.top1, "knn_top5": nearest.top5, "knn_balanced": nearest.balanced,
        "linear": probe.last.top1, "linear_top5": probe.last.top5, "linear_balanced": probe.last.balanced,
        "linear_best": probe.best.top1, "linear_lr": probe.lr,
    }  # fmt: skip


def _streams(run: Run) -> dict[str, Run]:
    """Return the trainings of all streams; those that a line lacks are in folders beside its own."""
    found: dict[str, Run] = {}
    for stream in ensemble.STREAMS:
        training = run.recipe.training
        if stream == training.input.stream:
            found[stream] = run
            continue
        own = training.model_copy(update={"input": training.input.model_copy(update={"stream": stream})})
        recipe = run.recipe.model_copy(update={"training": own})
        found[stream] = replace(run, recipe=recipe, out=run.out.with_name(f"{run.out.name}-{stream}"))
    return found


def _ensemble(run: Run, subject: Subject, emit: Emit) -> Iterator[Cell]:
    """Train the streams that are not there and yield the cells; where a training diverges, each of them says so."""
    runs, failed = _streams(run), None
    try:
        for one in runs.values():
            train(one, emit)
    except C2VLError as error:
        if not of_one_cell(error):
            raise
        failed = partial(_again, error)
    subjects = {stream: replace(subject, run=one.out, recipe=one.recipe) for stream, one in runs.items()}
    for cell in ensemble.cells(subjects, emit):
        yield replace(cell, make=failed or cell.make)


def _again(error: C2VLError) -> NoReturn:
    raise error


def _baseline(packed: Packed, benchmark: str, recipe: Recipe) -> Row:
    """Run the protocols on the joints themselves: what a representation has to beat, if it is to be worth its training."""
    gallery, query = (
        raw_joints(packed, benchmark, split, recipe.training.input) for split in ("train", "test")
    )
    e, classes = recipe.evaluation, metrics.check_classes(packed, gallery, query)
    nearest = knn.score(gallery, query, classes, e.knn.k)[0]
    probe = linear.probe(gallery, query, classes, e.linear, 0)
    return Row(
        name="raw joints",
        role="baseline",
        seed=0,
        run="",
        knn=nearest.top1,
        knn_top5=nearest.top5,
        knn_balanced=nearest.balanced,
        linear=probe.last.top1,
        linear_top5=probe.last.top5,
        linear_balanced=probe.last.balanced,
        linear_best=probe.best.top1,
        linear_lr=probe.lr,
        epochs=0,
        seconds=0.0,
        samples=len(gallery.labels),
        left_out=gallery.left_out,
    )


def _engine_name(described: dict[str, object]) -> str:
    model = described.get("model")
    return f"{described.get('backend')}{f' ({model})' if model else ''}"


def _stage_seconds(work: Path) -> dict[str, float]:
    """Return the seconds each pipeline stage took, where the work folder is still around the packed arrays."""
    found = {}
    for stage in ("skeletons", "crops", "captions", "embeddings"):
        manifest = read_stage_manifest(work / stage)
        if manifest is not None:
            found[stage] = manifest.seconds
    return found
