"""Pickles: values as Python's pickle gives them, and nothing is ever called, imported or allocated by a file."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c2vl_pipeline.readers.files.pickles import PickledArray, dump, load

VALUES: dict[str, Any] = {
    "numbers": [0, 1, 255, 65_535, -1, 2**31 - 1, -(2**31), 2**40, -(2**100), 1.5, float("inf"), True, False, None],
    "texts": ["", "a", "é" * 300, "x" * 3000, "\ud800"],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {"a": {1: (2,)}}, OrderedDict(a=1)],
    "scalars": [np.int64(7), np.float32(0.5), np.bool_(True)],
}
ARRAYS = {
    "half": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    "columns first": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "big-endian": np.arange(3, dtype=">f4"),
    "turned": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "truths": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "large": np.random.default_rng(0).normal(size=(300, 17)),
}
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


def loaded(content: bytes) -> Any:
    return load(memoryview(content))


@PROTOCOLS
@pytest.mark.parametrize("kind", VALUES)
def test_plain_values_are_those_of_pickle(kind: str, protocol: int) -> None:
    assert loaded(pickle.dumps(VALUES[kind], protocol)) == VALUES[kind]


@PROTOCOLS
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_those_of_pickle(kind: str, protocol: int) -> None:
    made = loaded(pickle.dumps([ARRAYS[kind], ARRAYS[kind]], protocol))[1]
    assert isinstance(made, PickledArray)
    np.testing.assert_array_equal(made.read(), ARRAYS[kind])
    assert made.read().dtype == ARRAYS[kind].dtype


def test_what_is_written_is_read_by_pickle_and_back() -> None:
    value = {"split": {"a": ["x"]}, "n": [1, -5, None, True], "t": (1, 2), "k": ARRAYS["half"], "s": ARRAYS["large"]}
    content = b"".join(dump(value))
    for made, read in ((pickle.loads(content), lambda x: x), (loaded(content), lambda x: x.read())):
        assert {name: made[name] for name in ("split", "n", "t")} == {"split": {"a": ["x"]}, "n": [1, -5, None, True], "t": (1, 2)}  # fmt: skip
        np.testing.assert_array_equal(read(made["k"]), ARRAYS["half"])
        np.testing.assert_array_equal(read(made["s"]), ARRAYS["large"])
    assert b"numpy._core" not in content  # which numpy 1 lacks


class Trick:
    """An object that pickle would make by a call."""

    def __init__(self, *made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made


CALLS = {
    "os.system": (os.system, ("touch {canary}",)),
    "eval": (builtins.eval, ("open('{canary}', 'w')",)),
    "exec": (builtins.exec, ("open('{canary}', 'w')",)),
    "open": (builtins.open, ("{canary}", "w")),
    "getattr": (builtins.getattr, ("", "join")),
    "subprocess": (subprocess.Popen, (["touch", "{canary}"],)),
    "numpy.memmap": (np.memmap, ("{canary}", "u1", "w+", 0, (1,))),
    "numpy.load": (np.load, ("{canary}", None, True)),
    "numpy.save": (np.save, ("{canary}", 1)),
    "numpy.zeros": (np.zeros, ((1 << 40,),)),
    "partial": (partial, (os.system, "touch {canary}")),
    "bytearray": (bytearray, (1 << 40,)),
    "list": (list, (range(1 << 30),)),
}


@PROTOCOLS
@pytest.mark.parametrize("call", CALLS)
def test_no_call_is_made(tmp_path: Path, call: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    function, words = CALLS[call]
    words = tuple(word.format(canary=canary) if isinstance(word, str) else word for word in words)
    for state in ((), ({"a": 1},)):
        content = pickle.dumps({"annotations": [Trick(function, words, *state)]}, protocol)
        with pytest.raises(ValueError, match=r"at byte [\d,]+"):
            loaded(content)
    assert not canary.exists()


def array(shape: bytes, data: bytes, code: bytes = b"f4", state: bytes = b"NNN", flag: bytes = b"\x89") -> bytes:
    """An array of protocol 4 whose parts are chosen."""
    head = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR(K\x01" + shape
    of = b"cnumpy\ndtype\n(\x8c" + bytes([len(code)]) + code + b"\x89\x88tR(K\x03\x8c\x01<" + state + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"  # fmt: skip
    return head + of + flag + data + b"tb."


def test_the_array_of_the_tricks_below_is_one() -> None:
    made = loaded(array(b"K\x02\x85", b"C\x08" + bytes(8)))
    assert made.read().tolist() == [0, 0]
    assert pickle.loads(array(b"K\x02\x85", b"C\x08" + bytes(8))).tolist() == [0, 0]


TRICKS = {
    "a shape of terabytes": array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"C\x08" + bytes(8)),
    "a negative shape": array(b"J\xff\xff\xff\xff\x85", b"C\x08" + bytes(8)),
    "a shape of objects": array(b"N\x85", b"C\x08" + bytes(8)),
    "many dimensions": array(b"(" + b"K\x01" * 40 + b"t", b"C\x04" + bytes(4)),
    "objects": array(b"K\x01\x85", b"]", code=b"O8"),
    "fields": array(b"K\x01\x85", b"C\x04" + bytes(4), state=b"N\x8c\x01a\x85}"),
    "a record": array(b"K\x01\x85", b"C\x04" + bytes(4), code=b"f4,f4"),
    "no data": array(b"K\x02\x85", b"N"),
    "a list of data": array(b"K\x02\x85", b"]"),
    "a memo far away": b"\x80\x04Nr\xff\xff\xff\x7f0j\xff\xff\xff\x7e.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "a text that is not there": b"\x80\x04X" + struct.pack("<I", 1 << 31) + b"x.",
    "a long of megabytes": b"\x80\x04\x8b" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b".",
    "an instance": b"\x80\x04(ios\nsystem\n.",
    "an object": b"\x80\x04(cos\nsystem\no.",
    "a persistent id": b"\x80\x04Np.Q.",
    "an extension": b"\x80\x04\x82\x01.",
    "a name of parts": b"\x80\x04\x8c\x05numpy\x8c\x0ecore.os.system\x93.",
    "a name of other types": b"\x80\x04K\x01K\x02\x93.",
    "a key that is a list": b"\x80\x04}]Ns.",
    "a key nested deep": b"\x80\x04}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "an item for a number": b"\x80\x04K\x01Na.",
    "an entry for a list": b"\x80\x04]NNs.",
    "an odd number of entries": b"\x80\x04}(Nu.",
    "nothing below": b"\x80\x04\x85.",
    "no mark": b"\x80\x04t.",
    "a call of a number": b"\x80\x04K\x01)R.",
    "a call of an array": array(b"K\x01\x85", b"C\x04" + bytes(4))[:-1] + b")R.",
    "a state for a list": b"\x80\x04]}b.",
    "latin1 of what it lacks": b"\x80\x04c_codecs\nencode\n\x8c\x03\xe2\x82\xac\x8c\x06latin1\x86R.",
    "another code": b"\x80\x04c_codecs\nencode\n\x8c\x01a\x8c\x03hex\x86R.",
    "a code that is a list": b"\x80\x04c_codecs\nencode\n\x8c\x01a]\x86R.",
    "no text": b"\x80\x04\x8c\x02\xff\xff.",
    "the end": b"\x80\x04]",
    "nothing": b"",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_one_line(trick: str) -> None:
    def read() -> None:
        if isinstance(made := loaded(TRICKS[trick]), PickledArray):
            made.read()

    with pytest.raises(ValueError, match=r".") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_values_that_hold_each_other_take_no_more_than_their_file() -> None:
    laughs = b"\x80\x04](" + b"N" * 10 + b"e\x94" + b"".join(b"](" + b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"e\x94" for n in range(60)) + b"."  # fmt: skip
    assert len(loaded(laughs)) == 2
    itself = loaded(b"\x80\x04]\x94h\x00a.")
    assert itself[0] is itself


SEED = pickle.dumps({"split": {"a_train": ["x"]}, "annotations": [{"frame_dir": "x", "keypoint": ARRAYS["half"]}]}, 2)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_bytes_give_a_value_or_a_value_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([SEED, *TRICKS.values()]) | st.binary(max_size=60)))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with suppress(ValueError):
        loaded(bytes(content))
