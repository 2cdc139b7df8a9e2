"""Compiled half of `ntu.py`: one pass over the bytes of a `.skeleton` file. Imported when a file is read.

Numbers equal `np.float32(float(token))` to the last bit; tokens for which that is uncertain here (`nan`, `inf`, more
than 18 digits, a value next to a rounding edge) are left to Python by their positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

_F = TypeVar("_F", bound=Callable[..., Any])
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]
_Places = npt.NDArray[np.int64]

FINE, ENDS, NO_COUNT, NO_BODY, NOT_25, NO_JOINT = range(6)
"""Outcome of `scan` at the position that it returns."""

PADDING = 16
"""NUL bytes that must follow the text: every loop stops at one, so none checks for the end."""

MOST_FRAMES = 200_000
"""A larger count in a header means damage."""

MOST_BODIES = 100
SMALLEST_BODY = 20 + 3 + 25 * 24 - 1
"""Bytes of the shortest body that the format allows: the size of a file bounds the number of bodies."""

_LF, _SPACE, _PLUS, _MINUS, _ZERO = (ord(c) for c in "\n +-0")
_DOT, _SMALL_E, _LARGE_E = (ord(c) - _ZERO for c in ".eE")  # as the digit that they would be
_IN_NUMBERS, _BLANK, _LINE_END, _OTHER = range(4)
_KIND = np.full(256, _OTHER, np.uint8)
_KIND[list(b"0123456789+-._eEinfatyINFATY")] = _IN_NUMBERS
_KIND[list(b" \t\v\f\r")] = _BLANK
_KIND[_LF] = _LINE_END
_POWERS = np.array([float(f"1e{k}") for k in range(23)])  # exact in float64, all of them
_EXACT = 1 << 53
_ONE = np.uint64(1)  # an unsigned index is not asked whether it counts from the end
_BELOW, _ABOVE = 1 - 2.0**-50, 1 + 2.0**-50


def _compiled(inline: bool) -> Callable[[_F], _F]:
    """Compile; the machine code is cached on disk if a folder is writable."""
    how: Literal["always", "never"] = "always" if inline else "never"

    def decorate(function: _F) -> Any:
        try:
            return njit(cache=True, error_model="numpy", inline=how)(function)
        except RuntimeError:  # neither beside this file nor in the user's cache folder
            return njit(error_model="numpy", inline=how)(function)

    return decorate


@_compiled(inline=True)
def number(text: _Bytes, at: int) -> tuple[float, int]:
    """Read a number; return it and the position after it, or a negative position if Python must read it.

    A mantissa up to 2^53 and a power of ten up to 10^22 are exact, so their quotient or product is rounded once.
    A longer mantissa is off by less than 2^-51: certain if both ends of +-2^-50 round to the same float32.
    """
    begin = at
    sign = text[at]
    if sign in (_MINUS, _PLUS):
        at += 1
    first = at
    mantissa = 0
    digit = text[at] - _ZERO
    while 0 <= digit <= 9:
        mantissa = mantissa * 10 + digit  # wraps where it is too long, and is not used then
        at += 1
        digit = text[at] - _ZERO
    digits = at - first
    power = 0
    if digit == _DOT:
        at += 1
        first = at
        fast = np.uint64(at)
        digit = text[fast] - _ZERO
        while 0 <= digit <= 9:
            mantissa = mantissa * 10 + digit
            fast += _ONE
            digit = text[fast] - _ZERO
        at = np.int64(fast)  # type: ignore[assignment]
        power = first - at
        digits -= power
    if digits == 0:
        return 0.0, -1
    if digits > 18:
        while begin < at and not 1 <= text[begin] - _ZERO <= 9:  # zeros in front do not count
            digits -= text[begin] == _ZERO
            begin += 1
    if digit in (_SMALL_E, _LARGE_E):
        at += 1
        turn = text[at]
        if turn in (_MINUS, _PLUS):
            at += 1
        first = at
        exponent = 0
        digit = text[at] - _ZERO
        while 0 <= digit <= 9 and at < first + 4:
            exponent = exponent * 10 + digit
            at += 1
            digit = text[at] - _ZERO
        if at == first:
            return 0.0, -1
        power += -exponent if turn == _MINUS else exponent
    if digits > 18 or not -22 <= power <= 22 or text[at] > 32:
        return 0.0, -1
    value = mantissa / _POWERS[-power] if power < 0 else mantissa * _POWERS[power]
    if mantissa > _EXACT and np.float32(value * _BELOW) != np.float32(value * _ABOVE):
        return 0.0, -1
    return -value if sign == _MINUS else value, at


@_compiled(inline=True)
def skip_blanks(text: _Bytes, at: int) -> int:
    """Return the position of the next byte that is not a blank; a line end is not a blank."""
    fast = np.uint64(at)
    while _KIND[text[fast]] == _BLANK:
        fast += _ONE
    return np.int64(fast)  # type: ignore[return-value]


@_compiled(inline=True)
def skip_number(text: _Bytes, at: int) -> int:
    """Return the position of the next byte that cannot be part of a number."""
    fast = np.uint64(at)
    while _KIND[text[fast]] == _IN_NUMBERS:
        fast += _ONE
    return np.int64(fast)  # type: ignore[return-value]


@_compiled(inline=False)
def token_end(text: _Bytes, at: int, size: int) -> int:
    """Return the position after the token that begins here."""
    while at < size and _KIND[text[at]] not in (_BLANK, _LINE_END):
        at += 1
    return at


@_compiled(inline=False)
def count(text: _Bytes, at: int, size: int, most: int) -> tuple[int, int, int]:
    """Read a line of one whole number; return the outcome, the number, and the position of the next line."""
    at = skip_blanks(text, at)
    if at >= size:
        return ENDS, 0, at
    first = at
    value = 0
    digit = text[at] - _ZERO
    while 0 <= digit <= 9 and at < first + 10:
        value = value * 10 + digit
        at += 1
        digit = text[at] - _ZERO
    digits = at - first
    at = skip_blanks(text, at)
    if not 1 <= digits <= 9 or value > most or (at < size and text[at] != _LF):
        return NO_COUNT, 0, at
    return FINE, value, min(at + 1, size)


@_compiled(inline=True)
def joint(
    text: _Bytes,
    at: int,
    size: int,
    into: _Floats,
    row: int,
    hard: _Places,
    left: int,
) -> tuple[int, int, int]:
    """Read the 12 values of a joint line; return the outcome, the position of the next line, and `left`.

    The first three and, if `into` has five columns, the 6th and 7th go to `into[row]`. Of the others only the
    characters are checked. Values left to Python are counted in `left` and noted in `hard` while it has room.
    """
    for column in range(into.shape[1]):
        if column == 3:
            for _ in range(2):
                at = skip_number(text, skip_blanks(text, at))
        at = skip_blanks(text, at)
        if _KIND[text[at]] != _IN_NUMBERS:
            return (ENDS if at >= size and column == 0 else NO_JOINT), at, left
        value, end = number(text, at)
        if end < 0:
            if left < len(hard):
                hard[left, 0] = at
                hard[left, 1] = row * into.shape[1] + column
            left += 1
            at = token_end(text, at, size)
        else:
            into[row, column] = value
            if column < 3 and not np.isfinite(into[row, column]):
                return NO_JOINT, at, left
            at = end
    fields = 3 if into.shape[1] == 3 else 7
    fast = np.uint64(at)
    before = kind = _KIND[text[fast]]
    while kind <= _BLANK:  # this loop sees two thirds of the file: no branch but its end
        fields += kind < before
        before = kind
        fast += _ONE
        kind = _KIND[text[fast]]
    at = np.int64(fast)  # type: ignore[assignment]
    if fields != 12 or (at < size and kind != _LINE_END):
        return NO_JOINT, at, left
    return FINE, min(at + 1, size), left


@_compiled(inline=False)
def body(
    text: _Bytes,
    at: int,
    size: int,
    values: _Floats,
    name: _Places,
    hard: _Places,
    left: int,
    count_before: int,
) -> tuple[int, int, int, int]:
    """Read one body; return the outcome, the expected content, the position of the next line, and `left`."""
    at = skip_blanks(text, at)
    if at >= size:
        return ENDS, 2, at, left
    name[0] = at
    name[1] = at = token_end(text, at, size)
    fields = 1
    while True:
        at = skip_blanks(text, at)
        if at >= size or text[at] == _LF:
            break
        at = token_end(text, at, size)
        fields += 1
    if fields != 10:
        return NO_BODY, 2, name[0], left
    met, joints, after = count(text, min(at + 1, size), size, 25)
    if met != FINE or joints != 25:
        return (met if met != FINE else NOT_25), 3, (after if met != FINE else after - 1), left
    at = after
    for row in range(25 * count_before, 25 * count_before + 25):
        met, at, left = joint(text, at, size, values, row, hard, left)
        if met != FINE:
            break
    return met, 4, at, left


@_compiled(inline=False)
def scan(
    text: _Bytes, size: int, values: _Floats, frames: npt.NDArray[np.int32], names: _Places, hard: _Places
) -> tuple[int, int, int, int, int, int]:
    """Read a whole file.

    Args:
        text: its bytes, all ASCII, and `PADDING` NUL bytes.
        size: bytes of the file.
        values: joints of body n in rows [25 n, 25 n + 25): x, y, z and, in five columns, colour x and y.
        frames: frame of body n, from 0.
        names: first and last position of the id of body n.
        hard: position of each token left to Python, and its index in the flattened `values`.

    Returns:
        The outcome, the expected content (0 frames, 1 bodies, 2 a body, 3 joints, 4 a joint), a position in that
        line, and the numbers of frames, bodies and tokens left to Python; more tokens than `hard` has rows mean that
        it must be longer.
    """
    left = bodies = what = 0
    met, total, at = count(text, 0, size, MOST_FRAMES)
    for frame in range(total):
        what = 1
        met, people, at = count(text, at, size, MOST_BODIES)
        for _ in range(people):
            met, what, at, left = body(text, at, size, values, names[bodies], hard, left, bodies)
            if met != FINE:
                break
            frames[bodies] = frame
            bodies += 1
        if met != FINE:
            break
    return met, what, at, total, bodies, left


def load() -> None:
    """Compile, or load from the cache, by reading an empty file."""
    hard, names = np.empty((1, 2), np.int64), np.empty((1, 2), np.int64)
    text = np.frombuffer(bytes(PADDING), np.uint8)
    scan(text, 0, np.empty((25, 3), np.float32), np.empty(1, np.int32), names, hard)
