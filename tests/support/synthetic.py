"""Synthetic datasets as tiny as they can be, and readers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

TINY: dict[str, Any] = {
    "classes": 8, "subjects": 1, "views": 2, "repeats": 1, "seed": 3, "size": (64, 48), "frames": (8, 12),
}  # fmt: skip


def read(path: Path) -> list[dict[str, np.ndarray]]:
    """Read a .skeleton strictly: one dict a frame, body id to (25, 12)."""
    lines = path.read_text().splitlines()
    frames, at = [], 1
    for _ in range(int(lines[0])):
        bodies = {}
        count, at = int(lines[at]), at + 1
        for _ in range(count):
            header = lines[at].split()
            assert len(header) == 10
            assert lines[at + 1] == "25"
            rows = [line.split() for line in lines[at + 2 : at + 27]]
            assert all(len(row) == 12 for row in rows)
            bodies[header[0]] = np.array(rows, dtype=np.float64)
            at += 27
        frames.append(bodies)
    assert at == len(lines)
    return frames


def film(path: Path) -> np.ndarray:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (step := capture.read())[0]:
        frames.append(step[1])
    return np.array(frames)
