"""`c2vl-pipeline explain SAMPLE_ID`: one sample from its raw files to its vectors, with every engine and setting.

Raw files, shards and stored crops are hashed, and the video is decoded, at the time of the call. `trace` returns the
facts as plain values and the pictures apart; `write` makes the page.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from c2vl_manifests.motion import StickFigure
from c2vl_manifests.pages import portable, shorten_paths
from c2vl_manifests.recipe_loading import load_recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline.browse import html
from c2vl_pipeline.browse.cards import Card, card
from c2vl_pipeline.browse.reader import Row, RowReader, projection_of
from c2vl_pipeline.browse.selection import unknown_sample
from c2vl_pipeline.browse.trace_rows import judgement, similarity, skeleton_facts, slot_facts
from c2vl_pipeline.readers.video import Video, plan_frames
from c2vl_pipeline.stages import STAGES, stages_of
from c2vl_pipeline.stages.failures import counted
from c2vl_pipeline.workspace import Workspace, load

FRAME_SIDE = 320
"""Longer side of a decoded frame on the page, pixels."""


@dataclass(frozen=True)
class Trace:
    """Everything known about one sample."""

    index: Workspace
    card: Card
    facts: dict[str, Any]
    """Plain values: judgement, sample, index, raw, slots, similarity, skeleton, stages, notes."""
    frames: dict[int, str] = field(default_factory=dict)
    """Slot -> decoded frame as a data URI."""
    projected: dict[int, list[list[float]]] = field(default_factory=dict)
    """Slot -> joints in pixels of the frame, if the dataset records them."""
    poses: dict[int, StickFigure] = field(default_factory=dict)


def write(result: Trace, out: Path) -> Path:
    """Write the page of a trace; return its path."""
    facts = result.facts | {name: portable(result.facts[name]) for name in ("index", "stages")}
    return html.render("explain.html.j2", out, trace=result, verdict=verdict(facts["stages"]), **facts)


def verdict(stages: list[dict[str, Any]]) -> str:
    """Return a sentence: which stages were run, and whether the sample's shards are as committed."""
    made = [s for s in stages if s["state"] == "made"]
    changed = [s["stage"] for s in made if s["agrees"] == "no"]
    stale = [s["stage"] for s in made if not s["same_samples"]]
    missing = [s["stage"] for s in stages if s["state"] != "made"]
    if not made:
        return "No stage was run yet."
    text = "All four stages were run" if not missing else f"Still to run: {', '.join(missing)}"
    if changed:
        text += f"; not as committed: {', '.join(changed)}"
    if stale:
        text += f"; made from other samples or files than the index names now: {', '.join(stale)}"
    return f"{text}{'' if changed or stale else ', and every shard is as committed'}."


def page_name(sample_id: str) -> str:
    """Return the file name of a sample's page; custom ids may contain any character."""
    return f"explain-{re.sub(r'[^A-Za-z0-9_.-]+', '-', sample_id)[:100].strip('.') or 'sample'}.html"


def trace(work: Path, sample_id: str) -> Trace:
    """Collect everything known about one sample; missing parts are noted, not raised.

    Raises:
        StageError: there is no index.
        ConfigError: the index has no such sample; similar ids are given.
    """
    index = load(work)
    number = pc.index(index.table["sample_id"], sample_id).as_py()
    if number < 0:
        raise unknown_sample(sample_id, index.table["sample_id"].to_pylist())
    reader = RowReader(index)
    sample: Row = index.table.slice(number, 1).to_pylist()[0]
    rows = {stage: reader.rows(stage, [number]).get(number, []) for stage in STAGES}
    planned = _planned(index, sample, rows["crops"])
    raw = _raw(index, sample)
    body, poses = skeleton_facts(index, rows["skeletons"], planned)
    shard = reader.shard_of(number)
    result = Trace(index, card(index, sample, rows, shard), {}, poses=poses)
    decoded = _decode(index, sample, planned, result)
    if "frame_size" in decoded:
        result.projected.update(_projected(index, sample, rows["skeletons"], planned, decoded["frame_size"][1]))
    if raw["video"]:
        raw["video"] |= decoded
    fps = decoded.get("fps") or index.dataset.fps or None
    slots = [slot_facts(slot, frame, fps, rows) for slot, frame in enumerate(planned)]
    stages = [_stage(index, reader, stage, shard, sample) for stage in STAGES]
    for entry in stages:
        outcomes = [(row["status"], row["error_class"], row["error"]) for row in rows[entry["stage"]]]
        entry["reasons"] = counted(one for one in outcomes if one[0] != Status.OK)
    _match_files(stages, raw)
    result.facts.update(
        judgement=judgement(slots, result.projected),
        sample={
            **{k: v for k, v in sample.items() if k != "splits"},
            "class": result.card.name,
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
        notes=reader.notes,
    )
    return result


# ----------------------------------------------------------------------------------------- raw files


def _planned(index: Workspace, sample: Row, crops: list[Row]) -> list[int | None]:
    """Return the video frame of each slot: as stored, else as planned now."""
    if any(row["frame_index"] is not None for row in crops):
        return [row["frame_index"] for row in crops]
    manifest = read_stage_manifest(index.work / "crops")
    slots = (manifest.inputs.get("frames") if manifest else None) or 16
    if manifest is None:
        with suppress(C2VLError):  # the recipe file may be gone; then its default
            slots = load_recipe(index.recipe, index.overrides).pipeline.frames
    end = sample["end_frame"]
    if end is None and sample["video"]:
        with suppress(DataError, OSError), Video(index.root / sample["video"]) as video:
            end = video.count()
            video.drain()
            if video.miscounted(plan_frames(sample["start_frame"] or 0, end, slots)):
                end = video.decoded
    planned: list[int | None] = list(plan_frames(sample["start_frame"] or 0, end or 0, slots))
    return planned or [None] * slots


def _raw(index: Workspace, sample: Row) -> dict[str, Any]:
    """Return size and hash of the raw files as they are now."""
    result: dict[str, Any] = {}
    for what in ("video", "skeleton"):
        result[what] = None
        if sample[what] is None:
            continue
        path = index.root / sample[what]
        entry = {"file": sample[what], "bytes_indexed": sample[f"{what}_bytes"], "bytes": None, "sha256": None}
        try:
            entry |= {"bytes": path.stat().st_size, "sha256": file_sha256(path), "problem": None}
        except OSError as error:
            entry["problem"] = error.strerror or type(error).__name__
        result[what] = entry
    return result


def _decode(index: Workspace, sample: Row, planned: list[int | None], result: Trace) -> dict[str, Any]:
    """Decode the planned frames into `result.frames`; return facts about the video."""
    wanted: dict[int, list[int]] = {}
    for slot, number in enumerate(planned):
        if number is not None:
            wanted.setdefault(number, []).append(slot)
    if sample["video"] is None:
        return {}
    try:
        with Video(index.root / sample["video"]) as video:
            facts: dict[str, Any] = {"fps": video.fps, "frames_advertised": video.count()}
            for number, image in video.frames(wanted):
                facts["frame_size"] = [image.shape[1], image.shape[0]]
                uri = html.picture(image, FRAME_SIDE)
                for slot in wanted[number]:
                    result.frames[slot] = uri
            facts["frames_decoded"] = video.decoded
    except (DataError, OSError) as error:
        return {"decode_problem": shorten_paths(str(error))}
    return facts


def _projected(
    index: Workspace, sample: Row, skeletons: list[Row], planned: list[int | None], height: int
) -> dict[int, list[list[float]]]:
    """Return the joints in pixels of the planned frames by slot, if they are known."""
    points: dict[int, list[list[float]]] = {}
    try:
        joints_of = projection_of(index, sample, skeletons)
    except (DataError, OSError):
        return {}  # the row of the skeletons stage states the error
    for slot, number in enumerate(planned):
        joints = None if number is None or joints_of is None else joints_of(number, height)
        if joints is not None:
            flat = joints.reshape(-1, 2)
            points[slot] = flat[np.isfinite(flat).all(axis=1)].round(1).tolist()
    return points


# --------------------------------------------------------------------------------------------- stages


def _index(index: Workspace) -> dict[str, Any]:
    """Return the facts of the index."""
    manifest = index.manifest
    return {
        "dataset": index.dataset.name,
        "title": index.dataset.title,
        "recipe": index.recipe,
        "overrides": index.overrides,
        "layout": index.layout.name,
        "joints": index.layout.joints,
        "samples": index.table.num_rows,
        "shards": len(index.shard_ranges),
        "key": manifest.key,
        **_hashes(index.work / "samples.parquet", manifest.sha256, manifest.digest),
    }


def _hashes(path: Path, sha256: str, content: str) -> dict[str, Any]:
    """Hash a file and compare with its manifest.

    `agrees` is `bytes` (same file), `rows` (other bytes, same content) or `no`.
    """
    result: dict[str, Any] = {"file": path.name, "sha256_recorded": sha256, "digest_recorded": content}
    try:
        result["sha256"] = file_sha256(path)
    except OSError as error:
        return result | {"sha256": None, "agrees": "no", "problem": error.strerror}
    if result["sha256"] == sha256:
        return result | {"agrees": "bytes"}
    try:
        return result | {"agrees": "rows" if digest(read_shard(path)) == content else "no"}
    except DataError as error:
        return result | {"agrees": "no", "problem": shorten_paths(str(error))}


def _stage(index: Workspace, reader: RowReader, stage: str, shard: int, sample: Row) -> dict[str, Any]:
    """Return what made the sample's rows in a stage, and whether its shard is as committed."""
    facts = {"stage": stage, "command": stages_of(index)[stage].command}
    result: dict[str, Any] = facts | {"state": "not run", "shard": shard}
    try:
        manifest = read_stage_manifest(index.work / stage)
    except C2VLError as error:
        return result | {"state": "damaged", "problem": shorten_paths(str(error))}
    if manifest is not None:
        result |= {
            "state": "not made yet",
            "stage_key": manifest.key,
            "config": manifest.inputs.get("config"),
            "engine": manifest.inputs.get("engine"),
            "inputs": {k: v for k, v in manifest.inputs.items() if k not in {"config", "engine"}},
            "provenance": {k: v for k, v in manifest.provenance.items() if k != "libraries"},
            "libraries": manifest.provenance.get("libraries", {}),
        }
    own = {sample["video"], sample["skeleton"]}
    path = reader.path(stage, shard)
    committed = read_shard_manifest(path)
    if committed is None:
        return result | ({"state": "not committed"} if path.is_file() else {})
    result |= {
        "state": "made",
        "key": committed.key,
        "rows": committed.rows,
        "bytes": committed.bytes,
        "statuses": committed.statuses,
        "seconds": committed.seconds,
        **_hashes(path, committed.sha256, committed.digest),
        "footer_problem": footer_problem(path, committed.key, committed.rows),
        "same_samples": committed.extra.get("samples") == index.shard_keys(stages_of(index)[stage].columns)[shard],
        "upstream": committed.extra.get("upstream", []),
        "files": {k: v for k, v in committed.extra.get("files", {}).items() if k in own},
        "part": committed.extra.get("parts", {}).get(sample["sample_id"]),
    }
    return result


def _match_files(stages: list[dict[str, Any]], raw: dict[str, Any]) -> None:
    """Compare the present raw files with those that the shards were made from."""
    for entry in filter(None, raw.values()):
        for stage in stages:
            if (recorded := stage.get("files", {}).get(entry["file"])) is not None:
                entry |= {"sha256_recorded": recorded, "agrees": recorded == entry["sha256"]}


# ------------------------------------------------------------------------------------------- terminal


def outline(facts: dict[str, Any]) -> list[str]:
    """Return the judgement on a sample and everything that is wrong with it, in a few lines of plain text."""
    sample = facts["sample"]
    lines = [f"{sample['sample_id']} ({sample['class'] or 'no class'}): {facts['judgement']}"]
    if not (said := verdict(facts["stages"])).endswith("every shard is as committed."):
        lines.append(said)
    for entry in filter(None, facts["raw"].values()):
        if problem := entry.get("problem") or entry.get("decode_problem"):
            lines.append(f"{entry['file']}: {problem}")
    for stage in facts["stages"]:
        lines += [
            f"{stage['stage']}: {count} row{'s' if count > 1 else ''} {status}: {text}"
            for status, text, count in stage["reasons"]
        ]
    return [*lines, *facts["notes"]]
