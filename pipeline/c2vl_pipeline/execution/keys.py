"""Keys of shards: what each is made of, which are committed under their present key, and what changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from c2vl_manifests.manifest import (
    ShardManifest,
    StageManifest,
    fingerprint,
    finished_shard,
    read_shard_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import SCHEMA_VERSION
from c2vl_pipeline import engines
from c2vl_pipeline.readers.video import FILL
from c2vl_pipeline.stages.base import Stage
from c2vl_pipeline.workspace import Index, shard_path


@dataclass(frozen=True)
class Plan:
    """What a stage would do now: keys of all shards and what they are made of, and which are done."""

    stage: Stage
    manifest: StageManifest
    keys: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    done: dict[int, ShardManifest]


def stage_inputs(
    stage: Stage, index: Index, recipe: Recipe, engine: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the configuration that determines a stage's rows; hashed into its key."""
    configs: dict[str, Any] = {
        "skeletons": recipe.pipeline.skeletons.model_dump(mode="json"),
        "crops": recipe.pipeline.crop.model_dump(mode="json", exclude={"engine", "timeout"}),
        "captions": recipe.pipeline.caption.model_dump(mode="json", exclude={"engine"}),
        "embeddings": recipe.pipeline.embed.model_dump(mode="json", exclude={"engine"}),
    }
    return {
        "schema": SCHEMA_VERSION,
        "stage": stage.name,
        "layout": index.manifest.extra["layout"] if stage.reads_joints else None,
        "frames": recipe.pipeline.frames if stage.per_frame else None,
        "config": configs[stage.name],
        "engine": None if engine is None else dict(engine),
        "prepared": {},  # of folders made before scenes had keys of their own
        **({"padding": list(FILL)} if configs[stage.name].get("aspect") == "pad" else {}),
    }


def lasting_engine(stage: Stage, index: Index, recipe: Recipe) -> dict[str, Any] | None:
    """Return what of a stage's engine is part of its key; raises EngineError where its checkpoint is not there."""
    return engines.lasting(stage.engine(recipe, index)) if stage.engine else None


def make_plan(
    stage: Stage,
    index: Index,
    recipe: Recipe,
    engine: Mapping[str, Any] | None = None,
) -> Plan:
    """Compute the keys of all shards and find which are committed under them.

    A shard's key binds the stage's configuration, its samples and the sizes of their files, the empty scenes of
    their cameras, and the digests of the upstream shards: a repaired video costs its sample, a change upstream that
    leaves the rows as they were nothing.

    Args:
        stage: which one.
        index: of the work folder.
        recipe: resolved.
        engine: what of the engine is part of the key, where it is known already (see `lasting_engine`).
    """
    inputs = stage_inputs(stage, index, recipe, engine or lasting_engine(stage, index, recipe))
    key = fingerprint(inputs)
    facts: list[dict[str, Any]] = []
    scenes = (
        stage.backgrounds(stage.engine(recipe, index), index) if stage.backgrounds and stage.engine else {}
    )
    cameras = index.table.column("camera").to_pylist() if scenes else []
    for number, samples in enumerate(index.shard_keys(stage.name)):
        above = {
            name: read_shard_manifest(shard_path(index.work, name, number)) for name in stage.upstream(recipe)
        }
        upstream = {name: shard.digest if shard else None for name, shard in above.items()}
        facts.append({"stage": key, "samples": samples, "upstream": upstream})
        if scenes:
            seen = set(cameras[slice(*index.plan[number])])
            facts[-1]["backgrounds"] = {camera: scenes[camera] for camera in sorted(seen & scenes.keys())}
    keys = tuple(fingerprint(fact) for fact in facts)
    done = {
        n: m
        for n, k in enumerate(keys)
        if (m := finished_shard(shard_path(index.work, stage.name, n), k)) is not None
    }
    per_sample = recipe.pipeline.frames if stage.per_frame else 1
    manifest = StageManifest(
        stage=stage.name,
        key=key,
        inputs=inputs,
        shards=len(keys),
        expected_rows=index.table.num_rows * per_sample,
    )
    return Plan(stage, manifest, keys, tuple(facts), done)


def inputs_path(folder: Path, key: str) -> Path:
    """Where the inputs behind a stage key are kept, so that `status --why` can name the field that changed."""
    return folder / "inputs" / f"{key}.json"


def former_inputs(folder: Path, key: str) -> dict[str, Any] | None:
    """Return the inputs behind a stage key, or None where they are not on record."""
    try:
        found: dict[str, Any] = dict(json.loads(inputs_path(folder, key).read_text("utf-8"))["inputs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


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
