"""Test videos, whole and cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

FRAMES = 60


def film(path: Path, frames: int = FRAMES, size: tuple[int, int] = (64, 48), codec: str = "MJPG") -> Path:
    """Noise in which frame n is everywhere about 4 n bright, so that a decoded frame tells its number."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, size)
    rng = np.random.default_rng(0)
    for number in range(frames):
        writer.write((rng.integers(0, 4, (size[1], size[0], 3)) + 4 * number).astype(np.uint8))
    writer.release()
    return path


def cut(path: Path, share: float = 0.6) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path
