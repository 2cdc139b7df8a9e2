"""A stage: a function from a shard of samples to a table with one row for everything expected.

Each stage is a module; `execution` decides which of its shards are due and where they are made. Shared by all stages:
their description, the shard they are given, the status columns of a row, batched calls of an engine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import C2VLError, DataError, StageError, memory_ran_out
from c2vl_manifests.files import open_own
from c2vl_manifests.manifest import (
    StageManifest,
    fingerprint,
    finished_shard,
    read_shard,
    read_shard_manifest,
    read_stage_manifest,
)
from c2vl_manifests.reading import read_json
from c2vl_manifests.recipe import CaptionConfig, EmbedConfig, Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.readers.video import FILL
from c2vl_pipeline.stages import speed
from c2vl_pipeline.stages.speed import SPEED, Speed
from c2vl_pipeline.workspace import Workspace, shard_path

Row = dict[str, Any]

FITS = "batch_size_that_fits"
"""Name in a shard's provenance of the batch that its device has memory for, where that is less than the recipe's."""

MAX_ERROR = 300
"""Characters of an error text that a row stores."""


@dataclass(frozen=True)
class Stage:
    """Everything that the rest of the pipeline knows about a stage."""

    name: str
    """Name of its rows and of their folder."""
    command: str
    process: Callable[[ShardContext], pa.Table]
    """Makes the table of a shard."""
    columns: tuple[str, ...]
    """Columns of the index that its rows depend on; never labels or splits."""
    config: Callable[[Recipe, Workspace], dict[str, Any]]
    """The values of a recipe, and of the dataset's description, that its rows depend on, without the engine."""
    upstream: Callable[[Recipe], tuple[str, ...]]
    """Names of the earlier stages whose rows it reads."""
    row_group: int
    per_frame: bool = False
    """One row per (sample, frame) instead of one per sample."""
    engine: Callable[[Recipe, Workspace], EngineSpec] | None = None
    byte_stream_split: tuple[str, ...] = ()
    status_columns: tuple[str, ...] = ("status",)
    reads_joints: bool = False
    """True if its rows depend on the names and order of the joints."""
    raw: Literal["video", "skeleton"] | None = None
    """Column of the raw files that `verify --raw` compares with the hashes in the manifests of its shards."""

    def rows_per_sample(self, recipe: Recipe) -> int:
        """Return how many rows one sample has."""
        return recipe.pipeline.frames if self.per_frame else 1


@dataclass(frozen=True)
class ShardContext:
    """The argument of a stage's `process`: some or all samples of one shard."""

    index: Workspace
    recipe: Recipe
    number: int
    spec: EngineSpec | None = None
    folder: Path = field(default=Path())
    key: str = ""
    only: frozenset[str] | None = None
    """Ids of the samples to make rows of; None is the whole shard."""
    killable: bool = False
    """True if this process may be killed when a file hangs: in workers, which are started again."""
    quarantined: frozenset[str] = frozenset()
    """Ids of samples, of any shard, whose files have killed a worker."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Facts for the shard's manifest that `process` adds to those of the engine."""

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of the index, with what other rows cut from the same skeleton file (`Workspace.ranges`)."""
        rows = [row | self.index.ranges.get(row["skeleton"], {}) for row in self.index.shard(self.number)]
        return rows if self.only is None else [row for row in rows if row["sample_id"] in self.only]

    @cached_property
    def engine(self) -> Any:
        """The stage's engine, loaded once per process."""
        assert self.spec is not None
        return engines.load(self.spec)

    def note_done(self, samples: int) -> None:
        """Note how many samples of this shard are made and how fast, for the progress shown while it is in the making."""
        with suppress(OSError), open_own(done_mark(self.folder, self.number), "w") as mark:
            mark.write(json.dumps({"samples": samples, SPEED: self.provenance.get(SPEED, {})}))

    def upstream(self, stage: str) -> pa.Table:
        """Read the rows of these samples from the same shard of an earlier stage."""
        table = read_shard(shard_path(self.index.work, stage, self.number))
        if self.only is None:
            return table
        return table.filter(pc.is_in(table.column("sample_id"), pa.array(sorted(self.only), pa.string())))


def check_shards(stage: Stage, index: Workspace, numbers: Iterable[int], reader: str) -> None:
    """Raise StageError if a shard is absent, damaged, or made from other samples or files than the index names now.

    `reader` is the command that needs the shards; the message names the one that makes them again.
    """
    for number in numbers:
        path = shard_path(index.work, stage.name, number)
        shard = read_shard_manifest(path)
        if shard is None or finished_shard(path, shard.key) is None:
            problem = "is absent or damaged"
        elif shard.extra.get("samples") != index.shard_keys(stage.columns)[number]:
            problem = "was made from other samples or files than the index names now"
        else:
            continue
        raise StageError(
            f"{reader} needs {path}, which {problem}; run `c2vl-pipeline {stage.command} --work {index.work}` again"
        )


def seal(index: Workspace, name: str, upstream: Mapping[str, str]) -> str:
    """Return a hash of the index, of the digests of earlier stages, and of names, sizes and times of a stage's shards.

    It is empty, which no stage is sealed by, if a shard is gone or a run that was cut short left files behind.
    """
    files, paths = [], [shard_path(index.work, name, number) for number in range(len(index.shard_ranges))]
    absent = {f"{path.stem}{end}" for path in paths for end in (".parquet", ".json")}
    with os.scandir(index.work / name) as entries:
        for entry in entries:
            if entry.name.startswith("shard-"):
                try:
                    state = entry.stat()
                except FileNotFoundError:  # a link that leads nowhere, or removed at this moment
                    return ""
                files.append((entry.name, state.st_size, state.st_mtime_ns))
                absent.discard(entry.name)
            elif entry.name.startswith(".") and not entry.name.endswith(".lock"):
                return ""
    return "" if absent else fingerprint([index.manifest.key, dict(upstream), sorted(files)])


def written_manifest(folder: Path) -> StageManifest | None:
    """Return the manifest of a stage's folder, or None where it is absent or damaged."""
    try:
        return read_stage_manifest(folder)
    except DataError:
        return None


def untouched(index: Workspace, name: str) -> StageManifest | None:
    """Return the manifest of a complete stage if nobody touched its shards or those it was made from, else None."""
    manifest = written_manifest(index.work / name)
    if manifest is None or not manifest.seal or manifest.seal != seal(index, name, manifest.upstream):
        return None
    for earlier, digest in manifest.upstream.items():
        above = untouched(index, earlier)
        if above is None or above.digest != digest:
            return None
    return manifest


_YOUNG = frozenset({"view", "also_ask", "thinking", "rewrite"})


def config_of(part: CaptionConfig | EmbedConfig) -> dict[str, Any]:
    """Return the configuration of a stage that shapes crops: its part of a recipe, and the colour that `pad` fills in.

    Settings younger than the first keys are left out at their defaults, under which the rows are those of before.
    """
    pad = {"padding": list(FILL)} if part.aspect == "pad" else {}
    settings = part.model_dump(mode="json", exclude={"engine"})
    fields = type(part).model_fields
    return {n: v for n, v in settings.items() if n not in _YOUNG or getattr(part, n) != fields[n].default} | pad


def hang_mark(folder: Path, number: int) -> Path:
    """Return the path at which a worker names the samples of a file that hangs, or that it reads for a scene."""
    return folder / f".shard-{number:05d}.hang"


def done_mark(folder: Path, number: int) -> Path:
    """Return the path at which the process that makes a shard notes how many samples of it are made."""
    return folder / f".shard-{number:05d}.done"


def in_the_making(folder: Path, unfinished: Set[int]) -> tuple[int, list[Speed]]:
    """Return how many samples are made of some unfinished shards, and how fast, as their processes note it."""
    done, speeds = 0, list[Speed]()
    for name in os.listdir(folder):
        if not (name.startswith(".shard-") and name.endswith(".done")):
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):  # removed meanwhile, or half written
            if int(name[len(".shard-") : -len(".done")]) in unfinished:
                mark = read_json(folder / name)
                done += int(mark["samples"])
                speeds.append(mark[SPEED])
    return done, speeds


def row_status(
    status: Status, error_class: str | None = None, error: str | None = None, attempts: int = 1
) -> dict[str, Any]:
    """Return the status columns of a row."""
    return {"status": str(status), "error_class": error_class, "error": error, "attempts": attempts}


def failure(error: BaseException, status: Status = Status.FAILED, attempts: int = 1) -> dict[str, Any]:
    """Return the status columns of a row that failed with an exception."""
    return row_status(status, type(error).__name__, str(error)[:MAX_ERROR], attempts)


def unreadable(error: DataError | OSError, missing: Status) -> dict[str, Any]:
    """Return the status columns of rows whose raw file cannot be read: `missing` if it does not exist."""
    return failure(error, missing if isinstance(error, FileNotFoundError) else Status.DECODE_ERROR)


def blank_rows(schema: pa.Schema, sample_id: str, slots: int | None, status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows of a sample that no worker survives: null, zero or empty except for key and status.

    Args:
        schema: of the stage's table.
        sample_id: of the sample.
        slots: rows per sample, or None for a stage with one row per sample and no slot.
        status: the status columns.
    """
    empty: dict[str, Any] = {}
    for column in schema:
        if column.nullable:
            empty[column.name] = None
        elif pa.types.is_fixed_size_list(column.type):
            empty[column.name] = [0] * column.type.list_size
        elif pa.types.is_list(column.type):
            empty[column.name] = []
        elif pa.types.is_boolean(column.type):
            empty[column.name] = False
        elif pa.types.is_large_binary(column.type) or pa.types.is_binary(column.type):
            empty[column.name] = b""
        elif pa.types.is_string(column.type):  # vision_status, language_status
            empty[column.name] = status["status"] if column.name.endswith("status") else ""
        else:
            empty[column.name] = 0
    base = empty | {"sample_id": sample_id} | dict(status)
    return [base] if slots is None else [base | {"slot": slot} for slot in range(slots)]


def in_batches(
    items: list[Any],
    size: int,
    call: Callable[[list[Any]], list[Any]],
    shard: ShardContext | None = None,
    unit: str = "images",
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result or exception) of a batched engine call, isolating the items that break it.

    A batch that raises is tried again one item at a time, so a bad item costs one row; one that does not fit the
    memory of the device in halves, which `shard` records. C2VLError, a full disk and exhausted memory of the computer
    do not concern one row and are raised. Of an engine that holds a model, `shard` records how many of `unit` it made
    and how long that took.
    """
    timed = bool(items) and shard is not None and shard.spec is not None and engines.wants_own_process(shard.spec)
    if timed and shard is not None:
        _ = shard.engine  # loading it is not what it makes
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            began = time.monotonic()
            answers = call(batch)
            if timed and shard is not None:
                speed.add(shard.provenance, unit, answers, time.monotonic() - began)
            answered = list(zip(batch, answers, strict=True))
        except (C2VLError, OSError, MemoryError):
            raise
        except Exception as error:
            if len(batch) > 1 and memory_ran_out(error):
                size = (len(batch) + 1) // 2
                if shard is not None:
                    shard.provenance[FITS] = size
                continue
            answered = []
        start += len(batch)
        if answered:
            yield from answered
            continue
        for item in batch:
            try:
                (answer,) = call([item])
            except (C2VLError, OSError, MemoryError):
                raise
            except Exception as error:
                yield item, error
            else:
                yield item, answer
