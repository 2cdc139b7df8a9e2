"""Northwestern-UCLA's public form, one JSON file per clip, from the array of all clips beside the project."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from c2vl_manifests.datasets import load_dataset

Frames = np.ndarray


def clips(shared: Path) -> dict[str, Frames]:
    """Return the joints of every real clip by its id, (T, 20, 3)."""
    with np.load(shared / "nw_ucla.npz", allow_pickle=False) as file:
        names, offsets, joints = file["names"], file["offsets"], file["joints"]
    return {str(n): joints[a:b] for n, a, b in zip(names, offsets[:-1], offsets[1:], strict=True)}


def write_clips(root: Path, frames: Mapping[str, Frames], keep: Callable[[str], bool] = lambda name: True) -> Path:
    """Write the clips whose name is to be kept as the public release has them, and return the folder."""
    (root / "all_sqe").mkdir(parents=True, exist_ok=True)
    ucla = load_dataset("nw-ucla")
    for name in filter(keep, frames):
        content = {
            "file_name": name,
            "skeletons": frames[name].astype(float).tolist(),
            "label": ucla.label(ucla.parse_id(name)) + 1,
        }
        (root / "all_sqe" / f"{name}.json").write_text(json.dumps(content))
    return root
