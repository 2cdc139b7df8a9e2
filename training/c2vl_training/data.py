"""Packed arrays to augmented batches: the whole split on the device, one batched augmentation, no DataLoader.

Array order on disk (T, M, V, C), in batches (N, C, T, V, M). Draws are keyed by seed and epoch alone, so a
resumed epoch sees what the interrupted one saw. Labels lie in a file of their own that `Packed.labels` opens:
pre-training never calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F

from c2vl_manifests.config import InputConfig, PretrainConfig
from c2vl_manifests.errors import ConfigError, DataError
from c2vl_manifests.layouts import Layout
from c2vl_manifests.packed import PackedManifest, read_packed_manifest

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Rows of a split that can be used, and (sample_id, reason) of those that cannot."""

    rows: Rows
    left_out: tuple[tuple[str, str], ...]


class Packed:
    """One packed folder; arrays stay on disk until asked for.

    Raises:
        StageError: nothing was packed there.
        DataError: an array is damaged or of another shape than `packed.json` says.
    """

    def __init__(self, folder: Path) -> None:
        if folder.name != "packed" and not (folder / "packed.json").is_file():
            folder = folder / "packed"
        self.folder = folder
        self.manifest: PackedManifest = read_packed_manifest(folder)
        self.layout: Layout = self.manifest.joint_layout()
        self.index = self._index()
        m = self.manifest
        self.offsets = self._array("offsets.npy", (m.samples + 1,))
        self.joints = self._array("joints.npy", (m.frames, m.bodies, self.layout.joints, self.layout.dims))

    def _index(self) -> list[dict[str, Any]]:
        path = self.folder / "index.parquet"
        try:
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({error}); run `c2vl-pipeline pack` again") from error
        if len(rows) != self.manifest.samples:
            raise DataError(
                f"{path}: {len(rows)} rows, expected {self.manifest.samples}; run `c2vl-pipeline pack` again"
            )
        return rows

    def _array(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        path = self.folder / name
        try:
            array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if np.prod(shape) else None)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); run `c2vl-pipeline pack` again") from error
        if array.shape != shape:
            raise DataError(f"{path}: shape {array.shape}, expected {shape}; run `c2vl-pipeline pack` again")
        return array

    def knowledge(self, kind: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return vectors (N, slots, D) float16 and which of them are usable (N, slots) of `vision` or `language`."""
        m = self.manifest
        dim = m.vision_dim if kind == "vision" else m.language_dim
        return self._array(f"{kind}.npy", (m.samples, m.slots, dim)), self._array(
            f"{kind}_ok.npy", (m.samples, m.slots)
        )

    def labels(self) -> npt.NDArray[np.int64]:
        """Return 0-based classes (N,), -1 where unknown: for the supervised control and evaluation only."""
        return self._array("labels.npy", (self.manifest.samples,)).astype(np.int64)

    def benchmarks(self) -> list[str]:
        """Names of the benchmarks that any sample belongs to."""
        return sorted({name for row in self.index for name, _ in row["splits"]})

    def _members(self, benchmark: str, split: str) -> list[int]:
        """Return all rows of a split.

        `<benchmark>-val` divides the *training* split alone: a quarter of its subjects, the last ones, stand in
        for the test subjects, so that settings can be chosen without looking at the test split.
        """
        base = benchmark if benchmark in self.benchmarks() else benchmark.removesuffix("-val")
        if base not in self.benchmarks():
            have = (
                ", ".join(self.benchmarks()) or "none; give split_<benchmark> columns in the table of samples"
            )
            raise ConfigError(
                f"{self.manifest.title} has no benchmark {benchmark!r}; it has {have} (and each as <name>-val)"
            )
        if base == benchmark:
            return [n for n, row in enumerate(self.index) if dict(row["splits"]).get(base) == split]
        training = [n for n, row in enumerate(self.index) if dict(row["splits"]).get(base) == "train"]
        subjects = sorted(
            {self.index[n]["subject"] for n in training if self.index[n]["subject"] is not None}
        )
        if len(subjects) < 2:
            raise ConfigError(
                f"{benchmark!r} holds out subjects of the training split, which names {len(subjects)}; at least 2 are needed"
            )
        held = set(subjects[-max(1, len(subjects) // 4) :])
        return [n for n in training if (self.index[n]["subject"] in held) == (split == "test")]

    def select(self, benchmark: str, split: str, knowledge: Sequence[str] = ()) -> Selection:
        """Return the usable rows of a split: a skeleton, and at least one usable vector of each knowledge asked for.

        Raises:
            ConfigError: no such benchmark.
            DataError: nothing usable is left.
        """
        rows, left_out = [], []
        for n in self._members(benchmark, split):
            row = self.index[n]
            lacking = [kind for kind in knowledge if row[f"{kind}_rows"] == 0]
            if row["frames"] == 0:
                left_out.append(
                    (row["sample_id"], f"{row['skeleton_status']}: {row['reason'] or 'no skeleton'}")
                )
            elif lacking:
                left_out.append(
                    (
                        row["sample_id"],
                        f"no usable {' and '.join(lacking)} rows: {row['reason'] or 'nobody found in any frame'}",
                    )
                )
            else:
                rows.append(n)
        if not rows:
            why = f"; the first was left out because of {left_out[0][1]}" if left_out else ""
            raise DataError(
                f"{self.folder}: no usable {split} samples in {benchmark}{why}. See `c2vl-pipeline status`"
            )
        return Selection(np.array(rows, np.int64), tuple(left_out))


@dataclass(frozen=True)
class Draws:
    """Random numbers of one epoch, one row a sample in the order of the epoch."""

    window: Tensor  # share of the frames kept, before clipping
    start: Tensor  # where the window lies, in [0, 1)
    angles: Tensor  # (N, 3) radians

    def take(self, at: slice) -> Draws:
        """Return the draws of some samples."""
        return Draws(self.window[at], self.start[at], self.angles[at])


def draw(count: int, config: InputConfig, generator: torch.Generator) -> Draws:
    """Draw the augmentation of `count` samples."""
    low, high = config.augmentation.window
    uniform = torch.rand(count, 5, generator=generator)
    return Draws(
        low + (high - low) * uniform[:, 0],
        uniform[:, 1],
        (2 * uniform[:, 2:] - 1) * config.augmentation.rotation,
    )


def rotations(angles: Tensor) -> Tensor:
    """Return R = Rz Ry Rx for angles about x, y and z. Shape: (N, 3) -> (N, 3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = torch.sin(angles).unbind(1), torch.cos(angles).unbind(1)
    rows = [
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    ]  # fmt: skip
    return torch.stack(rows, dim=1).view(-1, 3, 3)


class Clips:
    """The frames of some rows of a packed set on a device, and the batched augmentation over them."""

    def __init__(self, packed: Packed, rows: Rows, config: InputConfig, device: torch.device) -> None:
        self.config = config
        self.layout = packed.layout
        spans = [(int(packed.offsets[r]), int(packed.offsets[r + 1])) for r in rows]
        frames = np.concatenate([packed.joints[a:b] for a, b in spans])
        if not np.isfinite(frames).all():
            bad = next(
                int(r)
                for r, (a, b) in zip(rows, spans, strict=True)
                if not np.isfinite(packed.joints[a:b]).all()
            )
            raise DataError(
                f"{packed.folder}: sample {packed.index[bad]['sample_id']} holds NaN or infinite joints; run the skeletons stage again"
            )
        # planar, (frames, C M V): one gather reads a frame, and a rotation mixes three contiguous planes
        planes = np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).reshape(len(frames), -1)
        self._frames = torch.from_numpy(planes).to(device)
        self._shape = frames.shape[1:]
        self._length = torch.tensor([b - a for a, b in spans], device=device)
        self._first = torch.cumsum(self._length, 0) - self._length

    def __len__(self) -> int:
        return len(self._length)

    @property
    def bytes(self) -> int:
        """Memory of the resident frames."""
        return self._frames.numel() * self._frames.element_size()

    def test(self, at: Tensor) -> Tensor:
        """Return the central window of clips, not rotated. Shape: (N,) -> (N, C, T, V, M)."""
        length = self._length[at]
        cut = ((1 - self.config.augmentation.test_window) * length / 2).to(torch.int64)
        return self._clip(at, cut, length - 2 * cut, None)

    def train(self, at: Tensor, draws: Draws) -> Tensor:
        """Return augmented clips: a random window, resized in time, rotated. Shape: (N,) -> (N, C, T, V, M)."""
        device = self._length.device
        length = self._length[at]
        window = (draws.window.to(device) * length).to(torch.int64).clamp(min=self.config.frames)
        window = torch.minimum(window, length)
        start = (draws.start.to(device) * (length - window + 1)).to(torch.int64)
        angles = draws.angles.to(device)
        if self.layout.dims == 2:  # in the plane of the image alone
            angles = angles * torch.tensor([0.0, 0.0, 1.0], device=device)
        return self._clip(at, start, window, rotations(angles))

    def _clip(self, at: Tensor, start: Tensor, window: Tensor, rotation: Tensor | None) -> Tensor:
        """Cut, resize in time with half-pixel centres, rotate, and take the stream."""
        T = self.config.frames
        M, V, C = self._shape
        steps = torch.arange(T, device=at.device, dtype=torch.float32)
        source = ((steps[None] + 0.5) * (window[:, None] / T) - 0.5).clamp(min=0)
        low = torch.minimum(source.to(torch.int64), window[:, None] - 1)
        high = torch.minimum(low + 1, window[:, None] - 1)
        weight = (source - low).clamp(max=1)
        base = (self._first[at] + start)[:, None]
        # a bag of two frames and their weights: gather and interpolation in one pass
        pairs = torch.stack([base + low, base + high], dim=-1).view(-1, 2)
        shares = torch.stack([1 - weight, weight], dim=-1).view(-1, 2)
        clip = F.embedding_bag(pairs, self._frames, per_sample_weights=shares, mode="sum").view(
            -1, T, C, M, V
        )
        if rotation is not None:
            clip = _rotate(clip, rotation)
        return self._stream(clip).permute(0, 2, 1, 4, 3)

    def _stream(self, clip: Tensor) -> Tensor:
        """Shape: (N, T, C, M, V) -> the same."""
        if self.config.stream == "bone":
            return clip - clip[..., list(self.layout.parents)]
        if self.config.stream == "motion":
            moved = torch.zeros_like(clip)
            moved[:, :-1] = clip[:, 1:] - clip[:, :-1]
            return moved
        return clip


def _rotate(clip: Tensor, rotation: Tensor) -> Tensor:
    """Multiply by one matrix a clip, written out: a batched 3 x 3 product costs several times more on a CPU.

    Shape: (N, T, C, M, V), (N, 3, 3) -> (N, T, C, M, V)
    """
    turned = torch.empty_like(clip)
    factors = rotation[:, :, :, None, None, None]
    for row in range(clip.shape[2]):
        plane = turned[:, :, row]
        torch.mul(clip[:, :, 0], factors[:, row, 0], out=plane)
        for column in range(1, clip.shape[2]):
            plane.addcmul_(clip[:, :, column], factors[:, row, column])
    return turned


# ------------------------------------------------------------------------------------------- knowledge


def _unit(vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


class Knowledge:
    """Vectors of one kind for the rows of a split, pooled as the recipe says. `epoch(g)` gives (N, D) float32.

    *Reading:* the paper keeps one vision and one language vector a sample and does not say how 16 crops become
    one. `mean` averages unit vectors; `random` takes one a sample and epoch; `ordered` sets the means of four
    consecutive quarters side by side, so that the order in time survives.
    """

    QUARTERS = 4

    def __init__(self, packed: Packed, rows: Rows, kind: str, config: PretrainConfig) -> None:
        vectors, usable = packed.knowledge(kind)
        self._ok = np.asarray(usable[rows])
        self._vectors = _unit(np.where(self._ok[..., None], vectors[rows], 0).astype(np.float32))
        self._pooling = config.pooling
        self._fixed = None if config.pooling == "random" else self._pool()
        self._centre, self._scale = np.float32(0), np.float32(1)
        if config.standardise:
            sample = self._fixed if self._fixed is not None else self._vectors[self._ok]
            self._centre = sample.mean(axis=0)
            self._scale = np.maximum(sample.std(axis=0), 1e-6)
        self.dim = int(self._vectors.shape[2]) * (self.QUARTERS if config.pooling == "ordered" else 1)

    def _pool(self) -> npt.NDArray[Any]:
        mean = _unit(self._vectors.sum(axis=1))
        if self._pooling == "mean":
            return mean
        quarters = []
        for slots in np.array_split(np.arange(self._vectors.shape[1]), self.QUARTERS):
            empty = np.asarray(~self._ok[:, slots].any(axis=1))
            # a quarter in which nobody was seen says what the whole says
            quarters.append(np.where(empty[:, None], mean, _unit(self._vectors[:, slots].sum(axis=1))))
        return np.asarray(np.concatenate(quarters, axis=1) / np.sqrt(self.QUARTERS))

    def epoch(self, generator: torch.Generator) -> Tensor:
        """Return the vectors of one epoch, (N, D)."""
        pooled = self._fixed
        if pooled is None:
            scores = torch.rand(self._ok.shape, generator=generator).numpy() * self._ok
            pooled = self._vectors[np.arange(len(scores)), scores.argmax(axis=1)]
        return torch.from_numpy(np.asarray((pooled - self._centre) / self._scale, np.float32))
