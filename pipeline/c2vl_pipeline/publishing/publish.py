"""`c2vl-pipeline publish`: the rows of a work folder as a folder that data hubs and the `datasets` library read.

    README.md             the card: what the folder holds, who made it, how it is loaded
    published.json        the same as facts; its existence makes the folder one that `publish` may write into
    samples/ captions/ embeddings/  (crops/ skeletons/ on request)
      shard-00000.parquet rows of the stage with class and splits; error texts without folders and hosts
      shard-00000.json    its commit, as in the work folder
    webdataset/           tar shards, on request: see `webdataset`

Finished shards whose rows did not change are left as they are. Pictures and joints of people are published on request
alone: many licences forbid passing them on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from c2vl_manifests import cards
from c2vl_manifests.errors import DataError, passing
from c2vl_manifests.events import Emit, Note, Progress, silent
from c2vl_manifests.manifest import (
    commit_table,
    commit_text,
    digest,
    fingerprint,
    finished_shard,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.pages import portable, shorten_paths
from c2vl_manifests.reading import read_bytes
from c2vl_pipeline.publishing import webdataset as tars
from c2vl_pipeline.publishing.card import card
from c2vl_pipeline.stages import stages_of
from c2vl_pipeline.stages.pack import complete_stages, engines_of, made_with
from c2vl_pipeline.workspace import Workspace, load, shard_path

FILE = "published.json"
SAMPLES = "samples"
ALWAYS, ON_REQUEST = ("captions", "embeddings"), ("crops", "skeletons")
_INDEX = (
    *("sample_id", "label", "subject", "view", "setup", "repeat", "camera", "video", "skeleton"),
    *("start_frame", "end_frame", "known_missing", "problem"),
)
"""Columns of the index that are published; sizes of files are not."""
_ROW_GROUP = 8192


class Part(BaseModel):
    """One table of a published folder, a `config` of the `datasets` library."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    statuses: dict[str, int]


class Published(BaseModel):
    """`published.json`: facts about a published folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = 1
    complete: bool
    """False while the folder is written."""
    dataset: str
    title: str
    samples: int
    classes: int
    splits: dict[str, dict[str, int]]
    """Benchmark -> samples in train and test."""
    layout: dict[str, Any]
    parts: dict[str, Part]
    webdataset: bool
    engines: dict[str, dict[str, Any]]
    """Of all stages that led to what is published, as in `packed.json`."""
    configs: dict[str, dict[str, Any]]
    """Settings of these stages."""
    recipe: str
    overrides: tuple[str, ...]


def publish(
    work: Path,
    out: Path,
    *,
    crops: bool = False,
    skeletons: bool = False,
    webdataset: bool = False,
    emit: Emit = silent,
) -> Published:
    """Write the rows of a work folder, with a card, as a folder to give away.

    Args:
        work: folder of the index and its stages; captions and embeddings are complete.
        out: a new or empty folder, or one that `publish` wrote before. What is not asked for now is removed from it.
        crops: publish the pictures of people too.
        skeletons: publish their joints too.
        webdataset: write tar shards too.
        emit: receives progress, and a note if an edited card stays.

    Raises:
        StageError: a stage is missing or unfinished.
        DataError: `out` holds files of somebody else, or a shard is damaged.
    """
    index = load(work)
    names = [name for name in stages_of(index) if name in ALWAYS or (name == "crops" and crops)]
    names += ["skeletons"] if skeletons else []
    stages = complete_stages(index, "publish", names)
    _claim(out, index.dataset.name)
    facts = _facts(index, {name: Part(rows=m.rows, statuses=m.statuses) for name, m in stages.items()}, webdataset)
    commit_text(out / FILE, facts.model_dump_json(indent=1) + "\n")
    about = _about(index)
    _tidy(out, {*facts.parts, *([tars.FOLDER] if webdataset else [])}, len(index.shard_ranges))
    count = len(index.shard_ranges)
    for number, (start, stop) in enumerate(index.shard_ranges):
        mine = about.slice(start, stop - start)
        for name in names:
            _publish_shard(index, out, name, number, mine)
        if webdataset:
            tars.write(index, out, number, names, mine)
        emit(Progress("publish", number + 1, count, "shards"))
    samples_key = fingerprint([index.manifest.digest, digest(about)])
    _commit(out / SAMPLES / "shard-00000.parquet", _samples(index, about), samples_key, _ROW_GROUP)
    if not cards.commit_card(out, card(facts)):
        emit(Note(f"{out / cards.FILE} was edited and stays as it is; delete it to have it written again", "warning"))
    whole = facts.model_copy(update={"complete": True})
    commit_text(out / FILE, whole.model_dump_json(indent=1) + "\n")
    return whole


def _claim(out: Path, dataset: str) -> None:
    """Raise DataError unless a folder is new, holds hidden files alone (a clone of an empty repository), or is ours.

    Ours is one that this command wrote from the same dataset.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not (held := sorted(path.name for path in out.iterdir() if not path.name.startswith("."))):
        return
    try:
        ours = Published.model_validate_json(read_bytes(out / FILE))
    except (OSError, ValueError) as error:
        if passing(error):
            raise
        raise DataError(
            f"{out} holds {held[0]!r} and no {FILE} of this command; name a new folder with --out"
        ) from error
    if ours.dataset != dataset:
        raise DataError(f"{out} holds the dataset {ours.dataset!r}, expected {dataset!r}; name a new folder with --out")


def _tidy(out: Path, wanted: set[str], shards: int) -> None:
    """Remove what an earlier call published and this one does not: pictures that are no longer wanted, surplus shards."""
    for name in (SAMPLES, *ALWAYS, *ON_REQUEST, tars.FOLDER):
        for path in (out / name).glob("shard-*.*"):
            number = path.stem.removeprefix("shard-")
            if name not in wanted or (name != SAMPLES and number.isdecimal() and int(number) >= shards):
                path.unlink()
        for path in (out / name).glob(".*.tmp"):  # of a killed call
            path.unlink()
        if name not in wanted and (out / name).is_dir() and not any((out / name).iterdir()):
            (out / name).rmdir()


def _facts(index: Workspace, parts: Mapping[str, Part], webdataset: bool) -> Published:
    counts: dict[str, dict[str, int]] = {}
    for pairs in index.table.column("splits").to_pylist():
        for benchmark, split in pairs:
            counts.setdefault(benchmark, {})[split] = counts.get(benchmark, {}).get(split, 0) + 1
    made = {name: manifest for name in stages_of(index) if (manifest := read_stage_manifest(index.work / name))}
    samples = Part(rows=index.table.num_rows, statuses={})
    return Published(
        complete=False,
        dataset=index.dataset.name,
        title=index.dataset.title,
        samples=index.table.num_rows,
        classes=len(index.classes),
        splits=counts,
        layout=index.layout.as_dict(),
        parts={SAMPLES: samples, **parts},
        webdataset=webdataset,
        configs=portable({name: manifest.inputs.get("config", {}) for name, manifest in made.items()}),
        **made_with(index, engines_of(index, made)),
    )


# ------------------------------------------------------------------------------------------------ tables


def _about(index: Workspace) -> pa.Table:
    """Return id, class and splits of all samples: the columns that every published table has."""
    table, names = index.table, pa.array(index.classes, pa.string())
    label = table.column("label").combine_chunks()
    known = pc.and_(pc.greater_equal(label, 0), pc.less(label, len(names)))
    classes = names.take(pc.if_else(known, label, pa.scalar(None, label.type)))
    columns = {"sample_id": table.column("sample_id"), "class": classes}
    splits = [dict(pairs) for pairs in table.column("splits").to_pylist()]
    for benchmark in sorted({name for pairs in splits for name in pairs}):
        columns[f"split_{benchmark}"] = pa.array([pairs.get(benchmark) for pairs in splits], pa.string())
    return pa.table(columns)


def _samples(index: Workspace, about: pa.Table) -> pa.Table:
    """Return the index as it is published."""
    table = _without_paths(index.table.select(list(_INDEX)), "problem", index)
    for name in about.column_names[1:]:
        table = table.append_column(name, about.column(name))
    return table


def _without_paths(table: pa.Table, column: str, index: Workspace) -> pa.Table:
    """Return a table whose texts of errors name no folder or host of this machine; those of the data may hold spaces."""
    texts = table.column(column)
    if texts.null_count == len(texts):
        return table

    def short(text: str | None) -> str | None:
        for folder in (index.root, index.work):
            text = text and text.replace(f"{folder}/", "…/")
        return text and shorten_paths(text)

    return table.set_column(
        table.column_names.index(column),
        table.schema.field(column),
        pa.array(map(short, texts.to_pylist()), pa.string()),
    )


def _publish_shard(index: Workspace, out: Path, name: str, number: int, about: pa.Table) -> None:
    """Publish one shard of a stage, unless it is there."""
    source, stage = shard_path(index.work, name, number), stages_of(index)[name]
    manifest = read_shard_manifest(source)
    assert manifest is not None  # `complete_stages` has seen it
    path, key = shard_path(out, name, number), fingerprint([manifest.digest, digest(about)])
    if finished_shard(path, key) is None:
        table = _without_paths(read_shard(source), "error", index)
        rows = pc.index_in(table.column("sample_id"), value_set=about.column("sample_id").combine_chunks())
        for column in about.column_names[1:]:
            table = table.append_column(column, about.column(column).combine_chunks().take(rows))
        _commit(path, table, key, stage.row_group, stage.byte_stream_split)


def _commit(path: Path, table: pa.Table, key: str, row_group: int, byte_stream_split: tuple[str, ...] = ()) -> None:
    if finished_shard(path, key) is None:
        commit_table(path, table, key=key, row_group=row_group, byte_stream_split=byte_stream_split)
