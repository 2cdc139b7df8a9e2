"""Files made to exhaust memory: each is refused by one line, in a process that may use little memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from c2vl_manifests import reading, tables
from c2vl_manifests.reading import TooLargeError
from support import ROOT

MOST_MB = 1900
"""Resident memory at the end, with torch, OpenCV and pyarrow loaded: the bound of a table is 1 GB."""


def outcome(code: str, *paths: Path, space_gb: int = 12) -> str:
    """Run code on paths in a process of limited address space; return its last line, of an error, and check its memory."""
    program = dedent(
        f"""
        import resource, sys
        from pathlib import Path
        resource.setrlimit(resource.RLIMIT_AS, ({space_gb} << 30,) * 2)
        a, *_ = map(Path, sys.argv[1:])
        try:
            {code}
            print("read")
        except Exception as error:
            print(type(error).__name__ + ": " + str(error))
        # of this program alone: ru_maxrss begins with the memory of the process that started it
        used = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) >> 10
        assert used < {MOST_MB}, f"{{used}} MB"
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("\n") == 1, found.stdout
    return found.stdout.strip()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


ARRAY = (
    "from c2vl_pipeline.readers.arrays import read_array; from c2vl_manifests.layouts import KINECT_V2; "
    "read_array(a, KINECT_V2, 2)"
)


# --------------------------------------------------------------------------------------------- arrays


def test_an_hour_of_two_people_is_within_the_bound():
    assert reading.MOST_UNPACKED > 3600 * 60 * 2 * 133 * 3 * 8


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "?", "<c8", "<U3"])
def test_arrays_are_those_that_numpy_reads(tmp_path: Path, dtype: str, turned: bool):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = np.asfortranarray(array) if turned else array
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, b=np.float32(3), c=np.zeros((0, 5)))
    found = reading.read_arrays(tmp_path / "a.npz")
    assert set(found) == {"a", "b", "c"}
    for one in (reading.read_array(tmp_path / "a.npy"), found["a"]):
        assert one is not None
        np.testing.assert_array_equal(one, array)
        assert one.dtype == array.dtype
    assert (found["b"].shape, found["c"].shape) == ((), (0, 5))


def test_objects_are_not_loaded(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    assert reading.read_arrays(tmp_path / "a.npy") == {"": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header("(1000000000, 25, 3)"), "takes 300,000,000,000 bytes"),
        (header("(1000000, 25, 3)"), "cut off"),
        (header("(-1, 25, 3)") + bytes(300), "cut off"),
        (header("(2,)", "[('a', '<f4'), ('b', '<i8')]") + bytes(24), "expected numbers"),
        (header("(1,)", "'|O'") + bytes(8), "never loaded"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xf0", "a header of 4,043,309,055 bytes"),
    ],
)
def test_a_header_alone_takes_no_memory(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "a.npy").write_bytes(content)
    assert words in outcome(ARRAY, tmp_path / "a.npy", space_gb=6)


@pytest.mark.parametrize(
    "content",
    [
        header("(" + "1+" * 4400 + "1,)") + bytes(64),
        header("(" + "-" * 9000 + "1,)") + bytes(64),
        header("(100, 100)") + bytes(64),
        header("(2,)", "'|O'") + bytes(64),
        b"PK\x05\x06" + bytes(18),
        b"",
    ],
)
@pytest.mark.parametrize("read", [reading.read_array, reading.map_array])
def test_what_is_no_array_is_an_error_of_values(tmp_path: Path, content: bytes, read: Callable[[Path], object]):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read(tmp_path / "a.npy")


@pytest.mark.parametrize("turned", [False, True])
def test_mapped_arrays_are_those_that_numpy_reads(tmp_path: Path, turned: bool):
    array = np.arange(24, dtype="<f4").reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", np.asfortranarray(array) if turned else array)
    found = reading.map_array(tmp_path / "a.npy")
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    np.testing.assert_array_equal(found, array)


def repeated(head: bytes, block: bytes, times: int) -> bytes:
    """Return a deflate stream of a head and a block so many times."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = engine.compress(head) + engine.flush(zlib.Z_FULL_FLUSH)
    return start + (engine.compress(block) + engine.flush(zlib.Z_FULL_FLUSH)) * times


def archive(name: str, packed: bytes, size: int) -> bytes:
    """Return a zip of one file whose directory says this size."""
    facts = struct.pack("<HHHHHIII", 20, 0, 8, 0, 33, 0, len(packed), size)
    local = b"PK\x03\x04" + facts + struct.pack("<HH", len(name), 0) + name.encode() + packed
    entry = b"PK\x01\x02\x14\x00" + facts + struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name.encode()
    return local + entry + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local), 0)


CAPTIONS = "from c2vl_pipeline.readers.captions import read_captions; read_captions(a)"
ZEROS = bytes(1 << 24)


@pytest.mark.parametrize(
    ("size", "words"), [(4_200_000_128, "takes 4,200,000,000 bytes"), (1000, "not a numpy array, or cut off")]
)
def test_an_archive_of_zeros_is_one_row(tmp_path: Path, size: int, words: str):
    packed = repeated(header("(14000000, 25, 3)", "'<f4'"), ZEROS, 256)
    (tmp_path / "a.npz").write_bytes(archive("x.npy", packed, size))
    line = outcome(ARRAY, tmp_path / "a.npz")
    assert words in line


@pytest.mark.parametrize("size", [4_200_000_000, 1000])
def test_captions_of_gigabytes_are_one_line(tmp_path: Path, size: int):
    (tmp_path / "a.zip").write_bytes(archive("x.json", repeated(b"", ZEROS, 256), size))
    line = outcome(CAPTIONS, tmp_path / "a.zip")
    assert line.startswith("EngineError: ")
    assert ("unpacks to 4,200,000,000 bytes" in line) == (size > 1000)


def test_many_small_values_are_counted_before_they_are_made(tmp_path: Path):
    (tmp_path / "a.json").write_bytes(b"[" + b"[]," * (40 << 20) + b"[]]")
    assert "41,943,040 values; expected up to" in outcome(CAPTIONS, tmp_path / "a.json")


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matlab(*elements: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + b"".join(elements)


def matrix(kind: int, content: bytes) -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, b"d_skel")
    return element(14, head + content)


def test_a_matlab_file_unpacks_within_bounds(tmp_path: Path):
    packed = b"\x78\x9c" + repeated(struct.pack("<II", 14, 220 << 24), ZEROS, 220)
    (tmp_path / "a.mat").write_bytes(matlab(element(15, packed)))
    line = outcome("from c2vl_pipeline.readers.utd import read_utd; read_utd(a)", tmp_path / "a.mat")
    assert "unpacks to 3,690,987,520 bytes" in line


def test_nested_cells_of_matlab_are_never_entered(tmp_path: Path):
    inner = b""
    for _ in range(3000):
        inner = matrix(1, inner)
    (tmp_path / "a.mat").write_bytes(matlab(element(15, zlib.compress(inner))))
    line = outcome("from c2vl_pipeline.readers.utd import read_utd; read_utd(a)", tmp_path / "a.mat")
    assert "not a MATLAB file with d_skel" in line


@pytest.mark.parametrize("options", [{"do_compression": True}, {}])
def test_joints_beside_structures_are_read(tmp_path: Path, options: dict[str, bool]):
    from c2vl_pipeline.readers.utd import read_utd

    joints = np.random.default_rng(0).normal(size=(20, 3, 9))
    scipy.io.savemat(tmp_path / "a.mat", {"s": {"a": [1]}, "d_skel": joints, "text": "words"}, **options)
    assert read_utd(tmp_path / "a.mat").joints.shape[0] == 9


# ---------------------------------------------------------------------------------------------- Parquet


def table_of_one_value(path: Path, letters: int, rows: int, **options: object) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * letters]))
    pq.write_table(pa.table({"sample_id": column}), path, compression="zstd", store_schema=False, **options)


@pytest.mark.parametrize("groups", [1, 300])
def test_a_dictionary_of_one_long_value_is_not_written_out(tmp_path: Path, groups: int):
    table_of_one_value(tmp_path / "a.parquet", 1 << 20, 6000, row_group_size=6000 // groups)
    line = outcome("from c2vl_manifests.tables import read_table; read_table(a)", tmp_path / "a.parquet")
    assert line.startswith("ArrowInvalid: unpacks to more than 1,073,741,824 bytes")
    line = outcome(
        "from c2vl_pipeline.readers.sample_table import parse_table; parse_table(a.read_bytes(), '.parquet', 'a')",
        tmp_path / "a.parquet",
    )
    assert line == "DataError: a:1: a cell of 1,048,576 letters; expected up to 131,072"


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_values_packed_by_their_beginnings_are_refused(tmp_path: Path, version: str):
    """A page of them is decoded at once, whatever the size of a batch."""
    words = pa.table({"sample_id": ["x" * (1 << 16)] * 1000})
    options = {"use_dictionary": False, "column_encoding": {"sample_id": "DELTA_BYTE_ARRAY"}}
    pq.write_table(words, tmp_path / "a.parquet", data_page_version=version, store_schema=False, **options)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    line = outcome("from c2vl_manifests.tables import read_table; read_table(a)", tmp_path / "a.parquet")
    assert line == "ArrowInvalid: a column is packed as DELTA_BYTE_ARRAY; expected plain values or dictionaries"


def test_more_pages_than_can_be_looked_at_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(pa.table({"sample_id": [f"s{n}" for n in range(90)]}), tmp_path / "a.parquet", row_group_size=9)
    tables.read_table(tmp_path / "a.parquet")
    monkeypatch.setattr(tables, "_MOST_PAGES", 19)  # ten groups with a dictionary and a page of values each
    with pytest.raises(pa.ArrowInvalid, match="more than 19 pages"):
        tables.read_table(tmp_path / "a.parquet")


@pytest.mark.parametrize("groups", [1, 300])
def test_pages_are_believed_and_not_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: int):
    monkeypatch.setattr(tables, "MOST_UNPACKED", 1 << 20)
    path = tmp_path / "a.parquet"
    table_of_one_value(path, 2 << 20, 2 * groups, row_group_size=2)
    content, size = path.read_bytes(), pq.read_metadata(path).row_group(0).total_byte_size
    at = len(content) - 8
    start = at - int.from_bytes(content[at : at + 4], "little")
    written = _zigzag(size)
    assert content.count(written, start) == 2 * groups  # of the column and of its group
    path.write_bytes(content[:start] + content[start:].replace(written, _zigzag(1000, len(written))))
    assert pq.read_metadata(path).row_group(0).total_byte_size == 1000
    with pytest.raises(pa.ArrowInvalid, match=r"unpacks to more than 1,[01]"):
        tables.read_table(path)


def test_pages_are_looked_at_as_the_decoder_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A footer may be written so that two readers find different pages by it."""
    table_of_one_value(tmp_path / "a.parquet", 1 << 20, 6000)
    monkeypatch.setattr(tables, "_AT_ONCE", 1 << 20)
    monkeypatch.setattr(tables.Table, "_groups", [[{7: 0, 9: 4}]])  # as if there were none
    with pytest.raises(pa.ArrowInvalid, match="values are repeated to more bytes than the footer says"):
        tables.read_table(tmp_path / "a.parquet")


def test_of_an_ordinary_table_pyarrow_alone_reads_the_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(table := pa.table({"sample_id": [f"s{n}" for n in range(90)]}), tmp_path / "a.parquet")
    monkeypatch.delattr(tables.Table, "_groups")
    assert tables.read_table(tmp_path / "a.parquet").equals(table)


def _zigzag(value: int, length: int = 0) -> bytes:
    value, digits = value << 1, []
    while value or len(digits) < length:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits[:-1], digits[-1] & 127])


def test_tables_are_those_that_pyarrow_reads(tmp_path: Path):
    words = pa.array([f"{n % 7} " * 9000 for n in range(9000)])
    table = pa.table(
        {
            "sample_id": [f"s{n}" for n in range(9000)],
            "words": words,
            "map": pa.array([[("a", "b")]] * 9000, pa.map_(pa.string(), pa.string())),
            "vector": pa.array([[1.0, 2.0]] * 9000, pa.list_(pa.float16(), 2)),
        }
    )
    for size in (9000, 9):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=size, use_dictionary=["words", "sample_id"])
        assert tables.read_table(tmp_path / "a.parquet").equals(table)
        assert tables.read_table(tmp_path / "a.parquet", ["words"]).equals(table.select(["words"]))


# ------------------------------------------------------------------------------------------------ depth


@pytest.mark.parametrize("depth", [reading.MOST_DEPTH + 1, 900, 100_000])
@pytest.mark.parametrize("ends", [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_refused(depth: int, ends: tuple[str, str]):
    text = ends[0] * depth + "1" + ends[1] * depth
    with pytest.raises(ValueError, match="nested more than"):
        reading.from_json(text)


def test_json_of_usual_depth_is_read():
    value = {"a": [{"b": [1, "[[[", None]}]}
    assert reading.from_json(json.dumps(value)) == value
    assert reading.from_json(b"3") == 3


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "{a = " * 5000 + "1" + "}" * 5000,
        ".".join(["a"] * 100_000) + " = 1",
        "[" + ".".join(["a"] * 100_000) + "]",
        ".".join(['"a b"', "'c!'", r'"d\" e"', '""'] * 25_000) + " = 1",
        "a = " + "[" * 70 + "]" * 70,
    ],
)
def test_deep_toml_is_refused(text: str):
    with pytest.raises(ValueError, match="nested more than"):
        reading.from_toml(text)


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "0b" + "1_" * 50_000 + "1"])
def test_toml_holds_no_number_that_cannot_be_written(number: str):
    with pytest.raises(ValueError, match="digits"):
        reading.from_toml(f"a = {number}")


def test_text_of_many_dots_is_no_key():
    text = "a = '" + "one. two. " * 400 + "... 1.2.3'"
    assert reading.from_toml(text)["a"].startswith("one.")


@pytest.mark.parametrize("text", ["1e999", '{"a": [-1e400]}'])
def test_numbers_that_no_float_holds_are_refused(text: str):
    with pytest.raises(ValueError, match="a number beyond what a float holds"):
        reading.from_json(text)
    assert reading.from_json('{"a": [1e308, NaN]}')["a"][0] == 1e308


def test_long_toml_is_refused():
    with pytest.raises(TooLargeError, match="8,388,609 bytes; expected up to 8,388,608"):
        reading.from_toml("#" * (reading.MOST_TOML + 1))


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(reading.MOST_ARRAYS + 1):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(TooLargeError, match="10,001 files; expected up to 10,000"):
        reading.read_arrays(tmp_path / "a.npz")


def test_a_sparse_file_is_not_read(tmp_path: Path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLargeError, match="1,099,511,627,776 bytes; expected up to"):
        reading.read_json(tmp_path / "a.json")
