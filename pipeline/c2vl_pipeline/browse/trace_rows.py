"""One sample's stored rows as facts for `explain`: crop, caption and vectors of each slot, and joints."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from c2vl_manifests.motion import StickFigure, poses
from c2vl_manifests.pages import shorten_paths
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse.audit_crops import INSIDE, inside
from c2vl_pipeline.browse.reader import Row
from c2vl_pipeline.workspace import Workspace, stored_joints

_FIRST = 8
"""Values of a vector that are shown."""


def _outcome(row: Row) -> dict[str, Any]:
    return {
        "status": row["status"],
        "error_class": row["error_class"],
        "error": shorten_paths(row["error"]) or None,
        "attempts": row["attempts"],
    }


def slot_facts(slot: int, frame: int | None, fps: float | None, stored: dict[str, list[Row]]) -> dict[str, Any]:
    """Return what each stage stored about one slot of a sample; None for a stage without a row."""
    crop, caption, vectors = (
        next((row for row in stored[stage] if row["slot"] == slot), None)
        for stage in ("crops", "captions", "embeddings")
    )
    facts: dict[str, Any] = {
        "slot": slot,
        "frame": frame,
        "seconds": round(frame / fps, 3) if frame is not None and fps else None,
        "crop": None,
        "caption": None,
        "vectors": None,
    }
    if crop is not None:
        facts["crop"] = _outcome(crop) | {
            "box": [round(v, 2) for v in crop["box"]] if crop["box"] else None,
            "score": crop["score"],
            "people": crop["people"],
            "frame_size": [crop["frame_width"], crop["frame_height"]] if crop["frame_width"] else None,
            "frames_advertised": crop["frames_advertised"],
            "frames_decoded": crop["frames_decoded"],
            **_jpeg(crop["jpeg"]),
        }
    if caption is not None:
        facts["caption"] = _outcome(caption) | {"text": caption["caption"], "tokens": caption["tokens"]}
    if vectors is not None:
        vision = np.asarray(vectors["vision"], np.float32)
        language = np.asarray(vectors["language"], np.float32)
        facts["vectors"] = _outcome(vectors) | {
            "tokens": vectors["tokens"],
            "truncated": vectors["truncated"],
            "vision": _vector(vision, vectors["vision_status"]),
            "language": _vector(language, vectors["language_status"]),
            "cosine": _cosine(vision, language),
        }
    return facts


def judgement(slots: list[dict[str, Any]], projected: dict[int, list[list[float]]]) -> str:
    """Return what became of a sample's frames in one line."""
    crops = [slot for slot in slots if slot["crop"]]
    if not crops:
        planned = any(slot["frame"] is not None for slot in slots)
        return "no crops" if planned else "no frame planned, for no video can be read"
    parts = [f"{sum(slot['crop']['status'] == Status.OK for slot in crops)} of {len(crops)} frames ok"]
    if texts := [slot["caption"]["text"] for slot in slots if slot["caption"] and slot["caption"]["text"]]:
        parts.append(f"{len(set(texts))} captions differ" if len(set(texts)) > 1 else f"{len(texts)} equal captions")
    held = []
    for slot in crops:
        box, points = slot["crop"]["box"], projected.get(slot["slot"])
        if box and points:
            _, within, _ = inside(np.array(points, np.float32), box, tuple(slot["crop"]["frame_size"]))
            held += [within.mean() >= INSIDE] if len(within) else []
    if held:
        parts.append(f"box holds the joints in {sum(held)} of {len(held)}")
    return ", ".join(parts)


def _jpeg(data: bytes | None) -> dict[str, Any]:
    if not data:
        return {"jpeg_bytes": 0, "jpeg_sha256": None, "jpeg_size": None}
    try:
        size = list(Image.open(io.BytesIO(data)).size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        size = None
    return {"jpeg_bytes": len(data), "jpeg_sha256": hashlib.sha256(data).hexdigest(), "jpeg_size": size}


def _vector(vector: npt.NDArray[np.float32], status: str) -> dict[str, Any]:
    return {
        "status": status,
        "dim": len(vector),
        "norm": round(float(np.linalg.norm(vector)), 5),
        "first": [round(float(v), 5) for v in vector[:_FIRST]],
    }


def _cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float | None:
    """Return the cosine of two vectors; None if widths differ or one is absent (zero)."""
    if len(a) != len(b) or not a.any() or not b.any():
        return None
    return round(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))), 4)


def similarity(rows: list[Row], what: str) -> dict[str, Any] | None:
    """Return the cosines between the slots of a sample; rows and columns of absent vectors are None."""
    vectors = [np.asarray(row[what], np.float32) for row in rows if row[f"{what}_status"] is not None]
    if not vectors:
        return None
    matrix = [[_cosine(a, b) for b in vectors] for a in vectors]
    adjacent = [matrix[i][i + 1] for i in range(len(vectors) - 1)]
    neighbours = [c for c in adjacent if c is not None]
    known = [c for line in matrix for c in line if c is not None]
    return {
        "matrix": matrix,
        "neighbours": adjacent,
        "mean_neighbours": round(float(np.mean(neighbours)), 4) if neighbours else None,
        "low": min(known, default=0.0),
        "high": max(known, default=1.0),
    }


def skeleton_facts(
    index: Workspace, rows: list[Row], planned: Sequence[int | None]
) -> tuple[dict[str, Any] | None, dict[int, StickFigure]]:
    """Return facts about the stored joints, and for each slot the stored frame nearest to it, drawn."""
    if not rows:
        return None, {}
    row = rows[0]
    facts = _outcome(row) | {k: row[k] for k in ("frames", "frames_in_file", "bodies")}
    frames = np.asarray(row["frame_index"])
    facts |= {"layout": index.layout.name, "shape": None, "nearest": [None] * len(planned)}
    if row["status"] != Status.OK or not len(frames):
        return facts, {}
    joints = stored_joints(row, index.layout)
    nearest = [None if f is None else int(np.argmin(np.abs(frames - f))) for f in planned]
    facts |= {
        "shape": list(joints.shape),
        "joints_sha256": hashlib.sha256(row["joints"]).hexdigest(),
        "nearest": [None if at is None else int(frames[at]) for at in nearest],
    }
    slots = [slot for slot, at in enumerate(nearest) if at is not None]
    drawn = poses(joints[[at for at in nearest if at is not None]], index.layout)
    return facts, dict(zip(slots, drawn, strict=True))
