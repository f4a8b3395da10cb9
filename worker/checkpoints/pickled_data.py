"""Reads a pickle as plain data. Nothing that the pickle names is imported, and nothing that it calls is called.

Time and memory grow linearly with the size of the pickle, whatever it contains. Python's own unpickler cannot promise
that, even where it refuses all classes: it allocates what an index of the memo or a length says, and computes the hash
of a tuple that contains itself many times. The protocols 2 to 5 are read, as far as plain data needs them
(https://github.com/python/cpython/blob/main/Lib/pickletools.py lists the opcodes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: The largest number of opcodes, and of the memo's indices. A vocabulary of a million tokens needs three million.
MAX_OPCODES = 4_000_000
#: The longest name of a module, class or function, in bytes.
MAX_NAME_BYTES = 1000
#: The longest integer, in bytes.
MAX_INTEGER_BYTES = 16
#: The largest integer that may be a key of a dictionary: with larger ones, all keys could have the same hash.
MAX_INTEGER_KEY = 0xFFFF


class PickleError(ValueError):
    """The pickle is damaged, or holds more than plain data."""


class RefusedReferenceError(PickleError):
    """The pickle refers to something that its reader does not expect."""

    def __init__(self, name: str) -> None:
        super().__init__(f"it refers to {name}")
        #: Module and name, with a dot between them.
        self.name = name


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of a class or function that the pickle refers to."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """A call of a class or function that the pickle asks for. It was not made."""

    function: Reference
    arguments: tuple[Any, ...]
    #: What the pickle would pass to `__setstate__`.
    state: object = None


@dataclass(slots=True, eq=False)
class PersistentId:
    """A reference to something outside of the pickle."""

    value: object


def read_pickle(data: bytes, *, references: Callable[[str], bool], functions: Callable[[str], bool]) -> Any:
    """The object that a pickle describes. Raises PickleError.

    `references` says whether the pickle may name a class or function, and `functions` whether it may ask for a call.
    Both get the module and the name, with a dot between them. Calls of `collections.OrderedDict` give a dict.
    """
    try:
        return _Reader(data, references, functions).read()
    except PickleError:
        raise
    # The stack or the memo lacks an object, the data ends, or a text is not UTF-8.
    except (IndexError, KeyError, UnicodeDecodeError, TypeError) as error:
        raise PickleError("it is not a pickle, or it is damaged") from error


class _Reader:
    def __init__(self, data: bytes, references: Callable[[str], bool], functions: Callable[[str], bool]) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        #: The stacks below each mark.
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._references = references
        self._functions = functions

    def read(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self._data[self._at]
            self._at += 1
            if code == _STOP:
                return self._stack.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise PickleError(f"it is damaged, or it holds more than plain data (opcode 0x{code:02x})")
            operation(self)
        raise PickleError(f"it has more than {MAX_OPCODES:,} opcodes")

    # The stream

    def _take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise IndexError
        self._at += count
        return part

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + MAX_NAME_BYTES)
        if end < 0:
            raise IndexError
        line = self._data[self._at : end].decode()
        self._at = end + 1
        return line

    def _skip(self, count: int) -> None:
        self._take(count)

    # The stack

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        """The objects since the last mark."""
        objects = self._stack
        self._stack = self._below.pop()
        return objects

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _push_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _put(self, index: int) -> None:
        if index >= MAX_OPCODES:
            raise PickleError(f"it is damaged: it has no object number {index:,}")
        self._memo[index] = self._stack[-1]

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _integer(self, size: int) -> None:
        length = self._number(size)
        if length > MAX_INTEGER_BYTES:
            raise PickleError(f"it holds an integer of {length:,} bytes")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _text(self, size: int) -> None:
        self._stack.append(self._take(self._number(size)).decode())

    def _bytes(self, size: int) -> None:
        self._stack.append(self._take(self._number(size)))

    # Containers

    def _append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def _appends(self) -> None:
        items = self._pop_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        found = self._stack[-1]
        if not isinstance(found, list):
            raise TypeError
        return found

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items_of([key, value])

    def _set_items(self) -> None:
        self._set_items_of(self._pop_mark())

    def _set_items_of(self, items: list[Any]) -> None:
        found = self._stack[-1]
        if not isinstance(found, dict) or len(items) % 2:
            raise TypeError
        for key in items[::2]:
            if type(key) not in (str, bytes) and not (type(key) is int and 0 <= key <= MAX_INTEGER_KEY):
                raise PickleError("a dictionary in it has a key that is neither text nor bytes nor a small integer")
        found.update(zip(items[::2], items[1::2], strict=True))

    # References and calls

    def _global(self) -> None:
        self._refer(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError
        self._refer(module, name)

    def _refer(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if not self._references(full):
            raise RefusedReferenceError(full)
        self._stack.append(Reference(full))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Reference) or not isinstance(arguments, tuple):
            raise TypeError
        if not self._functions(function.name):
            raise RefusedReferenceError(function.name)
        if function.name == "collections.OrderedDict" and not arguments:
            self._stack.append({})
        else:
            self._stack.append(Call(function, arguments))

    def _build(self) -> None:
        state = self._stack.pop()
        found = self._stack[-1]
        if isinstance(found, Call):
            found.state = state
        # Attributes of an OrderedDict, such as the `_metadata` of a state dict, are not needed.
        elif not isinstance(found, dict):
            raise TypeError

    def _persistent(self) -> None:
        self._stack.append(PersistentId(self._stack.pop()))


_STOP = ord(".")
#: What each opcode does, by its byte.
_OPERATIONS: dict[int, Callable[[_Reader], None]] = {
    0x80: lambda reader: reader._skip(1),  # PROTO
    0x95: lambda reader: reader._skip(8),  # FRAME
    ord("("): _Reader._mark,
    ord("N"): lambda reader: reader._push(None),
    0x88: lambda reader: reader._push(True),
    0x89: lambda reader: reader._push(False),
    ord("J"): lambda reader: reader._push(*struct.unpack("<i", reader._take(4))),  # BININT
    ord("K"): lambda reader: reader._push(reader._number(1)),  # BININT1
    ord("M"): lambda reader: reader._push(reader._number(2)),  # BININT2
    0x8A: lambda reader: reader._integer(1),  # LONG1
    0x8B: lambda reader: reader._integer(4),  # LONG4
    ord("G"): lambda reader: reader._push(*struct.unpack(">d", reader._take(8))),  # BINFLOAT
    0x8C: lambda reader: reader._text(1),  # SHORT_BINUNICODE
    ord("X"): lambda reader: reader._text(4),  # BINUNICODE
    0x8D: lambda reader: reader._text(8),  # BINUNICODE8
    ord("C"): lambda reader: reader._bytes(1),  # SHORT_BINBYTES
    ord("B"): lambda reader: reader._bytes(4),  # BINBYTES
    0x8E: lambda reader: reader._bytes(8),  # BINBYTES8
    ord("]"): lambda reader: reader._push([]),
    ord("a"): _Reader._append,
    ord("e"): _Reader._appends,
    ord(")"): lambda reader: reader._push(()),
    0x85: lambda reader: reader._push_tuple(1),
    0x86: lambda reader: reader._push_tuple(2),
    0x87: lambda reader: reader._push_tuple(3),
    ord("t"): lambda reader: reader._push(tuple(reader._pop_mark())),
    ord("}"): lambda reader: reader._push({}),
    ord("s"): _Reader._set_item,
    ord("u"): _Reader._set_items,
    ord("q"): lambda reader: reader._put(reader._number(1)),  # BINPUT
    ord("r"): lambda reader: reader._put(reader._number(4)),  # LONG_BINPUT
    0x94: _Reader._memoize,
    ord("h"): lambda reader: reader._get(reader._number(1)),  # BINGET
    ord("j"): lambda reader: reader._get(reader._number(4)),  # LONG_BINGET
    ord("c"): _Reader._global,
    0x93: _Reader._stack_global,
    ord("R"): _Reader._call,  # REDUCE
    0x81: _Reader._call,  # NEWOBJ
    ord("b"): _Reader._build,
    ord("Q"): _Reader._persistent,  # BINPERSID
}
