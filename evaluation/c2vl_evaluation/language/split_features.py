"""Frozen features of a zero-shot split in the files that public zero-shot code reads.

    OUT/train.npy, train_label.npy    training clips of seen classes: features (N, D) float32, classes (N,) int64 from 0
    OUT/ztest.npy, z_label.npy        test clips of unseen classes
    OUT/gtest.npy, g_label.npy        all test clips
    OUT/label_splits/ru5.npy          numbers of the unseen classes, ascending; the name holds their count
    OUT/label_splits/rs55.npy         the same of the seen classes
    OUT/features.json                 run, weights, data, split, and the names of all classes

Names and content are those of SynSE (Gupta et al., ICIP 2021), which SA-DVAE and TDSM read too. Their files for a gating
model (`val`, `*_out`) hold the answers of a classifier that was trained with labels of the seen classes: none exists here.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c2vl_evaluation.cache import weights_of
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import extract
from c2vl_evaluation.language.class_split import ClassSplit, clips_trained_on
from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import commit_bytes, commit_text

FACTS = "features.json"
SPLITS = "label_splits"


@dataclass(frozen=True)
class Written:
    """Clips of each part, and the width of a feature."""

    clips: dict[str, int]
    dim: int

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {count:,} clips" for name, count in self.clips.items())
        return f"{parts}; {self.dim} numbers each"


def write(context: EvalContext, split: ClassSplit, out: Path) -> Written:
    """Write the features of a split, `features.json` last.

    Raises:
        CheckpointError: there is no finished run, or its encoder does not fit the data.
        DataError: a clip has no label, or a part would be empty.
    """
    device = context.recipe.training.device
    train, test = (extract(context.run, context.packed, context.benchmark, of, device) for of in ("train", "test"))
    known, new = ~np.isin(train.labels, split.unseen), np.isin(test.labels, split.unseen)
    for count, words in (
        (known.sum(), "training clip is of a seen class"),
        (new.sum(), "test clip is of an unseen class"),
    ):
        if not count:
            raise DataError(f"no {words} in {context.benchmark}; choose other unseen classes by --split")
    (out / FACTS).unlink(missing_ok=True)  # of another split
    for old in (out / SPLITS).glob("r[us]*.npy"):
        old.unlink()
    parts = {
        "train": ("train_label", train.values[known], train.labels[known]),
        "ztest": ("z_label", test.values[new], test.labels[new]),
        "gtest": ("g_label", test.values, test.labels),
    }
    for name, (label, values, labels) in parts.items():
        _save(out / f"{name}.npy", values)
        _save(out / f"{label}.npy", labels)
    _save(out / SPLITS / f"ru{len(split.unseen)}.npy", split.unseen)
    _save(out / SPLITS / f"rs{len(split.seen)}.npy", split.seen)
    clips, facts = {name: len(labels) for name, (_, _, labels) in parts.items()}, context.facts()
    described = {
        "dataset": context.packed.manifest.dataset,
        "benchmark": context.benchmark,
        "split": split.title,
        "unseen": split.unseen_names,
        "classes": split.names,
        "run": context.run.name,
        "kind": facts.get("kind"),
        "encoder": facts.get("encoder"),
        "encoder_sha256": weights_of(context.run),
        "unseen_clips_in_training": clips_trained_on(context, split),
        "clips": clips,
    }
    commit_text(out / FACTS, json.dumps(described, indent=1) + "\n")
    return Written(clips, train.values.shape[1])


def _save(path: Path, values: npt.NDArray[np.generic]) -> None:
    held = io.BytesIO()
    np.save(held, values, allow_pickle=False)
    commit_bytes(path, held.getvalue())
