"""What a stage is: a function from a shard of samples to a table, with one row for everything expected.

The stages themselves are one module each; `runner` decides which of their shards are still to make and `workers`
where. What they share lies here: the shard they are given, the status columns of a row, batched calls of an engine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from c2vl_manifests.engine import EngineSpec
from c2vl_manifests.errors import C2VLError, DataError
from c2vl_manifests.events import Emit
from c2vl_manifests.manifest import read_shard
from c2vl_manifests.recipe import Recipe
from c2vl_manifests.schema import Status
from c2vl_pipeline import engines
from c2vl_pipeline.workspace import COMMANDS, Index, shard_path

MAX_ERROR = 300
"""Characters of an error text that a row keeps."""


@dataclass(frozen=True)
class Stage:
    """One step of the road: `process` makes a shard's table; `upstream(recipe)` are the stages whose shards it reads."""

    name: str
    command: str
    process: Callable[[Shard], pa.Table]
    upstream: Callable[[Recipe], tuple[str, ...]]
    row_group: int
    per_frame: bool = False
    """A row for each (sample, frame) rather than each sample."""
    engine: Callable[[Recipe, Index], EngineSpec] | None = None
    byte_stream_split: tuple[str, ...] = ()
    reads_joints: bool = False
    """Whether the names and order of the joints matter to it."""
    raw: Literal["video", "skeleton"] | None = None
    """The raw files it reads: their hashes go into the manifests of its shards."""
    backgrounds: Callable[[EngineSpec, Index], Mapping[str, str]] | None = None
    """Camera -> what the rows of its samples are made of beside their own files; part of the shards' keys."""
    prepare: Callable[[Index, Recipe, EngineSpec, int, Emit], None] | None = None
    """Makes what `backgrounds` names, before the shards, in so many processes (0: in this one)."""


@dataclass(frozen=True)
class Shard:
    """What a stage's `process` is given: some or all samples of one shard."""

    index: Index
    recipe: Recipe
    number: int
    spec: EngineSpec | None = None
    folder: Path = field(default=Path())
    key: str = ""
    only: frozenset[str] | None = None
    """Sample ids to make rows of; None is the whole shard."""
    killable: bool = False
    """Whether this process may be killed when a file hangs: true in workers, which are started again."""

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Rows of the index."""
        rows = self.index.shard(self.number)
        return rows if self.only is None else [row for row in rows if row["sample_id"] in self.only]

    @cached_property
    def engine(self) -> Any:
        """The stage's engine, loaded once a process."""
        assert self.spec is not None
        return engines.load(self.spec)

    def upstream(self, stage: str) -> pa.Table:
        """Read the rows of these samples from the same shard of an earlier stage."""
        table = read_shard(shard_path(self.index.work, stage, self.number))
        if self.only is None:
            return table
        return table.filter(pc.is_in(table.column("sample_id"), pa.array(sorted(self.only), pa.string())))


def stages() -> list[Stage]:
    """Return the four sharded stages in the order of the road."""
    return [importlib.import_module(f"c2vl_pipeline.stages.{command}").STAGE for command in COMMANDS.values()]


def hang_mark(folder: Path, number: int) -> Path:
    """Where a worker that kills itself over a hanging file says which samples it was at."""
    return folder / f".shard-{number:05d}.hang"


def row_status(
    status: Status, error_class: str | None = None, error: str | None = None, attempts: int = 1
) -> dict[str, Any]:
    """Return the status columns of a row."""
    return {"status": str(status), "error_class": error_class, "error": error, "attempts": attempts}


def failure(error: BaseException, status: Status = Status.FAILED, attempts: int = 1) -> dict[str, Any]:
    """Return the status columns of a row that an exception befell."""
    return row_status(status, type(error).__name__, str(error)[:MAX_ERROR], attempts)


def unreadable(error: DataError | OSError, missing: Status) -> dict[str, Any]:
    """Return the status columns of rows whose raw file cannot be read: `missing` where it is not there at all."""
    return failure(error, missing if isinstance(error, FileNotFoundError) else Status.DECODE_ERROR)


def blank_rows(
    schema: pa.Schema, sample_id: str, slots: int | None, status: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return rows of a sample that no worker survives: null, zero or empty everywhere but in key and status.

    Args:
        schema: of the stage's table.
        sample_id: of the sample.
        slots: rows a sample, or None for a stage with one row a sample and no slot.
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
    items: list[Any], size: int, call: Callable[[list[Any]], list[Any]]
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result or exception) of a batched engine call, isolating the items that break it.

    A batch that raises is tried again one item at a time, so a poisonous row costs one row. Our own errors, a
    full disk and exhausted memory are not about one row and pass through.
    """
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        try:
            answered = list(zip(batch, call(batch), strict=True))
        except (C2VLError, OSError, MemoryError):
            raise
        except Exception:
            answered = []
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
