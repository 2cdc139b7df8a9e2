"""`c2vl-pipeline explain SAMPLE_ID`: one sample from its raw files to its vectors, every engine and config involved.

What can be checked is checked now: raw files and shards are hashed, the video is decoded again, stored crops are
hashed. `trace` returns the facts (plain values, ready for JSON) with the pictures apart; `write` makes the page.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.compute as pc

from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.manifest import (
    digest,
    file_sha256,
    footer_problem,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.pages import shorten_paths
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.gallery import class_name, unknown_sample
from c2vl_pipeline.browse.reader import Lookup, Row
from c2vl_pipeline.browse.trace_rows import similarity, skeleton_facts, slot_facts
from c2vl_pipeline.readers import reader_of
from c2vl_pipeline.readers.video import Video, plan_frames
from c2vl_pipeline.workspace import COMMANDS, Index, load

FRAME_SIDE = 320
"""Longer side of a decoded frame on the page, pixels."""


@dataclass(frozen=True)
class Trace:
    """All that is known of one sample."""

    index: Index
    facts: dict[str, Any]
    """Plain values: sample, index, raw, slots, similarity, skeleton, stages, notes."""
    frames: dict[int, str] = field(default_factory=dict)
    """Slot -> the decoded frame as a data URI."""
    crops: dict[int, str] = field(default_factory=dict)
    projected: dict[int, list[list[float]]] = field(default_factory=dict)
    """Slot -> joints in pixels of the frame, where the dataset records them."""
    poses: dict[int, html.Pose] = field(default_factory=dict)


def write(found: Trace, out: Path) -> Path:
    """Write the page of a trace and return its path."""
    return html.render(
        "explain.html.j2", out, trace=found, verdict=verdict(found.facts["stages"]), **found.facts
    )


def verdict(stages: list[dict[str, Any]]) -> str:
    """Say in a sentence how far the sample came and whether its shards are what was committed."""
    made = [s for s in stages if s["state"] == "made"]
    changed = [s["stage"] for s in made if s["agrees"] == "no"]
    stale = [s["stage"] for s in made if not s["same_samples"]]
    missing = [s["stage"] for s in stages if s["state"] != "made"]
    if not made:
        return "No stage was run yet."
    said = "All four stages were run" if not missing else f"Still to run: {', '.join(missing)}"
    if changed:
        said += f"; not as committed: {', '.join(changed)}"
    if stale:
        said += f"; made from other samples or files than the index names now: {', '.join(stale)}"
    return f"{said}{'' if changed or stale else ', and every shard is as committed'}."


def page_name(sample_id: str) -> str:
    """File name of a sample's page: own ids may hold anything."""
    return f"explain-{re.sub(r'[^A-Za-z0-9_.-]+', '-', sample_id)[:100].strip('.') or 'sample'}.html"


def trace(work: Path, sample_id: str) -> Trace:
    """Gather everything that is known of one sample; what cannot be had is said, not raised.

    Raises:
        StageError: there is no index.
        ConfigError: it has no such sample; near ids are given.
    """
    index = load(work)
    number = pc.index(index.table["sample_id"], sample_id).as_py()
    if number < 0:
        raise unknown_sample(sample_id, index.table["sample_id"].to_pylist())
    lookup = Lookup(index)
    sample: Row = index.table.slice(number, 1).to_pylist()[0]
    rows = {stage: lookup.rows(stage, [number]).get(number, []) for stage in COMMANDS}
    planned = _planned(index, sample, rows["crops"])
    raw = _raw(index, sample)
    found = Trace(index, {})
    decoded = _decode(index, sample, planned, found)
    video = raw["video"]
    if video:
        video |= decoded
    fps = (video or {}).get("fps") or index.dataset.fps or None
    body, poses = skeleton_facts(index, rows["skeletons"], planned)
    found.poses.update(poses)
    slots = [slot_facts(slot, frame, fps, rows) for slot, frame in enumerate(planned)]
    found.crops.update({r["slot"]: uri for r in rows["crops"] if (uri := html.thumbnail(r["jpeg"]))})
    _project(index, sample, planned, found)
    shard = lookup.shard_of(number)
    stages = [_stage(index, lookup, stage, shard, sample) for stage in COMMANDS]
    _match_files(stages, raw)
    found.facts.update(
        sample={
            **{k: v for k, v in sample.items() if k != "splits"},
            "class": class_name(index, sample["label"]),
            "splits": dict(sample["splits"]),
            "row": number,
            "shard": shard,
        },
        index=_index(index),
        raw=raw,
        slots=slots,
        similarity={what: similarity(rows["embeddings"], what) for what in ("vision", "language")},
        skeleton=body,
        stages=stages,
        notes=lookup.notes,
    )
    return found


# ----------------------------------------------------------------------------------------- raw files


def _planned(index: Index, sample: Row, crops: list[Row]) -> list[int | None]:
    """Frames of the video by slot: as stored, else as they would be planned now."""
    if any(row["frame_index"] is not None for row in crops):
        return [row["frame_index"] for row in crops]
    manifest = read_stage_manifest(index.work / "crops")
    slots = (manifest.inputs.get("frames") if manifest else None) or 16
    if manifest is None:
        with suppress(C2VLError):  # a recipe file may be gone; its default then
            slots = load_recipe(index.recipe, index.overrides).pipeline.frames
    end = sample["end_frame"]
    if end is None and sample["video"]:
        with suppress(DataError, OSError), Video(index.root / sample["video"]) as video:
            end = video.count()
    planned: list[int | None] = list(plan_frames(sample["start_frame"] or 0, end or 0, slots))
    return planned or [None] * slots


def _raw(index: Index, sample: Row) -> dict[str, Any]:
    """Size and hash of the raw files as they are now."""
    found: dict[str, Any] = {}
    for what in ("video", "skeleton"):
        found[what] = None
        if sample[what] is None:
            continue
        path = index.root / sample[what]
        entry = {
            "file": sample[what],
            "bytes_indexed": sample[f"{what}_bytes"],
            "bytes": None,
            "sha256": None,
        }
        try:
            entry |= {"bytes": path.stat().st_size, "sha256": file_sha256(path), "problem": None}
        except OSError as error:
            entry["problem"] = error.strerror or type(error).__name__
        found[what] = entry
    return found


def _decode(index: Index, sample: Row, planned: list[int | None], found: Trace) -> dict[str, Any]:
    """Decode the planned frames now; fills `found.frames`."""
    wanted: dict[int, list[int]] = {}
    for slot, number in enumerate(planned):
        if number is not None:
            wanted.setdefault(number, []).append(slot)
    if sample["video"] is None:
        return {}
    path = index.root / sample["video"]
    try:
        with Video(path) as video:
            facts: dict[str, Any] = {"fps": _fps(path), "frames_advertised": video.count()}
            for number, image in video.frames(wanted):
                facts["frame_size"] = [image.shape[1], image.shape[0]]
                uri = html.picture(image, FRAME_SIDE)
                for slot in wanted[number]:
                    found.frames[slot] = uri
            facts["frames_decoded"] = video.decoded
    except (DataError, OSError) as error:
        return {"decode_problem": shorten_paths(str(error))}
    return facts


def _fps(path: Path) -> float | None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        fps = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return round(fps, 3) if 0 < fps < 10_000 else None


def _project(index: Index, sample: Row, planned: list[int | None], found: Trace) -> None:
    """Joints in pixels of the frames, where the raw skeleton file has them."""
    project = reader_of(index.dataset).project
    if project is None or not sample["skeleton"]:
        return
    try:
        joints_of = project(index.root / sample["skeleton"])
    except (DataError, OSError):
        return  # the skeletons stage's row says so
    for slot, number in enumerate(planned):
        joints = None if number is None else joints_of(number)
        if joints is not None:
            flat = joints.reshape(-1, 2)
            found.projected[slot] = flat[np.isfinite(flat).all(axis=1)].round(1).tolist()


# --------------------------------------------------------------------------------------------- stages


def _index(index: Index) -> dict[str, Any]:
    """What the index file says of itself."""
    manifest = index.manifest
    return {
        "dataset": index.dataset.name,
        "title": index.dataset.title,
        "recipe": index.recipe,
        "overrides": index.overrides,
        "layout": index.layout.name,
        "joints": index.layout.joints,
        "samples": index.table.num_rows,
        "shards": len(index.plan),
        "key": manifest.key,
        **_hashes(index.work / "samples.parquet", manifest.sha256, manifest.digest),
    }


def _hashes(path: Path, sha256: str, content: str) -> dict[str, Any]:
    """Hash a file now and compare with what its manifest recorded.

    `agrees` says how: bytes (the file itself), rows (other bytes, the same content), or no.
    """
    found: dict[str, Any] = {"file": path.name, "sha256_recorded": sha256, "digest_recorded": content}
    try:
        found["sha256"] = file_sha256(path)
    except OSError as error:
        return found | {"sha256": None, "agrees": "no", "problem": error.strerror}
    if found["sha256"] == sha256:
        return found | {"agrees": "bytes"}
    try:
        return found | {"agrees": "rows" if digest(read_shard(path)) == content else "no"}
    except DataError as error:
        return found | {"agrees": "no", "problem": shorten_paths(str(error))}


def _stage(index: Index, lookup: Lookup, stage: str, shard: int, sample: Row) -> dict[str, Any]:
    """What made this sample's rows in a stage, and whether its shard is what was committed."""
    found: dict[str, Any] = {"stage": stage, "command": COMMANDS[stage], "state": "not run", "shard": shard}
    try:
        manifest = read_stage_manifest(index.work / stage)
    except C2VLError as error:
        return found | {"state": "damaged", "problem": shorten_paths(str(error))}
    if manifest is not None:
        found |= {
            "state": "not made yet",
            "stage_key": manifest.key,
            "config": manifest.inputs.get("config"),
            "engine": manifest.inputs.get("engine"),
            "inputs": {k: v for k, v in manifest.inputs.items() if k not in {"config", "engine"}},
            "provenance": {k: v for k, v in manifest.provenance.items() if k != "libraries"},
            "libraries": manifest.provenance.get("libraries", {}),
        }
    own = {sample["video"], sample["skeleton"]}
    path = lookup.path(stage, shard)
    committed = read_shard_manifest(path)
    if committed is None:
        return found | ({"state": "not committed"} if path.is_file() else {})
    found |= {
        "state": "made",
        "key": committed.key,
        "rows": committed.rows,
        "bytes": committed.bytes,
        "statuses": committed.statuses,
        "seconds": committed.seconds,
        **_hashes(path, committed.sha256, committed.digest),
        "footer_problem": footer_problem(path, committed.key, committed.rows),
        "same_samples": committed.extra.get("samples") == index.shard_keys(stage)[shard],
        "upstream": committed.extra.get("upstream", []),
        "files": {k: v for k, v in committed.extra.get("files", {}).items() if k in own},
        "part": committed.extra.get("parts", {}).get(sample["sample_id"]),
    }
    return found


def _match_files(stages: list[dict[str, Any]], raw: dict[str, Any]) -> None:
    """Compare the raw files as they are now with what the shards were made from."""
    for entry in raw.values():
        for stage in stages:
            recorded = None if entry is None else stage.get("files", {}).get(entry["file"])
            if entry is not None and recorded is not None:
                entry |= {"sha256_recorded": recorded, "agrees": recorded == entry["sha256"]}


# ------------------------------------------------------------------------------------------- terminal


def outline(facts: dict[str, Any]) -> list[str]:
    """Say a trace in a few lines of plain text."""
    sample, slots = facts["sample"], facts["slots"]
    splits = ", ".join(f"{k} {v}" for k, v in sample["splits"].items()) or "no split"
    lines = [
        f"{sample['sample_id']}: {sample['class'] or 'no class'}; row {sample['row']:,}, shard {sample['shard']}; {splits}"
    ]
    for what, entry in facts["raw"].items():
        if entry is None:
            lines.append(f"{what}: none")
        elif entry["sha256"] is None:
            lines.append(f"{what}: {entry['file']}: {entry['problem']}")
        else:
            lines.append(f"{what}: {entry['file']}, {entry['bytes']:,} bytes, sha256 {entry['sha256']}")
    frames = [
        f"{s['frame']}" + (f" ({s['seconds']:.2f} s)" if s["seconds"] is not None else "") for s in slots
    ]
    lines.append(f"frames: {', '.join(frames)}")
    for stage in facts["stages"]:
        lines.append(_stage_line(stage))
    for slot in slots:
        caption = slot["caption"]
        if caption is not None:
            lines.append(f"{slot['slot']:>2}: {caption['text'] or caption['status']}")
    return [*lines, *facts["notes"]]


def _stage_line(stage: dict[str, Any]) -> str:
    if stage["state"] != "made":
        return f"{stage['stage']}: {stage['state']}"
    engine = stage.get("engine") or {}
    model = " ".join(str(engine[k]) for k in ("backend", "model", "revision") if engine.get(k))
    agrees = {"bytes": "file as committed", "rows": "other bytes, same rows", "no": "NOT as committed"}
    by = f" by {model}" if model else ""
    return f"{stage['stage']}: {stage['file']}{by}, key {stage['key']}, {agrees[stage['agrees']]}"
