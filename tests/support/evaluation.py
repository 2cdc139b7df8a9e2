"""Settings and helpers of evaluation's tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from c2vl_evaluation.cache import ResultWithPredictions
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.entries import Entry, entries
from c2vl_evaluation.features import Features
from c2vl_manifests.packed import PackedManifest
from c2vl_pipeline.engines import TextVectors
from c2vl_training.dataset import PackedDataset
from support.packed import sticks
from support.training import BASE, recipe

MANIFEST = PackedManifest.model_construct(dataset="synthetic", recipe=None, overrides=())
"""Of data that no recipe is known of."""
LINEAR = ("evaluation.linear.epochs=5", "evaluation.linear.lrs=[0.1,1.0]", "evaluation.linear.milestones=[4]")


def features(values: np.ndarray, labels: np.ndarray) -> Features:
    return Features(np.asarray(values, np.float32), np.asarray(labels, np.int64), np.arange(len(values)), 0)


def noisy(count: int, dim: int, classes: int, seed: int, spread: float = 1.0) -> Features:
    """Classes around the same centres for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return features(centres[labels] + spread * rng.normal(size=(count, dim)), labels)


def table_lines(*targets: str, more: tuple[str, ...] = ()) -> list[Entry]:
    return entries(MANIFEST, "debug", [*BASE, *LINEAR, *more], targets)


TUNE = "{lr=0.05,weight_decay=1e-3,warmup_epochs=0,milestones=[2]}"
TUNED = (
    "evaluation.linear.epochs=4",
    "evaluation.linear.milestones=[3]",
    "evaluation.finetune.epochs=3",
    "evaluation.finetune.batch_size=5",
    f"evaluation.finetune.optimiser={TUNE}",
    "evaluation.semi.shares=[0.05,0.5]",
    "training.checkpoint_every=1",
)


def outcomes(protocol: ModuleType, context: EvalContext) -> Iterator[ResultWithPredictions]:
    """Run the cells of a protocol, one after the other."""
    return (cell.run() for cell in protocol.cells(context))


def evaluated(protocol: ModuleType, context: EvalContext) -> ResultWithPredictions:
    """Run a protocol of one setting."""
    (found,) = outcomes(protocol, context)
    return found


def told(subject: EvalContext, *more: str) -> EvalContext:
    return replace(subject, recipe=recipe(*TUNED, *more))


def logits(outcome: ResultWithPredictions) -> np.ndarray:
    assert outcome.predictions is not None
    return outcome.predictions.scores


def manifest(folder: Path, **changes: Any) -> None:
    """Change `packed.json`, the engine of the vectors by `embeddings`."""
    path = folder / "packed.json"
    held = json.loads(path.read_text())
    held["engines"]["embeddings"] = changes.pop("embeddings", held["engines"]["embeddings"])
    path.write_text(json.dumps(held | changes))


def spoken(folder: Path, **more: Any) -> Path:
    """Sticks whose captions are texts of the classical encoder, five numbers wide, and whose classes have names."""
    sticks(folder, **more)
    manifest(
        folder, classes=["wave", "sit down", "kick"], embeddings={"backend": "classical", "options": {"text_dim": 5}}
    )
    return folder


def another(subject: EvalContext, tmp_path: Path, change: Callable[[Path], None]) -> EvalContext:
    """The same run on a copy of its data that was changed."""
    folder = Path(shutil.copytree(subject.packed.folder, tmp_path / "other"))
    change(folder)
    return EvalContext(subject.run, PackedDataset(folder), subject.benchmark, subject.recipe, subject.seed)


class TwoEars:
    """A stand-in for CLIP: texts and images of one width in one space."""

    image_dim = text_dim = 6

    def encode_texts(self, texts: list[str]) -> TextVectors:
        seeds = [sum(map(ord, text)) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).normal(size=6) for seed in seeds])
        counts = np.array([len(text) for text in texts])
        return TextVectors(vectors.astype(np.float32), counts.astype(np.int32), counts > 20)
