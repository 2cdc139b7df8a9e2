"""Thrift's compact protocol is read as pyarrow reads it, or refused."""

from __future__ import annotations

import pyarrow as pa
import pytest

from c2vl_manifests.thrift import I32, I64, struct

FORM = {1: I32, 2: I64, 3: {1: I32}, 4: [{1: I32}]}


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"\x15\x06\x16\x07\x00", {1: 3, 2: -4}),
        (b"\x16\x06\x00", {}),  # field 1 of 64 bits: pyarrow passes over it
        (b"\x15\x80\x01\x00", {1: 64}),
        (b"\x15\x06\x06\x02\x08\x00", {1: 3}),  # field 1 again, as another type
        (b"\x15\x06\x05\x02\x08\x00", {1: 4}),  # and as its own: the last one counts
        (b"\x3c\x15\x02\x28\x03abc\x00\x19\x2c\x15\x02\x00\x15\x04\x00\x00", {3: {1: 1}, 4: [{1: 1}, {1: 2}]}),
        (b"\x98\x02ab\x19\x28\x01a\x01b\x11\x12\x17" + bytes(8) + b"\x13\x05\x00", {}),  # text, list, truths, others
    ],
)
def test_fields_of_the_form_are_read_and_others_passed_over(data: bytes, fields: dict[int, object]):
    assert struct(b"?" + data + b"more", 1, FORM) == (fields, 1 + len(data))
    with pytest.raises(IndexError):
        struct(data[:-1], 0, FORM)


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x82\x80\x80\x80\x80\x01\x00",  # 33 bits in a field of 32
        b"\x26" + b"\xff" * 10 + b"\x01\x00",  # more than 64 bits
        b"\x05\x82\x80\x08\x02\x00",  # field 65,537, which 16 bits make 1
        b"\x49\x15\x02\x02\x00",  # a list of numbers in place of structs
        b"\x1b\x00\x00",  # a map
        b"\x1c" * 50 + bytes(51),
        b"\x19" * 50 + bytes(51),
    ],
)
def test_what_pyarrow_might_read_otherwise_is_refused(data: bytes):
    with pytest.raises(pa.ArrowInvalid, match="the footer or the header of a page is damaged"):
        struct(data, 0, FORM)
