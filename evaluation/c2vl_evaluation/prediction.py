"""Recognition of skeleton files and videos by a frozen encoder and the layer of the linear protocol.

Only skeletons are needed, as in the paper after pre-training: no crops, captions or CLIP. Those of a video are made by the
pose estimator of the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from c2vl_evaluation.cache import softmax
from c2vl_evaluation.context import EvalContext
from c2vl_evaluation.features import Array, check_finite, encoder_for
from c2vl_evaluation.metrics import class_name
from c2vl_evaluation.protocols import linear
from c2vl_manifests.datasets import load_dataset
from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import C2VLError, CheckpointError, ConfigError, DataError
from c2vl_manifests.events import Note
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe_loading import engine_names, engine_preset
from c2vl_training.clips import Clips, UnpackedSkeletons
from c2vl_training.distributed import device_of
from c2vl_training.inference import encode

if TYPE_CHECKING:
    from c2vl_pipeline.readers.base import Assembled

TOP = 5
SURE = 0.9
"""Probability from which an answer reads as certain."""


@dataclass(frozen=True)
class Answer:
    """Classes of a file with their probabilities, the most probable first."""

    file: Path
    frames: int
    top: list[tuple[str, float]]


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be trusted: the layer's answers to the test split, of known truth."""

    benchmark: str
    clips: int
    probability: float
    """Mean probability of the answers."""
    right: float
    """Share of them that is right."""
    sure: int
    """Clips answered with a probability of at least `SURE`."""
    sure_right: float

    def words(self) -> str:
        """Return it as sentences."""
        gap = self.probability - self.right
        # two standard errors of a share
        noise = 2 * (self.right * (1 - self.right) / self.clips) ** 0.5
        word = "calibrated within noise" if abs(gap) <= noise else "overconfident" if gap > 0 else "underconfident"
        said = (
            f"On the {self.clips:,} test clips of {self.benchmark} probabilities are {word}: {100 * self.probability:.0f} % "
            f"on average, {100 * self.right:.0f} % right."
        )
        if self.sure:
            said += f" Of {self.sure:,} answered with {SURE} or more, {100 * self.sure_right:.0f} % are right."
        return said


def calibration(context: EvalContext) -> Calibration | None:
    """Return the calibration of the layer on the test split; None if its answers are not stored."""
    try:
        found = linear.stored_predictions(context)
    except (C2VLError, OSError):
        return None
    top = softmax(found.scores).max(axis=1)
    right, sure = found.answers == found.labels, top >= SURE
    share = float(right[sure].mean()) if sure.any() else 0.0
    return Calibration(
        context.benchmark, len(right), float(top.mean()), float(right.mean()), int(sure.sum()), share
    )  # fmt: skip


def predict(
    run: Path,
    data: Path,
    files: Sequence[Path],
    *,
    benchmark: str | None = None,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
) -> list[Answer]:
    """Recognise the actions in files, see `EvalContext.open` and `predict_files`."""
    return predict_files(EvalContext.open(run, data, benchmark, recipe, overrides), files)


def predict_files(context: EvalContext, files: Sequence[Path], failed: list[C2VLError] | None = None) -> list[Answer]:
    """Recognise the actions in skeleton files and videos.

    Files are read by the suffixes that `c2vl_pipeline.readers` knows, and in videos people are looked for; joints of
    another layout than the encoder's are mapped to it if possible. The layer is trained first if the linear protocol did
    not run on this encoder.

    Args:
        context: a finished run with its data.
        files: skeleton files and videos.
        failed: receives the errors of files that cannot be read or mapped, which then have no answer; None raises the
            first.

    Raises:
        CheckpointError: the run is not finished, diverged, or is of another layout than the data.
        DataError: a file cannot be read, or has no body in any frame.
        ConfigError: its joints cannot be mapped.
    """
    where = device_of(context.recipe.training.device)
    encoder = encoder_for(context.run, context.packed, where)
    if any(map(_is_video, files)):
        _note_other_weights(context)
    joints, read = [], []
    for path in files:
        try:
            joints.append(_read(path, context, encoder.layout))
            read.append(path)
        except (DataError, ConfigError) as error:
            if failed is None:
                raise
            failed.append(error)
    if not joints:
        return []
    head, by = linear.head_of(context)
    skeletons = UnpackedSkeletons.of(joints, encoder.layout, context.packed.manifest.bodies)
    clips = Clips(skeletons, np.arange(len(joints)), encoder.input, where)
    features = encode(encoder.module, clips).float().numpy()
    check_finite(features, f"{context.run}: of its features of the files")
    logits = head.logits(torch.from_numpy(by(features)))[0].numpy()
    if not np.isfinite(logits).all():
        raise CheckpointError(
            f"{context.run}: the layer's answers are NaN or infinite, expected finite numbers: its training "
            "diverged at the chosen rate; give lower ones by --set evaluation.linear.lrs=[0.1,1.0]"
        )
    names = context.packed.manifest.classes
    answers = []
    for path, frames, row in zip(read, joints, softmax(logits), strict=True):
        top = np.argsort(-row, kind="stable")[:TOP]
        answers.append(Answer(path, len(frames), [(class_name(names, n), float(row[n])) for n in top]))
    return answers


def _is_video(path: Path) -> bool:
    from c2vl_pipeline.readers.base import USUAL

    return path.suffix.lower() in USUAL["video"]


def _note_other_weights(context: EvalContext) -> None:
    """Say if people or joints of videos are found by another model than those of the data."""
    from c2vl_pipeline import engines
    from c2vl_pipeline.stages.pose import resolved

    manifest, pose = context.packed.manifest, context.recipe.pipeline.pose
    made = manifest.engines.get("skeletons")
    if pose is None or made is None:  # joints of the data are those of files
        return
    estimator = resolved(pose.engine, load_dataset(manifest.dataset))
    assert estimator.detector is not None
    for spec, then, found, noun, key in (
        (estimator, made, "joints", "pose estimator", "pose"),
        (estimator.detector, made["detector"], "people", "detector", "pose.detector"),
    ):
        with engines.naming_the_detector():
            weights = engines.weights_id(spec)
        if then["backend"] != spec.backend:
            other, now = f"another {noun} ({then['backend']})", spec.backend
            remedy = "give --recipe and --set of the data"
        elif any(then.get(name) != fact for name, fact in weights.items()):
            other, now = f"other weights ({then.get('model')})", Path(str(spec.model)).name
            remedy = f"give those by --set {key}.model=PATH"
        else:
            continue
        text = f"{found} of the data were found by {other} than those of the videos here ({now}); {remedy}"
        context.emit(Note(text, "warning"))


def _read(path: Path, context: EvalContext, layout: Layout) -> Array:
    """Return the joints of a file in a layout. Shape: (T, M, V, C)."""
    from c2vl_pipeline.readers import read_skeleton
    from c2vl_pipeline.stages.pack import mapped

    manifest = context.packed.manifest
    second = {"second_body": manifest.second_body}
    config = context.recipe.pipeline.skeletons.model_copy(update=second)
    try:
        if _is_video(path):
            assembled, source = _watched(path, context, layout)
        else:
            own = load_dataset(manifest.dataset).reader
            assembled, source = read_skeleton(path, layout, manifest.bodies, config, own)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; give a skeleton file or a video") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    joints = assembled.joints
    if len(joints) == 0:
        raise DataError(f"{path}: no body in any frame; there is nothing to recognise")
    if source.names != layout.names or source.dims != layout.dims:
        try:
            joints = mapped(joints, source, layout)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    return np.asarray(joints, np.float32)


def _watched(path: Path, context: EvalContext, layout: Layout) -> tuple[Assembled, Layout]:
    """Return the joints of the people in a video, and their layout."""
    from c2vl_pipeline.stages.pose import read_video

    manifest, pose = context.packed.manifest, context.recipe.pipeline.pose
    if pose is None:
        raise ConfigError(
            f"{path} is a video, and recipe {context.recipe.name!r} of the data names no pose estimator; {_remedy(layout)}"
        )
    return read_video(path, pose, load_dataset(manifest.dataset), manifest.bodies)


def _remedy(layout: Layout) -> str:
    """Return what can be done where no pose estimator is named: some give joints of the encoder's layout, or none does."""
    from c2vl_pipeline import engines

    usable = []
    for name in engine_names():
        preset = engine_preset(name)
        if preset["role"] != "pose":
            continue
        as_data = preset | {"options": preset.get("options", {}) | {"dims": layout.dims}}
        for table, words in ((preset, ""), (as_data, f" with pose.dims={layout.dims}")):
            with suppress(C2VLError):
                engines.layout_of(EngineSpec.model_validate(table)).mapping_to(layout)
                usable.append(name + words)
                break
    if usable:
        return f"add `--set pipeline.pose.engine=NAME`, of {', '.join(usable)}"
    return (
        f"none here finds the joints of layout {layout.name}: give a skeleton file, or train on joints from videos "
        "(`--recipe video-only`)"
    )
