"""Commit protocol: how a shard becomes durable, and how a later run knows that it is.

1. the table is written to a hidden temporary file in the same folder, with page checksums;
2. it is synced, reopened and checked (rows, schema, stage key in its footer);
3. `os.replace` puts it in place and the folder is synced;
4. the shard's manifest (sha256, bytes, rows, status counts, key) is written the same way.

**The manifest is the commit**: data without one is an orphan and is made again. A shard counts as done only if
its manifest carries the key that this run would give it, so a changed recipe never reuses stale rows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from c2vl_manifests.errors import NO_SUCH_CALL, DataError, naming, one_line, passing
from c2vl_manifests.files import regular
from c2vl_manifests.reading import read_bytes, read_json
from c2vl_manifests.schema import COLUMNS, misfit
from c2vl_manifests.tables import read_table

KEY_FIELD = b"c2vl.key"
_VOLATILE = frozenset({"attempts"})
"""Columns that may differ between two runs that made the same rows."""
_CHECK = "check"
"""Entry of a shard's manifest file: fingerprint of all others, so that one flipped bit is noticed."""
_DIGEST_ROWS = 512
"""Rows hashed at once: bounds the copy that a digest makes."""


MOST_ROWS = 1 << 26
"""Rows of a shard, or of an index. NTU RGB+D 120 has 114,480 samples, and shards have thousands of rows."""


class ShardManifest(BaseModel):
    """The commit of one shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    key: str
    """Hash of all that determined the rows: see `fingerprint`."""
    rows: int = Field(ge=0, le=MOST_ROWS)
    bytes: int = Field(ge=0)
    sha256: str
    digest: str
    """Hash of the rows: equal for equal rows, independent of chunks and compression."""
    statuses: dict[str, int]
    seconds: float = 0.0
    extra: dict[str, Any] = Field(default_factory=dict)


class StageManifest(BaseModel):
    """A whole stage: what made it and what it holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    inputs: dict[str, Any]
    """Everything hashed into `key`: resolved configuration, engine, layout, schema version. Digests of earlier stages are part of each shard's key."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """The engine as loaded (revision of the weights as requested and as resolved) and the versions of libraries."""
    shards: int
    expected_rows: int
    complete: bool = False
    rows: int = 0
    statuses: dict[str, int] = Field(default_factory=dict)
    digest: str = ""
    seconds: float = 0.0
    upstream: dict[str, str] = Field(default_factory=dict)
    """Digests of the earlier stages that a complete stage was made from."""
    seal: str = ""
    """Of a complete stage that did not fail as a whole, hash of the index, `upstream`, and names, sizes and times of its files:
    equal while nobody touched them."""


def canonical(value: Any) -> str:
    """Return JSON in one fixed form, which fingerprints hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def fingerprint(value: Any) -> str:
    """Return the first 32 hex digits of the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:32]


def sync(handle: int) -> None:
    """Make durable what was written to an open file or folder, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL | {errno.EBADF, errno.EISDIR}:
            raise


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL | {errno.EACCES, errno.EPERM, errno.EISDIR}:
            raise
        return  # it may be written and not opened
    try:
        sync(handle)
    finally:
        os.close(handle)


def commit_file(path: Path, write: Callable[[Path], object], check: Callable[[Path], None] | None = None) -> None:
    """Write a file so that it is either complete or absent.

    `write` fills a hidden temporary path that nobody can foresee, `check` may reject it by raising. A link at `path`
    is replaced, not followed. OSError (a full disk) names `path` and is raised after the temporary file is removed.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.tmp"
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path, temporary):
        try:
            write(temporary)
            with temporary.open("rb") as handle:
                sync(handle.fileno())
            if check is not None:
                check(temporary)
            _put(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # on a disk that fails; the first error counts
                temporary.unlink(missing_ok=True)
            raise


def _put(temporary: Path, path: Path) -> None:
    """Rename a file over another; copy it where the file system cannot: a manifest tells if half a copy was made."""
    try:
        temporary.replace(path)
    except OSError as error:
        if error.errno not in NO_SUCH_CALL | {errno.EXDEV, errno.EEXIST}:
            raise
        path.unlink(missing_ok=True)  # a link would lead the copy elsewhere
        with temporary.open("rb") as source, path.open("xb") as target:
            shutil.copyfileobj(source, target)
        temporary.unlink()


def commit_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably."""
    commit_file(path, lambda temporary: temporary.write_bytes(data))


def commit_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically and durably."""
    commit_bytes(path, text.encode())


def digest(table: pa.Table) -> str:
    """Return a hash of a table's rows that does not depend on chunks, compression or who wrote them."""
    columns = [name for name in table.column_names if name not in _VOLATILE]
    plain = table.select(columns).replace_schema_metadata(None)
    sink = hashlib.sha256()
    for start in range(0, plain.num_rows, _DIGEST_ROWS):
        part = plain.slice(start, _DIGEST_ROWS)
        # `take` writes fresh buffers; a slice keeps the bits of its neighbours in its last byte of nulls
        for batch in part.take(pa.array(range(part.num_rows))).combine_chunks().to_batches():
            sink.update(batch.serialize())
    # Parquet renames the inner fields of lists and maps
    types = [f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in plain.schema]
    sink.update(re.sub(r"list<element: ", "list<item: ", re.sub(r" \('\w+'\)", "", "\n".join(types))).encode())
    return sink.hexdigest()[:32]


def file_sha256(path: Path) -> str:
    """Hash a file without loading it whole."""
    with open(path, "rb", opener=regular) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def commit_table(
    path: Path,
    table: pa.Table,
    *,
    key: str,
    row_group: int,
    seconds: float = 0.0,
    byte_stream_split: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> ShardManifest:
    """Write one shard and its manifest by the commit protocol and return the manifest.

    Args:
        path: `<stage>/shard-00000.parquet`; the manifest is stored next to it as `.json`.
        table: all rows of the shard.
        key: what a later run must present to reuse the shard; also written into the footer.
        row_group: rows per row group (small for images, thousands for vectors).
        seconds: time spent, for the report.
        byte_stream_split: float columns that compress better split by byte.
        extra: further facts for the manifest.
    """
    stamped = table.replace_schema_metadata({KEY_FIELD: key.encode()})

    def write(temporary: Path) -> None:
        pq.write_table(
            stamped,
            temporary,
            row_group_size=row_group,
            compression="zstd",
            compression_level=1,
            use_dictionary=[c for c in table.column_names if c in {"status", "error_class", "caption", "sample_id"}],
            column_encoding=dict.fromkeys((f"{c}.list.element" for c in byte_stream_split), "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
            dictionary_pagesize_limit=64 << 20,
        )

    def check(temporary: Path) -> None:
        problem = footer_problem(temporary, key, table.num_rows, table.schema)
        if problem:
            raise OSError(f"{path}: written but unreadable ({problem}); check the disk and run the stage again")

    commit_file(path, write, check)
    statuses = table.column("status").to_pylist() if "status" in table.column_names else []
    manifest = ShardManifest(
        file=path.name,
        key=key,
        rows=table.num_rows,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        digest=digest(table),
        statuses=dict(sorted(Counter(statuses).items())),
        seconds=round(seconds, 3),
        extra=dict(extra or {}),
    )
    commit_shard_manifest(path, manifest)
    return manifest


def commit_shard_manifest(path: Path, manifest: ShardManifest) -> None:
    """Write the manifest of a shard beside it: from now on the shard is finished."""
    facts = json.loads(manifest.model_dump_json())
    text = json.dumps(facts | {_CHECK: fingerprint(facts)}, indent=1)
    commit_text(path.with_suffix(".json"), text + "\n")


def footer_problem(path: Path, key: str, rows: int, schema: pa.Schema | None = None) -> str | None:
    """Return what is wrong with a shard's footer, or None: cheap enough for every shard at every start."""
    try:
        with naming(path):
            metadata = pq.read_metadata(path)
        written = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        if passing(error):
            raise
        return one_line(error)
    if metadata.num_rows != rows:
        return f"{metadata.num_rows} rows, expected {rows}"
    if (written.metadata or {}).get(KEY_FIELD, b"").decode("utf-8", "replace") != key:
        return "written under another configuration"
    if schema is not None and not written.remove_metadata().equals(schema.remove_metadata()):
        return "another schema"
    return None


def read_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard with its page checksums verified.

    Raises:
        DataError: it is absent or damaged, even by one bit.
        OSError: it cannot be reached now.
    """
    try:
        with naming(path):
            table = read_table(path, columns)
    except (OSError, pa.ArrowException) as error:
        if passing(error):
            raise
        first = one_line(error)
        raise DataError(f"{path}: damaged or absent ({first}); delete it and run its stage again") from error
    if problem := misfit(table, COLUMNS.get(path.parent.name, ()) if columns is None else columns):
        raise DataError(f"{path}: {problem}; delete it and run its stage again")
    return table


def read_shard_manifest(path: Path) -> ShardManifest | None:
    """Read the manifest of a shard; None if it is absent or damaged (the shard is then made again).

    Raises:
        OSError: it cannot be reached now.
    """
    try:
        facts = read_json(path.with_suffix(".json"))
        check = facts.pop(_CHECK, None) if isinstance(facts, dict) else None
        manifest = ShardManifest.model_validate(facts)
    except (OSError, ValueError) as error:  # pydantic's and json's errors are ValueErrors
        if passing(error):
            raise
        return None
    return manifest if check == fingerprint(facts) else None


def finished_shard(path: Path, key: str) -> ShardManifest | None:
    """Return the manifest of a shard that is committed under `key` and whose file is whole, else None."""
    manifest = finished_file(path, key)
    return manifest if manifest and footer_problem(path, key, manifest.rows) is None else None


def finished_file(path: Path, key: str) -> ShardManifest | None:
    """Return the manifest of a file, Parquet or not, that is committed under `key` and has all its bytes, else None."""
    manifest = read_shard_manifest(path)
    if manifest is None or manifest.key != key:
        return None
    try:
        return manifest if path.stat().st_size == manifest.bytes else None
    except FileNotFoundError:
        return None


def first_error(error: ValueError | OSError) -> str:
    """Return one line on where and how a file first differs from its form: `rows.0.knn: Input should be …`."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if not isinstance(error, ValidationError):
        return one_line(error)
    first = error.errors(include_url=False)[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"]
    return " ".join((f"{place}: {message}" if place else message).split())[:160]


def read_stage_manifest(folder: Path) -> StageManifest | None:
    """Read `stage.json` of a stage folder; None if it does not exist.

    Raises:
        DataError: it is damaged.
    """
    path = folder / "stage.json"
    if not path.is_file():
        return None
    try:
        return StageManifest.model_validate_json(read_bytes(path))
    except (ValueError, OSError) as error:
        if passing(error):
            raise
        raise DataError(
            f"{path}: damaged stage manifest ({first_error(error)}); delete it and run the stage again"
        ) from error


def write_stage_manifest(folder: Path, manifest: StageManifest) -> None:
    """Commit `stage.json`."""
    commit_text(folder / "stage.json", manifest.model_dump_json(indent=1) + "\n")
