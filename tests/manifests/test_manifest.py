"""The commit protocol: what counts as finished after kills, damage and full disks, and what digests mean."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c2vl_manifests import manifest as protocol
from c2vl_manifests.errors import DataError
from c2vl_manifests.manifest import (
    KEY_FIELD,
    StageManifest,
    canonical,
    commit_file,
    commit_table,
    commit_text,
    digest,
    file_sha256,
    fingerprint,
    finished_shard,
    read_shard_manifest,
    read_stage_manifest,
    write_stage_manifest,
)
from c2vl_manifests.schema import CAPTIONS, CROPS, SAMPLES, SKELETONS, embeddings


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test may catch it and go on."""


def value(field: pa.Field, rng: np.random.Generator) -> Any:  # noqa: PLR0911
    kind, size = field.type, int(rng.integers(4))
    if field.nullable and rng.random() < 0.3:
        return None
    if pa.types.is_map(kind):
        return [("a", "b")] * size
    if pa.types.is_fixed_size_list(kind):
        return list(rng.random(kind.list_size).astype(np.float16))
    if pa.types.is_list(kind):
        return [1] * size
    if pa.types.is_boolean(kind):
        return bool(size % 2)
    if pa.types.is_integer(kind):
        return size
    if pa.types.is_floating(kind):
        return float(np.float32(rng.random()))
    return b"q" * size if kind in {pa.binary(), pa.large_binary()} else "x" * size


def rows_of(schema: pa.Schema, count: int = 37) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{f.name: value(f, rng) for f in schema} for _ in range(count)]


SCHEMAS = {
    "samples": SAMPLES,
    "skeletons": SKELETONS,
    "crops": CROPS,
    "captions": CAPTIONS,
    "embeddings": embeddings(4, 3),
}


@pytest.fixture
def table() -> pa.Table:
    return pa.Table.from_pylist(rows_of(CAPTIONS), schema=CAPTIONS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "captions" / "shard-00000.parquet"


def hidden(folder: Path) -> list[str]:
    return [f.name for f in folder.rglob("*") if f.name.startswith(".")]


# --------------------------------------------------------------------------------------------- commits


def test_a_committed_shard_is_finished_and_its_manifest_tells_the_truth(path: Path, table: pa.Table) -> None:
    made = commit_table(path, table, key="k", row_group=8, seconds=1.23456, extra={"a": 1})
    assert finished_shard(path, "k") == made == read_shard_manifest(path)
    assert (made.rows, made.bytes, made.sha256) == (37, path.stat().st_size, file_sha256(path))
    assert sum(made.statuses.values()) == 37
    assert (made.file, made.digest, made.seconds, made.extra) == (path.name, digest(table), 1.235, {"a": 1})
    assert pq.read_table(path).equals(table)
    assert pq.read_schema(path).metadata[KEY_FIELD] == b"k"
    assert pq.read_metadata(path).row_group(0).num_rows == 8
    assert hidden(path.parent) == []


def test_data_whose_manifest_was_never_written_is_an_orphan(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(protocol, "commit_text", killed)
    with pytest.raises(Killed):
        commit_table(path, table, key="k", row_group=8)
    assert path.is_file()
    assert finished_shard(path, "k") is None
    monkeypatch.undo()
    commit_table(path, table, key="k", row_group=8)
    assert finished_shard(path, "k") is not None


def test_new_data_under_an_old_manifest_is_not_finished_for_either_key(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_table(path, table, key="old", row_group=8)

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(protocol, "commit_text", killed)
    with pytest.raises(Killed):
        commit_table(path, table, key="new", row_group=8)
    assert finished_shard(path, "old") is None
    assert finished_shard(path, "new") is None


def test_a_manifest_without_data_or_under_another_key_is_not_finished(path: Path, table: pa.Table) -> None:
    commit_table(path, table, key="k", row_group=8)
    assert finished_shard(path, "other") is None
    path.unlink()
    assert finished_shard(path, "k") is None


@pytest.mark.parametrize("keep", [0, 3, 200, -1])
def test_a_truncated_shard_is_not_finished(path: Path, table: pa.Table, keep: int) -> None:
    commit_table(path, table, key="k", row_group=8)
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    assert finished_shard(path, "k") is None


def test_a_shard_with_more_bytes_than_committed_is_not_finished(path: Path, table: pa.Table) -> None:
    commit_table(path, table, key="k", row_group=8)
    path.write_bytes(b"PAR1" + path.read_bytes())
    assert finished_shard(path, "k") is None


def test_a_damaged_footer_of_the_right_size_is_not_finished(path: Path, table: pa.Table) -> None:
    commit_table(path, table, key="k", row_group=8)
    data = bytearray(path.read_bytes())
    footer = 8 + int.from_bytes(data[-8:-4], "little")
    data[-footer : 64 - footer] = bytes(64)
    path.write_bytes(data)
    assert finished_shard(path, "k") is None


def test_a_footer_with_other_rows_or_another_key_is_not_finished(path: Path, table: pa.Table) -> None:
    made = commit_table(path, table, key="k", row_group=8)
    for change in ({"rows": 36}, {"bytes": made.bytes + 1}):
        commit_text(path.with_suffix(".json"), made.model_copy(update=change).model_dump_json())
        assert finished_shard(path, "k") is None, change
    # a manifest whose key was edited does not vouch for data written under another one
    commit_text(path.with_suffix(".json"), made.model_copy(update={"key": "z"}).model_dump_json())
    assert finished_shard(path, "z") is None
    foreign = table.replace_schema_metadata({KEY_FIELD: b"\xff"})
    pq.write_table(foreign, path)
    commit_text(path.with_suffix(".json"), made.model_copy(update={"bytes": path.stat().st_size}).model_dump_json())
    assert protocol.footer_problem(path, "k", made.rows) == "written under another configuration"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"file": "x"}', "\x00\x01"])
def test_a_damaged_shard_manifest_means_not_finished(path: Path, table: pa.Table, text: str) -> None:
    commit_table(path, table, key="k", row_group=8)
    path.with_suffix(".json").write_text(text)
    assert read_shard_manifest(path) is None
    assert finished_shard(path, "k") is None


@pytest.mark.parametrize("rows", [-1, protocol.MOST_ROWS + 1, 2**63])
def test_a_manifest_of_impossible_rows_is_damaged_although_its_checksum_fits(
    path: Path, table: pa.Table, rows: int
) -> None:
    protocol.commit_table(path, table, key="k", row_group=4)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert protocol.read_shard_manifest(path) is not None
    facts = {name: value for name, value in facts.items() if name != protocol._CHECK} | {"rows": rows}
    path.with_suffix(".json").write_text(json.dumps(facts | {protocol._CHECK: protocol.fingerprint(facts)}))
    assert protocol.read_shard_manifest(path) is None


def test_a_shard_of_no_rows_can_be_committed(path: Path) -> None:
    made = commit_table(path, CAPTIONS.empty_table(), key="k", row_group=8)
    assert (made.rows, made.statuses) == (0, {})
    assert finished_shard(path, "k") == made


# ------------------------------------------------------------------------------------- temporary files


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), ValueError("bug"), Killed()])
def test_an_exception_while_writing_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, error: BaseException
) -> None:
    target = tmp_path / "file"
    commit_text(target, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        commit_file(target, write)
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_refused_check_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    commit_text(target, "old")
    seen = []

    def check(temporary: Path) -> None:
        seen.append(temporary.read_text())
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"):
        commit_file(target, lambda temporary: temporary.write_text("new") and None, check)
    assert seen == ["new"]
    assert target.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_temporary_file_is_hidden_and_lies_beside_its_target(tmp_path: Path) -> None:
    seen: list[Path] = []

    def write(temporary: Path) -> None:
        seen.append(temporary)
        temporary.write_text("x")

    commit_file(tmp_path / "deep" / "file", write)
    assert seen[0].parent == tmp_path / "deep"
    assert seen[0].name.startswith(".file.")
    assert seen[0].suffix == ".tmp"


def test_a_full_disk_leaves_the_finished_shard_as_it_was(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit_table(path, table, key="k", row_group=8)

    def full(_: pa.Table, where: Path, **__: object) -> None:
        where.write_bytes(b"PAR1 half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("c2vl_manifests.manifest.pq.write_table", full)
    with pytest.raises(OSError, match="No space left") as caught:
        commit_table(path, table.slice(3), key="new", row_group=8)
    assert caught.value.errno == errno.ENOSPC
    assert finished_shard(path, "k") == old
    assert pq.read_table(path).equals(table)
    assert hidden(path.parent) == []


def test_a_file_that_cannot_be_read_back_is_never_put_in_place(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = pq.write_table

    def lossy(data: pa.Table, where: Path, **options: Any) -> None:
        write(data.slice(1), where, **options)

    monkeypatch.setattr("c2vl_manifests.manifest.pq.write_table", lossy)
    with pytest.raises(OSError, match=r"written but unreadable \(36 rows, expected 37\); check the disk"):
        commit_table(path, table, key="k", row_group=8)
    assert list(path.parent.iterdir()) == []


def test_the_file_is_synced_before_it_is_put_in_place_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        events.append("folder" if Path(name) == tmp_path else "file")
        sync(handle)

    def moved(self: Path, target: Path) -> Path:
        events.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", moved)
    commit_text(tmp_path / "file", "x")
    assert events == ["file", "replace", "folder"]


# ------------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_or_rename_over_a_file_serves(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lacks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    commit_text(path.with_name("a.json"), "old")
    monkeypatch.setattr(os, "fsync", lacks)
    monkeypatch.setattr(Path, "replace", lacks)
    commit_text(path.with_name("a.json"), "new")
    commit_table(path, table, key="k", row_group=2)
    monkeypatch.undo()
    assert path.with_name("a.json").read_text() == "new"
    assert finished_shard(path, "k") is not None
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("renames", [True, False])
@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_link_is_replaced_and_its_target_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: bool, link: str
) -> None:
    def lacks(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    target, path = tmp_path / "of others", tmp_path / "a.json"
    target.write_text("theirs")
    getattr(path, link)(target)
    if not renames:
        monkeypatch.setattr(Path, "replace", lacks)
    commit_text(path, "ours")
    assert (path.read_text(), path.is_symlink(), target.read_text()) == ("ours", False, "theirs")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "write", "replace"])
def test_any_other_refusal_names_the_file_that_was_to_be(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(
        *{"fsync": (os, "fsync"), "write": (Path, "write_bytes"), "replace": (Path, "replace")}[call], refuse
    )
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        commit_text(path, "new")
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EACCES])
@pytest.mark.parametrize("target", [(protocol, "read_json"), (pq, "read_metadata")], ids=["manifest", "footer"])
def test_a_shard_that_cannot_be_reached_is_not_made_again(
    path: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch, number: int, target: tuple[Any, str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    commit_table(path, table, key="k", row_group=2)
    monkeypatch.setattr(*target, refuse)
    with pytest.raises(OSError, match=os.strerror(number)):
        finished_shard(path, "k")


def test_pages_carry_checksums_that_catch_a_hole_in_the_data(path: Path) -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    table = pa.table({"status": ["ok"], "jpeg": pa.array([noise])})
    commit_table(path, table, key="k", row_group=8)
    column = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    at = column.data_page_offset + column.total_compressed_size // 2
    data[at : at + 64] = bytes(64)
    path.write_bytes(data)
    # the hole lies in stored bytes: sizes and footer are as before, and only the checksum tells
    with pytest.raises(OSError, match="CRC checksum"):
        pq.read_table(path, page_checksum_verification=True)


# --------------------------------------------------------------------------------------------- digests


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_digest_does_not_depend_on_chunks_or_slices(name: str) -> None:
    schema = SCHEMAS[name]
    rows = rows_of(schema)
    whole = pa.Table.from_pylist(rows, schema=schema)
    pieces = [pa.Table.from_pylist(part, schema=schema) for part in (rows[:5], rows[5:6], rows[6:])]
    assert digest(pa.concat_tables(pieces)) == digest(whole)
    assert digest(pa.concat_tables([whole.slice(0, 5), whole.slice(5)])) == digest(whole)
    for start, count in ((0, 13), (3, 30), (8, 1)):
        fresh = pa.Table.from_pylist(rows[start : start + count], schema=schema)
        assert digest(whole.slice(start, count)) == digest(fresh)


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_digest_does_not_depend_on_what_wrote_the_file(name: str, compression: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows_of(SCHEMAS[name]), schema=SCHEMAS[name])
    pq.write_table(
        table.replace_schema_metadata({b"who": b"me"}),
        tmp_path / "file",
        compression=compression,
        row_group_size=7,
        use_dictionary=compression == "zstd",
    )
    assert digest(pq.read_table(tmp_path / "file")) == digest(table)


def test_a_digest_of_many_rows_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_DIGEST_ROWS", 8)
    whole = pa.Table.from_pylist(rows_of(CROPS), schema=CROPS)
    assert digest(pa.concat_tables([whole.slice(0, 11), whole.slice(11)])) == digest(whole)
    assert digest(whole.slice(0, 36)) != digest(whole)


def test_attempts_do_not_change_a_digest(table: pa.Table) -> None:
    at = table.schema.get_field_index("attempts")
    again = table.set_column(at, table.schema.field(at), pa.array([7] * 37, pa.int16()))
    assert not again.equals(table)
    assert digest(again) == digest(table)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_digest_changes_with_any_value_of_any_other_column(name: str) -> None:
    schema = SCHEMAS[name]
    rows = rows_of(schema, 9)
    seen = {digest(pa.Table.from_pylist(rows, schema=schema))}
    changed = 0
    for field in schema:
        if field.name == "attempts":
            continue
        rng = np.random.default_rng(5)
        other = next(v for _ in range(99) if (v := value(field, rng)) != rows[4][field.name])
        row = rows[4] | {field.name: other}
        seen.add(digest(pa.Table.from_pylist([*rows[:4], row, *rows[5:]], schema=schema)))
        changed += 1
    assert len(seen) == changed + 1


def test_a_digest_changes_with_the_order_of_rows_and_the_type_of_a_column() -> None:
    assert digest(pa.table({"a": [1, 2]})) != digest(pa.table({"a": [2, 1]}))
    assert digest(pa.table({"a": pa.array([], pa.int32())})) != digest(pa.table({"a": pa.array([], pa.int64())}))


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": (1, 2)}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert canonical({"b": "é", "a": None}) == '{"a":null,"b":"\\u00e9"}'


# ------------------------------------------------------------------------------------- stage manifests


def test_a_stage_manifest_is_read_back_and_a_damaged_one_says_what_to_do(tmp_path: Path) -> None:
    assert read_stage_manifest(tmp_path) is None
    made = StageManifest(stage="crops", key="k", inputs={"a": 1}, shards=2, expected_rows=8)
    write_stage_manifest(tmp_path, made)
    assert read_stage_manifest(tmp_path) == made
    (tmp_path / "stage.json").write_text("{")
    with pytest.raises(DataError) as caught:
        read_stage_manifest(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'stage.json'}: damaged stage manifest (")
    assert str(caught.value).endswith("); delete it and run the stage again")
    assert "\n" not in str(caught.value)


def test_a_manifest_with_unknown_facts_is_not_trusted(path: Path, table: pa.Table) -> None:
    made = commit_table(path, table, key="k", row_group=8)
    assert read_shard_manifest(path) == made
    text = path.with_suffix(".json").read_text().replace('"key"', '"kye"')
    path.with_suffix(".json").write_text(text)
    assert read_shard_manifest(path) is None
