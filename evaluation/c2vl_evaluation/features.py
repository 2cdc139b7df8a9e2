"""Frozen features of a split: computed once per run and cached under a key of encoder and data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from c2vl_manifests.errors import CheckpointError, DataError
from c2vl_manifests.file_hashes import remembered_sha256
from c2vl_manifests.manifest import commit_bytes, fingerprint
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training import checkpoint
from c2vl_training.clips import Clips
from c2vl_training.dataset import PackedDataset
from c2vl_training.distributed import device_of
from c2vl_training.inference import encode

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """Features (N, D) float32 before the projector, and 0-based labels (N,), of one split."""

    values: Array
    labels: Labels
    rows: Labels
    left_out: int


@dataclass(frozen=True)
class Split:
    """Rows of a split and their classes, both (N,)."""

    rows: Labels
    labels: Labels


def extract(
    run: Path, packed: PackedDataset, benchmark: str, split: str, device: str = "auto", batch_size: int = 128
) -> Features:
    """Return the features of a split: frozen encoder in eval mode, central windows, not rotated.

    Raises:
        CheckpointError: there is no finished run, or its encoder is of another joint layout or diverged.
        DataError: a sample has no label.
    """
    selection = packed.select(benchmark, split)
    labels = labels_of(packed, selection.rows, f"{split} samples of {benchmark}")
    where = device_of(device)
    weights = run / checkpoint.ENCODER
    encoder = encoder_for(run, packed, where)
    key = fingerprint(
        {
            "encoder": remembered_sha256(weights),
            "data": packed.digests(selection.rows),
            "benchmark": benchmark,
            "split": split,
        }
    )
    cache = run / "features" / f"{benchmark}-{split}.safetensors"
    values = _cached(cache, key, (len(selection.rows), encoder.module.dim))
    if values is None:
        clips = Clips(packed, selection.rows, encoder.input, where)
        values = encode(encoder.module, clips, batch_size).float().numpy()
        check_finite(values, f"{run}: of its {split} features of {benchmark}")
        commit_bytes(cache, serialise({"features": values}, {"key": key}))
    return Features(values, labels, selection.rows, len(selection.left_out))


def labelled_split(packed: PackedDataset, benchmark: str, split: str) -> Split:
    """Return rows and labels of a split.

    Raises:
        ConfigError: there is no such benchmark.
        DataError: a sample has no label.
    """
    rows = packed.select(benchmark, split).rows
    return Split(rows, labels_of(packed, rows, f"{split} samples of {benchmark}"))


def labels_of(packed: PackedDataset, rows: Labels, label: str) -> Labels:
    """Return the classes of `rows`, (N,); `label` names the rows in the message.

    Raises:
        DataError: a sample has no label.
    """
    labels = packed.labels()[rows]
    if (labels < 0).any():
        first = packed.sample_ids(rows[labels < 0][:1])[0]
        raise DataError(
            f"{int((labels < 0).sum())} of {len(labels)} {label} have no label (first: {first}); evaluation "
            "needs all of them"
        )
    return labels


def check_finite(values: Array, label: str) -> None:
    """Raise CheckpointError if any of `values` (N, D) is NaN or infinite; `label` prefixes the message.

    Raises:
        CheckpointError: a value is NaN or infinite.
    """
    if broken := int((~np.isfinite(values)).any(axis=1).sum()):
        raise CheckpointError(
            f"{label}, {broken} of {len(values)} are NaN or infinite, expected finite numbers: the encoder "
            "diverged; train it again with a lower learning rate"
        )


def encoder_for(run: Path, packed: PackedDataset, device: torch.device) -> checkpoint.TrainedEncoder:
    """Return the frozen encoder of a run, for data with the joints that it was trained on.

    Raises:
        CheckpointError: there is no finished run, or its encoder is of another joint layout or holds NaN or
            infinite weights.
    """
    encoder = checkpoint.load_encoder(run, device)
    if (encoder.layout.names, encoder.layout.dims) != (packed.layout.names, packed.layout.dims):
        raise CheckpointError(
            f"{run} was trained on the joints of layout {encoder.layout.name!r} ({encoder.layout.joints}), "
            f"{packed.folder} holds {packed.layout.name!r} ({packed.layout.joints}); use data of the same "
            f"layout, or map it: `c2vl-pipeline pack --work {packed.folder.parent} --layout "
            f"{encoder.layout.name}`"
        )
    if not all(weight.isfinite().all() for weight in encoder.module.parameters()):
        raise CheckpointError(
            f"{run / checkpoint.ENCODER} holds weights that are NaN or infinite, expected finite numbers: "
            "the encoder diverged; train it again with a lower learning rate"
        )
    return encoder


def raw_joints(packed: PackedDataset, benchmark: str, split: str, config: InputConfig) -> Features:
    """Return the input of an encoder, flattened: the baseline without an encoder.

    Centred joints of the central window, not rotated, at 16 frames at most; (N, T V C M).
    """
    config = config.model_copy(update={"frames": min(config.frames, 16)})
    selection = packed.select(benchmark, split)
    clips = Clips(packed, selection.rows, config, torch.device("cpu"))
    values = encode(partial(torch.flatten, start_dim=1), clips).numpy()
    return Features(values, packed.labels()[selection.rows], selection.rows, len(selection.left_out))


def _cached(path: Path, key: str, shape: tuple[int, int]) -> Array | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as handle:
            if (handle.metadata() or {}).get("key") != key:
                return None
            values: Array = handle.get_tensor("features")
            whole = values.shape == shape and values.dtype == np.float32 and np.isfinite(values).all()
            return values if whole else None
    except (SafetensorError, OSError, TypeError):  # TypeError: of a type that numpy lacks
        return None  # damaged: computed again
