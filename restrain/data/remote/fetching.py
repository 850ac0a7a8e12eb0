"""One object, or a range of it, over a network that fails: tried again, resumed, and given up before a deadline."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from restrain.data.remote.urls import redact
from restrain.errors import WorldError

MOST = 64 << 30  # bytes of an object whose size nobody says
_jitter = random.SystemRandom()  # the process-wide generators are nobody's to read in a run


@dataclass(frozen=True)
class Patience:
    """How long a fetch is worth waiting for. The deadline is below the ten minutes after which collectives give up, so
    that the process whose storage fails is the one that says so."""

    tries: int = 8
    deadline: float = 480.0  # seconds, all tries together
    stall_seconds: float = 30.0
    stall_rate: float = 65536.0  # bytes a second, below which a transfer that long counts as stalled
    first_wait: float = 1.0  # seconds, doubled each time; the wait is uniform between 0 and that
    longest_wait: float = 60.0


@dataclass
class Answer:
    """What a server said. begin: offset of the first byte in the object; total: its size, where told."""

    begin: int
    total: int | None
    tag: str | None
    chunks: Iterator[bytes]


class Transient(Exception):
    """Worth another try. after: seconds that the server asks for."""

    def __init__(self, cause: str, after: float = 0.0):
        super().__init__(cause)
        self.after = after


class Final(Exception):
    """Not worth another try: absent, or forbidden."""


class Absent(WorldError):
    """The object is not there, or not for us."""


class Transport(Protocol):
    def get(self, url: str, first: int, last: int | None, tag: str | None, timeout: float) -> Answer:
        """Bytes [first, last) if the object still has ``tag``, else the whole of it. Raises Transient or Final.

        timeout: seconds without a byte after which connecting and reading are given up.
        """
        ...

    def close(self) -> None: ...


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...

    def restart(self) -> None:
        """Forget what was written: the object changed."""
        ...


def fetch(
    transport: Transport,
    url: str,
    sink: Sink,
    patience: Patience,
    *,
    first: int = 0,
    last: int | None = None,
    size: int | None = None,
) -> str | None:
    """Write bytes [first, last) of an object into ``sink``; gives its tag.

    size: of the whole object, checked. Raises WorldError that names the object, without its query, and the cause.
    """
    end = time.monotonic() + patience.deadline
    got, tag, cause, tried = 0, None, "", 0
    while tried < patience.tries and (left := end - time.monotonic()) > 0:
        tried += 1
        after, answer = 0.0, None
        try:
            answer = transport.get(url, first + got, last, tag if got else None, min(patience.stall_seconds, left))
            if size is not None and answer.total not in (None, size):
                raise Transient(f"the object has {answer.total} bytes, {size} are expected")
            if got and (answer.begin != first + got or (tag and answer.tag != tag)):
                sink.restart()  # it changed, or the server knows no ranges: from the beginning in either case
                got = 0
            tag = answer.tag
            skip = first + got - answer.begin
            if skip < 0:
                raise Transient("the object changed while it was read")
            stop = last if last is not None else answer.total if answer.total is not None else size
            for data in _lively(answer.chunks, patience, end):
                data, skip = data[skip:], max(0, skip - len(data))
                if stop is not None:
                    data = data[: stop - first - got]
                sink.write(data)
                got += len(data)
                if got > MOST:
                    raise Final(f"it is larger than {MOST >> 30} GB and does not say how large")
                if stop is not None and got == stop - first:
                    break
            if stop is not None and got < stop - first:
                raise Transient(f"the connection ended after {got} of {stop - first} bytes")
            return tag
        except Final as error:
            raise Absent(f"{redact(url)} cannot be read: {error}. Check data.root, and the right to read it.") from None
        except Transient as error:
            cause, after = str(error), error.after
        finally:
            if answer is not None and (close := getattr(answer.chunks, "close", None)) is not None:
                close()
        wait = _jitter.uniform(0, min(patience.longest_wait, patience.first_wait * 2 ** (tried - 1)))
        wait = max(after, wait)
        if tried < patience.tries and time.monotonic() + wait < end:
            time.sleep(wait)
        else:
            break
    raise WorldError(
        f"{redact(url)} cannot be read: {cause or 'the deadline passed'} ({tried} tries, at most "
        f"{patience.deadline:.0f} s). The run can go on from its last checkpoint when the storage answers again."
    )


def _lively(chunks: Iterator[bytes], patience: Patience, end: float) -> Iterator[bytes]:
    """The chunks; Transient where they come too slowly for too long, or the deadline passes."""
    since, got = time.monotonic(), 0
    for data in chunks:
        yield data
        now, got = time.monotonic(), got + len(data)
        if now > end:
            raise Transient("the deadline passed in the middle of the transfer")
        if now - since > patience.stall_seconds:
            if got < patience.stall_rate * (now - since):
                raise Transient(f"stalled: {got} bytes in {now - since:.0f} s")
            since, got = now, 0
