"""Pickles that hold plain containers, texts, numbers and numpy arrays, read and written without Python's `pickle`.

A pickle is a program. This interpreter knows the instructions that build such values (protocols 2 to 5) and eight names,
none of which it imports: what would call anything else is refused. Arrays stay views of the file until they are read, so
that a file of gigabytes costs the memory of its dictionaries. Format: Python's `pickletools`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from c2vl_manifests.reading import MOST_VALUES, TooLargeError

_LONG_TEXT = 4096
"""Bytes from which a text stays a view: protocol 2 writes the bytes of arrays as text."""
_MOST_DIMENSIONS = 8
_CORE = r"numpy\.(_?core)\.multiarray"
_NAMES = {
    rf"{_CORE} _reconstruct": "array",
    rf"{_CORE} scalar": "scalar",
    r"numpy\.(_?core)\.numeric _frombuffer": "buffer",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "collections OrderedDict": "table",
    "(__builtin__|builtins) bytes": "bytes",
}
"""`module name` -> what this interpreter does in its place."""
_KEYS = frozenset({str, int, float, bool, type(None)})
"""Types of keys."""
_CODE = re.compile(r"b1|[iu][1248]|f[248]")
"""Types of numbers."""


_BYTE, _SHORT, _INT, _SIZE, _LARGE, _FLOAT = map(struct.Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))


class UnsafeError(ValueError):
    """A pickle calls something, or is damaged."""


@dataclass(frozen=True, slots=True)
class _Name:
    text: str
    kind: str


@dataclass(eq=False, slots=True)
class _Text:
    """A long text, not decoded; `latin` once it stands for bytes."""

    data: memoryview
    latin: bool = False

    def content(self) -> bytes:
        text = str(self.data, "utf-8", "surrogatepass")
        return text.encode("latin1")


@dataclass(eq=False, slots=True)
class _Type:
    """The type of an array's values."""

    code: str
    order: str = "="

    def dtype(self) -> np.dtype[Any]:
        return np.dtype(f"{'' if self.order == '|' else self.order}{self.code}")


@dataclass(eq=False, slots=True)
class PickledArray:
    """An array of numbers that is still in its file."""

    shape: tuple[int, ...] = ()
    type: _Type | None = None
    columns_first: bool = False
    data: Any = None
    axes: tuple[int, ...] = ()
    """Order of the axes, where it is another one than in the file."""

    def read(self) -> npt.NDArray[Any]:
        """Return the array, read-only.

        Raises:
            ValueError: it has no values, or another number of bytes than its shape takes.
        """
        data = self.data.content() if isinstance(self.data, _Text) else self.data
        if self.type is None or not isinstance(data, bytes | memoryview):
            raise UnsafeError("an array without numbers")
        dtype, count = self.type.dtype(), 1
        for size in self.shape:
            count *= size
        if count * dtype.itemsize != len(data):
            raise UnsafeError(f"{len(data):,} bytes for an array {self.shape} of {dtype}")
        array = np.frombuffer(data, dtype)
        array = array.reshape(self.shape[::-1]).T if self.columns_first else array.reshape(self.shape)
        if not self.axes:
            return array
        if sorted(self.axes) != list(range(array.ndim)):
            raise UnsafeError(f"axes {self.axes} of an array of {array.ndim}")
        return array.transpose(self.axes)


def load(data: memoryview) -> Any:
    """Return the value of a pickle: containers, texts and numbers; arrays as `PickledArray`.

    Raises:
        UnsafeError: one line: it would call something else, or it is damaged.
        TooLargeError: it holds too many values.
    """
    machine = _Machine(data)
    try:
        return machine.run()
    except (IndexError, struct.error):
        raise UnsafeError(f"ends, or lacks a value, at byte {machine.at:,}") from None
    except UnicodeError:
        raise UnsafeError(f"a text that is none at byte {machine.at:,}") from None


class _Machine:
    """A stack machine; the names of its methods are those of `pickletools`."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        """Stacks under the marks."""
        self.memo: dict[int, Any] = {}
        self.steps = {code[0]: step for code, step in self._steps().items()}

    def run(self) -> Any:
        data, steps, count = self.data, self.steps, 0
        while (code := data[self.at]) != 0x2E:  # STOP
            self.at += 1
            count += 1
            if count > MOST_VALUES:
                raise TooLargeError(f"more than {MOST_VALUES:,} values")
            if (step := steps.get(code)) is None:
                raise UnsafeError(
                    f"the instruction 0x{code:02x} at byte {self.at - 1:,}, which plain values do not need"
                )
            step()
        return self.stack.pop()

    def _steps(self) -> dict[bytes, Callable[[], object]]:
        push, number = self._push, self._number
        return {
            b"\x80": lambda: self._take(1),  # PROTO
            b"\x95": lambda: self._take(8),  # FRAME
            b"(": self._mark,
            b"0": self._pop,
            b"1": self._popped,
            b"N": lambda: push(None),
            b"\x88": lambda: push(True),
            b"\x89": lambda: push(False),
            b"K": lambda: push(number(_BYTE)),
            b"M": lambda: push(number(_SHORT)),
            b"J": lambda: push(number(_INT)),
            b"\x8a": lambda: push(self._long(number(_BYTE))),
            b"G": lambda: push(number(_FLOAT)),
            b"U": lambda: push(bytes(self._take(number(_BYTE)))),
            b"T": lambda: push(self._take(number(_SIZE))),
            b"C": lambda: push(bytes(self._take(number(_BYTE)))),
            b"B": lambda: push(self._take(number(_SIZE))),
            b"\x8e": lambda: push(self._take(number(_LARGE))),
            b"\x96": lambda: push(self._take(number(_LARGE))),
            b"\x8c": lambda: push(str(self._take(number(_BYTE)), "utf-8", "surrogatepass")),
            b"X": lambda: self._text(number(_SIZE)),
            b"\x8d": lambda: self._text(number(_LARGE)),
            b")": lambda: push(()),
            b"\x85": lambda: self._tuple(1),
            b"\x86": lambda: self._tuple(2),
            b"\x87": lambda: self._tuple(3),
            b"t": lambda: push(tuple(self._popped())),
            b"]": lambda: push([]),
            b"a": lambda: self._extend([self.stack.pop()]),
            b"e": lambda: self._extend(self._popped()),
            b"}": lambda: push({}),
            b"s": lambda: self._update([self.stack.pop() for _ in "kv"][::-1]),
            b"u": lambda: self._update(self._popped()),
            b"q": lambda: self._remember(number(_BYTE)),
            b"r": lambda: self._remember(number(_SIZE)),
            b"\x94": lambda: self._remember(len(self.memo)),
            b"h": lambda: self._recall(number(_BYTE)),
            b"j": lambda: self._recall(number(_SIZE)),
            b"c": lambda: push(self._name(self._line(), self._line())),
            b"\x93": lambda: push(self._name(*[self.stack.pop() for _ in "mn"][::-1])),
            b"R": lambda: push(self._made(*[self.stack.pop() for _ in "fa"][::-1])),
            b"b": self._build,
        }

    # ------------------------------------------------------------------------------------- values

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _take(self, size: int) -> memoryview:
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            raise IndexError
        self.at += size
        return part

    def _number(self, form: struct.Struct) -> Any:
        at = self.at
        self.at = at + form.size
        return form.unpack_from(self.data, at)[0]

    def _long(self, size: int) -> int:
        if size > 16:
            raise UnsafeError(f"a whole number of {size} bytes at byte {self.at:,}")
        return int.from_bytes(self._take(size), "little", signed=True)

    def _text(self, size: int) -> None:
        part = self._take(size)
        self.stack.append(_Text(part) if size >= _LONG_TEXT else str(part, "utf-8", "surrogatepass"))

    def _line(self) -> str:
        part = bytes(self.data[self.at : self.at + 200])
        line = part[: part.index(b"\n")] if b"\n" in part else part
        self.at += len(line) + 1
        return line.decode("utf-8")

    # --------------------------------------------------------------------------------- containers

    def _mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self) -> None:
        self.stack.pop()

    def _popped(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _tuple(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise IndexError
        self.stack[-size:] = [items]

    def _extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnsafeError(f"an item for what is no list at byte {self.at:,}")
        self.stack[-1].extend(items)

    def _update(self, items: list[Any]) -> None:
        table = self.stack[-1]
        if not isinstance(table, dict) or len(items) % 2:
            raise UnsafeError(f"an entry for what is no dictionary at byte {self.at:,}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            table[self._hashable(key)] = value

    def _hashable(self, key: Any) -> Any:
        if type(key) not in _KEYS:
            raise UnsafeError(f"a key that is neither text nor number at byte {self.at:,}")
        return key

    def _remember(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def _recall(self, place: int) -> None:
        if place not in self.memo:
            raise IndexError
        self.stack.append(self.memo[place])

    # -------------------------------------------------------------------------- what is not called

    def _name(self, module: Any, name: Any) -> _Name:
        text = f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else ""
        for known, kind in _NAMES.items():
            if re.fullmatch(known, text):
                return _Name(text, kind)
        raise UnsafeError(
            f"the name {text.replace(' ', '.')[:60]!r} at byte {self.at:,}, which plain values do not need"
        )

    def _made(self, name: Any, given: Any) -> Any:
        """Return what the call of a known name with these values makes, without calling it."""
        made: Any = None
        match name.kind if isinstance(name, _Name) else "", given:
            case "encode", (_Text() as text, "latin1" | "latin-1"):
                made = _Text(text.data, latin=True)
            case "encode", (str() as text, "latin1" | "latin-1"):
                made = text.encode("latin1")
            case "array", (_Name(kind="ndarray"), _, _):
                made = PickledArray()
            case "dtype", (str() as code, *_) if _CODE.fullmatch(code):
                made = _Type(code)
            case "buffer", (data, _Type() as of, shape, order):
                made = PickledArray(_shape(shape), of, order == "F", data)
            case "buffer", (data, _Type() as of, shape, "K", tuple() as axes):
                made = PickledArray(_shape(shape), of, False, data, _shape(axes))
            case "scalar", (_Type() as of, data):
                made = PickledArray((), of, False, data).read().item()
            case "table", ():
                made = {}
            case "bytes", ():
                made = b""
        if made is None or not isinstance(given, tuple):
            what = name.text.replace(" ", ".") if isinstance(name, _Name) else "what is no name"
            raise UnsafeError(f"a call of {what} at byte {self.at:,} with values that arrays do not need")
        return made

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, PickledArray) and isinstance(state, tuple) and len(state) == 5:
            _, shape, of, columns_first, data = state
            if isinstance(of, _Type):
                made.shape, made.type, made.columns_first, made.data = _shape(shape), of, columns_first is True, data
                return
            raise UnsafeError(f"an array of Python objects, which are never loaded, at byte {self.at:,}")
        if isinstance(made, _Type) and isinstance(state, tuple) and len(state) > 5 and state[2:5] == (None, None, None):
            order = state[1]
            if isinstance(order, str) and order in {"<", ">", "=", "|"}:
                made.order = order
                return
        raise UnsafeError(f"a state at byte {self.at:,} that plain values do not need")


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = isinstance(shape, tuple) and all(type(size) is int and 0 <= size < 1 << 48 for size in shape)
    if not sizes or len(shape) > _MOST_DIMENSIONS:
        raise UnsafeError("an array whose shape is none")
    return tuple(shape)


# --------------------------------------------------------------------------------------------- writing


def dump(value: Any) -> Iterator[bytes]:
    """Yield the parts of a pickle of dictionaries, lists, tuples, texts, numbers and arrays.

    Arrays are named by the modules that every numpy has: one that numpy 2 pickles itself cannot be read by numpy 1.
    """
    yield b"\x80\x04"
    yield from _dumped(value)
    yield b"."


def _dumped(value: Any) -> Iterator[bytes]:
    if value is None or isinstance(value, bool):
        yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
    elif isinstance(value, int):
        yield b"J" + struct.pack("<i", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        yield b"X" + struct.pack("<I", len(text)) + text
    elif isinstance(value, bytes):
        yield b"\x8e" + struct.pack("<Q", len(value)) + value
    elif isinstance(value, dict):
        yield b"}("
        for entry in value.items():
            yield from _all(entry)
        yield b"u"
    elif isinstance(value, list | Iterator):  # an iterator is written as a list, item by item
        yield b"]("
        yield from _all(value)
        yield b"e"
    elif isinstance(value, tuple):
        yield b"("
        yield from _all(value)
        yield b"t"
    elif isinstance(value, np.ndarray):
        yield from _dumped_array(value)
    else:
        raise TypeError(f"a pickle of {type(value).__name__}")


def _all(values: Any) -> Iterator[bytes]:
    for value in values:
        yield from _dumped(value)


def _dumped_array(array: npt.NDArray[Any]) -> Iterator[bytes]:
    yield b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
    yield from _all([(0,), b"b"])
    yield b"tR("
    yield from _all([1, array.shape])
    yield b"cnumpy\ndtype\n("
    yield from _all([array.dtype.str[1:], False, True])
    yield b"tR("
    yield from _all([3, array.dtype.str[0], None, None, None, -1, -1, 0])
    yield b"tb"
    yield from _all([False, np.ascontiguousarray(array).tobytes()])
    yield b"tb"
