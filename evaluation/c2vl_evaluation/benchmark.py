"""A table with its controls: pre-trained encoders beside the floor, the ceiling and shuffled pairs.

Each row is a run in a folder of its own; finished runs are not trained again, so a table can grow by seeds and
by `targets` values. No number here is ever chosen on the test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from c2vl_evaluation import knn, linear
from c2vl_evaluation.features import Features, extract, raw_joints
from c2vl_evaluation.results import Results, Role, Row, save
from c2vl_manifests.config import Recipe, load_recipe, targets_name
from c2vl_manifests.events import Emit, Note, silent
from c2vl_manifests.manifest import read_stage_manifest
from c2vl_training.data import Packed
from c2vl_training.trainer import Kind, Run, train


@dataclass(frozen=True)
class Entry:
    """One line of a table before it is run."""

    name: str
    role: Role
    kind: Kind
    recipe: Recipe

    def folder(self, runs: Path, seed: int) -> Path:
        """Where its run of a seed lives."""
        slug = "".join(c if c.isalnum() else "-" for c in self.name.lower()).strip("-")
        return runs / f"{slug}-seed{seed}"


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
        Entry("shuffled pairs", "shuffled", "pretrain", shuffled),
    ]


def majority(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Accuracy of always answering the training split's most frequent class."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def evaluate(
    run: Path, packed: Packed, benchmark: str, recipe: Recipe, seed: int
) -> tuple[float, linear.Probe, Features, Features]:
    """Run kNN and the linear probe on a finished run's frozen features."""
    gallery, query = features_of(run, packed, benchmark, recipe)
    return *protocols(gallery, query, packed, recipe, seed), gallery, query


def features_of(run: Path, packed: Packed, benchmark: str, recipe: Recipe) -> tuple[Features, Features]:
    """Return a finished run's frozen features of the training and of the test split."""
    device = recipe.training.device
    return extract(run, packed, benchmark, "train", device), extract(run, packed, benchmark, "test", device)


def protocols(
    gallery: Features, query: Features, packed: Packed, recipe: Recipe, seed: int
) -> tuple[float, linear.Probe]:
    """Run both protocols on the features of a training (gallery) and a test split (query)."""
    nearest = knn.accuracy(knn.predict(gallery, query, recipe.evaluation.knn.k), query.labels)
    return nearest, linear_probe(gallery, query, packed, recipe, seed)


def linear_probe(
    gallery: Features, query: Features, packed: Packed, recipe: Recipe, seed: int
) -> linear.Probe:
    """Run the linear protocol over all classes that the dataset names or the labels hold."""
    classes = max(len(packed.manifest.classes), int(max(gallery.labels.max(), query.labels.max())) + 1)
    return linear.probe(gallery, query, classes, recipe.evaluation.linear, seed)


def run_table(
    packed: Packed,
    benchmark: str,
    lines: Sequence[Entry],
    seeds: Sequence[int],
    out: Path,
    emit: Emit = silent,
) -> Results:
    """Train what is not trained yet, evaluate everything, write results.json.

    Args:
        packed: the data.
        benchmark: e.g. xsub.
        lines: from `entries`.
        seeds: one run a line and seed.
        out: folder of the table; runs go below it.
        emit: receives progress and notes.
    """
    rows: list[Row] = []
    sizes = (0, 0)
    most = 0.0
    for line in lines:
        for seed in seeds:
            folder = line.folder(out / "runs", seed)
            result = train(Run(line.kind, packed, line.recipe, benchmark, seed, folder), emit)
            nearest, probe, gallery, query = evaluate(folder, packed, benchmark, line.recipe, seed)
            sizes, most = (len(gallery.labels), len(query.labels)), majority(gallery.labels, query.labels)
            knowledge = line.recipe.training.pretrain.knowledge if line.kind == "pretrain" else ""
            rows.append(
                Row(
                    name=line.name,
                    role=line.role,
                    seed=seed,
                    run=folder.relative_to(out).as_posix(),
                    knowledge=knowledge,
                    derived_from_joints=knowledge in {"language", "both"}
                    and packed.manifest.derived_from_joints("language"),
                    knn=nearest,
                    linear=probe.accuracy,
                    linear_best=probe.best,
                    linear_lr=probe.lr,
                    epochs=result.epochs,
                    seconds=result.seconds,
                    samples=result.samples,
                    left_out=result.left_out,
                )
            )
            emit(
                Note(f"{line.name}, seed {seed}: kNN {100 * nearest:.1f}, linear {100 * probe.accuracy:.1f}")
            )
    m = packed.manifest
    recipe = lines[0].recipe
    rows.append(_baseline(packed, benchmark, recipe))
    results = Results(
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
        train=sizes[0],
        test=sizes[1],
        chance=1 / max(len(m.classes), 1),
        majority=most,
        rows=tuple(rows),
        seconds=_stage_seconds(packed.folder.parent),
    )
    save(out, results)
    return results


def _baseline(packed: Packed, benchmark: str, recipe: Recipe) -> Row:
    """Run the protocols on the joints themselves: what a representation has to beat, if it is to be worth its training."""
    gallery, query = (
        raw_joints(packed, benchmark, split, recipe.training.input) for split in ("train", "test")
    )
    nearest, probe = protocols(gallery, query, packed, recipe, 0)
    return Row(
        name="raw joints",
        role="baseline",
        seed=0,
        run="",
        knn=nearest,
        linear=probe.accuracy,
        linear_best=probe.best,
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
