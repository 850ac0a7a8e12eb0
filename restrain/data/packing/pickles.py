"""Reads the pickles of CIFAR without unpickling: nothing in them can name code that is then run.

The opcodes are decoded by `pickletools.genops`, which executes nothing, and interpreted here: plain dicts, lists,
tuples, ints, texts, and numpy's way of writing one array of plain numbers. Every other opcode and every other name is
refused. (Protocol 2, as Krizhevsky's Python 2 wrote the files; also what Python 3 makes of the same objects.)
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from restrain.errors import UserError

MOST = 1 << 29  # bytes of one array
RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
ARRAY, DTYPE, ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
KNOWN = {*RECONSTRUCT, ARRAY, DTYPE, ENCODE}
DTYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
MARK = object()


@dataclass(frozen=True)
class _Name:
    """A global that a pickle names: a word here, never an object."""

    text: str


@dataclass
class _Dtype:
    code: str
    order: str = "|"


@dataclass
class _Array:
    """An array whose state may follow. ``value`` once it has."""

    value: np.ndarray | None = field(default=None)


def read(data: bytes, title: str) -> dict:
    """The dict that a pickle holds, of lists, tuples, numbers, texts, arrays. Python 2's str is bytes.

    Raises UserError, naming ``title`` and the opcode or the name, for a pickle that holds anything else.
    """
    try:
        return _plain(_Machine(title).run(data))
    except UserError:
        raise
    except Exception as error:  # genops and odd stacks: ValueError, IndexError, TypeError, KeyError, UnicodeError ...
        raise UserError(f"{title} is no pickle of the kind expected ({error}). Fetch it again.") from error


class _Machine:
    def __init__(self, title: str):
        self.title, self.stack, self.memo = title, [], {}

    def run(self, data: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            self.step(opcode.name, argument)
        raise ValueError("no STOP")

    def step(self, name: str, argument: Any) -> None:
        if name in ("PROTO", "FRAME"):
            return
        if name in VALUES:
            text = name.endswith("STRING")  # genops decodes Python 2's str as latin-1, or as ASCII
            self.stack.append(argument.encode("latin-1") if text else argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name == "MARK":
            self.stack.append(MARK)
        elif name in PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in GETS:
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self.stack.append(self.known(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self.take(2)
            self.stack.append(self.known(f"{module} {attribute}"))
        elif name in TUPLES:
            self.stack.append(tuple(self.take(TUPLES[name])))
        elif not self.collect(name):
            self.construct(name)

    def known(self, name: str) -> _Name:
        if name not in KNOWN:
            raise UserError(
                f"{self.title} names {name.replace(' ', '.')!r}, which has no place in a list of images: unpickling it "
                f"could run code. It was refused, and nothing was run. Fetch the file from its origin."
            )
        return _Name(name)

    def take(self, count: int) -> list:
        if len(self.stack) < count:
            raise ValueError("its stack runs empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        if any(value is MARK for value in taken):
            raise ValueError("a mark is out of place")
        return taken

    def to_mark(self) -> list:
        at = max(i for i, value in enumerate(self.stack) if value is MARK)
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def collect(self, name: str) -> bool:
        """Opcodes that fill containers; False for others."""
        if name == "TUPLE":
            self.stack.append(tuple(self.to_mark()))
        elif name == "LIST":
            self.stack.append(self.to_mark())
        elif name == "DICT":
            found = self.to_mark()
            self.stack.append(dict(zip(found[::2], found[1::2], strict=True)))
        elif name in ("APPEND", "APPENDS"):
            found = self.to_mark() if name == "APPENDS" else self.take(1)
            self.top(list).extend(found)
        elif name in ("SETITEM", "SETITEMS"):
            found = self.to_mark() if name == "SETITEMS" else self.take(2)
            self.top(dict).update(zip(found[::2], found[1::2], strict=True))
        else:
            return False
        return True

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"a {kind.__name__} was expected")
        return self.stack[-1]

    def construct(self, name: str) -> None:
        """REDUCE and BUILD, of numpy's arrays and dtypes alone."""
        if name not in ("REDUCE", "BUILD"):
            raise UserError(
                f"{self.title} holds the pickle opcode {name}, which has no place in a list of images. It was refused, "
                f"and nothing was run. Fetch the file from its origin."
            )
        target, argument = self.take(2)
        self.stack.append(_reduced(target, argument) if name == "REDUCE" else _built(target, argument))


def _reduced(target: Any, arguments: Any) -> Any:
    if not isinstance(target, _Name) or not isinstance(arguments, tuple):
        raise ValueError("REDUCE of something else than a known name")
    if target.text in RECONSTRUCT and arguments[:1] == (_Name(ARRAY),):
        return _Array()
    if target.text == DTYPE and _text(arguments[0]) in DTYPES:
        return _Dtype(_text(arguments[0]))
    if target.text == ENCODE and arguments[1:] == ("latin1",) and isinstance(arguments[0], str):
        return arguments[0].encode("latin-1")
    raise ValueError(f"{target.text.replace(' ', '.')} with arguments that no array of numbers has")


def _built(target: Any, state: Any) -> Any:
    if isinstance(target, _Dtype):
        target.order = _text(state[1])
        if target.order not in ("<", ">", "|", "="):
            raise ValueError("a dtype of an unknown byte order")
        return target
    if not isinstance(target, _Array):
        raise ValueError("BUILD of something else than an array")
    _, shape, dtype, fortran, content = state
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes) or len(content) > MOST:
        raise ValueError("an array that is none of plain numbers")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of the shape {shape}")
    found = np.frombuffer(content, np.dtype(dtype.order.replace("|", "") + dtype.code))
    target.value = found.reshape(shape, order="F" if fortran else "C")
    return target


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _plain(value: Any) -> Any:
    """A dict with its arrays in place of what built them. Deeper containers stay: CIFAR's hold no arrays."""
    found = {key: one.value if isinstance(one, _Array) else one for key, one in value.items()}
    if any(isinstance(one, _Name | _Dtype) or one is MARK for one in found.values()):
        raise ValueError("an object without content")
    return found
