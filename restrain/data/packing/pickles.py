"""Reads the pickles that CIFAR is given out in, and runs nothing of them.

A pickle is a program, and Python's own reader calls whatever function it names. This one knows the operations of plain
dicts, lists, tuples, numbers and strings, and one call by heart: the making of a numpy array of bytes. All else is
refused by name. Operations: the standard library's `pickletools`.
"""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

from restrain.errors import WorldError

_MARK = object()
_CALLS = {  # what a GLOBAL may name
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH = {"BININT", "BININT1", "BININT2", "INT", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE"}
_EMPTY: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_PUSH |= {"SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "UNICODE", "STRING"}


class _Global(str):
    pass


class _Array:
    """An array whose content comes with the BUILD after it."""

    value: np.ndarray | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if dtype != "u1" or not isinstance(data, bytes):
            raise ValueError("an array that is not of bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def read_plain(data: bytes, where: str) -> Any:
    """The object in a pickle, strings of Python 2 as bytes. Raises WorldError for anything but plain data."""
    try:
        return _plain(_run(data))
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise WorldError(
            f"{where} is no pickle of plain data and arrays of bytes ({error}). It is not read further, since a pickle "
            f"can run anything. Fetch the archive from its origin again."
        ) from None


def _run(data: bytes) -> Any:
    machine = _Machine()
    for op, argument, _ in pickletools.genops(data):
        if op.name == "STOP":
            return machine.stack.pop()
        if not machine.plain(op.name, argument) and not machine.called(op.name, argument):
            raise ValueError(f"it has the operation {op.name}")
    raise ValueError("it has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[Any, Any] = {}

    def plain(self, name: str, argument: Any) -> bool:
        """Do an operation that makes plain data; False where it is none."""
        stack = self.stack
        if name in _PUSH:
            stack.append(argument.encode("latin-1") if "STRING" in name and isinstance(argument, str) else argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("DICT", "LIST", "TUPLE"):
            items = self._marked()
            stack.append(dict(_pairs(items)) if name == "DICT" else items if name == "LIST" else tuple(items))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = self._marked() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._marked() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(_pairs(items))
        else:
            return name in ("PROTO", "FRAME")
        return True

    def called(self, name: str, argument: Any) -> bool:
        """Do an operation that calls something, if it is one of those known; False where it is none of the kind."""
        stack = self.stack
        if name == "GLOBAL":
            if argument not in _CALLS:
                raise ValueError(f"it names {argument!r}")
            stack.append(_Global(argument))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Array):
                stack[-1].build(state)
            elif stack[-1] != "u1":  # a dtype's own state is its byte order, and bytes have none
                raise ValueError("it builds an object")
        else:
            return False
        return True

    def _marked(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        at = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, _Global):
        raise ValueError("it calls something")
    if function.endswith("_reconstruct"):
        return _Array()
    if function == "numpy dtype":
        kind = arguments[0]
        return kind.decode("ascii") if isinstance(kind, bytes) else str(kind)
    if function == "_codecs encode":  # how Python 3 writes bytes for Python 2
        text, coding = arguments
        if coding not in ("latin1", b"latin1"):
            raise ValueError(f"it encodes as {coding!r}")
        return text.encode("latin-1")
    raise ValueError(f"it calls {function}")


def _pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    return list(zip(items[::2], items[1::2], strict=True))


def _plain(value: Any) -> Any:
    """Arrays in place of what stood for them; nothing unfinished may be left."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array without content")
        return value.value
    if isinstance(value, _Global):
        raise ValueError(f"it holds {value}")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
