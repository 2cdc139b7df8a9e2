"""Chosen fields of a message in Thrift's compact protocol, in which Parquet writes its footer and the headers of pages.

A form names the fields of a struct that are read: number -> `I32` or `I64` (a whole number), a form (a struct), or a list
of one form (a list of structs). As in pyarrow, a field of another type than its form says is passed over; numbers that
pyarrow would cut are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

I32, I64 = 5, 6
_TRUTHS, _BYTE, _WHOLE, _DOUBLE, _TEXT, _LISTS, _STRUCT = {1, 2}, 3, {4, 5, 6}, 7, 8, {9, 10}, 12
_BITS = {I32: 32, I64: 64}
_DEEPEST, _MOST_NUMBER = 8, (1 << 15) - 1

Form = Mapping[int, Any]


def damaged() -> pa.ArrowInvalid:
    """Return the error for bytes that are no message."""
    return pa.ArrowInvalid("the footer or the header of a page is damaged")


def struct(data: bytes, at: int, form: Form, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct that its form names, and where it ends.

    Raises:
        IndexError: the data ends before.
        ArrowInvalid: it is damaged.
    """
    if depth > _DEEPEST:
        raise damaged()
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        kind, at = head & 15, at + 1
        if head > 15:
            number += head >> 4
        else:
            number, at = _whole(data, at, 32)
        if not 0 <= number <= _MOST_NUMBER:
            raise damaged()
        meant = form.get(number)
        if meant is None:
            at = at if kind in _TRUTHS else _passed(kind, data, at, depth)
        elif kind == meant:
            if (value := data[at]) < 128:  # most are
                fields[number], at = value >> 1 ^ -(value & 1), at + 1
            else:
                fields[number], at = _whole(data, at, _BITS[kind])
        elif kind == _STRUCT and isinstance(meant, Mapping):
            fields[number], at = struct(data, at, meant, depth + 1)
        elif kind in _LISTS and isinstance(meant, list):
            (size, inner, at), values = _listed(data, at), list[Any]()
            if inner != _STRUCT:
                raise damaged()
            for _ in range(size):
                inside, at = struct(data, at, meant[0], depth + 1)
                values.append(inside)
            fields[number] = values
        elif kind not in _TRUTHS:
            at = _passed(kind, data, at, depth)
    return fields, at + 1


def _passed(kind: int, data: bytes, at: int, depth: int) -> int:
    """Return where a value ends."""
    if kind in _WHOLE:
        while data[at] > 127:
            at += 1
        return at + 1
    if kind == _TEXT:
        length, at = _varint(data, at)
        return at + length
    if kind == _STRUCT:
        return struct(data, at, {}, depth + 1)[1]
    if kind in _LISTS and depth < _DEEPEST:
        size, inner, at = _listed(data, at)
        for _ in range(size):
            at = at + 1 if inner in _TRUTHS else _passed(inner, data, at, depth + 1)
        return at
    if kind in {_BYTE, _DOUBLE}:
        return at + (1 if kind == _BYTE else 8)
    raise damaged()


def _listed(data: bytes, at: int) -> tuple[int, int, int]:
    """Return how many values a list has, their type, and where they start."""
    size, inner, at = data[at] >> 4, data[at] & 15, at + 1
    if size == 15:
        size, at = _varint(data, at)
    return size, inner, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if shift > 63:
            raise damaged()
    return value | byte << shift, at + 1


def _whole(data: bytes, at: int, bits: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    if value >> bits:
        raise damaged()
    return value >> 1 ^ -(value & 1), at
