"""What a run may make of a stage, whether it may, and the stage's folder made ready for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import StageError
from c2vl_manifests.manifest import (
    StageManifest,
    commit_text,
    read_shard_manifest,
    read_stage_manifest,
    write_stage_manifest,
)
from c2vl_manifests.recipe import Recipe
from c2vl_pipeline import engines
from c2vl_pipeline.execution.keys import Redo, StageKeys, changes, former_inputs, inputs_path
from c2vl_pipeline.execution.sharing import Share, remove_locks
from c2vl_pipeline.execution.stage_manifest import summary_of
from c2vl_pipeline.stages import stages_of
from c2vl_pipeline.stages.base import Stage, check_shards, written_manifest
from c2vl_pipeline.workspace import Workspace, shard_path


@dataclass(frozen=True)
class Plan:
    """What a run may make of a stage, and what of that is due."""

    index: Workspace
    recipe: Recipe
    keys: StageKeys
    due: list[int]
    redo: Redo
    share: Share | None
    only: frozenset[int] | None
    """Shards that may be made; None: all."""

    @property
    def stage(self) -> Stage:
        """Return the stage."""
        return self.keys.stage

    @property
    def spec(self) -> EngineSpec | None:
        """Return the choice of the stage's engine, if it has one."""
        return self.stage.engine(self.recipe, self.index) if self.stage.engine else None

    @property
    def folder(self) -> Path:
        """Return the folder of the stage."""
        return self.index.work / self.stage.name


def check_index(stage: Stage, index: Workspace, recipe: Recipe, *, whole: bool) -> None:
    """Raise StageError if the raw folder or an earlier stage is absent; if `whole`, also if one is unfinished."""
    if not index.root.is_dir():
        raise StageError(
            f"the raw folder {index.root} is not there; mount it, or run `c2vl-pipeline index` again with "
            f"its new place: otherwise every row would report a missing file"
        )
    own, source = stages_of(index).get(stage.name, stage), "videos" if index.joints_from_videos else "skeleton files"
    if own.command != stage.command:
        raise StageError(
            f"the index of {index.work} takes joints from the {source}: run `c2vl-pipeline {own.command} --work {index.work}`, "
            f"or `c2vl-pipeline index` again with a recipe for {stage.command}"
        )
    if (recipe.pipeline.pose is not None) != index.joints_from_videos:
        raise StageError(
            f"the index of {index.work} takes joints from the {source}, and this recipe does not; give the recipe of the "
            "index, or run `c2vl-pipeline index` again with this one"
        )
    for name in stage.upstream(recipe):
        manifest = read_stage_manifest(index.work / name)
        again = f"run `c2vl-pipeline {stages_of(index)[name].command} --work {index.work}`"
        if manifest is None:
            raise StageError(f"{stage.command} needs the {name} of {index.work}, which do not exist; {again} first")
        if not manifest.complete and whole:
            raise StageError(
                f"{stage.command} needs all {name} of {index.work}: {manifest.rows:,} of "
                f"{manifest.expected_rows:,} rows exist; {again} again, or take the first ones with --limit"
            )
        frames = manifest.inputs.get("frames")
        if frames is not None and frames != recipe.pipeline.frames:
            raise StageError(
                f"{name} of {index.work} have {frames} frames per sample, this recipe asks for "
                f"{recipe.pipeline.frames}; give both stages the same pipeline.frames"
            )


def check_plan(plan: Plan, overwrite: bool) -> None:
    """Raise StageError if what is due cannot be made or, without `overwrite`, would replace what may be wanted."""
    for name in plan.stage.upstream(plan.recipe):
        check_shards(stages_of(plan.index)[name], plan.index, plan.due, plan.stage.command)
    if not overwrite:
        _check_configuration(plan)
        _check_samples_kept(plan)
    if plan.spec and plan.due and not engines.wants_own_process(plan.spec):
        engines.load(plan.spec)  # a wrong option is found before anything is called unfinished


def _check_configuration(plan: Plan) -> None:
    """Raise StageError if a shard was made by another engine or configuration: it may have cost days."""
    stage, keys, work = plan.stage, plan.keys, plan.index.work
    # in a share those of the others too: two with different settings would fill one stage
    for number in range(len(keys.keys)) if plan.share else plan.due:
        shard = read_shard_manifest(shard_path(work, stage.name, number))
        if shard is None or shard.extra.get("stage") == keys.manifest.key:
            continue
        former = former_inputs(plan.folder, str(shard.extra.get("stage")))
        changed = list(changes(former, keys.manifest.inputs)) if former else ["the former is not on record"]
        raise StageError(
            f"the {stage.name} of {work} were made under another configuration ({'; '.join(changed[:3])}); "
            f"give {stage.command} the same one, another --work, or --overwrite to make them again"
        )


def _check_samples_kept(plan: Plan) -> None:
    """Raise StageError if rows of samples that the index no longer has would be lost: it may be a mistake."""
    stage, index, work = plan.stage, plan.index, plan.index.work
    numbers = {int(path.stem.removeprefix("shard-")) for path in plan.folder.glob("shard-*.json")}
    held: set[str] = set()
    for number in [*plan.due, *(n for n in numbers if n >= len(plan.keys.keys))]:
        shard = read_shard_manifest(shard_path(work, stage.name, number))
        held |= set(shard.extra.get("parts", {})) if shard else set()
    if held and (lost := held - set(index.table.column("sample_id").to_pylist())):
        raise StageError(
            f"the {stage.name} of {work} hold {len(lost):,} samples (e.g. {min(lost)}) that its index no "
            "longer has; run `c2vl-pipeline index` again without --limit, give another --work, or "
            "--overwrite to drop them"
        )


def leave_unfinished(plan: Plan) -> StageManifest | None:
    """Write a stage's manifest as it is before the first shard, without leftovers; return the former one."""
    folder, keys = plan.folder, plan.keys
    remove_leftovers(plan)
    commit_text(inputs_path(folder, keys.manifest.key), keys.manifest.model_dump_json(include={"inputs"}))
    former = written_manifest(folder)  # a damaged one is written anew
    write_stage_manifest(folder, summary_of(keys, keys.done))
    return former


def remove_leftovers(plan: Plan) -> None:
    """Remove what no due shard will read: temporary files, shards beyond the index, marks, locks, pieces and journals.

    Journals of a shard that is done but has samples to make again stay: their answers came when that was last tried.
    Of a share, only files of its own shards: other processes are writing the others.
    """
    folder, keys, own = plan.folder, plan.keys, plan.only if plan.share else None

    def ours(path: Path) -> bool:
        number = re.match(r"\.?shard-(\d+)", path.name)
        return own is None or (number is not None and int(number[1]) in own)

    if own is None:
        remove_locks(folder)
    for leftover in [*folder.rglob(".*.tmp"), *folder.glob(".shard-*.hang"), *folder.glob(".shard-*.done")]:
        if ours(leftover):
            leftover.unlink(missing_ok=True)
    for path in folder.glob("shard-*.*"):
        number = path.stem.removeprefix("shard-")
        if own is None and number.isdigit() and int(number) >= len(keys.keys):
            path.unlink(missing_ok=True)
    unfinished = {f".shard-{n:05d}-{key[:12]}" for n, key in enumerate(keys.keys) if n not in keys.done}
    again = {f".shard-{n:05d}-{keys.keys[n][:12]}" for n in plan.due}
    for leftover in [*folder.glob(".shard-*.piece"), *folder.glob(".shard-*.journal")]:
        stem = "-".join(leftover.name.split("-")[:3])
        if ours(leftover) and stem not in unfinished and not (stem in again and leftover.suffix == ".journal"):
            leftover.unlink(missing_ok=True)
