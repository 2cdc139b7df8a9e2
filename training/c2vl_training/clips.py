"""Packed arrays to augmented batches: one batched augmentation over the arrays, no DataLoader.

Array order in batches (N, C, T, V, M). On a CPU batches are read from the mapped file, which is never loaded whole; an
accelerator gets the frames of its split once. Draws are keyed by seed, epoch and sample, so that resuming, or sharing an
epoch between processes, changes no batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_manifests.joints import missing_joints
from c2vl_manifests.layouts import Layout
from c2vl_manifests.recipe_training import InputConfig
from c2vl_training.augmentation import AugmentationDraws, between, derive_stream, interpolation, rotations, shears
from c2vl_training.dataset import PackedDataset, Rows


@dataclass(frozen=True)
class UnpackedSkeletons:
    """Skeletons that were never packed, with the arrays of a `PackedDataset`."""

    layout: Layout
    joints: npt.NDArray[Any]
    """Frames of all skeletons, one after the other. Shape (frames, C, M, V)."""
    offsets: npt.NDArray[Any]
    """Where each skeleton begins, and where the last one ends. Shape (N + 1,)."""
    gaps: bool = True
    """See `PackedManifest`."""

    @classmethod
    def of(cls, skeletons: Sequence[npt.NDArray[Any]], layout: Layout, bodies: int) -> UnpackedSkeletons:
        """Put skeletons one after the other; missing bodies are filled with zeros, surplus ones dropped.

        Args:
            skeletons: valid frames in the layout's unit, as the skeletons stage makes them. Shape (T, M, V, C) each.
            layout: of the joints.
            bodies: M of the result.
        """
        offsets = np.cumsum([0, *(len(skeleton) for skeleton in skeletons)])
        joints = np.zeros((offsets[-1], bodies, layout.joints, layout.dims), np.float32)
        for start, skeleton in zip(offsets, skeletons, strict=False):
            joints[start : start + len(skeleton), : skeleton.shape[1]] = skeleton[:, :bodies]
        return cls(layout, np.ascontiguousarray(joints.transpose(0, 3, 1, 2)), offsets)


class Clips:
    """Some rows of a packed set, and the batched augmentation over them.

    A missing joint (`missing_joints`) is zero in all streams and under every rotation: in `joint`, in frames that resizing
    in time makes of one that lacks it; in `bone`, also where the joint's parent is missing; in `motion`, where this frame
    or the next lacks it. Whole bodies that come or go are as in published loaders, which know no missing joints.

    On a CPU the planes are the mapped file itself: nothing is copied. Any other device holds the frames of the rows,
    4 M V C bytes each (600 for two Kinect bodies: 1.9 GB for 40,000 clips of 80 frames).
    """

    def __init__(
        self, packed: PackedDataset | UnpackedSkeletons, rows: Rows, config: InputConfig, device: torch.device
    ) -> None:
        self.config = config
        self.layout = packed.layout
        self._shape = packed.joints.shape[1:]
        if device.type == "cpu":
            frames, first = _mapped(packed.joints), packed.offsets[rows]
        else:
            frames, first = copy_to_device(packed, rows, device)
        self._planes = frames.view(-1, self._shape[1] * self._shape[2])
        gone = _gone(packed, rows, first, len(frames)) if packed.gaps else None
        self._gone = None if gone is None else torch.from_numpy(gone).to(device)
        self._first = torch.from_numpy(first).to(device)
        self._length = torch.from_numpy(np.diff(packed.offsets)[rows]).to(device)

    def __len__(self) -> int:
        return len(self._length)

    @property
    def device(self) -> torch.device:
        """Device of the clips."""
        return self._length.device

    def test(self, at: Tensor) -> Tensor:
        """Return the central window of clips, not rotated. Shape: (N,) -> (N, C, T, V, M)."""
        length = self._length[at]
        cut = ((1 - self.config.augmentation.test_window) * length / 2).to(torch.int64)
        still = torch.eye(3, device=at.device).expand(len(at), 3, 3)
        return self._clip(at, cut, length - 2 * cut, still)

    def train(self, at: Tensor, draws: AugmentationDraws) -> Tensor:
        """Return augmented clips: a random window, resized in time, sheared, rotated. Shape: (N,) -> (N, C, T, V, M)."""
        device = self._length.device
        length = self._length[at]
        window = (draws.window.to(device) * length).to(torch.int64).clamp(min=self.config.frames)
        window = torch.minimum(window, length)
        start = (draws.start.to(device) * (length - window + 1)).to(torch.int64)
        angles = draws.angles.to(device)
        if self.layout.dims == 2:  # in the plane of the image alone
            angles = angles * torch.tensor([0.0, 0.0, 1.0], device=device)
        linear = rotations(angles)
        if draws.shares is not None:
            linear = linear @ shears(draws.shares.to(device))
        return self._clip(at, start, window, linear)

    def _clip(self, at: Tensor, start: Tensor, window: Tensor, linear: Tensor) -> Tensor:
        """Cut, resize in time, map linearly, and derive the stream."""
        C, M, V = self._shape
        planes, weights = interpolation(self._first[at] + start, window, linear[:, :C, :C], self.config.frames)
        planes.clamp_(max=len(self._planes) - 1)
        clip = F.embedding_bag(planes, self._planes, per_sample_weights=weights, mode="sum").view(len(at), C, -1, M, V)
        gone = None
        if self._gone is not None:
            low, share = between(window, self.config.frames)
            low += (self._first[at] + start)[:, None]
            mixed = (share > 0)[..., None, None] & self._gone[(low + 1).clamp_(max=len(self._gone) - 1)]
            gone = (self._gone[low] | mixed)[:, None]
        stream = derive_stream(clip, gone, self.config.stream, list(self.layout.parents))
        return stream.transpose(3, 4)


def _mapped(joints: npt.NDArray[Any]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(joints)  # read alone


def copy_to_device(
    packed: PackedDataset | UnpackedSkeletons, rows: Rows, device: torch.device, at_once: int = 1024
) -> tuple[Tensor, Rows]:
    """Copy the frames of some rows to a device, `at_once` clips at a time.

    Returns:
        The frames, (frames, C, M, V), and where each row starts among them, (N,).
    """
    first = np.concatenate([[0], np.cumsum(np.diff(packed.offsets)[rows])])
    frames = torch.empty((int(first[-1]), *packed.joints.shape[1:]), device=device)
    for n in range(0, len(rows), at_once):
        some = rows[n : n + at_once]
        part = np.concatenate([packed.joints[packed.offsets[r] : packed.offsets[r + 1]] for r in some])
        frames[first[n] : first[n + len(some)]] = torch.from_numpy(part)
    return frames, first[:-1]


def _gone(packed: PackedDataset | UnpackedSkeletons, rows: Rows, first: Rows, frames: int) -> Any:
    """Mark the missing joints of the frames of some rows, of which `first` are the first; None if there are none.

    Shape: -> (frames, M, V)
    """
    found = None
    for at, row in zip(first, rows, strict=True):
        clip = packed.joints[packed.offsets[row] : packed.offsets[row + 1]]
        mask = missing_joints(clip.transpose(0, 2, 3, 1), packed.layout)
        if mask.any():
            found = np.zeros((frames, *mask.shape[1:]), np.bool_) if found is None else found
            found[at : at + len(mask)] = mask
    return found
