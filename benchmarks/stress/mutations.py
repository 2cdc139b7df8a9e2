"""What `fuzz_folders` does to the files of a work or run folder: bytes, values, tables, arrays, links, other kinds of file."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from c2vl_manifests.manifest import fingerprint

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202eright\u2066\x7f\x9b1m\r\x08"
DEEP, HUGE = "@deep@", "@huge@"
"""Stand for what JSON can say and Python's writer cannot: 100,000 lists in each other, and 1e999."""

VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**18, 10**400, -(10**9), 0.5, float("nan"), HUGE, DEEP, "", "\0", "x" * 300,
    "y" * 1_000_000, ESCAPES, "\ud800", "..", "../../../canary/file", "/etc/passwd", "~", "%s{0}", "a/b", "two\nlines",
    [], {}, [None], [[]], {"": None}, list(range(3000)), {"a": {"b": DEEP}},
)  # fmt: skip
TYPES = (pa.string(), pa.int8(), pa.int64(), pa.float16(), pa.float64(), pa.binary(), pa.bool_(), pa.null(), pa.list_(pa.int64()), pa.timestamp("ns"), pa.decimal128(38, 2), pa.dictionary(pa.int32(), pa.string()), pa.struct({"a": pa.int8()}))  # fmt: skip
DTYPES = ("?", "i1", "u8", "i8", "f2", "f8", ">f4", "c8", "U7", "S3", "M8[s]", "V3", "O", [("a", "f4"), ("b", "i8")])
SHAPES: tuple[Any, ...] = ((), (0,), (1,), (10**9, 25, 3), (2**62, 4), (-1,), (3, 0), (1,) * 40, (1.5,), "x", (True,))

WORDS = ("", "-1", "0", "999999999999", "1e999", "nan", "1e-400", "true", "[]", "{}", '""', '"x"', "[" * 100_000, "{a=" * 50_000, "9" * 5000, f'"{ESCAPES}"', '"\\u001b[2J"', '"\\u0000"', "1979-05-27", "'..'", '"/etc/passwd"', "[[1]]", "0x7fffffffffffffffffff")  # fmt: skip

# --------------------------------------------------------------------------------------------------- bytes


def _bytes(path: Path, rng: random.Random) -> str:
    """Change the bytes of a file without regard to its form."""
    data = bytearray(path.read_bytes())
    size, at = len(data), rng.randrange(len(data) + 1)
    some = rng.randrange(1, 40)

    def flipped() -> bytearray:
        for _ in range(some if data else 0):
            data[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return data

    makers: dict[str, Callable[[], bytes | bytearray]] = {
        "truncated": lambda: data[:at],
        "emptied": lambda: b"",
        "bits flipped": flipped,
        "NULs": lambda: bytes(size),
        "random": lambda: rng.randbytes(size),
        "bytes replaced": lambda: data[:at] + rng.randbytes(some) + data[at + some :],
        "bytes inserted": lambda: data[:at] + rng.randbytes(some) + data[at:],
        "bytes removed": lambda: data[:at] + data[at + some :],
        "doubled": lambda: data + data,
        "escapes inserted": lambda: data[:at] + ESCAPES.encode() + data[at:],
        "only escapes": ESCAPES.encode,
        "deep JSON": lambda: b'{"a":' * 50_000 + b"[" * 100_000,
        "deep TOML": lambda: b"a = " + b"[" * 100_000,
        "one long line": lambda: b"9" * 1_000_000,
        "invalid UTF-8": lambda: data[:at] + b"\xff\xfe\xc0\x80" + data[at:],
    }
    what = rng.choice(list(makers))
    path.write_bytes(makers[what]())
    return f"{what} at {at} of {size}"


# ---------------------------------------------------------------------------------------------------- JSON


def _spot(value: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """Choose a (container, key) of parsed JSON, each level as often as the next."""
    if not isinstance(value, (dict, list)) or not value:
        return None
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    return (None if rng.random() < 0.4 else _spot(value[key], rng)) or (value, key)


def _changed(value: Any, rng: random.Random) -> str:
    """Change one value of parsed JSON in place."""
    spot = _spot(value, rng)
    if spot is None:
        return "nothing to change"
    container, key = spot
    what = rng.choice(("value", "value", "value", "value", "removed", "key", "copied"))
    new = rng.choice(VALUES)
    if what == "removed":
        del container[key]
    elif what == "key" and isinstance(container, dict):
        container[str(rng.choice(VALUES))[:200]] = container.pop(key)
    elif what == "copied":
        other, place = _spot(value, rng) or spot
        new = container[key] = copy.deepcopy(other[place])
    else:
        container[key] = new
    return f"{key!s:.40} {what} {new!r:.60}"


def _text(value: Any, *, indent: int | None = 1) -> bytes:
    text = json.dumps(value, indent=indent)
    text = text.replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000).replace(f'"{HUGE}"', "1e999")
    return text.encode()


def _json(path: Path, rng: random.Random) -> str:
    """Change a value of a JSON file, keep its own checksum right."""
    if path.suffix == ".jsonl":
        lines = path.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        row = json.loads(lines[at])
        said = _changed(row, rng)
        path.write_bytes(b"\n".join([*lines[:at], _text(row, indent=None), *lines[at + 1 :]]) + b"\n")
        return said
    facts = json.loads(path.read_bytes())
    check = facts.pop("check", None) if isinstance(facts, dict) else None
    said = _changed(facts, rng)
    _write(path, facts, check)
    return said


def _write(path: Path, facts: Any, check: str | None) -> None:
    if check is not None:
        try:
            read = json.loads(_text(facts))
            facts = facts | {"check": fingerprint(read)}
        except (RecursionError, ValueError):
            facts = facts | {"check": check}
    path.write_bytes(_text(facts))


def _safetensors(path: Path, rng: random.Random) -> str:
    """Change a value of the header of a safetensors file, or of the JSON in its metadata."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    inner = [key for key, text in header.get("__metadata__", {}).items() if text[:1] in "{["]
    if inner and rng.random() < 0.6:
        key = rng.choice(inner)
        facts = json.loads(header["__metadata__"][key])
        said = f"{key}: {_changed(facts, rng)}"
        header["__metadata__"][key] = _text(facts, indent=None).decode()
    else:
        said = _changed(header, rng)
    text = _text(header, indent=None)
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**63, len(text) - 1))
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])
    return said


# ---------------------------------------------------------------------------------------- tables and arrays


def _parquet(path: Path, rng: random.Random) -> str:
    """Give a table other columns, types, rows or values."""
    table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read(use_threads=False)  # no thread of this process reads
    at = rng.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    what = rng.choice(("dropped", "renamed", "cast", "cast", "value", "value", "value", "doubled", "empty", "shuffled", "added", "grown", "key"))  # fmt: skip
    said = f"{name} {what}"
    if what == "dropped":
        table = table.drop_columns([name])
    elif what == "renamed":
        table = table.rename_columns([ESCAPES if n == name else n for n in table.column_names])
    elif what in {"cast", "grown"}:
        kind = rng.choice(TYPES)
        new = pa.nulls(table.num_rows, kind)
        if what == "grown":  # a dictionary of one large value
            new = pa.array(["z" * 200_000] * table.num_rows).dictionary_encode()
        elif rng.random() < 0.6:
            try:
                new = pc.cast(column, kind, safe=False)
            except pa.ArrowException:
                said += " to nulls"
        table, said = table.set_column(at, name, new), f"{said} {kind}"
    elif what == "value":
        values = column.to_pylist()
        new = rng.choice(VALUES)
        if values:
            values[rng.randrange(len(values))] = new
        try:
            array = pa.array(values, column.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            try:
                array = pa.array([None if v is None else str(v)[:999] for v in values])
            except (pa.ArrowException, UnicodeError):
                array = pa.nulls(table.num_rows, column.type)
        table, said = table.set_column(at, name, array), f"{said} {new!r:.60}"
    elif what == "added":
        table = table.append_column(rng.choice((name, "new", "")), pa.array([0] * table.num_rows))
    elif what == "key":
        table = table.replace_schema_metadata({b"c2vl.key": rng.randbytes(8)})
    else:
        order = {"doubled": [*range(table.num_rows)] * 2, "empty": []}.get(what, rng.sample(range(table.num_rows), table.num_rows))  # fmt: skip
        table = table.take(pa.array(order, pa.int64()))
    pq.write_table(table, path, compression="zstd", row_group_size=rng.choice((1, 4, 1000)))
    return said


def _npy(path: Path, rng: random.Random) -> str:
    """Give an array another type, shape, header or value."""
    array = np.load(path, allow_pickle=True)
    what = rng.choice(("dtype", "dtype", "shape", "header", "value", "value", "rows"))
    new: Any = None
    stream = io.BytesIO()
    if what == "header":
        new = rng.choice(SHAPES)
        words = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": new}
        text = (str(words) + "\n").encode("latin1")
        stream.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes())
    else:
        if what == "dtype":
            new = rng.choice(DTYPES)
            try:
                array = array.astype(new)
            except (TypeError, ValueError):
                array = np.zeros(array.shape, new)
        elif what == "shape":
            new = rng.choice((array.T, array[:0], array.reshape(-1), array[None], array[..., None], array[..., :1]))
            array, new = new, new.shape
        elif what == "value" and array.size:
            new = rng.choice((float("nan"), float("inf"), -1, 1e30, 2**31 - 1, 0))
            with np.errstate(all="ignore"):
                array.reshape(-1)[rng.randrange(array.size)] = np.asarray(new).astype(array.dtype)
        else:
            array = array[rng.randrange(len(array)) :] if array.ndim else array
        np.save(stream, array, allow_pickle=True)
    path.write_bytes(stream.getvalue())
    return f"{what} {new!r:.60}"


def _words(path: Path, rng: random.Random) -> str:
    """Change a word of a text: a number, or what stands after `=`."""
    lines = path.read_text().split("\n")
    at = rng.choice([n for n, line in enumerate(lines) if line.strip()])
    new = rng.choice(WORDS)
    head, sign, _ = lines[at].partition("=")
    if sign:
        lines[at] = rng.choice((f"{head}= {new}", f"{new} = 1", f"{head}= [{new}, {new}]", f"{head}.a = {new}"))
    else:
        words = lines[at].split(" ")
        words[rng.randrange(len(words))] = new
        lines[at] = " ".join(words)
    path.write_bytes("\n".join(lines).encode())
    return f"line {at} {new!r:.60}"


# ------------------------------------------------------------------------------------------- kinds of file


def _kind(path: Path, rng: random.Random, canary: Path) -> str:
    """Replace a file by a link, a folder, a pipe or a socket; remove it; swap it with another."""

    def swapped() -> None:
        other = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file()) or [path])
        moved = path.with_name("moved")
        path.rename(moved)
        other.rename(path) if other != path else None
        moved.rename(other)

    def folder() -> None:
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("x")

    makers: dict[str, Callable[[], object]] = {
        "removed": lambda: None,
        "swapped": swapped,
        "link to canary": lambda: path.symlink_to(canary / "file"),
        "link to canary folder": lambda: path.symlink_to(canary),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to(canary / "absent"),
        "link to /dev/null": lambda: path.symlink_to("/dev/null"),
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "link to /": lambda: path.symlink_to("/"),
        "hard link to canary": lambda: os.link(canary / "file", path),
        "link to its folder": lambda: path.symlink_to("."),
        "folder": folder,
        "pipe": lambda: os.mkfifo(path),
        "socket": lambda: os.mknod(path, stat.S_IFSOCK | 0o600),
    }
    what = rng.choice(list(makers))
    if what != "swapped":
        path.unlink()
    makers[what]()
    return what


def _folder(path: Path, rng: random.Random) -> str:
    """Remove a folder, or put a file, a link to itself or another folder's copy in its place."""
    what = rng.choice(("removed", "file", "link to itself", "another's", "emptied"))
    others = sorted(p for p in path.parent.iterdir() if p.is_dir() and p != path)
    shutil.rmtree(path)
    if what == "file":
        path.write_text("x")
    elif what == "link to itself":
        path.symlink_to(path.name)
    elif what == "another's" and others:
        with suppress(shutil.Error):  # of a pipe
            shutil.copytree(rng.choice(others), path, symlinks=True)
    elif what == "emptied":
        path.mkdir()
    return f"folder {what}"


# -------------------------------------------------------------------------------------------------- choice

FORMS = {
    ".json": _json,
    ".jsonl": _json,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".npy": _npy,
    ".toml": _words,
    ".skeleton": _words,
    ".csv": _words,
}


def _seal(path: Path) -> None:
    """Write the true size and checksum of a changed table into its manifest, as who changed it on purpose would."""
    manifest = path.with_suffix(".json")
    if path.suffix == ".json" or not manifest.is_file():
        return
    facts = json.loads(manifest.read_bytes())
    data = path.read_bytes()
    facts["sha256"] = hashlib.sha256(data).hexdigest()
    if "bytes" in facts:
        facts["bytes"] = len(data)
        if path.suffix == ".parquet":
            facts["rows"] = pq.read_metadata(path).num_rows
    _write(manifest, facts, facts.pop("check", None))


def mutate(folder: Path, canary: Path, rng: random.Random) -> str:
    """Change one thing below a folder; returns what was done, in words."""
    files = sorted(path for path in folder.rglob("*") if not path.is_symlink())
    if not files:
        return "nothing left to change"
    path = rng.choice(files)
    name = path.relative_to(folder)
    if path.is_dir():
        return f"{name}: {_folder(path, rng)}"
    if not path.is_file() or path.stat().st_nlink > 1:
        return f"{name}: already something else"
    if rng.random() < 0.25:
        return f"{name}: {_kind(path, rng, canary)}"
    form = FORMS.get(path.suffix)
    if form is None or not path.stat().st_size or rng.random() < 0.2:
        said = _bytes(path, rng)
    else:
        try:
            said = form(path, rng)
        except (ValueError, KeyError, pa.ArrowException, RecursionError):  # damaged already: the second fault of two
            said = _bytes(path, rng)
    if rng.random() < 0.7:
        try:
            _seal(path)
            said += ", sealed" if path.suffix != ".json" else ""
        except (ValueError, TypeError, OSError, RecursionError, pa.ArrowException):
            said += ", not to be sealed"
    return f"{name}: {said}"
