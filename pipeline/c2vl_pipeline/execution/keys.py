"""What is due: the key of every shard, what it is hashed from, and which shards are committed under it.

A shard is stale if it is committed under another key than the present one (`manifest.finished_shard`), or if a joints
file that it was made from was corrected since. Nothing here writes but the time up to which files are known unchanged.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from c2vl_manifests.file_hashes import changed_at, content_sha256
from c2vl_manifests.machine import usable_cores
from c2vl_manifests.manifest import ShardManifest, StageManifest, fingerprint, finished_shard, read_shard_manifest
from c2vl_manifests.reading import read_json
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import SCHEMA_VERSION
from c2vl_pipeline import engines
from c2vl_pipeline.stages.base import Stage, untouched
from c2vl_pipeline.workspace import Workspace, shard_path

Redo = Mapping[int, frozenset[str]]
"""Shard number -> samples to make again although their shard is committed."""


@dataclass(frozen=True)
class StageKeys:
    """The shards of a stage as the present index, recipe and earlier stages would make them."""

    stage: Stage
    manifest: StageManifest
    """Without what only a run can know: rows, statuses, provenance."""
    keys: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    """What each key is the hash of."""
    done: dict[int, ShardManifest]
    """Shards committed under their key, whose joints files did not change."""
    changed: dict[int, list[str]]
    """Shard number -> joints files that changed since it was made from them, see `changed_files`."""

    def due(self, index: Workspace, limit: int | None, only: frozenset[int] | None, redo: Redo) -> list[int]:
        """Return the shards to make: not done or with samples to make again, within `limit` samples and `only`."""
        return [
            n
            for n, (start, _) in enumerate(index.shard_ranges)
            if (n not in self.done or redo.get(n)) and (limit is None or start < limit) and (only is None or n in only)
        ]

    def with_changed(self, index: Workspace, redo: Redo) -> Redo:
        """Return `redo` with the samples whose joints files changed."""
        again = dict(redo)
        for number, files in self.changed.items():
            rows = index.shard(number, ["sample_id", "skeleton"])
            again[number] = redo.get(number, frozenset()) | {r["sample_id"] for r in rows if r["skeleton"] in files}
        return again


def stage_keys(stage: Stage, index: Workspace, recipe: Recipe, engine: Mapping[str, Any] | None = None) -> StageKeys:
    """Compute the keys of all shards and find which are committed under them.

    A shard's key binds the stage's configuration, its samples with the sizes of their files, and the digests of the
    earlier stages' shards: a repaired video costs its sample; a change in an earlier stage that leaves the rows as
    they were costs nothing.

    Args:
        stage: to compute them for.
        index: of the work folder.
        recipe: resolved.
        engine: facts of the engine that are part of the key, where they are known already (see `engine_facts`).
    """
    inputs = stage_inputs(stage, index, recipe, engine or engine_facts(stage, index, recipe))
    key = fingerprint(inputs)
    facts = []
    for number, samples in enumerate(index.shard_keys(stage.columns)):
        earlier = {name: read_shard_manifest(shard_path(index.work, name, number)) for name in stage.upstream(recipe)}
        upstream = {name: shard.digest if shard else None for name, shard in earlier.items()}
        facts.append({"stage": key, "samples": samples, "upstream": upstream})
    keys = tuple(fingerprint(fact) for fact in facts)
    changed = changed_files(stage, index)
    done = {
        n: m
        for n, k in enumerate(keys)
        if n not in changed and (m := finished_shard(shard_path(index.work, stage.name, n), k)) is not None
    }
    manifest = StageManifest(
        stage=stage.name,
        key=key,
        inputs=inputs,
        shards=len(keys),
        expected_rows=index.table.num_rows * stage.rows_per_sample(recipe),
    )
    return StageKeys(stage, manifest, keys, tuple(facts), done, changed)


def finished_stage(
    stage: Stage, index: Workspace, recipe: Recipe, engine: Mapping[str, Any] | None
) -> StageManifest | None:
    """Return the manifest of a stage that is complete under its present key and that nobody touched since, else None.

    It is found by the sizes and times of files: of a large work folder this takes a second where `stage_keys` takes ten.
    """
    manifest = untouched(index, stage.name)
    if manifest is None or {*manifest.upstream} != {*stage.upstream(recipe)}:
        return None
    same = manifest.key == fingerprint(stage_inputs(stage, index, recipe, engine))
    return manifest if same and not changed_files(stage, index) else None


def changed_files(stage: Stage, index: Workspace) -> dict[int, list[str]]:
    """Return the joints files that changed since a shard was made from them: shard number -> relative paths.

    Sizes are part of the key, but arrays that were corrected keep theirs. Only files written since are read again.
    Videos are left to `verify --raw`: one that was written again has another size, and all of them are terabytes.
    """
    root = str(index.root)

    def changed(name: str | None) -> float:
        try:
            return -1 if name is None else changed_at(f"{root}/{name}")
        except OSError:  # gone or unreadable: its rows are what is left
            return -1

    def look(number: int, names: Sequence[str | None]) -> list[str]:
        path = shard_path(index.work, stage.name, number)
        known, looked = path.with_suffix(".json"), time.time()
        try:
            since = known.stat().st_mtime
        except OSError:  # not made yet
            return []
        written = {name: when for name in {*names} if (when := changed(name)) >= since}
        if not written or (manifest := read_shard_manifest(path)) is None:
            return []
        recorded, files, read = manifest.extra.get("files", {}), [], False
        for name in written.keys() & recorded.keys():
            with suppress(OSError):
                read = True
                if (found := content_sha256(index.root / name)) is not None and found != recorded[name]:
                    files.append(name)
        # unless the clock that dated a file is ahead: the new time would still be earlier than the file's
        if read and not files and looked > max(written.values()):
            with suppress(OSError):  # a folder that can only be read
                os.utime(known, (looked, looked))
        return sorted(files)

    if "skeleton" not in stage.columns:
        return {}
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        names = index.table["skeleton"].to_pylist()
        found = pool.map(look, count(), [names[slice(*bounds)] for bounds in index.shard_ranges])
        return {number: files for number, files in enumerate(found) if files}


def changed_since(files: Sequence[str]) -> str:
    """Return in a few words that files changed since rows were made from them."""
    more = f" and {len(files) - 1:,} more joints files" if len(files) > 1 else ""
    return f"{files[0]}{more} changed since"


def stage_inputs(stage: Stage, index: Workspace, recipe: Recipe, engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the configuration that determines a stage's rows; its hash is the stage's key."""
    return {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "layout": index.manifest.extra["layout"] if stage.reads_joints else None,
        "frames": recipe.pipeline.frames if stage.per_frame else None,
        "config": stage.config(recipe, index),
        "engine": None if engine is None else dict(engine),
    }


def engine_facts(stage: Stage, index: Workspace, recipe: Recipe) -> dict[str, Any] | None:
    """Return the facts of a stage's engine that are part of its key; None for a stage without an engine.

    Raises:
        EngineError: the engine's checkpoint is absent.
    """
    return engines.key_facts(stage.engine(recipe, index)) if stage.engine else None


def inputs_path(folder: Path, key: str) -> Path:
    """Return where the inputs behind a stage key are stored, so that `status --why` can name the field that changed."""
    return folder / "inputs" / f"{key}.json"


def former_inputs(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the inputs behind a stage key, or None where they are not on record."""
    if not key.isalnum():
        return None
    try:
        return dict(read_json(inputs_path(folder, key))["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def changes(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield `place: old -> new` for every value in which two nested tables differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from changes(old.get(key), new.get(key), f"{place}.{key}".removeprefix("."))
    elif old != new:
        yield f"{place}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
