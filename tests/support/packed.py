"""Packed sets of moving sticks, written without the pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from c2vl_manifests.layouts import Layout
from c2vl_manifests.packed import PackedManifest
from c2vl_manifests.schema import PACKED_INDEX

STICK = Layout("stick", ("hip", "chest", "head", "hand", "foot"), (1, 1, 1, 1, 0))
T = 8
LENGTHS = (1, 2, 5, 7, 8, 9, 13, 16, 40)


def _hash(*arrays: np.ndarray) -> str:
    return hashlib.blake2b(
        b"".join(np.ascontiguousarray(array).tobytes() for array in arrays), digest_size=8
    ).hexdigest()


def write_packed(
    folder: Path,
    joints: Sequence[np.ndarray],
    *,
    layout: Layout = STICK,
    vision: np.ndarray | None = None,
    language: np.ndarray | None = None,
    vision_ok: np.ndarray | None = None,
    language_ok: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    subjects: Sequence[int | None] | None = None,
    splits: Sequence[dict[str, str]] | None = None,
    reasons: dict[int, str] | None = None,
) -> Path:
    """Write what `c2vl-pipeline pack` writes, from arrays: joints[n] is (T, M, V, C) here, planar on disk."""
    folder.mkdir(parents=True)
    count = len(joints)
    rng = np.random.default_rng(0)
    vision = rng.normal(size=(count, 4, 6)) if vision is None else vision
    language = rng.normal(size=(count, 4, 5)) if language is None else language
    ok = {
        "vision": np.ones(vision.shape[:2], bool) if vision_ok is None else vision_ok,
        "language": np.ones(language.shape[:2], bool) if language_ok is None else language_ok,
    }
    frames = [len(j) for j in joints]
    planes = np.concatenate(joints).astype(np.float32).transpose(0, 3, 1, 2)
    np.save(folder / "joints.npy", np.ascontiguousarray(planes))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(frames)]).astype(np.int64))
    for name, vectors in (("vision", vision), ("language", language)):
        np.save(folder / f"{name}.npy", vectors.astype(np.float16))
        np.save(folder / f"{name}_ok.npy", ok[name])
    np.save(folder / "labels.npy", np.asarray(labels if labels is not None else [0] * count, np.int16))
    rows: list[dict[str, Any]] = [
        {
            "sample_id": f"s{n:02d}",
            "frames": frames[n],
            "skeleton_status": "ok" if frames[n] else "missing_skeleton",
            "vision_rows": int(ok["vision"][n].sum()),
            "language_rows": int(ok["language"][n].sum()),
            "reason": (reasons or {}).get(n),
            "subject": subjects[n] if subjects is not None else n,
            "view": 1,
            "splits": list((splits[n] if splits is not None else {"xsub": "train"}).items()),
            "joints_hash": _hash(np.float32(joints[n])),
            "vision_hash": _hash(np.float16(vision[n]), ok["vision"][n]),
            "language_hash": _hash(np.float16(language[n]), ok["language"][n]),
        }
        for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=PACKED_INDEX), folder / "index.parquet")
    manifest = PackedManifest(
        dataset="synthetic",
        title="Sticks",
        fingerprint="f" * 32,
        layout={"name": layout.name, "names": layout.names, "parents": layout.parents, "dims": layout.dims},
        classes=tuple(f"class {n}" for n in range(max(labels) + 1)) if labels is not None else ("class 0",),
        samples=count,
        frames=sum(frames),
        bodies=joints[0].shape[1],
        slots=vision.shape[1],
        vision_dim=vision.shape[2],
        language_dim=language.shape[2],
        engines={
            "crops": {"backend": "skeleton"},
            "captions": {"backend": "posecode", "derived_from": "joints"},
            "embeddings": {"backend": "classical"},
        },
        gaps=True,
        recipe="heuristic",
        overrides=(),
        second_body="zeros",
    )
    (folder / "packed.json").write_text(manifest.model_dump_json())
    return folder


def random_joints(lengths: Sequence[int], bodies: int, layout: Layout, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, bodies, layout.joints, layout.dims)).astype(np.float32).cumsum(axis=0) for n in lengths]


COUNT = 16


def moving(count: int = COUNT, seed: int = 0) -> list[np.ndarray]:
    """Sticks whose hand swings at a pace of its own, so that a sample can be told from the others."""
    rng = np.random.default_rng(seed)
    found = []
    for n in range(count):
        clip = np.tile(rng.normal(size=(1, 1, 5, 3)) * 0.1, (int(rng.integers(6, 24)), 1, 1, 1))
        clip[:, 0, 3, n % 3] += np.sin(np.arange(len(clip)) * (n % 4 + 1) / 3) * (1 + n % 4)
        found.append(clip.astype(np.float32))
    return found


def sticks(folder: Path, **more: Any) -> Path:
    splits = [{"xsub": "train" if n % 4 else "test"} for n in range(COUNT)]
    return write_packed(
        folder, **({"joints": moving(), "labels": [n % 3 for n in range(COUNT)], "splits": splits} | more)
    )
